//! What a folder or file is, from its configuration and names alone: no weights are read.

use std::path::{Path, PathBuf};

use crate::base::{Error, Result};
use crate::weights::{Config, Store};

/// A kind of model that the program can load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    InpaintModel,
    UNet2DModel,
    Taesd,
    ResNet,
    /// A safetensors file without a configuration beside it; the name of the architecture that its tensors look like.
    Weights(Option<&'static str>),
}

/// What was found at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    pub kind: Kind,
    /// The architecture in words.
    pub name: &'static str,
    /// The folder to load, or the file.
    pub path: PathBuf,
}

/// How an architecture is told.
struct Row {
    kind: Kind,
    name: &'static str,
    /// The configuration and the field that names the class.
    file: &'static str,
    field: &'static str,
    is_class: fn(&str) -> bool,
    /// Tensors that only this architecture has together; none: it is no single file.
    tensors: &'static [&'static str],
}

/// One row per architecture.
const ROWS: [Row; 5] = [
    Row {
        kind: Kind::InpaintModel,
        name: "class-conditional latent inpainting model",
        file: "model_index.json",
        field: "_class_name",
        is_class: |c| c == "ClassConditionalInpaint",
        tensors: &[],
    },
    Row {
        kind: Kind::UNet2DModel,
        name: "diffusers UNet2DModel",
        file: "config.json",
        field: "_class_name",
        is_class: |c| c == "UNet2DModel",
        tensors: &["conv_in.weight", "time_embedding.linear_1.weight", "conv_norm_out.weight"],
    },
    Row {
        kind: Kind::Taesd,
        name: "TAESD autoencoder",
        file: "config.json",
        field: "_class_name",
        is_class: |c| c == "TAESD",
        tensors: &["3.conv.0.weight", "3.conv.2.weight", "3.conv.4.weight"],
    },
    Row {
        kind: Kind::Taesd,
        name: "TAESD autoencoder",
        file: "config.json",
        field: "_class_name",
        is_class: |_| false,
        tensors: &["4.conv.0.weight", "4.conv.2.weight", "4.conv.4.weight"],
    },
    Row {
        kind: Kind::ResNet,
        name: "ResNet classifier",
        file: "config.json",
        field: "architecture",
        is_class: |c| c.starts_with("resnet"),
        tensors: &["conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.0.conv1.weight"],
    },
];

/// Fails with what the path holds when it is none of the table's rows.
pub fn recognise(path: &Path) -> Result<Recognised> {
    let is_config = path.extension().is_some_and(|e| e == "json") && !path.to_string_lossy().ends_with(".index.json");
    let folder = if is_config { path.parent().unwrap_or(Path::new("")) } else { path };
    let mut told = Vec::new();
    for file in ["model_index.json", "config.json"] {
        let file_path = folder.join(file);
        if !file_path.is_file() {
            continue;
        }
        let config = Config::read(&file_path)?;
        for row in ROWS.iter().filter(|row| row.file == file && config.has(row.field)) {
            let class = config.text(row.field, None)?;
            if (row.is_class)(&class) {
                return Ok(Recognised { kind: row.kind, name: row.name, path: folder.to_path_buf() });
            }
            told.push(format!("{} \"{class}\"", row.field));
        }
        if told.is_empty() {
            told.push(format!("{file} without _class_name or architecture"));
        }
    }
    if !told.is_empty() {
        told.dedup();
        return Err(Error::new(crate::base::Kind::Config, path.display().to_string(), format!("{}, expected one of: {}", told.join(", "), supported())));
    }
    let store = Store::open(path)?;
    let row = ROWS.iter().find(|row| !row.tensors.is_empty() && row.tensors.iter().all(|name| store.shape(name).is_some()));
    let name = row.map_or("safetensors of an unknown architecture", |row| row.name);
    Ok(Recognised { kind: Kind::Weights(row.map(|row| row.name)), name, path: path.to_path_buf() })
}

fn supported() -> String {
    let mut names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Writer;

    #[test]
    fn configs_and_names_tell() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        let write = |text: &str| std::fs::write(&config, text).unwrap();
        write(r#"{"_class_name": "UNet2DModel"}"#);
        assert_eq!(recognise(dir.path()).unwrap().kind, Kind::UNet2DModel);
        assert_eq!(recognise(&config).unwrap().path, dir.path());
        write(r#"{"architecture": "resnet50"}"#);
        assert_eq!(recognise(dir.path()).unwrap().kind, Kind::ResNet);
        write(r#"{"_class_name": "UNet2DConditionModel"}"#);
        let error = recognise(dir.path()).unwrap_err().to_string();
        assert!(error.contains("_class_name \"UNet2DConditionModel\", expected one of: class-conditional"), "{error}");
        write(r#"{"a": 1}"#);
        assert!(recognise(dir.path()).unwrap_err().to_string().contains("without _class_name"));
        let path = dir.path().join("x.safetensors");
        let mut writer = Writer::new();
        writer.f32("conv_in.weight", &[1], vec![0.0]).unwrap();
        writer.write(&path).unwrap();
        assert_eq!(recognise(&path).unwrap().kind, Kind::Weights(None));
        for name in ["time_embedding.linear_1.weight", "conv_norm_out.weight"] {
            writer.f32(name, &[1], vec![0.0]).unwrap();
        }
        writer.write(&path).unwrap();
        assert_eq!(recognise(&path).unwrap().kind, Kind::Weights(Some("diffusers UNet2DModel")));
    }
}
