//! The timesteps of a short schedule, noisiest first, with numpy's roundings (half to even).

use crate::base::{Error, Kind, Result};
use crate::diffusion::scheduler::{Scheduler, Spacing};

/// `steps` timesteps from the noisiest to the cleanest, both among them (DDIM, DDPM, PNDM, Euler).
pub(crate) fn spaced(scheduler: &Scheduler, steps: usize) -> Result<Vec<usize>> {
    let train = scheduler.num_train_timesteps();
    check_steps(steps, train)?;
    let all: Vec<usize> = match scheduler.spacing {
        Spacing::Leading => (0..steps).rev().map(|i| i * (train / steps) + scheduler.steps_offset).collect(),
        Spacing::Trailing => trailing(train as f64, train as f64 / steps as f64, steps),
        Spacing::Linspace => {
            let gap = (train - 1) as f64 / (steps.max(2) - 1) as f64;
            (0..steps).rev().map(|i| (i as f64 * gap).round_ties_even() as usize).collect()
        }
    };
    check(scheduler, steps, all)
}

/// The first `steps` of `steps` + 1 timesteps, for solvers that end without noise (DPM-Solver, UniPC). `last` timesteps are walked,
/// all of training's or fewer.
pub(crate) fn spaced_before_end(scheduler: &Scheduler, steps: usize, last: usize) -> Result<Vec<usize>> {
    let train = scheduler.num_train_timesteps();
    check_steps(steps, train)?;
    let all: Vec<usize> = match scheduler.spacing {
        Spacing::Leading => {
            let ratio = last / (steps + 1);
            if ratio == 0 {
                return Err(Error::new(Kind::Usage, "--steps", format!("{steps}, expected fewer than {last} with leading timesteps")));
            }
            (1..=steps).rev().map(|i| i * ratio + scheduler.steps_offset).collect()
        }
        Spacing::Trailing => {
            let ratio = train as f64 / steps as f64;
            let count = if last == train { steps } else { (last as f64 / ratio).ceil() as usize };
            trailing(last as f64, ratio, count)
        }
        Spacing::Linspace => {
            let gap = last.saturating_sub(1) as f64 / steps as f64;
            (1..=steps).rev().map(|i| (i as f64 * gap).round_ties_even() as usize).collect()
        }
    };
    check(scheduler, steps, all)
}

/// For some counts diffusers' floating range holds one element more, at timestep -1; it is left out here.
fn trailing(last: f64, ratio: f64, count: usize) -> Vec<usize> {
    (0..count).map(|i| (last - i as f64 * ratio).round_ties_even() as usize).map(|t| t.max(1) - 1).collect()
}

pub(crate) fn check_steps(steps: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&steps) { Ok(()) } else { Err(Error::new(Kind::Usage, "--steps", format!("{steps}, expected 1 to {most}"))) }
}

/// Fails where a timestep is beyond those of training.
fn check(scheduler: &Scheduler, steps: usize, all: Vec<usize>) -> Result<Vec<usize>> {
    let (train, offset) = (scheduler.num_train_timesteps(), scheduler.steps_offset);
    match all.iter().find(|&&t| t >= train) {
        Some(t) => {
            Err(Error::new(Kind::Usage, "--steps", format!("{steps} steps reach timestep {t} (steps_offset is {offset}), the model knows 0 to {}", train - 1)))
        }
        None => Ok(all),
    }
}
