//! The second half of a group norm of a large image, with SiLU fused: [`group_moments`](crate::ops::group_moments) is the first.
//! Wu and He, "Group Normalization" (2018), equations 1 to 7; moments are joined as Chan, Golub and LeVeque (1983), equation 1.5.
//!
//! y = act((x - mean) / sqrt(var + eps) * weight + bias) with mean and var of each item's groups over all of its chunks.
//! x, y: `[N, ..., C]`; weight, bias: `[C]`; moments: `[N, P, 2 G]`, which stay f32.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, activation, lanes};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Machine, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub spatial: u32,
        pub channels: u32,
        pub groups: u32,
        /// Pixels of a chunk.
        pub chunk: u32,
        pub eps: f32,
        pub silu: u32,
        pub batch: u32,
    }
}

pub static OP: Op = Op {
    name: "group_norm_apply",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 2e-5, reason: "an f32 mean and deviation, joined in another order" },
    f16: true,
    statistics: &[3],
    variants: &[Variant {
        name: "direct",
        family: "direct",
        source: &[ELEM, activation::SIGMOID, include_str!("../../shaders/group_norm_apply.wgsl")],
        workgroup: 256,
        meant_for: Machine::Any,
        constants: |_| vec![],
        accepts: |_| true,
        grid: |s| {
            let p: Params = s.params();
            [p.spatial.div_ceil(p.chunk), p.batch, 1]
        },
    }],
};

/// Groups that a workgroup adds up.
const MOST_GROUPS: usize = 256;
/// Channels whose moments a workgroup takes.
const MOST_CHANNELS: usize = 1024;
/// Pixels of an item from which on a group norm is done in two steps: a workgroup per group would read for long, and alone.
const LARGE: usize = 4096;

/// Pixels of a chunk where a group norm of these shapes is done in two steps. It depends on the item alone.
pub(crate) fn chunk_of(spatial: usize, channels: usize, groups: usize) -> Option<usize> {
    let is_large = spatial >= LARGE && channels.is_multiple_of(4) && channels <= MOST_CHANNELS && groups <= MOST_GROUPS;
    is_large.then(|| spatial.div_ceil(256).max(64))
}

impl Tape {
    /// Group norm of `x` `[N, ..., C]` by `moments` `[N, P, 2 G]` of chunks of `chunk` pixels; `silu` applies x * sigmoid(x) to the result.
    #[allow(clippy::too_many_arguments)]
    pub fn group_norm_apply(&mut self, x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, chunk: usize, eps: f32, silu: bool) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        let channels = shape.last();
        let &[batch, chunks, pairs] = self.shape(moments).dims() else {
            return Err(self.mismatch(format!("group_norm_apply by moments {}, expected [N, P, 2 G]", self.shape(moments))));
        };
        let groups = pairs / 2;
        let spatial = shape.numel() / (shape[0] * channels).max(1);
        let fits = batch == shape[0] && chunk > 0 && chunks == spatial.div_ceil(chunk) && groups * 2 == pairs && groups > 0 && channels.is_multiple_of(groups);
        if !fits || !channels.is_multiple_of(4) || groups > MOST_GROUPS || batch > 65_535 {
            return Err(self.mismatch(format!("group_norm_apply of {shape} by moments [{batch}, {chunks}, {pairs}] of chunks of {chunk}")));
        }
        for tensor in [weight, bias] {
            if self.shape(tensor).dims() != [channels] {
                return Err(self.mismatch(format!("group_norm_apply parameter is {}, expected [{channels}]", self.shape(tensor))));
            }
        }
        let [spatial, channels, groups, chunk, batch] = [spatial, channels, groups, chunk, batch].map(|v| v as u32);
        let params = Params { spatial, channels, groups, chunk, eps, silu: u32::from(silu), batch };
        Ok(self.push(&OP, &params, &[x, weight, bias, moments], shape.dims(), DType::F32))
    }
}

