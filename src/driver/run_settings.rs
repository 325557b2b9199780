//! `run.toml`: every setting of a run, resolved. The same file makes the same samples again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::{Error, Kind, Result};
use crate::diffusion::posterior::Posterior;
use crate::diffusion::tiles::Tiles;
use crate::diffusion::{Class, Schedule, Scheduler, Walk};
use crate::driver::conditioning::Conditioning;
use crate::driver::files;
use crate::driver::sources::{MAX_SAMPLES, Policy};

/// File name in the output folder.
pub const RUN_TOML: &str = "run.toml";
/// Widest dilation and feather, in pixels.
const MAX_PX: usize = 4096;

/// Settings of `synthesize`. Those in `sampling` decide what sample k of a class looks like; `execution` does not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSettings {
    /// The program that wrote the file.
    pub naevus_version: String,
    pub sampling: Sampling,
    pub data: Data,
    pub execution: Execution,
    /// Samples to make, by class.
    pub classes: BTreeMap<String, usize>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    pub model: PathBuf,
    pub model_sha256: String,
    /// Of the ids, classes and groups of the images that can be sources.
    pub dataset_sha256: String,
    #[serde(default, skip_serializing_if = "Conditioning::is_none")]
    pub conditioning: Conditioning,
    pub seed: u64,
    /// The solver's name, `ddim`; the rest of its settings is the model's.
    #[serde(default = "first_scheduler")]
    pub scheduler: String,
    pub steps: usize,
    pub guidance: f64,
    pub strength: f64,
    pub eta: f64,
    pub sources: Policy,
    pub dilate_px: usize,
    pub feather_px: usize,
    /// How much of the source's fine detail, which the autoencoder loses, the hole gets back: 0 to 1.
    #[serde(default)]
    pub detail: f64,
    #[serde(default)]
    pub posterior: Posterior,
    #[serde(default)]
    pub tiles: Tiles,
    /// Merged into the model's weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<UsedLora>,
}

/// A LoRA and the weight that it was merged with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsedLora {
    pub path: PathBuf,
    pub sha256: String,
    pub weight: f64,
}

/// Where the images, masks and labels are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    pub dataset: PathBuf,
    pub labels: Option<PathBuf>,
    pub images: Option<PathBuf>,
    pub masks: Option<PathBuf>,
    pub id_column: Option<String>,
    pub class_column: Option<String>,
    pub group_column: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Execution {
    /// `cpu`, `gpu`, ...: as asked for.
    pub device: String,
    pub precision: String,
    /// Images at once; fewer when there are fewer.
    pub batch: usize,
    pub shard: Shard,
    /// At most so many samples in this run.
    pub limit: Option<usize>,
}

/// One of `of` parts of the samples, counted from 1: `2/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    pub index: u64,
    pub of: u64,
}

impl Shard {
    pub const WHOLE: Shard = Shard { index: 1, of: 1 };

    /// `I/N`.
    pub fn parse(text: &str) -> Result<Shard> {
        let parts = text.split_once('/').and_then(|(i, n)| Some(Shard { index: i.parse().ok()?, of: n.parse().ok()? }));
        let valid = parts.filter(|s| (1..=s.of).contains(&s.index));
        valid.ok_or_else(|| Error::new(Kind::Usage, "--shard", format!("{text}, expected I/N with I from 1 to N")))
    }

    /// Whether sample `k` of a class belongs here. It stays so when more samples are asked for.
    pub fn holds(&self, k: u64) -> bool {
        k % self.of == self.index - 1
    }
}

impl TryFrom<String> for Shard {
    type Error = Error;
    fn try_from(text: String) -> Result<Shard> {
        Shard::parse(&text)
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> String {
        format!("{}/{}", shard.index, shard.of)
    }
}

/// The one scheduler of the runs that did not name theirs.
pub(crate) fn first_scheduler() -> String {
    Class::Ddim.name().to_string()
}

impl Sampling {
    /// Fails on a value that can't be used and names its flag; the schedule of the steps otherwise.
    pub fn schedule(&self, scheduler: &Scheduler) -> Result<Schedule> {
        let usage = |flag: &str, fact: String| Err(Error::new(Kind::Usage, flag, fact));
        // TOML's integers are signed.
        if self.seed > i64::MAX as u64 {
            return usage("--seed", format!("{}, expected 0 to {}", self.seed, i64::MAX));
        }
        if !(self.guidance.is_finite() && self.guidance.abs() <= 1e4) {
            return usage("--guidance", format!("{}, expected -10000 to 10000", self.guidance));
        }
        for (flag, px) in [("--dilate", self.dilate_px), ("--feather", self.feather_px)] {
            if px > MAX_PX {
                return usage(flag, format!("{px} pixels, expected 0 to {MAX_PX}"));
            }
        }
        if !(0.0..=1.0).contains(&self.detail) {
            return usage("--detail", format!("{}, expected 0 to 1", self.detail));
        }
        Schedule::new(scheduler, &Walk { steps: self.steps, eta: self.eta, strength: self.strength })
    }

