//! Softmax over the last axis, with the row's maximum subtracted first so that no exponential overflows.
//!
//! y = exp(x - max) / sum exp(x - max).   x, y: `[..., C]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{lanes, row_slices};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall};

params! {
    pub struct Params {
        pub rows: u32,
        pub channels: u32,
    }
}

pub static OP: Op = Op {
    name: "softmax",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 5e-6, reason: "exp(x) of WGSL may be wrong by 3 + 2|x| ulp; large |x - max| have small results" },
    f16: true,
    statistics: &[],
    variants: &row_slices::variants(&KERNELS),
};

static KERNELS: [[&str; 3]; 4] = row_slices::sources(include_str!("../../shaders/softmax.wgsl"), include_str!("../../shaders/softmax_wide.wgsl"));

impl Tape {
    /// Softmax of `x` over its last axis.
    pub fn softmax(&mut self, x: Tensor) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        let channels = shape.last();
        if shape.rank() == 0 || channels == 0 {
            return Err(self.mismatch(format!("softmax of {shape}: the last axis must hold values")));
        }
        let params = Params { rows: (shape.numel() / channels) as u32, channels: channels as u32 };
        Ok(self.push(&OP, &params, &[x], shape.dims(), DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let channels = p.channels as usize;
    let x = call.inputs[0];
    call.output.par_chunks_mut(channels).zip(x.par_chunks(channels)).for_each(|(y, x)| {
        y.copy_from_slice(x);
        lanes::wide(Row(y));
    });
}

struct Row<'a>(&'a mut [f32]);

impl lanes::Job for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let max = lanes::max(self.0, f32::NEG_INFINITY);
        let sum = lanes::exp_sum(self.0, max);
        self.0.iter_mut().for_each(|y| *y /= sum);
    }
}

fn cost(s: &StepView) -> Cost {
    // Maximum, two exponentials with their differences, sum, quotient.
    Cost { flops: 7 * s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], fill: Fill) -> Case {
    Case::new(name, vec![CaseInput::new("x", shape, Layout::Plain, fill)], |t, i| t.softmax(i[0]))
}

fn cases() -> Vec<Case> {
    vec![
        case("logits", &[5, 7], Fill::Normal),
        case("attention", &[6, 5, 37], Fill::Affine { scale: 3.0, shift: 0.0 }),
        case("wide", &[3, 401], Fill::Normal),
        case("one", &[4, 1], Fill::Normal),
        // exp(x) alone would overflow.
        case("far", &[3, 65], Fill::Affine { scale: 20.0, shift: 1000.0 }),
        case("many_rows", &[40_000, 9], Fill::Normal).without_golden(),
        // Slices of 8, 16, 32 and 64 invocations, with and without groups that are not there; CLIP's 77 tokens.
        case("keys_64", &[6, 7, 64], Fill::Affine { scale: 3.0, shift: 0.0 }).without_golden(),
        case("keys_77", &[11, 77], Fill::Normal).without_golden(),
        case("ragged_100", &[13, 100], Fill::Affine { scale: 20.0, shift: 1000.0 }).without_golden(),
        case("keys_320", &[37, 320], Fill::Normal).without_golden(),
        case("keys_640", &[17, 640], Fill::Normal).without_golden(),
        case("keys_1280", &[5, 1280], Fill::Affine { scale: 3.0, shift: -50.0 }).without_golden(),
        // Exponentials overflow unless the maximum is the whole row's.
        case("far_apart", &[5, 1200], Fill::Affine { scale: 200.0, shift: 0.0 }).without_golden(),
        case("many_narrow_rows", &[66_001, 8], Fill::Normal).without_golden(),
        case("widest", &[3, 8192], Fill::Normal).without_golden(),
        case("ragged_7204", &[2, 7204], Fill::Normal).without_golden(),
        case("long_rows", &[3, 20_011], Fill::Normal).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![
        case("unet_48x64x64", &[48, 64, 64], Fill::Normal),
        case("sd_16x1024x1024", &[16, 1024, 1024], Fill::Normal),
        case("text_16x1024x77", &[16, 1024, 77], Fill::Normal),
        case("keys_16x1024x64", &[16, 1024, 64], Fill::Normal),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let empty = t.input("empty", &[3, 0], DType::F32);
        assert_eq!(t.softmax(empty).unwrap_err().fact(), "softmax of [3, 0]: the last axis must hold values");
        let x = t.input("x", &[3, 4], DType::F32);
        assert!(t.softmax(x).is_ok());
    }
}
