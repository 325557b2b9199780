// The logistic function and the hyperbolic tangent, without overflow.
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
