//! Two-dimensional convolution: torch.nn.Conv2d, and the same with a batch norm behind it folded in.

use crate::base::Result;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::plan::{Layout, Tape, Tensor, Weight};
use crate::weights::Scope;

/// What torch.nn.BatchNorm2d adds to the variance unless told otherwise; torchvision and timm do not.
const BATCH_NORM_EPS: f64 = 1e-5;

/// Convolution with square kernels.
pub struct Conv2d {
    name: String,
    /// `[KH, KW, I/G, O]`.
    pub weight: Weight,
    /// `[O]`.
    pub bias: Option<Weight>,
    pub geometry: Geometry,
    /// The batch norm whose result this convolution's is.
    batch_norm: Option<String>,
}

impl Conv2d {
    /// `kernel` x `kernel`, with a bias.
    pub fn load(scope: &Scope, inputs: usize, outputs: usize, kernel: usize, geometry: Geometry) -> Conv2d {
        let bias = scope.weight("bias", &[outputs], Layout::Plain);
        Conv2d { bias: Some(bias), ..Self::without_bias(scope, inputs, outputs, kernel, geometry) }
    }

    pub fn without_bias(scope: &Scope, inputs: usize, outputs: usize, kernel: usize, geometry: Geometry) -> Conv2d {
        let weight = scope.weight("weight", &[outputs, inputs / geometry.groups.max(1), kernel, kernel], Layout::ConvWeight);
        Conv2d { name: scope.name().to_string(), weight, bias: None, geometry, batch_norm: None }
    }

    /// The convolution `conv` without a bias and the batch norm `norm` behind it, both in `scope`, as one convolution:
    /// w' = w g, b' = bias - mean g with g = weight / sqrt(var + eps), in f64. Its result can be tapped as `norm`.
    /// Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 2.
    pub fn with_batch_norm(scope: &Scope, conv: &str, norm: &str, inputs: usize, outputs: usize, kernel: usize, geometry: Geometry) -> Conv2d {
        let plain = Self::without_bias(&scope.child(conv), inputs, outputs, kernel, geometry);
        let norm_scope = scope.child(norm);
        norm_scope.dropping("num_batches_tracked");
        let [gamma, beta] = ["weight", "bias"].map(|name| norm_scope.weight(name, &[outputs], Layout::Plain));
        let [mean, var] = ["running_mean", "running_var"].map(|name| norm_scope.buffer(name, &[outputs], Layout::Plain));
        if let Some(at) = var.array.data.iter().position(|&v| v < 0.0) {
            norm_scope.fault(&format!("running_var is {} at channel {at}, expected 0 or more", var.array.data[at]));
        }
        let gain: Vec<f64> = gamma.array.data.iter().zip(&var.array.data).map(|(&g, &v)| f64::from(g) / (f64::from(v) + BATCH_NORM_EPS).sqrt()).collect();
        let mut weight = (*plain.weight.array).clone();
        // The output channel is the last axis. Parameters that could not be loaded have no values: nothing to do then.
        for row in weight.data.chunks_exact_mut(outputs.max(1)) {
            row.iter_mut().zip(&gain).for_each(|(w, g)| *w = (f64::from(*w) * g) as f32);
        }
        let mut bias = (*beta.array).clone();
        for ((b, &m), g) in bias.data.iter_mut().zip(&mean.array.data).zip(&gain) {
            *b = (f64::from(*b) - f64::from(m) * g) as f32;
        }
        let (weight, bias) = (Weight::new(&plain.weight.name, weight), Weight::new(&beta.name, bias));
        Conv2d { weight, bias: Some(bias), batch_norm: Some(norm.to_string()), ..plain }
    }

    /// x: `[N, H, W, I]`; result `[N, OH, OW, O]`.
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let y = t.within(&self.name, |t| {
            let weight = t.weight(&self.weight);
            let bias = self.bias.as_ref().map(|bias| t.weight(bias));
            t.conv2d(x, weight, bias, &self.geometry)
        })?;
        t.tap(self.batch_norm.as_ref().unwrap_or(&self.name), y);
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Writer;

    #[test]
    fn a_folded_batch_norm_is_the_norm_of_the_convolution() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut writer = Writer::new();
        writer.f32("conv.weight", &[2, 1, 1, 1], vec![3.0, -2.0]).unwrap();
        for (name, values) in [("weight", [0.5, 2.0]), ("bias", [1.0, -1.0]), ("running_mean", [4.0, 0.25]), ("running_var", [0.25, 4.0])] {
            writer.f32(&format!("bn.{name}"), &[2], values.to_vec()).unwrap();
        }
        writer.write(&path).unwrap();
        let scope = Scope::open(&path, "test").unwrap();
        let conv = Conv2d::with_batch_norm(&scope, "conv", "bn", 1, 2, 1, Geometry::default());
        assert_eq!(scope.finish().unwrap().parameters, 6);
        for (o, (w, gamma, beta, mean, var)) in [(3.0f64, 0.5, 1.0, 4.0, 0.25), (-2.0, 2.0, -1.0, 0.25, 4.0)].into_iter().enumerate() {
            let x = 1.75f64;
            let want = (w * x - mean) / (var + 1e-5f64).sqrt() * gamma + beta;
            let got = f64::from(conv.weight.array.data[o]) * x + f64::from(conv.bias.as_ref().unwrap().array.data[o]);
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn a_negative_variance_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut writer = Writer::new();
        writer.f32("conv.weight", &[1, 1, 1, 1], vec![1.0]).unwrap();
        for (name, value) in [("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", -1.0)] {
            writer.f32(&format!("bn.{name}"), &[1], vec![value]).unwrap();
        }
        writer.write(&path).unwrap();
        let scope = Scope::open(&path, "test").unwrap();
        Conv2d::with_batch_norm(&scope, "conv", "bn", 1, 1, 1, Geometry::default());
        assert!(scope.finish().unwrap_err().to_string().starts_with("test: bn: running_var is -1 at channel 0"));
    }
}
