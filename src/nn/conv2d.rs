//! Two-dimensional convolution: torch.nn.Conv2d, and the same with a batch norm behind it folded in.

use crate::base::{Array, Result};
use crate::nn::batch_norm::{BATCH_NORM_EPS, read_affine};
use crate::ops::activation::Function;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::plan::{Layout, Tape, Tensor, Weight};
use crate::weights::Scope;

/// Convolution.
pub struct Conv2d {
    name: String,
    /// `[KH, KW, I/G, O]`.
    pub weight: Weight,
    /// `[O]`.
    pub bias: Option<Weight>,
    pub geometry: Geometry,
    /// The batch norm whose result this convolution's is.
    batch_norm: Option<String>,
    /// Padding follows the image: as many pixels as give ceil(size / stride), the odd one behind. TensorFlow's `SAME`.
    same: bool,
}

impl Conv2d {
    /// `kernel` x `kernel`, with a bias.
    pub fn load(scope: &Scope, inputs: usize, outputs: usize, kernel: usize, geometry: Geometry) -> Conv2d {
        let bias = scope.weight("bias", &[outputs], Layout::Plain);
        Conv2d { bias: Some(bias), ..Self::without_bias(scope, inputs, outputs, kernel, geometry) }
    }

    pub fn without_bias(scope: &Scope, inputs: usize, outputs: usize, kernel: usize, geometry: Geometry) -> Conv2d {
        let weight = scope.weight("weight", &[outputs, inputs / geometry.groups.max(1), kernel, kernel], Layout::ConvWeight);
        Conv2d { name: scope.name().to_string(), weight, bias: None, geometry, batch_norm: None, same: false }
    }

    /// The convolution as the file has it, weight `[O, I/groups, KH, KW]` and a bias if there is one: `inputs` channels
    /// in inputs / (I/groups) groups, odd kernels padded by half of them.
    pub fn as_stored(scope: &Scope, inputs: usize, stride: usize) -> Conv2d {
        let shape = scope.shape("weight").unwrap_or(&[]).to_vec();
        let (outputs, per_group, kernel) = match *shape.as_slice() {
            [o, i, kh, kw] => (o, i, [kh, kw]),
            _ => (inputs, inputs, [1, 1]),
        };
        // Nobody groups 1x1 convolutions in these families: there a mismatch is an error.
        let fits = per_group > 0
            && (per_group == inputs || kernel != [1, 1])
            && inputs.is_multiple_of(per_group)
            && outputs.is_multiple_of(inputs / per_group)
            && inputs > 0;
        if !fits {
            scope.fault(&format!("weight is {shape:?}, expected one for {inputs} channels in equal groups"));
        }
        let groups = if fits { inputs / per_group } else { 1 };
        let [top, left] = kernel.map(|k| k / 2);
        let geometry = Geometry { padding: [top, top, left, left], groups, ..Geometry::default().strided(stride) };
        let weight = scope.weight("weight", &[outputs, per_group, kernel[0], kernel[1]], Layout::ConvWeight);
        let bias = scope.has("bias").then(|| scope.weight("bias", &[outputs], Layout::Plain));
        Conv2d { name: scope.name().to_string(), weight, bias, geometry, batch_norm: None, same: false }
    }

    /// The same without padding.
    pub fn unpadded(self) -> Conv2d {
        let geometry = Geometry { padding: [0; 4], ..self.geometry };
        Conv2d { geometry, ..self }
    }

    /// The same with `dilation` pixels from tap to tap, and padded by so much more.
    pub fn dilated(self, dilation: usize) -> Conv2d {
        let geometry = Geometry { padding: self.geometry.padding.map(|p| p * dilation), dilation: [dilation, dilation], ..self.geometry };
        Conv2d { geometry, ..self }
    }

    /// The same with the padding that TensorFlow calls `SAME`.
    pub fn same_padded(self) -> Conv2d {
        Conv2d { same: true, ..self }
    }

    /// Output channels.
    pub fn outputs(&self) -> usize {
        self.weight.dims().last().copied().unwrap_or(0)
    }

    /// The convolution `conv` without a bias and the batch norm `norm` behind it, both in `scope`, as one convolution.
    pub fn with_batch_norm(scope: &Scope, conv: &str, norm: &str, inputs: usize, outputs: usize, kernel: usize, geometry: Geometry) -> Conv2d {
        Self::without_bias(&scope.child(conv), inputs, outputs, kernel, geometry).batch_normed(&scope.child(norm), BATCH_NORM_EPS)
    }

