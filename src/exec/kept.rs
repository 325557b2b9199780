//! What was learnt about an adapter and is kept in the user's cache folder: which kernels passed their self-test there, and
//! which ones were the fastest. A readable file per adapter, made anew where the driver, naevus or a shader is another.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::base::files::write_whole;
use crate::base::{DType, Error, Kind, Result};
use crate::exec::gpu::AdapterSummary;
use crate::ops;
use crate::plan::Machine;

/// Of the file. Another number is another format, and is made anew.
const FORMAT: u32 = 1;

/// A file of more bytes is not ours.
const MOST_BYTES: u64 = 16 << 20;

/// For what the rest of the file holds. Anything else would be another kernel or another compiler of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    pub adapter: String,
    /// PCI numbers.
    pub vendor: u32,
    pub device: u32,
    pub backend: String,
    pub driver: String,
    /// Whether kernels may multiply by cooperative matrices.
    pub matrices: bool,
    pub naevus_version: String,
    /// SHA-256 of every variant's name and WGSL.
    pub shaders: String,
}

impl Identity {
    pub fn of(adapter: &AdapterSummary) -> Identity {
        Identity {
            adapter: adapter.name.clone(),
            vendor: adapter.vendor,
            device: adapter.device,
            backend: adapter.backend.clone(),
            driver: adapter.driver.clone(),
            matrices: adapter.limits.machine >= Machine::Matrices,
            naevus_version: env!("CARGO_PKG_VERSION").to_string(),
            shaders: shaders_sha256(),
        }
    }

    /// Stem of the adapter's files: its name, and a number for those of one name. Another driver takes the same file's place.
    pub fn stem(&self) -> String {
        let plain: String = self.adapter.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
        let words: Vec<&str> = plain.split('-').filter(|word| !word.is_empty()).take(6).collect();
        let hash = hex(&Sha256::digest(format!("{}/{}/{}/{}/{}", self.adapter, self.vendor, self.device, self.backend, self.matrices)));
        format!("{}-{}", words.join("-"), &hash[..8])
    }
}

fn shaders_sha256() -> String {
    let mut hash = Sha256::new();
    for op in ops::ALL {
        for variant in op.variants {
            let halves = variant.wgsl(DType::F16);
            for text in [op.name, variant.name, variant.family, &halves].iter().chain(variant.source) {
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text.as_bytes());
            }
        }
    }
    hex(&hash.finalize())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A proof that passed; any other text says what failed.
pub const PASSED: &str = "passed";

/// The variant that runs a step of these shapes, and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timed {
    pub variant: String,
    /// Median milliseconds of each variant that was timed; empty where time had run out.
    #[serde(default)]
    pub ms: BTreeMap<String, f64>,
}

/// The contents, by the keys of the tuner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// `conv2d tiled`: [`PASSED`], or what failed.
    #[serde(default)]
    pub proofs: BTreeMap<String, String>,
    /// An op with the parameters of one item: a family of its variants.
    #[serde(default)]
    pub families: BTreeMap<String, String>,
    /// An op with the parameters of the whole batch: a variant.
    #[serde(default)]
    pub kernels: BTreeMap<String, Timed>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    format: u32,
    identity: Identity,
    kept: Kept,
}

impl Kept {
    /// Adds what `newer` has. Choices that are here stay: another process may have run with them already, and a sample must
    /// not depend on who came first. Proofs are replaced.
    pub fn add(&mut self, newer: &Kept) {
        self.proofs.extend(newer.proofs.clone());
        for (key, family) in &newer.families {
            self.families.entry(key.clone()).or_insert_with(|| family.clone());
        }
        for (key, timed) in &newer.kernels {
            self.kernels.entry(key.clone()).or_insert_with(|| timed.clone());
        }
    }
}

/// An adapter's file.
#[derive(Clone, Debug)]
pub struct Keeper {
    pub identity: Identity,
    pub path: PathBuf,
}

impl Keeper {
    pub fn new(folder: &Path, identity: Identity) -> Keeper {
        let path = folder.join(format!("{}.toml", identity.stem()));
        Keeper { identity, path }
    }

    /// What is kept, and a line about a file that is left aside: not ours, damaged, or of another driver or naevus.
    pub fn read(&self) -> (Kept, Option<String>) {
        let aside = |why: &str| (Kept::default(), Some(format!("{}: {why}; it is made anew", self.path.display()).replace(['\n', '\r'], " ")));
        let text = match bounded(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return (Kept::default(), None),
            Err(e) => return aside(&e.to_string()),
        };
        match toml::from_str::<Whole>(&text) {
            Err(e) => aside(&format!("no list of kernels ({})", e.message().trim())),
            Ok(whole) if whole.format != FORMAT => aside(&format!("format {}, expected {FORMAT}", whole.format)),
            Ok(whole) if whole.identity != self.identity => aside("of another driver or another naevus"),
            Ok(whole) => (whole.kept, None),
        }
    }

