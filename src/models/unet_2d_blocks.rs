//! The blocks of diffusers' UNets.
//! Source: `diffusers/models/unets/unet_2d_blocks.py`.

use crate::base::Result;
use crate::models::resnet_block_2d::{Resample, ResnetBlock2D, ResnetConfig, Sampler, TimeEmbedded};
use crate::models::transformer_2d::{Transformer2DModel, TransformerConfig};
use crate::nn::Attention;
use crate::nn::attention::AttentionConfig;
use crate::plan::{Tape, Tensor};
use crate::weights::Scope;

/// What mixes positions after a residual block.
#[derive(Clone, Debug)]
pub enum MixerConfig {
    None,
    Attention(AttentionConfig),
    /// Of each residual block its own number of layers.
    Transformer(TransformerConfig, Vec<usize>),
}

/// One block of a UNet.
#[derive(Clone, Debug)]
pub struct BlockConfig {
    pub resnet: ResnetConfig,
    /// Residual blocks.
    pub layers: usize,
    pub mixer: MixerConfig,
    /// Change of resolution by a residual block in place of a convolution.
    pub resnet_resample: bool,
    /// Of the convolution that halves the resolution.
    pub downsample_padding: usize,
}

/// What the blocks take beside the image.
#[derive(Clone, Copy, Debug)]
pub struct Conditioning {
    pub temb: TimeEmbedded,
    /// `[N, L, D]`, for cross-attention.
    pub tokens: Option<Tensor>,
}

enum Mixer {
    Attention(Attention),
    Transformer(Transformer2DModel),
}

impl Mixer {
    /// That of residual block `i` of the block in `scope`.
    fn load(scope: &Scope, config: &MixerConfig, i: usize) -> Option<Mixer> {
        let scope = scope.child(&format!("attentions.{i}"));
        match config {
            MixerConfig::None => None,
            MixerConfig::Attention(config) => Some(Mixer::Attention(Attention::load(&scope, config))),
            MixerConfig::Transformer(config, layers) => Some(Mixer::Transformer(Transformer2DModel::load(&scope, config, layers.get(i).copied().unwrap_or(1)))),
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor, given: &Conditioning) -> Result<Tensor> {
        match self {
            Mixer::Attention(attention) => attention.forward(t, x),
            Mixer::Transformer(transformer) => transformer.forward(t, x, given.tokens),
        }
    }
}

/// A residual block and what mixes positions behind it.
struct Layer {
    resnet: ResnetBlock2D,
    mixer: Option<Mixer>,
}

impl Layer {
    fn load(scope: &Scope, c: &BlockConfig, i: usize, inputs: usize, outputs: usize) -> Layer {
        let resnet = ResnetBlock2D::load(&scope.child(&format!("resnets.{i}")), &c.resnet, inputs, outputs, Resample::None);
        Layer { resnet, mixer: Mixer::load(scope, &c.mixer, i) }
    }

    fn forward(&self, t: &mut Tape, x: Tensor, given: &Conditioning) -> Result<Tensor> {
        let h = self.resnet.forward(t, x, Some(given.temb))?;
        match &self.mixer {
            Some(mixer) => mixer.forward(t, h, given),
            None => Ok(h),
        }
    }
}

/// Residual blocks, each perhaps with attention behind it, then half the resolution.
/// `DownBlock2D`, `AttnDownBlock2D`, `CrossAttnDownBlock2D`, `ResnetDownsampleBlock2D`.
pub struct DownBlock {
    name: String,
    layers: Vec<Layer>,
    downsampler: Option<Sampler>,
}

impl DownBlock {
    pub fn load(scope: &Scope, c: &BlockConfig, inputs: usize, outputs: usize, downsample: bool) -> DownBlock {
        let layer = |i: usize| Layer::load(scope, c, i, if i == 0 { inputs } else { outputs }, outputs);
        let sampler = || {
            let scope = scope.child("downsamplers.0");
            if c.resnet_resample { Sampler::resnet(&scope, &c.resnet, outputs, Resample::Down) } else { Sampler::down(&scope, outputs, c.downsample_padding) }
        };
        DownBlock { name: scope.name().to_string(), layers: (0..c.layers).map(layer).collect(), downsampler: downsample.then(sampler) }
    }

