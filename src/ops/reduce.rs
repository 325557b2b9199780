//! One value per row along an axis: sum, mean, maximum, minimum, Euclidean norm, product.
//!
//! y[o, i] = f over l of x[o, l, i].   x: `[outer, L, inner]`, L the axis, which is dropped; y: `[outer, inner]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::binary::{larger, smaller};
use crate::ops::{ELEM, LINEAR_INDEX, NAN};
use crate::params;
use crate::plan::card::grid_1d;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Machine, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        /// L.
        pub length: u32,
        pub inner: u32,
        pub function: u32,
    }
}

/// What becomes of a row; its discriminant is its code in the shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    Sum = 0,
    Mean = 1,
    /// NaN where a value is NaN, as in PyTorch.
    Max = 2,
    /// NaN where a value is NaN, as in PyTorch.
    Min = 3,
    /// sqrt(sum x^2).
    L2 = 4,
    /// The product.
    Prod = 5,
}

/// WGSL fragment: the reductions by their codes.
const REDUCTION: &str = include_str!("../../shaders/lib/reduction.wgsl");

pub static OP: Op = Op {
    name: "reduce",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 2e-6, reason: "f32 sums in blocks, of up to 3e5 terms; products of up to 65 factors, an ulp each" },
    f16: true,
    statistics: &[],
    variants: &[
        Variant::per_element(&[ELEM, LINEAR_INDEX, NAN, REDUCTION, include_str!("../../shaders/reduce.wgsl")]),
        Variant {
            name: "tree",
            family: "tree",
            source: &[ELEM, NAN, REDUCTION, include_str!("../../shaders/reduce_tree.wgsl")],
            workgroup: 64,
            meant_for: Machine::Any,
            constants: |_| vec![],
            // Long rows of few neighbours: one invocation per result would leave the device idle, with loads far apart.
            accepts: |s| {
                let p: Params = s.params();
                p.length >= 64 && p.inner < 8
            },
            grid: |s| grid_1d(s.output.numel(), 1),
        },
    ],
};

impl Tape {
    /// `reduction` of `x` along `axis`, which must not be empty and is dropped.
    pub fn reduce(&mut self, x: Tensor, axis: usize, reduction: Reduction) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        if axis >= shape.rank() || shape[axis] == 0 {
            return Err(self.mismatch(format!("{reduction:?} of {shape} along axis {axis}, expected an axis that is not empty")));
        }
        if self.dtype(x) != DType::F32 {
            return Err(self.mismatch(format!("{reduction:?} of integers {shape}, expected f32")));
        }
        let mut dims = shape.dims().to_vec();
        let length = dims.remove(axis);
        let inner = dims[axis..].iter().fold(1usize, |n, &d| n.saturating_mul(d));
        let len = shape.numel() / length;
        let params = Params { len: len as u32, length: length as u32, inner: inner as u32, function: reduction as u32 };
        Ok(self.push(&OP, &params, &[x], &dims, DType::F32))
    }
}

/// Neighbouring results that a task of the twin computes side by side.
const SIDE_BY_SIDE: usize = 256;

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    match p.function {
        0 => rows(call, &p, 0.0, |sum, v| sum + v, |sum| sum),
        1 => rows(call, &p, 0.0, |sum, v| sum + v, |sum| sum / f64::from(p.length)),
        2 => extremes(call, &p, larger),
        3 => extremes(call, &p, smaller),
        4 => rows(call, &p, 0.0, |sum, v| sum + v * v, f64::sqrt),
        _ => rows(call, &p, 1.0, |product, v| product * v, |product| product),
    }
}

/// Each result by itself, in f64 and in the order of the axis, whatever the batch.
fn rows(call: &mut TwinCall, p: &Params, start: f64, join: impl Fn(f64, f64) -> f64 + Sync, finish: impl Fn(f64) -> f64 + Sync) {
    side_by_side(call, p, |x, y| {
        let mut totals = [start; SIDE_BY_SIDE];
        let totals = &mut totals[..y.len()];
        for row in x.chunks(p.inner as usize) {
            totals.iter_mut().zip(row).for_each(|(total, &v)| *total = join(*total, f64::from(v)));
        }
        y.iter_mut().zip(totals).for_each(|(y, total)| *y = finish(*total) as f32);
    });
}

fn extremes(call: &mut TwinCall, p: &Params, choose: impl Fn(f32, f32) -> f32 + Sync) {
    side_by_side(call, p, |x, y| {
        y.copy_from_slice(&x[..y.len()]);
        for row in x.chunks(p.inner as usize) {
            y.iter_mut().zip(row).for_each(|(y, &v)| *y = choose(*y, v));
        }
    });
}

