//! Pointwise functions of one tensor: activations, elementary functions, clamps and the affine map.
//!
//! y = f(x), any shape. Formulas beside [`Function`].

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::binary::larger;
use crate::ops::epilogue::NETWORK;
use crate::ops::lanes::{self, erf, gelu, sigmoid, tanh};
use crate::ops::timestep_embedding::SINCOS;
use crate::ops::{ELEM, EXPONENTIAL, LINEAR_INDEX, NAN};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub function: u32,
        pub a: f32,
        pub b: f32,
    }
}

/// WGSL fragment: sigmoid and tanh.
pub(crate) const SIGMOID: &str = include_str!("../../shaders/lib/activation.wgsl");
/// WGSL fragment: the functions by their codes; it needs the fragments that the card names before it.
pub(crate) const FUNCTIONS: &str = include_str!("../../shaders/lib/functions.wgsl");

/// A pointwise function; its discriminant is its code in the shader.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    Identity,
    /// x sigmoid(x), also called swish.
    Silu,
    /// max(x, 0).
    Relu,
    /// x Phi(x) with the exact error function.
    Gelu,
    /// The tanh approximation of GELU, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    GeluTanh,
    Sigmoid,
    Tanh,
    /// x tanh(ln(1 + e^x)).
    Mish,
    /// x for x >= 0, slope x below.
    LeakyRelu {
        slope: f32,
    },
    /// limit tanh(x / limit): the soft clamp at a TAESD decoder's entry.
    TanhClamp {
        limit: f32,
    },
    /// scale x + shift.
    Affine {
        scale: f32,
        shift: f32,
    },
    /// x between 0 and 6.
    Relu6,
    /// x between `low` and `high`; `high` where low > high. HardTanh is -1 to 1.
    Clamp {
        low: f32,
        high: f32,
    },
    /// x / 6 + 1/2 between 0 and 1: PyTorch's.
    HardSigmoid,
    /// x HardSigmoid(x).
    HardSwish,
    /// x sigmoid(1.702 x).
    QuickGelu,
    Exp,
    /// The natural logarithm: -inf at 0, NaN below.
    Log,
    Sqrt,
    /// 2 / sqrt(pi) times the integral of e^(-t^2) from 0 to x.
    Erf,
    Abs,
    /// x for x >= 0, alpha (e^x - 1) below.
    Elu {
        alpha: f32,
    },
    /// ln(1 + e^x).
    Softplus,
    /// 1 / x.
    Reciprocal,
    /// For |x| < 2^24.
    Sin,
    /// For |x| < 2^24.
    Cos,
    Floor,
    /// x / (1 + |x|).
    Softsign,
}

impl Function {
    /// Its code in the shader, and its two constants.
    pub(crate) fn code(self) -> (u32, f32, f32) {
        match self {
            Function::Identity => (0, 0.0, 0.0),
            Function::Silu => (1, 0.0, 0.0),
            Function::Relu => (2, 0.0, 0.0),
            Function::Gelu => (3, 0.0, 0.0),
            Function::GeluTanh => (4, 0.0, 0.0),
            Function::Sigmoid => (5, 0.0, 0.0),
            Function::Tanh => (6, 0.0, 0.0),
            Function::Mish => (7, 0.0, 0.0),
            Function::LeakyRelu { slope } => (8, slope, 0.0),
            Function::TanhClamp { limit } => (9, limit, 0.0),
            Function::Affine { scale, shift } => (10, scale, shift),
            Function::Relu6 => (11, 0.0, 6.0),
            Function::Clamp { low, high } => (11, low, high),
            Function::HardSigmoid => (12, 0.0, 0.0),
            Function::HardSwish => (13, 0.0, 0.0),
            Function::QuickGelu => (14, 0.0, 0.0),
            Function::Exp => (15, 0.0, 0.0),
            Function::Log => (16, 0.0, 0.0),
            Function::Sqrt => (17, 0.0, 0.0),
            Function::Erf => (18, 0.0, 0.0),
            Function::Abs => (19, 0.0, 0.0),
            Function::Elu { alpha } => (20, alpha, 0.0),
            Function::Softplus => (21, 0.0, 0.0),
            Function::Reciprocal => (22, 0.0, 0.0),
            Function::Sin => (23, 0.0, 0.0),
            Function::Cos => (24, 0.0, 0.0),
            Function::Floor => (25, 0.0, 0.0),
            Function::Softsign => (26, 0.0, 0.0),
        }
    }
}

