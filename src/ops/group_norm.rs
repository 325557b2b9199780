//! Group normalisation, with SiLU fused: Wu and He, "Group Normalization" (2018), equations 1 to 7.
//!
//! y = act((x - mean) / sqrt(var + eps) * weight + bias); mean and var over the spatial axes and the C/G channels of a
//! group, var without Bessel's correction. x, y: `[N, ..., C]`; weight, bias: `[C]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, activation};
use crate::params;
use crate::plan::card::grid_1d;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub spatial: u32,
        pub channels: u32,
        pub groups: u32,
        pub eps: f32,
        pub silu: u32,
        pub batch: u32,
    }
}

pub static OP: Op = Op {
    name: "group_norm",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 2e-5, reason: "f32 sums of up to 1e4 terms, with |mean| up to 1000 deviations in one case" },
    variants: &[Variant {
        name: "direct",
        source: &[ELEM, activation::FUNCTIONS, include_str!("../../shaders/group_norm.wgsl")],
        workgroup: 64,
        constants: |_| vec![],
        accepts: |_| true,
        grid: |s| {
            let p: Params = s.params();
            grid_1d((p.batch * p.groups) as usize, 1)
        },
    }],
};

impl Tape {
    /// Group norm of `x` `[N, ..., C]`; `silu` applies x * sigmoid(x) to the result.
    pub fn group_norm(&mut self, x: Tensor, weight: Tensor, bias: Tensor, groups: usize, eps: f32, silu: bool) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        let channels = shape.last();
        if shape.rank() < 2 || groups == 0 || !channels.is_multiple_of(groups) {
            return Err(self.mismatch(format!("group_norm of {shape} in {groups} groups: the last axis must be divisible by the groups")));
        }
        for tensor in [weight, bias] {
            if self.shape(tensor).dims() != [channels] {
                return Err(self.mismatch(format!("group_norm parameter is {}, expected [{channels}]", self.shape(tensor))));
            }
        }
        let batch = shape[0];
        let spatial = shape.numel() / (batch * channels).max(1);
        let params = Params { spatial: spatial as u32, channels: channels as u32, groups: groups as u32, eps, silu: u32::from(silu), batch: batch as u32 };
        Ok(self.push(&OP, &params, &[x, weight, bias], shape.dims(), DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let (channels, groups) = (p.channels as usize, p.groups as usize);
    let width = channels / groups;
    let [x, weight, bias] = call.inputs else { return };
    let item = p.spatial as usize * channels;
    call.output.par_chunks_mut(item).zip(x.par_chunks(item)).for_each(|(y, x)| {
        let count = (p.spatial as usize * width) as f64;
        let mut sum = vec![0f64; groups];
        for row in x.chunks_exact(channels) {
            row.chunks_exact(width).zip(&mut sum).for_each(|(v, s)| *s += f64::from(v.iter().sum::<f32>()));
        }
        let mean: Vec<f32> = sum.iter().map(|s| (s / count) as f32).collect();
        let mut square = vec![0f64; groups];
        for row in x.chunks_exact(channels) {
            for (g, v) in row.chunks_exact(width).enumerate() {
                square[g] += f64::from(v.iter().map(|v| (v - mean[g]) * (v - mean[g])).sum::<f32>());
            }
        }
        let inv: Vec<f32> = square.iter().map(|s| 1.0 / ((s / count) as f32 + p.eps).sqrt()).collect();
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            for c in 0..channels {
                let v = (x[c] - mean[c / width]) * inv[c / width] * weight[c] + bias[c];
                y[c] = if p.silu != 0 { activation::silu(v) } else { v };
            }
        }
    });
}

fn cost(s: &StepView) -> Cost {
    // Two passes of statistics (3 flop) and one of output (4 flop); x is read at least once.
    Cost { flops: 7 * s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], groups: usize, eps: f32, silu: bool, fill: Fill) -> Case {
    let channels = shape[1];
    let inputs = vec![
        CaseInput::new("x", shape, if shape.len() == 4 { Layout::Image } else { Layout::Plain }, fill),
        CaseInput::new("weight", &[channels], Layout::Plain, Fill::Affine { scale: 0.5, shift: 1.0 }),
        CaseInput::plain("bias", &[channels]),
    ];
    Case::new(name, inputs, move |t, i| t.group_norm(i[0], i[1], i[2], groups, eps, silu))
}

fn cases() -> Vec<Case> {
    vec![
        case("plain", &[2, 12, 5, 3], 4, 1e-5, false, Fill::Normal),
        case("silu", &[2, 64, 8, 8], 32, 1e-5, true, Fill::Normal),
        case("one_group", &[1, 6, 4, 4], 1, 1e-6, false, Fill::Normal),
        case("instance", &[3, 7, 1, 9], 7, 1e-5, true, Fill::Normal),
        case("far_mean", &[1, 8, 16, 16], 2, 1e-5, false, Fill::Affine { scale: 1.0, shift: 100.0 }),
        case("unet_block", &[2, 192, 16, 16], 32, 1e-5, true, Fill::Normal).without_golden(),
        case("many_groups", &[70, 960, 1, 2], 960, 1e-5, false, Fill::Normal).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("unet_96x16x16", &[8, 96, 16, 16], 32, 1e-5, true, Fill::Normal), case("sd_320x64x64", &[2, 320, 64, 64], 32, 1e-5, true, Fill::Normal)]
}
