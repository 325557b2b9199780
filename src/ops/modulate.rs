//! Scale and shift of each channel by a vector of each sample, as an embedding conditions a block: FiLM, Perez et al.,
//! "FiLM: Visual Reasoning with a General Conditioning Layer" (2018), equation 1, in diffusers' form; SiLU fused.
//!
//! y = act(x (1 + scale) + shift), or y = act(x + shift).   x, y: `[N, ..., C]`; scale and shift: `[N, 2 C]`, scale first;
//! shift alone: `[N, C]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX, activation, lanes};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        /// Elements of one sample of x.
        pub item: u32,
        pub channels: u32,
        pub scaled: u32,
        pub silu: u32,
    }
}

pub static OP: Op = Op {
    name: "modulate",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 4e-6, reason: "three roundings; exp of WGSL may be wrong by a few ulp" },
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, activation::SIGMOID, include_str!("../../shaders/modulate.wgsl")])],
};

impl Tape {
    /// x + v, with `v` `[N, C]` the same at every position of a sample of `x` `[N, ..., C]`.
    pub fn add_channel(&mut self, x: Tensor, v: Tensor) -> Result<Tensor> {
        self.per_channel(x, v, false, false)
    }

    /// x (1 + scale) + shift, with `scale_shift` `[N, 2 C]` (scale first) the same at every position of a sample of `x`
    /// `[N, ..., C]`; `silu` applies x * sigmoid(x) to the result.
    pub fn modulate(&mut self, x: Tensor, scale_shift: Tensor, silu: bool) -> Result<Tensor> {
        self.per_channel(x, scale_shift, true, silu)
    }

    fn per_channel(&mut self, x: Tensor, v: Tensor, scaled: bool, silu: bool) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        let channels = shape.last();
        if shape.rank() < 2 || shape.numel() == 0 {
            return Err(self.mismatch(format!("tensor is {shape}, expected [N, ..., C]")));
        }
        let expected = [shape[0], channels * if scaled { 2 } else { 1 }];
        if self.shape(v).dims() != expected {
            return Err(self.mismatch(format!("values per channel of {shape} are {}, expected {expected:?}", self.shape(v))));
        }
        let params = Params {
            len: shape.numel() as u32,
            item: (shape.numel() / shape[0]) as u32,
            channels: channels as u32,
            scaled: u32::from(scaled),
            silu: u32::from(silu),
        };
        Ok(self.push(&OP, &params, &[x, v], shape.dims(), DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let (channels, item) = (p.channels as usize, p.item as usize);
    let [x, v] = *call.inputs else { return };
    call.output.par_chunks_mut(channels).zip(x.par_chunks(channels)).enumerate().for_each(|(row, (y, x))| {
        let n = row * channels / item;
        for c in 0..channels {
            let value = if p.scaled != 0 {
                let v = &v[n * 2 * channels..];
                x[c] * (1.0 + v[c]) + v[channels + c]
            } else {
                x[c] + v[n * channels + c]
            };
            y[c] = value;
        }
        if p.silu != 0 {
            lanes::update(y, activation::silu);
        }
    });
}

fn cost(s: &StepView) -> Cost {
    let p: Params = s.params();
    let per_value = 1 + 2 * p.scaled + 4 * p.silu;
    Cost { flops: u64::from(per_value) * s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], scaled: bool, silu: bool) -> Case {
    // PyTorch's order: [N, C, H, W] or [N, C].
    let v = [shape[0], shape[1] * if scaled { 2 } else { 1 }];
    let layout = if shape.len() == 4 { Layout::Image } else { Layout::Plain };
    let x = CaseInput::new("x", shape, layout, Fill::Normal);
    let v = CaseInput::plain(if scaled { "scale_shift" } else { "shift" }, &v);
    Case::new(name, vec![x, v], move |t, i| if scaled { t.modulate(i[0], i[1], silu) } else { t.add_channel(i[0], i[1]) })
}

fn cases() -> Vec<Case> {
    vec![
        case("add_channel", &[2, 7, 5, 3], false, false),
        case("add_channel_rank_2", &[3, 5], false, false),
        case("scale_shift", &[3, 5, 4, 7], true, false),
        case("scale_shift_silu", &[2, 6, 3, 5], true, true),
        case("large", &[3, 33, 147, 151], true, true).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("add_channel_96x16x16", &[8, 96, 16, 16], false, false), case("scale_shift_320x64x64", &[2, 320, 64, 64], true, true)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 4, 4, 6], DType::F32);
        let v = t.input("v", &[2, 6], DType::F32);
        let e = t.modulate(x, v, false).unwrap_err();
        assert_eq!(e.fact(), "values per channel of [2, 4, 4, 6] are [2, 6], expected [2, 12]");
        assert!(t.add_channel(x, v).is_ok());
        let one = t.input("one", &[1, 6], DType::F32);
        assert!(t.add_channel(x, one).is_err());
        let flat = t.input("flat", &[6], DType::F32);
        assert!(t.add_channel(flat, v).unwrap_err().fact().contains("expected [N, ..., C]"));
    }
}