pub static OP: Op = Op {
    name: "activation",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 4e-6, reason: "exp and tanh of WGSL may be wrong by a few ulp; erf by 1.5e-7 absolute" },
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[
        ELEM,
        LINEAR_INDEX,
        NAN,
        EXPONENTIAL,
        SINCOS,
        SIGMOID,
        NETWORK,
        FUNCTIONS,
        include_str!("../../shaders/activation.wgsl"),
    ])],
};

impl Tape {
    /// f(x), elementwise.
    pub fn activation(&mut self, x: Tensor, function: Function) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        let (code, a, b) = function.code();
        let params = Params { len: shape.numel() as u32, function: code, a, b };
        Ok(self.push(&OP, &params, &[x], shape.dims(), DType::F32))
    }

    /// scale x + shift.
    pub fn affine(&mut self, x: Tensor, scale: f32, shift: f32) -> Result<Tensor> {
        self.activation(x, Function::Affine { scale, shift })
    }
}

/// x sigmoid(x).
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// Not max: it would turn NaN into 0 and hide where it was made.
#[inline(always)]
fn relu(v: f32) -> f32 {
    if v < 0.0 { 0.0 } else { v }
}

/// sqrt(2 / pi).
const FRAC_SQRT_2_PI: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;

/// `v` between `low` and `high`, `high` where low > high; NaN stays.
fn clamp(v: f32, low: f32, high: f32) -> f32 {
    let v = if v < low { low } else { v };
    if v > high { high } else { v }
}

fn softplus(v: f32) -> f32 {
    larger(v, 0.0) + (-v.abs()).exp().ln_1p()
}

#[inline(always)]
fn gelu_tanh(v: f32) -> f32 {
    0.5 * v * (1.0 + tanh(FRAC_SQRT_2_PI * (v + 0.044_715 * v * v * v)))
}

#[inline(always)]
fn quick_gelu(v: f32) -> f32 {
    v * sigmoid(1.702 * v)
}

/// A loop over values that is given its function.
trait Loop {
    fn run(self, f: impl Fn(f32) -> f32);
}

/// Runs `over` with the function whose code and constants are in `p`. A loop over one function becomes vector code, a choice within the loop does
/// not: the networks' functions have loops of their own.
fn with_function(p: &Params, over: impl Loop) {
    match p.function {
        1 => over.run(silu),
        2 => over.run(relu),
        3 => over.run(gelu),
        4 => over.run(gelu_tanh),
        5 => over.run(sigmoid),
        6 => over.run(tanh),
        14 => over.run(quick_gelu),
        _ => over.run(|v| apply(p, v)),
    }
}

/// y = f(x), with the function's code and constants in `p`.
pub(crate) fn apply_all(p: &Params, y: &mut [f32], x: &[f32]) {
    struct Map<'a>(&'a mut [f32], &'a [f32]);
    impl Loop for Map<'_> {
        fn run(self, f: impl Fn(f32) -> f32) {
            lanes::map(self.0, self.1, f);
        }
    }
    with_function(p, Map(y, x));
}

/// y = f(y), with the function's code and constants in `p`.
pub(crate) fn apply_in_place(p: &Params, y: &mut [f32]) {
    struct Update<'a>(&'a mut [f32]);
    impl Loop for Update<'_> {
        fn run(self, f: impl Fn(f32) -> f32) {
            lanes::update(self.0, f);
        }
    }
    with_function(p, Update(y));
}

