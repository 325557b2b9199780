//! A class as a Gaussian with a shrunk covariance; the score is the squared Mahalanobis distance to its mean.
//!
//! Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004), with
//! <A, B> = tr(A B^T) / d, n samples x_k around their mean and S = sum x_k x_k^T / n:
//!   m = <S, I>,  delta^2 = ||S - m I||^2,  beta^2 = min(delta^2, sum ||x_k x_k^T - S||^2 / n^2),
//!   rho = beta^2 / delta^2,  Sigma = rho m I + (1 - rho) S,
//! which is invertible with fewer samples than dimensions. All sums are in f64.

use rayon::prelude::*;

use super::{matrix, same_width};
use crate::base::{Array, Error, Kind, Result};

/// Least shrinkage. The estimate is 0 for two samples, where S alone can't be inverted.
const LEAST_SHRINKAGE: f64 = 1e-4;

/// Mean and covariance of a class.
pub struct Gaussian {
    mean: Vec<f64>,
    /// Lower triangle of L in Sigma = L L^T, row-major `[d, d]`.
    factor: Vec<f64>,
    /// rho in [0, 1].
    pub shrinkage: f64,
    samples: usize,
}

impl Gaussian {
    /// Fits features `[n, d]`, n at least 2. Fails when all of them are equal or one is not finite.
    pub fn fit(features: &Array) -> Result<Gaussian> {
        let (n, d) = matrix("mahalanobis", features, 2)?;
        let mut mean = vec![0.0; d];
        for row in features.data.chunks_exact(d) {
            mean.iter_mut().zip(row).for_each(|(m, &v)| *m += f64::from(v) / n as f64);
        }
        let centered: Vec<f64> = features.data.iter().enumerate().map(|(i, &v)| f64::from(v) - mean[i % d]).collect();
        let mut covariance = scatter(&centered, n, d);
        let trace: f64 = (0..d).map(|i| covariance[i * d + i]).sum::<f64>() / d as f64;
        if !(trace > 0.0) || !trace.is_finite() {
            return Err(Error::new(Kind::Numeric, "mahalanobis", format!("all {n} reference features are equal or too large: variance {trace:e}")));
        }
        let shrinkage = shrinkage(&covariance, &centered, trace, n, d);
        for (i, value) in covariance.iter_mut().enumerate() {
            *value *= 1.0 - shrinkage;
            if i / d == i % d {
                *value += shrinkage * trace;
            }
        }
        cholesky(&mut covariance, d)?;
        Ok(Gaussian { mean, factor: covariance, shrinkage, samples: n })
    }

    /// (x - mean)^T Sigma^-1 (x - mean) of a feature of d values; a value that is not finite gives infinity.
    pub fn score(&self, feature: &[f32]) -> Result<f64> {
        same_width("mahalanobis", feature.len(), self.mean.len())?;
        let squared = self.squared(feature);
        Ok(if squared.is_finite() { squared } else { f64::INFINITY })
    }

    /// Solves L y = x - mean and returns |y|^2.
    fn squared(&self, feature: &[f32]) -> f64 {
        let d = self.mean.len();
        let mut y = vec![0.0; d];
        for i in 0..d {
            let row = &self.factor[i * d..];
            y[i] = (f64::from(feature[i]) - self.mean[i] - dot(&row[..i], &y[..i])) / row[i];
        }
        dot(&y, &y)
    }

    /// Scores of the features that were fitted, each as if it had not been: without it the mean moves to
    /// m - delta / (n - 1) and S to S - delta delta^T / (n - 1) (its factor 1/n and the shrinkage are kept). By Sherman and
    /// Morrison, with q the score as fitted and c = (1 - rho) / (n - 1), that is (n / (n - 1))^2 q / (1 - c q).
    /// Scores as fitted are too small, by far when n is not large against d.
    pub fn left_out_scores(&self, features: &Array) -> Result<Vec<f64>> {
        let (n, d) = matrix("mahalanobis", features, 2)?;
        same_width("mahalanobis", d, self.mean.len())?;
        if n != self.samples {
            return Err(Error::new(Kind::Shape, "mahalanobis", format!("{n} features, expected the {} that were fitted", self.samples)));
        }
        let (grow, c) = (n as f64 / (n - 1) as f64, (1.0 - self.shrinkage) / (n - 1) as f64);
        let one = |row: &[f32]| {
            let q = self.squared(row);
            // 1 - c q is positive in exact arithmetic: Sigma - c delta delta^T is positive definite.
            grow * grow * q / (1.0 - c * q).max(f64::EPSILON)
        };
        Ok(features.data.par_chunks_exact(d).map(one).collect())
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        (0..LANES).for_each(|i| sums[i] += a[i] * b[i]);
    }
    sums.iter().sum::<f64>() + rest
}

