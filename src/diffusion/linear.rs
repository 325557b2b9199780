//! Solvers that are linear in what a step reads. A solver is written down with [`Linear`] in place of numbers, as its paper has it;
//! what comes out are the coefficients of the op `solver_step`.

use std::ops::{Add, Mul, Sub};

use crate::base::{Error, Kind, Result};
use crate::diffusion::schedule::Walk;
use crate::diffusion::scheduler::{Limit, Scheduler, Solver};
use crate::diffusion::{ddpm, pndm};
use crate::ops::ddim_step::PredictionType;

/// A sum of what a step reads, each with a weight: the slots of the state, the converted output, the variance noise.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear(Vec<f64>);

/// What a step with `slots` slots reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reads {
    pub slots: usize,
}

impl Reads {
    /// Slot `i` of the state before the step; 0 is the latents.
    pub fn slot(self, i: usize) -> Linear {
        self.unit(i)
    }

    /// The model's output of this step, converted.
    pub fn output(self) -> Linear {
        self.unit(self.slots)
    }

    /// Standard normal noise of this step.
    pub fn noise(self) -> Linear {
        self.unit(self.slots + 1)
    }

    fn unit(self, at: usize) -> Linear {
        Linear((0..self.slots + 2).map(|i| f64::from(u8::from(i == at))).collect())
    }
}

impl Linear {
    fn zip(mut self, other: &Linear, f: impl Fn(f64, f64) -> f64) -> Linear {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a = f(*a, *b));
        self
    }
}

impl Add for Linear {
    type Output = Linear;
    fn add(self, other: Linear) -> Linear {
        self.zip(&other, |a, b| a + b)
    }
}

impl Sub for Linear {
    type Output = Linear;
    fn sub(self, other: Linear) -> Linear {
        self.zip(&other, |a, b| a - b)
    }
}

impl Mul<Linear> for f64 {
    type Output = Linear;
    fn mul(self, mut linear: Linear) -> Linear {
        linear.0.iter_mut().for_each(|a| *a *= self);
        linear
    }
}

impl Mul<&Linear> for f64 {
    type Output = Linear;
    fn mul(self, linear: &Linear) -> Linear {
        self * linear.clone()
    }
}

/// One step in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What the model is told; Euler's may lie between two timesteps of training.
    pub timestep: f64,
    /// The model sees the latents times this.
    pub input_scale: f64,
    /// The output is converted to `convert[0] x + convert[1] output`.
    pub convert: [f64; 2],
    /// The known region after the step is `known[0] z0 + known[1] noise`.
    pub known: [f64; 2],
    /// The state after the step.
    pub next: Vec<Linear>,
}

/// A walk in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// Tensors in the state: the latents and what the solver remembers.
    pub slots: usize,
    /// The latents before the first step are `start[0] z0 + start[1] noise`.
    pub start: [f64; 2],
    pub steps: Vec<Step>,
}

impl Steps {
    /// The steps of `walk`. Fails, naming the flag or field, where the scheduler has no such walk.
    pub fn new(scheduler: &Scheduler, walk: &Walk) -> Result<Steps> {
        let skipped = walk.skipped()?;
        let steps = match &scheduler.solver {
            Solver::Ddim => Err(Error::new(Kind::Config, "scheduler", "DDIM has its own steps")),
            Solver::Ddpm(variance) => ddpm::steps(scheduler, *variance, walk.steps, skipped),
            Solver::DpmSolver(solver) => solver.steps(scheduler, walk.steps, skipped),
            Solver::UniPc(solver) => solver.steps(scheduler, walk.steps, skipped),
            Solver::Euler(solver) => solver.steps(scheduler, walk.steps, skipped),
            Solver::Lcm(solver) => solver.steps(scheduler, walk.steps, skipped),
            Solver::Pndm => pndm::steps(scheduler, walk.steps, skipped),
        }?;
        if steps.steps.is_empty() {
            return Err(Error::new(Kind::Usage, "--strength", format!("{} of {} steps leaves no step", walk.strength, walk.steps)));
        }
        steps.steps.iter().try_for_each(Step::check)?;
        Ok(steps)
    }
}

impl Step {
    fn check(&self) -> Result<()> {
        let numbers = self.convert.iter().chain(&self.known).chain([&self.timestep, &self.input_scale]).chain(self.next.iter().flat_map(|linear| &linear.0));
        if numbers.copied().all(|v| (v as f32).is_finite()) {
            return Ok(());
        }
        Err(Error::new(Kind::Config, "scheduler", format!("the step from timestep {} is not finite with these settings", self.timestep)))
    }

