//! ConvNeXt V1 and V2 with timm's names, and V1 with torchvision's.
//! Sources: Liu et al., "A ConvNet for the 2020s" (2022); Woo et al., "ConvNeXt V2" (2023, the global response norm);
//! `timm/models/convnext.py`, `torchvision/models/convnext.py`.
//!
//! Names and shapes tell depths, widths, kernels, the stem, layer scales, the response norm and the head. What they cannot
//! tell (another activation, RMS norms, another constant in the norms) belongs to architectures refused by name.

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::classifier::{self, Classifier, Loaded, Network, Prediction, count, last_layer, predict, read_config};
use crate::models::model::{Architecture, timm_architecture};
use crate::models::preprocess::Preprocess;
use crate::nn::{Conv2d, LayerNorm, Linear};
use crate::ops::activation::Function;
use crate::ops::reduce::Reduction;
use crate::plan::{Layout, Tape, Tensor, Weight};
use crate::weights::{Config, Scope, Store};

/// Added to the variance; [`XXLARGE`]'s is OpenCLIP's.
const EPS: f32 = 1e-6;
const XXLARGE: &str = "convnext_xxlarge";
const XXLARGE_EPS: f32 = 1e-5;
/// Added to the mean of the response norm.
const RESPONSE_EPS: f32 = 1e-6;
const STAGES: usize = 4;

