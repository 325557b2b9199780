//! Which candidates of a class are kept by their scores, and where a score lies among the class's own.

use std::cmp::Ordering;

use crate::base::{Error, Kind, Result};

/// How many of `n` are the best fraction `gamma`: floor(gamma n + 1/2), and at least 1 when gamma > 0 and n > 0.
/// Fails when gamma is not in [0, 1].
pub fn kept_count(gamma: f64, n: usize) -> Result<usize> {
    if !(0.0..=1.0).contains(&gamma) {
        return Err(Error::new(Kind::Usage, "--gamma", format!("{gamma}, expected 0 to 1")));
    }
    let rounded = (gamma * n as f64 + 0.5).floor() as usize;
    Ok(if gamma > 0.0 && n > 0 { rounded.clamp(1, n) } else { 0 })
}

/// Indices of the best fraction `gamma`, smallest score first. Equal scores go by id; NaN comes after every number.
pub fn keep(gamma: f64, scores: &[(f64, &str)]) -> Result<Vec<usize>> {
    let count = kept_count(gamma, scores.len())?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| compare(scores[a], scores[b]));
    order.truncate(count);
    Ok(order)
}

/// The order of [`keep`]: by score, NaN of either sign last, then by id.
pub fn compare(a: (f64, &str), b: (f64, &str)) -> Ordering {
    // partial_cmp fails for NaN alone, and it has equal zeros of either sign.
    a.0.is_nan().cmp(&b.0.is_nan()).then(a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal)).then(a.1.cmp(b.1))
}

/// Percent of `reference` below `score`, equal ones counted half, in [0, 100]; NaN when there is no reference or no score.
pub fn percentile(reference: &[f64], score: f64) -> f64 {
    if score.is_nan() || reference.is_empty() {
        return f64::NAN;
    }
    let halves: usize = reference.iter().map(|&r| if r < score { 2 } else { usize::from(r == score) }).sum();
    50.0 * halves as f64 / reference.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_round_to_nearest_and_keep_one() {
        let rows = [(0.0, 9, 0), (1.0, 9, 9), (0.5, 5, 3), (0.5, 4, 2), (0.4, 6, 2), (0.01, 3, 1), (0.2, 0, 0), (1.0, 0, 0), (0.3, 10, 3), (0.99, 3, 3)];
        for (gamma, n, want) in rows {
            assert_eq!(kept_count(gamma, n).unwrap(), want, "{gamma} of {n}");
        }
        for gamma in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(kept_count(gamma, 3).unwrap_err().to_string().contains("expected 0 to 1"));
        }
    }

    #[test]
    fn the_smallest_scores_are_kept_and_ties_go_by_id() {
        let scores = [(3.0, "a"), (1.0, "d"), (f64::NAN, "0"), (1.0, "b"), (f64::INFINITY, "c"), (-f64::NAN, "1"), (-0.0, "y"), (0.0, "x")];
        assert_eq!(keep(1.0, &scores).unwrap(), [7, 6, 3, 1, 0, 4, 2, 5]);
        assert_eq!(keep(0.4, &scores).unwrap(), [7, 6, 3]);
        let mut turned = scores;
        turned.reverse();
        let ids = |indices: Vec<usize>, scores: &[(f64, &str)]| indices.iter().map(|&i| scores[i].1.to_string()).collect::<Vec<_>>();
        assert_eq!(ids(keep(0.5, &scores).unwrap(), &scores), ids(keep(0.5, &turned).unwrap(), &turned));
        assert!(keep(0.5, &[]).unwrap().is_empty() && keep(0.0, &scores).unwrap().is_empty());
    }

    #[test]
    fn percentiles_count_ties_half() {
        let reference = [4.0, 1.0, 2.0, 2.0];
        for (score, want) in [(0.0, 0.0), (1.0, 12.5), (2.0, 50.0), (3.0, 75.0), (4.0, 87.5), (9.0, 100.0), (f64::INFINITY, 100.0)] {
            assert_eq!(percentile(&reference, score), want, "{score}");
        }
        assert!(percentile(&[], 1.0).is_nan() && percentile(&reference, f64::NAN).is_nan());
    }
}
