//! DPM-Solver++, multistep: Lu, Zhou, Bao, Chen, Li and Zhu (2022, arXiv 2211.01095), orders 1 to 3, as diffusers'
//! `DPMSolverMultistepScheduler` walks it.
//!
//! | symbol | here |
//! |---|---|
//! | m0, m1, m2 | x_0 predicted at this step and at the two before it |
//! | alpha, s | x = alpha x_0 + s epsilon, s = sigma alpha |
//! | h | lambda_next - lambda, r0 and r1 the steps before it divided by h |
//!
//! - order 1 (eq. 4.1): x_next = s_next / s x - alpha_next (exp(-h) - 1) m0
//! - order 2 (midpoint): ... - alpha_next (exp(-h) - 1) D1 / 2, D1 = (m0 - m1) / r0
//! - order 2 (heun): ... + alpha_next ((exp(-h) - 1) / h + 1) D1
//! - order 3 adds - alpha_next ((exp(-h) - 1 + h) / h^2 - 1/2) D2 to heun's

use crate::base::Result;
use crate::diffusion::linear::{Linear, Reads, Step, Steps, start, to_x0};
use crate::diffusion::scheduler::{Scheduler, refuse};
use crate::diffusion::sigmas::{self, Sigmas, Spread, alpha_sigma, lambda};
use crate::diffusion::timesteps::spaced_before_end;
use crate::weights::Config;

/// Below so many steps the last ones are of lower order, where the settings say so.
const FEW_STEPS: usize = 15;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpmSolver {
    /// 1 to 3.
    pub order: usize,
    /// The second order's form.
    pub heun: bool,
    pub lower_order_final: bool,
    pub euler_at_final: bool,
    pub sigmas: Sigmas,
    /// Timesteps whose lambda lies below are left out.
    pub lambda_min: f64,
    /// Whether timesteps of spread sigmas are cut to whole ones, not rounded.
    pub cuts_timesteps: bool,
}

impl DpmSolver {
    pub(crate) fn from_config(config: &Config) -> Result<DpmSolver> {
        refuse(config, &["use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting"])?;
        config.ignore(&["flow_shift", "time_shift_type"]);
        config.require_null("variance_type")?;
        // diffusers takes the names of other solvers for its own defaults.
        config.choice("algorithm_type", Some(()), &[("dpmsolver++", ()), ("deis", ())])?;
        let forms = [("midpoint", false), ("heun", true), ("logrho", false), ("bh1", false), ("bh2", false)];
        let sigmas = Sigmas::from_config(config, false)?;
        let cosine = config.value("beta_schedule").and_then(|v| v.as_str()) == Some("squaredcos_cap_v2");
        Ok(DpmSolver {
            order: config.integer("solver_order", 2, 1..=3)?,
            heun: config.choice("solver_type", Some(false), &forms)?,
            lower_order_final: config.flag("lower_order_final", true)?,
            euler_at_final: config.flag("euler_at_final", false)?,
            cuts_timesteps: cosine || sigmas.spread == Spread::Exponential,
            sigmas,
            lambda_min: match config.value("lambda_min_clipped").and_then(|v| v.as_str()) {
                Some("-Infinity") => f64::NEG_INFINITY,
                _ => config.number("lambda_min_clipped", f64::NEG_INFINITY, -1e6..=1e6)?,
            },
        })
    }

