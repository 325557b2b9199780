//! DDPM: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2020), as diffusers' `DDPMScheduler` walks it.
//!
//! With alpha_t = alpha_bar_t / alpha_bar_prev and beta_t = 1 - alpha_t, prev the next timestep of the schedule:
//!
//! - eq. 7: x_prev = sqrt(alpha_bar_prev) beta_t / (1 - alpha_bar_t) x_0 + sqrt(alpha_t) (1 - alpha_bar_prev) / (1 - alpha_bar_t) x_t
//!   + sigma_t noise
//! - fixed_small: sigma_t^2 = (1 - alpha_bar_prev) / (1 - alpha_bar_t) beta_t; fixed_large: sigma_t^2 = beta_t; no noise at t = 0

use crate::base::Result;
use crate::diffusion::linear::{Reads, Step, Steps, noised, start, to_x0};
use crate::diffusion::scheduler::Scheduler;
use crate::diffusion::timesteps::spaced;
use crate::weights::Config;

/// The variance of a step (section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variance {
    Small,
    Large,
}

/// The least variance that diffusers takes.
const LEAST_VARIANCE: f64 = 1e-20;

impl Variance {
    pub(crate) fn from_config(config: &Config) -> Result<Variance> {
        // fixed_small_log takes the same way round by the logarithm.
        let all = [("fixed_small", Variance::Small), ("fixed_small_log", Variance::Small), ("fixed_large", Variance::Large)];
        config.choice("variance_type", Some(Variance::Small), &all)
    }
}

/// Steps `skipped`.. of a walk of `count`.
pub(crate) fn steps(scheduler: &Scheduler, variance: Variance, count: usize, skipped: usize) -> Result<Steps> {
    let timesteps = spaced(scheduler, count)?;
    let alpha_bar = |t: usize| f64::from(scheduler.alphas_cumprod[t]);
    let reads = Reads { slots: 1 };
    let step = |k: usize| {
        let (t, next) = (timesteps[k], timesteps.get(k + 1));
        let (alpha_bar_t, alpha_bar_prev) = (alpha_bar(t), next.map_or(1.0, |&next| alpha_bar(next)));
        scheduler.check_signal(alpha_bar_t)?;
        let alpha = alpha_bar_t / alpha_bar_prev;
        let beta = 1.0 - alpha;
        let posterior = ((1.0 - alpha_bar_prev) / (1.0 - alpha_bar_t) * beta).max(LEAST_VARIANCE);
        let sigma = match variance {
            _ if t == 0 => 0.0,
            Variance::Small => posterior.sqrt(),
            Variance::Large => beta.sqrt(),
        };
        let mean =
            alpha_bar_prev.sqrt() * beta / (1.0 - alpha_bar_t) * reads.output() + alpha.sqrt() * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar_t) * reads.slot(0);
        Ok(Step {
            timestep: t as f64,
            input_scale: 1.0,
            convert: to_x0(scheduler.prediction_type, alpha_bar_t.sqrt(), (1.0 - alpha_bar_t).sqrt()),
            known: noised(next.map_or(1.0, |&next| alpha_bar(next))),
            next: vec![mean + sigma * reads.noise()],
        })
    };
    let steps = (skipped..count).map(step).collect::<Result<_>>()?;
    let first = timesteps.get(skipped).map_or([1.0, 0.0], |&t| noised(alpha_bar(t)));
    Ok(Steps { slots: 1, start: start(skipped, first), steps })
}
