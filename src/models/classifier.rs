//! What all classifiers share: a network of some family, its last layer, its classes and how its input is prepared.

use serde_json::{Value, json};

use crate::base::{Error, Kind, Result};
use crate::models::model::{Checkpoint, Component, Inputs, Model, Output, Port};
use crate::models::preprocess::Preprocess;
use crate::models::timm_config::TimmConfig;
use crate::nn::Linear;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope};

/// Steps of a list in the place of a last layer that are looked at.
const LONGEST_LIST: usize = 8;

/// What one forward pass gives.
#[derive(Clone, Copy, Debug)]
pub struct Prediction {
    /// `[N, F]`: the input of the last layer, pooled.
    pub features: Tensor,
    /// `[N, classes]` before a softmax; None when the checkpoint has no last layer.
    pub logits: Option<Tensor>,
}

/// The recorded part of a family.
pub trait Network {
    /// x: normalised pixels `[N, H, W, 3]`.
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Prediction>;

    /// Depths, widths and the like, for `inspect`.
    fn facts(&self) -> Vec<(&'static str, Value)> {
        Vec::new()
    }
}

/// A network as its family's `load` made it.
pub struct Loaded {
    pub network: Box<dyn Network>,
    /// Width of the features.
    pub num_features: usize,
    /// Width that a config's `num_features` speaks of: that of the last feature map.
    pub feature_map: usize,
    /// 0: no last layer.
    pub num_classes: usize,
    /// How the family's published weights were evaluated, for a checkpoint that does not say.
    pub preprocess: Preprocess,
}

/// A classifier and its weights.
pub struct Classifier {
    /// `ResNet`, `DenseNet`.
    pub family: &'static str,
    /// The config's `architecture`; None when the checkpoint is weights alone.
    pub architecture: Option<String>,
    pub num_classes: usize,
    /// Width of the features.
    pub num_features: usize,
    /// Names of the classes in the order of the logits.
    pub label_names: Option<Vec<String>>,
    pub preprocess: Preprocess,
    /// Numbers in all parameters.
    pub parameters: u64,
    /// Names in the file that a forward pass does not need.
    pub dropped: Vec<String>,
    network: Box<dyn Network>,
}

impl Classifier {
    /// Closes the account of `scope`, the root of the checkpoint that `loaded` was made of.
    pub fn new(family: &'static str, config: Option<TimmConfig>, scope: &Scope, loaded: Loaded) -> Result<Classifier> {
        let account = scope.finish()?;
        let Loaded { network, num_features, feature_map, num_classes, preprocess } = loaded;
        let wrong = |fact: String| Err(Error::new(Kind::Config, "classifier", fact).remark(scope.store().place()));
        if let Some(told) = config.as_ref().and_then(|c| c.num_features)
            && told != feature_map
            && told != num_features
        {
            return wrong(format!("num_features is {told} in config.json, expected {feature_map} as the weights have"));
        }
        let label_names = config.as_ref().and_then(|c| c.label_names.clone());
        if let Some(names) = &label_names
            && names.len() != num_classes
        {
            return wrong(format!("config.json names {} classes, expected {num_classes} as the weights have", names.len()));
        }
        let preprocess = config.as_ref().map(|c| &c.preprocess).filter(|p| !p.assumed).cloned().unwrap_or(preprocess);
        Ok(Classifier {
            family,
            architecture: config.map(|c| c.architecture),
            num_classes,
            num_features,
            label_names,
            preprocess,
            parameters: account.parameters,
            dropped: account.dropped,
            network,
        })
    }

    /// x: normalised pixels `[N, H, W, 3]`.
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Prediction> {
        let [n, h, w, c] = t.nhwc(x)?;
        if c != 3 || n * h * w == 0 {
            return Err(t.mismatch(format!("pixels are [{n}, {c}, {h}, {w}], expected [N, 3, H, W]")));
        }
        self.network.forward(t, x)
    }
}

