//! What a tower offers to the floors: a prepared plan that can be fed, run and read. The tower implements it.

use crate::base::{Array, Error, Kind, Result};
use crate::plan::{Plan, Tensor};

/// What measured a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Timestamps on the device.
    Gpu,
    /// The host's clock.
    Wall,
}

impl std::fmt::Display for Timer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Timer::Gpu => "gpu",
            Timer::Wall => "wall",
        })
    }
}

/// Milliseconds of each step of one run.
#[derive(Clone, Debug)]
pub struct StepTimes {
    pub ms: Vec<f64>,
    pub timer: Timer,
}

/// A plan on a device. Values keep the device's axis order (channels last).
pub trait Session {
    fn plan(&self) -> &Plan;

    /// Copies `values` into a tensor of the plan.
    fn write_tensor(&mut self, tensor: Tensor, values: &[f32]) -> Result<()>;

    /// Runs every step once, then the carries.
    fn run(&mut self) -> Result<()>;

    /// Copies a tensor back to the host. Only inputs, outputs and taps can be read.
    fn read_tensor(&mut self, tensor: Tensor) -> Result<Vec<f32>>;

    /// Runs step by step and returns the place of the first step whose output holds a value that is not finite.
    /// Carries are not done.
    fn first_nonfinite(&mut self) -> Result<Option<String>>;

    /// Runs once and times each step: on the device's clock where it has one, otherwise one step at a time on the host's.
    /// Carries are not done.
    fn run_timed(&mut self) -> Result<StepTimes>;

    /// Waits until everything that was started has finished.
    fn finish(&mut self) -> Result<()>;

    /// Writes the input `name`.
    fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let tensor = self.plan().input(name)?;
        let expected = self.plan().tape.shape(tensor).clone();
        if expected.numel() != values.len() {
            return Err(Error::new(Kind::Shape, name, format!("{} values, expected {} for {expected}", values.len(), expected.numel())));
        }
        self.write_tensor(tensor, values)
    }

    /// Writes the integer input `name`.
    fn write_indices(&mut self, name: &str, values: &[u32]) -> Result<()> {
        self.write(name, bytemuck::cast_slice(values))
    }

    /// Reads the output or tap `name`.
    fn read(&mut self, name: &str) -> Result<Array> {
        let tensor = self.plan().output(name)?;
        let shape = self.plan().tape.shape(tensor).clone();
        Array::new(shape.dims(), self.read_tensor(tensor)?)
    }
}