    /// Appends each state that the up path will take to `skips`.
    pub fn forward(&self, t: &mut Tape, x: Tensor, given: &Conditioning, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let mut h = x;
            for layer in &self.layers {
                h = layer.forward(t, h, given)?;
                skips.push(h);
            }
            if let Some(downsampler) = &self.downsampler {
                h = downsampler.forward(t, h, Some(given.temb))?;
                skips.push(h);
            }
            Ok(h)
        })
    }
}

/// Residual block, attention, residual block; or the first alone.
/// `UNetMidBlock2D`, `UNetMidBlock2DCrossAttn`.
pub struct MidBlock {
    name: String,
    first: Layer,
    second: Option<ResnetBlock2D>,
}

impl MidBlock {
    /// `c.layers`: 2, or 1 for the first residual block alone.
    pub fn load(scope: &Scope, c: &BlockConfig, channels: usize) -> MidBlock {
        let second = || ResnetBlock2D::load(&scope.child("resnets.1"), &c.resnet, channels, channels, Resample::None);
        MidBlock { name: scope.name().to_string(), first: Layer::load(scope, c, 0, channels, channels), second: (c.layers > 1).then(second) }
    }

    pub fn forward(&self, t: &mut Tape, x: Tensor, given: &Conditioning) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.first.forward(t, x, given)?;
            match &self.second {
                Some(resnet) => resnet.forward(t, h, Some(given.temb)),
                None => Ok(h),
            }
        })
    }
}

/// Residual blocks over what the down path left, each perhaps with attention, then twice the resolution.
/// `UpBlock2D`, `AttnUpBlock2D`, `CrossAttnUpBlock2D`, `ResnetUpsampleBlock2D`.
pub struct UpBlock {
    name: String,
    layers: Vec<Layer>,
    upsampler: Option<Sampler>,
}

/// Channels of an up block: of what comes in, of the block, and of the last state that it takes from the down path.
#[derive(Clone, Copy, Debug)]
pub struct UpChannels {
    pub previous: usize,
    pub outputs: usize,
    pub last_skip: usize,
}

impl UpChannels {
    /// Of block `i` of the up path, when the down path's blocks have `down` channels.
    pub fn of(down: &[usize], i: usize) -> UpChannels {
        let at = |i: usize| down[down.len() - 1 - i.min(down.len() - 1)];
        UpChannels { previous: at(i.saturating_sub(1)), outputs: at(i), last_skip: at(i + 1) }
    }
}

impl UpBlock {
    pub fn load(scope: &Scope, c: &BlockConfig, channels: UpChannels, upsample: bool) -> UpBlock {
        let UpChannels { previous, outputs, last_skip } = channels;
        let layer = |i: usize| {
            let skip = if i + 1 == c.layers { last_skip } else { outputs };
            Layer::load(scope, c, i, if i == 0 { previous } else { outputs } + skip, outputs)
        };
        let sampler = || {
            let scope = scope.child("upsamplers.0");
            if c.resnet_resample { Sampler::resnet(&scope, &c.resnet, outputs, Resample::Up) } else { Sampler::up(&scope, outputs) }
        };
        UpBlock { name: scope.name().to_string(), layers: (0..c.layers).map(layer).collect(), upsampler: upsample.then(sampler) }
    }

    /// Takes as many states from the end of `skips` as it has residual blocks.
    pub fn forward(&self, t: &mut Tape, x: Tensor, given: &Conditioning, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let mut h = x;
            for layer in &self.layers {
                let skip = skips.pop().ok_or_else(|| t.mismatch("the down path left no state for this block".to_string()))?;
                h = t.concat(h, skip)?;
                h = layer.forward(t, h, given)?;
            }
            match &self.upsampler {
                Some(upsampler) => upsampler.forward(t, h, Some(given.temb)),
                None => Ok(h),
            }
        })
    }
}
