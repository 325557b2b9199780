//! Loops of the CPU twins, compiled for several vector extensions; the machine's widest is taken at run time.
//!
//! The arithmetic is the same on all of them, to the bit: no fused multiply-adds, and sums run in [`LANES`] lanes whatever
//! the width of a register.

use pulp::Arch;
/// A piece of work for [`wide`]: its `call`, `#[inline(always)]`.
pub(crate) use pulp::NullaryFnOnce as Job;

/// Values of one step of a loop: a register of AVX-512, two of AVX2, four of SSE2 or NEON.
pub(crate) const LANES: usize = 16;

/// Runs `job`, compiled for the machine's vectors. What it calls must be `#[inline(always)]`, or it is compiled for none.
#[inline(always)]
pub(crate) fn wide<J: Job>(job: J) -> J::Output {
    Arch::new().dispatch(job)
}

/// y = f(x), value by value.
pub(crate) fn map(y: &mut [f32], x: &[f32], f: impl Fn(f32) -> f32) {
    struct Over<'a, F>(&'a mut [f32], &'a [f32], F);
    impl<F: Fn(f32) -> f32> Job for Over<'_, F> {
        type Output = ();
        #[inline(always)]
        fn call(self) {
            for (y, &x) in self.0.iter_mut().zip(self.1) {
                *y = (self.2)(x);
            }
        }
    }
    wide(Over(y, x, f));
}

/// y = f(y), value by value.
pub(crate) fn update(y: &mut [f32], f: impl Fn(f32) -> f32) {
    struct Over<'a, F>(&'a mut [f32], F);
    impl<F: Fn(f32) -> f32> Job for Over<'_, F> {
        type Output = ();
        #[inline(always)]
        fn call(self) {
            for y in self.0 {
                *y = (self.1)(*y);
            }
        }
    }
    wide(Over(y, f));
}

/// y = f(y, x), value by value.
pub(crate) fn zip(y: &mut [f32], x: &[f32], f: impl Fn(f32, f32) -> f32) {
    struct Over<'a, F>(&'a mut [f32], &'a [f32], F);
    impl<F: Fn(f32, f32) -> f32> Job for Over<'_, F> {
        type Output = ();
        #[inline(always)]
        fn call(self) {
            for (y, &x) in self.0.iter_mut().zip(self.1) {
                *y = (self.2)(*y, x);
            }
        }
    }
    wide(Over(y, x, f));
}

/// The sum of f(x).
pub(crate) fn sum(x: &[f32], f: impl Fn(f32) -> f64) -> f64 {
    struct Over<'a, F>(&'a [f32], F);
    impl<F: Fn(f32) -> f64> Job for Over<'_, F> {
        type Output = f64;
        #[inline(always)]
        fn call(self) -> f64 {
            let (whole, rest) = self.0.as_chunks::<LANES>();
            let mut lanes = [0f64; LANES];
            for x in whole {
                for i in 0..LANES {
                    lanes[i] += (self.1)(x[i]);
                }
            }
            lanes.iter().sum::<f64>() + rest.iter().map(|&x| (self.1)(x)).sum::<f64>()
        }
    }
    wide(Over(x, f))
}

/// The larger of `first` and the largest of `x`, in which NaN is passed over.
#[inline(always)]
pub(crate) fn max(x: &[f32], first: f32) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut lanes = [first; LANES];
    for x in whole {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], x[i]);
        }
    }
    lanes.iter().chain(rest).fold(first, |a, &b| larger(a, b))
}

/// x = e^(x - max); the sum of the results, NaN where one is.
#[inline(always)]
pub(crate) fn exp_sum(x: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut add = |x: &mut [f32; LANES]| {
        for i in 0..LANES {
            x[i] = exp(x[i] - max);
            lanes[i] += x[i];
        }
    };
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for x in whole {
        add(x);
    }
    if !rest.is_empty() {
        // Of minus infinity the exponential is nothing.
        let mut padded = [f32::NEG_INFINITY; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        add(&mut padded);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
    lanes.iter().sum()
}

/// e^x within 2 ulp; the platform's exp is a call per value.
/// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its Taylor polynomial of degree 7 (error below 5e-9), 2^n by exponent bits.
/// Below -87 the result is 0, above 88 infinity; NaN stays.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: n times the first is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let rounded = x.clamp(-126.0, 127.0) * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let tail = 1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0)));
    let poly = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * tail)));
    // The shift drops all bits of ROUND; not `n as i32`, which saturates and so takes four times as long.
    let y = poly * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    let y = if x < -87.0 { 0.0 } else { y };
    if x > 88.0 { f32::INFINITY } else { y }
}

/// 1 / (1 + e^-x), without overflow on either side.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    (if x >= 0.0 { 1.0 } else { e }) / (1.0 + e)
}

