//! Stored elements as numbers: little-endian bytes of one type, with strides, to f32 or i64 in row-major order.

use half::{bf16, f16};
use safetensors::tensor::Dtype;

/// Elements of a file that belong to one tensor.
#[derive(Clone, Copy)]
pub(crate) struct Elements<'a> {
    /// From the first element on.
    pub bytes: &'a [u8],
    pub shape: &'a [usize],
    /// In elements.
    pub strides: &'a [usize],
}

impl Elements<'_> {
    fn each<const N: usize, T>(self, f: impl Fn([u8; N]) -> T) -> Vec<T> {
        let all = self.bytes.as_chunks::<N>().0;
        let count = self.shape.iter().product();
        if is_contiguous(self.shape, self.strides) {
            return all[..count].iter().map(|b| f(*b)).collect();
        }
        let mut out = Vec::with_capacity(count);
        let (mut index, mut at) = (vec![0usize; self.shape.len()], 0usize);
        for _ in 0..count {
            out.push(f(all[at]));
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        out
    }
}

/// Strides of a row-major tensor.
pub(crate) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

/// Whether the elements follow each other. Strides of axes of length 1 do not matter.
pub(crate) fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    row_major(shape).iter().zip(strides).zip(shape).all(|((want, stride), dim)| *dim == 1 || want == stride)
}

/// Floats, and integers of eight bits, as f32; f64 is rounded. None for other types.
pub(crate) fn floats(dtype: Dtype, elements: Elements) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => elements.each(f32::from_le_bytes),
        Dtype::F16 => elements.each(|b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => elements.each(|b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => elements.each(|b| f64::from_le_bytes(b) as f32),
        Dtype::I8 => elements.each(|b| i8::from_le_bytes(b).into()),
        Dtype::U8 => elements.each(|[b]| b.into()),
        _ => return None,
    })
}

pub(crate) fn f16s(elements: Elements) -> Vec<f16> {
    elements.each(f16::from_le_bytes)
}

pub(crate) fn bf16s(elements: Elements) -> Vec<bf16> {
    elements.each(bf16::from_le_bytes)
}

/// Integers; None for other types and where a u64 is too large.
pub(crate) fn integers(dtype: Dtype, elements: Elements) -> Option<Vec<i64>> {
    Some(match dtype {
        Dtype::I64 => elements.each(i64::from_le_bytes),
        Dtype::I32 => elements.each(|b| i32::from_le_bytes(b).into()),
        Dtype::I16 => elements.each(|b| i16::from_le_bytes(b).into()),
        Dtype::I8 => elements.each(|b| i8::from_le_bytes(b).into()),
        Dtype::U8 | Dtype::BOOL => elements.each(|[b]| b.into()),
        Dtype::U16 => elements.each(|b| u16::from_le_bytes(b).into()),
        Dtype::U32 => elements.each(|b| u32::from_le_bytes(b).into()),
        Dtype::U64 => elements.each(|b| i64::try_from(u64::from_le_bytes(b)).ok()).into_iter().collect::<Option<_>>()?,
        _ => return None,
    })
}
