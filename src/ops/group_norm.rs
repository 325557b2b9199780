//! Group normalisation, with SiLU fused: Wu and He, "Group Normalization" (2018), equations 1 to 7.
//!
//! y = act((x - mean) / sqrt(var + eps) * weight + bias); mean and var over the spatial axes and the C/G channels of a
//! group, var without Bessel's correction. x, y: `[N, ..., C]`; weight, bias: `[C]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::group_norm_apply::{chunk_of, normalise};
use crate::ops::{ELEM, TREE_F32, TREE_SUBGROUP, activation};
use crate::params;
use crate::plan::card::grid_1d;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Machine, Op, StepView, Tape, Tensor, TwinCall, Variant};

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
    f16: true,
    statistics: &[],
    variants: &[
        Variant {
            name: "direct",
            family: "direct",
            source: &[ELEM, TREE_F32, activation::SIGMOID, include_str!("../../shaders/group_norm.wgsl")],
            workgroup: 64,
            meant_for: Machine::Any,
            constants: |_| vec![],
            accepts: |_| true,
            grid,
        },
        Variant {
            name: "wide_subgroups",
            family: "wide_subgroups",
            source: &[ELEM, TREE_SUBGROUP, activation::SIGMOID, include_str!("../../shaders/group_norm_wide.wgsl")],
            ..WIDE
        },
        WIDE,
    ],
};

const WIDE: Variant = Variant {
    name: "wide",
    family: "wide",
    source: &[ELEM, TREE_F32, activation::SIGMOID, include_str!("../../shaders/group_norm_wide.wgsl")],
    workgroup: 256,
    meant_for: Machine::Hardware,
    constants: |_| vec![],
    accepts: |s| {
        let p: Params = s.params();
        p.channels / p.groups.max(1) <= 256 && p.spatial * (p.channels / p.groups.max(1)) >= 512
    },
    grid,
};

/// A workgroup per group of an item.
fn grid(s: &StepView) -> [u32; 3] {
    let p: Params = s.params();
    grid_1d((p.batch * p.groups) as usize, 1)
}

impl Tape {
    /// Group norm of `x` `[N, ..., C]`; `silu` applies x * sigmoid(x) to the result. A large image takes two steps: moments of chunks of
    /// its pixels, and their use.
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
        if let Some(chunk) = chunk_of(spatial, channels, groups) {
            let moments = self.group_moments(x, groups, chunk)?;
            return self.group_norm_apply(x, weight, bias, moments, chunk, eps, silu);
        }
        let params = Params { spatial: spatial as u32, channels: channels as u32, groups: groups as u32, eps, silu: u32::from(silu), batch: batch as u32 };
        Ok(self.push(&OP, &params, &[x, weight, bias], shape.dims(), DType::F32))
    }
}

/// Rows of a task of the twin. Sums do not depend on threads or batch: tasks have this size and are added in order.
const ROWS: usize = 64;

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let channels = p.channels as usize;
    let width = channels / p.groups as usize;
    let [x, weight, bias] = *call.inputs else { return };
    let item = p.spatial as usize * channels;
    let count = (p.spatial as usize * width) as f64;
    call.output.par_chunks_mut(item.max(1)).zip(x.par_chunks(item.max(1))).for_each(|(y, x)| {
        // Per channel, so that loops run along C: the mean of the channel's group, and 1 / deviation times weight.
        let zero = vec![0f32; channels];
        let mean: Vec<f32> = group_sums(x, &zero, width, |v, _| v).iter().flat_map(|s| vec![(s / count) as f32; width]).collect();
        let squares = group_sums(x, &mean, width, |v, m| (v - m) * (v - m));
        let inv = squares.iter().flat_map(|s| vec![1.0 / ((s / count) as f32 + p.eps).sqrt(); width]);
        let scale: Vec<f32> = inv.zip(weight).map(|(inv, w)| inv * w).collect();
        y.par_chunks_mut(ROWS * channels).zip(x.par_chunks(ROWS * channels)).for_each(|(y, x)| {
            normalise(y, x, [&mean, &scale, bias], p.silu != 0);
        });
    });
}

/// Sum of `term(x, mean of its channel)` over each group of `width` channels: f32 within a task, f64 across.
fn group_sums(x: &[f32], mean: &[f32], width: usize, term: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f64> {
    let channels = mean.len();
    let task = |x: &[f32]| {
        let mut sums = vec![0f32; channels];
        for row in x.chunks_exact(channels) {
            for c in 0..channels {
                sums[c] += term(row[c], mean[c]);
            }
        }
        sums
    };
    let tasks: Vec<Vec<f32>> = x.par_chunks(ROWS * channels).map(task).collect();
    let mut total = vec![0f64; channels / width];
    for sums in tasks {
        sums.chunks_exact(width).zip(&mut total).for_each(|(sums, total)| *total += sums.iter().map(|&s| f64::from(s)).sum::<f64>());
    }
    total
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
        case("odd_pixels", &[2, 30, 23, 31], 3, 1e-5, true, Fill::Affine { scale: 2.0, shift: 30.0 }).without_golden(),
        case("many_groups", &[70, 960, 1, 2], 960, 1e-5, false, Fill::Normal).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("unet_96x16x16", &[8, 96, 16, 16], 32, 1e-5, true, Fill::Normal), case("sd_640x32x32", &[2, 640, 32, 32], 32, 1e-5, true, Fill::Normal)]
}