/// Rows of a task of the twin.
const ROWS: usize = 64;

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let [channels, groups, chunk, spatial] = [p.channels, p.groups, p.chunk, p.spatial].map(|v| v as usize);
    let (width, chunks) = (channels / groups, spatial.div_ceil(chunk));
    let [x, weight, bias, moments] = *call.inputs else { return };
    let item = spatial * channels;
    let items = call.output.par_chunks_mut(item.max(1)).zip(x.par_chunks(item.max(1))).zip(moments.par_chunks(chunks * groups * 2));
    items.for_each(|((y, x), moments)| {
        let pixels = |c: usize| chunk.min(spatial - c * chunk) as f64;
        let total = spatial as f64;
        let at = |c: usize, g: usize, which: usize| f64::from(moments[(c * groups + g) * 2 + which]);
        let (mut mean, mut scale) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
        for g in 0..groups {
            let m = (0..chunks).map(|c| pixels(c) * at(c, g, 0)).sum::<f64>() / total;
            let variance = (0..chunks).map(|c| pixels(c) * (at(c, g, 1) + (at(c, g, 0) - m).powi(2))).sum::<f64>() / total;
            let inv = 1.0 / (variance as f32 + p.eps).sqrt();
            mean.extend(vec![m as f32; width]);
            scale.extend(weight[g * width..(g + 1) * width].iter().map(|w| inv * w));
        }
        y.par_chunks_mut(ROWS * channels).zip(x.par_chunks(ROWS * channels)).for_each(|(y, x)| {
            normalise(y, x, [&mean, &scale, bias], p.silu != 0);
        });
    });
}

/// y = act((x - mean) scale + bias) for rows of channels; the three have a value for each channel.
pub(crate) fn normalise(y: &mut [f32], x: &[f32], [mean, scale, bias]: [&[f32]; 3], with_silu: bool) {
    for (y, x) in y.chunks_exact_mut(mean.len()).zip(x.chunks_exact(mean.len())) {
        for c in 0..mean.len() {
            y[c] = (x[c] - mean[c]) * scale[c] + bias[c];
        }
        if with_silu {
            lanes::update(y, activation::silu);
        }
    }
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 4 * s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: [usize; 4], groups: usize, chunk: usize, silu: bool) -> Case {
    let (channels, chunks) = (shape[1], (shape[2] * shape[3]).div_ceil(chunk));
    let inputs = vec![
        CaseInput::image("x", &shape),
        CaseInput::new("weight", &[channels], Layout::Plain, Fill::Affine { scale: 0.5, shift: 1.0 }),
        CaseInput::plain("bias", &[channels]),
        CaseInput::new("moments", &[shape[0], chunks, 2 * groups], Layout::Plain, Fill::Uniform { low: 0.5, high: 2.0 }),
    ];
    Case::new(name, inputs, move |t, i| t.group_norm_apply(i[0], i[1], i[2], i[3], chunk, 1e-5, silu))
}

fn cases() -> Vec<Case> {
    vec![
        case("even", [2, 12, 6, 4], 4, 8, false),
        case("uneven", [1, 20, 5, 7], 2, 8, true),
        case("one_group", [2, 8, 3, 3], 1, 2, false),
        case("large", [2, 320, 33, 31], 32, 64, true).without_golden(),
        case("many_channels", [1, 1100, 3, 5], 100, 4, true).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("sd_320x64x64", [2, 320, 64, 64], 32, 64, true), case("sd_vae_128x512x512", [1, 128, 512, 512], 32, 1024, true)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[1, 4, 4, 8], DType::F32);
        let w = t.input("w", &[8], DType::F32);
        let m = t.input("m", &[1, 2, 8], DType::F32);
        assert!(t.group_norm_apply(x, w, w, m, 8, 1e-5, false).is_ok());
        assert!(t.group_norm_apply(x, w, w, m, 4, 1e-5, false).unwrap_err().fact().contains("of chunks of 4"));
        assert!(t.group_norm_apply(x, w, w, x, 8, 1e-5, false).unwrap_err().fact().contains("expected [N, P, 2 G]"));
    }

    #[test]
    fn only_large_images_take_two_steps() {
        assert_eq!([chunk_of(4095, 320, 32), chunk_of(4096, 320, 32), chunk_of(512 * 512, 128, 32)], [None, Some(64), Some(1024)]);
        assert_eq!([chunk_of(4096, 322, 2), chunk_of(4096, 2048, 32)], [None, None]);
    }
}