/// X^T X / n of centred rows `[n, d]`, full `[d, d]`.
fn scatter(centered: &[f64], n: usize, d: usize) -> Vec<f64> {
    let mut out = vec![0.0; d * d];
    out.par_chunks_mut(d).enumerate().for_each(|(i, out)| {
        for row in centered.chunks_exact(d) {
            let scale = row[i] / n as f64;
            out.iter_mut().zip(row).for_each(|(sum, v)| *sum += scale * v);
        }
    });
    out
}

/// rho. The sum over samples is sum |x_k|^4 / d - n ||S||^2, as the mean of x_k x_k^T is S.
fn shrinkage(covariance: &[f64], centered: &[f64], trace: f64, n: usize, d: usize) -> f64 {
    let norm = |f: &dyn Fn(usize) -> f64| (0..d * d).map(|i| f(i) * f(i)).sum::<f64>() / d as f64;
    let delta = norm(&|i| covariance[i] - if i / d == i % d { trace } else { 0.0 });
    if !(delta > 0.0) {
        return 1.0;
    }
    let fourth: f64 = centered.chunks_exact(d).map(|row| dot(row, row).powi(2)).sum::<f64>() / d as f64;
    let beta = (fourth - n as f64 * norm(&|i| covariance[i])) / (n as f64).powi(2);
    (beta / delta).clamp(LEAST_SHRINKAGE, 1.0)
}

