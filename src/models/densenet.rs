//! DenseNet classifiers with torchvision's and timm's names, which are the same.
//! Source: Huang et al., "Densely Connected Convolutional Networks" (2017); `torchvision/models/densenet.py`. A layer's
//! input is all that came before it in its block; norm and ReLU come before each convolution. `norm2` is folded into the
//! convolution before it; the others follow a concatenation and are steps of their own.

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::classifier::{self, Classifier, Loaded, Network, Prediction, last_layer, predict, read_config};
use crate::models::model::{Architecture, timm_architecture};
use crate::models::preprocess::Preprocess;
use crate::nn::{BATCH_NORM_EPS, BatchNorm, Conv2d, Linear};
use crate::ops::activation::Function;
use crate::ops::pool2d::Pool2d;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope};

/// Whether `architecture` is a DenseNet of the published sort; `densenetblur121d` and its like are not.
pub fn is_architecture(architecture: &str) -> bool {
    ["densenet121", "densenet161", "densenet169", "densenet201"].contains(&architecture)
}

/// conv2(relu(norm2(conv1(relu(norm1(x)))))).
struct Layer {
    name: String,
    norm1: BatchNorm,
    /// With `norm2`.
    conv1: Conv2d,
    conv2: Conv2d,
}

impl Layer {
    /// The files of 2017 have `norm.1` where later ones have `norm1`.
    fn load(scope: &Scope, inputs: usize) -> Layer {
        let is_old = scope.has("norm.1.weight");
        let part = |name: &str, i: usize| {
            let new = format!("{name}{i}");
            if is_old { scope.child(&format!("{name}.{i}")).named(&new) } else { scope.child(&new) }
        };
        let norm1 = BatchNorm::load(&part("norm", 1), inputs, BATCH_NORM_EPS);
        let conv1 = Conv2d::as_stored(&part("conv", 1), inputs, 1).batch_normed(&part("norm", 2), BATCH_NORM_EPS);
        let conv2 = Conv2d::as_stored(&part("conv", 2), conv1.outputs(), 1);
        Layer { name: scope.name().to_string(), norm1, conv1, conv2 }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.norm1.forward(t, x, true)?;
            let h = self.conv1.forward(t, h)?;
            let h = t.activation(h, Function::Relu)?;
            self.conv2.forward(t, h)
        })
    }
}

/// relu(norm(x)), a 1x1 convolution, the mean over 2x2.
struct Transition {
    norm: BatchNorm,
    conv: Conv2d,
}

struct Block {
    layers: Vec<Layer>,
    /// None after the last block.
    transition: Option<Transition>,
}

struct DenseNet {
    /// `features.conv0` and `norm0`.
    stem: Conv2d,
    blocks: Vec<Block>,
    norm5: BatchNorm,
    classifier: Option<Linear>,
}

impl DenseNet {
    fn features(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let h = self.stem.forward(t, x)?;
        let h = t.activation(h, Function::Relu)?;
        let mut h = t.scope("pool0", |t| t.pool2d(h, &Pool2d::max(3, 2, 1)))?;
        for (i, block) in self.blocks.iter().enumerate() {
            h = t.scope(&format!("denseblock{}", i + 1), |t| {
                block.layers.iter().try_fold(h, |h, layer| {
                    let new = layer.forward(t, h)?;
                    t.concat(h, new)
                })
            })?;
            if let Some(Transition { norm, conv }) = &block.transition {
                h = t.scope(&format!("transition{}", i + 1), |t| {
                    let h = norm.forward(t, h, true)?;
                    let h = conv.forward(t, h)?;
                    t.scope("pool", |t| t.pool2d(h, &Pool2d::mean(2, 2, 0)))
                })?;
            }
        }
        self.norm5.forward(t, h, true)
    }
}

impl Network for DenseNet {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Prediction> {
        let h = t.within("features", |t| self.features(t, x))?;
        let features = t.scope("global_pool", |t| t.global_average_pool(h))?;
        predict(t, features, self.classifier.as_ref())
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let depths: Vec<usize> = self.blocks.iter().map(|b| b.layers.len()).collect();
        vec![("blocks", json!(depths))]
    }
}

/// Loads the weights of `scope`, its root, and closes its account.
pub fn load(config: Option<&Config>, scope: &Scope) -> Result<Classifier> {
    let (timm, ()) = read_config(config, |arguments| {
        arguments.ignore(&["growth_rate", "block_config", "bn_size", "memory_efficient"]);
        Ok(())
    })?;
    let features = scope.child("features");
    let stem = Conv2d::as_stored(&features.child("conv0"), 3, 2).batch_normed(&features.child("norm0"), BATCH_NORM_EPS);
    let mut width = stem.outputs();
    let mut blocks = Vec::new();
    for b in 1..=4 {
        let block = features.child(&format!("denseblock{b}"));
        let mut layers = Vec::new();
        while layers.is_empty()
            || block.has(&format!("denselayer{}.conv1.weight", layers.len() + 1))
            || block.has(&format!("denselayer{}.conv.1.weight", layers.len() + 1))
        {
            let layer = Layer::load(&block.child(&format!("denselayer{}", layers.len() + 1)), width);
            width += layer.conv2.outputs();
            layers.push(layer);
        }
        let transition = (b < 4).then(|| {
            let scope = features.child(&format!("transition{b}"));
            let norm = BatchNorm::load(&scope.child("norm"), width, BATCH_NORM_EPS);
            Transition { norm, conv: Conv2d::as_stored(&scope.child("conv"), width, 1) }
        });
        width = transition.as_ref().map_or(width, |t| t.conv.outputs());
        blocks.push(Block { layers, transition });
    }
    let norm5 = BatchNorm::load(&features.child("norm5"), width, BATCH_NORM_EPS);
    let (classifier, num_classes) = last_layer(scope, "classifier", width, timm.as_ref());
    let network = Box::new(DenseNet { stem, blocks, norm5, classifier });
    let loaded = Loaded { network, num_features: width, feature_map: width, num_classes, preprocess: Preprocess::assumed(224) };
    Classifier::new("DenseNet", timm, scope, loaded)
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "DenseNet classifier",
    is_config: |config| timm_architecture(config).is_some_and(|name| is_architecture(&name)),
    is_tensors: |store| {
        ["features.conv0.weight", "features.denseblock1.denselayer1.norm1.weight", "features.norm5.running_mean"].iter().all(|name| store.shape(name).is_some())
    },
    is_path: |_| false,
    load: |checkpoint| classifier::load(checkpoint, load),
};
