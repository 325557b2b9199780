//! DeepLabV3 and FCN on dilated ResNets, with torchvision's names.
//! Sources: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017); Long et al., "Fully
//! Convolutional Networks" (2015); `torchvision/models/segmentation/{deeplabv3,fcn,_utils}.py`.
//!
//! The weights do not show dilations: they are torchvision's, an output stride of 8 and rates of 12, 24 and 36. The auxiliary
//! classifier acts in training; its weights are not read.

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::model::Architecture;
use crate::models::preprocess::Preprocess;
use crate::models::resnet::{Backbone, Shrink};
use crate::models::segmenter::{self, ConvRelu, Loaded, Network, Segmenter, conv_norm_relu, drop_all};
use crate::nn::Conv2d;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope, Store};

/// Pixels between the taps of the pyramid's convolutions.
const RATES: [usize; 3] = [12, 24, 36];
/// The shorter side that torchvision's weights were evaluated at.
const SIZE: usize = 520;

/// Atrous spatial pyramid pooling: one convolution of 1x1, one per rate, and one of the mean over the image, side by side.
struct Pyramid {
    convs: Vec<ConvRelu>,
    /// `convs.4.1`, `convs.4.2`; `convs.4` gives the mean the size of the image again.
    pooling: ConvRelu,
    project: ConvRelu,
}

impl Pyramid {
    fn load(scope: &Scope, inputs: usize) -> Pyramid {
        let branch = |i: usize| conv_norm_relu(&scope.child(&format!("convs.{i}")), "0", "1", inputs);
        let mut convs = vec![branch(0)];
        convs.extend(RATES.iter().enumerate().map(|(i, &rate)| branch(i + 1).dilated(rate)));
        let pooling = conv_norm_relu(&scope.child("convs.4"), "1", "2", inputs).inline();
        let width = convs.iter().map(ConvRelu::outputs).sum::<usize>() + pooling.outputs();
        Pyramid { convs, pooling, project: conv_norm_relu(&scope.child("project"), "0", "1", width) }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let [n, h, w, c] = t.nhwc(x)?;
        let mut parts = self.convs.iter().map(|conv| conv.forward(t, x)).collect::<Result<Vec<_>>>()?;
        parts.push(t.scope("convs.4", |t| {
            let mean = t.global_average_pool(x)?;
            let mean = t.reshape(mean, &[n, 1, 1, c])?;
            let mean = self.pooling.forward(t, mean)?;
            t.resize_bilinear(mean, [h, w], false)
        })?);
        let all = t.concat_axis(&parts, 3)?;
        self.project.forward(t, all)
    }
}

struct DeepLab {
    backbone: Backbone,
    /// `classifier.0` of DeepLabV3; FCN has none.
    pyramid: Option<Pyramid>,
    /// `classifier.0` or `classifier.1`, 3x3, and the norm behind it.
    hidden: ConvRelu,
    /// `classifier.4`: 1x1, to the classes.
    last: Conv2d,
}

impl Network for DeepLab {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let [_, h, w, _] = t.nhwc(x)?;
        let maps = t.within("backbone", |t| self.backbone.forward(t, x))?;
        let mut map = maps[maps.len() - 1];
        let logits = t.scope("classifier", |t| {
            if let Some(pyramid) = &self.pyramid {
                map = t.scope("0", |t| pyramid.forward(t, map))?;
            }
            let map = self.hidden.forward(t, map)?;
            self.last.forward(t, map)
        })?;
        t.resize_bilinear(logits, [h, w], false)
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let rates = self.pyramid.as_ref().map(|_| RATES);
        vec![("blocks", json!(self.backbone.depths())), ("output_stride", json!(8)), ("atrous_rates", json!(rates))]
    }
}

/// Loads the weights of `scope`, its root, and closes its account.
fn load(_: Option<&Config>, scope: &Scope) -> Result<Segmenter> {
    let backbone = Backbone::load(&scope.child("backbone"), 4, false, Shrink::Dilated);
    let head = scope.child("classifier");
    let is_deeplab = head.has("0.convs.0.0.weight");
    let pyramid = is_deeplab.then(|| Pyramid::load(&head.child("0"), backbone.width()));
    let inputs = pyramid.as_ref().map_or(backbone.width(), |p| p.project.outputs());
    let [conv, norm] = if is_deeplab { ["1", "2"] } else { ["0", "1"] };
    let hidden = conv_norm_relu(&head, conv, norm, inputs).inline();
    let last = Conv2d::as_stored(&head.child("4"), hidden.outputs(), 1);
    let num_classes = last.outputs();
    drop_all(scope, "aux_classifier.");
    let preprocess = Preprocess { crop_pct: 1.0, ..Preprocess::assumed(SIZE) };
    let network = Box::new(DeepLab { backbone, pyramid, hidden, last });
    Segmenter::new(if is_deeplab { "DeepLabV3" } else { "FCN" }, scope, Loaded { network, num_classes, preprocess })
}

/// Whether the tensors are named as these are.
fn is_tensors(store: &Store) -> bool {
    let has = |name: &str| store.shape(name).is_some();
    has("backbone.conv1.weight")
        && has("backbone.layer4.0.conv1.weight")
        && has("classifier.4.weight")
        && (has("classifier.0.weight") || has("classifier.0.convs.0.0.weight"))
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "DeepLabV3 or FCN segmenter",
    is_config: |_| false,
    is_tensors: |store| is_tensors(store),
    is_path: |_| false,
    load: |checkpoint| segmenter::load(checkpoint, load),
};
