//! The blocks of a `UNet2DModel`.
//! Source: `diffusers/models/resnet.py`, `unets/unet_2d_blocks.py`, `downsampling.py`, `upsampling.py`.

use crate::base::Result;
use crate::models::unet_2d_config::{BlockType, UNet2DConfig};
use crate::nn::attention::AttentionConfig;
use crate::nn::{Attention, Conv2d, GroupNorm, Linear};
use crate::ops::activation::Function;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::ops::pool2d::{Pool2d, PoolMode};
use crate::plan::{Tape, Tensor};
use crate::weights::Scope;

/// A change of resolution by two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resample {
    None,
    /// Mean of 2x2.
    Down,
    /// Nearest neighbour.
    Up,
}

impl Resample {
    fn apply(self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let mean = Pool2d { mode: PoolMode::Average, kernel: [2, 2], stride: [2, 2], padding: [0; 4], count_padding: true };
        match self {
            Resample::None => Ok(x),
            Resample::Down => t.within("downsample", |t| t.pool2d(x, &mean)),
            Resample::Up => t.within("upsample", |t| t.upsample_nearest(x, 2)),
        }
    }
}

/// Two convolutions with the time embedding between them, and a shortcut past both.
pub struct ResnetBlock2D {
    name: String,
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    act: Function,
    scale_shift: bool,
    resample: Resample,
    output_scale_factor: f32,
}

impl ResnetBlock2D {
    pub fn load(scope: &Scope, c: &UNet2DConfig, inputs: usize, outputs: usize, resample: Resample, output_scale_factor: f32) -> ResnetBlock2D {
        let norm = |name: &str, channels| GroupNorm::load(&scope.child(name), channels, c.norm_num_groups, c.norm_eps);
        let conv = |name: &str, inputs| Conv2d::load(&scope.child(name), inputs, outputs, 3, Geometry::padded(1));
        let shortcut = || Conv2d::load(&scope.child("conv_shortcut"), inputs, outputs, 1, Geometry::default());
        let projected = if c.scale_shift { 2 * outputs } else { outputs };
        ResnetBlock2D {
            name: scope.name().to_string(),
            norm1: norm("norm1", inputs),
            conv1: conv("conv1", inputs),
            time_emb_proj: Linear::load(&scope.child("time_emb_proj"), c.time_embedding_dim, projected),
            norm2: norm("norm2", outputs),
            conv2: conv("conv2", outputs),
            conv_shortcut: (inputs != outputs).then(shortcut),
            act: c.act_fn,
            scale_shift: c.scale_shift,
            resample,
            output_scale_factor,
        }
    }

    /// x: `[N, H, W, I]`; temb: act(time embedding) `[N, E]`.
    pub fn forward(&self, t: &mut Tape, x: Tensor, temb: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.norm1.activated(t, x, self.act)?;
            let x = self.resample.apply(t, x)?;
            let h = self.resample.apply(t, h)?;
            let h = self.conv1.forward(t, h)?;
            let temb = self.time_emb_proj.forward(t, temb)?;
            let h = if self.scale_shift { self.scale_and_shift(t, h, temb)? } else { self.shift(t, h, temb)? };
            let h = self.conv2.forward(t, h)?;
            let x = match &self.conv_shortcut {
                Some(conv) => conv.forward(t, x)?,
                None => x,
            };
            let y = t.add(x, h)?;
            if self.output_scale_factor == 1.0 { Ok(y) } else { t.affine(y, 1.0 / self.output_scale_factor, 0.0) }
        })
    }

    /// act(norm2(h + temb)).
    fn shift(&self, t: &mut Tape, h: Tensor, temb: Tensor) -> Result<Tensor> {
        let h = t.add_channel(h, temb)?;
        self.norm2.activated(t, h, self.act)
    }

    /// act(norm2(h) (1 + scale) + shift).
    fn scale_and_shift(&self, t: &mut Tape, h: Tensor, temb: Tensor) -> Result<Tensor> {
        let h = self.norm2.forward(t, h)?;
        let is_silu = self.act == Function::Silu;
        let h = t.modulate(h, temb, is_silu)?;
        if is_silu { Ok(h) } else { t.activation(h, self.act) }
    }
}

