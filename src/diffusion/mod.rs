//! Floor 5: the sampling algorithms in the papers' notation. Noise is always an argument.

pub mod ddim;
pub mod inpaint;
pub mod posterior;
pub mod region;
pub mod scheduler;
pub mod tiles;

pub use ddim::{Schedule, Walk};
pub use scheduler::Scheduler;
