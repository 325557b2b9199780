//! A file in the address space of the program: its pages are read when they are touched, and given back when a tensor was read.

use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::base::{Error, Kind, Result};

/// A mapped file. Views of its tensors share it.
#[derive(Debug)]
pub(crate) struct Mapped {
    path: PathBuf,
    bytes: Mmap,
}

impl Mapped {
    /// Maps a file that is not empty; `expected` says what it should be.
    #[allow(unsafe_code)]
    pub(crate) fn open(path: &Path, expected: &str) -> Result<Mapped> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, &e))?;
        let meta = file.metadata().map_err(|e| Error::io(path, &e))?;
        if !meta.is_file() {
            return Err(Error::new(Kind::Io, path.display().to_string(), format!("not a file, expected {expected}")));
        }
        if meta.len() == 0 {
            return Err(Error::new(Kind::Format, path.display().to_string(), format!("0 bytes, expected {expected}")));
        }
        // SAFETY: the map is read-only and private to the returned value. What Rust can't rule out is another process that
        // writes to or truncates the file while it is mapped; like every reader of mapped weights we require that nobody does.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, &e))?;
        Ok(Mapped { path: path.to_path_buf(), bytes })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives the pages of `range` back to the system: they count no longer as the program's memory, and are read again when touched.
    #[allow(unsafe_code)]
    pub(crate) fn forget(&self, range: Range<usize>) {
        let end = range.end.min(self.bytes.len());
        #[cfg(unix)]
        if range.start < end {
            // SAFETY: the map is of a file, read-only and never written: a page that was given back is read from the file again
            // with the same bytes. An error leaves the pages where they are.
            let _ = unsafe { self.bytes.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, end - range.start) };
        }
        #[cfg(not(unix))]
        let _ = end;
    }
}
