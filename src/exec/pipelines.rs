//! Pipelines that a driver compiled, kept beside what else is known of the adapter, so that a later start finds them.
//!
//! The bytes are the driver's own; a driver trusts what it reads back. So a file counts only where it is whole (a SHA-256 of all that
//! follows), of this adapter, driver, naevus and shaders; wgpu's header and the driver's are checked after that.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::base::files::write_whole;
use crate::base::{Error, Kind, Result};
use crate::exec::kept::{Identity, Keeper, hex};

/// First words of a file: what it is, and its format.
const HEAD: &str = "naevus-pipelines 1 ";

/// A file of more bytes is neither read nor written: a cache only grows, and this one starts anew.
pub const MOST_BYTES: usize = 64 << 20;

/// Another driver's file is left aside with a line; so is a damaged one.
#[derive(Clone, Debug)]
pub struct PipelineFile {
    pub identity: Identity,
    pub path: PathBuf,
}

impl PipelineFile {
    /// Beside the keeper's file.
    pub fn beside(keeper: &Keeper) -> PipelineFile {
        PipelineFile { identity: keeper.identity.clone(), path: keeper.path.with_extension("pipelines") }
    }

    /// The driver's bytes, and a line about a file that is left aside.
    pub fn read(&self) -> (Option<Vec<u8>>, Option<String>) {
        match self.try_read() {
            Ok(data) => (data, None),
            Err(why) => (None, Some(format!("{}: {why}; it is made anew", self.path.display()).replace(['\n', '\r'], " "))),
        }
    }

    fn try_read(&self) -> std::result::Result<Option<Vec<u8>>, String> {
        let mut bytes = Vec::new();
        match File::open(&self.path).and_then(|file| file.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.to_string()),
            Ok(_) if bytes.len() > MOST_BYTES => return Err(format!("more than {MOST_BYTES} bytes")),
            Ok(_) => {}
        }
        let (head, rest) = line(&bytes).ok_or("no list of pipelines")?;
        let sum = head.strip_prefix(HEAD).ok_or("no list of pipelines, or another format")?;
        if sum != hex(&Sha256::digest(rest)) {
            return Err("damaged (its SHA-256 is another)".to_string());
        }
        let (identity, data) = line(rest).ok_or("no list of pipelines")?;
        match serde_json::from_str::<Identity>(identity) {
            Ok(identity) if identity == self.identity => Ok(Some(data.to_vec())),
            _ => Err("of another driver or another naevus".to_string()),
        }
    }

    /// Writes the driver's bytes, whole or not at all. Too many of them: the file goes, and the next start makes it anew.
    pub fn write(&self, data: &[u8]) -> Result<()> {
        let identity = serde_json::to_string(&self.identity).map_err(|e| Error::new(Kind::Io, self.path.display().to_string(), e.to_string()))?;
        let rest = [identity.as_bytes(), b"\n", data].concat();
        let head = format!("{HEAD}{}\n", hex(&Sha256::digest(&rest)));
        if head.len() + rest.len() > MOST_BYTES {
            return match std::fs::remove_file(&self.path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&self.path, &e)),
                _ => Ok(()),
            };
        }
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
        }
        write_whole(&self.path, &[head.as_bytes(), &rest].concat())
    }
}

/// The text up to the first line's end, and the bytes after it.
fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|&b| b == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &std::path::Path) -> PipelineFile {
        let text = str::to_string;
        let identity = Identity {
            adapter: text("Arc\n770"),
            vendor: 0x8086,
            device: 1,
            backend: text("Vulkan"),
            driver: text("anv 1"),
            matrices: false,
            naevus_version: text("1"),
            shaders: text("s"),
        };
        PipelineFile::beside(&Keeper::new(&folder.join("new"), identity))
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());
        assert_eq!(file.read(), (None, None));
        for data in [b"\n\0binary\n".as_slice(), b""] {
            file.write(data).unwrap();
            assert_eq!(file.read(), (Some(data.to_vec()), None));
        }
    }

    #[test]
    fn a_file_that_is_not_ours_is_left_aside_with_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());
        file.write(b"pipelines of the driver").unwrap();
        let whole = std::fs::read(&file.path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let text = String::from_utf8(whole.clone()).unwrap();
        let mut other = file.clone();
        other.identity.driver = "anv 2".to_string();
        other.write(b"of another driver").unwrap();
        let foreign = std::fs::read(&file.path).unwrap();
        let cases: [(&str, Vec<u8>); 7] = [
            ("damaged", flipped),
            ("damaged", whole[..whole.len() - 3].to_vec()),
            ("damaged", text.replace("anv 1", "anv 2").into_bytes()),
            ("of another driver", foreign),
            ("another format", text.replace("pipelines 1 ", "pipelines 2 ").into_bytes()),
            ("no list of pipelines", vec![0xff; 40]),
            ("more than", vec![b'\n'; MOST_BYTES + 1]),
        ];
        for (fact, bytes) in cases {
            std::fs::write(&file.path, &bytes).unwrap();
            let (data, note) = file.read();
            let note = note.unwrap_or_else(|| panic!("{fact}: the file was taken"));
            assert!(data.is_none() && note.contains(fact) && !note.contains('\n'), "{note}");
        }
    }

    #[test]
    fn a_cache_that_grew_too_large_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());
        file.write(b"small").unwrap();
        file.write(&vec![0; MOST_BYTES]).unwrap();
        assert_eq!(file.read(), (None, None));
        file.write(&vec![0; MOST_BYTES]).unwrap();
    }
}
