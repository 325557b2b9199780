//! Distance to the k-th nearest feature of a class, all scaled to unit length.
//! Sun et al., "Out-of-distribution detection with deep nearest neighbors" (2022).

use rayon::prelude::*;

use super::{matrix, same_width};
use crate::base::{Array, Error, Kind, Result};

/// Neighbours that are looked at when nothing else is said.
pub const DEFAULT_K: usize = 10;

/// The reference features of a class, or of all classes.
pub struct Neighbours {
    /// Unit vectors `[n, d]`.
    unit: Vec<f32>,
    d: usize,
    k: usize,
}

impl Neighbours {
    /// Features `[n, d]`, none of them zero; `k` is 1 or more and is capped at n (n - 1 for left-out scores).
    pub fn fit(features: &Array, k: usize) -> Result<Neighbours> {
        let (_, d) = matrix("knn", features, 1)?;
        if k == 0 {
            return Err(Error::new(Kind::Usage, "knn", "k is 0, expected 1 or more"));
        }
        let mut unit = features.data.clone();
        for (i, row) in unit.chunks_exact_mut(d).enumerate() {
            if !normalize(row) {
                return Err(Error::new(Kind::Numeric, "knn", format!("reference feature {i} is zero: it has no direction")));
            }
        }
        Ok(Neighbours { unit, d, k })
    }

    /// Number of reference features.
    pub fn len(&self) -> usize {
        self.unit.len() / self.d
    }

    /// Never true: a fit needs a feature.
    pub fn is_empty(&self) -> bool {
        self.unit.is_empty()
    }

    /// Euclidean distance, in [0, 2], from the scaled feature to its k-th nearest reference.
    /// A feature that is zero or not finite gives infinity.
    pub fn score(&self, feature: &[f32]) -> Result<f64> {
        same_width("knn", feature.len(), self.d)?;
        let mut unit = feature.to_vec();
        Ok(if normalize(&mut unit) { self.kth(&unit, None) } else { f64::INFINITY })
    }

    /// The score of each reference feature among the others. Fails when there are none.
    pub fn left_out_scores(&self) -> Result<Vec<f64>> {
        if self.len() < 2 {
            return Err(Error::new(Kind::Data, "knn", "1 reference feature has no neighbours, expected at least 2"));
        }
        Ok(self.unit.par_chunks_exact(self.d).enumerate().map(|(i, row)| self.kth(row, Some(i))).collect())
    }

    /// Largest cosine between the feature and a reference, and the reference's index; None when the feature is zero or not finite.
    pub fn nearest(&self, feature: &[f32]) -> Result<Option<(usize, f64)>> {
        same_width("knn", feature.len(), self.d)?;
        let mut unit = feature.to_vec();
        if !normalize(&mut unit) {
            return Ok(None);
        }
        let squares = self.unit.chunks_exact(self.d).map(|row| squared_distance(row, &unit)).enumerate();
        // Unit vectors: |a - b|^2 = 2 - 2 cos.
        Ok(squares.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, square)| (i, 1.0 - f64::from(square) / 2.0)))
    }

    fn kth(&self, unit: &[f32], without: Option<usize>) -> f64 {
        let rows = self.unit.chunks_exact(self.d).enumerate().filter(|(i, _)| Some(*i) != without);
        let mut squares: Vec<f32> = rows.map(|(_, row)| squared_distance(row, unit)).collect();
        let k = self.k.min(squares.len()).max(1) - 1;
        f64::from(*squares.select_nth_unstable_by(k, f32::total_cmp).1).sqrt()
    }
}

/// Scales to unit length; false for a vector that has none.
fn normalize(row: &mut [f32]) -> bool {
    let norm = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    norm > 0.0 && norm.is_finite()
}

