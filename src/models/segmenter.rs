//! What all segmenters share: a network of some family, its classes and how its input is prepared.

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::model::{Checkpoint, Component, Inputs, Model, Output, Port};
use crate::models::preprocess::Preprocess;
use crate::nn::{BATCH_NORM_EPS, Conv2d};
use crate::ops::activation::Function;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope};

/// The recorded part of a family.
pub trait Network {
    /// x: normalised pixels `[N, H, W, 3]`; the result `[N, H, W, classes]`, before a softmax or a sigmoid.
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor>;

    /// Depths, widths and the like, for `inspect`.
    fn facts(&self) -> Vec<(&'static str, Value)>;
}

/// A network as its family's `load` made it.
pub struct Loaded {
    pub network: Box<dyn Network>,
    pub num_classes: usize,
    /// How the family's published weights were evaluated.
    pub preprocess: Preprocess,
}

/// A segmenter and its weights.
pub struct Segmenter {
    /// `DeepLabV3`, `U-Net`.
    pub family: &'static str,
    pub num_classes: usize,
    pub preprocess: Preprocess,
    /// Numbers in all parameters.
    pub parameters: u64,
    /// Names in the file that a forward pass does not need.
    pub dropped: Vec<String>,
    network: Box<dyn Network>,
}

impl Segmenter {
    /// Closes the account of `scope`, the root of the checkpoint that `loaded` was made of.
    pub fn new(family: &'static str, scope: &Scope, loaded: Loaded) -> Result<Segmenter> {
        let account = scope.finish()?;
        let Loaded { network, num_classes, preprocess } = loaded;
        Ok(Segmenter { family, num_classes, preprocess, parameters: account.parameters, dropped: account.dropped, network })
    }
}

impl Model for Segmenter {
    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn dropped(&self) -> &[String] {
        &self.dropped
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let p = &self.preprocess;
        let mut facts =
            vec![("family", json!(self.family)), ("num_classes", json!(self.num_classes)), ("input_size", json!(p.input_size)), ("preprocess", p.facts())];
        facts.extend(self.network.facts());
        facts
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::Segmenter]
    }

    fn ports(&self, _: Component, batch: usize) -> Vec<Port> {
        let [h, w] = self.preprocess.input_size;
        vec![Port::image("pixel_values", [batch, h, w, 3])]
    }

    fn record(&self, t: &mut Tape, _: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        let x = inputs.get("pixel_values")?;
        let [n, h, w, c] = t.nhwc(x)?;
        if c != 3 || n * h * w == 0 {
            return Err(t.mismatch(format!("pixels are [{n}, {c}, {h}, {w}], expected [N, 3, H, W]")));
        }
        Ok(vec![Output::image("logits", self.network.forward(t, x)?)])
    }

    fn preprocess(&self) -> Option<&Preprocess> {
        Some(&self.preprocess)
    }
}

/// Loads a checkpoint through its family's function.
pub fn load(checkpoint: &Checkpoint, family: fn(Option<&Config>, &Scope) -> Result<Segmenter>) -> Result<Box<dyn Model>> {
    Ok(Box::new(family(checkpoint.config.as_ref(), &checkpoint.scope("segmenter")?)?))
}

/// relu(norm(conv(x))).
pub struct ConvRelu {
    /// Of the module around the three; None: they stand in the one that is open.
    name: Option<String>,
    conv: Conv2d,
}

/// The convolution `conv` of `scope` as the file has it, the batch norm `norm` behind it and ReLU.
pub fn conv_norm_relu(scope: &Scope, conv: &str, norm: &str, inputs: usize) -> ConvRelu {
    ConvRelu::new(scope, Conv2d::as_stored(&scope.child(conv), inputs, 1).batch_normed(&scope.child(norm), BATCH_NORM_EPS))
}

impl ConvRelu {
    /// `conv`, with or without a norm, in the module `scope`.
    pub fn new(scope: &Scope, conv: Conv2d) -> ConvRelu {
        ConvRelu { name: Some(scope.name().to_string()), conv }
    }

    /// The same as steps of the open module.
    pub fn inline(self) -> ConvRelu {
        ConvRelu { name: None, ..self }
    }

    pub fn dilated(self, dilation: usize) -> ConvRelu {
        ConvRelu { conv: self.conv.dilated(dilation), ..self }
    }

    pub fn outputs(&self) -> usize {
        self.conv.outputs()
    }

    /// x: `[N, H, W, C]`.
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let body = |t: &mut Tape| {
            let h = self.conv.forward(t, x)?;
            t.activation(h, Function::Relu)
        };
        match &self.name {
            Some(name) => t.scope(name, body),
            None => body(t),
        }
    }
}

/// Declares every tensor whose name begins with `prefix` as one that a forward pass does not need.
pub fn drop_all(scope: &Scope, prefix: &str) {
    scope.store().names().filter(|name| name.starts_with(prefix)).for_each(|name| scope.dropping(name));
}
