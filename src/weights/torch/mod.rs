//! Files of torch.save: zip archives (since PyTorch 1.6) and the pickles from before, whatever their names end in
//! (.pt, .pth, .bin, .ckpt, .th). Tensors are views of the mapped file: shared storages, strides and offsets are as they were saved.
//! Source: torch/serialization.py.

mod archive;
mod globals;
mod pickle;
mod state;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::base::{Error, Kind, Result};
use crate::weights::json::shorten;
use crate::weights::mapped::Mapped;
use crate::weights::store::Contents;
use crate::weights::torch::pickle::{Node, Tensor, Tree};
use crate::weights::view::View;

/// Largest pickle of an archive, in bytes; that of SDXL has less than one million.
const MAX_PICKLE_BYTES: usize = 64 << 20;
/// The pickle of torch's magic number, with which files of before 1.6 begin.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
/// Version of the old format.
const PROTOCOL: Node<'static> = Node::Int(1001);

type Fact<T> = std::result::Result<T, String>;

/// Whether these are the first bytes of what torch.save writes, or of a pickle or tar archive that it once wrote. The length of a
/// safetensors header may begin with the same bytes as a pickle; then it goes on with zeros.
pub(crate) fn is_torch(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK") || is_tar(bytes) || (matches!(bytes, [0x80, 0..=5, ..]) && bytes.get(4..8) != Some(&[0; 4]))
}

fn is_tar(bytes: &[u8]) -> bool {
    bytes.get(257..262) == Some(b"ustar")
}

/// The tensors of a file.
pub(crate) fn read(path: &Path, file: &Arc<Mapped>) -> Result<Contents> {
    let bytes = file.bytes();
    let contents = if bytes.starts_with(b"PK") {
        zipped(file)
    } else if bytes.starts_with(MAGIC) {
        legacy(file)
    } else if is_tar(bytes) {
        Err("is a tar archive (PyTorch of before 0.1.10), expected a file that a later torch.save wrote".to_string())
    } else {
        Err("is a pickle that does not begin with PyTorch's magic number, expected a file of torch.save".to_string())
    };
    contents.map_err(|fact| Error::new(Kind::Format, path.display().to_string(), fact))
}

/// An archive: `<root>/data.pkl`, `<root>/data/<key>` and, of some, `<root>/byteorder`.
fn zipped(file: &Arc<Mapped>) -> Fact<Contents> {
    let bytes = file.bytes();
    let entries = archive::entries(bytes)?;
    let pickles: Vec<_> = entries.iter().filter(|(name, _)| **name == "data.pkl" || name.ends_with("/data.pkl")).collect();
    let [(name, pickle)] = pickles.as_slice() else {
        return Err(format!("zip: {} entries end in data.pkl, expected one, as torch.save writes", pickles.len()));
    };
    let root = &name[..name.len() - "data.pkl".len()];
    if entries.contains_key(format!("{root}constants.pkl").as_str()) {
        return Err("is a TorchScript archive, expected a state dict that torch.save wrote".to_string());
    }
    if let Some(order) = entries.get(format!("{root}byteorder").as_str()).map(|range| &bytes[range.clone()])
        && order != b"little"
    {
        return Err(format!("byte order `{}`, expected little", shorten(&String::from_utf8_lossy(&order[..order.len().min(80)]))));
    }
    if pickle.len() > MAX_PICKLE_BYTES {
        return Err(format!("zip: entry `{name}` of {} bytes, expected at most {MAX_PICKLE_BYTES}", pickle.len()));
    }
    let tree = pickle::read(&bytes[(*pickle).clone()])?;
    contents(file, &tree, |key| entries.get(format!("{root}data/{key}").as_str()).cloned())
}

