//! What a folder or file is, from its configuration and names alone. No weights are read until [`Found::load`].

use std::path::{Path, PathBuf};

use crate::base::{Error, Kind, Result};
use crate::models::lora::{self, Lora};
use crate::models::model::{Architecture, Checkpoint, Loras, Model};
use crate::models::textual_inversion::{self, Learned};
use crate::models::tokenizer::Tokenizer;
use crate::models::{
    autoencoder_kl, autoencoder_tiny, class_tokens, clip_text, convnext, deeplab, densenet, efficientnet, inception, monai_autoencoder, monai_unet, onnx,
    resnet, single_file, smp_unet, squeezenet, swin, taesd, taesd_part, unet_2d, unet_2d_condition, vit, vq_model, wrapper,
};
use crate::weights::{Config, Store};

/// Every architecture. The first row that knows a checkpoint has it.
pub static ARCHITECTURES: &[&Architecture] = &[
    &unet_2d::ARCHITECTURE,
    &unet_2d_condition::ARCHITECTURE,
    &single_file::SD1_INPAINTING,
    &single_file::SD1,
    &single_file::SD2_INPAINTING,
    &single_file::SD2_DEPTH,
    &single_file::SD2,
    &single_file::SDXL_INPAINTING,
    &single_file::SDXL,
    &single_file::SDXL_REFINER,
    &autoencoder_kl::ARCHITECTURE,
    &autoencoder_tiny::ARCHITECTURE,
    &monai_unet::ARCHITECTURE,
    &monai_autoencoder::ARCHITECTURE,
    &vq_model::ARCHITECTURE,
    &taesd::ARCHITECTURE,
    &taesd_part::ARCHITECTURE,
    &resnet::ARCHITECTURE,
    &convnext::ARCHITECTURE,
    &densenet::ARCHITECTURE,
    &efficientnet::ARCHITECTURE,
    &inception::ARCHITECTURE,
    &squeezenet::ARCHITECTURE,
    &swin::ARCHITECTURE,
    &vit::ARCHITECTURE,
    &deeplab::ARCHITECTURE,
    &smp_unet::ARCHITECTURE,
    &clip_text::ARCHITECTURE,
    &onnx::ARCHITECTURE,
];

/// What was found at a path.
pub enum Found {
    /// A folder with `model_index.json` and a folder for each of its parts.
    Pipeline {
        folder: PathBuf,
        class: String,
    },
    Model {
        architecture: &'static Architecture,
        checkpoint: Checkpoint,
    },
    /// Changes of a model's weights.
    Lora {
        path: PathBuf,
    },
    /// A folder with the files of CLIP's tokenizer.
    Tokenizer {
        folder: PathBuf,
    },
    /// A learned word for prompts.
    TextualInversion {
        path: PathBuf,
    },
    /// What stands in the place of prompts.
    ClassTokens {
        path: PathBuf,
    },
    /// Tensors of no known architecture.
    Unknown {
        path: PathBuf,
    },
}

impl Found {
    /// The architecture in words.
    pub fn name(&self) -> String {
        match self {
            Found::Pipeline { class, .. } => format!("model folder of a {class}"),
            Found::Model { architecture, .. } => architecture.name.to_string(),
            Found::Lora { .. } => "LoRA".to_string(),
            Found::Tokenizer { .. } => "CLIP tokenizer".to_string(),
            Found::TextualInversion { .. } => "textual inversion".to_string(),
            Found::ClassTokens { .. } => "file of class tokens".to_string(),
            Found::Unknown { .. } => "tensors of an unknown architecture".to_string(),
        }
    }

    /// The same model with LoRAs added to its weights when it is loaded.
    pub fn with_loras(self, loras: &[Lora]) -> Found {
        match self {
            Found::Model { architecture, checkpoint } => {
                Found::Model { architecture, checkpoint: Checkpoint { loras: Loras::new(loras.to_vec()), ..checkpoint } }
            }
            other => other,
        }
    }

