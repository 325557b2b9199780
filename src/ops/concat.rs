//! Concatenation along the last axis: channels of images, features of tokens.
//!
//! y[..., c] = a[..., c] for c < A, b[..., c - A] beyond.   a: `[..., A]`; b: `[..., B]`; y: `[..., A + B]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub a_channels: u32,
        pub b_channels: u32,
    }
}

pub static OP: Op = Op {
    name: "concat",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance::EXACT,
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/concat.wgsl")])],
};

impl Tape {
    /// `a` and `b` side by side along the last axis; the other axes must be equal.
    pub fn concat(&mut self, a: Tensor, b: Tensor) -> Result<Tensor> {
        let (a_shape, b_shape) = (self.shape(a).clone(), self.shape(b).clone());
        let outer = |dims: &[usize]| dims.split_last().map(|(_, outer)| outer.to_vec());
        if outer(a_shape.dims()).is_none() || outer(a_shape.dims()) != outer(b_shape.dims()) {
            return Err(self.mismatch(format!("concat of {a_shape} and {b_shape}: all axes but the last must be equal")));
        }
        let mut shape = a_shape.dims().to_vec();
        shape[a_shape.rank() - 1] += b_shape.last();
        let len: usize = a_shape.numel() + b_shape.numel();
        let params = Params { len: len as u32, a_channels: a_shape.last() as u32, b_channels: b_shape.last() as u32 };
        Ok(self.push(&OP, &params, &[a, b], &shape, DType::F32))
    }
}

impl Tape {
    /// `parts` one after the other along `axis`; the other axes must be equal.
    pub fn concat_axis(&mut self, parts: &[Tensor], axis: usize) -> Result<Tensor> {
        let Some((&first, rest)) = parts.split_first() else {
            return Err(self.mismatch("concat of nothing, expected one tensor or more".to_string()));
        };
        let mut joined = self.shape(first).dims().to_vec();
        if axis >= joined.len() {
            return Err(self.mismatch(format!("concat along axis {axis} of {}", self.shape(first))));
        }
        let mut y = first;
        for &part in rest {
            let shape = self.shape(part).dims().to_vec();
            let others_equal = shape.len() == joined.len() && (0..shape.len()).all(|i| i == axis || shape[i] == joined[i]);
            if !others_equal {
                return Err(self.mismatch(format!("concat of {joined:?} and {shape:?} along axis {axis}: all other axes must be equal")));
            }
            // Rows of everything from the axis on: [outer, axis * inner].
            let outer: usize = joined[..axis].iter().product();
            let flat = |dims: &[usize]| [outer, dims[axis..].iter().product()];
            let (a, b) = (self.reshape(y, &flat(&joined))?, self.reshape(part, &flat(&shape))?);
            joined[axis] += shape[axis];
            let both = self.concat(a, b)?;
            y = self.reshape(both, &joined)?;
        }
        Ok(y)
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let (a_channels, b_channels) = (p.a_channels as usize, p.b_channels as usize);
    let [a, b] = *call.inputs else { return };
    call.output.par_chunks_mut((a_channels + b_channels).max(1)).enumerate().for_each(|(row, y)| {
        y[..a_channels].copy_from_slice(&a[row * a_channels..][..a_channels]);
        y[a_channels..].copy_from_slice(&b[row * b_channels..][..b_channels]);
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 0, bytes: s.bytes() }
}

fn case(name: &'static str, a: &[usize], b: &[usize]) -> Case {
    let layout = if a.len() == 4 { Layout::Image } else { Layout::Plain };
    let input = |name, shape| CaseInput::new(name, shape, layout, Fill::Normal);
    Case::new(name, vec![input("a", a), input("b", b)], |t, i| t.concat(i[0], i[1]))
}

fn cases() -> Vec<Case> {
    vec![
        case("images", &[2, 5, 3, 7], &[2, 4, 3, 7]),
        case("one_channel", &[1, 4, 5, 5], &[1, 1, 5, 5]),
        case("tokens", &[2, 9, 3], &[2, 9, 10]),
        case("rank_1", &[17], &[6]),
        case("large", &[2, 65, 131, 137], &[2, 3, 131, 137]).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("unet_192+96x16x16", &[8, 192, 16, 16], &[8, 96, 16, 16]), case("sd_640+320x64x64", &[2, 640, 64, 64], &[2, 320, 64, 64])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let a = t.input("a", &[2, 4, 4, 6], DType::F32);
        let b = t.input("b", &[2, 4, 5, 6], DType::F32);
        let c = t.input("c", &[6], DType::F32);
        assert_eq!(t.concat(a, b).unwrap_err().fact(), "concat of [2, 4, 4, 6] and [2, 4, 5, 6]: all axes but the last must be equal");
        assert!(t.concat(a, c).is_err());
        let y = t.concat(a, a).unwrap();
        assert_eq!(t.shape(y).dims(), [2, 4, 4, 12]);
        assert_eq!(t.concat_axis(&[a, c], 1).unwrap_err().fact(), "concat of [2, 4, 4, 6] and [6] along axis 1: all other axes must be equal");
        assert!(t.concat_axis(&[a], 4).is_err() && t.concat_axis(&[], 0).is_err());
    }

    #[test]
    fn an_inner_axis_joins_rows() {
        let mut t = Tape::new();
        let a = t.input("a", &[2, 1, 2], DType::F32);
        let b = t.input("b", &[2, 2, 2], DType::F32);
        let y = t.concat_axis(&[a, b, a], 1).unwrap();
        assert_eq!(t.shape(y).dims(), [2, 4, 2]);
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]);
        let got = crate::ops::case::run_tape(&t, &[&a, &b], y).unwrap();
        assert_eq!(got, [1.0, 2.0, 5.0, 6.0, 7.0, 8.0, 1.0, 2.0, 3.0, 4.0, 9.0, 10.0, 11.0, 12.0, 3.0, 4.0]);
    }
}