/// Sizes of the first version. `_ols` has a stem of overlapping windows, `_hnf` its norm before the pooling, `_mlp` a hidden layer in the head.
const V1: [&str; 16] = [
    "atto",
    "atto_ols",
    "femto",
    "femto_ols",
    "pico",
    "pico_ols",
    "nano",
    "nano_ols",
    "tiny",
    "tiny_hnf",
    "small",
    "base",
    "large",
    "large_mlp",
    "xlarge",
    "xxlarge",
];
const V2: [&str; 9] = ["atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "huge"];
/// Ends of names from before timm had tags.
const OLD_TAGS: [&str; 3] = ["_384_in22ft1k", "_in22ft1k", "_in22k"];

/// Whether `architecture` is a ConvNeXt with layer norms and GELU.
pub fn is_architecture(architecture: &str) -> bool {
    let name = OLD_TAGS.iter().find_map(|tag| architecture.strip_suffix(tag)).unwrap_or(architecture);
    name.strip_prefix("convnext_").is_some_and(|size| V1.contains(&size)) || name.strip_prefix("convnextv2_").is_some_and(|size| V2.contains(&size))
}

/// Whether the tensors are named as a ConvNeXt's are.
fn is_tensors(store: &Store) -> bool {
    let has = |name: &str| store.shape(name).is_some();
    (has("stem.0.weight") && has("stages.0.blocks.0.conv_dw.weight")) || (has("features.0.0.weight") && has("features.1.0.layer_scale"))
}

/// Where the two libraries put the same thing.
struct Names {
    stem: &'static str,
    conv: &'static str,
    norm: &'static str,
    fc: [&'static str; 2],
    gamma: &'static str,
    head_norm: &'static str,
    head: &'static str,
}

const TIMM: Names = Names { stem: "stem", conv: "conv_dw", norm: "norm", fc: ["mlp.fc1", "mlp.fc2"], gamma: "gamma", head_norm: "head.norm", head: "head.fc" };

const TORCHVISION: Names = Names {
    stem: "features.0",
    conv: "block.0",
    norm: "block.2",
    fc: ["block.3", "block.5"],
    gamma: "layer_scale",
    head_norm: "classifier.0",
    head: "classifier.2",
};

/// The same map at every pixel, as a linear layer or as a convolution of 1x1.
enum Pointwise {
    Linear(Linear),
    Conv(Conv2d),
}

impl Pointwise {
    /// And its output channels.
    fn load(scope: &Scope, inputs: usize) -> (Pointwise, usize) {
        match scope.shape("weight") {
            Some(&[_, _, _, _]) => {
                let conv = Conv2d::as_stored(scope, inputs, 1);
                let outputs = conv.outputs();
                (Pointwise::Conv(conv), outputs)
            }
            shape => {
                let outputs = shape.and_then(|s| s.first()).copied().unwrap_or(inputs);
                (Pointwise::Linear(Linear::load(scope, inputs, outputs)), outputs)
            }
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        match self {
            Pointwise::Linear(layer) => layer.forward(t, x),
            Pointwise::Conv(conv) => conv.forward(t, x),
        }
    }
}

/// Global response normalisation (V2, equations 1 to 3): x + weight x n + bias, n = |x| / mean over the channels of |x|,
/// |x| the l2 norm of a channel over the image.
struct ResponseNorm {
    name: &'static str,
    weight: Weight,
    bias: Weight,
}

impl ResponseNorm {
    fn load(scope: &Scope, name: &'static str, channels: usize) -> ResponseNorm {
        let part = scope.child(name);
        let [weight, bias] = ["weight", "bias"].map(|field| part.weight(field, &[channels], Layout::Plain));
        ResponseNorm { name, weight, bias }
    }

    /// x: `[N, H, W, C]`.
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(self.name, |t| {
            let [n, h, w, c] = t.nhwc(x)?;
            let (weight, bias) = (t.weight(&self.weight), t.weight(&self.bias));
            let pixels = t.reshape(x, &[n, h * w, c])?;
            let norms = t.reduce(pixels, 1, Reduction::L2)?;
            let mean = t.reduce(norms, 1, Reduction::Mean)?;
            let mean = t.affine(mean, 1.0, RESPONSE_EPS)?;
            let mean = t.reshape(mean, &[n, 1])?;
            let response = t.div(norms, mean)?;
            let scale = t.mul(response, weight)?;
            let scale = t.affine(scale, 1.0, 1.0)?;
            let scale = t.reshape(scale, &[n, 1, 1, c])?;
            let y = t.mul(x, scale)?;
            t.add(y, bias)
        })
    }
}

/// x + gamma fc2(grn(gelu(fc1(norm(conv(x)))))).
struct Block {
    name: String,
    conv: Conv2d,
    norm: LayerNorm,
    fc1: Pointwise,
    grn: Option<ResponseNorm>,
    fc2: Pointwise,
    gamma: Option<Weight>,
}

impl Block {
    fn load(scope: &Scope, names: &Names, width: usize, eps: f32) -> Block {
        let conv = Conv2d::as_stored(&scope.child(names.conv), width, 1);
        if conv.geometry.groups != width || conv.outputs() != width {
            scope.fault(&format!(
                "{} has {} groups and {} outputs, expected one of each per channel of {width}",
                names.conv,
                conv.geometry.groups,
                conv.outputs()
            ));
        }
        let (fc1, hidden) = Pointwise::load(&scope.child(names.fc[0]), width);
        let (fc2, outputs) = Pointwise::load(&scope.child(names.fc[1]), hidden);
        if outputs != width {
            scope.fault(&format!("{} gives {outputs} channels, expected {width}", names.fc[1]));
        }
        // torchvision's has two axes of one behind the channels.
        let gamma = scope.shape(names.gamma).map(<[usize]>::len).map(|rank| {
            let shape = if rank == 3 { vec![width, 1, 1] } else { vec![width] };
            scope.weight(names.gamma, &shape, Layout::Plain)
        });
        Block {
            name: scope.name().to_string(),
            conv,
            norm: LayerNorm::load(&scope.child(names.norm), width, eps),
            fc1,
            grn: scope.has("mlp.grn.weight").then(|| ResponseNorm::load(scope, "mlp.grn", hidden)),
            fc2,
            gamma,
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.conv.forward(t, x)?;
            let h = self.norm.forward(t, h)?;
            let h = self.fc1.forward(t, h)?;
            let mut h = t.activation(h, Function::Gelu)?;
            if let Some(grn) = &self.grn {
                h = grn.forward(t, h)?;
            }
            let mut h = self.fc2.forward(t, h)?;
            if let Some(gamma) = &self.gamma {
                let gamma = t.weight(gamma);
                let channels = t.shape(gamma).numel();
                let gamma = t.reshape(gamma, &[channels])?;
                h = t.mul(h, gamma)?;
            }
            t.add(h, x)
        })
    }
}

/// A norm and a convolution of 2x2 with stride 2.
struct Downsample {
    name: String,
    norm: LayerNorm,
    conv: Conv2d,
}

impl Downsample {
    fn load(scope: &Scope, width: usize, eps: f32) -> Downsample {
        let norm = LayerNorm::load(&scope.child("0"), width, eps);
        let conv = Conv2d::as_stored(&scope.child("1"), width, 2).unpadded();
        Downsample { name: scope.name().to_string(), norm, conv }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.norm.forward(t, x)?;
            self.conv.forward(t, h)
        })
    }
}

/// One convolution over patches, or two of 3x3 with stride 2; and a norm.
struct Stem {
    name: &'static str,
    convs: Vec<Conv2d>,
    norm: LayerNorm,
}

