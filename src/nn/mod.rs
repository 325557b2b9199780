//! Floor 3: a layer is named weights and one op. Fields are the checkpoint's names; `load` asks a [`Scope`] for them;
//! `forward` opens the layer's own name on the tape, so that the paths of steps and taps are PyTorch's module paths.
//!
//! [`Scope`]: crate::weights::Scope

pub mod attention;
pub mod batch_norm;
pub mod conv2d;
pub mod embeddings;
pub mod linear;
pub mod norm;
pub mod squeeze_excite;
pub mod window_attention;

pub use attention::Attention;
pub use batch_norm::{BATCH_NORM_EPS, BatchNorm};
pub use conv2d::Conv2d;
pub use embeddings::{Embedding, TimestepEmbedding, TimestepProjection};
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm};
pub use squeeze_excite::SqueezeExcite;
pub use window_attention::{WindowAttention, Windows};