/// `downsamplers.0` or `upsamplers.0`.
enum Sampler {
    DownConv { name: String, conv: Conv2d },
    UpConv { name: String, conv: Conv2d },
    Resnet(Box<ResnetBlock2D>),
}

impl Sampler {
    fn load(scope: &Scope, c: &UNet2DConfig, channels: usize, by_resnet: bool, resample: Resample) -> Sampler {
        let name = scope.name().to_string();
        let conv = |geometry| Conv2d::load(&scope.child("conv"), channels, channels, 3, geometry);
        match resample {
            _ if by_resnet => Sampler::Resnet(Box::new(ResnetBlock2D::load(scope, c, channels, channels, resample, 1.0))),
            Resample::Up => Sampler::UpConv { name, conv: conv(Geometry::padded(1)) },
            _ => {
                let before = c.downsample_padding;
                Sampler::DownConv { name, conv: conv(Geometry { padding: [before, 1, before, 1], ..Geometry::default().strided(2) }) }
            }
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor, temb: Tensor) -> Result<Tensor> {
        match self {
            Sampler::Resnet(resnet) => resnet.forward(t, x, temb),
            Sampler::DownConv { name, conv } => t.scope(name, |t| conv.forward(t, x)),
            Sampler::UpConv { name, conv } => t.scope(name, |t| {
                let h = t.upsample_nearest(x, 2)?;
                conv.forward(t, h)
            }),
        }
    }
}

/// Attention as a down or up block has it.
fn attention(scope: &Scope, c: &UNet2DConfig, channels: usize) -> Attention {
    let head_dim = c.attention_head_dim.unwrap_or(channels);
    Attention::load(scope, &AttentionConfig { channels, head_dim, norm_groups: Some(c.norm_num_groups), eps: c.norm_eps, rescale_output_factor: 1.0 })
}

/// Residual blocks, each perhaps with attention behind it, then half the resolution.
/// `DownBlock2D`, `AttnDownBlock2D`, `ResnetDownsampleBlock2D`.
pub struct DownBlock {
    name: String,
    resnets: Vec<ResnetBlock2D>,
    /// Empty, or one per residual block.
    attentions: Vec<Attention>,
    downsampler: Option<Sampler>,
}

impl DownBlock {
    pub fn load(scope: &Scope, c: &UNet2DConfig, kind: BlockType, inputs: usize, outputs: usize, downsample: bool) -> DownBlock {
        let resnet = |i: usize| {
            let inputs = if i == 0 { inputs } else { outputs };
            ResnetBlock2D::load(&scope.child(&format!("resnets.{i}")), c, inputs, outputs, Resample::None, 1.0)
        };
        let layers = c.layers_per_block;
        let sampler = || Sampler::load(&scope.child("downsamplers.0"), c, outputs, kind.resnet_resample, Resample::Down);
        DownBlock {
            name: scope.name().to_string(),
            resnets: (0..layers).map(resnet).collect(),
            attentions: (0..if kind.attention { layers } else { 0 }).map(|i| attention(&scope.child(&format!("attentions.{i}")), c, outputs)).collect(),
            downsampler: downsample.then(sampler),
        }
    }

    /// Appends each state that the up path will take to `skips`.
    pub fn forward(&self, t: &mut Tape, x: Tensor, temb: Tensor, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let mut h = x;
            for (i, resnet) in self.resnets.iter().enumerate() {
                h = resnet.forward(t, h, temb)?;
                if let Some(attention) = self.attentions.get(i) {
                    h = attention.forward(t, h)?;
                }
                skips.push(h);
            }
            if let Some(downsampler) = &self.downsampler {
                h = downsampler.forward(t, h, temb)?;
                skips.push(h);
            }
            Ok(h)
        })
    }
}

