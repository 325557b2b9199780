//! One checkpoint on disk: a safetensors file, or several with their index. Files are mapped, not read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::Dtype;

use crate::base::{Array, Error, Kind, Result};
use crate::weights::header::{self, Tensor};
use crate::weights::json::{Object, shorten};

/// Names that a folder's weights have, in the order of preference; each may also be split, with `<name>.index.json`.
const FILE_NAMES: [&str; 2] = ["diffusion_pytorch_model.safetensors", "model.safetensors"];
/// Largest index of a split checkpoint, in bytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;

#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    bytes: Mmap,
}

/// Name, element type and shape (PyTorch's axis order) of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// `F16`, `BF16`, `F32`, `I64` and so on.
    pub dtype: String,
    pub shape: Vec<usize>,
}

/// The tensors of a checkpoint.
#[derive(Debug)]
pub struct Store {
    place: String,
    files: Vec<Mapped>,
    tensors: BTreeMap<String, (usize, Tensor)>,
    metadata: BTreeMap<String, String>,
}

impl Store {
    /// Opens a `.safetensors` file, a `.safetensors.index.json`, or a folder that holds one of them.
    /// Fails with the file, what was found and what was expected.
    pub fn open(path: &Path) -> Result<Store> {
        let path = if path.is_dir() { in_folder(path)? } else { path.to_path_buf() };
        if path.to_string_lossy().ends_with(".json") { Self::sharded(&path) } else { Self::single(&path) }
    }

    fn single(path: &Path) -> Result<Store> {
        let (file, tensors, metadata) = map(path)?;
        let tensors = tensors.into_iter().map(|t| (t.name.clone(), (0, t))).collect();
        Ok(Store { place: path.display().to_string(), files: vec![file], tensors, metadata: metadata.into_iter().collect() })
    }

    fn sharded(index: &Path) -> Result<Store> {
        let place = index.display().to_string();
        let weight_map = weight_map(index)?;
        let folder = index.parent().unwrap_or(Path::new(""));
        let mut shards: Vec<&String> = weight_map.values().collect();
        shards.sort();
        shards.dedup();
        let mut store = Store { place: place.clone(), files: Vec::new(), tensors: BTreeMap::new(), metadata: BTreeMap::new() };
        for shard in shards {
            let path = folder.join(shard);
            let (file, tensors, metadata) = map(&path)?;
            for tensor in tensors {
                if weight_map.get(&tensor.name) != Some(shard) {
                    let fact = format!("tensor `{}` is not listed for this file in {place}", shorten(&tensor.name));
                    return Err(Error::new(Kind::Format, path.display().to_string(), fact));
                }
                store.tensors.insert(tensor.name.clone(), (store.files.len(), tensor));
            }
            store.files.push(file);
            store.metadata.extend(metadata);
        }
        match weight_map.iter().find(|(name, _)| !store.tensors.contains_key(*name)) {
            Some((name, shard)) => Err(Error::new(Kind::Format, place, format!("weight_map: `{}` is not in {shard}", shorten(name)))),
            None => Ok(store),
        }
    }

    /// The file that the store was opened from, as errors show it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The `__metadata__` texts.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Every tensor, sorted by name.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |t: &Tensor| Entry { name: t.name.clone(), dtype: t.dtype.to_string(), shape: t.shape.clone() };
        self.tensors.values().map(|(_, t)| entry(t)).collect()
    }

    /// Shape of `name` in PyTorch's axis order.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(_, t)| t.shape.as_slice())
    }

    /// `name` as f32 in PyTorch's axis order. Integers are taken when f32 holds them exactly.
    pub fn array(&self, name: &str) -> Result<Array> {
        let (tensor, bytes) = self.find(name)?;
        if let Some(values) = floats(tensor.dtype, bytes) {
            return Array::new(&tensor.shape, values);
        }
        let integers = integers(tensor.dtype, bytes).ok_or_else(|| self.unreadable(tensor, "a number type"))?;
        match integers.iter().find(|v| v.unsigned_abs() > 1 << 24) {
            Some(v) => Err(self.error(name, format!("value {v}, expected an integer that f32 holds exactly"))),
            None => Array::new(&tensor.shape, integers.iter().map(|&v| v as f32).collect()),
        }
    }

    /// Values of the floating point tensor `name`; None for other types.
    pub(crate) fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let (tensor, bytes) = self.find(name).ok()?;
        floats(tensor.dtype, bytes)
    }

    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|(_, t)| t.dtype)
    }

    /// The integer (or bool) tensor `name` in row-major order.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let (tensor, bytes) = self.find(name)?;
        integers(tensor.dtype, bytes).ok_or_else(|| self.unreadable(tensor, "an integer type that i64 holds"))
    }

    /// The integer tensor `name` as indices.
    pub fn indices(&self, name: &str) -> Result<Vec<u32>> {
        let index = |v: i64| u32::try_from(v).map_err(|_| self.error(name, format!("value {v}, expected 0 to {}", u32::MAX)));
        self.integers(name)?.into_iter().map(index).collect()
    }

    fn find(&self, name: &str) -> Result<(&Tensor, &[u8])> {
        let (file, tensor) = self.tensors.get(name).ok_or_else(|| self.error(name, "no such tensor in the file".to_string()))?;
        Ok((tensor, &self.files[*file].bytes[tensor.bytes.clone()]))
    }

    fn error(&self, name: &str, fact: String) -> Error {
        Error::new(Kind::Weights, shorten(name), fact).remark(&self.place)
    }

    fn unreadable(&self, tensor: &Tensor, expected: &str) -> Error {
        let file = &self.files[self.tensors[&tensor.name].0].path;
        Error::new(Kind::Weights, shorten(&tensor.name), format!("dtype {}, expected {expected}", tensor.dtype)).remark(&file.display().to_string())
    }
}

