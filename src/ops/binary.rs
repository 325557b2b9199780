//! Functions of two tensors, with numpy's broadcasting: sum, difference, product, quotient, minimum, maximum, power.
//!
//! y = a op b. Shapes are aligned at the last axis, and an axis of one repeats: `[N, H, W, C]` with `[C]`, `[N, 1, 1, C]`,
//! `[1]` or `[]`. Up to six axes that cannot be merged.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::axes::{AXES, TASK, Walk, broadcast, broadcast_strides, words};
use crate::ops::{ELEM, EXPONENTIAL, LINEAR_INDEX, NAN};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub function: u32,
        /// Sizes of y, the last axis innermost.
        pub size0: u32,
        pub size1: u32,
        pub size2: u32,
        pub size3: u32,
        pub size4: u32,
        pub size5: u32,
        /// Strides of y's axes in a: 0 where a repeats.
        pub a_stride0: u32,
        pub a_stride1: u32,
        pub a_stride2: u32,
        pub a_stride3: u32,
        pub a_stride4: u32,
        pub a_stride5: u32,
        /// The same in b.
        pub b_stride0: u32,
        pub b_stride1: u32,
        pub b_stride2: u32,
        pub b_stride3: u32,
        pub b_stride4: u32,
        pub b_stride5: u32,
    }
}

impl Params {
    #[rustfmt::skip]
    fn new(len: usize, operator: Operator, walk: &Walk<2>) -> Params {
        let [size0, size1, size2, size3, size4, size5] = words(walk.sizes);
        let [a_stride0, a_stride1, a_stride2, a_stride3, a_stride4, a_stride5] = words(walk.strides[0]);
        let [b_stride0, b_stride1, b_stride2, b_stride3, b_stride4, b_stride5] = words(walk.strides[1]);
        Params {
            len: len as u32, function: operator as u32,
            size0, size1, size2, size3, size4, size5,
            a_stride0, a_stride1, a_stride2, a_stride3, a_stride4, a_stride5,
            b_stride0, b_stride1, b_stride2, b_stride3, b_stride4, b_stride5,
        }
    }

    fn walk(&self) -> Walk<2> {
        let sizes = [self.size0, self.size1, self.size2, self.size3, self.size4, self.size5];
        let a = [self.a_stride0, self.a_stride1, self.a_stride2, self.a_stride3, self.a_stride4, self.a_stride5];
        let b = [self.b_stride0, self.b_stride1, self.b_stride2, self.b_stride3, self.b_stride4, self.b_stride5];
        Walk { sizes: sizes.map(|v| v as usize), strides: [a, b].map(|s| s.map(|v| v as usize)) }
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
    /// a / b.
    Div = 3,
    /// The smaller of both; NaN where either is NaN, as in PyTorch.
    Min = 4,
    /// The larger of both; NaN where either is NaN, as in PyTorch.
    Max = 5,
    /// a^b as C's `pow`: (-|a|)^b is |a|^b with the sign of (-1)^b for a whole b, NaN for another.
    Pow = 6,
}

/// WGSL fragment: the operators by their codes.
const OPERATORS: &str = include_str!("../../shaders/lib/operators.wgsl");

pub static OP: Op = Op {
    name: "binary",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 1e-6, reason: "sums and products are rounded once; WGSL's quotient may be wrong by 2.5 ulp, a^b by |b| ulp of log a" },
    f16: true,
    statistics: &[],
    variants: &[
        Variant::per_element(&[ELEM, LINEAR_INDEX, NAN, EXPONENTIAL, OPERATORS, include_str!("../../shaders/binary.wgsl")]),
        // Of the family of `direct`: two shapes that are equal at batch 1 may broadcast at batch 2, and a row keeps its bits.
        Variant {
            name: "equal",
            accepts: |s| s.inputs[0] == s.inputs[1],
            ..Variant::per_element(&[ELEM, LINEAR_INDEX, NAN, EXPONENTIAL, OPERATORS, include_str!("../../shaders/binary_equal.wgsl")])
        },
    ],
};

