//! Mean and variance of groups of channels over chunks of pixels: the first half of a group norm of a large image, for which
//! one workgroup per group would leave most of a GPU idle. [`group_norm_apply`](crate::ops::group_norm_apply) is the other half.
//!
//! y[n, p, 2 g] and y[n, p, 2 g + 1] = mean and var of x over the pixels of chunk p and the channels of group g, var without Bessel's correction.
//! x: `[N, ..., C]`; y: `[N, P, 2 G]` with P chunks of `chunk` pixels, the last one shorter. y stays f32 where x is f16.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::card::grid_1d;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Machine, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub spatial: u32,
        pub channels: u32,
        pub groups: u32,
        /// Pixels of a chunk.
        pub chunk: u32,
        pub batch: u32,
    }
}

pub static OP: Op = Op {
    name: "group_moments",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 2e-5, reason: "f32 sums of up to 1e4 terms, with |mean| up to 100 deviations in one case" },
    f16: true,
    statistics: &[1],
    variants: &[
        Variant {
            name: "direct",
            family: "direct",
            source: &[ELEM, LINEAR_INDEX, include_str!("../../shaders/group_moments.wgsl")],
            workgroup: 64,
            meant_for: Machine::Any,
            constants: |_| vec![("WG", 64.0)],
            accepts: |_| true,
            grid: |s| grid_1d(s.output.numel() / 2, 64),
        },
        Variant {
            name: "wide",
            family: "wide",
            source: &[ELEM, include_str!("../../shaders/group_moments_wide.wgsl")],
            workgroup: 256,
            meant_for: Machine::Hardware,
            constants: |_| vec![],
            accepts: |s| {
                let p: Params = s.params();
                p.channels.is_multiple_of(4) && p.channels <= 1024 && p.groups <= 256 && p.batch <= 65_535
            },
            grid: |s| {
                let p: Params = s.params();
                [p.spatial.div_ceil(p.chunk), p.batch, 1]
            },
        },
    ],
};

impl Tape {
    /// Moments of `x` `[N, ..., C]` in `groups` groups over chunks of `chunk` pixels: `[N, P, 2 G]`.
    pub fn group_moments(&mut self, x: Tensor, groups: usize, chunk: usize) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        let channels = shape.last();
        if shape.rank() < 2 || groups == 0 || !channels.is_multiple_of(groups) || chunk == 0 || shape.numel() == 0 {
            return Err(
                self.mismatch(format!("group_moments of {shape} in {groups} groups and chunks of {chunk}: the last axis must be divisible by the groups"))
            );
        }
        let batch = shape[0];
        let spatial = shape.numel() / (batch * channels);
        let params = Params { spatial: spatial as u32, channels: channels as u32, groups: groups as u32, chunk: chunk as u32, batch: batch as u32 };
        Ok(self.push(&OP, &params, &[x], &[batch, spatial.div_ceil(chunk), 2 * groups], DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let [channels, groups, chunk, spatial] = [p.channels, p.groups, p.chunk, p.spatial].map(|v| v as usize);
    let (width, chunks) = (channels / groups, spatial.div_ceil(chunk));
    let x = call.inputs[0];
    call.output.par_chunks_mut(2 * groups).enumerate().for_each(|(job, y)| {
        let first = job % chunks * chunk;
        let pixels = chunk.min(spatial - first);
        let from = (job / chunks * spatial + first) * channels;
        let x = &x[from..from + pixels * channels];
        let count = (pixels * width) as f64;
        let per_group = |sums: &[f32]| sums.chunks_exact(width).map(|s| s.iter().map(|&v| f64::from(v)).sum::<f64>() / count).collect::<Vec<_>>();
        let mut sums = vec![0f32; channels];
        x.chunks_exact(channels).for_each(|row| sums.iter_mut().zip(row).for_each(|(s, &v)| *s += v));
        let means = per_group(&sums);
        let mean: Vec<f32> = means.iter().flat_map(|&m| vec![m as f32; width]).collect();
        sums.fill(0.0);
        for row in x.chunks_exact(channels) {
            for c in 0..channels {
                let d = row[c] - mean[c];
                sums[c] += d * d;
            }
        }
        for (y, (mean, variance)) in y.chunks_exact_mut(2).zip(means.iter().zip(per_group(&sums))) {
            (y[0], y[1]) = (*mean as f32, variance as f32);
        }
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 4 * s.inputs[0].numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], groups: usize, chunk: usize, shift: f32) -> Case {
    Case::new(name, vec![CaseInput::new("x", shape, Layout::Image, Fill::Affine { scale: 1.0, shift })], move |t, i| t.group_moments(i[0], groups, chunk))
}

fn cases() -> Vec<Case> {
    vec![
        case("even", &[2, 12, 6, 4], 4, 8, 0.0),
        case("uneven", &[1, 20, 5, 7], 2, 8, 0.5),
        case("far_mean", &[1, 8, 16, 16], 2, 64, 100.0),
        case("odd_channels", &[2, 9, 3, 3], 3, 4, 0.0),
        case("large", &[2, 320, 33, 31], 32, 64, 3.0).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("sd_320x64x64", &[2, 320, 64, 64], 32, 64, 0.0), case("sd_vae_128x512x512", &[1, 128, 512, 512], 32, 1024, 0.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[1, 4, 4, 6], DType::F32);
        assert!(t.group_moments(x, 4, 8).unwrap_err().fact().starts_with("group_moments of [1, 4, 4, 6] in 4 groups and chunks of 8"));
        assert!(t.group_moments(x, 3, 0).is_err());
    }
}