    /// Takes the file for this process until the result is dropped. Others wait; where the file system has no locks, nobody does.
    pub fn lock(&self) -> Result<File> {
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
        }
        let path = self.path.with_extension("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| Error::io(&path, &e))?;
        let _ = file.lock();
        Ok(file)
    }

    /// Adds `kept` to the file and returns what it holds then. The caller holds the lock.
    pub fn write(&self, kept: &Kept) -> Result<Kept> {
        let mut all = self.read().0;
        all.add(kept);
        let whole = Whole { format: FORMAT, identity: self.identity.clone(), kept: all };
        let text = toml::to_string(&whole).map_err(|e| Error::new(Kind::Io, self.path.display().to_string(), e.to_string()))?;
        let head = "# Kernels of naevus on this adapter: self-tests and the fastest variants. May be deleted; it is made anew.\n";
        write_whole(&self.path, format!("{head}{text}").as_bytes())?;
        Ok(whole.kept)
    }
}

fn bounded(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MOST_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let text = str::to_string;
        Identity {
            adapter: text("Radeon (TM) R7 / 360"),
            vendor: 0x1002,
            device: 1,
            backend: text("Vulkan"),
            driver: text("radv 1"),
            matrices: false,
            naevus_version: text("1"),
            shaders: text("s"),
        }
    }

    fn kept(family: &str) -> Kept {
        let timed = Timed { variant: format!("{family}_64"), ms: BTreeMap::from([("direct".to_string(), 0.5)]) };
        Kept {
            proofs: BTreeMap::from([("conv2d tiled".to_string(), PASSED.to_string())]),
            families: BTreeMap::from([("conv2d in_h=8".to_string(), family.to_string())]),
            kernels: BTreeMap::from([("conv2d in_h=8 batch=2".to_string(), timed)]),
        }
    }

    #[test]
    fn what_is_written_is_read_and_the_first_choice_stays() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(&dir.path().join("new"), identity());
        assert!(keeper.path.to_str().unwrap().contains("radeon-tm-r7-360-"));
        assert_eq!(keeper.read(), (Kept::default(), None));
        let lock = keeper.lock().unwrap();
        assert_eq!(keeper.write(&kept("shared")).unwrap(), kept("shared"));
        let mut other = kept("tiled");
        other.proofs.insert("conv2d tiled".to_string(), "failed".to_string());
        other.families.insert("matmul k=4".to_string(), "direct".to_string());
        let both = keeper.write(&other).unwrap();
        drop(lock);
        assert_eq!(keeper.read(), (both.clone(), None));
        assert_eq!((both.families["conv2d in_h=8"].as_str(), both.families["matmul k=4"].as_str()), ("shared", "direct"));
        assert_eq!((both.proofs["conv2d tiled"].as_str(), &both.kernels), ("failed", &kept("shared").kernels));
    }

    #[test]
    fn a_file_that_is_not_ours_is_left_aside_with_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(dir.path(), identity());
        keeper.write(&kept("shared")).unwrap();
        let whole = std::fs::read_to_string(&keeper.path).unwrap();
        let cases: [(&str, Vec<u8>); 7] = [
            ("no list of kernels", whole.as_bytes()[..whole.len() / 2].to_vec()),
            ("no list of kernels", whole.replace("kept.families", "kept.familes").into_bytes()),
            ("no list of kernels", b"<html>".to_vec()),
            ("stream did not contain valid UTF-8", vec![0xff, 0xfe, 0x00]),
            ("format 2, expected 1", whole.replace("format = 1", "format = 2").into_bytes()),
            ("another driver", whole.replace("radv 1", "radv 2").into_bytes()),
            ("another driver", whole.replace("shaders = \"s\"", "shaders = \"t\"").into_bytes()),
        ];
        for (fact, bytes) in cases {
            std::fs::write(&keeper.path, &bytes).unwrap();
            let (found, note) = keeper.read();
            let note = note.unwrap_or_else(|| panic!("{fact}: the file was taken"));
            assert!(found == Kept::default() && note.contains(fact) && !note.contains('\n'), "{note}");
            assert_eq!(keeper.write(&kept("tiled")).unwrap(), kept("tiled"));
        }
    }

    /// Eight writers at once: nothing is lost, and the file is whole.
    #[test]
    fn writers_do_not_lose_each_others_lines() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(dir.path(), identity());
        std::thread::scope(|scope| {
            for i in 0..8 {
                let keeper = &keeper;
                scope.spawn(move || {
                    for j in 0..5 {
                        let _lock = keeper.lock().unwrap();
                        let families = BTreeMap::from([(format!("op {i} {j}"), "direct".to_string())]);
                        keeper.write(&Kept { families, ..Kept::default() }).unwrap();
                    }
                });
            }
        });
        assert_eq!(keeper.read().0.families.len(), 40);
    }

    #[test]
    fn another_shader_is_another_identity() {
        let hash = shaders_sha256();
        assert!(hash.len() == 64 && hash == shaders_sha256() && hash != hex(&Sha256::digest(b"")));
    }
}
