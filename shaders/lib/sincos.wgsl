// sin and cos of |x| < 2^24 within 2e-7 absolute, log of a normal x > 0 within 2 ulp.
// Vulkan promises sin and cos only within 2^-11 and only on [-pi, pi].
// The range reduction is in integers: Cody and Waite's x - k c1 - k c2 holds only while no compiler gathers the terms,
// and the fast-math of Metal and Direct3D may. Polynomials: least maximum error on the reduced range, fitted for these files.

const INV_TWO_PI_HI: u32 = 0x28be60dbu;   // 1 / (2 pi) in units of 2^-32 ...
const INV_TWO_PI_LO: u32 = 0x9391054au;   // ... and of 2^-64

// a b as (high word, low word).
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let low = a0 * b0;
    let mid = a1 * b0 + (low >> 16u);
    let cross = a0 * b1 + (mid & 0xffffu);
    return vec2<u32>(a1 * b1 + (mid >> 16u) + (cross >> 16u), (cross << 16u) | (low & 0xffffu));
}

// x / (2 pi) mod 1 in units of 2^-32.
fn turn(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    let shift = 150u - min((bits >> 23u) & 0xffu, 150u);   // |x| = mantissa * 2^-shift
    // mantissa / (2 pi) as words of weight 1 and 2^-32.
    let high = wide_product(mantissa, INV_TWO_PI_HI);
    let fraction = high.y + wide_product(mantissa, INV_TWO_PI_LO).x;
    let whole = high.x + select(0u, 1u, fraction < high.y);
    var result = 0u;
    if shift == 0u {
        result = fraction;
    } else if shift < 32u {
        result = (fraction >> shift) | (whole << (32u - shift));
    } else if shift < 64u {
        result = whole >> (shift - 32u);
    }
    return select(result, 0u - result, (bits >> 31u) != 0u);
}

// sin(x + quarters pi / 2).
fn sin_quarter(x: f32, quarters: u32) -> f32 {
    let angle = turn(x);
    var quadrant = (angle + 0x20000000u) >> 30u;
    var r = f32(bitcast<i32>(angle - (quadrant << 30u))) * 1.4629180792671596e-9;   // 2 pi / 2^32
    if abs(x) < 0.7853 {
        quadrant = 0u;
        r = x;
    }
    let z = r * r;
    let sine = r + r * z * (-0.16666651 + z * (0.008331979 - z * 0.00019495602));
    let cosine = 1.0 - 0.5 * z + z * z * (0.041666646 + z * (-0.0013887368 + z * 2.4438415e-5));
    quadrant += quarters;
    let value = select(sine, cosine, (quadrant & 1u) != 0u);
    return select(value, -value, (quadrant & 2u) != 0u);
}

fn sin_accurate(x: f32) -> f32 { return sin_quarter(x, 0u); }

fn cos_accurate(x: f32) -> f32 { return sin_quarter(x, 1u); }

// x = 2^k m with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh((m - 1) / (m + 1)).
// WGSL's log may be wrong by 3 ulp, and by 2^-21 between 1/2 and 2.
fn log_accurate(x: f32) -> f32 {
    let bits = bitcast<i32>(x);
    let k = (bits - 0x3f3504f3) >> 23u;
    let m = bitcast<f32>(bits - k * 0x800000);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    return f32(k) * 0.6931471805599453 + (2.0 * s + s * z * (0.66666776 + z * (0.39977533 + z * 0.29871997)));
}
