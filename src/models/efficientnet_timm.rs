//! Inverted residuals in timm's names: `conv_stem`, `blocks.2.0.conv_dw`, `conv_head`, `classifier`.
//! Source: `timm/models/_efficientnet_blocks.py`, `efficientnet.py`, `mobilenetv3.py`. Checkpoints that came from
//! TensorFlow (`tf_`) have the same names with other padding and another eps, so that weights alone do not say what they
//! are.

use serde_json::{Value, json};

use crate::base::{Error, Kind, Result};
use crate::models::classifier::{Classifier, Loaded, Network, Prediction, count, last_layer, predict, read_config};
use crate::models::efficientnet::{Block, Part, Placed, STRIDES, TENSORFLOW_EPS};
use crate::models::preprocess::Preprocess;
use crate::models::timm_config::architecture_of;
use crate::nn::{BATCH_NORM_EPS, Conv2d, Linear, SqueezeExcite};
use crate::ops::activation::Function;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope};

/// What an architecture's name says and the tensors do not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Topology {
    family: &'static str,
    /// Of the first block of each stage.
    strides: &'static [usize],
    act: Function,
    /// Stages with ReLU instead of `act`.
    relu_stages: usize,
    /// Activation and gate of squeeze and excitation.
    squeeze: (Function, Function),
    /// Whether a stage of plain convolutions adds its input.
    skips_plain: bool,
    /// Whether the mean is taken before the last convolution ("efficient head").
    pools_first: bool,
    eps: f64,
    same: bool,
}

