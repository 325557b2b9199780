//! `manifest.jsonl`: one line per sample, written after its image is safely on the disk. Append-only; a line that a crash tore
//! is dropped, and its sample is made again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::{Error, Kind, Result};
use crate::driver::conditioning::InputFile;
use crate::driver::run_settings::{UsedLora, first_scheduler};

/// `status` of a sample whose image is on the disk.
pub const WRITTEN: &str = "written";

/// Where a sample comes from and what was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub sample_id: String,
    pub class: String,
    /// The model's label of the class.
    pub class_index: usize,
    /// The image that gives the skin.
    pub source_id: String,
    /// Lesion or patient of the source, when the data set tells.
    pub source_group: Option<String>,
    /// Of the files as they are on the disk.
    pub source_sha256: String,
    pub mask_sha256: String,
    pub output_sha256: String,
    /// What the class was to a model that takes prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Learned words and class tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<InputFile>,
    pub seed: u64,
    /// The noise's key beside the seed: class and number of the sample.
    pub job: u64,
    /// `ddim`, `euler` ...
    #[serde(default = "first_scheduler")]
    pub scheduler: String,
    pub steps: usize,
    pub guidance: f64,
    pub strength: f64,
    pub eta: f64,
    pub width: usize,
    pub height: usize,
    /// Largest difference from the input outside the hole, of 255; 0.
    pub outside_mask_max_abs_diff: u8,
    pub device: String,
    pub precision: String,
    pub model_sha256: String,
    /// Merged into the model's weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<UsedLora>,
    pub naevus_version: String,
    /// UTC, RFC 3339.
    pub created_at: String,
    pub status: String,
}

/// A manifest that samples are added to. Several processes may add to one file: each line is written under a lock.
pub struct Manifest {
    path: PathBuf,
    file: File,
}

/// What a manifest holds.
#[derive(Debug)]
pub struct Records {
    /// By sample id; of two lines for one sample the later counts.
    pub samples: BTreeMap<String, Record>,
    /// Bytes of the whole lines.
    whole_bytes: usize,
}

impl Manifest {
    /// Opens or makes the file, reads it, and cuts off a torn last line.
    pub fn open(path: &Path) -> Result<(Manifest, Records)> {
        let io = |e: std::io::Error| Error::io(path, &e);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io)?;
        let records = locked(&mut file, |file| {
            let records = parse(&content(file, path)?, path)?;
            file.set_len(records.whole_bytes as u64).map_err(io)?;
            Ok(records)
        })?;
        Ok((Manifest { path: path.to_path_buf(), file }, records))
    }

    /// Adds a line and forces it to the disk.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let path = &self.path;
        let mut line = serde_json::to_vec(record).map_err(|e| Error::new(Kind::Format, path.display().to_string(), e.to_string()))?;
        line.push(b'\n');
        locked(&mut self.file, |file| {
            let io = |e: std::io::Error| Error::io(path, &e);
            // Another process may have been stopped in the middle of its line.
            let len = file.seek(SeekFrom::End(0)).map_err(io)?;
            if len > 0 {
                let mut last = [0u8];
                file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).map_err(io)?;
                if last != [b'\n'] {
                    let bytes = content(file, path)?;
                    file.set_len(bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1) as u64).map_err(io)?;
                }
            }
            file.write_all(&line).and_then(|()| file.sync_data()).map_err(io)
        })
    }
}

/// Reads a manifest without changing it; a torn last line is left out.
pub fn read(path: &Path) -> Result<Records> {
    parse(&std::fs::read(path).map_err(|e| Error::io(path, &e))?, path)
}

fn content(file: &mut File, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).map_err(|e| Error::io(path, &e))?;
    Ok(bytes)
}

/// Runs `body` alone among processes. File systems without locks get none: there one process at a time must do.
fn locked<T>(file: &mut File, body: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    let has_lock = file.lock().is_ok();
    let result = body(file);
    if has_lock {
        let _ = file.unlock();
    }
    result
}

