pub mod base;
pub mod ops;
pub mod plan;
