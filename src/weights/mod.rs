//! Floor 1: safetensors, PyTorch and ONNX files and the configurations beside them. Every name and field is accounted for: what a model
//! asks for and does not find, finds in another shape, or leaves unread is one error that lists all of it.

pub mod config;
pub mod embedded;
mod folder;
mod header;
mod json;
pub mod low_rank;
mod mapped;
mod numbers;
pub mod onnx;
mod onnx_tensor;
mod protobuf;
pub mod scope;
pub mod store;
mod torch;
pub mod view;
pub mod write;

pub use config::Config;
pub use low_rank::LowRank;
pub use onnx::{OnnxAttribute, OnnxGraph, OnnxNode, OnnxPort, OnnxSize};
pub use onnx_tensor::{OnnxTensor, OnnxType};
pub use scope::{Account, Scope};
pub use store::{Entry, Fate, Store, read_all};
pub use view::{Part, View};
pub use write::{Writer, write};
