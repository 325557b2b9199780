//! Encoder and decoder of an `AutoencoderKL` or `VQModel`.
//! Source: `diffusers/models/autoencoders/vae.py`, `unets/unet_2d_blocks.py`, `resnet.py`, `downsampling.py`, `upsampling.py`.

use crate::base::Result;
use crate::models::autoencoder_config::AutoencoderConfig;
use crate::nn::attention::AttentionConfig;
use crate::nn::{Attention, Conv2d, GroupNorm};
use crate::ops::activation::Function;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::plan::{Tape, Tensor};
use crate::weights::Scope;

/// Of every norm.
const EPS: f32 = 1e-6;

/// x + conv2(act(norm2(conv1(act(norm1(x)))))); a 1x1 convolution of x where the channels change. `ResnetBlock2D` without time.
struct ResnetBlock {
    name: String,
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    act: Function,
}

impl ResnetBlock {
    fn load(scope: &Scope, c: &AutoencoderConfig, inputs: usize, outputs: usize) -> ResnetBlock {
        let norm = |name: &str, channels| GroupNorm::load(&scope.child(name), channels, c.norm_num_groups, EPS);
        let conv = |name: &str, inputs| Conv2d::load(&scope.child(name), inputs, outputs, 3, Geometry::padded(1));
        let shortcut = || Conv2d::load(&scope.child("conv_shortcut"), inputs, outputs, 1, Geometry::default());
        ResnetBlock {
            name: scope.name().to_string(),
            norm1: norm("norm1", inputs),
            conv1: conv("conv1", inputs),
            norm2: norm("norm2", outputs),
            conv2: conv("conv2", outputs),
            conv_shortcut: (inputs != outputs).then(shortcut),
            act: c.act_fn,
        }
    }

    /// x: `[N, H, W, I]`.
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.norm1.activated(t, x, self.act)?;
            let h = self.conv1.forward(t, h)?;
            let h = self.norm2.activated(t, h, self.act)?;
            let h = self.conv2.forward(t, h)?;
            let x = match &self.conv_shortcut {
                Some(conv) => conv.forward(t, x)?,
                None => x,
            };
            t.add(x, h)
        })
    }
}

/// One head of all channels.
fn attention(scope: &Scope, c: &AutoencoderConfig, channels: usize) -> Attention {
    Attention::load(scope, &AttentionConfig { channels, head_dim: channels, norm_groups: Some(c.norm_num_groups), eps: EPS, rescale_output_factor: 1.0 })
}

/// A change of resolution by two: `downsamplers.0` or `upsamplers.0`.
enum Sampler {
    /// A strided convolution with one row and column of zeros after the last.
    Down(Conv2d),
    /// Nearest neighbour, then a convolution.
    Up(Conv2d),
}

/// Residual blocks, each perhaps with attention behind it, then perhaps another resolution: `DownEncoderBlock2D`,
/// `AttnDownEncoderBlock2D`, `UpDecoderBlock2D`, `AttnUpDecoderBlock2D`.
struct Block {
    name: String,
    resnets: Vec<ResnetBlock>,
    /// Empty, or one per residual block.
    attentions: Vec<Attention>,
    sampler: Option<Sampler>,
    /// The sampler's module.
    sampler_name: &'static str,
}

impl Block {
    fn load(scope: &Scope, c: &AutoencoderConfig, layers: usize, [inputs, outputs]: [usize; 2], has_attention: bool) -> Block {
        let resnet = |i: usize| ResnetBlock::load(&scope.child(&format!("resnets.{i}")), c, if i == 0 { inputs } else { outputs }, outputs);
        let attentions = if has_attention { layers } else { 0 };
        Block {
            name: scope.name().to_string(),
            resnets: (0..layers).map(resnet).collect(),
            attentions: (0..attentions).map(|i| attention(&scope.child(&format!("attentions.{i}")), c, outputs)).collect(),
            sampler: None,
            sampler_name: "",
        }
    }

    fn down(self, scope: &Scope, channels: usize) -> Block {
        let geometry = Geometry { padding: [0, 1, 0, 1], ..Geometry::default().strided(2) };
        let conv = Conv2d::load(&scope.child("downsamplers.0.conv").named("conv"), channels, channels, 3, geometry);
        Block { sampler: Some(Sampler::Down(conv)), sampler_name: "downsamplers.0", ..self }
    }

    fn up(self, scope: &Scope, channels: usize) -> Block {
        let conv = Conv2d::load(&scope.child("upsamplers.0.conv").named("conv"), channels, channels, 3, Geometry::padded(1));
        Block { sampler: Some(Sampler::Up(conv)), sampler_name: "upsamplers.0", ..self }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let mut h = x;
            for (i, resnet) in self.resnets.iter().enumerate() {
                h = resnet.forward(t, h)?;
                if let Some(attention) = self.attentions.get(i) {
                    h = attention.forward(t, h)?;
                }
            }
            match &self.sampler {
                None => Ok(h),
                Some(Sampler::Down(conv)) => t.scope(self.sampler_name, |t| conv.forward(t, h)),
                Some(Sampler::Up(conv)) => t.scope(self.sampler_name, |t| {
                    let h = t.upsample_nearest(h, 2)?;
                    conv.forward(t, h)
                }),
            }
        })
    }
}

/// Residual block, attention, residual block: `UNetMidBlock2D`.
struct MidBlock {
    resnets: [ResnetBlock; 2],
    attention: Option<Attention>,
}

