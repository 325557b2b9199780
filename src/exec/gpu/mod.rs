//! The GPU executor: adapters, a device with its pipelines, sessions that replay prepared bind groups, and proofs of
//! single kernels.

mod adapter;
mod device;
mod heap;
mod pipeline;
mod pipeline_cache;
mod proof;
mod session;
mod stamps;
mod trial;
mod values;

pub use adapter::{AdapterKind, AdapterSummary, adapters};
pub use device::Gpu;
pub(in crate::exec) use device::lock;
pub use proof::{KernelRun, Timing};
pub use session::GpuSession;
pub(in crate::exec) use trial::{Filling, Trial};
