//! EfficientNet (B0 to B8, V2), MobileNetV2 and MobileNetV3: inverted residuals in two namings.
//! Sources: Sandler et al., "MobileNetV2" (2018); Howard et al., "Searching for MobileNetV3" (2019); Tan and Le,
//! "EfficientNet" (2019) and "EfficientNetV2" (2021). timm's names are read in `efficientnet_timm`, torchvision's in
//! `efficientnet_torchvision`; here is what both are made of.

use crate::base::Result;
use crate::models::classifier::{self, Classifier};
use crate::models::model::{Architecture, timm_architecture};
use crate::models::timm_config::architecture_of;
use crate::models::{efficientnet_timm, efficientnet_torchvision};
use crate::nn::{Conv2d, SqueezeExcite};
use crate::ops::activation::Function;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope, Store};

/// Stride of a stage's first block, in every EfficientNet and in MobileNetV2 and V3 large; V2-S and its like have six stages.
pub const STRIDES: [usize; 7] = [1, 2, 2, 2, 1, 2, 1];

/// What TensorFlow's checkpoints, torchvision's V2 and V3 and its B5 to B7 add to the variance.
pub const TENSORFLOW_EPS: f64 = 1e-3;

/// One step of a block.
pub enum Part {
    /// A convolution with its batch norm and what follows it. With `is_one_module`, norm and activation are one module
    /// (timm), else the activation's result is that of the module around both (torchvision).
    Conv {
        conv: Conv2d,
        act: Option<Function>,
        is_one_module: bool,
    },
    SqueezeExcite(SqueezeExcite),
}

impl Part {
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        match self {
            Part::SqueezeExcite(se) => se.forward(t, x),
            Part::Conv { conv, act, is_one_module: true } => conv.activated(t, x, *act),
            Part::Conv { conv, act, is_one_module: false } => {
                let h = conv.forward(t, x)?;
                act.map_or(Ok(h), |act| t.activation(h, act))
            }
        }
    }
}

/// A step and the modules that it lies in, from the block on.
pub struct Placed {
    pub within: Vec<String>,
    pub part: Part,
}

/// Steps one after the other, and the block's input added to the last one's result where `skip` is set.
pub struct Block {
    pub name: String,
    pub parts: Vec<Placed>,
    pub skip: bool,
}

impl Block {
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.parts.iter().try_fold(x, |h, placed| nested(t, &placed.within, &mut |t| placed.part.forward(t, h)))?;
            if self.skip { t.add(h, x) } else { Ok(h) }
        })
    }
}

/// `body` in the modules `path`.
fn nested(t: &mut Tape, path: &[String], body: &mut dyn FnMut(&mut Tape) -> Result<Tensor>) -> Result<Tensor> {
    match path.split_first() {
        None => body(t),
        Some((name, rest)) => t.scope(name, |t| nested(t, rest, body)),
    }
}

/// Whether `architecture` is one of these, in either naming.
pub fn is_architecture(architecture: &str) -> bool {
    efficientnet_timm::topology(architecture).is_some() || efficientnet_torchvision::is_architecture(architecture)
}

/// Whether the tensors are named as these are.
fn is_tensors(store: &Store) -> bool {
    let is_timm = ["conv_stem.weight", "bn1.running_mean", "blocks.0.0.bn1.running_mean"].iter().all(|name| store.shape(name).is_some());
    is_timm || efficientnet_torchvision::family_of(store).is_some()
}

/// Loads the weights of `scope`, its root, and closes its account.
pub fn load(config: Option<&Config>, scope: &Scope) -> Result<Classifier> {
    if scope.has("conv_stem.weight") {
        return efficientnet_timm::load(config, scope);
    }
    if let Some(config) = config {
        let architecture = architecture_of(config)?;
        if !efficientnet_torchvision::is_architecture(&architecture) {
            return Err(config.error("architecture", format!("\"{architecture}\", whose weights hold conv_stem.weight; they do not here")));
        }
    }
    efficientnet_torchvision::load(config, scope)
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "EfficientNet or MobileNet classifier",
    is_config: |config| timm_architecture(config).is_some_and(|name| is_architecture(&name)),
    is_tensors: |store| is_tensors(store),
    is_path: |_| false,
    load: |checkpoint| classifier::load(checkpoint, load),
};
