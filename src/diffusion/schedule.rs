//! A walk in the numbers that the device is fed, and the step on a tape that takes them.

use crate::base::{Error, Kind, Result};
use crate::diffusion::ddim;
use crate::diffusion::linear::{Step, Steps};
use crate::diffusion::scheduler::{Class, Limit, Scheduler, Solver, check_range};
use crate::ops::ddim_step::{Coefficients, DdimStep, KnownRegion};
use crate::ops::solver_step::SolverStep;
use crate::plan::{Tape, Tensor};

/// What a run asks of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Walk {
    /// Steps over the whole range of noise, 1..=num_train_timesteps.
    pub steps: usize,
    /// DDIM alone: 0 (deterministic) to 1 (ancestral).
    pub eta: f64,
    /// Above 0, at most 1: the share of the steps that are taken; below 1 the walk starts from the noised image.
    pub strength: f64,
}

impl Walk {
    /// How many of the steps are left out at the start.
    pub(crate) fn skipped(&self) -> Result<usize> {
        check_range("--strength", self.strength, f64::MIN_POSITIVE, 1.0)?;
        let taken = (self.steps as f64 * self.strength).floor() as usize;
        if taken == 0 && self.steps > 0 {
            let fact = format!("{} of {} steps is less than one step, expected at least {}", self.strength, self.steps, 1.0 / self.steps as f64);
            return Err(Error::new(Kind::Usage, "--strength", fact));
        }
        Ok(self.steps - taken)
    }
}

/// A walk in numbers: one of everything for each step that is taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// What the model is told; Euler's may lie between two timesteps of training.
    pub timesteps: Vec<f32>,
    /// What the latents are multiplied with for the model alone; 1 but for Euler.
    pub input_scales: Vec<f32>,
    /// Rows of the table of `ddim_step` or `solver_step`.
    pub rows: Vec<Vec<f32>>,
    /// Whether the step takes variance noise.
    pub takes_noise: Vec<bool>,
    /// The latents at the start are `start.0 z0 + start.1 noise`: noise alone at full strength.
    pub start: (f32, f32),
}

impl Schedule {
    /// The schedule of `walk`. Fails, naming the flag or field, where the scheduler has no such walk.
    pub fn new(scheduler: &Scheduler, walk: &Walk) -> Result<Schedule> {
        check_range("--eta", walk.eta, 0.0, 1.0)?;
        if scheduler.class == Class::Ddim {
            return ddim::schedule(scheduler, walk);
        }
        if walk.eta > 0.0 {
            let fact = format!("{}, expected 0: ddim alone has it, this is {}", walk.eta, scheduler.class.name());
            return Err(Error::new(Kind::Usage, "--eta", fact));
        }
        let Steps { start, steps, .. } = Steps::new(scheduler, walk)?;
        Ok(Schedule {
            timesteps: steps.iter().map(|step| step.timestep as f32).collect(),
            input_scales: steps.iter().map(|step| step.input_scale as f32).collect(),
            rows: steps.iter().map(Step::row).collect(),
            takes_noise: steps.iter().map(Step::takes_noise).collect(),
            start: (start[0] as f32, start[1] as f32),
        })
    }
}

/// What a step reads beside the model's output.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs<'a> {
    /// `[slots N, h, w, C]`, the latents first.
    pub state: Tensor,
    /// `[1, columns]`.
    pub row: Tensor,
    pub known: Option<&'a KnownRegion>,
    pub variance_noise: Option<Tensor>,
}

impl Scheduler {
    /// Tensors in the state that goes from step to step: the latents, and what the solver remembers.
    pub fn slots(&self) -> usize {
        match &self.solver {
            Solver::Ddim | Solver::Ddpm(_) | Solver::Euler(_) | Solver::Lcm(_) => 1,
            Solver::DpmSolver(solver) => solver.order,
            Solver::UniPc(solver) => solver.slots(),
            Solver::Pndm => crate::diffusion::pndm::SLOTS,
        }
    }

    /// Columns of the table of coefficients.
    pub fn columns(&self) -> usize {
        if self.class == Class::Ddim { Coefficients::COLUMNS } else { self.solver_step(None).columns() }
    }

    /// Whether the model sees the latents times a number of the step.
    pub fn scales_input(&self) -> bool {
        self.class == Class::Euler
    }

    /// Whether steps take variance noise.
    pub fn is_stochastic(&self, eta: f64) -> bool {
        matches!(self.class, Class::Ddpm | Class::Lcm) || eta > 0.0
    }

    /// The state after a step, from the model's output at its latents; guided, that is `[2 N, h, w, C]`, the null class first.
    pub fn record_step(&self, t: &mut Tape, model_output: Tensor, inputs: &StepInputs, guidance_scale: Option<f32>) -> Result<Tensor> {
        let StepInputs { state, row, known, variance_noise } = *inputs;
        if self.class != Class::Ddim {
            let step = self.solver_step(guidance_scale);
            return t.scope("solver_step", |t| t.solver_step(model_output, state, row, known, variance_noise, &step));
        }
        let step = DdimStep { prediction: self.prediction_type, guidance_scale, clip: self.clip(), threshold: matches!(self.limit, Limit::Threshold { .. }) };
        let row = match self.limit {
            Limit::Threshold { ratio, max } => t.threshold_quantile(model_output, state, row, &step, f64::from(ratio), max)?,
            _ => row,
        };
        t.scope("ddim_step", |t| t.ddim_step(model_output, state, row, known, variance_noise, &step))
    }

    fn solver_step(&self, guidance_scale: Option<f32>) -> SolverStep {
        SolverStep { slots: self.slots(), guidance_scale, clip: self.clip() }
    }

    fn clip(&self) -> Option<f32> {
        match self.limit {
            Limit::Clip { range } => Some(range),
            _ => None,
        }
    }
}
