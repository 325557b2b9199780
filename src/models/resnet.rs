//! ResNet classifiers with torchvision's and timm's names, and akamaster's small ones for CIFAR-10.
//! Sources: He et al., "Deep Residual Learning for Image Recognition" (2016); Xie et al., "Aggregated Residual
//! Transformations" (2017, groups); Zagoruyko and Komodakis, "Wide Residual Networks" (2016); He et al., "Bag of Tricks"
//! (2019, the stem of three convolutions and the averaging shortcut); Hu et al. (2018, squeeze and excitation).
//! `torchvision/models/resnet.py`, `timm/models/resnet.py` (stride in the 3x3 convolution of a bottleneck);
//! `akamaster/pytorch_resnet_cifar10/resnet.py`. Batch norms are folded into the convolutions before them.
//!
//! Names and shapes tell almost all of it: depths, widths, groups, which stem, which shortcut, whether channels are
//! weighed. What they cannot tell (pooling for anti-aliasing, another activation) belongs to architectures that are not
//! in the table and are refused by name.

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::classifier::{self, Classifier, Loaded, Network, Prediction, count, last_layer, predict, read_config};
use crate::models::model::{Architecture, timm_architecture};
use crate::models::preprocess::Preprocess;
use crate::nn::{BATCH_NORM_EPS, Conv2d, Linear, SqueezeExcite};
use crate::ops::activation::Function;
use crate::ops::pool2d::Pool2d;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope, Store};

/// The depth that a name says, and what may follow it.
const DEPTHS: [&str; 11] = ["10", "14", "18", "26", "34", "50", "101", "152", "200", "269", "270"];
/// Plain; three convolutions as stem (c, s); those and the averaging shortcut (d, t).
const STEMS: [&str; 5] = ["", "c", "d", "s", "t"];
/// Groups and their width, of ResNeXt.
const CARDINALITIES: [&str; 6] = ["32x4d", "32x8d", "32x16d", "32x32d", "32x48d", "64x4d"];

/// akamaster's names.
const CIFAR: [&str; 6] = ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202"];

/// Whether `architecture` is a plain, ResNeXt, wide or squeeze-and-excitation ResNet with batch norms and ReLU.
pub fn is_architecture(architecture: &str) -> bool {
    let with_stem = |rest: &str| DEPTHS.iter().filter_map(|depth| rest.strip_prefix(depth)).any(|stem| STEMS.contains(&stem));
    let is_next = |rest: &str| rest.rsplit_once('_').is_some_and(|(head, groups)| with_stem(head) && CARDINALITIES.contains(&groups));
    let plain = |name: &str| name.strip_prefix("resnet").is_some_and(with_stem) || name.strip_prefix("resnext").is_some_and(is_next);
    let is_rs = architecture.strip_prefix("resnetrs").is_some_and(|depth| depth.parse::<u16>().is_ok());
    let is_wide = ["wide_resnet50_2", "wide_resnet101_2"].contains(&architecture);
    plain(architecture) || plain(architecture.strip_prefix("se").unwrap_or("")) || is_wide || is_rs || CIFAR.contains(&architecture)
}

/// Whether the tensors are named as a ResNet's are.
fn is_tensors(store: &Store) -> bool {
    let has = |name: &str| store.shape(name).is_some();
    let has_stem = (has("conv1.weight") || has("conv1.0.weight")) && has("bn1.running_mean");
    has_stem && has("layer1.0.conv1.weight") && has("layer1.0.bn1.running_mean") && has("layer3.0.conv1.weight")
}

/// Sizes that a config may repeat in `model_args`: the weights show them.
const SHOWN_BY_THE_WEIGHTS: [&str; 8] = ["layers", "channels", "stem_width", "stem_type", "cardinality", "base_width", "avg_down", "block_reduce_first"];

/// The shortcut of a block.
enum Shortcut {
    Identity,
    /// `0`, `1`: a convolution and its norm, the stride in the convolution.
    Convolution(Conv2d),
    /// `1`, `2`: the mean over 2x2 where the stride is 2, then a 1x1 convolution and its norm.
    Averaging(Conv2d, usize),
    /// Every other pixel, and zeros for the new channels, half before and half behind: "option A" of the paper.
    Padding {
        before: usize,
        after: usize,
    },
}

