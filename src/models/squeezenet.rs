//! SqueezeNet 1.0 and 1.1 with torchvision's names.
//! Source: Iandola et al., "SqueezeNet" (2016); `torchvision/models/squeezenet.py`. The last layer is a 1x1 convolution,
//! a ReLU and the mean over the image: features are the mean of what goes into it.

use serde_json::{Value, json};

use crate::base::{Error, Kind, Result};
use crate::models::classifier::{self, Classifier, Loaded, Network, Prediction, read_config};
use crate::models::model::{Architecture, timm_architecture};
use crate::models::preprocess::Preprocess;
use crate::nn::Conv2d;
use crate::ops::activation::Function;
use crate::ops::pool2d::Pool2d;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope};

/// A convolution to a few channels, then one pixel wide and three pixels wide ones side by side.
struct Fire {
    squeeze: Conv2d,
    expand1x1: Conv2d,
    expand3x3: Conv2d,
}

impl Fire {
    fn load(scope: &Scope, inputs: usize) -> (Fire, usize) {
        let squeeze = Conv2d::as_stored(&scope.child("squeeze"), inputs, 1);
        let [expand1x1, expand3x3] = ["expand1x1", "expand3x3"].map(|name| Conv2d::as_stored(&scope.child(name), squeeze.outputs(), 1));
        let outputs = expand1x1.outputs() + expand3x3.outputs();
        (Fire { squeeze, expand1x1, expand3x3 }, outputs)
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let h = self.squeeze.forward(t, x)?;
        let h = t.activation(h, Function::Relu)?;
        let one = self.expand1x1.forward(t, h)?;
        let three = self.expand3x3.forward(t, h)?;
        let h = t.concat(one, three)?;
        t.activation(h, Function::Relu)
    }
}

/// An element of `features` after the first convolution: version 1.0 pools before 3, 7 and 12, version 1.1 before 3, 6
/// and 9. Activations have places of their own in the list.
enum Step {
    Pool,
    Fire(Fire),
}

/// Places of the pools in `features`, by version.
const POOLS: [(&str, [usize; 3]); 2] = [("1_0", [2, 6, 11]), ("1_1", [2, 5, 8])];
/// Length of `features` in both versions.
const LENGTH: usize = 13;

struct SqueezeNet {
    version: &'static str,
    stem: Conv2d,
    steps: Vec<Step>,
    classifier: Option<Conv2d>,
}

impl SqueezeNet {
    fn maps(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let h = self.stem.forward(t, x)?;
        let h = t.scope("1", |t| t.activation(h, Function::Relu))?;
        let one = |t: &mut Tape, h: Tensor, (i, step): (usize, &Step)| {
            t.scope(&(i + 2).to_string(), |t| match step {
                Step::Fire(fire) => fire.forward(t, h),
                Step::Pool => {
                    let [_, rows, columns, _] = t.nhwc(h)?;
                    t.pool2d(h, &Pool2d::max(3, 2, 0).covering([rows, columns]))
                }
            })
        };
        self.steps.iter().enumerate().try_fold(h, |h, numbered| one(t, h, numbered))
    }
}

impl Network for SqueezeNet {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Prediction> {
        let h = t.scope("features", |t| self.maps(t, x))?;
        let features = t.global_average_pool(h)?;
        let logits = self.classifier.as_ref().map(|conv| {
            t.within("classifier", |t| {
                let h = conv.forward(t, h)?;
                let h = t.scope("2", |t| t.activation(h, Function::Relu))?;
                t.global_average_pool(h)
            })
        });
        Ok(Prediction { features, logits: logits.transpose()? })
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        vec![("version", json!(self.version.replace('_', ".")))]
    }
}

/// Loads the weights of `scope`, its root, and closes its account.
pub fn load(config: Option<&Config>, scope: &Scope) -> Result<Classifier> {
    let (timm, ()) = read_config(config, |_| Ok(()))?;
    let features = scope.child("features");
    // The other version has a pool where this one has a block.
    let is_version = |pools: &[usize; 3]| pools.iter().all(|at| !features.has(&format!("{at}.squeeze.weight")));
    let Some((version, pools)) = POOLS.iter().find(|(_, pools)| is_version(pools)) else {
        let fact = "features.N.squeeze.weight stand as in no SqueezeNet, expected those of version 1.0 or 1.1";
        return Err(Error::new(Kind::Weights, "classifier", fact).remark(scope.store().place()));
    };
    let stem = Conv2d::as_stored(&features.child("0"), 3, 2).unpadded();
    let (mut width, mut steps) = (stem.outputs(), Vec::new());
    for at in 2..LENGTH {
        if pools.contains(&at) {
            steps.push(Step::Pool);
            continue;
        }
        let (fire, outputs) = Fire::load(&features.child(&at.to_string()), width);
        width = outputs;
        steps.push(Step::Fire(fire));
    }
    let last = scope.child("classifier").child("1");
    let stored = last.shape("weight").and_then(|s| s.first()).copied().unwrap_or(0);
    let num_classes = timm.as_ref().and_then(|c| c.num_classes).unwrap_or(stored);
    let classifier = (num_classes > 0).then(|| Conv2d::load(&last, width, num_classes, 1, Default::default()));
    let network = Box::new(SqueezeNet { version, stem, steps, classifier });
    let loaded = Loaded { network, num_features: width, feature_map: width, num_classes, preprocess: Preprocess::assumed(224) };
    Classifier::new("SqueezeNet", timm, scope, loaded)
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "SqueezeNet classifier",
    is_config: |config| timm_architecture(config).is_some_and(|name| ["squeezenet1_0", "squeezenet1_1"].contains(&name.as_str())),
    is_tensors: |store| ["features.0.weight", "features.3.squeeze.weight", "features.12.expand3x3.weight"].iter().all(|name| store.shape(name).is_some()),
    is_path: |_| false,
    load: |checkpoint| classifier::load(checkpoint, load),
};
