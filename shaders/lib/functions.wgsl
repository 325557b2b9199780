// Pointwise functions by code: these and, by way of `network_function`, those of lib/network.wgsl.
const MISH: u32 = 7u;
const TANH_CLAMP: u32 = 9u;
const AFFINE: u32 = 10u;
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

fn softplus(x: f32) -> f32 {
    return larger(x, 0.0) + log(1.0 + exp(-abs(x)));
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
        case MISH: { return v * tanh_stable(softplus(v)); }
        case TANH_CLAMP: { return tanh_stable(v / a) * a; }
        case AFFINE: { return a * v + b; }
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
        default: { return network_function(function, v, a, b); }
    }
}
