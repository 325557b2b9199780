//! Inverted residuals in torchvision's names: `features.3.conv.1.0` (MobileNetV2), `features.3.block.1.0` (MobileNetV3),
//! `features.3.1.block.1.0` (EfficientNet), `classifier`.
//! Source: `torchvision/models/mobilenetv2.py`, `mobilenetv3.py`, `efficientnet.py`.

use serde_json::{Value, json};

use crate::base::{Error, Kind, Result};
use crate::models::classifier::{Classifier, Loaded, Network, Prediction, count, last_layer, predict, read_config};
use crate::models::efficientnet::{Block, Part, Placed, STRIDES, TENSORFLOW_EPS};
use crate::models::preprocess::Preprocess;
use crate::models::timm_config::TimmConfig;
use crate::nn::{BATCH_NORM_EPS, Conv2d, Linear, SqueezeExcite};
use crate::ops::activation::Function;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope, Store};

/// Strides of the blocks of MobileNetV2, V3 large and V3 small.
const MOBILE2_STRIDES: [usize; 17] = [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1];
const LARGE_STRIDES: [usize; 15] = [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1];
const SMALL_STRIDES: [usize; 11] = [2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1];
/// Blocks per stage of B0 to B7: they tell the eps when the name does not.
const DEPTHS: [[usize; 7]; 8] = [
    [1, 2, 2, 3, 3, 4, 1],
    [2, 3, 3, 4, 4, 5, 2],
    [2, 3, 3, 4, 4, 5, 2],
    [2, 3, 3, 5, 5, 6, 2],
    [2, 4, 4, 6, 6, 8, 2],
    [3, 5, 5, 7, 7, 9, 3],
    [3, 6, 6, 8, 8, 11, 3],
    [4, 7, 7, 10, 10, 13, 4],
];
/// The first of B0 to B7 whose batch norms have TensorFlow's eps.
const FIRST_WITH_TENSORFLOW_EPS: usize = 5;

/// Whether `architecture` is a name of torchvision's.
pub fn is_architecture(architecture: &str) -> bool {
    let is_b = architecture.strip_prefix("efficientnet_b").is_some_and(|n| n.parse::<usize>().is_ok_and(|n| n < DEPTHS.len()));
    is_b || ["efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"].contains(&architecture)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Mobile2,
    Mobile3,
    Efficient,
}

/// What the tensors are named as.
pub fn family_of(store: &Store) -> Option<Family> {
    let has = |names: &[&str]| names.iter().all(|name| store.shape(name).is_some());
    if !has(&["features.0.0.weight", "features.0.1.running_mean"]) {
        None
    } else if has(&["features.1.conv.0.0.weight", "features.1.conv.2.running_mean"]) {
        Some(Family::Mobile2)
    } else if has(&["features.1.block.0.0.weight", "features.2.block.0.0.weight"]) {
        Some(Family::Mobile3)
    } else if has(&["features.1.0.block.0.0.weight", "features.2.0.block.0.0.weight"]) {
        Some(Family::Efficient)
    } else {
        None
    }
}

/// What the blocks of a model have in common.
#[derive(Clone, Copy)]
struct Style {
    eps: f64,
    /// Activation and gate of squeeze and excitation.
    squeeze: (Function, Function),
}

impl Style {
    /// `{at}.0`, a convolution, and `{at}.1`, its norm, as the module `at`.
    fn conv_norm(&self, scope: &Scope, inputs: usize, stride: usize) -> Conv2d {
        Conv2d::as_stored(&scope.child("0"), inputs, stride).batch_normed(&scope.child("1"), self.eps)
    }

    /// The block whose steps are `{list}.0`, `{list}.1`, ... The stride is that of the first convolution wider than a pixel;
    /// the last one has no activation, unless it is the only one.
    fn block(&self, scope: &Scope, list: &str, inputs: usize, stride: usize, act: Function) -> (Block, usize) {
        let steps = scope.child(list);
        let (mut width, mut parts, mut stride_left) = (inputs, Vec::new(), Some(stride));
        let total = count(&steps, &["0.weight", "weight", "fc1.weight"]).max(1);
        // In MobileNetV2 the last convolution and its norm are two steps of the list.
        let ends_in_two = steps.has(&format!("{}.running_mean", total - 1));
        let length = if ends_in_two { total - 1 } else { total };
        for i in 0..length {
            let step = steps.child(&i.to_string());
            let within = |inner: bool| if inner { vec![list.to_string(), i.to_string()] } else { vec![list.to_string()] };
            if step.has("fc1.weight") {
                let (inner, gate) = self.squeeze;
                let se = SqueezeExcite::load(&step, ["fc1", "fc2"], width, inner, gate);
                parts.push(Placed { within: within(false), part: Part::SqueezeExcite(se) });
                continue;
            }
            let is_bare = ends_in_two && i + 1 == length;
            let shape = if is_bare { step.shape("weight") } else { step.shape("0.weight") };
            let stride = if shape.is_some_and(|s| s.len() == 4 && s[2] > 1) { stride_left.take().unwrap_or(1) } else { 1 };
            let conv = if is_bare {
                Conv2d::as_stored(&step, width, stride).batch_normed(&steps.child(&(i + 1).to_string()), self.eps)
            } else {
                self.conv_norm(&step, width, stride)
            };
            width = conv.outputs();
            let act = (i + 1 < length || length == 1).then_some(act);
            parts.push(Placed { within: within(!is_bare), part: Part::Conv { conv, act, is_one_module: false } });
        }
        if stride_left.is_some_and(|s| s != 1) {
            scope.fault("no convolution is wider than a pixel, expected one that takes the stride");
        }
        let skip = stride == 1 && inputs == width;
        (Block { name: scope.name().to_string(), parts, skip }, width)
    }
}