/// Lines up to the last whole one. What can't be read in the last line is what a crash left; anywhere else it is an error.
fn parse(bytes: &[u8], path: &Path) -> Result<Records> {
    let mut records = Records { samples: BTreeMap::new(), whole_bytes: 0 };
    let mut lines = bytes.split_inclusive(|&b| b == b'\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let is_last = lines.peek().is_none();
        if is_last && line.last() != Some(&b'\n') {
            break;
        }
        match serde_json::from_slice::<Record>(line) {
            Ok(record) => {
                records.samples.insert(record.sample_id.clone(), record);
            }
            Err(_) if is_last => break,
            Err(_) if line.iter().all(u8::is_ascii_whitespace) => {}
            Err(e) => return Err(Error::new(Kind::Format, format!("{}:{}", path.display(), number + 1), format!("{e}, expected a line of a manifest"))),
        }
        records.whole_bytes += line.len();
    }
    Ok(records)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(sample_id: &str) -> Record {
        Record {
            sample_id: sample_id.to_string(),
            class: "df".to_string(),
            class_index: 3,
            source_id: "ISIC_1".to_string(),
            source_group: None,
            source_sha256: "00".repeat(32),
            mask_sha256: "11".repeat(32),
            output_sha256: "22".repeat(32),
            prompt: None,
            negative_prompt: None,
            embeddings: Vec::new(),
            seed: 7,
            job: 3 << 32,
            scheduler: first_scheduler(),
            steps: 20,
            guidance: 3.0,
            strength: 1.0,
            eta: 0.0,
            width: 128,
            height: 128,
            outside_mask_max_abs_diff: 0,
            device: "cpu".to_string(),
            precision: "f32".to_string(),
            model_sha256: "33".repeat(32),
            loras: Vec::new(),
            naevus_version: "0".to_string(),
            created_at: "2026-01-01T00:00:00Z".to_string(),
            status: WRITTEN.to_string(),
        }
    }

    #[test]
    fn lines_are_added_and_the_later_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.jsonl");
        let (mut manifest, found) = Manifest::open(&path).unwrap();
        assert!(found.samples.is_empty());
        for id in ["b", "a", "b"] {
            manifest.append(&Record { steps: found.samples.len() + 1, ..record(id) }).unwrap();
        }
        manifest.append(&Record { steps: 99, ..record("a") }).unwrap();
        let found = read(&path).unwrap().samples;
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(found["a"].steps, 99);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().all(|l| l.starts_with("{\"sample_id\":\"") && l.ends_with("\"status\":\"written\"}")), "{text}");
    }

    #[test]
    fn a_torn_last_line_is_dropped_wherever_it_was_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.jsonl");
        let line = serde_json::to_string(&record("torn")).unwrap();
        for cut in [1, line.len() / 2, line.len() - 1, line.len()] {
            let _ = std::fs::remove_file(&path);
            Manifest::open(&path).unwrap().0.append(&record("whole")).unwrap();
            OpenOptions::new().append(true).open(&path).unwrap().write_all(&line.as_bytes()[..cut]).unwrap();
            assert_eq!(read(&path).unwrap().samples.len(), 1);
            let (mut manifest, found) = Manifest::open(&path).unwrap();
            assert_eq!(found.samples.len(), 1);
            manifest.append(&record("next")).unwrap();
            assert_eq!(read(&path).unwrap().samples.keys().collect::<Vec<_>>(), ["next", "whole"], "cut at {cut}");
        }
    }

    #[test]
    fn a_process_that_died_meanwhile_does_not_spoil_the_next_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.jsonl");
        let (mut manifest, _) = Manifest::open(&path).unwrap();
        manifest.append(&record("a")).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"sample_id\":\"x").unwrap();
        manifest.append(&record("b")).unwrap();
        assert_eq!(read(&path).unwrap().samples.len(), 2);
    }

    #[test]
    fn a_spoilt_line_in_the_middle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.jsonl");
        let line = serde_json::to_string(&record("a")).unwrap();
        std::fs::write(&path, format!("{line}\n{{\"sample_id\": 3}}\n{line}\n")).unwrap();
        let error = read(&path).unwrap_err();
        assert_eq!(error.kind(), Kind::Format);
        assert!(error.to_string().contains("manifest.jsonl:2: "), "{error}");
        assert!(Manifest::open(&path).is_err());
        // Zeros after a power failure, as a last line.
        std::fs::write(&path, format!("{line}\n\0\0\0\0\n")).unwrap();
        assert_eq!(Manifest::open(&path).unwrap().1.samples.len(), 1);
    }
}