/// Calls `each` with neighbouring results and the values of x from the first one's on: theirs begin every chunk of `inner`.
fn side_by_side(call: &mut TwinCall, p: &Params, each: impl Fn(&[f32], &mut [f32]) + Sync) {
    let (length, inner) = (p.length as usize, p.inner as usize);
    let x = call.inputs[0];
    call.output.par_chunks_mut(inner.max(1)).zip(x.par_chunks((length * inner).max(1))).for_each(|(y, x)| {
        y.par_chunks_mut(SIDE_BY_SIDE).enumerate().for_each(|(block, y)| each(&x[block * SIDE_BY_SIDE..], y));
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: s.inputs.iter().map(|x| x.numel() as u64).sum(), bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], axis: usize, reduction: Reduction, fill: Fill) -> Case {
    let layout = if shape.len() == 4 { Layout::Image } else { Layout::Plain };
    Case::new(name, vec![CaseInput::new("x", shape, layout, fill)], move |t, i| t.reduce(i[0], axis, reduction))
}

fn cases() -> Vec<Case> {
    let near_one = Fill::Affine { scale: 0.125, shift: 1.0 };
    let far = Fill::Affine { scale: 1.0, shift: 100.0 };
    vec![
        case("sum", &[3, 17, 5], 1, Reduction::Sum, Fill::Normal),
        case("mean", &[5, 37], 1, Reduction::Mean, Fill::Normal),
        case("max", &[3, 17, 5], 1, Reduction::Max, far),
        case("min", &[3, 17, 5], 2, Reduction::Min, far),
        case("l2", &[7, 43], 1, Reduction::L2, Fill::Normal),
        case("prod", &[3, 19, 5], 1, Reduction::Prod, near_one),
        case("one_axis", &[67], 0, Reduction::Sum, near_one),
        case("of_one", &[5, 1, 7], 1, Reduction::L2, Fill::Normal),
        case("across_the_batch", &[5, 3, 7], 0, Reduction::Mean, Fill::Normal),
        // Axes of [N, H, W, C]: rows, and channels.
        case("rows_of_images", &[2, 7, 5, 3], 1, Reduction::Mean, Fill::Normal),
        case("channels_of_images", &[2, 7, 5, 3], 3, Reduction::Max, Fill::Normal),
        // Long enough for the tree.
        case("tree_sum", &[3, 301], 1, Reduction::Sum, near_one),
        case("tree_mean", &[2, 129, 3], 1, Reduction::Mean, Fill::Normal),
        case("tree_max", &[3, 301], 1, Reduction::Max, Fill::Affine { scale: 1.0, shift: -100.0 }),
        case("tree_min", &[2, 129, 3], 1, Reduction::Min, far),
        case("tree_l2", &[3, 301], 1, Reduction::L2, Fill::Normal),
        case("tree_prod", &[3, 65], 1, Reduction::Prod, near_one),
        case("wide", &[3, 521, 331], 1, Reduction::Mean, near_one).without_golden(),
        case("long", &[2, 300_007], 1, Reduction::Mean, far).without_golden(),
        case("many", &[70_001, 64], 1, Reduction::L2, Fill::Normal).without_golden(),
        case("many_short", &[4_200_003, 3], 1, Reduction::Max, Fill::Normal).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("tokens_1024x768", &[8, 1024, 768], 1, Reduction::Mean, Fill::Normal), case("norm_4096x512", &[4096, 512], 1, Reduction::L2, Fill::Normal)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::run_tape;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 0, 4], DType::F32);
        assert_eq!(t.reduce(x, 1, Reduction::Max).unwrap_err().fact(), "Max of [2, 0, 4] along axis 1, expected an axis that is not empty");
        assert!(t.reduce(x, 3, Reduction::Sum).is_err());
        let index = t.input("index", &[2, 3], DType::U32);
        assert!(t.reduce(index, 0, Reduction::Sum).unwrap_err().fact().contains("integers"));
        let y = t.reduce(index, 2, Reduction::Sum);
        assert!(y.is_err());
        let x = t.input("x", &[2, 3, 4], DType::F32);
        let y = t.reduce(x, 0, Reduction::Sum).unwrap();
        assert_eq!(t.shape(y).dims(), [3, 4]);
    }

    #[test]
    fn extremes_keep_nan_and_a_row_does_not_depend_on_the_batch() {
        let run = |rows: usize, values: &[f32], reduction| {
            let mut t = Tape::new();
            let x = t.input("x", &[rows, values.len() / rows], DType::F32);
            let y = t.reduce(x, 1, reduction).unwrap();
            run_tape(&t, &[values], y).unwrap()
        };
        for reduction in [Reduction::Max, Reduction::Min] {
            for at in 0..3 {
                let mut values = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
                values[3 + at] = f32::NAN;
                let y = run(2, &values, reduction);
                assert!(y[0].is_finite() && y[1].is_nan(), "{reduction:?} {at}: {y:?}");
            }
        }
        let values: Vec<f32> = (0..3000).map(|i| (i as f32 * 0.37).sin()).collect();
        let all = run(3, &values, Reduction::Sum);
        for (row, y) in all.iter().enumerate() {
            assert_eq!([*y], run(1, &values[row * 1000..][..1000], Reduction::Sum)[..]);
        }
    }
}
