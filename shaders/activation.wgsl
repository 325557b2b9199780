// activation: y = f(x), elementwise; f by code. `a` and `b` are its constants.   x, y: [n]
struct Params { len: u32, function: u32, a: f32, b: f32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [n]
@group(0) @binding(2) var<storage, read_write> y: array<elem>;   // [n]

override WG: u32 = 64u;

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
    return max(x, 0.0) + log(1.0 + exp(-abs(x)));
}

fn apply(v: f32) -> f32 {
    switch p.function {
        case ACT_SILU: { return v * sigmoid(v); }
        case ACT_RELU: { return select(v, 0.0, v < 0.0); }   // not max: it may turn NaN into 0
        case ACT_GELU: { return 0.5 * v * (1.0 + erf_stable(v * 0.70710678)); }
        case ACT_GELU_TANH: { return 0.5 * v * (1.0 + tanh_stable(0.79788456 * (v + 0.044715 * v * v * v))); }
        case ACT_SIGMOID: { return sigmoid(v); }
        case ACT_TANH: { return tanh_stable(v); }
        case ACT_MISH: { return v * tanh_stable(softplus(v)); }
        case ACT_LEAKY_RELU: { return select(p.a * v, v, v >= 0.0); }
        case ACT_TANH_CLAMP: { return tanh_stable(v / p.a) * p.a; }
        case ACT_AFFINE: { return p.a * v + p.b; }
        default: { return v; }
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    y[i] = elem(apply(f32(x[i])));
}