    /// Names and values that decide what a sample looks like. Paths do not: the sums do.
    fn identity(&self) -> Vec<(&'static str, String)> {
        let mut identity = self.conditioning.identity();
        identity.extend([
            ("model_sha256", self.model_sha256.clone()),
            ("dataset_sha256", self.dataset_sha256.clone()),
            ("seed", self.seed.to_string()),
            ("scheduler", self.scheduler.clone()),
            ("steps", self.steps.to_string()),
            ("guidance", self.guidance.to_string()),
            ("strength", self.strength.to_string()),
            ("eta", self.eta.to_string()),
            ("sources", self.sources.name().to_string()),
            ("dilate_px", self.dilate_px.to_string()),
            ("feather_px", self.feather_px.to_string()),
            ("detail", self.detail.to_string()),
            ("posterior", self.posterior.name().to_string()),
            ("tiles", self.tiles.to_string()),
            ("loras", self.told_loras()),
        ]);
        identity
    }

    fn told_loras(&self) -> String {
        let all: Vec<String> = self.loras.iter().map(|lora| format!("{}={}", lora.sha256, lora.weight)).collect();
        if all.is_empty() { "none".to_string() } else { all.join(" ") }
    }

    /// SHA-256 of the lines `name=value`.
    pub fn sha256(&self) -> String {
        let lines: String = self.identity().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        files::sha256(lines.as_bytes())
    }