    /// This convolution and the batch norm behind it as one: w' = w g, b' = beta + (bias - mean) g with
    /// g = weight / sqrt(var + eps), in f64. Its result can be tapped as the norm.
    pub fn batch_normed(self, norm: &Scope, eps: f64) -> Conv2d {
        let outputs = self.outputs();
        let affine = read_affine(norm, outputs, eps);
        let mut weight = self.weight.array.to_array();
        // The output channel is the last axis. Parameters that could not be loaded have no values: nothing to do then.
        for row in weight.data.chunks_exact_mut(outputs.max(1)) {
            row.iter_mut().zip(&affine.scale).for_each(|(w, g)| *w = (f64::from(*w) * g) as f32);
        }
        let own = self.bias.as_ref().map(|b| b.array.values()).unwrap_or_default();
        let of_conv = |o: usize| own.get(o).map_or(0.0, |&b| f64::from(b));
        let folded = |(o, (shift, scale)): (usize, (&f64, &f64))| (shift + of_conv(o) * scale) as f32;
        let data = affine.shift.iter().zip(&affine.scale).enumerate().map(folded).collect();
        let bias = Weight::new(&affine.bias.name, Array { shape: affine.bias.array.shape.clone(), data });
        let weight = Weight::new(&self.weight.name, weight);
        Conv2d { weight, bias: Some(bias), batch_norm: Some(norm.name().to_string()), ..self }
    }

    /// x: `[N, H, W, I]`; result `[N, OH, OW, O]`.
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        self.activated(t, x, None)
    }

    /// act(conv(x)) as the result of the batch norm: timm's `BatchNormAct2d`.
    pub fn activated(&self, t: &mut Tape, x: Tensor, act: Option<Function>) -> Result<Tensor> {
        let y = t.within(&self.name, |t| {
            let weight = t.weight(&self.weight);
            let bias = self.bias.as_ref().map(|bias| t.weight(bias));
            let geometry = if self.same { self.geometry_for(t, x)? } else { self.geometry };
            t.conv2d(x, weight, bias, &geometry)
        })?;
        let y = match act {
            Some(act) => t.activation(y, act)?,
            None => y,
        };
        t.tap(self.batch_norm.as_ref().unwrap_or(&self.name), y);
        Ok(y)
    }

    /// The geometry with `SAME` padding for the size of `x`: max((ceil(size / stride) - 1) stride + window - size, 0) in all.
    fn geometry_for(&self, t: &Tape, x: Tensor) -> Result<Geometry> {
        let [_, h, w, _] = t.nhwc(x)?;
        let [kh, kw] = [self.weight.dims()[0], self.weight.dims()[1]];
        let total = |size: usize, kernel: usize, axis: usize| {
            let (stride, window) = (self.geometry.stride[axis].max(1), kernel.saturating_sub(1) * self.geometry.dilation[axis] + 1);
            ((size.div_ceil(stride).max(1) - 1) * stride + window).saturating_sub(size)
        };
        let [rows, columns] = [total(h, kh, 0), total(w, kw, 1)];
        Ok(Geometry { padding: [rows / 2, rows - rows / 2, columns / 2, columns - columns / 2], ..self.geometry })
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
            let got = f64::from(conv.weight.array.values()[o]) * x + f64::from(conv.bias.as_ref().unwrap().array.values()[o]);
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn same_padding_follows_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut writer = Writer::new();
        writer.f32("conv.weight", &[4, 1, 5, 3], vec![1.0; 60]).unwrap();
        writer.write(&path).unwrap();
        let scope = Scope::open(&path, "test").unwrap();
        let conv = Conv2d::as_stored(&scope.child("conv"), 4, 2);
        assert_eq!((conv.geometry.groups, conv.geometry.padding, conv.outputs()), (4, [2, 2, 1, 1], 4));
        let conv = conv.same_padded();
        for ([h, w], padding, size) in [([8, 8], [1, 2, 0, 1], [4, 4]), ([7, 9], [2, 2, 1, 1], [4, 5]), ([1, 2], [2, 2, 0, 1], [1, 1])] {
            let mut t = Tape::new();
            let x = t.input("x", &[1, h, w, 4], crate::base::DType::F32);
            assert_eq!(conv.geometry_for(&t, x).unwrap().padding, padding);
            let y = conv.forward(&mut t, x).unwrap();
            assert_eq!(t.shape(y).dims(), [1, size[0], size[1], 4]);
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
