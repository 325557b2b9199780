//! One interface for every architecture: what `forward`, `inspect`, `bench` and the tests know of a model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::base::{DType, Error, Kind, Result};
use crate::models::preprocess::Preprocess;
use crate::models::wrapper;
use crate::plan::{Layout, Tape, Tensor};
use crate::weights::{Config, Scope, Store};

/// One way to run a model. [`Component::name`] is its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// sample, timestep and conditioning -> sample.
    Unet,
    /// sample -> latent_dist_mean and latent_dist_logvar, or latents.
    VaeEncoder,
    /// latents -> sample.
    VaeDecoder,
    /// input_ids -> last_hidden_state, pooler_output or text_embeds.
    TextEncoder,
    /// pixel_values -> features, logits.
    Classifier,
    /// pixel_values -> logits.
    Segmenter,
    /// The graph's own inputs and outputs.
    Onnx,
}

impl Component {
    pub const ALL: [Component; 7] =
        [Component::Unet, Component::VaeEncoder, Component::VaeDecoder, Component::TextEncoder, Component::Classifier, Component::Segmenter, Component::Onnx];

    pub fn name(self) -> &'static str {
        match self {
            Component::Unet => "unet",
            Component::VaeEncoder => "vae-encoder",
            Component::VaeDecoder => "vae-decoder",
            Component::TextEncoder => "text-encoder",
            Component::Classifier => "classifier",
            Component::Segmenter => "segmenter",
            Component::Onnx => "onnx",
        }
    }

    /// The folder of a diffusers model that holds it; None: it is never a part of one.
    pub fn folder(self) -> Option<&'static str> {
        match self {
            Component::Unet => Some("unet"),
            Component::VaeEncoder | Component::VaeDecoder => Some("vae"),
            Component::TextEncoder => Some("text_encoder"),
            Component::Classifier | Component::Segmenter | Component::Onnx => None,
        }
    }
}

/// An input of a component.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    pub name: String,
    /// What `inspect` and `bench` run with, in our axis order. A recording takes any batch and any size the model allows.
    pub shape: Vec<usize>,
    pub dtype: DType,
    /// How the tensor stands in a file: [`Layout::Image`] is `[N, C, H, W]` there and `[N, H, W, C]` on the tape.
    pub layout: Layout,
    /// Indices must be below this.
    pub below: Option<usize>,
    /// The model runs without it.
    pub optional: bool,
}

impl Port {
    /// Real numbers `[N, H, W, C]`.
    pub fn image(name: &str, shape: [usize; 4]) -> Port {
        Port { layout: Layout::Image, ..Self::plain(name, &shape) }
    }

    /// Real numbers in one order everywhere.
    pub fn plain(name: &str, shape: &[usize]) -> Port {
        Port { name: name.to_string(), shape: shape.to_vec(), dtype: DType::F32, layout: Layout::Plain, below: None, optional: false }
    }

    /// Indices below `below`.
    pub fn indices(name: &str, shape: &[usize], below: usize) -> Port {
        Port { dtype: DType::U32, below: Some(below), ..Self::plain(name, shape) }
    }

    pub fn optional(self) -> Port {
        Port { optional: true, ..self }
    }
}

/// A result of a component.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub name: String,
    pub tensor: Tensor,
    pub layout: Layout,
}

impl Output {
    pub fn image(name: &str, tensor: Tensor) -> Output {
        Output { name: name.to_string(), tensor, layout: Layout::Image }
    }

    pub fn plain(name: &str, tensor: Tensor) -> Output {
        Output { name: name.to_string(), tensor, layout: Layout::Plain }
    }
}

/// The inputs of one recording, by the names of their ports.
#[derive(Clone, Debug, Default)]
pub struct Inputs(BTreeMap<String, Tensor>);

impl Inputs {
    pub fn new(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Inputs {
        Inputs(tensors.into_iter().collect())
    }

    /// Fails with the names that there are when `name` is none of them.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let names = || self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        self.find(name).ok_or_else(|| Error::new(Kind::Usage, name, format!("the model needs this input; there is {}", names())))
    }

    pub fn find(&self, name: &str) -> Option<Tensor> {
        self.0.get(name).copied()
    }
}

/// What a sampler must know of a denoiser. What conditions it beside the timestep are its other ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denoiser {
    pub in_channels: usize,
    pub out_channels: usize,
    /// Rows and columns of latents must be multiples of this.
    pub size_multiple: usize,
    /// Rows and columns that it was trained on.
    pub sample_size: Option<[usize; 2]>,
}

