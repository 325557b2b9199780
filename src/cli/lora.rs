//! `--lora PATH[=WEIGHT]`: changes that are merged into a model's weights while it is loaded.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::base::{Error, Kind, Result};
use crate::driver::files::sha256_of;
use crate::driver::run_settings::UsedLora;
use crate::models::Lora;

#[derive(clap::Args)]
pub(crate) struct LoraFlags {
    /// A LoRA (PEFT's, diffusers' or kohya's) that is merged into the weights, and the weight that it gets [default: 1]; repeatable
    #[arg(long = "lora", value_name = "PATH[=WEIGHT]")]
    lora: Vec<String>,
}

impl LoraFlags {
    /// Opens the files in the order in which they were given.
    pub(crate) fn open(&self) -> Result<Vec<Lora>> {
        self.lora.iter().map(|text| parse(text).and_then(|(path, weight)| Lora::open(&path, weight))).collect()
    }
}

/// A path may hold `=`: what stands behind the last one is a weight where no file has the whole text as its name.
fn parse(text: &str) -> Result<(PathBuf, f64)> {
    if Path::new(text).exists() {
        return Ok((text.into(), 1.0));
    }
    let Some((path, weight)) = text.rsplit_once('=') else { return Ok((text.into(), 1.0)) };
    let weight = weight.parse().map_err(|_| Error::new(Kind::Usage, format!("--lora {text}"), format!("weight {weight:?}, expected a number")))?;
    Ok((path.into(), weight))
}

/// What a run's settings say of them.
pub(crate) fn used(loras: &[Lora]) -> Result<Vec<UsedLora>> {
    loras.iter().map(|lora| Ok(UsedLora { path: lora.path.clone(), sha256: sha256_of(&lora.path)?, weight: lora.weight })).collect()
}

/// The same for a report.
pub(crate) fn report(loras: &[Lora]) -> Result<Vec<Value>> {
    let row = |used: UsedLora| json!({ "path": used.path.display().to_string(), "sha256": used.sha256, "weight": used.weight });
    Ok(used(loras)?.into_iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_stands_behind_the_last_sign() {
        assert_eq!(parse("a.safetensors").unwrap(), ("a.safetensors".into(), 1.0));
        assert_eq!(parse("a.safetensors=-0.3").unwrap(), ("a.safetensors".into(), -0.3));
        assert_eq!(parse("a=b=0.5").unwrap(), ("a=b".into(), 0.5));
        assert_eq!(parse("a=high").unwrap_err().to_string(), "--lora a=high: weight \"high\", expected a number");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("strange=2");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(parse(path.to_str().unwrap()).unwrap(), (path, 1.0));
    }
}
