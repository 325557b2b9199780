//! diffusers `Attention`: over the positions of an image, as the blocks of `UNet2DModel` have it, and from tokens to tokens, as
//! transformer blocks do.

use crate::base::Result;
use crate::nn::{GroupNorm, Linear};
use crate::plan::{Tape, Tensor};
use crate::weights::Scope;

/// What the linear layers were called before diffusers 0.15, with their names since.
pub const OLD_NAMES: [(&str, &str); 4] = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];

/// (x + to_out(attention(q, k, v))) / rescale_output_factor with q, k, v linear in group_norm(x).
pub struct Attention {
    name: String,
    group_norm: Option<GroupNorm>,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    /// `to_out.0`; `to_out.1` is a dropout.
    to_out: Linear,
    heads: usize,
    rescale_output_factor: f32,
}

/// Sizes of an [`Attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionConfig {
    pub channels: usize,
    /// Channels per head; there are channels / head_dim heads, rounded down.
    pub head_dim: usize,
    /// None: no norm.
    pub norm_groups: Option<usize>,
    pub eps: f32,
    pub rescale_output_factor: f32,
}

impl Attention {
    pub fn load(scope: &Scope, config: &AttentionConfig) -> Attention {
        let channels = config.channels;
        let heads = channels / config.head_dim.max(1);
        if heads == 0 {
            scope.fault(&format!("heads of {} channels, expected at most the layer's {channels}", config.head_dim));
        }
        let inner = heads * config.head_dim;
        let has_old_names = scope.has("query.weight");
        let linear = |(old, new): (&str, &str), inputs, outputs| {
            let part = if has_old_names { scope.child(old).named(new) } else { scope.child(new) };
            Linear::load(&part, inputs, outputs)
        };
        let [q, k, v, out] = OLD_NAMES;
        Attention {
            name: scope.name().to_string(),
            group_norm: config.norm_groups.map(|groups| GroupNorm::load(&scope.child("group_norm"), channels, groups, config.eps)),
            to_q: linear(q, channels, inner),
            to_k: linear(k, channels, inner),
            to_v: linear(v, channels, inner),
            to_out: linear(out, inner, channels),
            heads,
            rescale_output_factor: config.rescale_output_factor,
        }
    }

    /// x: `[N, H, W, C]`, as is the result.
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = match &self.group_norm {
                Some(norm) => norm.forward(t, x)?,
                None => x,
            };
            let q = self.to_q.forward(t, h)?;
            let k = self.to_k.forward(t, h)?;
            let v = self.to_v.forward(t, h)?;
            let h = t.attention(q, k, v, self.heads)?;
            let h = self.to_out.forward(t, h)?;
            let y = t.add(h, x)?;
            if self.rescale_output_factor == 1.0 { Ok(y) } else { t.affine(y, 1.0 / self.rescale_output_factor, 0.0) }
        })
    }
}

/// to_out(attention(q, k, v)) with q linear in one sequence, k and v in another or the same: neither norm nor residual.
pub struct TokenAttention {
    name: String,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    /// `to_out.0`; `to_out.1` is a dropout.
    to_out: Linear,
    heads: usize,
}

impl TokenAttention {
    /// `width` channels in `heads` heads, over keys of `key_width` channels. Only the last layer has a bias.
    pub fn load(scope: &Scope, width: usize, key_width: usize, heads: usize) -> TokenAttention {
        let linear = |name: &str, inputs| Linear::without_bias(&scope.child(name), inputs, width);
        TokenAttention {
            name: scope.name().to_string(),
            to_q: linear("to_q", width),
            to_k: linear("to_k", key_width),
            to_v: linear("to_v", key_width),
            to_out: Linear::load(&scope.child("to_out.0"), width, width),
            heads,
        }
    }

    /// x: `[N, ..., C]`, as is the result; keys: `[N, ..., D]`.
    pub fn forward(&self, t: &mut Tape, x: Tensor, keys: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let q = self.to_q.forward(t, x)?;
            let k = self.to_k.forward(t, keys)?;
            let v = self.to_v.forward(t, keys)?;
            let h = t.attention(q, k, v, self.heads)?;
            self.to_out.forward(t, h)
        })
    }
}