/// `BasicBlock` (two convolutions) or `Bottleneck` (three).
struct Block {
    name: String,
    convs: Vec<Conv2d>,
    squeeze_excite: Option<SqueezeExcite>,
    shortcut: Shortcut,
}

/// Where a block stands.
#[derive(Clone, Copy)]
struct Place {
    inputs: usize,
    stride: usize,
    /// Of the convolution that would have the stride.
    dilation: usize,
    is_cifar: bool,
}

impl Block {
    fn load(scope: &Scope, place: Place) -> (Block, usize) {
        let Place { inputs, stride, dilation, is_cifar } = place;
        let is_bottleneck = scope.has("conv3.weight");
        let mut width = inputs;
        let mut convs = Vec::new();
        for i in 1..=if is_bottleneck { 3 } else { 2 } {
            let stride = if i == if is_bottleneck { 2 } else { 1 } { stride } else { 1 };
            let conv = Conv2d::as_stored(&scope.child(&format!("conv{i}")), width, stride).dilated(dilation);
            width = conv.outputs();
            convs.push(conv.batch_normed(&scope.child(&format!("bn{i}")), BATCH_NORM_EPS));
        }
        let squeeze_excite = scope.has("se.fc1.weight").then(|| {
            let names = ["fc1", "fc2"];
            SqueezeExcite::load(&scope.child("se"), names, width, Function::Relu, Function::Sigmoid)
        });
        let shortcut = Self::shortcut(scope, inputs, width, stride, is_cifar);
        (Block { name: scope.name().to_string(), convs, squeeze_excite, shortcut }, width)
    }

    fn shortcut(scope: &Scope, inputs: usize, outputs: usize, stride: usize, is_cifar: bool) -> Shortcut {
        let down = scope.child("downsample");
        let is_needed = stride != 1 || inputs != outputs;
        let (shortcut, width) = if is_needed && is_cifar {
            let added = outputs.saturating_sub(inputs);
            if outputs != 2 * inputs {
                scope.fault(&format!("{inputs} channels become {outputs}, expected twice as many without a shortcut's weights"));
            }
            (Shortcut::Padding { before: added / 2, after: added - added / 2 }, inputs + added)
        } else if !is_needed {
            (Shortcut::Identity, outputs)
        } else if down.has("2.running_mean") {
            let conv = Conv2d::as_stored(&down.child("1"), inputs, 1).batch_normed(&down.child("2"), BATCH_NORM_EPS);
            let width = conv.outputs();
            (Shortcut::Averaging(conv, stride), width)
        } else {
            let conv = Conv2d::as_stored(&down.child("0"), inputs, stride).batch_normed(&down.child("1"), BATCH_NORM_EPS);
            let width = conv.outputs();
            (Shortcut::Convolution(conv), width)
        };
        if width != outputs {
            scope.fault(&format!("the shortcut gives {width} channels, expected {outputs}"));
        }
        shortcut
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let mut h = x;
            for (i, conv) in self.convs.iter().enumerate() {
                if i > 0 {
                    h = t.activation(h, Function::Relu)?;
                }
                h = conv.forward(t, h)?;
            }
            if let Some(se) = &self.squeeze_excite {
                h = se.forward(t, h)?;
            }
            let x = self.shortcut.forward(t, x)?;
            let y = t.add(h, x)?;
            t.activation(y, Function::Relu)
        })
    }
}

impl Shortcut {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        match self {
            Shortcut::Identity => Ok(x),
            Shortcut::Convolution(conv) => t.scope("downsample", |t| conv.forward(t, x)),
            Shortcut::Averaging(conv, stride) => t.scope("downsample", |t| {
                let [_, h, w, _] = t.nhwc(x)?;
                let x = if *stride == 1 { x } else { t.scope("0", |t| t.pool2d(x, &Pool2d::mean(2, *stride, 0).covering([h, w])))? };
                conv.forward(t, x)
            }),
            Shortcut::Padding { before, after } => t.scope("shortcut", |t| {
                // A maximum over one pixel takes every other one.
                let x = t.pool2d(x, &Pool2d::max(1, 2, 0))?;
                let zeros = |t: &mut Tape, width: usize| {
                    let part = t.slice(x, 3, 0, width)?;
                    t.affine(part, 0.0, 0.0)
                };
                let mut parts = vec![x];
                if *before > 0 {
                    parts.insert(0, zeros(t, *before)?);
                }
                if *after > 0 {
                    parts.push(zeros(t, *after)?);
                }
                t.concat_axis(&parts, 3)
            }),
        }
    }
}