impl Tape {
    /// a op b, elementwise; the shapes broadcast as in numpy.
    pub fn binary(&mut self, a: Tensor, b: Tensor, operator: Operator) -> Result<Tensor> {
        let (a_shape, b_shape) = (self.shape(a).clone(), self.shape(b).clone());
        let Some(dims) = broadcast(a_shape.dims(), b_shape.dims()) else {
            return Err(self.mismatch(format!("{operator:?} of {a_shape} and {b_shape}: the shapes do not broadcast, expected equal sizes or 1")));
        };
        if self.dtype(a) != DType::F32 || self.dtype(b) != DType::F32 {
            return Err(self.mismatch(format!("{operator:?} of integers {a_shape} and {b_shape}, expected f32")));
        }
        let strides = [&a_shape, &b_shape].map(|shape| broadcast_strides(shape.dims(), &dims));
        let Some(walk) = Walk::new(&dims, &strides) else {
            return Err(self.mismatch(format!("{operator:?} of {a_shape} and {b_shape} has more than {AXES} axes that cannot be merged")));
        };
        let len = dims.iter().fold(1usize, |n, &d| n.saturating_mul(d));
        Ok(self.push(&OP, &Params::new(len, operator, &walk), &[a, b], &dims, DType::F32))
    }

    /// a + b, elementwise; the shapes broadcast as in numpy.
    pub fn add(&mut self, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.binary(a, b, Operator::Add)
    }

    /// a - b, elementwise; the shapes broadcast as in numpy.
    pub fn sub(&mut self, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.binary(a, b, Operator::Sub)
    }

    /// a b, elementwise; the shapes broadcast as in numpy.
    pub fn mul(&mut self, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.binary(a, b, Operator::Mul)
    }

    /// a / b, elementwise; the shapes broadcast as in numpy.
    pub fn div(&mut self, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.binary(a, b, Operator::Div)
    }
}

