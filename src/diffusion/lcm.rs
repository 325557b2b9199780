//! Latent consistency models: Luo, Tan, Huang, Li and Zhao (2023, arXiv 2310.04378), multistep sampling as diffusers' `LCMScheduler`
//! walks it.
//!
//! denoised = c_out(t) x_0 + c_skip(t) x_t, with s = timestep_scaling t: c_skip = 0.25 / (s^2 + 0.25), c_out = s / sqrt(s^2 + 0.25)
//! (Song et al., "Consistency Models" (2023), eq. 5, sigma_data = 1/2); x_prev = sqrt(alpha_bar_prev) denoised
//! + sqrt(1 - alpha_bar_prev) noise, and denoised itself after the last step.

use crate::base::{Error, Kind, Result};
use crate::diffusion::linear::{Reads, Step, Steps, noised, start, to_x0};
use crate::diffusion::scheduler::Scheduler;
use crate::diffusion::timesteps::check_steps;
use crate::weights::Config;

/// sigma_data^2.
const DATA_VARIANCE: f64 = 0.25;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lcm {
    /// Steps of the schedule that the model was distilled from; a walk takes some of its timesteps.
    pub original_inference_steps: usize,
    pub timestep_scaling: f64,
}

impl Lcm {
    pub(crate) fn from_config(config: &Config) -> Result<Lcm> {
        Ok(Lcm {
            original_inference_steps: config.integer("original_inference_steps", 50, 1..=100_000)?,
            timestep_scaling: config.number("timestep_scaling", 10.0, 1e-6..=1e6)?,
        })
    }

    /// Timesteps noisiest first: every so many of the original schedule's k - 1, 2 k - 1, ..., k = training's length / its steps.
    fn timesteps(&self, train: usize, count: usize) -> Result<Vec<usize>> {
        let original = self.original_inference_steps;
        if original > train {
            let fact = format!("{original}, expected at most num_train_timesteps = {train}");
            return Err(Error::new(Kind::Config, "original_inference_steps", fact));
        }
        check_steps(count, original)?;
        let gap = original as f64 / count as f64;
        Ok((0..count).map(|i| (original - (i as f64 * gap).floor() as usize) * (train / original) - 1).collect())
    }

    /// Steps `skipped`.. of a walk of `count`.
    pub(crate) fn steps(&self, scheduler: &Scheduler, count: usize, skipped: usize) -> Result<Steps> {
        let timesteps = self.timesteps(scheduler.num_train_timesteps(), count)?;
        let alpha_bar = |t: usize| f64::from(scheduler.alphas_cumprod[t]);
        let reads = Reads { slots: 1 };
        let step = |k: usize| {
            let t = timesteps[k];
            scheduler.check_signal(alpha_bar(t))?;
            let [sqrt_alpha, sqrt_one_minus_alpha] = noised(alpha_bar(t));
            let scaled = t as f64 * self.timestep_scaling;
            let c_skip = DATA_VARIANCE / (scaled * scaled + DATA_VARIANCE);
            let c_out = scaled / (scaled * scaled + DATA_VARIANCE).sqrt();
            let denoised = c_out * reads.output() + c_skip * reads.slot(0);
            let known = timesteps.get(k + 1).map_or([1.0, 0.0], |&next| noised(alpha_bar(next)));
            Ok(Step {
                timestep: t as f64,
                input_scale: 1.0,
                convert: to_x0(scheduler.prediction_type, sqrt_alpha, sqrt_one_minus_alpha),
                known,
                next: vec![known[0] * denoised + known[1] * reads.noise()],
            })
        };
        let steps = (skipped..count).map(step).collect::<Result<_>>()?;
        let first = timesteps.get(skipped).map_or([1.0, 0.0], |&t| noised(alpha_bar(t)));
        Ok(Steps { slots: 1, start: start(skipped, first), steps })
    }
}
