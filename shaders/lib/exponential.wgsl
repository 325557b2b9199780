// e^x and a^b to a few ulp. Vulkan promises exp only within 3 + 2 |x| ulp, and pow of a negative base not at all.

// A value that the compiler does not know: constants of infinity and NaN are refused.
fn from_bits(bits: u32) -> f32 { return bitcast<f32>(bits); }

// v 2^n for |n| <= 252, in two factors: one exponent holds -126 to 127.
fn times_power_of_two(v: f32, n: i32) -> f32 {
    let half = n / 2;
    return v * bitcast<f32>((half + 127) << 23u) * bitcast<f32>((n - half + 127) << 23u);
}

// e^r for |r| <= 0.36 by its Taylor polynomial of degree 7 (error below 5e-9).
fn exp_near_zero(r: f32) -> f32 {
    let tail = 1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0)));
    return 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * tail)));
}

// x = n ln 2 + r; ln 2 in two parts, n times the first is exact.
fn exp_accurate(x: f32) -> f32 {
    if is_nan(x) { return x; }
    let v = clamp(x, -104.0, 89.0);   // 0 and infinity beyond
    let n = round(v * 1.4426950408889634);
    let r = (v - n * 0.693359375) + n * 2.1219444e-4;
    return times_power_of_two(exp_near_zero(r), i32(n));
}

// a^b as C's pow. |a| = 2^k m with m in [sqrt(1/2), sqrt(2)); b log2 |a| = b k + b log2 m is split into a whole part and
// the rest with b k exact, so that the error is that of b log2 m alone.
fn power(a: f32, b: f32) -> f32 {
    if b == 0.0 { return 1.0; }
    if is_nan(a) { return a; }
    if b == 2.0 { return a * a; }
    let whole = floor(b) == b;
    let odd = whole && abs(b) < 16777216.0 && (u32(abs(b)) & 1u) == 1u;
    if a < 0.0 && !whole && abs(a) < 3.4028235e38 { return from_bits(0x7fc00000u | (bitcast<u32>(b) & 1u)); }
    let size = power_of_size(abs(a), b);
    return select(size, -size, odd && (bitcast<u32>(a) >> 31u) == 1u);
}

// a^b for a >= 0, b not 0.
fn power_of_size(a: f32, b: f32) -> f32 {
    if is_nan(b) { return select(b, 1.0, a == 1.0); }
    if a == 1.0 { return 1.0; }
    let bits = bitcast<i32>(a);
    let k = f32((bits - 0x3f3504f3) >> 23u);
    let m = bitcast<f32>(bits - i32(k) * 0x800000);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let log_m = 2.0 * s + s * z * (0.66666776 + z * (0.39977533 + z * 0.29871997));
    let rough = b * (k + log_m * 1.4426950408889634);
    if a < 1.1754944e-38 || a > 3.4028235e38 || !(abs(rough) < 160.0) {
        // 0 and infinity, as bases or as results.
        return select(0.0, from_bits(0x7f800000u | (bitcast<u32>(b) & 0u)), (a > 1.0) == (b > 0.0));
    }
    let coarse = bitcast<f32>(bitcast<u32>(b) & 0xfffff000u);   // 12 bits of b: their product with k is exact
    let n = round(rough);
    let r = ((coarse * k - n) + (b - coarse) * k) * 0.6931471805599453 + b * log_m;
    return times_power_of_two(exp_near_zero(r), i32(n));
}
