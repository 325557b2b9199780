//! How many values of a tensor are infinite or NaN, by the bits of their exponents.
//!
//! y = sum over i of [exponent(x_i) is all ones].   x: any shape; y: `[1]` u32.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, TREE_U32};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Machine, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
    }
}

pub static OP: Op = Op {
    name: "count_nonfinite",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 0.0, reason: "counts" },
    f16: true,
    statistics: &[],
    variants: &[Variant {
        name: "direct",
        family: "direct",
        source: &[ELEM, TREE_U32, include_str!("../../shaders/count_nonfinite.wgsl")],
        workgroup: 256,
        meant_for: Machine::Any,
        constants: |_| vec![],
        accepts: |_| true,
        grid: |_| [1, 1, 1],
    }],
};

impl Tape {
    /// The number of infinities and NaNs in `x`, as u32 `[1]`.
    pub fn count_nonfinite(&mut self, x: Tensor) -> Result<Tensor> {
        if self.dtype(x) != DType::F32 {
            return Err(self.mismatch(format!("count_nonfinite of a {:?} tensor, expected F32", self.dtype(x))));
        }
        let params = Params { len: self.shape(x).numel() as u32 };
        Ok(self.push(&OP, &params, &[x], &[1], DType::U32))
    }
}

fn twin(call: &mut TwinCall) {
    let count: usize = call.inputs[0].par_chunks(16_384).map(|x| x.iter().filter(|v| !v.is_finite()).count()).sum();
    let output: &mut [u32] = bytemuck::cast_slice_mut(call.output);
    output[0] = count as u32;
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: s.inputs[0].numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], fill: Fill) -> Case {
    Case::new(name, vec![CaseInput::new("x", shape, Layout::Plain, fill)], |t, i| t.count_nonfinite(i[0]))
}

fn cases() -> Vec<Case> {
    vec![
        case("none", &[3, 5, 31], Fill::Normal),
        case("some", &[2, 301], Fill::NonFinite(7)),
        case("all", &[37], Fill::NonFinite(1)),
        case("large", &[1_000_003], Fill::NonFinite(1001)).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("unet_96x16x16", &[8, 16, 16, 96], Fill::Normal), case("sd_4x64x64", &[2, 64, 64, 4], Fill::Normal)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let index = t.input("index", &[3], DType::U32);
        assert_eq!(t.count_nonfinite(index).unwrap_err().fact(), "count_nonfinite of a U32 tensor, expected F32");
        let x = t.input("x", &[3, 4], DType::F32);
        let y = t.count_nonfinite(x).unwrap();
        assert_eq!((t.shape(y).dims(), t.dtype(y)), (&[1][..], DType::U32));
    }
}
