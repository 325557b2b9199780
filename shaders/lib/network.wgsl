// The functions between the layers of networks by code; the codes are ops::activation::Function.
const IDENTITY: u32 = 0u;
const SILU: u32 = 1u;
const RELU: u32 = 2u;
const GELU: u32 = 3u;
const GELU_TANH: u32 = 4u;
const SIGMOID: u32 = 5u;
const TANH: u32 = 6u;
const LEAKY_RELU: u32 = 8u;
const CLAMP: u32 = 11u;
const HARD_SIGMOID: u32 = 12u;
const HARD_SWISH: u32 = 13u;
const QUICK_GELU: u32 = 14u;

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

// Not min and max: they may drop NaN.
fn clamp_stable(v: f32, low: f32, high: f32) -> f32 {
    let above = select(v, low, v < low);
    return select(above, high, above > high);
}

fn network_function(function: u32, v: f32, a: f32, b: f32) -> f32 {
    switch function {
        case SILU: { return v * sigmoid(v); }
        case RELU: { return select(v, 0.0, v < 0.0); }   // not max: it may turn NaN into 0
        case GELU: { return 0.5 * v * (1.0 + erf_stable(v * 0.70710678)); }
        case GELU_TANH: { return 0.5 * v * (1.0 + tanh_stable(0.79788456 * (v + 0.044715 * v * v * v))); }
        case SIGMOID: { return sigmoid(v); }
        case TANH: { return tanh_stable(v); }
        case LEAKY_RELU: { return select(a * v, v, v >= 0.0); }
        case CLAMP: { return clamp_stable(v, a, b); }
        case HARD_SIGMOID: { return clamp_stable(v / 6.0 + 0.5, 0.0, 1.0); }
        case HARD_SWISH: { return v * clamp_stable(v / 6.0 + 0.5, 0.0, 1.0); }
        case QUICK_GELU: { return v * sigmoid(1.702 * v); }
        default: { return v; }
    }
}
