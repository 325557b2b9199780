// Pointwise functions by code; the codes are ops::activation::Function.
const ACT_IDENTITY: u32 = 0u;
const ACT_SILU: u32 = 1u;
const ACT_RELU: u32 = 2u;
const ACT_GELU: u32 = 3u;
const ACT_GELU_TANH: u32 = 4u;
const ACT_SIGMOID: u32 = 5u;
const ACT_TANH: u32 = 6u;
const ACT_MISH: u32 = 7u;
const ACT_LEAKY_RELU: u32 = 8u;
const ACT_TANH_CLAMP: u32 = 9u;
const ACT_AFFINE: u32 = 10u;

fn sigmoid(x: f32) -> f32 {
    // exp of a non-positive number only: no overflow on either side.
    let e = exp(-abs(x));
    return select(e, 1.0, x >= 0.0) / (1.0 + e);
}

// tanh from exp of a non-positive number; drivers' tanh overflows for large arguments (Metal fast-math, old Mesa).
// Near zero the quotient cancels, so the odd Taylor polynomial serves there (error below 1e-8 for |x| < 0.2).
fn tanh_stable(x: f32) -> f32 {
    let e = exp(-2.0 * abs(x));
    let far = sign(x) * (1.0 - e) / (1.0 + e);
    let s = x * x;
    let near = x * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0)))));
    return select(far, near, abs(x) < 0.2);
}
