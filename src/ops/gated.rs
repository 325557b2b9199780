//! A gated unit: one half of the channels times a function of the other. Shazeer, "GLU Variants Improve Transformer"
//! (2020); GEGLU with GELU, as diffusers' `GEGLU` splits it.
//!
//! y[..., c] = x[..., c] f(x[..., C + c]).   x: `[..., 2 C]`; y: `[..., C]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::activation::{self, Function};
use crate::ops::epilogue::NETWORK;
use crate::ops::lanes;
use crate::ops::timestep_embedding::SINCOS;
use crate::ops::{ELEM, EXPONENTIAL, LINEAR_INDEX, NAN};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        /// C.
        pub channels: u32,
        pub function: u32,
        pub a: f32,
        pub b: f32,
    }
}

pub static OP: Op = Op {
    name: "gated",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 4e-6, reason: "the activation's own bound, and one product" },
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[
        ELEM,
        LINEAR_INDEX,
        NAN,
        EXPONENTIAL,
        SINCOS,
        activation::SIGMOID,
        NETWORK,
        activation::FUNCTIONS,
        include_str!("../../shaders/gated.wgsl"),
    ])],
};

impl Tape {
    /// The first half of the channels of `x` `[..., 2 C]` times `function` of the second half.
    pub fn gated(&mut self, x: Tensor, function: Function) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        if shape.rank() == 0 || !shape.last().is_multiple_of(2) {
            return Err(self.mismatch(format!("gated of {shape}, expected an even number of channels on the last axis")));
        }
        let mut dims = shape.dims().to_vec();
        let channels = shape.last() / 2;
        dims[shape.rank() - 1] = channels;
        let (code, a, b) = function.code();
        let params = Params { len: (shape.numel() / 2) as u32, channels: channels as u32, function: code, a, b };
        Ok(self.push(&OP, &params, &[x], &dims, DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let function = activation::Params { len: p.len, function: p.function, a: p.a, b: p.b };
    let channels = (p.channels as usize).max(1);
    call.output.par_chunks_mut(channels).zip(call.inputs[0].par_chunks(2 * channels)).for_each(|(y, x)| {
        let (x, gate) = x.split_at(channels);
        activation::apply_all(&function, y, gate);
        lanes::zip(y, x, |gate, x| x * gate);
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 5 * s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], function: Function) -> Case {
    let x = CaseInput::new("x", shape, if shape.len() == 4 { Layout::Image } else { Layout::Plain }, Fill::Affine { scale: 2.0, shift: 0.0 });
    Case::new(name, vec![x], move |t, i| t.gated(i[0], function))
}

fn cases() -> Vec<Case> {
    vec![
        case("geglu", &[2, 7, 26], Function::Gelu),
        case("swiglu", &[11, 14], Function::Silu),
        case("glu", &[38], Function::Sigmoid),
        case("bilinear", &[3, 2], Function::Identity),
        case("constants", &[5, 22], Function::Clamp { low: -0.5, high: 1.25 }),
        case("images", &[2, 6, 5, 3], Function::Gelu),
        case("large", &[1409, 1499 * 2], Function::Gelu).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("sd_2x4096x2560", &[2, 4096, 2560], Function::Gelu)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 7], DType::F32);
        assert_eq!(t.gated(x, Function::Gelu).unwrap_err().fact(), "gated of [2, 7], expected an even number of channels on the last axis");
        let scalar = t.input("scalar", &[], DType::F32);
        assert!(t.gated(scalar, Function::Gelu).is_err());
        let x = t.input("x", &[2, 3, 8], DType::F32);
        let y = t.gated(x, Function::Gelu).unwrap();
        assert_eq!(t.shape(y).dims(), [2, 3, 4]);
    }
}
