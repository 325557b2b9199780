//! Layer normalisation: Ba, Kiros and Hinton, "Layer Normalization" (2016), equations 3 and 4.
//!
//! y = (x - mean) / sqrt(var + eps) * weight + bias; mean and var over the last axis, var without Bessel's correction.
//! x, y: `[..., C]`; weight, bias: `[C]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{lanes, row_slices};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall};

params! {
    pub struct Params {
        pub rows: u32,
        pub channels: u32,
        pub eps: f32,
    }
}

pub static OP: Op = Op {
    name: "layer_norm",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 2e-5, reason: "the mean is rounded to f32: with |mean| = 100 deviations its half ulp is 4e-6 deviations" },
    f16: true,
    statistics: &[],
    variants: &row_slices::variants(&KERNELS),
};

static KERNELS: [[&str; 3]; 4] = row_slices::sources(include_str!("../../shaders/layer_norm.wgsl"), include_str!("../../shaders/layer_norm_wide.wgsl"));

impl Tape {
    /// Layer norm of `x` over its last axis; `weight` and `bias` are `[C]`.
    pub fn layer_norm(&mut self, x: Tensor, weight: Tensor, bias: Tensor, eps: f32) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        let channels = shape.last();
        if shape.rank() == 0 || channels == 0 {
            return Err(self.mismatch(format!("layer_norm of {shape}: the last axis must hold channels")));
        }
        for tensor in [weight, bias] {
            if self.shape(tensor).dims() != [channels] {
                return Err(self.mismatch(format!("layer_norm parameter is {}, expected [{channels}]", self.shape(tensor))));
            }
        }
        let params = Params { rows: (shape.numel() / channels) as u32, channels: channels as u32, eps };
        Ok(self.push(&OP, &params, &[x, weight, bias], shape.dims(), DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let channels = p.channels as usize;
    let [x, weight, bias] = *call.inputs else { return };
    call.output.par_chunks_mut(channels).zip(x.par_chunks(channels)).for_each(|(y, x)| {
        let mean = (lanes::sum(x, f64::from) / channels as f64) as f32;
        let square = lanes::sum(x, |v| f64::from(v - mean).powi(2));
        let inv = 1.0 / ((square / channels as f64) as f32 + p.eps).sqrt();
        for c in 0..channels {
            y[c] = (x[c] - mean) * inv * weight[c] + bias[c];
        }
    });
}

fn cost(s: &StepView) -> Cost {
    // Two passes of statistics (4 flop) and one of output (4 flop).
    Cost { flops: 8 * s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], eps: f32, fill: Fill) -> Case {
    let channels = shape[shape.len() - 1];
    let inputs = vec![
        CaseInput::new("x", shape, Layout::Plain, fill),
        CaseInput::new("weight", &[channels], Layout::Plain, Fill::Affine { scale: 0.5, shift: 1.0 }),
        CaseInput::plain("bias", &[channels]),
    ];
    Case::new(name, inputs, move |t, i| t.layer_norm(i[0], i[1], i[2], eps))
}

fn cases() -> Vec<Case> {
    vec![
        case("tokens", &[2, 7, 45], 1e-5, Fill::Normal),
        case("narrow", &[13, 3], 1e-6, Fill::Normal),
        case("wide", &[1, 3, 301], 1e-5, Fill::Normal),
        case("far_mean", &[2, 3, 96], 1e-5, Fill::Affine { scale: 1.0, shift: 100.0 }),
        case("large_eps", &[5, 64], 0.5, Fill::Normal),
        case("many_rows", &[40_000, 9], 1e-5, Fill::Normal).without_golden(),
        // The widths of Stable Diffusion's three levels and of CLIP's text, by slices of 16, 32, 64 and 32 invocations.
        case("sd_320", &[2, 37, 320], 1e-5, Fill::Normal).without_golden(),
        case("sd_640", &[1, 17, 640], 1e-5, Fill::Normal).without_golden(),
        case("sd_1280", &[1, 5, 1280], 1e-5, Fill::Affine { scale: 1.0, shift: 30.0 }).without_golden(),
        case("text_768", &[1, 77, 768], 1e-5, Fill::Normal).without_golden(),
        case("odd_77", &[11, 77], 1e-5, Fill::Normal).without_golden(),
        // A slice whose last groups are not there, and more rows than one axis has workgroups, whatever takes a row.
        case("ragged_100", &[13, 100], 1e-5, Fill::Affine { scale: 1.0, shift: 10.0 }).without_golden(),
        case("many_narrow_rows", &[66_001, 8], 1e-5, Fill::Normal).without_golden(),
        case("widest", &[3, 8192], 1e-5, Fill::Normal).without_golden(),
        case("ragged_7204", &[2, 7204], 1e-5, Fill::Affine { scale: 2.0, shift: -3.0 }).without_golden(),
        case("long_rows", &[3, 20_011], 1e-5, Fill::Affine { scale: 2.0, shift: -3.0 }).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![
        case("vit_197x768", &[8, 197, 768], 1e-6, Fill::Normal),
        case("sd_1024x640", &[2, 1024, 640], 1e-5, Fill::Normal),
        case("sd_4096x320", &[2, 4096, 320], 1e-5, Fill::Normal),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 5, 8], DType::F32);
        let w = t.input("w", &[8], DType::F32);
        let b = t.input("b", &[7], DType::F32);
        assert_eq!(t.layer_norm(x, w, b, 1e-5).unwrap_err().fact(), "layer_norm parameter is [7], expected [8]");
        assert!(t.layer_norm(x, x, w, 1e-5).is_err());
        let empty = t.input("e", &[4, 0], DType::F32);
        assert!(t.layer_norm(empty, w, w, 1e-5).unwrap_err().fact().contains("must hold channels"));
        let y = t.layer_norm(x, w, w, 1e-5).unwrap();
        assert_eq!(t.shape(y).dims(), [2, 5, 8]);
    }
}