/// The layers `features.1` on: blocks, or stages of blocks.
enum Body {
    Blocks(Vec<Block>),
    Stages(Vec<Vec<Block>>),
}

struct MobileNet {
    act: Function,
    stem: Conv2d,
    body: Body,
    /// The last convolution and its place in `features`.
    last: (usize, Conv2d),
    /// `classifier.0` of MobileNetV3.
    hidden: Option<Linear>,
    classifier: Option<Linear>,
}

impl MobileNet {
    fn features(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let normed = |t: &mut Tape, at: usize, conv: &Conv2d, x: Tensor| {
            t.scope(&at.to_string(), |t| {
                let h = conv.forward(t, x)?;
                t.activation(h, self.act)
            })
        };
        let h = normed(t, 0, &self.stem, x)?;
        let h = match &self.body {
            Body::Blocks(blocks) => blocks.iter().try_fold(h, |h, block| block.forward(t, h))?,
            Body::Stages(stages) => {
                let stage = |t: &mut Tape, h, (i, blocks): (usize, &Vec<Block>)| {
                    t.scope(&(i + 1).to_string(), |t| blocks.iter().try_fold(h, |h, block| block.forward(t, h)))
                };
                stages.iter().enumerate().try_fold(h, |h, numbered| stage(t, h, numbered))?
            }
        };
        normed(t, self.last.0, &self.last.1, h)
    }
}

impl Network for MobileNet {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Prediction> {
        let h = t.scope("features", |t| self.features(t, x))?;
        let mut features = t.scope("avgpool", |t| t.global_average_pool(h))?;
        t.within("classifier", |t| {
            if let Some(hidden) = &self.hidden {
                let h = hidden.forward(t, features)?;
                features = t.scope("1", |t| t.activation(h, Function::HardSwish))?;
            }
            predict(t, features, self.classifier.as_ref())
        })
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let depths = match &self.body {
            Body::Blocks(blocks) => vec![blocks.len()],
            Body::Stages(stages) => stages.iter().map(Vec::len).collect(),
        };
        vec![("blocks", json!(depths))]
    }
}

/// Loads the weights of `scope`, its root, and closes its account.
pub fn load(config: Option<&Config>, scope: &Scope) -> Result<Classifier> {
    let (timm, ()) = read_config(config, |_| Ok(()))?;
    match family_of(scope.store()) {
        Some(Family::Mobile2) => load_mobile(timm, scope, Family::Mobile2),
        Some(Family::Mobile3) => load_mobile(timm, scope, Family::Mobile3),
        Some(Family::Efficient) => load_efficient(timm, scope),
        None => {
            let fact = "no tensors named as torchvision's or timm's MobileNet or EfficientNet has them, expected features.0.0.weight or conv_stem.weight";
            Err(Error::new(Kind::Weights, "classifier", fact).remark(scope.store().place()))
        }
    }
}