/// Every tensor of a file as f32, in PyTorch's axis order.
pub fn read_all(path: &Path) -> Result<BTreeMap<String, Array>> {
    let store = Store::open(path)?;
    store.names().map(|name| Ok((name.to_string(), store.array(name)?))).collect()
}

/// The checkpoint file of a folder.
fn in_folder(folder: &Path) -> Result<PathBuf> {
    for name in FILE_NAMES {
        for path in [folder.join(name), folder.join(format!("{name}.index.json"))] {
            if path.is_file() {
                return Ok(path);
            }
        }
    }
    let wanted = format!("expected {} or one of them with .index.json", FILE_NAMES.join(", "));
    Err(Error::new(Kind::Io, folder.display().to_string(), format!("no weights in this folder, {wanted}{}", other_weights(folder))))
}

/// Files of a folder that hold weights under another name or in another format, for an error.
fn other_weights(folder: &Path) -> String {
    let is_like_weights = |name: &String| [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".msgpack"].iter().any(|end| name.ends_with(end));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| shorten(&entry.file_name().to_string_lossy())).filter(is_like_weights).take(4).collect();
    names.sort();
    if names.is_empty() { String::new() } else { format!("; it holds {}", names.join(", ")) }
}

/// Maps a file and checks its header.
#[allow(unsafe_code)]
fn map(path: &Path) -> Result<(Mapped, Vec<Tensor>, Vec<(String, String)>)> {
    let place = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, &e))?;
    let meta = file.metadata().map_err(|e| Error::io(path, &e))?;
    if !meta.is_file() {
        return Err(Error::new(Kind::Io, place, "not a file, expected safetensors"));
    }
    if meta.len() == 0 {
        return Err(Error::new(Kind::Format, place, "0 bytes, expected a safetensors file"));
    }
    // SAFETY: the map is read-only and private to the returned value. What Rust can't rule out is another process that
    // writes to or truncates the file while it is mapped; like every reader of mapped weights we require that nobody does.
    let bytes = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, &e))?;
    let header = header::parse(&bytes).map_err(|fact| Error::new(Kind::Format, place, fact))?;
    Ok((Mapped { path: path.to_path_buf(), bytes }, header.tensors, header.metadata))
}

/// The `weight_map` of an index: tensor name to file name.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let place = index.display().to_string();
    let bad = |fact: String| Error::new(Kind::Format, place.clone(), fact);
    let size = std::fs::metadata(index).map_err(|e| Error::io(index, &e))?.len();
    if size > MAX_INDEX_BYTES {
        return Err(bad(format!("{size} bytes, expected an index of at most {MAX_INDEX_BYTES}")));
    }
    let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, &e))?;
    let Object(pairs) = serde_json::from_str(&text).map_err(|e| bad(format!("not an index of safetensors files: {e}")))?;
    let map = pairs.into_iter().find(|(name, _)| name == "weight_map").map(|(_, value)| value);
    let map = map.as_ref().and_then(|v| v.as_object()).ok_or_else(|| bad("no `weight_map`, expected an object of tensor and file names".to_string()))?;
    let mut out = BTreeMap::new();
    for (name, file) in map {
        // A file beside the index: a path could lead anywhere.
        let plain = |f: &&str| f.ends_with(".safetensors") && !f.contains(['/', '\\', ':', '\0']);
        let file = file
            .as_str()
            .filter(plain)
            .ok_or_else(|| bad(format!("weight_map: `{}` is in {}, expected a .safetensors file name", shorten(name), shorten(&file.to_string()))))?;
        out.insert(name.clone(), file.to_string());
    }
    Ok(out)
}

fn each<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|b| f(*b)).collect()
}

/// Little-endian floats as f32; f64 is rounded.
fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        _ => return None,
    })
}