/// The smaller of both, NaN where either is NaN.
pub fn smaller(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

/// The larger of both, NaN where either is NaN.
pub fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

fn power(a: f32, b: f32) -> f32 {
    if b == 2.0 { a * a } else { libm::pow(f64::from(a), f64::from(b)) as f32 }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    match p.function {
        0 => each(call, &p, |a, b| a + b),
        1 => each(call, &p, |a, b| a - b),
        2 => each(call, &p, |a, b| a * b),
        3 => each(call, &p, |a, b| a / b),
        4 => each(call, &p, smaller),
        5 => each(call, &p, larger),
        _ => each(call, &p, power),
    }
}

/// One loop per operator, so that it becomes vector code; the innermost strides are 0 or 1.
fn each(call: &mut TwinCall, p: &Params, op: impl Fn(f32, f32) -> f32 + Sync) {
    let [a, b] = *call.inputs else { return };
    let walk = p.walk();
    let inner = walk.strides.map(|s| s[AXES - 1]);
    call.output.par_chunks_mut(TASK).enumerate().for_each(|(task, y)| {
        walk.runs(task * TASK, y.len(), |run, [i, j]| {
            let (n, y) = (run.len(), y[run].iter_mut());
            match inner {
                [1, 1] => y.zip(a[i..i + n].iter().zip(&b[j..j + n])).for_each(|(y, (&a, &b))| *y = op(a, b)),
                [1, _] => y.zip(&a[i..i + n]).for_each(|(y, &a)| *y = op(a, b[j])),
                [_, 1] => y.zip(&b[j..j + n]).for_each(|(y, &b)| *y = op(a[i], b)),
                _ => y.for_each(|y| *y = op(a[i], b[j])),
            }
        });
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, a: &[usize], b: &[usize], operator: Operator) -> Case {
    let input = |name, shape: &[usize]| CaseInput::new(name, shape, if shape.len() == 4 { Layout::Image } else { Layout::Plain }, Fill::Normal);
    filled(name, input("a", a), input("b", b), operator)
}

fn filled(name: &'static str, a: CaseInput, b: CaseInput, operator: Operator) -> Case {
    Case::new(name, vec![a, b], move |t, i| t.binary(i[0], i[1], operator))
}

fn cases() -> Vec<Case> {
    let uniform = |name, shape: &[usize], low, high| CaseInput::new(name, shape, Layout::Plain, Fill::Uniform { low, high });
    // Whole numbers of either sign, as a base and as an exponent.
    let whole = |name, shape: &[usize]| CaseInput::new(name, shape, Layout::Plain, Fill::Binary);
    vec![
        case("add", &[3, 5, 31], &[3, 5, 31], Operator::Add),
        case("sub", &[6, 7, 9], &[6, 7, 9], Operator::Sub),
        case("mul", &[467], &[467], Operator::Mul),
        case("one", &[1], &[1], Operator::Add),
        filled("div", CaseInput::plain("a", &[5, 43]), uniform("b", &[5, 43], 0.25, 80.0), Operator::Div),
        case("min", &[5, 43], &[5, 43], Operator::Min),
        case("max", &[5, 43], &[5, 43], Operator::Max),
        filled("pow", uniform("a", &[7, 67], 0.05, 6.0), uniform("b", &[7, 67], -3.0, 4.0), Operator::Pow),
        filled("pow_square", CaseInput::plain("a", &[7, 67]), uniform("b", &[1], 2.0, 2.0), Operator::Pow),
        filled("pow_cube", CaseInput::plain("a", &[7, 67]), uniform("b", &[1], 3.0, 3.0), Operator::Pow),
        filled("pow_of_zero_or_one", whole("a", &[3, 37]), whole("b", &[3, 37]), Operator::Pow),
        case("by_scalar", &[3, 5, 7], &[], Operator::Sub),
        case("scalar_by", &[1], &[3, 41], Operator::Sub),
        // Images [N, H, W, C] with one value per channel, per item and channel, and per pixel.
        case("by_channel", &[2, 7, 5, 3], &[7], Operator::Mul),
        case("by_item_and_channel", &[2, 7, 5, 3], &[2, 7, 1, 1], Operator::Sub),
        case("by_pixel", &[2, 7, 5, 3], &[2, 1, 5, 3], Operator::Sub),
        case("outer", &[11, 1], &[1, 13], Operator::Sub),
        case("both_repeat", &[2, 1, 3, 1, 5, 1], &[3, 1, 4, 1, 3], Operator::Sub),
        // More than 65,535 workgroups of 64.
        case("large", &[4_200_003], &[4_200_003], Operator::Sub).without_golden(),
        case("large_by_channel", &[2, 131, 127, 129], &[131], Operator::Add).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![
        case("unet_96x16x16", &[8, 96, 16, 16], &[8, 96, 16, 16], Operator::Add),
        case("sd_320x64x64", &[2, 320, 64, 64], &[2, 320, 64, 64], Operator::Add),
        case("channel_320x64x64", &[2, 320, 64, 64], &[320], Operator::Mul),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::run_tape;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let a = t.input("a", &[2, 3], DType::F32);
        let b = t.input("b", &[3, 2], DType::F32);
        assert_eq!(t.add(a, b).unwrap_err().fact(), "Add of [2, 3] and [3, 2]: the shapes do not broadcast, expected equal sizes or 1");
        assert!(t.mul(a, a).is_ok());
        let column = t.input("column", &[4, 1, 1], DType::F32);
        let y = t.div(column, b).unwrap();
        assert_eq!(t.shape(y).dims(), [4, 3, 2]);
        let index = t.input("index", &[3], DType::U32);
        assert!(t.add(a, index).unwrap_err().fact().contains("integers"));
        let (odd, even) = (t.input("odd", &[2, 1, 2, 1, 2, 1, 2], DType::F32), t.input("even", &[1, 2, 1, 2, 1, 2, 1], DType::F32));
        assert!(t.add(odd, even).unwrap_err().fact().contains("more than 6 axes"));
        // A result beyond every limit is recorded, and refused when the plan is frozen.
        let (tall, wide) = (t.input("tall", &[1 << 40, 1], DType::F32), t.input("wide", &[1, 1 << 40], DType::F32));
        assert!(t.add(tall, wide).is_ok());
    }

    fn of(operator: Operator, a: &[f32], b: &[f32]) -> Vec<f32> {
        let mut t = Tape::new();
        let (x, z) = (t.input("a", &[a.len()], DType::F32), t.input("b", &[b.len()], DType::F32));
        let y = t.binary(x, z, operator).unwrap();
        run_tape(&t, &[a, b], y).unwrap()
    }

    #[test]
    fn extremes_keep_nan_and_powers_of_negative_numbers_are_as_in_c() {
        let nan = f32::NAN;
        for operator in [Operator::Min, Operator::Max] {
            assert!(of(operator, &[nan, 1.0], &[1.0, nan]).iter().all(|v| v.is_nan()), "{operator:?}");
        }
        assert_eq!(of(Operator::Min, &[2.0, -1.0], &[1.0, 3.0]), [1.0, -1.0]);
        assert_eq!(of(Operator::Pow, &[-2.0, -2.0, -2.0, 0.0, nan, -0.5], &[3.0, -2.0, 0.0, 0.0, 0.0, 2.0]), [-8.0, 0.25, 1.0, 1.0, 1.0, 0.25]);
        assert!(of(Operator::Pow, &[-2.0], &[0.5])[0].is_nan());
    }
}