/// f(v), with the function's code and constants in `p`.
#[inline]
pub(crate) fn apply(p: &Params, v: f32) -> f32 {
    match p.function {
        1 => silu(v),
        2 => relu(v),
        3 => gelu(v),
        4 => gelu_tanh(v),
        5 => sigmoid(v),
        6 => tanh(v),
        7 => v * tanh(softplus(v)),
        8 => {
            if v >= 0.0 {
                v
            } else {
                p.a * v
            }
        }
        9 => tanh(v / p.a) * p.a,
        10 => p.a * v + p.b,
        11 => clamp(v, p.a, p.b),
        12 => clamp(v / 6.0 + 0.5, 0.0, 1.0),
        13 => v * clamp(v / 6.0 + 0.5, 0.0, 1.0),
        14 => quick_gelu(v),
        15 => libm::expf(v),
        16 => libm::logf(v),
        17 => v.sqrt(),
        18 => erf(v),
        19 => v.abs(),
        20 => {
            if v >= 0.0 {
                v
            } else {
                p.a * libm::expm1f(v)
            }
        }
        21 => softplus(v),
        22 => 1.0 / v,
        23 => libm::sin(f64::from(v)) as f32,
        24 => libm::cos(f64::from(v)) as f32,
        25 => v.floor(),
        26 => v / (1.0 + v.abs()),
        _ => v,
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let x = call.inputs[0];
    call.output.par_chunks_mut(16_384).zip(x.par_chunks(16_384)).for_each(|(y, x)| {
        apply_all(&p, y, x);
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 4 * s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, function: Function) -> Case {
    // Scale 4: both tails of every function are reached.
    let x = CaseInput::new("x", &[7, 31], Layout::Plain, Fill::Affine { scale: 4.0, shift: 0.0 });
    Case::new(name, vec![x], move |t, i| t.activation(i[0], function))
}

/// A function of positive numbers.
fn positive(name: &'static str, function: Function) -> Case {
    let x = CaseInput::new("x", &[7, 31], Layout::Plain, Fill::Uniform { low: 0.002, high: 80.0 });
    Case::new(name, vec![x], move |t, i| t.activation(i[0], function))
}

fn cases() -> Vec<Case> {
    vec![
        case("silu", Function::Silu),
        case("relu", Function::Relu),
        case("gelu", Function::Gelu),
        case("gelu_tanh", Function::GeluTanh),
        case("sigmoid", Function::Sigmoid),
        case("tanh", Function::Tanh),
        case("mish", Function::Mish),
        case("leaky_relu", Function::LeakyRelu { slope: 0.01 }),
        case("tanh_clamp", Function::TanhClamp { limit: 3.0 }),
        case("affine", Function::Affine { scale: -1.5, shift: 0.25 }),
        case("relu6", Function::Relu6),
        case("clamp", Function::Clamp { low: -2.5, high: 0.75 }),
        case("hard_sigmoid", Function::HardSigmoid),
        case("hard_swish", Function::HardSwish),
        case("quick_gelu", Function::QuickGelu),
        case("exp", Function::Exp),
        positive("log", Function::Log),
        positive("sqrt", Function::Sqrt),
        case("erf", Function::Erf),
        case("abs", Function::Abs),
        case("elu", Function::Elu { alpha: 0.75 }),
        case("softplus", Function::Softplus),
        positive("reciprocal", Function::Reciprocal),
        case("sin", Function::Sin),
        case("cos", Function::Cos),
        case("floor", Function::Floor),
        case("softsign", Function::Softsign),
        Case::new("far_sin", vec![CaseInput::new("x", &[70_001], Layout::Plain, Fill::Affine { scale: 3000.0, shift: 0.0 })], |t, i| {
            t.activation(i[0], Function::Sin)
        })
        .without_golden(),
        Case::new("far_exp", vec![CaseInput::new("x", &[70_001], Layout::Plain, Fill::Uniform { low: -120.0, high: 88.0 })], |t, i| {
            t.activation(i[0], Function::Exp)
        })
        .without_golden(),
        Case::new("large", vec![CaseInput::new("x", &[2_200_000], Layout::Plain, Fill::Affine { scale: 40.0, shift: 0.0 })], |t, i| {
            t.activation(i[0], Function::Silu)
        })
        .without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![Case::new("silu_1M", vec![CaseInput::plain("x", &[1 << 20])], |t, i| t.activation(i[0], Function::Silu))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_keeps_the_odd_values() {
        assert!(silu(f32::NAN).is_nan());
        assert_eq!((silu(-200.0), silu(200.0)), (-0.0, 200.0));
    }
}
