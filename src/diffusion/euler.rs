//! Euler's method in sigma: Karras, Aittala, Aila and Laine (2022), algorithm 2 without churn, as diffusers'
//! `EulerDiscreteScheduler` walks it.
//!
//! Latents are x = x_0 + sigma epsilon; the model sees x / sqrt(sigma^2 + 1). With dx/dsigma = (x - x_0) / sigma:
//! x_next = x + (sigma_next - sigma) (x - x_0) / sigma.

use crate::base::Result;
use crate::diffusion::betas::linspace;
use crate::diffusion::linear::{Reads, Step, Steps};
use crate::diffusion::scheduler::{Scheduler, Spacing};
use crate::diffusion::sigmas::{self, Sigmas, Spread};
use crate::diffusion::timesteps::{check_steps, spaced};
use crate::ops::ddim_step::PredictionType;
use crate::weights::Config;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Euler {
    pub sigmas: Sigmas,
    /// `interpolation_type`: the sigmas evenly in log(sigma) over the whole training schedule, whatever the timesteps are.
    pub log_linear: bool,
}

impl Euler {
    pub(crate) fn from_config(config: &Config) -> Result<Euler> {
        config.choice("timestep_type", Some(()), &[("discrete", ())])?;
        Ok(Euler {
            sigmas: Sigmas::from_config(config, true)?,
            log_linear: config.choice("interpolation_type", Some(false), &[("linear", false), ("log_linear", true)])?,
        })
    }

    /// Steps `skipped`.. of a walk of `count`.
    pub(crate) fn steps(&self, scheduler: &Scheduler, count: usize, skipped: usize) -> Result<Steps> {
        let (timesteps, sigmas) = self.walk(scheduler, count)?;
        let largest = sigmas.iter().copied().fold(0.0, f64::max);
        let largest = if scheduler.spacing == Spacing::Leading { (largest * largest + 1.0).sqrt() } else { largest };
        let reads = Reads { slots: 1 };
        let step = |k: usize| {
            let (sigma, next) = (sigmas[k], sigmas[k + 1]);
            let whole = sigma * sigma + 1.0;
            let derivative = 1.0 / sigma * (reads.slot(0) - reads.output());
            Step {
                timestep: timesteps[k],
                input_scale: 1.0 / whole.sqrt(),
                convert: match scheduler.prediction_type {
                    PredictionType::Epsilon => [1.0, -sigma],
                    PredictionType::V => [1.0 / whole, -sigma / whole.sqrt()],
                    PredictionType::Sample => [0.0, 1.0],
                },
                known: [1.0, if k + 1 < timesteps.len() { next } else { 0.0 }],
                next: vec![reads.slot(0) + (next - sigma) * derivative],
            }
        };
        let start = match sigmas.get(skipped) {
            Some(&sigma) if skipped > 0 => [1.0, sigma],
            _ => [0.0, largest],
        };
        Ok(Steps { slots: 1, start, steps: (skipped..count).map(step).collect() })
    }

    /// Timesteps, which may lie between two of training, and one sigma more.
    fn walk(&self, scheduler: &Scheduler, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        let train = scheduler.num_train_timesteps();
        let mut timesteps: Vec<f64> = match scheduler.spacing {
            Spacing::Linspace => {
                check_steps(count, train)?;
                let gap = (train - 1) as f64 / (count.max(2) - 1) as f64;
                (0..count).rev().map(|i| sigmas::rounded(i as f64 * gap)).collect()
            }
            _ => spaced(scheduler, count)?.into_iter().map(|t| t as f64).collect(),
        };
        let table = sigmas::table(scheduler);
        let mut sigmas: Vec<f64> = match self.log_linear {
            true => {
                let log = |sigma: f32| f64::from(libm::log(f64::from(sigma)) as f32);
                let logs = linspace(log(table[train - 1]), log(table[0]), count + 1);
                logs.into_iter().map(|log| sigmas::rounded(libm::exp(f64::from(log)))).collect()
            }
            false => timesteps.iter().map(|&t| sigmas::at(&table, t)).collect(),
        };
        if self.sigmas.spread != Spread::OfTimesteps {
            sigmas = self.sigmas.spread(sigmas[0], sigmas[sigmas.len() - 1], count);
            timesteps = sigmas.iter().map(|&sigma| sigmas::rounded(sigmas::timestep(&table, sigma))).collect();
        }
        sigmas.push(if self.sigmas.to_zero { 0.0 } else { f64::from(table[0]) });
        Ok((timesteps, sigmas.into_iter().map(sigmas::rounded).collect()))
    }
}
