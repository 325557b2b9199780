//! UniPC: Zhao, Bai, Rao, Zhou and Lu, "UniPC: A Unified Predictor-Corrector Framework" (2023, arXiv 2302.04867), orders 1 to 3, as
//! diffusers' `UniPCMultistepScheduler` walks it.
//!
//! | symbol | here |
//! |---|---|
//! | m0, m1, m2 | x_0 or epsilon, predicted at the step that an update starts from and before it |
//! | alpha, s | x = alpha x_0 + s epsilon, s = sigma alpha |
//! | h | lambda_next - lambda; hh = -h where x_0 is predicted, h where epsilon is |
//! | rk | lambda of an earlier step, relative to the start and divided by h; D1 = (m_k - m0) / rk |
//! | B(h) | bh1: hh, bh2: exp(hh) - 1 |
//!
//! A step corrects the latents that it got with the output at them (UniC, from the latents before), then goes on from the corrected
//! ones (UniP): x_next = base - alpha_next B(h) sum_k rho_k D1_k, where rho solves R rho = b (eq. 10).

use crate::base::{Error, Kind, Result};
use crate::diffusion::linear::{Linear, Reads, Step, Steps, start, to_epsilon, to_x0};
use crate::diffusion::scheduler::{Scheduler, refuse};
use crate::diffusion::sigmas::{self, Sigmas, Spread, alpha_sigma, lambda};
use crate::diffusion::timesteps::spaced_before_end;
use crate::weights::Config;

/// The corrected latents of the step before.
const CORRECTED: usize = 1;
/// The first of the outputs before, the latest first.
const OUTPUTS: usize = 2;
/// Longest list of steps without correction.
const MAX_STEPS: u64 = 100_000;

#[derive(Clone, Debug, PartialEq)]
pub struct UniPc {
    /// 1 to 3.
    pub order: usize,
    /// B(h) = exp(hh) - 1, or hh.
    pub bh2: bool,
    /// The outputs are converted to x_0, or to epsilon.
    pub predict_x0: bool,
    pub lower_order_final: bool,
    /// Steps whose result is not corrected.
    pub disable_corrector: Vec<usize>,
    pub sigmas: Sigmas,
}

impl UniPc {
    pub(crate) fn from_config(config: &Config) -> Result<UniPc> {
        refuse(config, &["use_flow_sigmas", "use_dynamic_shifting"])?;
        config.ignore(&["flow_shift", "time_shift_type"]);
        config.require_null("solver_p")?;
        config.require_null("shift_terminal")?;
        let forms = [("bh1", false), ("bh2", true), ("midpoint", true), ("heun", true), ("logrho", true)];
        Ok(UniPc {
            order: config.integer("solver_order", 2, 1..=3)?,
            bh2: config.choice("solver_type", Some(true), &forms)?,
            predict_x0: config.flag("predict_x0", true)?,
            lower_order_final: config.flag("lower_order_final", true)?,
            disable_corrector: steps_without_corrector(config)?,
            sigmas: Sigmas::from_config(config, true)?,
        })
    }

    /// The latents, the corrected ones of the step before, and the outputs of `order` steps.
    pub(crate) fn slots(&self) -> usize {
        OUTPUTS + self.order
    }

    /// Steps `skipped`.. of a walk of `count`.
    pub(crate) fn steps(&self, scheduler: &Scheduler, count: usize, skipped: usize) -> Result<Steps> {
        let (timesteps, sigmas) = self.walk(scheduler, count)?;
        let slots = self.slots();
        let reads = Reads { slots };
        let mut earlier_order = 0;
        let mut steps = Vec::new();
        for i in skipped..timesteps.len() {
            let [alpha, s] = alpha_sigma(sigmas[i]);
            let convert = if self.predict_x0 { to_x0 } else { to_epsilon };
            let memory: Vec<Linear> = [reads.output()].into_iter().chain((1..self.order).map(|k| reads.slot(OUTPUTS + k - 1))).collect();
            let x = match i > skipped && !self.disable_corrector.contains(&(i - 1)) {
                true => {
                    let outputs: Vec<Linear> = (0..self.order).map(|k| reads.slot(OUTPUTS + k)).collect();
                    self.update(reads.slot(CORRECTED), &outputs, Some(reads.output()), earlier_order, &sigmas, i - 1)?
                }
                false => reads.slot(0),
            };
            let at_end = if self.lower_order_final { timesteps.len() - i } else { self.order };
            let order = self.order.min(at_end).min(i - skipped + 1);
            let next = self.update(x.clone(), &memory, None, order, &sigmas, i)?;
            earlier_order = order;
            steps.push(Step {
                timestep: timesteps[i],
                input_scale: 1.0,
                convert: convert(scheduler.prediction_type, alpha, s),
                known: if i + 1 < timesteps.len() { alpha_sigma(sigmas[i + 1]) } else { [1.0, 0.0] },
                next: [vec![next, x], memory].concat(),
            });
        }
        let first = sigmas.get(skipped).map_or([1.0, 0.0], |&sigma| alpha_sigma(sigma));
        Ok(Steps { slots, start: start(skipped, first), steps })
    }

