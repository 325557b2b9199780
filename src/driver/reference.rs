//! Features of real images with their classes, in one file: what samples are scored by where the images are not at hand.

use std::path::Path;

use crate::base::{Error, Kind, Result};
use crate::driver::features::Features;
use crate::weights::Store;

/// A file of features whose metadata names the class of each image: `labels`, a JSON list beside `ids`.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    pub features: Features,
    /// One for each row.
    pub labels: Vec<String>,
}

impl Reference {
    pub fn read(path: &Path) -> Result<Reference> {
        let features = Features::read(path)?;
        let wrong = |fact: String| Error::new(Kind::Format, path.display().to_string(), fact);
        let store = Store::open(path)?;
        let text = store.metadata().get("labels").ok_or_else(|| wrong("no `labels` in the metadata, expected the class of each image".to_string()))?;
        let labels: Vec<String> = serde_json::from_str(text).map_err(|e| wrong(format!("labels: not a JSON list of texts: {e}")))?;
        if labels.len() != features.ids.len() {
            return Err(wrong(format!("{} labels, expected {} as there are ids", labels.len(), features.ids.len())));
        }
        Ok(Reference { features, labels })
    }

    /// Id and class of each image.
    pub fn labels(&self) -> Vec<(&str, &str)> {
        self.features.ids.iter().zip(&self.labels).map(|(id, label)| (id.as_str(), label.as_str())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Writer;

    #[test]
    fn labels_are_those_of_the_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.safetensors");
        let read = |labels: Option<&str>| {
            let mut writer = Writer::new();
            writer.f32("features", &[2, 2], vec![0.5; 4]).unwrap();
            writer.f32("logits", &[2, 1], vec![0.0; 2]).unwrap();
            [("ids", "[\"a\",\"b\"]"), ("classes", "[\"df\"]"), ("classifier", "c"), ("classifier_sha256", "0")]
                .iter()
                .for_each(|(k, v)| writer.metadata(k, v));
            labels.iter().for_each(|labels| writer.metadata("labels", labels));
            writer.write(&path).unwrap();
            Reference::read(&path).map_err(|e| e.fact().to_string())
        };
        assert_eq!(read(Some("[\"df\",\"nv\"]")).unwrap().labels(), [("a", "df"), ("b", "nv")]);
        for (labels, want) in [(None, "no `labels`"), (Some("[\"df\"]"), "1 labels, expected 2"), (Some("{}"), "not a JSON list")] {
            assert!(read(labels).unwrap_err().contains(want), "{labels:?}");
        }
    }
}
