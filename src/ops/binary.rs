//! Pointwise functions of two tensors of one shape: sum, difference, product.
//!
//! y = a op b, any shape.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub function: u32,
    }
}

/// An operator between two tensors; its discriminant is its code in the shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// a + b.
    Add = 0,
    /// a - b.
    Sub = 1,
    /// a b.
    Mul = 2,
}

pub static OP: Op = Op {
    name: "binary",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 1.2e-7, reason: "one rounding; PyTorch's float64 result is rounded once" },
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/binary.wgsl")])],
};

impl Tape {
    /// a op b, elementwise; the shapes must be equal.
    pub fn binary(&mut self, a: Tensor, b: Tensor, operator: Operator) -> Result<Tensor> {
        let shape = self.shape(a).clone();
        if *self.shape(b) != shape {
            return Err(self.mismatch(format!("{operator:?} of {shape} and {}: the shapes must be equal", self.shape(b))));
        }
        let params = Params { len: shape.numel() as u32, function: operator as u32 };
        Ok(self.push(&OP, &params, &[a, b], shape.dims(), DType::F32))
    }

    /// a + b, elementwise; the shapes must be equal.
    pub fn add(&mut self, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.binary(a, b, Operator::Add)
    }

    /// a - b, elementwise; the shapes must be equal.
    pub fn sub(&mut self, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.binary(a, b, Operator::Sub)
    }

    /// a b, elementwise; the shapes must be equal.
    pub fn mul(&mut self, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.binary(a, b, Operator::Mul)
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let [a, b] = *call.inputs else { return };
    let apply = match p.function {
        0 => |a: f32, b: f32| a + b,
        1 => |a: f32, b: f32| a - b,
        _ => |a: f32, b: f32| a * b,
    };
    call.output.par_chunks_mut(16_384).zip(a.par_chunks(16_384).zip(b.par_chunks(16_384))).for_each(|(y, (a, b))| {
        y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (&a, &b))| *y = apply(a, b));
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], operator: Operator) -> Case {
    Case::new(name, vec![CaseInput::plain("a", shape), CaseInput::plain("b", shape)], move |t, i| t.binary(i[0], i[1], operator))
}

fn cases() -> Vec<Case> {
    vec![
        case("add", &[3, 5, 31], Operator::Add),
        case("sub", &[6, 7, 9], Operator::Sub),
        case("mul", &[467], Operator::Mul),
        case("one", &[1], Operator::Add),
        // More than 65,535 workgroups of 64.
        case("large", &[4_200_003], Operator::Sub).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("unet_96x16x16", &[8, 16, 16, 96], Operator::Add), case("sd_320x64x64", &[2, 64, 64, 320], Operator::Add)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let a = t.input("a", &[2, 3], DType::F32);
        let b = t.input("b", &[3, 2], DType::F32);
        assert_eq!(t.add(a, b).unwrap_err().fact(), "Add of [2, 3] and [3, 2]: the shapes must be equal");
        assert!(t.mul(a, a).is_ok());
    }
}