    /// Loads a single model. Pipelines, LoRAs and unknown tensors are errors that say so.
    pub fn load(&self) -> Result<Box<dyn Model>> {
        match self {
            Found::Model { architecture, checkpoint } => {
                let model = (architecture.load)(checkpoint)?;
                if checkpoint.loras.are_left() {
                    let fact = format!("a {} takes no LoRA, expected a UNet or a text encoder", architecture.name);
                    return Err(Error::new(Kind::Usage, checkpoint.path.display().to_string(), fact));
                }
                Ok(model)
            }
            Found::Lora { path } => {
                Err(Error::new(Kind::Usage, path.display().to_string(), "is a LoRA, expected a model: a LoRA is given beside one, with --lora"))
            }
            Found::Pipeline { folder, class } => {
                Err(Error::new(Kind::Usage, folder.display().to_string(), format!("is a {class} of several models, expected one of its folders")))
            }
            Found::Tokenizer { folder: path } | Found::TextualInversion { path } | Found::ClassTokens { path } => {
                Err(Error::new(Kind::Usage, path.display().to_string(), format!("is a {}, expected a model", self.name())))
            }
            Found::Unknown { path } => {
                let names = Store::open(path).map(|store| beginnings(&store)).unwrap_or_default();
                let fact = format!("its tensors ({names}) are of no known architecture, expected a config.json beside them, or one of: {}", supported());
                Err(Error::new(Kind::Weights, path.display().to_string(), fact))
            }
        }
    }
}

/// Loads the single model at `path`.
pub fn load(path: &Path) -> Result<Box<dyn Model>> {
    recognise(path)?.load()
}

/// Reads configurations and tensor names. Fails where a configuration names what is not supported.
pub fn recognise(path: &Path) -> Result<Found> {
    let is_config = path.extension().is_some_and(|e| e == "json") && !path.to_string_lossy().ends_with(".index.json");
    let path = if is_config { path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")) } else { path };
    let index = path.join("model_index.json");
    if index.is_file() {
        let class = Config::read(&index)?.text("_class_name", None)?;
        return Ok(Found::Pipeline { folder: path.to_path_buf(), class });
    }
    let beside = if path.is_dir() { path.join("config.json") } else { path.with_file_name("config.json") };
    let config = beside.exists().then(|| Config::read(&beside)).transpose()?;
    if path.is_dir()
        && let Some(config) = config
    {
        let architecture = by_config(&config).ok_or_else(|| unknown_config(&config))?;
        let wrapper = Store::open(path).ok().and_then(|store| wrapper_of(architecture, &store)).unwrap_or_default();
        return Ok(Found::Model { architecture, checkpoint: Checkpoint::new(path, Some(config)).wrapped(wrapper) });
    }
    if lora::is_folder(path) {
        return Ok(Found::Lora { path: path.to_path_buf() });
    }
    if Tokenizer::is_in(path) {
        return Ok(Found::Tokenizer { folder: path.to_path_buf() });
    }
    if let Some(file) = textual_inversion::file_in(path) {
        return Ok(Found::TextualInversion { path: file });
    }
    if let Some(architecture) = ARCHITECTURES.iter().find(|row| (row.is_path)(path)) {
        return Ok(Found::Model { architecture, checkpoint: Checkpoint::new(path, None) });
    }
    let store = Store::open(path)?;
    if lora::is_lora(&store) {
        return Ok(Found::Lora { path: path.to_path_buf() });
    }
    let config = config.map_or_else(|| noted_config(&store), |config| Ok(Some(config)))?;
    Ok(by_tensors(path, &store, config))
}

/// The architecture that a configuration is of.
fn by_config(config: &Config) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|row| (row.is_config)(config)).copied()
}

/// What a single file is. A configuration that happens to lie beside it counts where its names are of that architecture or of none.
fn by_tensors(path: &Path, store: &Store, config: Option<Config>) -> Found {
    let model = |architecture, config, wrapper| Found::Model { architecture, checkpoint: Checkpoint::new(path, config).wrapped(wrapper) };
    let known = ARCHITECTURES.iter().find(|row| (row.is_tensors)(store)).map(|row| (*row, String::new()));
    let known = known.or_else(|| {
        let is_known = |inner: &Store| ARCHITECTURES.iter().any(|row| (row.is_tensors)(inner));
        let wrapper = wrapper::find(store, is_known)?;
        let inner = store.under(&wrapper);
        ARCHITECTURES.iter().find(|row| (row.is_tensors)(&inner)).map(|row| (*row, wrapper))
    });
    if let Some(config) = config
        && let Some(told) = by_config(&config)
    {
        match wrapper_of(told, store) {
            Some(wrapper) => return model(told, Some(config), wrapper),
            None if known.is_none() => return model(told, Some(config), String::new()),
            None => {}
        }
    }
    match known {
        Some((architecture, wrapper)) => model(architecture, None, wrapper),
        None if class_tokens::is_store(store) => Found::ClassTokens { path: path.to_path_buf() },
        None if Learned::is_store(store) => Found::TextualInversion { path: path.to_path_buf() },
        None => Found::Unknown { path: path.to_path_buf() },
    }
}

