//! The tensors of one checkpoint on disk, whatever its format: named views of mapped files. Nothing is read until it is asked for.
//! A store can be renamed, cut at a prefix and changed by LoRA without a copy of its values.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::Dtype;

use crate::base::{Array, Error, Halves, Kind, Result};
use crate::weights::folder;
use crate::weights::header;
use crate::weights::json::shorten;
use crate::weights::low_rank::LowRank;
use crate::weights::mapped::Mapped;
use crate::weights::torch;
use crate::weights::view::{Part, View};

/// Name, element type and shape (PyTorch's axis order) of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// `F16`, `BF16`, `F32`, `I64` and so on.
    pub dtype: String,
    pub shape: Vec<usize>,
}

/// What becomes of a tensor when a store is renamed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays under its own name; a model that does not know it reports it as unused.
    Keep,
    /// Nobody needs it. It is reported as dropped.
    Drop,
    /// It gets this name.
    Rename(String),
    /// Parts of it get these names.
    Split(Vec<(String, Part)>),
}

/// The tensors of a checkpoint.
#[derive(Clone, Debug)]
pub struct Store {
    place: String,
    tensors: BTreeMap<String, View>,
    metadata: BTreeMap<String, String>,
    dropped: Vec<String>,
    skipped: Vec<String>,
}

/// The tensors of one file.
pub(crate) struct Contents {
    pub tensors: Vec<(String, View)>,
    pub metadata: BTreeMap<String, String>,
    /// What was left alone, in words.
    pub skipped: Vec<String>,
}

impl Store {
    /// Opens a file of safetensors or of torch.save (told by its first bytes, not by its name), the `.index.json` of several, or a
    /// folder that holds one of them. Fails with the file, what was found and what was expected.
    pub fn open(path: &Path) -> Result<Store> {
        let path = if path.is_dir() { folder::weights_in(path)? } else { path.to_path_buf() };
        if path.to_string_lossy().ends_with(".json") { Self::sharded(&path) } else { Self::single(&path) }
    }

    fn single(path: &Path) -> Result<Store> {
        let Contents { tensors, metadata, skipped } = read(path)?;
        Ok(Store { place: path.display().to_string(), tensors: tensors.into_iter().collect(), metadata, dropped: Vec::new(), skipped })
    }

    fn sharded(index: &Path) -> Result<Store> {
        let place = index.display().to_string();
        let weight_map = folder::weight_map(index)?;
        let folder = index.parent().unwrap_or(Path::new(""));
        let mut shards: Vec<&String> = weight_map.values().collect();
        shards.sort();
        shards.dedup();
        let mut store = Store { place: place.clone(), tensors: BTreeMap::new(), metadata: BTreeMap::new(), dropped: Vec::new(), skipped: Vec::new() };
        for shard in shards {
            let path = folder.join(shard);
            let Contents { tensors, metadata, skipped } = read(&path)?;
            for (name, view) in tensors {
                if weight_map.get(&name) != Some(shard) {
                    let fact = format!("tensor `{}` is not listed for this file in {place}", shorten(&name));
                    return Err(Error::new(Kind::Format, path.display().to_string(), fact));
                }
                store.tensors.insert(name, view);
            }
            store.metadata.extend(metadata);
            store.skipped.extend(skipped);
        }
        match weight_map.iter().find(|(name, _)| !store.tensors.contains_key(*name)) {
            Some((name, shard)) => Err(Error::new(Kind::Format, place, format!("weight_map: `{}` is not in {shard}", shorten(name)))),
            None => Ok(store),
        }
    }

    /// The same tensors under other names. `fate` is asked for every tensor, with its name and shape. Nothing gets lost: what is
    /// neither renamed nor dropped keeps its name. Errors go on to speak of the name in the file too.
    /// Fails when a part does not fit its tensor, and when two tensors would get one name.
    pub fn renamed(self, mut fate: impl FnMut(&str, &[usize]) -> Fate) -> Result<Store> {
        let mut renamed = Store { tensors: BTreeMap::new(), ..self.clone() };
        for (name, view) in &self.tensors {
            let targets = match fate(name, view.shape()) {
                Fate::Keep => vec![(name.clone(), Part::whole())],
                Fate::Rename(target) => vec![(target, Part::whole())],
                Fate::Split(parts) => parts,
                Fate::Drop => {
                    renamed.dropped.push(name.clone());
                    continue;
                }
            };
            for (target, part) in targets {
                let part = part.of(view).map_err(|fact| self.error(name, fact))?;
                if let Some(other) = renamed.tensors.insert(target.clone(), part) {
                    return Err(self.error(name, format!("becomes `{}`, and so does `{}`", shorten(&target), shorten(other.own_name()))));
                }
            }
        }
        Ok(renamed)
    }

    /// The tensors whose names begin with `prefix` (`first_stage_model.`), without it. The files are shared.
    pub fn under(&self, prefix: &str) -> Store {
        let below = self.tensors.iter().filter_map(|(name, view)| Some((name.strip_prefix(prefix)?.to_string(), view.clone())));
        Store { tensors: below.collect(), dropped: Vec::new(), ..self.clone() }
    }

    /// From now on `name` reads as W + scale up down, for each change that was added (LoRA). The sum is made at every reading and
    /// never stored. Changes are added after renaming. Fails when there is no such tensor or the shapes do not fit it.
    pub fn add_low_rank(&mut self, name: &str, delta: LowRank) -> Result<()> {
        let added = match self.tensors.get_mut(name) {
            Some(view) => view.add(delta),
            None => Err("no such tensor in the file".to_string()),
        };
        added.map_err(|fact| self.error(name, fact))
    }

