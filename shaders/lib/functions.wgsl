// Pointwise functions by code; the codes are ops::activation::Function.
const IDENTITY: u32 = 0u;
const SILU: u32 = 1u;
const RELU: u32 = 2u;
const GELU: u32 = 3u;
const GELU_TANH: u32 = 4u;
const SIGMOID: u32 = 5u;
const TANH: u32 = 6u;
const MISH: u32 = 7u;
const LEAKY_RELU: u32 = 8u;
const TANH_CLAMP: u32 = 9u;
const AFFINE: u32 = 10u;
const CLAMP: u32 = 11u;
const HARD_SIGMOID: u32 = 12u;
const HARD_SWISH: u32 = 13u;
const QUICK_GELU: u32 = 14u;
const EXP: u32 = 15u;
const LOG: u32 = 16u;
const SQRT: u32 = 17u;
const ERF: u32 = 18u;
const ABS: u32 = 19u;
const ELU: u32 = 20u;
const SOFTPLUS: u32 = 21u;
const RECIPROCAL: u32 = 22u;
const SIN: u32 = 23u;
const COS: u32 = 24u;
const FLOOR: u32 = 25u;
const SOFTSIGN: u32 = 26u;

// Abramowitz and Stegun 7.1.26 has 1.5e-7 absolute error only; near zero, where it cancels, the Maclaurin series serves.
fn erf_stable(x: f32) -> f32 {
    let z = abs(x);
    let t = 1.0 / (1.0 + 0.3275911 * z);
    let poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    let far = 1.0 - poly * exp(-z * z);
    let s = z * z;
    let near = 1.1283791671 * z * (1.0 + s * (-1.0 / 3.0 + s * (0.1 + s * (-1.0 / 42.0 + s * (1.0 / 216.0 + s * (-1.0 / 1320.0 + s / 9360.0))))));
    return sign(x) * select(far, near, z < 0.7);
}

fn softplus(x: f32) -> f32 {
    return larger(x, 0.0) + log(1.0 + exp(-abs(x)));
}

// Not min and max: they may drop NaN.
fn clamp_stable(v: f32, low: f32, high: f32) -> f32 {
    let above = select(v, low, v < low);
    return select(above, high, above > high);
}

// The logarithm with its limits: -inf at 0, NaN below, infinity and NaN as they are.
fn log_whole(x: f32) -> f32 {
    if is_nan(x) || x > 3.4028235e38 { return x; }
    if x < 0.0 { return from_bits(0x7fc00000u | (bitcast<u32>(x) & 1u)); }
    if x < 1.1754944e-38 { return from_bits(0xff800000u | (bitcast<u32>(x) & 0u)); }
    return log_accurate(x);
}

fn activate(function: u32, v: f32, a: f32, b: f32) -> f32 {
    switch function {
        case SILU: { return v * sigmoid(v); }
        case RELU: { return select(v, 0.0, v < 0.0); }   // not max: it may turn NaN into 0
        case GELU: { return 0.5 * v * (1.0 + erf_stable(v * 0.70710678)); }
        case GELU_TANH: { return 0.5 * v * (1.0 + tanh_stable(0.79788456 * (v + 0.044715 * v * v * v))); }
        case SIGMOID: { return sigmoid(v); }
        case TANH: { return tanh_stable(v); }
        case MISH: { return v * tanh_stable(softplus(v)); }
        case LEAKY_RELU: { return select(a * v, v, v >= 0.0); }
        case TANH_CLAMP: { return tanh_stable(v / a) * a; }
        case AFFINE: { return a * v + b; }
        case CLAMP: { return clamp_stable(v, a, b); }
        case HARD_SIGMOID: { return clamp_stable(v / 6.0 + 0.5, 0.0, 1.0); }
        case HARD_SWISH: { return v * clamp_stable(v / 6.0 + 0.5, 0.0, 1.0); }
        case QUICK_GELU: { return v * sigmoid(1.702 * v); }
        case EXP: { return exp_accurate(v); }
        case LOG: { return log_whole(v); }
        case SQRT: { return sqrt(v); }
        case ERF: { return erf_stable(v); }
        case ABS: { return abs(v); }
        case ELU: { return select(a * (exp_accurate(v) - 1.0), v, v >= 0.0); }
        case SOFTPLUS: { return softplus(v); }
        case RECIPROCAL: { return 1.0 / v; }
        case SIN: { return sin_accurate(v); }
        case COS: { return cos_accurate(v); }
        case FLOOR: { return floor(v); }
        case SOFTSIGN: { return v / (1.0 + abs(v)); }
        default: { return v; }
    }
}