/// The convolutions before the first stage.
enum Stem {
    /// `conv1`, `bn1`: 7x7 of stride 2, or CIFAR's 3x3 of stride 1.
    One(Conv2d),
    /// `conv1.0` and its norm `conv1.1`, `conv1.3` and `conv1.4`, `conv1.6` and `bn1`: 3x3 each, the first of stride 2.
    Three([Conv2d; 3]),
}

/// What follows the stem.
enum StemPool {
    /// CIFAR: nothing.
    None,
    Max,
    /// `maxpool.0`, `maxpool.1`: a 3x3 convolution of stride 2 instead.
    Convolution(Conv2d),
}

/// How far the last stages of a backbone shrink the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shrink {
    /// By two in each stage after the first.
    Every,
    /// torchvision's `replace_stride_with_dilation=[False, True, True]`: the third and the fourth stage keep the size, and their
    /// taps lie two and four pixels apart, in their first blocks one and two.
    Dilated,
}

/// Convolutions up to the last feature map: what classifiers and segmenters share.
pub struct Backbone {
    stem: Stem,
    stem_pool: StemPool,
    layers: Vec<Vec<Block>>,
    /// Channels behind the stem and behind each layer.
    pub widths: Vec<usize>,
}

impl Backbone {
    /// The first `stages` layers of `scope`. CIFAR's form keeps the image in its stem and weighs no shortcut.
    pub fn load(scope: &Scope, stages: usize, is_cifar: bool, shrink: Shrink) -> Backbone {
        let (stem, stem_pool, mut width) = Self::load_stem(scope, is_cifar);
        let mut widths = vec![width];
        let mut layers = Vec::new();
        for stage in 1..=stages {
            let layer = scope.child(&format!("layer{stage}"));
            let is_dilated = shrink == Shrink::Dilated && stage > 2;
            let (before, dilation) = if is_dilated { (1 << (stage - 3), 1 << (stage - 2)) } else { (1, 1) };
            let mut blocks = Vec::new();
            // A stage has one block at least: a file without it is then told what is missing.
            for i in 0..count(&layer, &["conv1.weight"]).max(1) {
                let stride = if stage > 1 && i == 0 && !is_dilated { 2 } else { 1 };
                let place = Place { inputs: width, stride, dilation: if i == 0 { before } else { dilation }, is_cifar };
                let (block, outputs) = Block::load(&layer.child(&i.to_string()), place);
                width = outputs;
                blocks.push(block);
            }
            layers.push(blocks);
            widths.push(width);
        }
        Backbone { stem, stem_pool, layers, widths }
    }

    /// Channels of the last feature map.
    pub fn width(&self) -> usize {
        self.widths.last().copied().unwrap_or(0)
    }

    /// Blocks of each layer.
    pub fn depths(&self) -> Vec<usize> {
        self.layers.iter().map(Vec::len).collect()
    }

    /// The feature maps behind the stem, before its pooling, and behind each layer.
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Vec<Tensor>> {
        let stem = self.stem(t, x)?;
        let mut maps = vec![stem];
        let mut h = self.pooled(t, stem)?;
        for (i, blocks) in self.layers.iter().enumerate() {
            h = t.scope(&format!("layer{}", i + 1), |t| blocks.iter().try_fold(h, |h, block| block.forward(t, h)))?;
            maps.push(h);
        }
        Ok(maps)
    }

