//! Transformer blocks over the positions of an image, with attention to tokens from elsewhere.
//! Source: `diffusers/models/transformers/transformer_2d.py`, `attention.py` (`BasicTransformerBlock`, `FeedForward`);
//! Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), section 3.3.

use crate::base::Result;
use crate::nn::attention::TokenAttention;
use crate::nn::{Conv2d, GroupNorm, LayerNorm, Linear};
use crate::ops::activation::Function;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::plan::{Tape, Tensor};
use crate::weights::Scope;

/// Of the norm before the first projection, and of those in the blocks. No configuration changes them.
const GROUP_NORM_EPS: f32 = 1e-6;
const LAYER_NORM_EPS: f32 = 1e-5;
/// Width of the feed-forward's hidden layer, in channels.
const FEED_FORWARD_MULT: usize = 4;

/// Sizes of a [`Transformer2DModel`].
#[derive(Clone, Copy, Debug)]
pub struct TransformerConfig {
    pub channels: usize,
    pub heads: usize,
    pub norm_groups: usize,
    /// Width of the tokens.
    pub cross_attention_dim: usize,
    /// `proj_in` and `proj_out` are linear layers; otherwise 1x1 convolutions. The same numbers in another shape.
    pub linear_projection: bool,
    /// `attn1` attends to the tokens as well.
    pub only_cross_attention: bool,
}

enum Projection {
    Linear(Linear),
    Conv(Conv2d),
}

impl Projection {
    fn load(scope: &Scope, is_linear: bool, inputs: usize, outputs: usize) -> Projection {
        if is_linear {
            Projection::Linear(Linear::load(scope, inputs, outputs))
        } else {
            Projection::Conv(Conv2d::load(scope, inputs, outputs, 1, Geometry::default()))
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        match self {
            Projection::Linear(linear) => linear.forward(t, x),
            Projection::Conv(conv) => conv.forward(t, x),
        }
    }
}

/// x + proj_out(transformer_blocks(proj_in(norm(x)))).
pub struct Transformer2DModel {
    name: String,
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<BasicTransformerBlock>,
    proj_out: Projection,
}

impl Transformer2DModel {
    pub fn load(scope: &Scope, c: &TransformerConfig, layers: usize) -> Transformer2DModel {
        if c.heads == 0 || c.heads > c.channels {
            scope.fault(&format!("{} heads of {} channels, expected 1 to {}", c.heads, c.channels, c.channels));
        }
        let inner = c.channels / c.heads.max(1) * c.heads;
        let block = |i: usize| BasicTransformerBlock::load(&scope.child(&format!("transformer_blocks.{i}")), c, inner);
        Transformer2DModel {
            name: scope.name().to_string(),
            norm: GroupNorm::load(&scope.child("norm"), c.channels, c.norm_groups, GROUP_NORM_EPS),
            proj_in: Projection::load(&scope.child("proj_in"), c.linear_projection, c.channels, inner),
            transformer_blocks: (0..layers).map(block).collect(),
            proj_out: Projection::load(&scope.child("proj_out"), c.linear_projection, inner, c.channels),
        }
    }

    /// x: `[N, H, W, C]`, as is the result; tokens: `[N, L, D]`.
    pub fn forward(&self, t: &mut Tape, x: Tensor, tokens: Option<Tensor>) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let tokens = tokens.ok_or_else(|| t.mismatch("no tokens to attend to, expected [N, L, D]".to_string()))?;
            let h = self.norm.forward(t, x)?;
            let mut h = self.proj_in.forward(t, h)?;
            for block in &self.transformer_blocks {
                h = block.forward(t, h, tokens)?;
            }
            let h = self.proj_out.forward(t, h)?;
            t.add(h, x)
        })
    }
}

/// Self-attention, attention to tokens, feed-forward: each behind a norm and added to its input.
struct BasicTransformerBlock {
    name: String,
    norm1: LayerNorm,
    attn1: TokenAttention,
    only_cross_attention: bool,
    norm2: LayerNorm,
    attn2: TokenAttention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl BasicTransformerBlock {
    fn load(scope: &Scope, c: &TransformerConfig, width: usize) -> BasicTransformerBlock {
        let norm = |name: &str| LayerNorm::load(&scope.child(name), width, LAYER_NORM_EPS);
        let attention = |name: &str, keys| TokenAttention::load(&scope.child(name), width, keys, c.heads);
        BasicTransformerBlock {
            name: scope.name().to_string(),
            norm1: norm("norm1"),
            attn1: attention("attn1", if c.only_cross_attention { c.cross_attention_dim } else { width }),
            only_cross_attention: c.only_cross_attention,
            norm2: norm("norm2"),
            attn2: attention("attn2", c.cross_attention_dim),
            norm3: norm("norm3"),
            ff: FeedForward::load(&scope.child("ff"), width),
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor, tokens: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.norm1.forward(t, x)?;
            let h = self.attn1.forward(t, h, if self.only_cross_attention { tokens } else { h })?;
            let x = t.add(h, x)?;
            let h = self.norm2.forward(t, x)?;
            let h = self.attn2.forward(t, h, tokens)?;
            let x = t.add(h, x)?;
            let h = self.norm3.forward(t, x)?;
            let h = self.ff.forward(t, h)?;
            t.add(h, x)
        })
    }
}

/// net.2(GEGLU(x)), the only feed-forward that a UNet's configuration can ask for.
struct FeedForward {
    name: String,
    /// `net.0.proj`: values, then gates.
    proj_in: Linear,
    /// `net.2`; `net.1` is a dropout.
    proj_out: Linear,
}

impl FeedForward {
    fn load(scope: &Scope, width: usize) -> FeedForward {
        let hidden = FEED_FORWARD_MULT * width;
        FeedForward {
            name: scope.name().to_string(),
            proj_in: Linear::load(&scope.child("net.0.proj"), width, 2 * hidden),
            proj_out: Linear::load(&scope.child("net.2"), hidden, width),
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.proj_in.forward(t, x)?;
            let h = t.gated(h, Function::Gelu)?;
            t.tap("net.0", h);
            self.proj_out.forward(t, h)
        })
    }
}
