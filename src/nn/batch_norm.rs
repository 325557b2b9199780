//! torch.nn.BatchNorm2d at inference: an affine map per channel.
//! Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 2.

use crate::base::{Array, Result};
use crate::plan::{Layout, Tape, Tensor, Weight};
use crate::weights::Scope;

/// What torch.nn.BatchNorm2d adds to the variance unless told otherwise.
pub const BATCH_NORM_EPS: f64 = 1e-5;

/// y = scale x + shift per channel: scale = weight / sqrt(var + eps), shift = bias - mean scale, in f64.
pub struct BatchNorm {
    name: String,
    /// `[C]`.
    pub scale: Weight,
    /// `[C]`.
    pub shift: Weight,
}

/// The affine map of a batch norm before it is rounded to f32.
pub(super) struct Affine {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
    /// Name of the file's bias, and `[C]`: also when its values could not be had.
    pub bias: Weight,
}

/// Reads a norm of `channels`; values that are missing leave the lists short, and the scope knows.
pub(super) fn read_affine(scope: &Scope, channels: usize, eps: f64) -> Affine {
    scope.dropping("num_batches_tracked");
    let [weight, bias] = ["weight", "bias"].map(|name| scope.weight(name, &[channels], Layout::Plain));
    let [mean, var] = ["running_mean", "running_var"].map(|name| scope.buffer(name, &[channels], Layout::Plain));
    let [gamma, beta, mean, var] = [&weight, &bias, &mean, &var].map(|weight| weight.array.values());
    if let Some(at) = var.iter().position(|&v| v < 0.0) {
        scope.fault(&format!("running_var is {} at channel {at}, expected 0 or more", var[at]));
    }
    let scale: Vec<f64> = gamma.iter().zip(var.iter()).map(|(&g, &v)| f64::from(g) / (f64::from(v) + eps).sqrt()).collect();
    let shift = beta.iter().zip(mean.iter()).zip(&scale).map(|((&b, &m), s)| f64::from(b) - f64::from(m) * s).collect();
    Affine { scale, shift, bias }
}

impl BatchNorm {
    pub fn load(scope: &Scope, channels: usize, eps: f64) -> BatchNorm {
        let affine = read_affine(scope, channels, eps);
        let stored = |name: &str, values: &[f64]| {
            let data = values.iter().map(|&v| v as f32).collect();
            Weight::new(&format!("{}.{name}", affine.bias.name), Array { shape: affine.bias.array.shape.clone(), data })
        };
        BatchNorm { name: scope.name().to_string(), scale: stored("scale", &affine.scale), shift: stored("shift", &affine.shift) }
    }

    /// x: `[N, ..., C]`; the norm's result, or relu of it as the module's own when `relu` is set.
    pub fn forward(&self, t: &mut Tape, x: Tensor, relu: bool) -> Result<Tensor> {
        t.within(&self.name, |t| {
            let (scale, shift) = (t.weight(&self.scale), t.weight(&self.shift));
            t.channel_affine(x, scale, shift, relu)
        })
    }
}