    fn load_stem(scope: &Scope, is_cifar: bool) -> (Stem, StemPool, usize) {
        let normed =
            |conv: &str, norm: &str, inputs, stride| Conv2d::as_stored(&scope.child(conv), inputs, stride).batch_normed(&scope.child(norm), BATCH_NORM_EPS);
        let stem = if scope.has("conv1.0.weight") {
            let inner = scope.child("conv1");
            let first = Conv2d::as_stored(&inner.child("0"), 3, 2).batch_normed(&inner.child("1"), BATCH_NORM_EPS);
            let second = Conv2d::as_stored(&inner.child("3"), first.outputs(), 1).batch_normed(&inner.child("4"), BATCH_NORM_EPS);
            let third = normed("conv1.6", "bn1", second.outputs(), 1);
            Stem::Three([first, second, third])
        } else {
            Stem::One(normed("conv1", "bn1", 3, if is_cifar { 1 } else { 2 }))
        };
        let width = match &stem {
            Stem::One(conv) | Stem::Three([.., conv]) => conv.outputs(),
        };
        let pool = if is_cifar {
            StemPool::None
        } else if scope.has("maxpool.0.weight") {
            let inner = scope.child("maxpool");
            StemPool::Convolution(Conv2d::as_stored(&inner.child("0"), width, 2).batch_normed(&inner.child("1"), BATCH_NORM_EPS))
        } else {
            StemPool::Max
        };
        (stem, pool, width)
    }

    fn stem(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let h = match &self.stem {
            Stem::One(conv) => conv.forward(t, x)?,
            Stem::Three([first, second, third]) => {
                let h = t.within("conv1", |t| {
                    let h = first.forward(t, x)?;
                    let h = t.activation(h, Function::Relu)?;
                    let h = second.forward(t, h)?;
                    t.activation(h, Function::Relu)
                })?;
                third.forward(t, h)?
            }
        };
        t.activation(h, Function::Relu)
    }

    fn pooled(&self, t: &mut Tape, h: Tensor) -> Result<Tensor> {
        match &self.stem_pool {
            StemPool::None => Ok(h),
            StemPool::Max => t.scope("maxpool", |t| t.pool2d(h, &Pool2d::max(3, 2, 1))),
            StemPool::Convolution(conv) => t.scope("maxpool", |t| {
                let h = conv.forward(t, h)?;
                t.activation(h, Function::Relu)
            }),
        }
    }
}

struct ResNet {
    backbone: Backbone,
    fc: Option<Linear>,
}

impl Network for ResNet {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Prediction> {
        let maps = self.backbone.forward(t, x)?;
        let features = t.scope("avgpool", |t| t.global_average_pool(maps[maps.len() - 1]))?;
        predict(t, features, self.fc.as_ref())
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        vec![("blocks", json!(self.backbone.depths()))]
    }
}

/// Loads the weights of `scope`, its root, and closes its account.
pub fn load(config: Option<&Config>, scope: &Scope) -> Result<Classifier> {
    let (timm, ()) = read_config(config, |arguments| {
        arguments.ignore(&SHOWN_BY_THE_WEIGHTS);
        Ok(())
    })?;
    // Three stages without a pool before them are the CIFAR form; its last layer is `linear`.
    let is_cifar = !scope.has("layer4.0.conv1.weight") && scope.has("linear.weight");
    let backbone = Backbone::load(scope, if is_cifar { 3 } else { 4 }, is_cifar, Shrink::Every);
    let width = backbone.width();
    let (fc, num_classes) = last_layer(scope, if is_cifar { "linear" } else { "fc" }, width, timm.as_ref());
    let size = if is_cifar { 32 } else { 224 };
    let preprocess = Preprocess { crop_pct: if is_cifar { 1.0 } else { 0.875 }, ..Preprocess::assumed(size) };
    let network = Box::new(ResNet { backbone, fc });
    Classifier::new("ResNet", timm, scope, Loaded { network, num_features: width, feature_map: width, num_classes, preprocess })
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "ResNet classifier",
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
            "resnet18",
            "resnet50",
            "resnet152",
            "resnet50d",
            "resnet26t",
            "resnet101s",
            "resnext50_32x4d",
            "resnext101_64x4d",
            "resnext50d_32x4d",
            "wide_resnet50_2",
            "seresnet50",
            "seresnext26d_32x4d",
            "seresnet152d",
            "resnetrs50",
            "resnet20",
        ];
        let others = [
            "resnet50_gn",
            "resnetaa50",
            "resnetblur50",
            "resnetv2_50",
            "resnet33ts",
            "ecaresnet50d",
            "legacy_seresnet50",
            "resnest50d",
            "resnet50_clip",
            "se",
        ];
        assert!(ours.iter().all(|name| is_architecture(name)), "{ours:?}");
        assert!(!others.iter().any(|name| is_architecture(name)), "{others:?}");
    }
}
