//! What each class of a run is to the model, where the model's folder does not say: prompts, learned words, class tokens. Every file
//! is named with its SHA-256.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::base::{Error, Kind, Result};
use crate::driver::files;
use crate::models::pipeline::Classes;
use crate::models::textual_inversion::Inversion;
use crate::weights::Config;

/// Bytes of a file of prompts.
const MOST_BYTES: u64 = 16 << 20;
/// Rows and columns of the images that a run may ask for.
const MOST_PIXELS: usize = 65_536;

/// A part of `run.toml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Conditioning {
    /// Rows and columns of the images, where the model leaves it open.
    pub image_size: Option<usize>,
    pub negative_prompt: Option<String>,
    pub class_tokens: Option<InputFile>,
    pub textual_inversions: Vec<InputFile>,
    /// The prompt of each class. The labels are in the order of the alphabet.
    pub prompts: BTreeMap<String, String>,
}

/// A file or folder that a run reads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    pub path: PathBuf,
    pub sha256: String,
    /// The word that it is in prompts, where that is not the file's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl InputFile {
    pub fn new(path: &Path, token: Option<String>) -> Result<InputFile> {
        Ok(InputFile { path: path.to_path_buf(), sha256: files::sha256_of(path)?, token })
    }

    /// Fails when the file is no longer what it was.
    fn verify(&self) -> Result<()> {
        if files::sha256_of(&self.path)? != self.sha256 {
            let fact = "is another than when the run was made: the samples would differ";
            return Err(Error::new(Kind::Data, self.path.display().to_string(), fact));
        }
        Ok(())
    }
}

impl Conditioning {
    /// Whether the model's folder alone says what its classes are.
    pub fn is_none(&self) -> bool {
        *self == Conditioning::default()
    }

    /// Fails at an image size that can't be.
    pub fn check(&self) -> Result<()> {
        match self.image_size {
            Some(size) if !(1..=MOST_PIXELS).contains(&size) => Err(Error::new(Kind::Usage, "--size", format!("{size}, expected 1 to {MOST_PIXELS} pixels"))),
            _ => Ok(()),
        }
    }

    /// Fails when a file is no longer what it was.
    pub fn verify(&self) -> Result<()> {
        self.check()?;
        self.class_tokens.iter().chain(&self.textual_inversions).try_for_each(InputFile::verify)
    }

    /// Learned words and class tokens.
    pub fn embeddings(&self) -> Vec<InputFile> {
        self.class_tokens.iter().chain(&self.textual_inversions).cloned().collect()
    }

    /// As a pipeline takes it.
    pub fn classes(&self) -> Classes {
        let inversion = |file: &InputFile| Inversion { token: file.token.clone(), path: file.path.clone() };
        Classes {
            prompts: self.prompts.iter().map(|(name, prompt)| (name.clone(), prompt.clone())).collect(),
            negative_prompt: self.negative_prompt.clone(),
            textual_inversions: self.textual_inversions.iter().map(inversion).collect(),
            class_tokens: self.class_tokens.as_ref().map(|file| file.path.clone()),
        }
    }

    /// Names and values that decide what a sample looks like. Paths do not: the sums do.
    pub fn identity(&self) -> Vec<(&'static str, String)> {
        let words: Vec<_> = self.textual_inversions.iter().map(|file| json!({ "sha256": file.sha256, "token": file.token })).collect();
        vec![
            ("image_size", self.image_size.map_or("the model's".to_string(), |size| size.to_string())),
            ("prompts", json!(self.prompts).to_string()),
            ("negative_prompt", json!(self.negative_prompt).to_string()),
            ("class_tokens_sha256", self.class_tokens.as_ref().map_or("none".to_string(), |file| file.sha256.clone())),
            ("textual_inversions", json!(words).to_string()),
        ]
    }
}

/// A table of class and prompt: one JSON object, or TOML where the file's name ends so.
pub fn read_prompts(path: &Path) -> Result<BTreeMap<String, String>> {
    let place = path.display().to_string();
    let prompts: BTreeMap<String, String> = if path.extension().is_some_and(|e| e == "toml") {
        let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, &e))?.len();
        if bytes > MOST_BYTES {
            return Err(Error::new(Kind::Format, place, format!("{bytes} bytes, expected a TOML file of at most {MOST_BYTES}")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))?;
        toml::from_str(&text).map_err(|e| Error::new(Kind::Format, place.clone(), format!("expected lines of class = \"prompt\": {}", e.message())))?
    } else {
        Config::read(path)?.all_texts()?.into_iter().map(|(class, prompt)| (class.to_string(), prompt.to_string())).collect()
    };
    match prompts.keys().any(String::is_empty) || prompts.is_empty() {
        true => Err(Error::new(Kind::Format, place, "expected a prompt for one class or more, each with its name")),
        false => Ok(prompts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn prompts_are_a_table_of_json_or_toml() {
        let want: BTreeMap<String, String> = [("df".to_string(), "a b".to_string()), ("vasc".to_string(), "c = \"d\"".to_string())].into();
        for (name, text) in [("p.json", r#"{"vasc": "c = \"d\"", "df": "a b"}"#), ("p.toml", "vasc = 'c = \"d\"'\ndf = \"a b\"\n")] {
            let (_dir, path) = file(name, text);
            assert_eq!(read_prompts(&path).unwrap(), want, "{name}");
        }
    }

    #[test]
    fn what_is_no_table_of_prompts_is_named() {
        let rows = [
            ("p.json", "[]", "expected a JSON object"),
            ("p.json", r#"{"df": 1}"#, "df: 1, expected a text"),
            ("p.json", r#"{"df": "a", "df": "b"}"#, "`df` stands there twice"),
            ("p.json", "{}", "expected a prompt for one class or more"),
            ("p.json", r#"{"": "a"}"#, "expected a prompt for one class or more"),
            ("p.toml", "df = 1", "expected lines of class"),
            ("p.toml", "df = \"a\"\ndf = \"b\"", "duplicate key"),
        ];
        for (name, text, want) in rows {
            let (_dir, path) = file(name, text);
            let error = read_prompts(&path).unwrap_err().to_string();
            assert!(error.contains(want) && error.starts_with(&path.display().to_string()) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_changed_file_is_named() {
        let (_dir, path) = file("word.safetensors", "a");
        let word = InputFile::new(&path, Some("<mole>".to_string())).unwrap();
        let conditioning = Conditioning { textual_inversions: vec![word], ..Conditioning::default() };
        conditioning.verify().unwrap();
        std::fs::write(&path, "b").unwrap();
        let error = conditioning.verify().unwrap_err().to_string();
        assert!(error.contains("word.safetensors: is another than when the run was made"), "{error}");
    }
}
