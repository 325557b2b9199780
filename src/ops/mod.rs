//! Floor 2: one file per op. Formula, parameters, card, recording function, CPU twin, cost, cases.

pub mod activation;
pub mod attention;
pub mod case;
pub mod conv2d;
pub mod golden;
pub mod group_norm;
pub mod matmul;

use crate::plan::Op;

/// WGSL fragment: the storage type.
pub(crate) const ELEM: &str = include_str!("../../shaders/lib/elem_f32.wgsl");
/// WGSL fragment: the index of an invocation in a `grid_1d` grid.
pub(crate) const LINEAR_INDEX: &str = include_str!("../../shaders/lib/linear_index.wgsl");

/// Every op. A test holds this list against the shader files, the modules and the goldens.
pub static ALL: &[&Op] = &[&activation::OP, &attention::OP, &conv2d::OP, &group_norm::OP, &matmul::OP];