    /// The row of `solver_step`'s table.
    pub fn row(&self) -> Vec<f32> {
        let numbers = self.convert.iter().chain(&self.known).chain(self.next.iter().flat_map(|linear| &linear.0));
        numbers.map(|&v| v as f32).collect()
    }

    /// Whether variance noise has a weight.
    pub fn takes_noise(&self) -> bool {
        self.next.iter().any(|linear| linear.0.last().is_some_and(|&weight| weight != 0.0))
    }

    /// The step on the host in f64: the readable form of `solver_step`, without guidance and known region.
    pub fn apply(&self, limit: Limit, model_output: &[f64], state: &[Vec<f64>], variance_noise: &[f64]) -> Vec<Vec<f64>> {
        let convert = |(&x, &out): (&f64, &f64)| {
            let converted = self.convert[0] * x + self.convert[1] * out;
            match limit {
                Limit::Clip { range } => converted.clamp(-f64::from(range), f64::from(range)),
                _ => converted,
            }
        };
        let converted: Vec<f64> = state[0].iter().zip(model_output).map(convert).collect();
        let read: Vec<&[f64]> = state.iter().map(Vec::as_slice).chain([converted.as_slice(), variance_noise]).collect();
        let sum = |linear: &Linear, i: usize| linear.0.iter().zip(&read).map(|(weight, values)| weight * values[i]).sum();
        self.next.iter().map(|linear| (0..model_output.len()).map(|i| sum(linear, i)).collect()).collect()
    }
}

/// x_0 = a\[0\] x + a\[1\] output, where x = sqrt_alpha x_0 + sqrt_one_minus_alpha epsilon.
pub(crate) fn to_x0(prediction: PredictionType, sqrt_alpha: f64, sqrt_one_minus_alpha: f64) -> [f64; 2] {
    match prediction {
        PredictionType::Epsilon => [1.0 / sqrt_alpha, -sqrt_one_minus_alpha / sqrt_alpha],
        PredictionType::V => [sqrt_alpha, -sqrt_one_minus_alpha],
        PredictionType::Sample => [0.0, 1.0],
    }
}

/// epsilon = a\[0\] x + a\[1\] output.
pub(crate) fn to_epsilon(prediction: PredictionType, sqrt_alpha: f64, sqrt_one_minus_alpha: f64) -> [f64; 2] {
    match prediction {
        PredictionType::Epsilon => [0.0, 1.0],
        PredictionType::V => [sqrt_one_minus_alpha, sqrt_alpha],
        PredictionType::Sample => [1.0 / sqrt_one_minus_alpha, -sqrt_alpha / sqrt_one_minus_alpha],
    }
}

/// q(x_t | x_0) at alpha_bar: weights of x_0 and noise.
pub(crate) fn noised(alpha: f64) -> [f64; 2] {
    [alpha.sqrt(), (1.0 - alpha).sqrt()]
}

/// The start of a walk that skips `skipped` steps: noise alone, or the image's latents at the first step's noise.
pub(crate) fn start(skipped: usize, first: [f64; 2]) -> [f64; 2] {
    if skipped == 0 { [0.0, 1.0] } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_formula_gives_its_weights() {
        let reads = Reads { slots: 2 };
        let (x, m1, m0, noise) = (reads.slot(0), reads.slot(1), reads.output(), reads.noise());
        let next = 2.0 * (x + m0.clone()) - 0.5 * (m1 - m0) + 3.0 * noise;
        assert_eq!(next, Linear(vec![2.0, -0.5, 2.5, 3.0]));
    }

    /// The op's row and the host's form are one step.
    #[test]
    fn a_row_is_the_step() {
        let reads = Reads { slots: 1 };
        let next = vec![0.5 * reads.slot(0) + 2.0 * reads.output() + 0.25 * reads.noise()];
        let step = Step { timestep: 9.0, input_scale: 1.0, convert: [1.0, -3.0], known: [0.75, 0.125], next };
        assert_eq!(step.row(), [1.0, -3.0, 0.75, 0.125, 0.5, 2.0, 0.25]);
        assert!(step.takes_noise());
        // converted = 4 - 3 = 1.
        assert_eq!(step.apply(Limit::Free, &[1.0], &[vec![4.0]], &[8.0]), [[6.0]]);
        assert_eq!(step.apply(Limit::Clip { range: 0.5 }, &[1.0], &[vec![4.0]], &[8.0]), [[5.0]]);
    }
}
