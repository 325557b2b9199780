//! The noise of a walk as sigma = sqrt((1 - alpha_bar) / alpha_bar), which Euler, DPM-Solver and UniPC walk in: Karras, Aittala,
//! Aila and Laine, "Elucidating the Design Space of Diffusion-Based Generative Models" (2022).
//!
//! | symbol | here |
//! |---|---|
//! | x = x_0 + sigma epsilon | Euler's latents |
//! | x = alpha x_0 + sigma alpha epsilon | those of the others, alpha = 1 / sqrt(sigma^2 + 1) |
//! | lambda | log(alpha / (sigma alpha)) = -log(sigma), half the log of the signal to noise ratio |

use crate::base::Result;
use crate::diffusion::scheduler::{Scheduler, flag, refuse};
use crate::weights::Config;

/// rho of Karras et al. 2022, eq. 5.
const RHO: f64 = 7.0;

/// How the sigmas of a short schedule are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Those of the timesteps.
    OfTimesteps,
    /// Evenly in sigma^(1/7).
    Karras,
    /// Evenly in log(sigma).
    Exponential,
}

/// What the three classes have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sigmas {
    pub spread: Spread,
    /// Whether the walk ends at sigma 0, or at training's least sigma.
    pub to_zero: bool,
    /// Ends of the Karras and exponential spreads.
    pub min: Option<f64>,
    pub max: Option<f64>,
}

impl Sigmas {
    pub(crate) fn from_config(config: &Config, has_ends: bool) -> Result<Sigmas> {
        refuse(config, &["use_beta_sigmas"])?;
        let spread = match (flag(config, "use_karras_sigmas")?, flag(config, "use_exponential_sigmas")?) {
            (true, true) => return Err(config.error("use_exponential_sigmas", "true beside use_karras_sigmas, expected one of them")),
            (true, false) => Spread::Karras,
            (false, true) => Spread::Exponential,
            (false, false) => Spread::OfTimesteps,
        };
        let end = |field: &str| match has_ends && config.value(field).is_some() {
            true => config.number(field, None, 1e-6..=1e6).map(Some),
            false => Ok(None),
        };
        let to_zero = config.choice("final_sigmas_type", Some(true), &[("zero", true), ("sigma_min", false)])?;
        Ok(Sigmas { spread, to_zero, min: end("sigma_min")?, max: end("sigma_max")? })
    }

    /// `count` sigmas from `max` to `min`, or from the settings' ends where they have some.
    pub(crate) fn spread(&self, max: f64, min: f64, count: usize) -> Vec<f64> {
        let (max, min) = (self.max.unwrap_or(max), self.min.unwrap_or(min));
        let ramp = |i: usize| if i + 1 == count && count > 1 { 1.0 } else { i as f64 / (count.max(2) - 1) as f64 };
        let between = |a: f64, b: f64, i: usize| a + ramp(i) * (b - a);
        let root = |sigma: f64| libm::pow(sigma, 1.0 / RHO);
        match self.spread {
            Spread::Exponential => (0..count).map(|i| libm::exp(between(libm::log(max), libm::log(min), i))).collect(),
            _ => (0..count).map(|i| libm::pow(between(root(max), root(min), i), RHO)).collect(),
        }
    }
}

/// sigma of every training timestep, in f32 as torch has it.
pub(crate) fn table(scheduler: &Scheduler) -> Vec<f32> {
    scheduler.alphas_cumprod.iter().map(|&alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
}

/// sigma at a timestep between two of training: numpy's `interp`.
pub(crate) fn at(table: &[f32], timestep: f64) -> f64 {
    let last = table.len() - 1;
    let below = (timestep.max(0.0) as usize).min(last);
    let (low, high) = (f64::from(table[below]), f64::from(table[(below + 1).min(last)]));
    if below == last { low } else { (high - low) * (timestep - below as f64) + low }
}

/// The timestep of a sigma, between two of training where it falls there: linear in log(sigma).
pub(crate) fn timestep(table: &[f32], sigma: f64) -> f64 {
    let log = |i: usize| libm::log(f64::from(table[i])) as f32;
    let log_sigma = libm::log(sigma.max(1e-10));
    let low = table.partition_point(|&other| libm::log(f64::from(other)) as f32 as f64 <= log_sigma).saturating_sub(1).min(table.len().saturating_sub(2));
    let high = (low + 1).min(table.len() - 1);
    let weight = ((f64::from(log(low)) - log_sigma) / f64::from(log(low) - log(high))).clamp(0.0, 1.0);
    (1.0 - weight) * low as f64 + weight * high as f64
}

/// alpha and sigma alpha of a sigma: x = alpha x_0 + sigma alpha epsilon.
pub(crate) fn alpha_sigma(sigma: f64) -> [f64; 2] {
    let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
    [alpha, sigma * alpha]
}

/// lambda; infinite at sigma 0.
pub(crate) fn lambda(sigma: f64) -> f64 {
    -libm::log(sigma)
}

/// As torch holds it.
pub(crate) fn rounded(sigma: f64) -> f64 {
    f64::from(sigma as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestep_is_found_again_by_its_sigma() {
        let table: Vec<f32> = (0..50).map(|t| 0.01 * 1.2f32.powi(t)).collect();
        for t in [0.0, 1.0, 7.25, 30.5, 48.0, 49.0] {
            let sigma = libm::exp(libm::log(at(&table, f64::floor(t))) + (t - f64::floor(t)) * libm::log(1.2));
            assert!((timestep(&table, sigma) - t).abs() < 1e-4, "{t}: {}", timestep(&table, sigma));
        }
        assert_eq!((timestep(&table, 1e-9), timestep(&table, 1e9)), (0.0, 49.0));
        assert_eq!((at(&table, -1.0), at(&table, 60.0)), (f64::from(table[0]), f64::from(table[49])));
    }

    #[test]
    fn spreads_meet_their_ends() {
        for spread in [Spread::Karras, Spread::Exponential] {
            let sigmas = Sigmas { spread, to_zero: true, min: None, max: None };
            let s = sigmas.spread(14.0, 0.03, 5);
            assert!((s[0] - 14.0).abs() < 1e-12 && (s[4] - 0.03).abs() < 1e-12 && s.windows(2).all(|w| w[0] > w[1]), "{s:?}");
            assert!((sigmas.spread(14.0, 0.03, 1)[0] - 14.0).abs() < 1e-12);
        }
    }
}