/// The hyperbolic tangent. Near zero (1 - e) / (1 + e) cancels, so the odd Taylor polynomial serves there (error below 1e-8 for |x| < 0.2).
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    let far = ((1.0 - e) / (1.0 + e)).copysign(x);
    let s = x * x;
    let near = x * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0)))));
    if x.abs() < 0.2 { near } else { far }
}

/// 1 - erf(z) for z >= 0: t e^(-z^2 + p(t)) with t = 1 / (1 + z / 2), p of degree 9 fitted to ln(e^(z^2) erfc(z) / t) at Chebyshev's nodes
/// (5.4e-8 of the value for all z). In f32 within 4e-7, and 1e-5 of the value out to z = 9.
#[inline(always)]
fn erfc(z: f32) -> f32 {
    const P: [f32; 10] =
        [-1.265_468_8, 0.999_060_4, 0.382_924_55, 0.052_532_7, -0.051_861_52, 0.020_350_49, -0.818_536_6, 1.248_985, -0.720_157_55, 0.152_171_28];
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut p = P[9];
    for i in (0..9).rev() {
        p = p * t + P[i];
    }
    t * exp(p - z * z)
}

/// 2 / sqrt(pi) times the integral of e^(-t^2) from 0 to x; the Maclaurin series where 1 - erfc cancels.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let z = x.abs();
    let far = (1.0 - erfc(z)).copysign(x);
    let s = z * z;
    let series = 1.0 + s * (-1.0 / 3.0 + s * (0.1 + s * (-1.0 / 42.0 + s * (1.0 / 216.0 + s * (-1.0 / 1320.0 + s * (1.0 / 9360.0))))));
    if z < 0.7 { std::f32::consts::FRAC_2_SQRT_PI * x * series } else { far }
}

/// x Phi(x); nothing cancels in either tail.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    let h = 0.5 * erfc(x.abs() * std::f32::consts::FRAC_1_SQRT_2);
    x * (if x < 0.0 { h } else { 1.0 - h })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_and_keeps_the_odd_values() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2.4e-7, "exp({x}): {} against {expected}", exp(x));
        }
        assert_eq!((exp(0.0), exp(-1e30), exp(f32::NEG_INFINITY), exp(1e30)), (1.0, 0.0, 0.0, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn functions_keep_their_bounds() {
        for i in -120_000..=120_000 {
            let x = i as f32 * 1e-4;
            let v = f64::from(x);
            let phi = 0.5 * libm::erfc(-v * std::f64::consts::FRAC_1_SQRT_2);
            for (name, ours, expected, bound) in [
                ("erf", erf(x), libm::erf(v), 4e-7 * libm::erf(v).abs()),
                ("gelu", gelu(x), v * phi, 6e-7 * v.abs() * phi.max(0.1)),
                ("tanh", tanh(x), v.tanh(), 3e-7 * v.tanh().abs()),
                ("sigmoid", sigmoid(x), 1.0 / (1.0 + (-v).exp()), 4e-7 / (1.0 + (-v).exp())),
            ] {
                assert!((f64::from(ours) - expected).abs() <= bound, "{name}({x}): {ours} against {expected}");
            }
        }
        for f in [erf, gelu, tanh, sigmoid] {
            assert!(f(f32::NAN).is_nan() && !f(-200.0).is_nan() && !f(f32::INFINITY).is_nan());
        }
        assert_eq!((erf(f32::NEG_INFINITY), tanh(f32::NEG_INFINITY), gelu(-200.0), erf(-0.0)), (-1.0, -1.0, 0.0, 0.0));
    }

    #[test]
    fn loops_are_their_scalar_forms() {
        let x: Vec<f32> = (0..77u32).map(|i| ((i * 37) % 101) as f32 * 0.1 - 4.0).collect();
        for n in [1, 2, 15, 16, 17, 32, 77] {
            let x = &x[..n];
            let mut y = vec![0.0; n];
            map(&mut y, x, sigmoid);
            assert!(y.iter().zip(x).all(|(&y, &x)| y == sigmoid(x)), "{n}");
            zip(&mut y, x, |y, x| y - 2.0 * x);
            update(&mut y, |y| 3.0 * y);
            assert!(y.iter().zip(x).all(|(&y, &x)| y == 3.0 * (sigmoid(x) - 2.0 * x)), "{n}");
            assert!((sum(x, f64::from) - x.iter().map(|&v| f64::from(v)).sum::<f64>()).abs() < 1e-12, "{n}");
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!((max(x, f32::NEG_INFINITY), max(x, 1e9)), (largest, 1e9), "{n}");
            let mut y = x.to_vec();
            let total = exp_sum(&mut y, largest);
            assert!(y.iter().zip(x).all(|(&y, &x)| y == exp(x - largest)), "{n}");
            assert!((total - y.iter().sum::<f32>()).abs() <= 1e-6 * total, "{n}");
        }
        let mut odd = [0.0, f32::NAN, 1.0];
        assert!(exp_sum(&mut odd, 1.0).is_nan() && max(&[f32::NAN, 2.0], 0.0) == 2.0);
    }
}