impl Stem {
    /// And its width.
    fn load(scope: &Scope, names: &Names, eps: f32) -> (Stem, usize) {
        let inner = scope.child(names.stem);
        let first = inner.child("0");
        let mut convs = Vec::new();
        let (norm, width) = if inner.has("2.weight") {
            convs.push(Conv2d::as_stored(&first, 3, 2));
            convs.push(Conv2d::as_stored(&inner.child("1"), convs[0].outputs(), 2));
            ("2", convs[1].outputs())
        } else {
            let patch = first.shape("weight").and_then(|s| s.last()).copied().unwrap_or(4).max(1);
            convs.push(Conv2d::as_stored(&first, 3, patch).unpadded());
            ("1", convs[0].outputs())
        };
        (Stem { name: names.stem, convs, norm: LayerNorm::load(&inner.child(norm), width, eps) }, width)
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(self.name, |t| {
            let h = self.convs.iter().try_fold(x, |h, conv| conv.forward(t, h))?;
            self.norm.forward(t, h)
        })
    }
}

/// Blocks, and what makes the image smaller before them.
struct Stage {
    /// timm's module around both.
    name: Option<String>,
    downsample: Option<Downsample>,
    /// Of the blocks.
    within: String,
    blocks: Vec<Block>,
}

impl Stage {
    /// And its width. torchvision counts the downsamplings among the stages.
    fn load(scope: &Scope, names: &Names, at: usize, width: usize, eps: f32) -> (Stage, usize) {
        let is_timm = names.stem == TIMM.stem;
        let (name, downsample, blocks) = if is_timm {
            let name = format!("stages.{at}");
            let stage = scope.child(&name);
            (Some(name), stage.child("downsample"), stage.child("blocks"))
        } else {
            (None, scope.child(&format!("features.{}", 2 * at)), scope.child(&format!("features.{}", 2 * at + 1)))
        };
        let is_smaller = at > 0 || (is_timm && downsample.has("1.weight"));
        let downsample = is_smaller.then(|| Downsample::load(&downsample, width, eps));
        let width = downsample.as_ref().map_or(width, |d| d.conv.outputs());
        let marks = [format!("{}.weight", names.conv)];
        // A stage has one block at least: a file without it is then told what is missing.
        let depth = count(&blocks, &marks.each_ref().map(String::as_str)).max(1);
        let within = blocks.name().to_string();
        let blocks = (0..depth).map(|i| Block::load(&blocks.child(&i.to_string()), names, width, eps)).collect();
        (Stage { name, downsample, within, blocks }, width)
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        match &self.name {
            Some(name) => t.scope(name, |t| self.inner(t, x)),
            None => self.inner(t, x),
        }
    }

    fn inner(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let h = self.downsample.as_ref().map_or(Ok(x), |d| d.forward(t, x))?;
        t.scope(&self.within, |t| self.blocks.iter().try_fold(h, |h, block| block.forward(t, h)))
    }
}

/// The norm before the last layers.
enum HeadNorm {
    /// Of the mean over the image.
    Pooled(LayerNorm),
    /// `norm_pre`: of every pixel, the mean after it.
    Before(LayerNorm),
}

struct ConvNeXt {
    stem: Stem,
    stages: Vec<Stage>,
    norm: HeadNorm,
    /// `head.pre_logits.fc`, GELU behind it.
    hidden: Option<Linear>,
    fc: Option<Linear>,
}

impl Network for ConvNeXt {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Prediction> {
        let mut h = self.stem.forward(t, x)?;
        for stage in &self.stages {
            h = stage.forward(t, h)?;
        }
        let mut features = match &self.norm {
            HeadNorm::Before(norm) => {
                let h = norm.forward(t, h)?;
                t.global_average_pool(h)?
            }
            HeadNorm::Pooled(norm) => {
                let mean = t.global_average_pool(h)?;
                norm.forward(t, mean)?
            }
        };
        if let Some(hidden) = &self.hidden {
            let h = hidden.forward(t, features)?;
            features = t.activation(h, Function::Gelu)?;
        }
        predict(t, features, self.fc.as_ref())
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let depths: Vec<usize> = self.stages.iter().map(|stage| stage.blocks.len()).collect();
        vec![("blocks", json!(depths))]
    }
}

/// Fields of `model_args` that the weights show.
const SHOWN_BY_THE_WEIGHTS: [&str; 11] = [
    "depths",
    "dims",
    "kernel_sizes",
    "ls_init_value",
    "stem_type",
    "patch_size",
    "head_init_scale",
    "head_norm_first",
    "head_hidden_size",
    "conv_mlp",
    "use_grn",
];