/// Replaces the lower triangle of a symmetric positive definite `[d, d]` by L with L L^T equal to it.
fn cholesky(a: &mut [f64], d: usize) -> Result<()> {
    for i in 0..d {
        let (above, row) = a.split_at_mut(i * d);
        for j in 0..i {
            let other = &above[j * d..];
            row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
        }
        let pivot = row[i] - dot(&row[..i], &row[..i]);
        if !(pivot > 0.0) {
            return Err(Error::new(Kind::Numeric, "mahalanobis", format!("the covariance is not positive definite: pivot {i} is {pivot:e}")));
        }
        row[i] = pivot.sqrt();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values without a pattern in [-1, 1), stretched a little differently in each column.
    fn features(n: usize, d: usize) -> Array {
        let mut state = 12345u32;
        let value = |i: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state as f32 / u32::MAX as f32 * 2.0 - 1.0) * (1.0 + (i % d) as f32)
        };
        Array::new(&[n, d], (0..n * d).map(value).collect()).unwrap()
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-6)
    }

    /// The definition, written with matrices: rho, then Gauss-Jordan on Sigma.
    fn direct(x: &Array, rho: Option<f64>, scale: Option<(f64, f64)>, at: &[f32]) -> (f64, f64) {
        let &[n, d] = x.dims() else { unreachable!() };
        let mean: Vec<f64> = (0..d).map(|j| (0..n).map(|k| f64::from(x.data[k * d + j])).sum::<f64>() / n as f64).collect();
        let xc = |k: usize, j: usize| f64::from(x.data[k * d + j]) - mean[j];
        let over = scale.map_or(n as f64, |s| s.0);
        let s: Vec<Vec<f64>> = (0..d).map(|i| (0..d).map(|j| (0..n).map(|k| xc(k, i) * xc(k, j)).sum::<f64>() / over).collect()).collect();
        let m = scale.map_or((0..d).map(|i| s[i][i]).sum::<f64>() / d as f64, |s| s.1);
        let eye = |i, j| if i == j { 1.0 } else { 0.0 };
        let all = |f: &dyn Fn(usize, usize) -> f64| (0..d).flat_map(|i| (0..d).map(move |j| (i, j))).map(|(i, j)| f(i, j).powi(2)).sum::<f64>() / d as f64;
        let delta = all(&|i, j| s[i][j] - m * eye(i, j));
        let beta = (0..n).map(|k| all(&|i, j| xc(k, i) * xc(k, j) - s[i][j])).sum::<f64>() / (n * n) as f64;
        let rho = rho.unwrap_or((beta / delta).min(1.0));
        let mut a: Vec<Vec<f64>> = (0..d).map(|i| (0..d).map(|j| rho * m * eye(i, j) + (1.0 - rho) * s[i][j]).collect()).collect();
        let v: Vec<f64> = (0..d).map(|j| f64::from(at[j]) - mean[j]).collect();
        let mut y = v.clone();
        for i in 0..d {
            let p = a[i][i];
            a[i].iter_mut().for_each(|x| *x /= p);
            y[i] /= p;
            for r in (0..d).filter(|&r| r != i) {
                let f = a[r][i];
                let pivot = a[i].clone();
                a[r].iter_mut().zip(pivot).for_each(|(x, p)| *x -= f * p);
                y[r] -= f * y[i];
            }
        }
        (rho, v.iter().zip(&y).map(|(a, b)| a * b).sum())
    }

    #[test]
    fn fit_and_score_are_the_papers() {
        for (n, d) in [(40, 3), (200, 9), (6, 17), (3, 4)] {
            let x = features(n, d);
            let gaussian = Gaussian::fit(&x).unwrap();
            let at: Vec<f32> = (0..d).map(|i| i as f32 * 0.3 - 1.0).collect();
            let (rho, squared) = direct(&x, None, None, &at);
            assert!(close(gaussian.shrinkage, rho), "{n}x{d}: {} {rho}", gaussian.shrinkage);
            assert!(close(gaussian.score(&at).unwrap(), squared), "{n}x{d}");
        }
    }

    /// Two points on each axis: S = I / 2, delta is 0 and Sigma = I / 2.
    #[test]
    fn a_case_in_closed_form() {
        let x = Array::new(&[4, 2], vec![1.0, 0.0, -1.0, 0.0, 0.0, 1.0, 0.0, -1.0]).unwrap();
        let gaussian = Gaussian::fit(&x).unwrap();
        assert_eq!(gaussian.shrinkage, 1.0);
        assert!(close(gaussian.score(&[3.0, 4.0]).unwrap(), 50.0));
        assert!(close(gaussian.score(&[0.0, 0.0]).unwrap(), 0.0));
    }

    #[test]
    fn left_out_scores_are_those_of_a_fit_without_the_sample() {
        let (n, d) = (12, 5);
        let x = features(n, d);
        let gaussian = Gaussian::fit(&x).unwrap();
        let full = direct(&x, None, None, &x.data[..d]);
        // m of the whole set, as the target of the shrinkage stays.
        let mean: Vec<f64> = (0..d).map(|j| x.data.iter().skip(j).step_by(d).map(|&v| f64::from(v)).sum::<f64>() / n as f64).collect();
        let m = x.data.iter().enumerate().map(|(i, &v)| (f64::from(v) - mean[i % d]).powi(2)).sum::<f64>() / (n * d) as f64;
        for (k, score) in gaussian.left_out_scores(&x).unwrap().into_iter().enumerate() {
            let mut rest = x.data.clone();
            let out: Vec<f32> = rest.drain(k * d..(k + 1) * d).collect();
            let rest = Array::new(&[n - 1, d], rest).unwrap();
            let (_, want) = direct(&rest, Some(full.0), Some((n as f64, m)), &out);
            assert!(close(score, want), "{k}: {score} {want}");
            assert!(score > gaussian.score(&out).unwrap());
        }
    }

    #[test]
    fn scores_do_not_depend_on_order_place_or_scale() {
        let (n, d) = (30, 4);
        let x = features(n, d);
        let at = [0.5f32, -1.0, 2.0, 0.25];
        let score = Gaussian::fit(&x).unwrap().score(&at).unwrap();
        let reversed: Vec<f32> = x.data.chunks(d).rev().flatten().copied().collect();
        assert!(close(Gaussian::fit(&Array::new(&[n, d], reversed).unwrap()).unwrap().score(&at).unwrap(), score));
        let moved = Array::new(&[n, d], x.data.iter().map(|v| v * 4.0 + 8.0).collect()).unwrap();
        let got = Gaussian::fit(&moved).unwrap().score(&at.map(|v| v * 4.0 + 8.0)).unwrap();
        assert!((got - score).abs() < 1e-4 * score, "{got} {score}");
    }

    #[test]
    fn fewer_samples_than_dimensions_and_dead_features_work() {
        let mut x = features(5, 64);
        x.data.iter_mut().skip(7).step_by(64).for_each(|v| *v = 0.0);
        let gaussian = Gaussian::fit(&x).unwrap();
        let far: Vec<f32> = x.data[..64].iter().map(|v| v + 100.0).collect();
        assert!(gaussian.score(&far).unwrap() > gaussian.score(&x.data[..64]).unwrap());
        assert!(Gaussian::fit(&features(2, 64)).unwrap().left_out_scores(&features(2, 64)).unwrap().iter().all(|v| v.is_finite()));
    }

    #[test]
    fn what_has_no_gaussian_is_an_error() {
        let bad = [
            (features(1, 3), "1 reference features of 3 values, expected at least 2"),
            (Array::zeros(&[4, 3]), "equal"),
            (Array::new(&[2, 2], vec![0.0, f32::NAN, 1.0, 2.0]).unwrap(), "value 1 of feature 0 is not finite"),
            (Array::zeros(&[4]), "expected [n, d]"),
            (Array::zeros(&[4, 0]), "at least 1"),
        ];
        for (x, want) in bad {
            let error = Gaussian::fit(&x).err().unwrap().to_string();
            assert!(error.contains(want), "{error}");
        }
        let gaussian = Gaussian::fit(&features(9, 3)).unwrap();
        assert!(gaussian.score(&[0.0; 2]).is_err() && gaussian.left_out_scores(&features(8, 3)).is_err());
        assert_eq!(gaussian.score(&[f32::NAN, 0.0, 0.0]).unwrap(), f64::INFINITY);
    }
}
