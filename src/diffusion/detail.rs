//! Photographic detail for what an autoencoder paints.
//!
//! An autoencoder loses what is finer than its latent cells: hair, skin lines, the camera's grain. A hole that it paints is therefore softer than the
//! photograph around it, enough to tell samples from photographs by that alone, and a classifier that is trained on them may take softness for a class.
//! What was lost is known where the photograph is: its difference to its own round trip D(E(image)). The fine part of that difference,
//! without what is coarser and would bring the old lesion back, is added to the sample:
//!
//! sample + amount (r - G r), r = image - D(E(image)), G: a Gaussian of a quarter of a latent cell.

/// Adds `amount` of the detail of `image` that `round_trip` lacks to `decoded`, all `[H, W, channels]` in [0, 1]; the result is clamped.
/// `sigma`: of the Gaussian, pixels, above 0.
pub fn restore(decoded: &mut [f32], image: &[f32], round_trip: &[f32], [width, channels]: [usize; 2], amount: f32, sigma: f32) {
    let lost: Vec<f32> = image.iter().zip(round_trip).map(|(image, trip)| image - trip).collect();
    let coarse = blurred(&lost, [width, channels], sigma);
    for (value, (lost, coarse)) in decoded.iter_mut().zip(lost.iter().zip(&coarse)) {
        *value = (*value + amount * (lost - coarse)).clamp(0.0, 1.0);
    }
}

/// A Gaussian filter, cut at three sigma; at the image's border the weights inside add up to one.
fn blurred(image: &[f32], [width, channels]: [usize; 2], sigma: f32) -> Vec<f32> {
    let radius = (3.0 * sigma).ceil() as usize;
    let weights: Vec<f32> = (0..=radius).map(|d| (-0.5 * (d as f32 / sigma).powi(2)).exp()).collect();
    // Along an axis of `len` cells that lie `stride` values apart.
    let along = |from: &[f32], len: usize, stride: usize| -> Vec<f32> {
        let at = |i: usize| {
            let (base, x) = (i - i / stride % len * stride, i / stride % len);
            let (mut sum, mut total) = (0.0, 0.0);
            for other in x.saturating_sub(radius)..(x + radius + 1).min(len) {
                let weight = weights[x.abs_diff(other)];
                sum += weight * from[base + other * stride];
                total += weight;
            }
            sum / total
        };
        (0..from.len()).map(at).collect()
    };
    let height = image.len() / (width * channels).max(1);
    along(&along(image, width, channels), height, width * channels)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 24;

    /// `[24, 24, 2]`
    fn picture(f: impl Fn(usize, usize, usize) -> f32) -> Vec<f32> {
        (0..WIDTH * WIDTH * 2).map(|i| f(i / 2 % WIDTH, i / 2 / WIDTH, i % 2)).collect()
    }

    #[test]
    fn a_gaussian_keeps_what_is_even_and_spreads_a_point() {
        let even = picture(|_, _, c| c as f32 + 0.5);
        assert!(blurred(&even, [WIDTH, 2], 2.0).iter().zip(&even).all(|(a, b)| (a - b).abs() < 1e-6));
        let point = picture(|x, y, c| f32::from(u8::from(x == 11 && y == 12 && c == 1)));
        let spread = blurred(&point, [WIDTH, 2], 1.5);
        // The density of the normal distribution at whole numbers, normalised: 1 / (2 pi 1.5^2) in the middle.
        let at = |x: usize, y: usize| spread[(y * WIDTH + x) * 2 + 1];
        assert!((at(11, 12) - 0.070_7).abs() < 3e-4, "{}", at(11, 12));
        assert!((at(12, 12) / at(11, 12) - (-0.5f32 / 2.25).exp()).abs() < 1e-5 && (at(12, 12) - at(11, 13)).abs() < 1e-7);
        assert!((spread.iter().sum::<f32>() - 1.0).abs() < 1e-5 && spread.iter().step_by(2).all(|&v| v == 0.0));
    }

    #[test]
    fn fine_detail_comes_back_and_coarse_does_not() {
        let grain = |x: usize, y: usize| if (x + y).is_multiple_of(2) { 0.05 } else { -0.05 };
        let trip = picture(|x, _, _| 0.4 + 0.005 * x as f32);
        let image = picture(|x, y, _| 0.5 + 0.005 * x as f32 + grain(x, y));
        let mut sample = picture(|_, _, c| 0.2 + 0.5 * c as f32);
        let before = sample.clone();
        restore(&mut sample, &image, &trip, [WIDTH, 2], 0.5, 2.0);
        for (i, (after, before)) in sample.iter().zip(&before).enumerate() {
            let (x, y) = (i / 2 % WIDTH, i / 2 / WIDTH);
            // Half of the grain, nothing of the 0.1 by which the round trip is darker.
            assert!((after - before - 0.5 * grain(x, y)).abs() < 2e-3, "{x}, {y}: {after} from {before}");
        }
        let mut unchanged = before.clone();
        restore(&mut unchanged, &image, &trip, [WIDTH, 2], 0.0, 2.0);
        assert_eq!(unchanged, before);
        let mut bright = vec![1.0; image.len()];
        restore(&mut bright, &image, &trip, [WIDTH, 2], 1.0, 2.0);
        assert!(bright.iter().all(|&v| v <= 1.0));
    }
}
