//! Floor 5: the sampling algorithms in the papers' notation. Noise is always an argument.

mod betas;
pub mod ddim;
pub mod ddpm;
pub mod detail;
pub mod dpm_solver;
pub mod euler;
pub mod inpaint;
pub mod lcm;
pub mod linear;
pub mod pndm;
pub mod posterior;
pub mod region;
pub mod schedule;
pub mod scheduler;
pub mod sigmas;
pub mod tiles;
mod timesteps;
pub mod unipc;

pub use schedule::{Schedule, Walk};
pub use scheduler::{Class, Scheduler};
