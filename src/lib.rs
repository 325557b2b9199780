pub mod base;
pub mod cli;
pub mod exec;
pub mod models;
pub mod nn;
pub mod ops;
pub mod plan;
pub mod weights;
