//! Scale and shift of each channel by two vectors, with ReLU fused: a batch norm in evaluation that no convolution takes up.
//!
//! y[..., c] = act(x[..., c] scale[c] + shift[c]).   x, y: `[..., C]`; scale, shift: `[C]`.
//! A batch norm is scale = weight / sqrt(var + eps), shift = bias - mean scale.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub channels: u32,
        pub relu: u32,
    }
}

pub static OP: Op = Op {
    name: "channel_affine",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 4e-7, reason: "two roundings, the product's at most that of the largest term" },
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/channel_affine.wgsl")])],
};

impl Tape {
    /// x scale + shift per channel of `x` `[..., C]`, with `scale` and `shift` `[C]`; `relu` cuts the result off below 0.
    pub fn channel_affine(&mut self, x: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        let channels = shape.last();
        if shape.rank() == 0 {
            return Err(self.mismatch("channel_affine of a scalar, expected [..., C]".to_string()));
        }
        for (name, tensor) in [("scale", scale), ("shift", shift)] {
            if self.shape(tensor).dims() != [channels] {
                return Err(self.mismatch(format!("channel_affine of {shape}: {name} is {}, expected [{channels}]", self.shape(tensor))));
            }
        }
        let params = Params { len: shape.numel() as u32, channels: channels as u32, relu: u32::from(relu) };
        Ok(self.push(&OP, &params, &[x, scale, shift], shape.dims(), DType::F32))
    }
}

/// Values of a task of the twin.
const TASK: usize = 16_384;

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let [x, scale, shift] = *call.inputs else { return };
    let channels = (p.channels as usize).max(1);
    let task = channels * (TASK / channels).max(1);
    call.output.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            for c in 0..channels {
                y[c] = x[c] * scale[c] + shift[c];
            }
            if p.relu != 0 {
                // Not max: it would turn NaN into 0 and hide where it was made.
                y.iter_mut().for_each(|v| *v = if *v < 0.0 { 0.0 } else { *v });
            }
        }
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 2 * s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], relu: bool) -> Case {
    let image = shape.len() == 4;
    let channels = if image { shape[1] } else { shape[shape.len() - 1] };
    let inputs = vec![
        CaseInput::new("x", shape, if image { Layout::Image } else { Layout::Plain }, Fill::Normal),
        CaseInput::new("scale", &[channels], Layout::Plain, Fill::Affine { scale: 0.5, shift: 1.0 }),
        CaseInput::plain("shift", &[channels]),
    ];
    Case::new(name, inputs, move |t, i| t.channel_affine(i[0], i[1], i[2], relu))
}

fn cases() -> Vec<Case> {
    vec![
        case("images", &[2, 7, 5, 3], false),
        case("images_relu", &[2, 13, 3, 5], true),
        case("vectors", &[9, 31], false),
        case("tokens_relu", &[3, 5, 17], true),
        case("one_channel", &[2, 1, 5, 7], false),
        case("large", &[2, 131, 127, 129], true).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("densenet_256x56x56", &[8, 256, 56, 56], true)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 3, 4], DType::F32);
        let (scale, shift) = (t.input("scale", &[4], DType::F32), t.input("shift", &[3], DType::F32));
        let fact = "channel_affine of [2, 3, 4]: shift is [3], expected [4]";
        assert_eq!(t.channel_affine(x, scale, shift, false).unwrap_err().fact(), fact);
        let scalar = t.input("scalar", &[], DType::F32);
        assert!(t.channel_affine(scalar, scale, scale, false).is_err());
        let y = t.channel_affine(x, scale, scale, true).unwrap();
        assert_eq!(t.shape(y).dims(), [2, 3, 4]);
    }
}
