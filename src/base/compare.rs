//! The comparer: inside the tolerance or failed. NaN, infinities and a wrong length fail.

/// A bound on `|actual - expected|`, relative to the larger of `|expected|` and the expected values' root mean square.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub relative: f32,
    /// Why this number and not a smaller one.
    pub reason: &'static str,
}

impl Tolerance {
    /// Every value must have the same bits (equal zeros of either sign pass).
    pub const EXACT: Tolerance = Tolerance { relative: 0.0, reason: "copies values" };
}

#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub passed: bool,
    /// The largest `|actual - expected| / max(|expected|, rms)`; infinite where a value is not finite.
    pub worst: f64,
    /// Index of the worst element.
    pub at: usize,
    /// One line that says what was found.
    pub what: String,
}

/// Compares every element.
pub fn compare(actual: &[f32], expected: &[f32], tolerance: Tolerance) -> Comparison {
    if actual.len() != expected.len() {
        let what = format!("{} values, expected {}", actual.len(), expected.len());
        return Comparison { passed: false, worst: f64::INFINITY, at: 0, what };
    }
    let finite = expected.iter().filter(|v| v.is_finite()).count().max(1);
    let square: f64 = expected.iter().filter(|v| v.is_finite()).map(|&v| f64::from(v).powi(2)).sum();
    let rms = (square / finite as f64).sqrt();
    let (mut worst, mut at, mut passed) = (0.0f64, 0usize, true);
    for (i, (&a, &b)) in actual.iter().zip(expected).enumerate() {
        let error = if a == b {
            0.0
        } else if a.is_finite() && b.is_finite() {
            (f64::from(a) - f64::from(b)).abs() / f64::from(b).abs().max(rms).max(1e-30)
        } else {
            f64::INFINITY
        };
        if !(error <= f64::from(tolerance.relative)) {
            passed = false;
        }
        if error > worst {
            worst = error;
            at = i;
        }
    }
    let what = match (actual.get(at), expected.get(at)) {
        (Some(a), Some(b)) if !passed => format!("element {at}: {a:e}, expected {b:e} (error {worst:.1e} of rms, allowed {:.1e})", tolerance.relative),
        _ => format!("max {worst:.1e} of rms"),
    };
    Comparison { passed, worst, at, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOL: Tolerance = Tolerance { relative: 1e-5, reason: "test" };

    fn values() -> Vec<f32> {
        (0..64).map(|i| ((i * 37 % 64) as f32 - 31.5) / 7.0).collect()
    }

    #[test]
    fn accepts_itself_and_rounding() {
        let v = values();
        assert!(compare(&v, &v, Tolerance::EXACT).passed);
        let near: Vec<f32> = v.iter().map(|x| x * (1.0 + 2e-6)).collect();
        assert!(compare(&near, &v, TOL).passed);
        assert!(!compare(&near, &v, Tolerance::EXACT).passed);
    }

    /// The mutants of a broken kernel: each must be rejected, in either place.
    #[test]
    fn rejects_mutants() {
        let v = values();
        let mutate = |f: &dyn Fn(&mut Vec<f32>)| {
            let mut m = v.clone();
            f(&mut m);
            m
        };
        let mutants: Vec<(&str, Vec<f32>)> = vec![
            ("NaN", mutate(&|m| m[63] = f32::NAN)),
            ("infinity", mutate(&|m| m[0] = f32::INFINITY)),
            ("one element off", mutate(&|m| m[31] += 1e-3)),
            ("zeros", vec![0.0; 64]),
            ("shifted", mutate(&|m| m.rotate_right(1))),
            ("transposed", (0..64).map(|i| v[(i % 8) * 8 + i / 8]).collect()),
            ("short", v[..63].to_vec()),
            ("empty", vec![]),
            ("sign", mutate(&|m| m[5] = -m[5])),
        ];
        for (name, mutant) in mutants {
            assert!(!compare(&mutant, &v, TOL).passed, "{name} passed as actual");
            assert!(!compare(&v, &mutant, TOL).passed, "{name} passed as expected");
        }
    }
}
