//! The tower: runs a plan. `cpu` with the ops' twins, `gpu` with their WGSL; `gpu` is the only room that says `wgpu`.

pub mod check;
pub mod cpu;
pub mod gpu;