/// What a sampler must know of an autoencoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Autoencoder {
    pub latent_channels: usize,
    /// Pixels per latent along one axis.
    pub downscale: usize,
    /// The denoiser's latents are (latents - shift) scaling_factor; None: the checkpoint does not say.
    pub scaling_factor: Option<f32>,
    pub shift_factor: f32,
    /// Values of black and white on either side: [0, 1] or [-1, 1].
    pub pixel_range: [f32; 2],
}

/// A loaded model.
pub trait Model {
    /// Numbers in all parameters.
    fn parameters(&self) -> u64;

    /// Names in the file that a forward pass does not need.
    fn dropped(&self) -> &[String] {
        &[]
    }

    /// Sizes, classes and whatever else `inspect` shows.
    fn facts(&self) -> Vec<(&'static str, Value)>;

    /// The ways to run it, one or more.
    fn components(&self) -> Vec<Component>;

    /// The inputs of one of [`Model::components`] for `batch` items of the size that the configuration tells.
    fn ports(&self, component: Component, batch: usize) -> Vec<Port>;

    /// Records one forward of any batch. Fails at inputs that are missing or do not fit, with the expected shape.
    fn record(&self, t: &mut Tape, component: Component, inputs: &Inputs) -> Result<Vec<Output>>;

    /// What [`Component::Unet`] is to a sampler.
    fn denoiser(&self) -> Option<Denoiser> {
        None
    }

    /// What [`Component::VaeEncoder`] and [`Component::VaeDecoder`] are to a sampler.
    fn autoencoder(&self) -> Option<Autoencoder> {
        None
    }

    /// How a classifier's or segmenter's pixels are prepared.
    fn preprocess(&self) -> Option<&Preprocess> {
        None
    }

    /// In the order of the logits.
    fn class_names(&self) -> Option<&[String]> {
        None
    }
}

/// What lies at a path, before anybody has read its weights.
pub struct Checkpoint {
    /// The folder, or the file.
    pub path: PathBuf,
    /// config.json of the folder.
    pub config: Option<Config>,
    /// What stands before every name in the file, `model.`; mostly nothing.
    pub wrapper: String,
}

impl Checkpoint {
    /// The configuration; an error where there is none.
    pub fn config(&self) -> Result<&Config> {
        let absent =
            || Error::new(Kind::Config, self.path.display().to_string(), "no config.json beside the weights, expected one: names alone do not tell it all");
        self.config.as_ref().ok_or_else(absent)
    }

    /// The weights under the model's own names.
    pub fn store(&self) -> Result<Store> {
        let store = Store::open(&self.path)?;
        if self.wrapper.is_empty() { Ok(store) } else { wrapper::remove(store, &self.wrapper) }
    }

    /// The root of the weights; `model` names it in errors.
    pub fn scope(&self, model: &str) -> Result<Scope> {
        Ok(Scope::new(self.store().map_err(|e| e.within(model))?, model))
    }
}

/// One row of the table of architectures: how it is told, and how it is loaded.
pub struct Architecture {
    /// In words.
    pub name: &'static str,
    /// Whether a config.json is one of this architecture.
    pub is_config: fn(&Config) -> bool,
    /// Whether the names and shapes of tensors without a configuration are this architecture's.
    pub is_tensors: fn(&Store) -> bool,
    /// Whether a file or folder is, where its tensors stand in no single store.
    pub is_path: fn(&Path) -> bool,
    pub load: fn(&Checkpoint) -> Result<Box<dyn Model>>,
}

impl std::fmt::Debug for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Whether `_class_name` of a diffusers configuration is `class`.
pub fn is_class(config: &Config, class: &str) -> bool {
    config.has("_class_name") && config.text("_class_name", None).is_ok_and(|found| found == class)
}

/// The architecture that a timm configuration names, without its tag: `resnet50` of `resnet50.a1_in1k`.
pub fn timm_architecture(config: &Config) -> Option<String> {
    let name = config.has("architecture").then(|| config.text("architecture", None).ok())??;
    Some(name.split('.').next().unwrap_or_default().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_input_is_named() {
        let mut t = Tape::new();
        let x = t.input("sample", &[1], DType::F32);
        let inputs = Inputs::new([("sample".to_string(), x)]);
        assert_eq!(inputs.get("sample").unwrap(), x);
        assert_eq!(inputs.get("timestep").unwrap_err().to_string(), "timestep: the model needs this input; there is sample");
    }

    #[test]
    fn architectures_lose_their_tags() {
        let config = |text: &str| Config::parse(text, "config.json").unwrap();
        assert_eq!(timm_architecture(&config(r#"{"architecture": "resnet50.a1_in1k"}"#)).as_deref(), Some("resnet50"));
        assert_eq!(timm_architecture(&config(r#"{"architecture": 3}"#)), None);
        assert!(is_class(&config(r#"{"_class_name": "VQModel"}"#), "VQModel") && !is_class(&config("{}"), "VQModel"));
    }
}