/// Residual block, attention, residual block: `UNetMidBlock2D`.
pub struct MidBlock {
    name: String,
    resnets: [ResnetBlock2D; 2],
    attention: Option<Attention>,
}

impl MidBlock {
    pub fn load(scope: &Scope, c: &UNet2DConfig, channels: usize) -> MidBlock {
        let scale = c.mid_block_scale_factor;
        let attention = AttentionConfig {
            channels,
            head_dim: c.attention_head_dim.unwrap_or(channels),
            norm_groups: c.mid_attention_groups(),
            eps: c.norm_eps,
            rescale_output_factor: scale,
        };
        MidBlock {
            name: scope.name().to_string(),
            resnets: ["resnets.0", "resnets.1"].map(|name| ResnetBlock2D::load(&scope.child(name), c, channels, channels, Resample::None, scale)),
            attention: c.add_attention.then(|| Attention::load(&scope.child("attentions.0"), &attention)),
        }
    }

    pub fn forward(&self, t: &mut Tape, x: Tensor, temb: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let mut h = self.resnets[0].forward(t, x, temb)?;
            if let Some(attention) = &self.attention {
                h = attention.forward(t, h)?;
            }
            self.resnets[1].forward(t, h, temb)
        })
    }
}

/// Residual blocks over what the down path left, each perhaps with attention, then twice the resolution.
/// `UpBlock2D`, `AttnUpBlock2D`, `ResnetUpsampleBlock2D`.
pub struct UpBlock {
    name: String,
    resnets: Vec<ResnetBlock2D>,
    /// Empty, or one per residual block.
    attentions: Vec<Attention>,
    upsampler: Option<Sampler>,
}

/// Channels of an up block: of what comes in, of the block, and of the last state that it takes from the down path.
#[derive(Clone, Copy, Debug)]
pub struct UpChannels {
    pub previous: usize,
    pub outputs: usize,
    pub last_skip: usize,
}

impl UpBlock {
    pub fn load(scope: &Scope, c: &UNet2DConfig, kind: BlockType, channels: UpChannels, upsample: bool) -> UpBlock {
        let UpChannels { previous, outputs, last_skip } = channels;
        let layers = c.layers_per_block + 1;
        let resnet = |i: usize| {
            let skip = if i + 1 == layers { last_skip } else { outputs };
            let inputs = if i == 0 { previous } else { outputs };
            ResnetBlock2D::load(&scope.child(&format!("resnets.{i}")), c, inputs + skip, outputs, Resample::None, 1.0)
        };
        let sampler = || Sampler::load(&scope.child("upsamplers.0"), c, outputs, kind.resnet_resample, Resample::Up);
        UpBlock {
            name: scope.name().to_string(),
            resnets: (0..layers).map(resnet).collect(),
            attentions: (0..if kind.attention { layers } else { 0 }).map(|i| attention(&scope.child(&format!("attentions.{i}")), c, outputs)).collect(),
            upsampler: upsample.then(sampler),
        }
    }

    /// Takes as many states from the end of `skips` as it has residual blocks.
    pub fn forward(&self, t: &mut Tape, x: Tensor, temb: Tensor, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let mut h = x;
            for (i, resnet) in self.resnets.iter().enumerate() {
                let skip = skips.pop().ok_or_else(|| t.mismatch("the down path left no state for this block".to_string()))?;
                h = t.concat(h, skip)?;
                h = resnet.forward(t, h, temb)?;
                if let Some(attention) = self.attentions.get(i) {
                    h = attention.forward(t, h)?;
                }
            }
            match &self.upsampler {
                Some(upsampler) => upsampler.forward(t, h, temb),
                None => Ok(h),
            }
        })
    }
}