    /// Whole timesteps, and one sigma more.
    fn walk(&self, scheduler: &Scheduler, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        let table = sigmas::table(scheduler);
        let whole = spaced_before_end(scheduler, count, table.len())?;
        let mut timesteps: Vec<f64> = whole.into_iter().map(|t| t as f64).collect();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| sigmas::at(&table, t)).collect();
        let mut least = f64::from(table[0]);
        if self.sigmas.spread != Spread::OfTimesteps {
            sigmas = self.sigmas.spread(f64::from(table[table.len() - 1]), least, count);
            let karras = self.sigmas.spread == Spread::Karras;
            let whole = |t: f64| if karras { t.round_ties_even() } else { t.trunc() };
            timesteps = sigmas.iter().map(|&sigma| whole(sigmas::timestep(&table, sigma))).collect();
            least = sigmas[sigmas.len() - 1];
        }
        sigmas.push(if self.sigmas.to_zero { 0.0 } else { least });
        Ok((timesteps, sigmas.into_iter().map(sigmas::rounded).collect()))
    }

    /// From `x` at sigma `i` to sigma `i + 1`, with the outputs at `i` and before it; with `at_end`, the output at `i + 1`, the
    /// corrector, else the predictor.
    fn update(&self, x: Linear, outputs: &[Linear], at_end: Option<Linear>, order: usize, sigmas: &[f64], i: usize) -> Result<Linear> {
        let ([alpha, s], [alpha_next, s_next]) = (alpha_sigma(sigmas[i]), alpha_sigma(sigmas[i + 1]));
        let h = lambda(sigmas[i + 1]) - lambda(sigmas[i]);
        let hh = if self.predict_x0 { -h } else { h };
        let (of_x, of_output) = if self.predict_x0 { (s_next / s, alpha_next) } else { (alpha_next / alpha, s_next) };
        let growth = libm::expm1(hh);
        let base = of_x * x - of_output * growth * &outputs[0];
        let mut ratios: Vec<f64> = (1..order).map(|k| (lambda(sigmas[i - k]) - lambda(sigmas[i])) / h).collect();
        let mut changes: Vec<Linear> = (1..order).map(|k| 1.0 / ratios[k - 1] * (outputs[k].clone() - outputs[0].clone())).collect();
        let is_corrector = at_end.is_some();
        if let Some(output) = at_end {
            ratios.push(1.0);
            changes.push(output - outputs[0].clone());
        }
        let weights = match (changes.len(), is_corrector, order) {
            (0, ..) => vec![],
            // Fixed there by the paper's code, whatever B(h) is.
            (_, true, 1) | (_, false, 2) => vec![0.5],
            _ => self.weights(&ratios, hh)?,
        };
        let scale = if self.bh2 { growth } else { hh };
        Ok(weights.into_iter().zip(changes).fold(base, |sum, (weight, change)| sum - of_output * scale * weight * change))
    }

    /// rho of R rho = b, one for each of `ratios`.
    fn weights(&self, ratios: &[f64], hh: f64) -> Result<Vec<f64>> {
        let n = ratios.len();
        let scale = if self.bh2 { libm::expm1(hh) } else { hh };
        let (mut phi, mut factorial) = (libm::expm1(hh) / hh - 1.0, 1.0);
        let mut rows: Vec<Vec<f64>> = Vec::new();
        for i in 0..n {
            rows.push(ratios.iter().map(|r| r.powi(i as i32)).chain([phi * factorial / scale]).collect());
            factorial *= (i + 2) as f64;
            phi = phi / hh - 1.0 / factorial;
        }
        solve(rows)
    }
}

/// Solves `rows`, each with its right side at the end, by elimination with pivots.
fn solve(mut rows: Vec<Vec<f64>>) -> Result<Vec<f64>> {
    let n = rows.len();
    for k in 0..n {
        let pivot = (k..n).max_by(|&a, &b| rows[a][k].abs().total_cmp(&rows[b][k].abs())).unwrap_or(k);
        rows.swap(k, pivot);
        if !(rows[k][k].abs() > 0.0) || rows.iter().flatten().any(|v| !v.is_finite()) {
            let fact = "a step's system of equations has no solution, expected other solver_type, lower_order_final or final_sigmas_type";
            return Err(Error::new(Kind::Config, "scheduler", fact));
        }
        let row = rows[k].clone();
        for other in rows.iter_mut().skip(k + 1) {
            let factor = other[k] / row[k];
            other.iter_mut().zip(&row).for_each(|(a, b)| *a -= factor * b);
        }
    }
    let mut solution = vec![0.0; n];
    for k in (0..n).rev() {
        let known: f64 = (k + 1..n).map(|j| rows[k][j] * solution[j]).sum();
        solution[k] = (rows[k][n] - known) / rows[k][k];
    }
    Ok(solution)
}

fn steps_without_corrector(config: &Config) -> Result<Vec<usize>> {
    let Some(value) = config.value("disable_corrector") else { return Ok(vec![]) };
    let wrong = || config.error("disable_corrector", "expected a list of steps");
    let item = |item: &serde_json::Value| item.as_u64().filter(|&step| step < MAX_STEPS).map(|step| step as usize).ok_or_else(wrong);
    value.as_array().ok_or_else(wrong)?.iter().map(item).collect()
}