    /// Fails where samples made by `earlier` settings would not go with those of `self`, and names the first such setting.
    pub fn check_resumes(&self, earlier: &Sampling, place: &str) -> Result<()> {
        let pairs = earlier.identity().into_iter().zip(self.identity());
        match pairs.into_iter().find(|(old, new)| old != new) {
            None => Ok(()),
            Some(((field, old), (_, new))) => {
                let fact = format!("{old}, but this run has {new}; take the same settings to resume, or another --out");
                Err(Error::new(Kind::Usage, format!("{place}: {field}"), fact))
            }
        }
    }
}

impl RunSettings {
    /// Reads a file. Unknown fields are errors.
    pub fn read(path: &Path) -> Result<RunSettings> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))?;
        let place = path.display().to_string();
        let settings: RunSettings = toml::from_str(&text).map_err(|e| Error::new(Kind::Format, place.clone(), e.to_string().trim().to_string()))?;
        let too_many = settings.classes.iter().find(|(_, n)| **n as u64 > MAX_SAMPLES);
        match too_many {
            Some((class, n)) => Err(Error::new(Kind::Usage, format!("{place}: classes.{class}"), format!("{n}, expected at most {MAX_SAMPLES}"))),
            None => Ok(settings),
        }
    }

    /// Writes the file, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(|e| Error::new(Kind::Usage, path.display().to_string(), e.to_string()))?;
        files::write_whole(path, text.as_bytes())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::driver::conditioning::InputFile;
    use crate::weights::Config;

    pub(crate) fn settings() -> RunSettings {
        RunSettings {
            naevus_version: "0.1.0".to_string(),
            sampling: Sampling {
                model: "models/inpaint".into(),
                model_sha256: "aa".to_string(),
                dataset_sha256: "bb".to_string(),
                conditioning: Conditioning::default(),
                seed: 7,
                scheduler: first_scheduler(),
                steps: 20,
                guidance: 3.0,
                strength: 1.0,
                eta: 0.0,
                sources: Policy::SameClassThenAny,
                dilate_px: 4,
                feather_px: 0,
                detail: 0.0,
                posterior: Posterior::Mode,
                tiles: Tiles::Auto,
                loras: Vec::new(),
            },
            data: Data { dataset: "data".into(), labels: Some("data/labels.csv".into()), ..Data::default() },
            execution: Execution { device: "cpu".to_string(), precision: "f32".to_string(), batch: 4, shard: Shard { index: 2, of: 3 }, limit: None },
            classes: [("df".to_string(), 8), ("vasc".to_string(), 5)].into(),
        }
    }

    fn scheduler() -> Scheduler {
        Scheduler::from_config(&Config::parse("{\"_class_name\": \"DDIMScheduler\"}", "s").unwrap(), None).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RUN_TOML);
        let mut s = settings();
        s.sampling.guidance = 0.1 + 0.2;
        (s.sampling.posterior, s.sampling.tiles) = (Posterior::Sample, Tiles::Pixels(256));
        s.execution.limit = Some(3);
        s.sampling.loras.push(UsedLora { path: "lora.safetensors".into(), sha256: "cc".to_string(), weight: -0.3 });
        s.sampling.conditioning.prompts.insert("df".to_string(), "a \"prompt\"\nof two lines".to_string());
        s.sampling.conditioning.textual_inversions.push(InputFile { path: "a.pt".into(), sha256: "cc".to_string(), token: None });
        s.write(&path).unwrap();
        assert_eq!(RunSettings::read(&path).unwrap(), s);
        let text = std::fs::read_to_string(&path).unwrap();
        // Written before there was a choice.
        assert!(text.contains("scheduler = \"ddim\"\n"), "{text}");
        std::fs::write(&path, text.replace("scheduler = \"ddim\"\n", "")).unwrap();
        assert_eq!(RunSettings::read(&path).unwrap(), s);
        assert!(text.contains("shard = \"2/3\"") && text.contains("sources = \"same-class-then-any\""), "{text}");
    }

    #[test]
    fn unknown_fields_and_wrong_values_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RUN_TOML);
        settings().write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to, want) in [
            ("seed = 7", "seed = 7\nsed = 8", "sed"),
            ("steps = 20\n", "", "steps"),
            ("shard = \"2/3\"", "shard = \"4/3\"", "--shard: 4/3"),
            ("sources = \"same-class-then-any\"", "sources = \"near\"", "near"),
            ("batch = 4", "batch = -4", "batch"),
            ("tiles = \"auto\"", "tiles = \"0\"", "--tiles: 0"),
            ("posterior = \"mode\"", "posterior = \"mean\"", "mean"),
        ] {
            assert!(text.contains(from));
            std::fs::write(&path, text.replace(from, to)).unwrap();
            let error = RunSettings::read(&path).unwrap_err();
            assert_eq!(error.kind(), Kind::Format);
            assert!(error.to_string().contains(want) && !error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn resuming_asks_for_the_same_samples_only() {
        let old = settings();
        let mut new = old.clone();
        new.classes.insert("df".to_string(), 800);
        new.execution = Execution { device: "gpu".to_string(), precision: "f16".to_string(), batch: 16, shard: Shard::WHOLE, limit: Some(1) };
        new.sampling.model = "elsewhere/inpaint".into();
        new.sampling.check_resumes(&old.sampling, "run.toml").unwrap();
        assert_eq!(new.sampling.sha256(), old.sampling.sha256());
        new.sampling.guidance = 2.5;
        let error = new.sampling.check_resumes(&old.sampling, "out/run.toml").unwrap_err();
        assert_eq!(error.to_string(), "out/run.toml: guidance: 3, but this run has 2.5; take the same settings to resume, or another --out");
        assert_ne!(new.sampling.sha256(), old.sampling.sha256());
    }

    #[test]
    fn every_setting_of_the_identity_counts() {
        let base = settings().sampling;
        let changes: [fn(&mut Sampling); 20] = [
            |s| s.conditioning.image_size = Some(8),
            |s| s.conditioning.negative_prompt = Some(String::new()),
            |s| s.conditioning.class_tokens = Some(InputFile::default()),
            |s| s.conditioning.textual_inversions.push(InputFile::default()),
            |s| drop(s.conditioning.prompts.insert("df".to_string(), "a".to_string())),
            |s| s.model_sha256 = "x".to_string(),
            |s| s.dataset_sha256 = "x".to_string(),
            |s| s.seed = 8,
            |s| s.scheduler = "euler".to_string(),
            |s| s.steps = 21,
            |s| s.guidance = 1.0,
            |s| s.strength = 0.5,
            |s| s.eta = 0.1,
            |s| s.sources = Policy::Head,
            |s| s.dilate_px = 5,
            |s| s.feather_px = 1,
            |s| s.detail = 1.0,
            |s| s.posterior = Posterior::Sample,
            |s| s.tiles = Tiles::Off,
            |s| s.loras.push(UsedLora { path: "x".into(), sha256: "cc".to_string(), weight: 0.5 }),
        ];
        for change in changes {
            let mut other = base.clone();
            change(&mut other);
            assert!(other.check_resumes(&base, "run.toml").is_err() && other.sha256() != base.sha256());
        }
    }

    #[test]
    fn impossible_values_are_named() {
        let base = settings().sampling;
        assert_eq!(base.schedule(&scheduler()).unwrap().timesteps.len(), 20);
        let rows: [(fn(&mut Sampling), &str); 8] = [
            (|s| s.seed = u64::MAX, "--seed: "),
            (|s| s.guidance = f64::NAN, "--guidance: NaN"),
            (|s| s.steps = 0, "--steps: 0"),
            (|s| s.eta = -0.5, "--eta: -0.5"),
            (|s| s.strength = 2.0, "--strength: 2"),
            (|s| s.dilate_px = 1 << 20, "--dilate: 1048576"),
            (|s| s.detail = 1.5, "--detail: 1.5, expected 0 to 1"),
            (|s| s.detail = f64::NAN, "--detail: NaN"),
        ];
        for (change, want) in rows {
            let mut other = base.clone();
            change(&mut other);
            let error = other.schedule(&scheduler()).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }

    #[test]
    fn shards_divide_the_samples() {
        for k in 0..50 {
            assert_eq!((1..=3).filter(|&index| Shard { index, of: 3 }.holds(k)).count(), 1);
            assert!(Shard::WHOLE.holds(k));
        }
        for text in ["0/3", "4/3", "1", "1/0", "a/b", "-1/2", ""] {
            assert!(Shard::parse(text).is_err(), "{text}");
        }
    }
}