/// What stands before the names of `architecture` in `store`; None: they are not its.
fn wrapper_of(architecture: &Architecture, store: &Store) -> Option<String> {
    if (architecture.is_tensors)(store) { Some(String::new()) } else { wrapper::find(store, |inner| (architecture.is_tensors)(inner)) }
}

/// The architecture that a training script noted beside the state dict, as timm's and PyTorch's examples do, as a configuration.
fn noted_config(store: &Store) -> Result<Option<Config>> {
    let Some(architecture) = store.metadata().get("arch") else { return Ok(None) };
    let text = serde_json::json!({ "architecture": architecture }).to_string();
    Config::parse(&text, &format!("{}: arch", store.place())).map(Some)
}

fn unknown_config(config: &Config) -> Error {
    for field in ["_class_name", "architecture", "model_type"] {
        if config.has(field) {
            let value: String = config.text(field, None).unwrap_or_default().chars().take(80).collect();
            return config.error(field, format!("\"{value}\", expected one of: {}", supported()));
        }
    }
    Error::new(Kind::Config, config.place(), format!("no _class_name, architecture or model_type, expected one of: {}", supported()))
}

/// The first parts of the names, for an error.
fn beginnings(store: &Store) -> String {
    let mut firsts: Vec<String> = store.names().map(|name| name.split('.').next().unwrap_or(name).chars().take(40).collect()).collect();
    firsts.dedup();
    let more = if firsts.len() > 6 { ", ..." } else { "" };
    firsts.truncate(6);
    firsts.join(", ") + more
}

/// The architectures in words.
pub fn supported() -> String {
    ARCHITECTURES.iter().map(|row| row.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Writer;

    fn name(path: &Path) -> String {
        recognise(path).unwrap().name()
    }

    #[test]
    fn configs_and_names_tell() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        let write = |text: &str| std::fs::write(&config, text).unwrap();
        write(r#"{"_class_name": "UNet2DModel"}"#);
        assert_eq!(name(dir.path()), "diffusers UNet2DModel");
        assert_eq!(name(&config), "diffusers UNet2DModel");
        write(r#"{"_class_name": "UNet2DConditionModel"}"#);
        assert_eq!(name(dir.path()), "diffusers UNet2DConditionModel");
        write(r#"{"architecture": "resnet50.a1_in1k"}"#);
        assert_eq!(name(dir.path()), "ResNet classifier");
        write(r#"{"_class_name": "Kandinsky"}"#);
        let error = recognise(dir.path()).err().unwrap().to_string();
        assert!(error.contains("_class_name: \"Kandinsky\", expected one of: diffusers"), "{error}");
        write(r#"{"a": 1}"#);
        assert!(recognise(dir.path()).err().unwrap().to_string().contains("no _class_name, architecture or model_type"));
        let path = dir.path().join("x.safetensors");
        let mut writer = Writer::new();
        writer.f32("conv_in.weight", &[1], vec![0.0]).unwrap();
        writer.write(&path).unwrap();
        let unknown = recognise(&path).unwrap();
        assert!(matches!(unknown, Found::Unknown { .. }) && unknown.load().err().unwrap().to_string().contains("no known architecture"));
        for name in ["time_embedding.linear_1.weight", "conv_norm_out.weight"] {
            writer.f32(name, &[1], vec![0.0]).unwrap();
        }
        writer.write(&path).unwrap();
        assert_eq!(name(&path), "diffusers UNet2DModel");
        writer.f32("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight", &[1], vec![0.0]).unwrap();
        writer.write(&path).unwrap();
        assert_eq!(name(&path), "diffusers UNet2DConditionModel");
        assert!(recognise(&path).unwrap().load().err().unwrap().to_string().contains("no config.json beside the weights"));
    }
}