fn load_mobile(timm: Option<TimmConfig>, scope: &Scope, family: Family) -> Result<Classifier> {
    let features = scope.child("features");
    let list = if family == Family::Mobile2 { "conv" } else { "block" };
    let blocks_found = (1..).take_while(|i| features.has(&format!("{i}.{list}.0.0.weight"))).count();
    let (strides, relu_blocks): (&[usize], usize) = match (family, blocks_found) {
        (Family::Mobile2, 17) => (&MOBILE2_STRIDES, 0),
        (Family::Mobile3, 15) => (&LARGE_STRIDES, 6),
        (Family::Mobile3, 11) => (&SMALL_STRIDES, 3),
        (_, other) => {
            let expected = if family == Family::Mobile2 { "17 as MobileNetV2 has" } else { "15 or 11 as MobileNetV3 large or small has" };
            return Err(Error::new(Kind::Weights, "classifier", format!("{other} blocks, expected {expected}")).remark(scope.store().place()));
        }
    };
    let (act, style, name) = match family {
        Family::Mobile2 => (Function::Relu6, Style { eps: BATCH_NORM_EPS, squeeze: (Function::Relu, Function::Sigmoid) }, "MobileNetV2"),
        _ => (Function::HardSwish, Style { eps: TENSORFLOW_EPS, squeeze: (Function::Relu, Function::HardSigmoid) }, "MobileNetV3"),
    };
    let stem = style.conv_norm(&features.child("0"), 3, 2);
    let mut width = stem.outputs();
    let mut blocks = Vec::new();
    for (i, &stride) in strides.iter().enumerate() {
        let act = if i < relu_blocks { Function::Relu } else { act };
        let (block, outputs) = style.block(&features.child(&(i + 1).to_string()), list, width, stride, act);
        width = outputs;
        blocks.push(block);
    }
    let at = blocks.len() + 1;
    let last = style.conv_norm(&features.child(&at.to_string()), width, 1);
    let feature_map = last.outputs();
    let hidden = (family == Family::Mobile3).then(|| {
        let layer = scope.child("classifier.0").named("0");
        let outputs = layer.shape("bias").and_then(|s| s.first()).copied().unwrap_or(0);
        Linear::load(&layer, feature_map, outputs)
    });
    let num_features = hidden.as_ref().and_then(|h| h.weight.dims().last().copied()).unwrap_or(feature_map);
    let (classifier, num_classes) = last_of_list(scope, if hidden.is_some() { 3 } else { 1 }, num_features, timm.as_ref());
    let network = Box::new(MobileNet { act, stem, body: Body::Blocks(blocks), last: (at, last), hidden, classifier });
    Classifier::new(name, timm, scope, Loaded { network, num_features, feature_map, num_classes, preprocess: Preprocess::assumed(224) })
}

/// `classifier.{at}`, which the tape knows as `{at}` in the module `classifier`.
fn last_of_list(scope: &Scope, at: usize, inputs: usize, timm: Option<&TimmConfig>) -> (Option<Linear>, usize) {
    if scope.has("classifier.weight") {
        // Fine-tuned with a single layer in the list's place.
        return last_layer(scope, "classifier", inputs, timm);
    }
    last_layer(&scope.child("classifier"), &at.to_string(), inputs, timm)
}

fn load_efficient(timm: Option<TimmConfig>, scope: &Scope) -> Result<Classifier> {
    let features = scope.child("features");
    let mark = ["block.0.0.weight"];
    let depths: Vec<usize> = (1..=STRIDES.len()).map(|s| count(&features.child(&s.to_string()), &mark)).take_while(|&n| n > 0).collect();
    // The first block of V2 is one plain convolution; that of B0 to B7 weighs its channels.
    let is_v2 = !features.has("1.0.block.1.fc1.weight");
    let eps = if is_v2 { TENSORFLOW_EPS } else { efficient_eps(timm.as_ref(), &depths, scope)? };
    let style = Style { eps, squeeze: (Function::Silu, Function::Sigmoid) };
    let stem = style.conv_norm(&features.child("0"), 3, 2);
    let mut width = stem.outputs();
    let mut stages = Vec::new();
    for (s, &depth) in depths.iter().enumerate() {
        let stage = features.child(&(s + 1).to_string());
        let mut blocks = Vec::new();
        for b in 0..depth {
            let (block, outputs) = style.block(&stage.child(&b.to_string()), "block", width, if b == 0 { STRIDES[s] } else { 1 }, Function::Silu);
            width = outputs;
            blocks.push(block);
        }
        stages.push(blocks);
    }
    let at = stages.len() + 1;
    let last = style.conv_norm(&features.child(&at.to_string()), width, 1);
    let num_features = last.outputs();
    let (classifier, num_classes) = last_of_list(scope, 1, num_features, timm.as_ref());
    let network = Box::new(MobileNet { act: Function::Silu, stem, body: Body::Stages(stages), last: (at, last), hidden: None, classifier });
    let preprocess = Preprocess { interpolation: if is_v2 { "bilinear" } else { "bicubic" }.to_string(), ..Preprocess::assumed(if is_v2 { 384 } else { 224 }) };
    let preprocess = Preprocess { crop_pct: if is_v2 { 1.0 } else { 0.875 }, ..preprocess };
    Classifier::new("EfficientNet", timm, scope, Loaded { network, num_features, feature_map: num_features, num_classes, preprocess })
}

/// B5 to B7 have TensorFlow's eps, B0 to B4 PyTorch's.
fn efficient_eps(timm: Option<&TimmConfig>, depths: &[usize], scope: &Scope) -> Result<f64> {
    let named = timm.and_then(|c| c.architecture.strip_prefix("efficientnet_b")?.parse::<usize>().ok());
    let variant = named.or_else(|| DEPTHS.iter().position(|row| row == depths));
    let Some(variant) = variant else {
        let fact =
            format!("{depths:?} blocks per stage are those of no EfficientNet B0 to B7, expected a config.json with \"architecture\", which tells the eps");
        return Err(Error::new(Kind::Config, "classifier", fact).remark(scope.store().place()));
    };
    Ok(if variant >= FIRST_WITH_TENSORFLOW_EPS { TENSORFLOW_EPS } else { BATCH_NORM_EPS })
}
