//! Writing tensors to a safetensors file. The file appears whole or not at all: it is written beside its place and renamed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, View};

use crate::base::files::write_whole;
use crate::base::{Array, Error, Kind, Result};

/// Collects named tensors and metadata for one file.
#[derive(Default)]
pub struct Writer {
    tensors: Vec<(String, Stored)>,
    metadata: HashMap<String, String>,
}

struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `values` in row-major order. Fails when they do not fill `shape` or the name is taken.
    pub fn f32(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Result<()> {
        self.add(name, Dtype::F32, shape, values.len(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Like [`Writer::f32`].
    pub fn i32(&mut self, name: &str, shape: &[usize], values: Vec<i32>) -> Result<()> {
        self.add(name, Dtype::I32, shape, values.len(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Like [`Writer::f32`].
    pub fn u32(&mut self, name: &str, shape: &[usize], values: Vec<u32>) -> Result<()> {
        self.add(name, Dtype::U32, shape, values.len(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A text of the file's `__metadata__`.
    pub fn metadata(&mut self, name: &str, text: &str) {
        self.metadata.insert(name.to_string(), text.to_string());
    }

    fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize], count: usize, bytes: Vec<u8>) -> Result<()> {
        let numel = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if numel != Some(count) {
            return Err(Error::new(Kind::Shape, name, format!("{count} values for {shape:?}")));
        }
        if name == "__metadata__" || self.tensors.iter().any(|(n, _)| n == name) {
            return Err(Error::new(Kind::Usage, name, "the file already holds this name, or it is reserved"));
        }
        self.tensors.push((name.to_string(), Stored { dtype, shape: shape.to_vec(), bytes }));
        Ok(())
    }

    /// Writes the file, replacing one that is there.
    pub fn write(&self, path: &Path) -> Result<()> {
        let metadata = (!self.metadata.is_empty()).then(|| self.metadata.clone());
        let tensors = self.tensors.iter().map(|(name, stored)| (name.as_str(), stored));
        let bytes = safetensors::serialize(tensors, metadata).map_err(|e| Error::new(Kind::Format, path.display().to_string(), e.to_string()))?;
        write_whole(path, &bytes)
    }
}

/// Writes f32 arrays to a file.
pub fn write<'a>(path: &Path, arrays: impl IntoIterator<Item = (&'a str, &'a Array)>) -> Result<()> {
    let mut writer = Writer::new();
    for (name, array) in arrays {
        writer.f32(name, array.dims(), array.data.clone())?;
    }
    writer.write(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Store, read_all};

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.safetensors");
        let mut writer = Writer::new();
        writer.f32("features", &[2, 3], vec![1.0, -2.0, 3.5, f32::MAX, 0.0, 1e-40]).unwrap();
        writer.i32("label", &[2], vec![-1, 2]).unwrap();
        writer.u32("index", &[], vec![7]).unwrap();
        writer.metadata("source", "test");
        assert!(writer.f32("label", &[1], vec![0.0]).is_err());
        assert!(writer.f32("short", &[2], vec![0.0]).is_err());
        writer.write(&path).unwrap();
        writer.write(&path).unwrap();
        let store = Store::open(&path).unwrap();
        assert_eq!(store.array("features").unwrap(), Array::new(&[2, 3], vec![1.0, -2.0, 3.5, f32::MAX, 0.0, 1e-40]).unwrap());
        assert_eq!((store.integers("label").unwrap(), store.indices("index").unwrap()), (vec![-1, 2], vec![7]));
        assert_eq!(store.metadata()["source"], "test");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
        let array = Array::zeros(&[4]);
        write(&path, [("a", &array)]).unwrap();
        assert_eq!(read_all(&path).unwrap()["a"], array);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let path = Path::new("/nonexistent/folder/out.safetensors");
        assert_eq!(Writer::new().write(path).unwrap_err().kind(), Kind::Io);
    }
}