/// Little-endian integers; None for other types and where a u64 is too large.
fn integers(dtype: Dtype, bytes: &[u8]) -> Option<Vec<i64>> {
    Some(match dtype {
        Dtype::I64 => each(bytes, i64::from_le_bytes),
        Dtype::I32 => each(bytes, |b| i32::from_le_bytes(b).into()),
        Dtype::I16 => each(bytes, |b| i16::from_le_bytes(b).into()),
        Dtype::I8 => each(bytes, |b| i8::from_le_bytes(b).into()),
        Dtype::U8 | Dtype::BOOL => each(bytes, |[b]| b.into()),
        Dtype::U16 => each(bytes, |b| u16::from_le_bytes(b).into()),
        Dtype::U32 => each(bytes, |b| u32::from_le_bytes(b).into()),
        Dtype::U64 => each(bytes, |b| i64::try_from(u64::from_le_bytes(b)).ok()).into_iter().collect::<Option<_>>()?,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Writer;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn every_number_type_is_read() {
        let rows: Vec<(Dtype, Vec<u8>, f32)> = vec![
            (Dtype::F16, f16::from_f32(-1.5).to_le_bytes().to_vec(), -1.5),
            (Dtype::BF16, bf16::from_f32(-1.5).to_le_bytes().to_vec(), -1.5),
            (Dtype::F32, (-1.5f32).to_le_bytes().to_vec(), -1.5),
            (Dtype::F64, (-1.5f64).to_le_bytes().to_vec(), -1.5),
            (Dtype::I64, (-7i64).to_le_bytes().to_vec(), -7.0),
            (Dtype::I32, (-7i32).to_le_bytes().to_vec(), -7.0),
            (Dtype::I16, (-7i16).to_le_bytes().to_vec(), -7.0),
            (Dtype::I8, (-7i8).to_le_bytes().to_vec(), -7.0),
            (Dtype::U16, 7u16.to_le_bytes().to_vec(), 7.0),
            (Dtype::U64, 7u64.to_le_bytes().to_vec(), 7.0),
            (Dtype::BOOL, vec![1], 1.0),
        ];
        let dir = folder();
        for (dtype, bytes, want) in rows {
            let view = safetensors::tensor::TensorView::new(dtype, vec![1, 1], &bytes).unwrap();
            let path = dir.path().join(format!("{dtype}.safetensors"));
            std::fs::write(&path, safetensors::serialize([("x", view)], None).unwrap()).unwrap();
            let array = Store::open(&path).unwrap().array("x").unwrap();
            assert_eq!((array.dims(), array.data[0]), (&[1usize, 1][..], want), "{dtype}");
        }
    }

    #[test]
    fn integers_that_do_not_fit_are_refused() {
        let dir = folder();
        let path = dir.path().join("a.safetensors");
        let mut writer = Writer::new();
        writer.i32("negative", &[2], vec![3, -1]).unwrap();
        writer.u32("large", &[1], vec![16_777_217]).unwrap();
        writer.write(&path).unwrap();
        let store = Store::open(&path).unwrap();
        assert_eq!(store.integers("negative").unwrap(), [3, -1]);
        assert!(store.indices("negative").unwrap_err().to_string().contains("value -1, expected 0 to"));
        assert!(store.array("large").unwrap_err().to_string().contains("exactly"));
        assert_eq!(store.indices("large").unwrap(), [16_777_217]);
        assert!(store.array("absent").unwrap_err().to_string().starts_with("absent: no such tensor"));
    }

    #[test]
    fn split_checkpoints_are_one_store() {
        let dir = folder();
        for (file, name) in [("model-1.safetensors", "a"), ("model-2.safetensors", "b")] {
            let mut writer = Writer::new();
            writer.f32(name, &[2], vec![1.0, 2.0]).unwrap();
            writer.write(&dir.path().join(file)).unwrap();
        }
        let index = dir.path().join("model.safetensors.index.json");
        let write = |map: &str| std::fs::write(&index, format!("{{\"metadata\":{{}},\"weight_map\":{map}}}")).unwrap();
        write(r#"{"a":"model-1.safetensors","b":"model-2.safetensors"}"#);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(store.array("b").unwrap().data, [1.0, 2.0]);
        let rows = [
            (r#"{"a":"model-1.safetensors","b":"model-1.safetensors"}"#, "`b` is not in model-1"),
            (r#"{"a":"model-2.safetensors"}"#, "`b` is not listed"),
            (r#"{"a":"../model-1.safetensors"}"#, "expected a .safetensors file name"),
            (r#"{"a":7}"#, "expected a .safetensors file name"),
            (r#"[]"#, "no `weight_map`"),
        ];
        for (map, want) in rows {
            write(map);
            let error = Store::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(want), "{map}: {error}");
        }
    }

    #[test]
    fn folders_without_weights_say_what_is_expected() {
        let dir = folder();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("no weights in this folder, expected diffusion_pytorch_model.safetensors"), "{error}");
        std::fs::write(dir.path().join("pytorch_model.bin"), b"PK").unwrap();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with(".index.json; it holds pytorch_model.bin"), "{error}");
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, b"").unwrap();
        assert!(Store::open(dir.path()).unwrap_err().to_string().contains("0 bytes"));
    }
}
