//! naevus fills the long tail of a medical image data set: it inpaints new lesions of rare classes into real images,
//! extracts classifier features, and keeps the samples whose out-of-distribution score says that they belong. Handwritten WGSL
//! kernels run imported weights on any Vulkan, Metal or DX12 GPU, and their CPU twins where there is none.
//!
//! ```text
//! street   main -> cli        words, flags, exit codes
//!   6      driver             data sets, images, jobs, manifest, resume, selection
//!   5      diffusion   ood    the algorithms, in the papers' notation
//!   4      models             UNet2DModel, TAESD, ResNet, by their checkpoints' own names
//!   3      nn                 Conv2d, GroupNorm, Linear, Attention = named weights + one op
//!   2      ops                one file per op: formula, shape rule, CPU twin, cost, cases, GPU variants
//!   1      plan    weights    tape -> plan: lifetimes, slots, limits | safetensors: every name accounted for
//!   0      base               shape, array, error, noise, comparer
//! tower    exec               cpu, gpu, check, bench: run a plan
//! ```
//!
//! A computation is recorded on a tape, frozen into a plan and run by a session on a device:
//!
//! ```
//! use naevus::base::DType;
//! use naevus::exec::Device;
//! use naevus::ops::activation::Function;
//! use naevus::plan::{Options, Tape};
//!
//! # fn main() -> naevus::base::Result<()> {
//! let mut tape = Tape::new();
//! let x = tape.input("x", &[2, 3], DType::F32);
//! let y = tape.activation(x, Function::Relu)?;
//! let z = tape.add(x, y)?;
//! tape.output("z", z);
//!
//! let mut session = Device::Cpu.prepare(tape, &Options::default())?;
//! session.write("x", &[-1.0, 2.0, -3.0, 4.0, 0.0, 5.0])?;
//! session.run()?;
//! assert_eq!(session.read("z")?.data, [-1.0, 4.0, -3.0, 8.0, 0.0, 10.0]);
//! # Ok(())
//! # }
//! ```

pub mod base;
pub mod cli;
pub mod diffusion;
pub mod driver;
pub mod exec;
pub mod models;
pub mod nn;
pub mod ood;
pub mod ops;
pub mod plan;
pub mod weights;
