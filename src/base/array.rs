//! A dense row-major f32 array on the host, and the axis orders at the program's borders.

use super::{Error, Kind, Result, Shape};

#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Shape,
    pub data: Vec<f32>,
}

impl Array {
    /// Fails when `data` does not hold exactly the shape's elements.
    pub fn new(shape: &[usize], data: Vec<f32>) -> Result<Self> {
        let shape = Shape::new(shape);
        if shape.numel() != data.len() {
            return Err(Error::new(Kind::Shape, "array", format!("{} values, expected {} for {shape}", data.len(), shape.numel())));
        }
        Ok(Array { shape, data })
    }

    pub fn zeros(shape: &[usize]) -> Self {
        let shape = Shape::new(shape);
        Array { data: vec![0.0; shape.numel()], shape }
    }

    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// The same values with the axes in another order: axis `i` of the result is axis `order[i]` of `self`.
    /// `order` is a permutation of the axes.
    pub fn permute(&self, order: &[usize]) -> Array {
        let dims: Vec<usize> = order.iter().map(|&axis| self.dims()[axis]).collect();
        Array { shape: Shape::new(&dims), data: permuted(self.dims(), &self.data, order) }
    }

    /// `[N, C, H, W]` (PyTorch) to `[N, H, W, C]` (ours); other ranks are returned as they are.
    pub fn to_channels_last(&self) -> Array {
        if self.dims().len() == 4 { self.permute(&[0, 2, 3, 1]) } else { self.clone() }
    }

    /// `[N, H, W, C]` (ours) to `[N, C, H, W]` (PyTorch); other ranks are returned as they are.
    pub fn to_channels_first(&self) -> Array {
        if self.dims().len() == 4 { self.permute(&[0, 3, 1, 2]) } else { self.clone() }
    }

    /// Items `from..to` of the first axis.
    pub fn rows(&self, from: usize, to: usize) -> Array {
        let per = self.data.len() / self.dims()[0].max(1);
        let mut dims = self.dims().to_vec();
        dims[0] = to - from;
        Array { shape: Shape::new(&dims), data: self.data[from * per..to * per].to_vec() }
    }
}

/// Row-major `values` of the shape `dims` with the axes in another order: axis `i` of the result is axis `order[i]`.
pub(crate) fn permuted<T: Copy>(dims: &[usize], values: &[T], order: &[usize]) -> Vec<T> {
    assert_eq!(order.len(), dims.len(), "permute: one entry per axis");
    let mut strides = vec![1usize; dims.len()];
    for axis in (0..dims.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * dims[axis + 1];
    }
    let out_dims: Vec<usize> = order.iter().map(|&a| dims[a]).collect();
    let out_strides: Vec<usize> = order.iter().map(|&a| strides[a]).collect();
    // Rows of the result along its last axis; the odometer counts the axes before it.
    let (row, row_stride) = (out_dims.last().copied().unwrap_or(1), out_strides.last().copied().unwrap_or(1));
    let mut data = Vec::with_capacity(values.len());
    let mut index = vec![0usize; dims.len().saturating_sub(1)];
    let mut at = 0usize;
    for _ in 0..values.len().checked_div(row).unwrap_or(0) {
        data.extend((0..row).map(|i| values[at + i * row_stride]));
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += out_strides[axis];
            if index[axis] < out_dims[axis] {
                break;
            }
            at -= out_strides[axis] * out_dims[axis];
            index[axis] = 0;
        }
    }
    data
}

/// sqrt(mean(x^2)) in f64.
pub fn rms(values: &[f32]) -> f64 {
    let sum: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    (sum / values.len().max(1) as f64).sqrt()
}

/// rms(actual - expected) / rms(expected); infinite when the lengths differ or a value is not finite.
pub fn relative_rms(actual: &[f32], expected: &[f32]) -> f64 {
    if actual.len() != expected.len() {
        return f64::INFINITY;
    }
    let sum: f64 = actual.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    let value = (sum / actual.len().max(1) as f64).sqrt() / rms(expected).max(1e-30);
    if value.is_finite() { value } else { f64::INFINITY }
}

/// Peak signal to noise ratio in dB for values in `[0, peak]`; infinite for equal arrays, NaN never.
pub fn psnr(actual: &[f32], expected: &[f32], peak: f64) -> f64 {
    if actual.len() != expected.len() {
        return f64::NEG_INFINITY;
    }
    let mse: f64 = actual.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>() / actual.len().max(1) as f64;
    if !mse.is_finite() {
        return f64::NEG_INFINITY;
    }
    10.0 * (peak * peak / mse).log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permute_moves_axes() {
        let a = Array::new(&[1, 2, 2, 3], (0..12).map(|v| v as f32).collect()).unwrap();
        let b = a.to_channels_last();
        assert_eq!(b.dims(), &[1, 2, 3, 2]);
        assert_eq!(b.data[..4], [0.0, 6.0, 1.0, 7.0]);
        assert_eq!(b.to_channels_first(), a);
    }

    #[test]
    fn measures_do_not_hide_nan() {
        assert!(relative_rms(&[f32::NAN], &[1.0]).is_infinite());
        assert_eq!(psnr(&[f32::NAN], &[1.0], 1.0), f64::NEG_INFINITY);
        assert!(psnr(&[1.0], &[1.0], 1.0).is_infinite());
    }
}
