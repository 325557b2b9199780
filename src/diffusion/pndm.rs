//! PLMS: Liu, Ren, Lin and Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds" (2022), as diffusers' `PNDMScheduler`
//! walks it with `skip_prk_steps`: the second timestep is visited twice, and the outputs of up to four steps are mixed.
//!
//! eq. 11: x_prev = sqrt(alpha_bar_prev / alpha_bar_t) x - (alpha_bar_prev - alpha_bar_t) e / (alpha_bar_t sqrt(1 - alpha_bar_prev)
//! + sqrt(alpha_bar_t (1 - alpha_bar_t) alpha_bar_prev)), e the mixed output as epsilon.

use crate::base::{Error, Kind, Result};
use crate::diffusion::linear::{Linear, Reads, Step, Steps, noised, start, to_epsilon};
use crate::diffusion::scheduler::Scheduler;
use crate::diffusion::timesteps::spaced;

/// Latents, the latents before the first step, and the outputs of three steps, the latest first.
pub(crate) const SLOTS: usize = 5;
const READS: Reads = Reads { slots: SLOTS };
const BEFORE_FIRST: usize = 1;
const OUTPUTS: usize = 2;

/// Steps `skipped`.. of a walk of `count`, which takes one step more.
pub(crate) fn steps(scheduler: &Scheduler, count: usize, skipped: usize) -> Result<Steps> {
    let mut timesteps = spaced(scheduler, count)?;
    if count > 1 {
        timesteps.insert(1, timesteps[1]);
    }
    let ratio = scheduler.num_train_timesteps() / count;
    let alpha_bar = |t: usize| f64::from(scheduler.alphas_cumprod[t]);
    let step = |k: usize| {
        let (t, done) = (timesteps[skipped + k], k);
        // The second step does the first one again, with the mean of both outputs.
        let (from, to) = if done == 1 { (t + ratio, Some(t)) } else { (t, t.checked_sub(ratio)) };
        if from >= scheduler.num_train_timesteps() {
            let fact = format!("{count} steps ask for timestep {from}, the model knows 0 to {}", scheduler.num_train_timesteps() - 1);
            return Err(Error::new(Kind::Usage, "--steps", fact));
        }
        let alpha = alpha_bar(from);
        let alpha_prev = to.map_or(f64::from(scheduler.final_alpha_cumprod), alpha_bar);
        let sample = READS.slot(if done == 1 { BEFORE_FIRST } else { 0 });
        let [of_sample, of_output] = to_epsilon(scheduler.prediction_type, alpha.sqrt(), (1.0 - alpha).sqrt());
        let epsilon = of_sample * sample.clone() + of_output * mixed(done);
        let weight = alpha * (1.0 - alpha_prev).sqrt() + (alpha * (1.0 - alpha) * alpha_prev).sqrt();
        let x = (alpha_prev / alpha).sqrt() * &sample - (alpha_prev - alpha) / weight * epsilon;
        let known = timesteps.get(skipped + k + 1).map_or([1.0, 0.0], |&next| noised(alpha_bar(next)));
        Ok(Step { timestep: t as f64, input_scale: 1.0, convert: [0.0, 1.0], known, next: [vec![x, sample], memory(done)].concat() })
    };
    let steps = (0..timesteps.len().saturating_sub(skipped)).map(step).collect::<Result<_>>()?;
    let first = timesteps.get(skipped).map_or([1.0, 0.0], |&t| noised(alpha_bar(t)));
    Ok(Steps { slots: SLOTS, start: start(skipped, first), steps })
}

/// The outputs of this and earlier steps, mixed (eq. 12 and its lower orders).
fn mixed(done: usize) -> Linear {
    let (e, earlier) = (READS.output(), |i: usize| READS.slot(OUTPUTS + i));
    match done {
        0 => e,
        1 => 0.5 * (e + earlier(0)),
        2 => 0.5 * (3.0 * e - earlier(0)),
        3 => 1.0 / 12.0 * (23.0 * e - 16.0 * earlier(0) + 5.0 * earlier(1)),
        _ => 1.0 / 24.0 * (55.0 * e - 59.0 * earlier(0) + 37.0 * earlier(1) - 9.0 * earlier(2)),
    }
}

/// The outputs to remember; that of the second step, which was the first's again, is not.
fn memory(done: usize) -> Vec<Linear> {
    match done {
        1 => (0..3).map(|i| READS.slot(OUTPUTS + i)).collect(),
        _ => vec![READS.output(), READS.slot(OUTPUTS), READS.slot(OUTPUTS + 1)],
    }
}