impl Model for Classifier {
    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn dropped(&self) -> &[String] {
        &self.dropped
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let p = &self.preprocess;
        let mut facts = vec![
            ("family", json!(self.family)),
            ("architecture", json!(self.architecture)),
            ("num_features", json!(self.num_features)),
            ("num_classes", json!(self.num_classes)),
            ("label_names", json!(self.label_names)),
            ("input_size", json!(p.input_size)),
            ("preprocess", p.facts()),
        ];
        facts.extend(self.network.facts());
        facts
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::Classifier]
    }

    fn ports(&self, _: Component, batch: usize) -> Vec<Port> {
        let [h, w] = self.preprocess.input_size;
        vec![Port::image("pixel_values", [batch, h, w, 3])]
    }

    fn record(&self, t: &mut Tape, _: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        let Prediction { features, logits } = self.forward(t, inputs.get("pixel_values")?)?;
        let logits = logits.map(|logits| Output::plain("logits", logits));
        Ok(std::iter::once(Output::plain("features", features)).chain(logits).collect())
    }

    fn preprocess(&self) -> Option<&Preprocess> {
        Some(&self.preprocess)
    }

    fn class_names(&self) -> Option<&[String]> {
        self.label_names.as_deref()
    }
}

/// Loads a checkpoint through its family's function.
pub fn load(checkpoint: &Checkpoint, family: fn(Option<&Config>, &Scope) -> Result<Classifier>) -> Result<Box<dyn Model>> {
    Ok(Box::new(family(checkpoint.config.as_ref(), &checkpoint.scope("classifier")?)?))
}

/// The last layer `name`: as many classes as `config` says or, when it does not, as the weight has rows. None: no classes.
/// It may be the one weighed step of a list, as of a dropout and a linear layer, which fine-tuning puts there: `fc.1`.
pub fn last_layer(scope: &Scope, name: &str, inputs: usize, config: Option<&TimmConfig>) -> (Option<Linear>, usize) {
    let layer = listed(scope, name).unwrap_or_else(|| scope.child(name));
    let stored = layer.shape("weight").and_then(|s| s.first()).copied().unwrap_or(0);
    let classes = config.and_then(|c| c.num_classes).unwrap_or(stored);
    ((classes > 0).then(|| Linear::load(&layer, inputs, classes)), classes)
}

/// The only step of the list `name` that holds weights, if that is a linear layer.
fn listed(scope: &Scope, name: &str) -> Option<Scope> {
    let list = scope.child(name);
    if list.has("weight") {
        return None;
    }
    let is_weighed = |step: &Scope| step.has("weight") || step.has("bias");
    let steps: Vec<Scope> = (0..LONGEST_LIST).map(|i| scope.child(&format!("{name}.{i}"))).filter(is_weighed).collect();
    let [step] = steps.as_slice() else { return None };
    step.shape("weight").is_some_and(|shape| shape.len() == 2).then(|| step.clone())
}

/// Features and, when there is a last layer, logits.
pub fn predict(t: &mut Tape, features: Tensor, last: Option<&Linear>) -> Result<Prediction> {
    let logits = last.map(|layer| layer.forward(t, features)).transpose()?;
    Ok(Prediction { features, logits })
}

/// The config of a checkpoint of a family whose features are the mean over the image. `arguments` reads the family's own
/// `model_args`; its result is the default when there is no config.
pub fn read_config<T: Default>(config: Option<&Config>, arguments: impl FnOnce(&Config) -> Result<T>) -> Result<(Option<TimmConfig>, T)> {
    let Some(config) = config else { return Ok((None, T::default())) };
    let (timm, own) = TimmConfig::read_averaging(config, |stored| stored.map_or(Ok(T::default()), arguments))?;
    Ok((Some(timm), own))
}

/// How many of `0`, `1`, ... below `scope` hold any of the tensors `marks`, counted without a gap.
pub fn count(scope: &Scope, marks: &[&str]) -> usize {
    (0..).take_while(|i| marks.iter().any(|mark| scope.has(&format!("{i}.{mark}")))).count()
}
