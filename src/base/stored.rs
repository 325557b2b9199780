//! The values of a parameter as its file holds them: f32, or 16 bits each where the file has no more. They are widened where they
//! are used, so that a checkpoint of half precision takes half the memory.

use std::borrow::Cow;

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};

use super::array::permuted;
use super::{Array, Shape};

/// A dense row-major array of one element type.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub shape: Shape,
    values: Values,
}

#[derive(Clone, Debug, PartialEq)]
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// Values of 16 bits.
#[derive(Clone, Debug, PartialEq)]
pub enum Halves {
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl From<Array> for Stored {
    fn from(array: Array) -> Stored {
        Stored { shape: array.shape, values: Values::F32(array.data) }
    }
}

impl Halves {
    pub fn len(&self) -> usize {
        match self {
            Halves::F16(v) => v.len(),
            Halves::Bf16(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Position and value of the first that is not finite.
    pub fn first_nonfinite(&self) -> Option<(usize, f32)> {
        match self {
            Halves::F16(v) => v.iter().position(|v| !v.is_finite()).map(|at| (at, v[at].to_f32())),
            Halves::Bf16(v) => v.iter().position(|v| !v.is_finite()).map(|at| (at, v[at].to_f32())),
        }
    }
}

impl Stored {
    /// Values of `shape`, as many as it has, brought into another order of axes: axis `i` of the result is axis `order[i]`.
    pub fn halves(shape: &[usize], halves: Halves, order: Option<&[usize]>) -> Stored {
        let identity: Vec<usize> = (0..shape.len()).collect();
        let order = order.unwrap_or(&identity);
        let is_same = order == identity;
        let values = match halves {
            Halves::F16(v) => Values::F16(if is_same { v } else { permuted(shape, &v, order) }),
            Halves::Bf16(v) => Values::Bf16(if is_same { v } else { permuted(shape, &v, order) }),
        };
        let dims: Vec<usize> = order.iter().map(|&axis| shape[axis]).collect();
        Stored { shape: Shape::new(&dims), values }
    }

    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Values, 0 for a parameter that could not be loaded.
    pub fn len(&self) -> usize {
        match &self.values {
            Values::F32(v) => v.len(),
            Values::F16(v) => v.len(),
            Values::Bf16(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.len() * if matches!(self.values, Values::F32(_)) { 4 } else { 2 }
    }

    /// The values where they are f32 already.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.values {
            Values::F32(v) => Some(v),
            _ => None,
        }
    }

    /// The values where they are f16.
    pub fn as_f16(&self) -> Option<&[f16]> {
        match &self.values {
            Values::F16(v) => Some(v),
            _ => None,
        }
    }

    /// Writes the values from `from` on, as many as `into` takes. Every value of 16 bits is one of f32.
    pub fn widen(&self, from: usize, into: &mut [f32]) {
        let range = from..from + into.len();
        match &self.values {
            Values::F32(v) => into.copy_from_slice(&v[range]),
            Values::F16(v) => v[range].convert_to_f32_slice(into),
            Values::Bf16(v) => v[range].convert_to_f32_slice(into),
        }
    }

    /// All values as f32: a copy where they are not.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self.as_f32() {
            Some(values) => Cow::Borrowed(values),
            None => {
                let mut values = vec![0.0; self.len()];
                self.widen(0, &mut values);
                Cow::Owned(values)
            }
        }
    }

    /// The same as an array of f32.
    pub fn to_array(&self) -> Array {
        Array { shape: self.shape.clone(), data: self.values().into_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_stay_sixteen_and_widen_exactly() {
        let values = [0.5f32, -1.5, 65_504.0, 6.0e-8, 3.0, 0.1];
        let f16s: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
        let bf16s: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
        let expected = [f16s.iter().map(|v| v.to_f32()).collect::<Vec<_>>(), bf16s.iter().map(|v| v.to_f32()).collect()];
        for (halves, expected) in [Halves::F16(f16s), Halves::Bf16(bf16s)].into_iter().zip(expected) {
            let plain = Stored::halves(&[2, 3], halves.clone(), None);
            assert_eq!((plain.bytes(), plain.dims(), &*plain.values()), (12, &[2usize, 3][..], &expected[..]));
            let turned = Stored::halves(&[2, 3], halves, Some(&[1, 0]));
            assert_eq!(turned.to_array(), Array::new(&[2, 3], expected).unwrap().permute(&[1, 0]));
            let mut part = [0.0; 2];
            turned.widen(2, &mut part);
            assert_eq!(part, turned.values()[2..4]);
        }
        let wide = Stored::from(Array::new(&[2], vec![1.0, 2.0]).unwrap());
        assert_eq!((wide.bytes(), wide.as_f32(), wide.as_f16()), (8, Some(&[1.0f32, 2.0][..]), None));
    }

    #[test]
    fn what_is_not_finite_is_found() {
        let halves = |values: &[f32]| Halves::F16(values.iter().map(|&v| f16::from_f32(v)).collect());
        assert_eq!(halves(&[1.0, 65_504.0]).first_nonfinite(), None);
        assert_eq!(halves(&[1.0, 70_000.0]).first_nonfinite(), Some((1, f32::INFINITY)));
        assert!(Halves::Bf16(vec![bf16::NAN]).first_nonfinite().is_some_and(|(at, v)| at == 0 && v.is_nan()));
    }
}