impl MidBlock {
    fn load(scope: &Scope, c: &AutoencoderConfig, channels: usize) -> MidBlock {
        MidBlock {
            resnets: ["resnets.0", "resnets.1"].map(|name| ResnetBlock::load(&scope.child(name), c, channels, channels)),
            attention: c.mid_block_add_attention.then(|| attention(&scope.child("attentions.0"), c, channels)),
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope("mid_block", |t| {
            let mut h = self.resnets[0].forward(t, x)?;
            if let Some(attention) = &self.attention {
                h = attention.forward(t, h)?;
            }
            self.resnets[1].forward(t, h)
        })
    }
}

/// `conv_norm_out`, SiLU whatever act_fn says, `conv_out`.
struct Exit {
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Exit {
    fn load(scope: &Scope, c: &AutoencoderConfig, inputs: usize, outputs: usize) -> Exit {
        Exit {
            conv_norm_out: GroupNorm::load(&scope.child("conv_norm_out"), inputs, c.norm_num_groups, EPS),
            conv_out: Conv2d::load(&scope.child("conv_out"), inputs, outputs, 3, Geometry::padded(1)),
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let h = self.conv_norm_out.activated(t, x, Function::Silu)?;
        t.tap("conv_act", h);
        self.conv_out.forward(t, h)
    }
}

/// `encoder`: an image to what `conv_out` makes of its last block.
pub struct Encoder {
    in_channels: usize,
    downscale: usize,
    conv_in: Conv2d,
    down_blocks: Vec<Block>,
    mid_block: MidBlock,
    exit: Exit,
}

impl Encoder {
    /// `outputs`: channels of the result.
    pub fn load(scope: &Scope, c: &AutoencoderConfig, outputs: usize) -> Encoder {
        let channels = &c.block_out_channels;
        let last = channels.len() - 1;
        let block = |i: usize| {
            let scope = scope.child(&format!("down_blocks.{i}"));
            let block = Block::load(&scope, c, c.layers_per_block, [channels[i.saturating_sub(1)], channels[i]], c.down_blocks[i]);
            if i < last { block.down(&scope, channels[i]) } else { block }
        };
        Encoder {
            in_channels: c.in_channels,
            downscale: c.downscale(),
            conv_in: Conv2d::load(&scope.child("conv_in"), c.in_channels, channels[0], 3, Geometry::padded(1)),
            down_blocks: (0..=last).map(block).collect(),
            mid_block: MidBlock::load(&scope.child("mid_block"), c, channels[last]),
            exit: Exit::load(scope, c, channels[last], outputs),
        }
    }

    /// sample: `[N, H, W, in_channels]`, H and W multiples of the downscale; result `[N, H / downscale, W / downscale, outputs]`.
    pub fn forward(&self, t: &mut Tape, sample: Tensor) -> Result<Tensor> {
        let [n, h, w, c] = t.nhwc(sample)?;
        let multiple = self.downscale;
        if c != self.in_channels || n == 0 || h == 0 || w == 0 || !h.is_multiple_of(multiple) || !w.is_multiple_of(multiple) {
            let expected = format!("[N, {}, H, W] with H and W multiples of {multiple}", self.in_channels);
            return Err(t.mismatch(format!("sample is [{n}, {c}, {h}, {w}], expected {expected}")));
        }
        t.scope("encoder", |t| {
            let h = self.conv_in.forward(t, sample)?;
            let h = self.down_blocks.iter().try_fold(h, |h, block| block.forward(t, h))?;
            let h = self.mid_block.forward(t, h)?;
            self.exit.forward(t, h)
        })
    }
}

/// `decoder`: latents to an image.
pub struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<Block>,
    exit: Exit,
}

impl Decoder {
    pub fn load(scope: &Scope, c: &AutoencoderConfig) -> Decoder {
        let reversed: Vec<usize> = c.block_out_channels.iter().rev().copied().collect();
        let last = reversed.len() - 1;
        let block = |i: usize| {
            let scope = scope.child(&format!("up_blocks.{i}"));
            let block = Block::load(&scope, c, c.layers_per_block + 1, [reversed[i.saturating_sub(1)], reversed[i]], c.up_blocks[i]);
            if i < last { block.up(&scope, reversed[i]) } else { block }
        };
        Decoder {
            conv_in: Conv2d::load(&scope.child("conv_in"), c.latent_channels, reversed[0], 3, Geometry::padded(1)),
            mid_block: MidBlock::load(&scope.child("mid_block"), c, reversed[0]),
            up_blocks: (0..=last).map(block).collect(),
            exit: Exit::load(scope, c, reversed[last], c.out_channels),
        }
    }

    /// latents: `[N, H, W, latent_channels]`; result `[N, H downscale, W downscale, out_channels]`.
    pub fn forward(&self, t: &mut Tape, latents: Tensor) -> Result<Tensor> {
        t.scope("decoder", |t| {
            let h = self.conv_in.forward(t, latents)?;
            let h = self.mid_block.forward(t, h)?;
            let h = self.up_blocks.iter().try_fold(h, |h, block| block.forward(t, h))?;
            self.exit.forward(t, h)
        })
    }
}

/// Fails unless `latents` is `[N, H, W, channels]` with something in it.
pub fn check_latents(t: &Tape, latents: Tensor, channels: usize) -> Result<()> {
    let [n, h, w, c] = t.nhwc(latents)?;
    if c != channels || n * h * w == 0 {
        return Err(t.mismatch(format!("latents are [{n}, {c}, {h}, {w}], expected [N, {channels}, H, W]")));
    }
    Ok(())
}
