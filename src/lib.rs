pub mod base;
pub mod exec;
pub mod ops;
pub mod plan;
pub mod weights;