/// None: not one of these.
pub fn topology(architecture: &str) -> Option<Topology> {
    let rest = architecture.strip_prefix("tf_");
    let (eps, same) = if rest.is_some() { (TENSORFLOW_EPS, true) } else { (BATCH_NORM_EPS, false) };
    let name = rest.unwrap_or(architecture);
    let efficient = Topology {
        family: "EfficientNet",
        strides: &STRIDES,
        act: Function::Silu,
        relu_stages: 0,
        squeeze: (Function::Silu, Function::Sigmoid),
        skips_plain: true,
        pools_first: false,
        eps,
        same,
    };
    let of = |prefix: &str, variants: &[&str]| name.strip_prefix(prefix).is_some_and(|v| variants.contains(&v));
    let mobile3 = Topology {
        family: "MobileNetV3",
        act: Function::HardSwish,
        squeeze: (Function::Relu, Function::HardSigmoid),
        skips_plain: false,
        pools_first: true,
        ..efficient
    };
    let small: &[usize] = &[2, 2, 2, 1, 2, 1];
    if of("efficientnet_", &["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "l2", "b1_pruned", "b2_pruned", "b3_pruned"])
        || of("efficientnetv2_", &["m", "l", "xl"])
    {
        Some(efficient)
    } else if of("efficientnetv2_", &["s", "rw_s", "rw_m", "rw_t", "b0", "b1", "b2", "b3"]) {
        Some(Topology { strides: &STRIDES[..6], ..efficient })
    } else if of("efficientnet_", &["es", "em", "el", "es_pruned", "el_pruned"]) {
        Some(Topology { act: Function::Relu, strides: &STRIDES[..6], ..efficient })
    } else if of("efficientnet_", &["lite0", "lite1", "lite2", "lite3", "lite4"]) {
        Some(Topology { act: Function::Relu6, ..efficient })
    } else if of("mobilenetv2_", &["035", "050", "075", "100", "140", "110d", "120d"]) {
        Some(Topology { family: "MobileNetV2", act: Function::Relu6, ..efficient })
    } else if of("mobilenetv3_large_", &["075", "100", "150d"]) {
        Some(Topology { relu_stages: 3, ..mobile3 })
    } else if of("mobilenetv3_small_", &["050", "075", "100"]) {
        Some(Topology { relu_stages: 2, strides: small, ..mobile3 })
    } else if of("mobilenetv3_large_", &["minimal_100"]) {
        Some(Topology { act: Function::Relu, ..mobile3 })
    } else if of("mobilenetv3_small_", &["minimal_100"]) {
        Some(Topology { act: Function::Relu, strides: small, ..mobile3 })
    } else {
        None
    }
}

/// Makes normed convolutions as one model has them.
struct Maker {
    eps: f64,
    same: bool,
}

impl Maker {
    fn conv(&self, scope: &Scope, [conv, norm]: [&str; 2], inputs: usize, stride: usize) -> Conv2d {
        let plain = Conv2d::as_stored(&scope.child(conv), inputs, stride);
        let padded = if self.same { plain.same_padded() } else { plain };
        padded.batch_normed(&scope.child(norm), self.eps)
    }
}

/// The convolutions of a block in the order in which they run: name, norm, whether it has the stride, whether it is
/// activated, whether squeeze and excitation comes before it.
type Plan = &'static [(&'static str, &'static str, bool, bool, bool)];
/// `EdgeResidual`, `InvertedResidual`, `DepthwiseSeparableConv`, `ConvBnAct`, each with the name that it alone has.
const PLANS: [(&str, Plan); 4] = [
    ("conv_exp.weight", &[("conv_exp", "bn1", true, true, false), ("conv_pwl", "bn2", false, false, true)]),
    ("conv_pwl.weight", &[("conv_pw", "bn1", false, true, false), ("conv_dw", "bn2", true, true, false), ("conv_pwl", "bn3", false, false, true)]),
    ("conv_dw.weight", &[("conv_dw", "bn1", true, true, false), ("conv_pw", "bn2", false, false, true)]),
    ("conv.weight", &[("conv", "bn1", true, true, false)]),
];

fn load_block(scope: &Scope, topology: &Topology, inputs: usize, stride: usize, act: Function) -> (Block, usize) {
    let maker = Maker { eps: topology.eps, same: topology.same };
    let plan = PLANS.iter().find(|(mark, _)| scope.has(mark)).map_or(PLANS[1].1, |(_, plan)| plan);
    let (mut width, mut parts) = (inputs, Vec::new());
    let placed = |part| Placed { within: Vec::new(), part };
    for &(conv, norm, is_strided, is_activated, after_squeeze) in plan {
        if after_squeeze && scope.has("se.conv_reduce.weight") {
            let (inner, gate) = topology.squeeze;
            parts.push(placed(Part::SqueezeExcite(SqueezeExcite::load(&scope.child("se"), ["conv_reduce", "conv_expand"], width, inner, gate))));
        }
        let conv = maker.conv(scope, [conv, norm], width, if is_strided { stride } else { 1 });
        width = conv.outputs();
        parts.push(placed(Part::Conv { conv, act: is_activated.then_some(act), is_one_module: true }));
    }
    let skip = stride == 1 && inputs == width && (plan.len() > 1 || topology.skips_plain);
    (Block { name: scope.name().to_string(), parts, skip }, width)
}

struct EfficientNet {
    act: Function,
    pools_first: bool,
    stem: Conv2d,
    stages: Vec<Vec<Block>>,
    head: Conv2d,
    classifier: Option<Linear>,
}

impl EfficientNet {
    fn features(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let act = self.act;
        let mut h = self.stem.activated(t, x, Some(act))?;
        h = t.scope("blocks", |t| {
            let stage =
                |t: &mut Tape, h, (i, blocks): (usize, &Vec<Block>)| t.scope(&i.to_string(), |t| blocks.iter().try_fold(h, |h, block| block.forward(t, h)));
            self.stages.iter().enumerate().try_fold(h, |h, numbered| stage(t, h, numbered))
        })?;
        if !self.pools_first {
            h = self.head.activated(t, h, Some(act))?;
            return t.scope("global_pool", |t| t.global_average_pool(h));
        }
        let mean = t.global_average_pool(h)?;
        let [n, c] = [t.shape(mean).dims()[0], self.head.outputs()];
        let width = t.shape(mean).last();
        let h = t.reshape(mean, &[n, 1, 1, width])?;
        let h = self.head.forward(t, h)?;
        let h = t.scope("act2", |t| t.activation(h, act))?;
        t.reshape(h, &[n, c])
    }
}

impl Network for EfficientNet {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Prediction> {
        let features = self.features(t, x)?;
        predict(t, features, self.classifier.as_ref())
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let depths: Vec<usize> = self.stages.iter().map(Vec::len).collect();
        vec![("blocks", json!(depths))]
    }
}

/// `model_args` that change what the name says.
#[derive(Default)]
struct Arguments {
    eps: Option<f64>,
    same: Option<bool>,
}

fn read_arguments(c: &Config) -> Result<Arguments> {
    c.ignore(&["channel_multiplier", "depth_multiplier", "stem_size", "fix_stem", "bn_momentum"]);
    let eps = if c.has("bn_eps") { Some(c.number("bn_eps", None, 0.0..=1.0)?) } else { None };
    let same = c.nullable_choice("pad_type", None, &[("same", true), ("", false)])?;
    Ok(Arguments { eps, same })
}

/// Loads the weights of `scope`, its root, and closes its account. Fails without a config: the names are those of models
/// that differ.
pub fn load(config: Option<&Config>, scope: &Scope) -> Result<Classifier> {
    let (timm, arguments) = read_config(config, read_arguments)?;
    let Some(config) = config else {
        let fact = "timm's names, which efficientnet_*, tf_efficientnet_* and mobilenet* share though they differ in padding and eps; \
                    expected a config.json with \"architecture\" beside the weights";
        return Err(Error::new(Kind::Config, "classifier", fact).remark(scope.store().place()));
    };
    let architecture = architecture_of(config)?;
    let unknown = || config.error("architecture", format!("\"{architecture}\", expected an EfficientNet or MobileNet of timm as the weights' names are"));
    let known = topology(&architecture).ok_or_else(unknown)?;
    let topology = Topology { eps: arguments.eps.unwrap_or(known.eps), same: arguments.same.unwrap_or(known.same), ..known };
    let maker = Maker { eps: topology.eps, same: topology.same };
    let stem = maker.conv(scope, ["conv_stem", "bn1"], 3, 2);
    let mut width = stem.outputs();
    let mut stages = Vec::new();
    for (s, &first_stride) in topology.strides.iter().enumerate() {
        let stage = scope.child(&format!("blocks.{s}"));
        let act = if s < topology.relu_stages { Function::Relu } else { topology.act };
        let mut blocks = Vec::new();
        for b in 0..count(&stage, &["bn1.weight"]).max(1) {
            let (block, outputs) = load_block(&stage.child(&b.to_string()), &topology, width, if b == 0 { first_stride } else { 1 }, act);
            width = outputs;
            blocks.push(block);
        }
        stages.push(blocks);
    }
    let feature_map = width;
    let head = if topology.pools_first { Conv2d::as_stored(&scope.child("conv_head"), width, 1) } else { maker.conv(scope, ["conv_head", "bn2"], width, 1) };
    let num_features = head.outputs();
    let (classifier, num_classes) = last_layer(scope, "classifier", num_features, timm.as_ref());
    let network = Box::new(EfficientNet { act: topology.act, pools_first: topology.pools_first, stem, stages, head, classifier });
    let feature_map = if topology.pools_first { feature_map } else { num_features };
    let loaded = Loaded { network, num_features, feature_map, num_classes, preprocess: Preprocess::assumed(224) };
    Classifier::new(topology.family, timm, scope, loaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_tensors_do_not() {
        let of = |name: &str| topology(name).unwrap();
        assert_eq!((of("efficientnet_b0").same, of("efficientnet_b0").eps), (false, 1e-5));
        assert_eq!((of("tf_efficientnet_b3").same, of("tf_efficientnet_b3").eps), (true, 1e-3));
        assert_eq!((of("tf_efficientnetv2_s").strides.len(), of("efficientnetv2_m").strides.len()), (6, 7));
        assert_eq!((of("mobilenetv3_small_100").relu_stages, of("mobilenetv3_small_100").strides[0]), (2, 2));
        for other in ["efficientnet_b0_gn", "efficientnet_cc_b0_4e", "mobilenetv4_conv_small", "mobilenetv1_100", "mixnet_s"] {
            assert_eq!(topology(other), None, "{other}");
        }
    }
}
