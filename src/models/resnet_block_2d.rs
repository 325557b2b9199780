//! The residual block of diffusers' UNets and autoencoders, and the changes of resolution between blocks.
//! Source: `diffusers/models/resnet.py`, `downsampling.py`, `upsampling.py`.

use crate::base::Result;
use crate::nn::{Conv2d, GroupNorm, Linear};
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

/// The time embedding `[N, E]` as it is and through the model's activation: every residual block begins with that, once will do.
#[derive(Clone, Copy, Debug)]
pub struct TimeEmbedded {
    pub plain: Tensor,
    pub activated: Tensor,
}

/// What the residual blocks of a model have in common.
#[derive(Clone, Copy, Debug)]
pub struct ResnetConfig {
    /// Width of the time embedding; None: the block takes none.
    pub time_embedding_dim: Option<usize>,
    pub norm_groups: usize,
    pub eps: f32,
    pub act: Function,
    /// The time embedding scales and shifts; otherwise it is added.
    pub scale_shift: bool,
    /// The time embedding does not go through `act` first.
    pub skip_time_act: bool,
    /// The sum of both branches is divided by this.
    pub output_scale_factor: f32,
}

/// Two convolutions with the time embedding between them, and a shortcut past both.
pub struct ResnetBlock2D {
    name: String,
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    config: ResnetConfig,
    resample: Resample,
}

impl ResnetBlock2D {
    pub fn load(scope: &Scope, c: &ResnetConfig, inputs: usize, outputs: usize, resample: Resample) -> ResnetBlock2D {
        let norm = |name: &str, channels| GroupNorm::load(&scope.child(name), channels, c.norm_groups, c.eps);
        let conv = |name: &str, inputs| Conv2d::load(&scope.child(name), inputs, outputs, 3, Geometry::padded(1));
        let shortcut = || Conv2d::load(&scope.child("conv_shortcut"), inputs, outputs, 1, Geometry::default());
        let projected = if c.scale_shift { 2 * outputs } else { outputs };
        ResnetBlock2D {
            name: scope.name().to_string(),
            norm1: norm("norm1", inputs),
            conv1: conv("conv1", inputs),
            time_emb_proj: c.time_embedding_dim.map(|width| Linear::load(&scope.child("time_emb_proj"), width, projected)),
            norm2: norm("norm2", outputs),
            conv2: conv("conv2", outputs),
            conv_shortcut: (inputs != outputs).then(shortcut),
            config: *c,
            resample,
        }
    }

    /// x: `[N, H, W, I]`; temb: nothing, or what the block's projection takes.
    pub fn forward(&self, t: &mut Tape, x: Tensor, temb: Option<TimeEmbedded>) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.norm1.activated(t, x, self.config.act)?;
            let x = self.resample.apply(t, x)?;
            let h = self.resample.apply(t, h)?;
            let h = self.conv1.forward(t, h)?;
            let h = self.norm_with_time(t, h, temb)?;
            let h = self.conv2.forward(t, h)?;
            let x = match &self.conv_shortcut {
                Some(conv) => conv.forward(t, x)?,
                None => x,
            };
            let y = t.add(x, h)?;
            let factor = self.config.output_scale_factor;
            if factor == 1.0 { Ok(y) } else { t.affine(y, 1.0 / factor, 0.0) }
        })
    }

    /// act(norm2(h + temb)), or act(norm2(h) (1 + scale) + shift) with scale and shift the halves of temb.
    fn norm_with_time(&self, t: &mut Tape, h: Tensor, temb: Option<TimeEmbedded>) -> Result<Tensor> {
        let act = self.config.act;
        let Some(projection) = &self.time_emb_proj else { return self.norm2.activated(t, h, act) };
        let temb = temb.ok_or_else(|| t.mismatch("no time embedding, expected one".to_string()))?;
        let temb = projection.forward(t, if self.config.skip_time_act { temb.plain } else { temb.activated })?;
        if !self.config.scale_shift {
            let h = t.add_channel(h, temb)?;
            return self.norm2.activated(t, h, act);
        }
        let h = self.norm2.forward(t, h)?;
        let is_silu = act == Function::Silu;
        let h = t.modulate(h, temb, is_silu)?;
        if is_silu { Ok(h) } else { t.activation(h, act) }
    }
}

/// `downsamplers.0` or `upsamplers.0`.
pub enum Sampler {
    DownConv { name: String, conv: Conv2d },
    UpConv { name: String, conv: Conv2d },
    Resnet(Box<ResnetBlock2D>),
}

impl Sampler {
    /// A convolution of stride 2. padding 0: one row and column of zeros after the last, 1: one on each side.
    pub fn down(scope: &Scope, channels: usize, padding: usize) -> Sampler {
        let geometry = Geometry { padding: [padding, 1, padding, 1], ..Geometry::default().strided(2) };
        Sampler::DownConv { name: scope.name().to_string(), conv: Conv2d::load(&scope.child("conv"), channels, channels, 3, geometry) }
    }

    /// Nearest neighbour and a convolution.
    pub fn up(scope: &Scope, channels: usize) -> Sampler {
        Sampler::UpConv { name: scope.name().to_string(), conv: Conv2d::load(&scope.child("conv"), channels, channels, 3, Geometry::padded(1)) }
    }

    /// A residual block that changes the resolution.
    pub fn resnet(scope: &Scope, c: &ResnetConfig, channels: usize, resample: Resample) -> Sampler {
        Sampler::Resnet(Box::new(ResnetBlock2D::load(scope, c, channels, channels, resample)))
    }

    pub fn forward(&self, t: &mut Tape, x: Tensor, temb: Option<TimeEmbedded>) -> Result<Tensor> {
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