/// Five pickles (magic number, protocol, system, the object, storage keys), then each storage: its count as i64, and its values.
fn legacy(file: &Arc<Mapped>) -> Fact<Contents> {
    let bytes = file.bytes();
    let mut at = MAGIC.len();
    let protocol = next(bytes, &mut at)?;
    if protocol.nodes[protocol.root] != PROTOCOL {
        return Err(format!("{} as the version of the old format, expected 1001", pickle::words(&protocol.nodes[protocol.root])));
    }
    let system = next(bytes, &mut at)?;
    let little = |(key, value): &(usize, usize)| system.nodes[*key] == Node::Text("little_endian") && system.nodes[*value] == Node::Bool(true);
    if !matches!(&system.nodes[system.root], Node::Dict(items) if items.iter().any(little)) {
        return Err("the system's description does not say little_endian, expected values in that byte order".to_string());
    }
    let tree = next(bytes, &mut at)?;
    let keys = next(bytes, &mut at)?;
    let Node::List(keys_in_order) = &keys.nodes[keys.root] else {
        return Err(format!("{} after the pickle, expected the keys of its storages", pickle::words(&keys.nodes[keys.root])));
    };
    let sizes = item_sizes(&tree)?;
    let mut ranges = BTreeMap::new();
    for key in keys_in_order {
        let Node::Text(key) = keys.nodes[*key] else { return Err("a storage key that is no text".to_string()) };
        let item = sizes.get(key).ok_or_else(|| format!("storage `{}` belongs to no tensor", shorten(key)))?;
        let count = at.checked_add(8).and_then(|end| bytes.get(at..end)).and_then(|b| b.first_chunk::<8>()).map(|b| u64::from_le_bytes(*b));
        let start = at.saturating_add(8);
        let end = count.and_then(|n| usize::try_from(n).ok()?.checked_mul(*item)).and_then(|n| start.checked_add(n)).filter(|&end| end <= bytes.len());
        let end = end.ok_or_else(|| format!("storage `{}`: {count:?} elements at byte {at} of {}: truncated?", shorten(key), bytes.len()))?;
        if ranges.insert(key, start..end).is_some() {
            return Err(format!("storage `{}` stands there twice", shorten(key)));
        }
        at = end;
    }
    if at != bytes.len() {
        return Err(format!("{} bytes after the last storage, expected none", bytes.len() - at));
    }
    contents(file, &tree, |key| ranges.get(key).cloned())
}

/// The pickle at `at` of an old file, and where it ends.
fn next<'a>(bytes: &'a [u8], at: &mut usize) -> Fact<Tree<'a>> {
    let end = bytes.len().min(at.saturating_add(MAX_PICKLE_BYTES));
    let tree = pickle::read(&bytes[*at..end])?;
    *at += tree.bytes;
    Ok(tree)
}

/// Bytes of an element of each storage.
fn item_sizes<'a>(tree: &Tree<'a>) -> Fact<BTreeMap<&'a str, usize>> {
    let mut sizes = BTreeMap::new();
    for node in &tree.nodes {
        if let Node::Storage(storage) = node {
            let item = storage.dtype.map_or(1, |dtype| dtype.bitsize() / 8);
            if *sizes.entry(storage.key).or_insert(item) != item {
                return Err(format!("storage `{}` has two types", shorten(storage.key)));
            }
        }
    }
    Ok(sizes)
}

/// The state dict as views of the file; `bytes_of` gives the place of a storage.
fn contents(file: &Arc<Mapped>, tree: &Tree, bytes_of: impl Fn(&str) -> Option<Range<usize>>) -> Fact<Contents> {
    let state = state::state(tree)?;
    let mut tensors = Vec::with_capacity(state.tensors.len());
    for (name, own_name, tensor) in state.tensors {
        let view = view(file, &own_name, tensor, &bytes_of).map_err(|fact| format!("tensor `{}`: {fact}", shorten(&own_name)))?;
        tensors.push((name, view));
    }
    let architecture = state.architecture.map(|architecture| ("arch".to_string(), architecture));
    Ok(Contents { tensors, metadata: state.texts.into_iter().chain(architecture).collect(), skipped: state.skipped })
}

fn view(file: &Arc<Mapped>, own_name: &str, tensor: &Tensor, bytes_of: impl Fn(&str) -> Option<Range<usize>>) -> Fact<View> {
    let Tensor { storage, dtype, start, shape, strides } = tensor;
    let key = shorten(storage.key);
    let bytes = bytes_of(storage.key).ok_or_else(|| format!("its storage `{key}` is not in the file"))?;
    let item = storage.dtype.map_or(1, |dtype| dtype.bitsize() / 8);
    // In an old file a view of a storage has the key of the whole, which may be longer.
    let claimed = storage.count.checked_mul(item);
    if claimed.is_none_or(|claimed| claimed != bytes.len()) && storage.start == 0 {
        return Err(format!("its storage `{key}` has {} bytes, expected {} elements of {item}", bytes.len(), storage.count));
    }
    let start = start.checked_add(storage.start).ok_or("its first element is out of reach")?;
    View::strided(file, own_name, *dtype, shape.clone(), strides.clone(), start, bytes)
}
