//! The same values in another storage type: between tensors stored as f16 and steps that stay f32.
//!
//! y = x, rounded to nearest where f16 is narrower.   x, y: any shape, the same.

use half::f16;
use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::LINEAR_INDEX;
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
    }
}

pub static OP: Op = Op {
    name: "convert",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 9.8e-4, reason: "one unit of f16: Vulkan lets a driver round towards zero" },
    f16: false,
    statistics: &[],
    variants: &[
        Variant {
            accepts: |s| (s.input_types[0], s.output_type) == (DType::F32, DType::F16),
            ..Variant::per_element(&[include_str!("../../shaders/convert.wgsl"), LINEAR_INDEX])
        },
        Variant {
            name: "widening",
            accepts: |s| (s.input_types[0], s.output_type) == (DType::F16, DType::F32),
            ..Variant::per_element(&[include_str!("../../shaders/convert_widening.wgsl"), LINEAR_INDEX])
        },
    ],
};

impl Tape {
    /// The values of `x`, of type F32 or F16, in the other one of these.
    pub fn convert(&mut self, x: Tensor, to: DType) -> Result<Tensor> {
        let from = self.dtype(x);
        if from == to || !from.is_float() || !to.is_float() {
            return Err(self.mismatch(format!("convert of a {from:?} tensor to {to:?}, expected F32 and F16 or F16 and F32")));
        }
        let shape = self.shape(x).dims().to_vec();
        let params = Params { len: self.shape(x).numel() as u32 };
        Ok(self.push(&OP, &params, &[x], &shape, to))
    }
}

/// On the host both are f32, of which f16 holds a part: rounding twice is rounding once.
fn twin(call: &mut TwinCall) {
    let x = call.inputs[0];
    call.output.par_iter_mut().zip(x).for_each(|(y, &x)| *y = rounded(x));
}

/// The nearest value that f16 holds; infinity from 65,520 on.
pub fn rounded(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 0, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], fill: Fill) -> Case {
    let to = if fill == Fill::Half { DType::F32 } else { DType::F16 };
    Case::new(name, vec![CaseInput::new("x", shape, Layout::Plain, fill)], move |t, i| t.convert(i[0], to))
}

fn cases() -> Vec<Case> {
    vec![
        case("to_f16", &[3, 5, 31], Fill::Normal),
        case("to_f16_large_values", &[301], Fill::Affine { scale: 9000.0, shift: 0.0 }),
        case("to_f16_small_values", &[301], Fill::Affine { scale: 0.01, shift: 0.0 }),
        case("to_f32", &[3, 5, 31], Fill::Half),
        case("to_f32_one", &[1], Fill::Half),
        case("large", &[300_007], Fill::Normal).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("sd_4x64x64", &[2, 64, 64, 4], Fill::Normal)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 3], DType::F32);
        let index = t.input("index", &[2], DType::U32);
        assert_eq!(t.convert(x, DType::F32).unwrap_err().fact(), "convert of a F32 tensor to F32, expected F32 and F16 or F16 and F32");
        assert!(t.convert(index, DType::F16).is_err() && t.convert(x, DType::U32).is_err());
        let y = t.convert(x, DType::F16).unwrap();
        assert_eq!((t.dtype(y), t.shape(y).dims(), t.info(y).bytes()), (DType::F16, &[2usize, 3][..], 12));
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        let rows = [(1.0, 1.0), (2049.0, 2048.0), (2051.0, 2052.0), (65_519.0, 65_504.0), (65_520.0, f32::INFINITY), (1e-8, 0.0)];
        for (x, y) in rows {
            assert_eq!((rounded(x), rounded(-x)), (y, -y));
        }
    }
}
