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
    }
}
