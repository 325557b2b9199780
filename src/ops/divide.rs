//! A quotient per item of the batch: what a model conditioned on noise levels does with its result.
//!
//! y[n, ...] = x[n, ...] / d[n], or / d[0] where d holds one value.   x, y: `[N, ...]`; d: `[N]` or `[1]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        /// Elements that share a divisor.
        pub item: u32,
    }
}

pub static OP: Op = Op {
    name: "divide",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 4e-7, reason: "WGSL's quotient may be wrong by 2.5 ulp" },
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/divide.wgsl")])],
};

impl Tape {
    /// x / d, one divisor per item of the batch, or one for all.
    pub fn divide(&mut self, x: Tensor, d: Tensor) -> Result<Tensor> {
        let (shape, divisors) = (self.shape(x).clone(), self.shape(d).clone());
        let &[first, ..] = shape.dims() else {
            return Err(self.mismatch("divide of a scalar, expected [N, ...]".to_string()));
        };
        if divisors.dims() != [first] && divisors.dims() != [1] {
            return Err(self.mismatch(format!("divide of {shape} by {divisors}, expected divisors [{first}] or [1]")));
        }
        let item = (shape.numel() / divisors.numel().max(1)).max(1);
        let params = Params { len: shape.numel() as u32, item: item as u32 };
        Ok(self.push(&OP, &params, &[x, d], shape.dims(), DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let [x, d] = *call.inputs else { return };
    let item = p.item as usize;
    call.output.par_chunks_mut(item).zip(x.par_chunks(item)).zip(d).for_each(|((y, x), &d)| {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x / d);
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], layout: Layout, divisors: usize) -> Case {
    let inputs =
        vec![CaseInput::new("x", shape, layout, Fill::Normal), CaseInput::new("d", &[divisors], Layout::Plain, Fill::Uniform { low: 0.25, high: 80.0 })];
    Case::new(name, inputs, |t, i| t.divide(i[0], i[1]))
}

fn cases() -> Vec<Case> {
    vec![
        case("per_item", &[3, 2, 5, 7], Layout::Image, 3),
        case("one_for_all", &[3, 4, 5, 2], Layout::Image, 1),
        case("vector", &[67], Layout::Plain, 67),
        case("large", &[3, 1_400_001], Layout::Plain, 3).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("image_3x256x256", &[8, 3, 256, 256], Layout::Image, 8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[3, 4], DType::F32);
        let d = t.input("d", &[4], DType::F32);
        assert_eq!(t.divide(x, d).unwrap_err().fact(), "divide of [3, 4] by [4], expected divisors [3] or [1]");
        let scalar = t.input("scalar", &[], DType::F32);
        assert!(t.divide(scalar, d).is_err());
    }
}
