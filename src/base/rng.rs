//! Counter-based noise: a value is a function of (seed, job, step, element) and of nothing else,
//! so an image does not depend on its batch, shard, order or device.
//!
//! The generator is ChaCha8 (key = seed and job, stream = step, block position = element); normals are Box-Muller
//! in f64 through the `libm` crate, which computes the same bits on every platform.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// Step number of the initial latents' noise; variance noise of step k uses stream k.
pub const INITIAL_NOISE: u64 = u64::MAX;
/// Step numbers of the noise that samples an encoder's posterior: the image's, and the masked image's.
pub const POSTERIOR_NOISE: u64 = u64::MAX - 1;
pub const MASKED_POSTERIOR_NOISE: u64 = u64::MAX - 2;

fn generator(seed: u64, job: u64, step: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&job.to_le_bytes());
    key[16..32].copy_from_slice(b"naevus noise v1\0");
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(step);
    rng
}

/// `len` standard normal values of (seed, job, step).
pub fn normal(seed: u64, job: u64, step: u64, len: usize) -> Vec<f32> {
    let mut rng = generator(seed, job, step);
    let mut out = Vec::with_capacity(len + 1);
    while out.len() < len {
        // u1 in (0, 1], u2 in [0, 1): 53 bits each.
        let u1 = ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        let u2 = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let radius = libm::sqrt(-2.0 * libm::log(u1));
        let angle = 2.0 * std::f64::consts::PI * u2;
        out.push((radius * libm::cos(angle)) as f32);
        out.push((radius * libm::sin(angle)) as f32);
    }
    out.truncate(len);
    out
}

/// `len` uniform values in [0, 1) of (seed, job, step).
pub fn uniform(seed: u64, job: u64, step: u64, len: usize) -> Vec<f32> {
    let mut rng = generator(seed, job, step);
    (0..len).map(|_| (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32).collect()
}

/// A 64-bit number that names `text`: FNV-1a. For seeds of test inputs, not for security.
pub fn name_seed(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_does_not_depend_on_the_length() {
        assert_eq!(normal(1, 2, 3, 10)[..7], normal(1, 2, 3, 7)[..]);
        assert_ne!(normal(1, 2, 3, 8), normal(1, 2, 4, 8));
        assert_ne!(normal(1, 2, 3, 8), normal(1, 3, 3, 8));
        assert_ne!(normal(2, 2, 3, 8), normal(1, 2, 3, 8));
    }

    #[test]
    fn moments_are_standard_normal() {
        let v = normal(7, 0, INITIAL_NOISE, 200_000);
        let n = v.len() as f64;
        let mean = v.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let var = v.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        let kurtosis = v.iter().map(|&x| (f64::from(x) - mean).powi(4)).sum::<f64>() / n / var / var;
        // Standard errors: 0.0022, 0.0032, 0.011. Five of each.
        assert!(mean.abs() < 0.011 && (var - 1.0).abs() < 0.016 && (kurtosis - 3.0).abs() < 0.055, "{mean} {var} {kurtosis}");
    }
}
