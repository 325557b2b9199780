//! A batch several times over: both halves of classifier-free guidance see the same latents.
//!
//! y[m, ...] = x[m mod N, ...].   x: `[N, ...]`; y: `[times N, ...]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub x_len: u32,
    }
}

pub static OP: Op = Op {
    name: "repeat",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance::EXACT,
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/repeat.wgsl")])],
};

impl Tape {
    /// `x` `times` over along the first axis: the whole batch, then the whole batch again.
    pub fn repeat(&mut self, x: Tensor, times: usize) -> Result<Tensor> {
        let mut shape = self.shape(x).dims().to_vec();
        if shape.is_empty() || times == 0 || self.shape(x).numel() == 0 || self.dtype(x) != DType::F32 {
            return Err(self.mismatch(format!("repeat of {:?} {} {times} times, expected F32 [N, ...] once or more", self.dtype(x), self.shape(x))));
        }
        let x_len = self.shape(x).numel();
        shape[0] *= times;
        let params = Params { len: (x_len * times) as u32, x_len: x_len as u32 };
        Ok(self.push(&OP, &params, &[x], &shape, DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let x = call.inputs[0];
    call.output.par_chunks_mut(p.x_len as usize).for_each(|y| y.copy_from_slice(x));
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 0, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], times: usize) -> Case {
    let layout = if shape.len() == 4 { Layout::Image } else { Layout::Plain };
    Case::new(name, vec![CaseInput::new("x", shape, layout, Fill::Normal)], move |t, i| t.repeat(i[0], times))
}

fn cases() -> Vec<Case> {
    vec![
        case("images", &[2, 5, 3, 7], 2),
        case("tokens", &[3, 4, 5], 3),
        case("rank_1", &[1], 9),
        case("once", &[4, 3], 1),
        case("large", &[2, 65, 131, 137], 2).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("guidance_65x16x16", &[8, 65, 16, 16], 2)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 3], DType::F32);
        let index = t.input("index", &[2], DType::U32);
        assert_eq!(t.repeat(x, 0).unwrap_err().fact(), "repeat of F32 [2, 3] 0 times, expected F32 [N, ...] once or more");
        assert!(t.repeat(index, 2).is_err());
        let y = t.repeat(x, 4).unwrap();
        assert_eq!(t.shape(y).dims(), [8, 3]);
    }
}