    /// The file that the store was opened from, as errors show it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The `__metadata__` texts; of a PyTorch file those beside its tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Names that [`Store::renamed`] dropped.
    pub fn dropped(&self) -> &[String] {
        &self.dropped
    }

    /// What stands in a torch file beside the state dict or in it without being a tensor, and what was taken off its names.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// The name that `name` has in the file.
    pub fn own_name(&self, name: &str) -> Option<&str> {
        self.tensors.get(name).map(View::own_name)
    }

    /// The tensor `name`, not yet read.
    pub fn view(&self, name: &str) -> Result<View> {
        self.find(name).cloned()
    }

    /// Every tensor, sorted by name.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |(name, v): (&String, &View)| Entry { name: name.clone(), dtype: v.dtype.to_string(), shape: v.shape().to_vec() };
        self.tensors.iter().map(entry).collect()
    }

    /// Shape of `name` in PyTorch's axis order.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(View::shape)
    }

    /// `name` as f32 in PyTorch's axis order. Integers are taken when f32 holds them exactly.
    pub fn array(&self, name: &str) -> Result<Array> {
        let view = self.find(name)?;
        if let Some(values) = view.floats() {
            return Array::new(view.shape(), values);
        }
        let integers = view.integers().ok_or_else(|| self.unreadable(name, view, "a number type"))?;
        match integers.iter().find(|v| v.unsigned_abs() > 1 << 24) {
            Some(v) => Err(self.error(name, format!("value {v}, expected an integer that f32 holds exactly"))),
            None => Array::new(view.shape(), integers.iter().map(|&v| v as f32).collect()),
        }
    }

    /// Values of the tensor `name` of floats or bytes; None for other types.
    pub(crate) fn floats(&self, name: &str) -> Option<Vec<f32>> {
        self.find(name).ok()?.floats()
    }

    /// Values of the tensor `name` where they have 16 bits and nothing is added to them.
    pub(crate) fn halves(&self, name: &str) -> Option<Halves> {
        self.find(name).ok()?.halves()
    }

    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|v| v.dtype)
    }

    /// The integer (or bool) tensor `name` in row-major order.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let view = self.find(name)?;
        view.integers().ok_or_else(|| self.unreadable(name, view, "an integer type that i64 holds"))
    }

    /// The integer tensor `name` as indices.
    pub fn indices(&self, name: &str) -> Result<Vec<u32>> {
        let index = |v: i64| u32::try_from(v).map_err(|_| self.error(name, format!("value {v}, expected 0 to {}", u32::MAX)));
        self.integers(name)?.into_iter().map(index).collect()
    }

    fn find(&self, name: &str) -> Result<&View> {
        self.tensors.get(name).ok_or_else(|| self.error(name, "no such tensor in the file".to_string()))
    }

    fn error(&self, name: &str, fact: String) -> Error {
        Error::new(Kind::Weights, self.told(name), fact).remark(&self.place)
    }

    fn unreadable(&self, name: &str, view: &View, expected: &str) -> Error {
        let file = view.file().path().display().to_string();
        Error::new(Kind::Weights, self.told(name), format!("dtype {}, expected {expected}", view.dtype)).remark(&file)
    }

    /// `name` as an error shows it: with the name in the file where that is another.
    pub(crate) fn told(&self, name: &str) -> String {
        match self.own_name(name) {
            Some(own) if own != name => format!("{} (in the file {})", shorten(name), shorten(own)),
            _ => shorten(name),
        }
    }
}

/// The tensors of one file, whose first bytes tell its format.
fn read(path: &Path) -> Result<Contents> {
    let file = Arc::new(Mapped::open(path, "a safetensors or PyTorch file")?);
    if torch::is_torch(file.bytes()) {
        return torch::read(path, &file);
    }
    let header = header::parse(file.bytes()).map_err(|fact| Error::new(Kind::Format, path.display().to_string(), fact))?;
    let view = |t: header::Tensor| (t.name.clone(), View::contiguous(&file, &t.name, t.dtype, t.shape, t.bytes.start));
    Ok(Contents { tensors: header.tensors.into_iter().map(view).collect(), metadata: header.metadata.into_iter().collect(), skipped: Vec::new() })
}

/// Every tensor of a file as f32, in PyTorch's axis order.
pub fn read_all(path: &Path) -> Result<BTreeMap<String, Array>> {
    let store = Store::open(path)?;
    store.names().map(|name| Ok((name.to_string(), store.array(name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

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
            (r#"{"a":"../model-1.safetensors"}"#, "expected the name of a .safetensors or .bin file"),
            (r#"{"a":7}"#, "expected the name of a .safetensors or .bin file"),
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
        std::fs::write(dir.path().join("weights.onnx"), b"").unwrap();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with(".index.json, or one file of another name; it holds weights.onnx"), "{error}");
        for file in ["optimizer.pt", "training_args.bin"] {
            std::fs::write(dir.path().join(file), b"").unwrap();
        }
        std::fs::remove_file(dir.path().join("weights.onnx")).unwrap();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("or one file of another name; it holds optimizer.pt, training_args.bin"), "{error}");
        std::fs::write(dir.path().join("best.ckpt"), b"PK").unwrap();
        assert!(Store::open(dir.path()).unwrap_err().to_string().contains("best.ckpt: zip: no directory"));
        std::fs::write(dir.path().join("last.ckpt"), b"PK").unwrap();
        assert!(Store::open(dir.path()).unwrap_err().to_string().contains("it holds best.ckpt, last.ckpt"));
        std::fs::write(dir.path().join("pytorch_model.bin"), b"PK").unwrap();
        assert!(Store::open(dir.path()).unwrap_err().to_string().contains("pytorch_model.bin: zip: no directory"));
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, b"").unwrap();
        assert!(Store::open(dir.path()).unwrap_err().to_string().contains("0 bytes"));
    }
}