/// The constant in the norms, where `model_args` says it.
fn read_arguments(c: &Config) -> Result<Option<f32>> {
    c.ignore(&SHOWN_BY_THE_WEIGHTS);
    c.integer("output_stride", 32, 32..=32)?;
    if !c.flag("conv_bias", true)? {
        return Err(c.error("conv_bias", "false, expected true"));
    }
    c.require_or_absent("act_layer", "gelu")?;
    c.nullable_choice("norm_layer", None, &[("layernorm", ()), ("layernorm2d", ())])?;
    let eps = c.has("norm_eps").then(|| c.number("norm_eps", None, 1e-12..=0.1)).transpose()?;
    Ok(eps.map(|eps| eps as f32))
}

/// Loads the weights of `scope`, its root, and closes its account.
fn load(config: Option<&Config>, scope: &Scope) -> Result<Classifier> {
    let (timm, told) = read_config(config, read_arguments)?;
    let is_xxlarge = timm.as_ref().is_some_and(|c| c.architecture == XXLARGE);
    let eps = told.unwrap_or(if is_xxlarge { XXLARGE_EPS } else { EPS });
    let names = if scope.has("stem.0.weight") { &TIMM } else { &TORCHVISION };
    let (stem, mut width) = Stem::load(scope, names, eps);
    let mut stages = Vec::new();
    for at in 0..STAGES {
        let (stage, outputs) = Stage::load(scope, names, at, width, eps);
        stages.push(stage);
        width = outputs;
    }
    let norm = if scope.has("norm_pre.weight") {
        HeadNorm::Before(LayerNorm::load(&scope.child("norm_pre"), width, eps))
    } else {
        HeadNorm::Pooled(LayerNorm::load(&scope.child(names.head_norm), width, eps))
    };
    let hidden = scope.child("head.pre_logits.fc");
    let hidden = hidden.shape("weight").and_then(|s| s.first()).map(|&outputs| (Linear::load(&hidden, width, outputs), outputs));
    let num_features = hidden.as_ref().map_or(width, |(_, outputs)| *outputs);
    let (fc, num_classes) = last_layer(scope, names.head, num_features, timm.as_ref());
    let mut preprocess = Preprocess::assumed(224);
    if names.stem == TIMM.stem {
        preprocess.interpolation = "bicubic".to_string();
    }
    let network = Box::new(ConvNeXt { stem, stages, norm, hidden: hidden.map(|(layer, _)| layer), fc });
    Classifier::new("ConvNeXt", timm, scope, Loaded { network, num_features, feature_map: width, num_classes, preprocess })
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "ConvNeXt classifier",
    is_config: |config| timm_architecture(config).is_some_and(|name| is_architecture(&name)),
    is_tensors: |store| is_tensors(store),
    is_path: |_| false,
    load: |checkpoint| classifier::load(checkpoint, load),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_told_apart_by_name() {
        let ours = [
            "convnext_tiny",
            "convnext_atto_ols",
            "convnext_tiny_hnf",
            "convnext_large_mlp",
            "convnext_tiny_384_in22ft1k",
            "convnext_base_in22k",
            "convnextv2_huge",
        ];
        let others = ["convnext_zepto_rms", "convnext_zepto_rms_ols", "convnext_atto_rms", "test_convnext", "convnextv2_atto_ols", "convnext", "convnext_"];
        assert!(ours.iter().all(|name| is_architecture(name)), "{ours:?}");
        assert!(!others.iter().any(|name| is_architecture(name)), "{others:?}");
    }

    #[test]
    fn arguments_that_change_the_network_are_refused() {
        let read = |text: &str| read_arguments(&Config::parse(text, "model_args").unwrap()).map_err(|e| e.to_string());
        assert_eq!(read(r#"{"conv_mlp": true, "dims": [1], "norm_eps": 1e-5}"#), Ok(Some(1e-5)));
        assert_eq!(read(r#"{"norm_layer": "layernorm2d", "act_layer": "gelu"}"#), Ok(None));
        for (text, want) in [
            (r#"{"act_layer": "silu"}"#, "model_args: act_layer: \"silu\", expected \"gelu\""),
            (r#"{"norm_layer": "rmsnorm"}"#, "model_args: norm_layer: \"rmsnorm\", expected one of"),
            (r#"{"output_stride": 16}"#, "model_args: output_stride: 16, expected an integer from 32 to 32"),
            (r#"{"conv_bias": false}"#, "model_args: conv_bias: false, expected true"),
            (r#"{"norm_eps": 0}"#, "model_args: norm_eps: 0, expected a number from"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(want), "{error}");
        }
    }
}
