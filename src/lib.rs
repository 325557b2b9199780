pub mod base;
pub mod cli;
pub mod driver;
pub mod exec;
pub mod ops;
pub mod plan;
pub mod weights;
