//! Floor 1: a recorded computation and its memory. A [`Tape`] is written by `forward` functions in call order;
//! a [`Plan`] freezes it: lifetimes, slots, limits, peak bytes, all known before anything runs.

pub mod card;
pub mod freeze;
pub mod session;
pub mod tape;

pub use card::{Case, CaseInput, Cost, Field, Fill, Layout, Machine, Op, StepView, TwinCall, Variant};
pub use freeze::{Limits, Options, Plan, Storage};
pub use session::{Session, StepTimes, Timer};
pub use tape::{Step, Tape, Tensor, TensorInfo, TensorKind, Weight};
