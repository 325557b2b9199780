//! Axes in another order: transposes, heads of attention, images into windows.
//!
//! y.shape[i] = x.shape[order[i]]; y[j_0, ..., j_n] = x[i_0, ..., i_n] with i[order[k]] = j_k.   x: up to six axes that
//! cannot be merged.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::axes::{AXES, TASK, Walk, strides, words};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        /// Sizes of y, the last axis innermost.
        pub size0: u32,
        pub size1: u32,
        pub size2: u32,
        pub size3: u32,
        pub size4: u32,
        pub size5: u32,
        /// Strides of y's axes in x.
        pub stride0: u32,
        pub stride1: u32,
        pub stride2: u32,
        pub stride3: u32,
        pub stride4: u32,
        pub stride5: u32,
    }
}

impl Params {
    fn new(len: usize, walk: &Walk<1>) -> Params {
        let [size0, size1, size2, size3, size4, size5] = words(walk.sizes);
        let [stride0, stride1, stride2, stride3, stride4, stride5] = words(walk.strides[0]);
        Params { len: len as u32, size0, size1, size2, size3, size4, size5, stride0, stride1, stride2, stride3, stride4, stride5 }
    }

    fn walk(&self) -> Walk<1> {
        let sizes = [self.size0, self.size1, self.size2, self.size3, self.size4, self.size5];
        let strides = [self.stride0, self.stride1, self.stride2, self.stride3, self.stride4, self.stride5];
        Walk { sizes: sizes.map(|v| v as usize), strides: [strides.map(|v| v as usize)] }
    }
}

pub static OP: Op = Op {
    name: "permute",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance::EXACT,
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/permute.wgsl")])],
};

impl Tape {
    /// The axes of `x` in the order `order`, a permutation of 0..rank: axis i of the result is axis `order[i]` of `x`.
    /// The identity records nothing.
    pub fn permute(&mut self, x: Tensor, order: &[usize]) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..shape.rank()) {
            return Err(self.mismatch(format!("permute of {shape} by {order:?}, expected each of its {} axes once", shape.rank())));
        }
        if self.dtype(x) != DType::F32 {
            return Err(self.mismatch(format!("permute of integers {shape}, expected f32")));
        }
        if order.is_sorted() {
            return Ok(x);
        }
        let all = strides(shape.dims());
        let dims: Vec<usize> = order.iter().map(|&axis| shape[axis]).collect();
        let along = order.iter().map(|&axis| all[axis]).collect();
        let Some(walk) = Walk::new(&dims, &[along]) else {
            return Err(self.mismatch(format!("permute of {shape} by {order:?} has more than {AXES} axes that cannot be merged")));
        };
        Ok(self.push(&OP, &Params::new(shape.numel(), &walk), &[x], &dims, DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let (x, walk) = (call.inputs[0], p.walk());
    let stride = walk.strides[0][AXES - 1];
    call.output.par_chunks_mut(TASK).enumerate().for_each(|(task, y)| {
        walk.runs(task * TASK, y.len(), |run, [at]| {
            y[run].iter_mut().enumerate().for_each(|(i, y)| *y = x[at + i * stride]);
        });
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 0, bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], order: &'static [usize]) -> Case {
    let layout = if shape.len() == 4 { Layout::Image } else { Layout::Plain };
    Case::new(name, vec![CaseInput::new("x", shape, layout, Fill::Normal)], |t, i| t.permute(i[0], order))
}

fn cases() -> Vec<Case> {
    vec![
        case("transpose", &[13, 37], &[1, 0]),
        case("tokens", &[2, 9, 5], &[0, 2, 1]),
        // Orders of [N, H, W, C].
        case("to_channels_first", &[2, 7, 5, 3], &[0, 3, 1, 2]),
        case("reversed", &[2, 7, 5, 3], &[3, 2, 1, 0]),
        case("one_pixel", &[3, 5, 1, 1], &[0, 3, 1, 2]),
        case("heads", &[2, 3, 5, 2, 7], &[3, 0, 2, 1, 4]),
        case("windows", &[2, 3, 4, 2, 5, 3], &[0, 1, 3, 2, 4, 5]),
        case("six_axes", &[2, 3, 2, 5, 3, 2], &[5, 3, 1, 4, 2, 0]),
        case("large", &[3, 137, 97, 109], &[0, 3, 1, 2]).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("swin_windows_8x56x56x96", &[8, 8, 7, 8, 7, 96], &[0, 1, 3, 2, 4, 5]), case("to_channels_first_96x64x64", &[8, 96, 64, 64], &[0, 3, 1, 2])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 3, 4], DType::F32);
        assert_eq!(t.permute(x, &[0, 2]).unwrap_err().fact(), "permute of [2, 3, 4] by [0, 2], expected each of its 3 axes once");
        assert!(t.permute(x, &[0, 1, 1]).is_err() && t.permute(x, &[0, 1, 3]).is_err());
        assert_eq!(t.permute(x, &[0, 1, 2]).unwrap(), x);
        let y = t.permute(x, &[2, 0, 1]).unwrap();
        assert_eq!(t.shape(y).dims(), [4, 2, 3]);
        let many = t.input("many", &[2; 7], DType::F32);
        assert!(t.permute(many, &[6, 5, 4, 3, 2, 1, 0]).unwrap_err().fact().contains("more than 6 axes"));
        assert!(t.permute(many, &[0, 1, 2, 3, 4, 6, 5]).is_ok());
        let index = t.input("index", &[2, 3], DType::U32);
        assert!(t.permute(index, &[1, 0]).unwrap_err().fact().contains("integers"));
    }
}