/// In 16 sums, which the compiler keeps in vector registers.
fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| (a - b) * (a - b)).sum();
    for (a, b) in a.zip(b) {
        (0..LANES).for_each(|i| sums[i] += (a[i] - b[i]) * (a[i] - b[i]));
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unit vectors at these angles in degrees, of different lengths.
    fn at(degrees: &[f64]) -> Array {
        let row = |(i, a): (usize, &f64)| {
            let length = 1.0 + i as f64;
            [(a.to_radians().cos() * length) as f32, (a.to_radians().sin() * length) as f32]
        };
        Array::new(&[degrees.len(), 2], degrees.iter().enumerate().flat_map(row).collect()).unwrap()
    }

    /// Chord of an angle in degrees.
    fn chord(degrees: f64) -> f64 {
        2.0 * (degrees.to_radians() / 2.0).sin()
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-5
    }

    #[test]
    fn scores_are_chords_to_the_kth_neighbour() {
        let x = at(&[0.0, 10.0, 30.0, 60.0]);
        for (k, want) in [(1, 5.0), (2, 5.0), (3, 25.0), (4, 55.0), (10, 55.0)] {
            let got = Neighbours::fit(&x, k).unwrap().score(&at(&[5.0]).data).unwrap();
            assert!(close(got, chord(want)), "k {k}: {got}");
        }
        let left_out = Neighbours::fit(&x, 1).unwrap().left_out_scores().unwrap();
        assert!(left_out.iter().zip([10.0, 10.0, 20.0, 30.0]).all(|(a, b)| close(*a, chord(b))), "{left_out:?}");
        let capped = Neighbours::fit(&x, 10).unwrap().left_out_scores().unwrap();
        assert!(capped.iter().zip([60.0, 50.0, 30.0, 60.0]).all(|(a, b)| close(*a, chord(b))), "{capped:?}");
    }

    #[test]
    fn length_does_not_count_and_opposites_are_far() {
        let neighbours = Neighbours::fit(&at(&[0.0, 20.0]), 1).unwrap();
        let score = |v: [f32; 2]| neighbours.score(&v).unwrap();
        assert!(close(score([3.0, 1.0]), score([3e8, 1e8])) && close(score([3.0, 1.0]), score([3e-9, 1e-9])));
        assert!(close(score([-1.0, 0.0]), chord(160.0)) && close(score([5.0, 0.0]), 0.0));
        let (nearest, cosine) = neighbours.nearest(&[1.0, 1.0]).unwrap().unwrap();
        assert!(nearest == 1 && close(cosine, 25f64.to_radians().cos()));
    }

    /// All distances against a sort of plainly computed ones, at a width that has a remainder.
    #[test]
    fn wide_features_agree_with_the_definition() {
        let (n, d, k) = (25, 37, 4);
        let x = Array::new(&[n, d], (0..n * d).map(|i| ((i * i * 31 + i * 7) % 101) as f32 - 40.0).collect()).unwrap();
        let unit = |row: &[f32]| {
            let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            row.iter().map(|v| f64::from(*v) / norm).collect::<Vec<f64>>()
        };
        let left_out = Neighbours::fit(&x, k).unwrap().left_out_scores().unwrap();
        for i in 0..n {
            let others = (0..n).filter(|j| *j != i).map(|j| (unit(&x.data[i * d..][..d]), unit(&x.data[j * d..][..d])));
            let mut distances: Vec<f64> = others.map(|(a, b)| a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()).collect();
            distances.sort_by(f64::total_cmp);
            assert!(close(left_out[i], distances[k - 1]), "{i}");
        }
    }

    #[test]
    fn what_has_no_direction_is_refused() {
        assert!(Neighbours::fit(&Array::zeros(&[2, 3]), 1).err().unwrap().to_string().contains("feature 0 is zero"));
        assert!(Neighbours::fit(&at(&[0.0]), 0).is_err());
        let one = Neighbours::fit(&at(&[0.0]), 1).unwrap();
        assert!(one.left_out_scores().is_err() && one.score(&[1.0]).is_err() && !one.is_empty());
        assert_eq!(one.score(&[0.0, 0.0]).unwrap(), f64::INFINITY);
        assert_eq!(one.score(&[f32::NAN, 0.0]).unwrap(), f64::INFINITY);
        assert_eq!(one.nearest(&[f32::INFINITY, 0.0]).unwrap(), None);
    }
}
