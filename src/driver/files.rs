//! Folders, names and SHA-256 of files.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use crate::base::files::write_whole;
use crate::base::{Error, Kind, Result};

/// Endings of the files that make a model; a changed README does not change it.
const MODEL_FILES: &[&str] = &["json", "safetensors", "bin", "pt", "pth", "ckpt", "onnx"];
/// Folders within folders that a model may have.
const MAX_DEPTH: usize = 8;

/// Makes `folder` and those above it.
pub fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file's bytes, or of a folder's model files: of the lines `<sha256>  <path>` sorted by path.
pub fn sha256_of(path: &Path) -> Result<String> {
    if !path.is_dir() {
        return sha256_file(path);
    }
    let mut files = Vec::new();
    collect(path, &mut files, MAX_DEPTH)?;
    let mut lines = Vec::new();
    for file in files {
        let name: Vec<String> = file.strip_prefix(path).unwrap_or(&file).iter().map(|part| part.to_string_lossy().into_owned()).collect();
        lines.push((name.join("/"), sha256_file(&file)?));
    }
    if lines.is_empty() {
        return Err(Error::new(Kind::Weights, path.display().to_string(), format!("holds no model files, expected one of .{}", MODEL_FILES.join(", ."))));
    }
    lines.sort();
    let text: String = lines.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
    Ok(sha256(text.as_bytes()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>, depth: usize) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, &e))? {
        let path = entry.map_err(|e| Error::io(folder, &e))?.path();
        if path.is_dir() {
            match depth {
                0 => return Err(Error::new(Kind::Weights, path.display().to_string(), format!("more than {MAX_DEPTH} folders deep"))),
                _ => collect(&path, files, depth - 1)?,
            }
        } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| MODEL_FILES.contains(&e)) {
            files.push(path);
        }
    }
    Ok(())
}

fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::io(path, &e))?;
    let (mut hash, mut block) = (Sha256::new(), vec![0u8; 1 << 16]);
    loop {
        match file.read(&mut block).map_err(|e| Error::io(path, &e))? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&block[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_standard() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), vec![b'a'; 1_000_000]).unwrap();
        assert_eq!(sha256_of(&dir.path().join("x")).unwrap(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }

    #[test]
    fn a_model_is_its_weights_and_settings() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        assert!(sha256_of(folder).unwrap_err().to_string().contains("holds no model files"));
        make_folder(&folder.join("unet")).unwrap();
        std::fs::write(folder.join("model_index.json"), "{}").unwrap();
        std::fs::write(folder.join("unet/w.safetensors"), "one").unwrap();
        let first = sha256_of(folder).unwrap();
        std::fs::write(folder.join("README.md"), "words").unwrap();
        assert_eq!(sha256_of(folder).unwrap(), first);
        std::fs::write(folder.join("unet/w.safetensors"), "two").unwrap();
        assert_ne!(sha256_of(folder).unwrap(), first);
    }

    #[test]
    fn files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_whole(&path, b"first").unwrap();
        write_whole(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
        let error = write_whole(Path::new("/nonexistent/folder/a.txt"), b"x").unwrap_err();
        assert_eq!((error.kind(), error.place()), (Kind::Io, "/nonexistent/folder/a.txt"));
    }
}