    /// Steps `skipped`.. of a walk of `count`.
    pub(crate) fn steps(&self, scheduler: &Scheduler, count: usize, skipped: usize) -> Result<Steps> {
        let (timesteps, sigmas) = self.walk(scheduler, count)?;
        let reads = Reads { slots: self.order };
        let step = |i: usize| {
            let [alpha, s] = alpha_sigma(sigmas[i]);
            let memory = (1..self.order).map(|slot| if slot == 1 { reads.output() } else { reads.slot(slot - 1) });
            let order = self.order_of(i, i - skipped, timesteps.len());
            Step {
                timestep: timesteps[i],
                input_scale: 1.0,
                convert: to_x0(scheduler.prediction_type, alpha, s),
                known: if i + 1 < timesteps.len() { alpha_sigma(sigmas[i + 1]) } else { [1.0, 0.0] },
                next: [self.next(reads, order, &sigmas, i)].into_iter().chain(memory).collect(),
            }
        };
        let first = sigmas.get(skipped).map_or([1.0, 0.0], |&sigma| alpha_sigma(sigma));
        Ok(Steps { slots: self.order, start: start(skipped, first), steps: (skipped..timesteps.len()).map(step).collect() })
    }

    /// Whole timesteps, and one sigma more.
    fn walk(&self, scheduler: &Scheduler, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        let table = sigmas::table(scheduler);
        let lambda_of = |&alpha: &f32| libm::log(f64::from(alpha.sqrt())) as f32 - libm::log(f64::from((1.0 - alpha).sqrt())) as f32;
        let clipped = scheduler.alphas_cumprod.iter().filter(|alpha| f64::from(lambda_of(alpha)) < self.lambda_min).count();
        let whole = spaced_before_end(scheduler, count, table.len() - clipped)?;
        let mut timesteps: Vec<f64> = whole.into_iter().map(|t| t as f64).collect();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| sigmas::at(&table, t)).collect();
        if self.sigmas.spread != Spread::OfTimesteps {
            sigmas = self.sigmas.spread(f64::from(table[table.len() - 1]), f64::from(table[0]), count);
            let whole = |t: f64| if self.cuts_timesteps { t.trunc() } else { t.round_ties_even() };
            timesteps = sigmas.iter().map(|&sigma| whole(sigmas::timestep(&table, sigma))).collect();
        }
        sigmas.push(if self.sigmas.to_zero { 0.0 } else { f64::from(table[0]) });
        Ok((timesteps, sigmas.into_iter().map(sigmas::rounded).collect()))
    }

    /// The order of step `i` of `len`, the `done`-th that is taken.
    fn order_of(&self, i: usize, done: usize, len: usize) -> usize {
        let lowered = self.lower_order_final && len < FEW_STEPS;
        let first_at_end = i + 1 == len && (self.euler_at_final || lowered || self.sigmas.to_zero);
        let second_at_end = i + 2 == len && lowered;
        match (done, self.order) {
            (0, _) | (_, 1) => 1,
            _ if first_at_end => 1,
            (1, _) | (_, 2) => 2,
            _ if second_at_end => 2,
            _ => 3,
        }
    }

    fn next(&self, reads: Reads, order: usize, sigmas: &[f64], i: usize) -> Linear {
        let ([_, s], [alpha_next, s_next]) = (alpha_sigma(sigmas[i]), alpha_sigma(sigmas[i + 1]));
        let lambda_at = |i: usize| lambda(sigmas[i]);
        let h = lambda_at(i + 1) - lambda_at(i);
        let decay = libm::exp(-h) - 1.0;
        let (m0, m1) = (reads.output(), |k: usize| reads.slot(k));
        let first = s_next / s * reads.slot(0) - alpha_next * decay * m0.clone();
        if order == 1 {
            return first;
        }
        let r0 = (lambda_at(i) - lambda_at(i - 1)) / h;
        let d1 = 1.0 / r0 * (m0 - m1(1));
        let heun = decay / h + 1.0;
        if order == 2 {
            return first + alpha_next * (if self.heun { heun } else { -0.5 * decay }) * d1;
        }
        let r1 = (lambda_at(i - 1) - lambda_at(i - 2)) / h;
        let change = d1.clone() - 1.0 / r1 * (m1(1) - m1(2));
        let slope = d1 + r0 / (r0 + r1) * change.clone();
        let curve = 1.0 / (r0 + r1) * change;
        first + alpha_next * heun * slope - alpha_next * ((decay + h) / (h * h) - 0.5) * curve
    }
}
