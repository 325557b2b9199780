//! diffusers `UNet2DModel`: the noise that a sample holds at a timestep.
//! Source: `diffusers/models/unets/unet_2d.py`; Ho et al., "Denoising Diffusion Probabilistic Models" (2020), appendix B.

use std::path::Path;

use serde_json::{Value, json};

use crate::base::{Array, DType, Error, Kind, Result, Shape};
use crate::models::model::{Architecture, Component, Denoiser, Inputs, Model, Output, Port, is_class};
use crate::models::resnet_block_2d::TimeEmbedded;
use crate::models::unet_2d_blocks::{Conditioning, DownBlock, MidBlock, UpBlock, UpChannels};
use crate::models::unet_2d_config::{ClassEmbed, TimeEmbedding, UNet2DConfig};
use crate::nn::{Conv2d, Embedding, GroupNorm, TimestepEmbedding, TimestepProjection};
use crate::ops::activation::Function;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::plan::{Tape, Tensor, Weight};
use crate::weights::{Config, Scope, Store};

/// `class_embedding`.
enum ClassEmbedding {
    Labels(Embedding),
    Timestep(TimestepEmbedding),
    Identity,
}

/// What a model takes as its class: the shape and type of the tensor that [`UNet2DModel::forward`] wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassInput {
    /// u32 `[N]`, each below the number.
    Labels(usize),
    /// f32 `[N]`.
    Timestep,
    /// f32 `[N, width]`.
    Vector(usize),
}

/// The model and its weights.
pub struct UNet2DModel {
    pub config: UNet2DConfig,
    /// Numbers in all parameters.
    pub parameters: u64,
    conv_in: Conv2d,
    time_proj: TimestepProjection,
    time_embedding: TimestepEmbedding,
    class_embedding: Option<ClassEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet2DModel {
    /// Loads `config.json` and the weights of a folder as diffusers saves it.
    pub fn load(folder: &Path) -> Result<UNet2DModel> {
        let config = Config::read(&folder.join("config.json"))?;
        let scope = Scope::open(folder, "unet")?;
        Self::from_scope(&scope, UNet2DConfig::from_config(&config)?)
    }

    /// Loads the weights of `scope`, its root, and closes its account.
    pub fn from_scope(scope: &Scope, c: UNet2DConfig) -> Result<UNet2DModel> {
        let channels = &c.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let time_proj = match c.time_embedding_type {
            TimeEmbedding::Fourier => TimestepProjection::fourier(&scope.child("time_proj"), first, true, false),
            TimeEmbedding::Positional => TimestepProjection::positional("time_proj", first, c.flip_sin_to_cos, c.freq_shift)
                .ok_or_else(|| Error::new(Kind::Config, "freq_shift", format!("no frequency is left of {first} channels")))?,
        };
        let embedding = |name: &str| TimestepEmbedding::load(&scope.child(name), time_proj.width, c.time_embedding_dim);
        let mut model = UNet2DModel {
            conv_in: Conv2d::load(&scope.child("conv_in"), c.in_channels, first, 3, Geometry::padded(1)),
            time_embedding: embedding("time_embedding"),
            class_embedding: match c.class_embed {
                ClassEmbed::None => None,
                ClassEmbed::Labels(rows) => Some(ClassEmbedding::Labels(Embedding::load(&scope.child("class_embedding"), rows, c.time_embedding_dim))),
                ClassEmbed::Timestep => Some(ClassEmbedding::Timestep(embedding("class_embedding"))),
                ClassEmbed::Identity => Some(ClassEmbedding::Identity),
            },
            down_blocks: down_blocks(scope, &c),
            mid_block: c.mid_block.then(|| MidBlock::load(&scope.child("mid_block"), &c.middle_block(last), last)),
            up_blocks: up_blocks(scope, &c),
            conv_norm_out: GroupNorm::load(&scope.child("conv_norm_out"), first, c.norm_num_groups, c.norm_eps),
            conv_out: Conv2d::load(&scope.child("conv_out"), first, c.out_channels, 3, Geometry::padded(1)),
            time_proj,
            config: c,
            parameters: 0,
        };
        model.parameters = scope.finish()?.parameters;
        Ok(model)
    }

    /// What `class` of [`UNet2DModel::forward`] must be; None: nothing.
    pub fn class_input(&self) -> Option<ClassInput> {
        match self.config.class_embed {
            ClassEmbed::None => None,
            ClassEmbed::Labels(rows) => Some(ClassInput::Labels(rows)),
            ClassEmbed::Timestep => Some(ClassInput::Timestep),
            ClassEmbed::Identity => Some(ClassInput::Vector(self.config.time_embedding_dim)),
        }
    }

    /// sample: `[N, H, W, in_channels]`; timesteps: f32 `[N]`, or `[1]` for all; class: as [`UNet2DModel::class_input`]
    /// says. Result: `[N, H, W, out_channels]`.
    pub fn forward(&self, t: &mut Tape, sample: Tensor, timesteps: Tensor, class: Option<Tensor>) -> Result<Tensor> {
        let batch = self.check_sample(t, sample)?;
        let timesteps = per_item(t, timesteps, batch)?;
        let emb = self.embed(t, timesteps, class, batch)?;
        let given = Conditioning { temb: TimeEmbedded { plain: emb, activated: t.activation(emb, self.config.act_fn)? }, tokens: None };
        let x = if self.config.center_input_sample { t.affine(sample, 2.0, -1.0)? } else { sample };
        let mut h = self.conv_in.forward(t, x)?;
        let mut skips = vec![h];
        for block in &self.down_blocks {
            h = block.forward(t, h, &given, &mut skips)?;
        }
        if let Some(block) = &self.mid_block {
            h = block.forward(t, h, &given)?;
        }
        for block in &self.up_blocks {
            h = block.forward(t, h, &given, &mut skips)?;
        }
        let h = self.conv_norm_out.activated(t, h, Function::Silu)?;
        t.tap("conv_act", h);
        let y = self.conv_out.forward(t, h)?;
        match self.config.time_embedding_type {
            TimeEmbedding::Fourier => t.divide(y, timesteps),
            TimeEmbedding::Positional => Ok(y),
        }
    }

    /// Time embedding plus class embedding, `[N, E]`.
    fn embed(&self, t: &mut Tape, timesteps: Tensor, class: Option<Tensor>, batch: usize) -> Result<Tensor> {
        let h = self.time_proj.forward(t, timesteps)?;
        let emb = self.time_embedding.forward(t, h)?;
        self.check_class(t, class, batch)?;
        let (Some(embedding), Some(class)) = (&self.class_embedding, class) else { return Ok(emb) };
        let class = match embedding {
            ClassEmbedding::Labels(table) => table.forward(t, class)?,
            ClassEmbedding::Timestep(embedding) => {
                let h = self.time_proj.forward(t, class)?;
                embedding.forward(t, h)?
            }
            ClassEmbedding::Identity => {
                t.tap("class_embedding", class);
                class
            }
        };
        t.add(emb, class)
    }

    fn check_sample(&self, t: &Tape, sample: Tensor) -> Result<usize> {
        let [n, h, w, c] = t.nhwc(sample)?;
        let multiple = self.config.size_multiple();
        if c != self.config.in_channels || n == 0 || h == 0 || w == 0 || h % multiple != 0 || w % multiple != 0 {
            let expected = format!("[N, {}, H, W] with H and W multiples of {multiple}", self.config.in_channels);
            return Err(t.mismatch(format!("sample is [{n}, {c}, {h}, {w}], expected {expected}")));
        }
        Ok(n)
    }

    fn check_class(&self, t: &Tape, class: Option<Tensor>, batch: usize) -> Result<()> {
        let (expected, dtype) = match self.class_input() {
            None => (None, DType::F32),
            Some(ClassInput::Labels(_)) => (Some(vec![batch]), DType::U32),
            Some(ClassInput::Timestep) => (Some(vec![batch]), DType::F32),
            Some(ClassInput::Vector(width)) => (Some(vec![batch, width]), DType::F32),
        };
        let found = class.map(|class| (t.shape(class).dims().to_vec(), t.dtype(class)));
        if found == expected.clone().map(|shape| (shape, dtype)) {
            return Ok(());
        }
        let words = |shape: Option<Vec<usize>>, dtype| shape.map_or("none".to_string(), |shape| format!("{dtype:?} {shape:?}"));
        let (found, dtype_found) = found.map_or((None, dtype), |(shape, dtype)| (Some(shape), dtype));
        Err(t.mismatch(format!("class is {}, expected {}", words(found, dtype_found), words(expected, dtype))))
    }
}

/// `[N]` as it is, `[1]` repeated.
pub(super) fn per_item(t: &mut Tape, timesteps: Tensor, batch: usize) -> Result<Tensor> {
    match *t.shape(timesteps).dims() {
        [n] if n == batch => Ok(timesteps),
        // One product with ones: exact.
        [1] => {
            let ones = Weight::new("ones", Array { shape: Shape::new(&[1, batch]), data: vec![1.0; batch] });
            let ones = t.weight(&ones);
            t.linear(timesteps, ones, None)
        }
        _ => Err(t.mismatch(format!("timesteps are {}, expected [{batch}] or [1]", t.shape(timesteps)))),
    }
}

fn down_blocks(scope: &Scope, c: &UNet2DConfig) -> Vec<DownBlock> {
    let channels = &c.block_out_channels;
    let block = |i: usize| {
        let inputs = channels[i.saturating_sub(1)];
        DownBlock::load(&scope.child(&format!("down_blocks.{i}")), &c.down_block(i), inputs, channels[i], i + 1 < channels.len())
    };
    (0..channels.len()).map(block).collect()
}

fn up_blocks(scope: &Scope, c: &UNet2DConfig) -> Vec<UpBlock> {
    let channels = &c.block_out_channels;
    let block = |i: usize| UpBlock::load(&scope.child(&format!("up_blocks.{i}")), &c.up_block(i), UpChannels::of(channels, i), i + 1 < channels.len());
    (0..channels.len()).map(block).collect()
}

impl Model for UNet2DModel {
    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let c = &self.config;
        let classes = match c.class_embed {
            ClassEmbed::Labels(rows) => json!(rows),
            _ => Value::Null,
        };
        vec![
            ("in_channels", json!(c.in_channels)),
            ("out_channels", json!(c.out_channels)),
            ("block_out_channels", json!(c.block_out_channels)),
            ("sample_size", json!(c.sample_size)),
            ("classes", classes),
        ]
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::Unet]
    }

    fn ports(&self, _: Component, batch: usize) -> Vec<Port> {
        let c = &self.config;
        let [h, w] = c.sample_size.unwrap_or([32usize.next_multiple_of(c.size_multiple()); 2]);
        let mut ports = vec![Port::image("sample", [batch, h, w, c.in_channels]), Port::plain("timestep", &[batch])];
        ports.extend(self.class_input().map(|class| match class {
            ClassInput::Labels(rows) => Port::indices("class_labels", &[batch], rows),
            ClassInput::Timestep => Port::plain("class_labels", &[batch]),
            ClassInput::Vector(width) => Port::plain("class_labels", &[batch, width]),
        }));
        ports
    }

    fn record(&self, t: &mut Tape, _: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        let class = self.class_input().map(|_| inputs.get("class_labels")).transpose()?;
        let y = self.forward(t, inputs.get("sample")?, inputs.get("timestep")?, class)?;
        Ok(vec![Output::image("sample", y)])
    }

    fn denoiser(&self) -> Option<Denoiser> {
        let c = &self.config;
        Some(Denoiser { in_channels: c.in_channels, out_channels: c.out_channels, size_multiple: c.size_multiple(), sample_size: c.sample_size })
    }
}

/// Whether tensors are of a diffusers UNet of whichever kind.
pub(super) fn is_unet(store: &Store) -> bool {
    ["conv_in.weight", "time_embedding.linear_1.weight", "conv_norm_out.weight"].iter().all(|name| store.shape(name).is_some())
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "diffusers UNet2DModel",
    is_config: |config| is_class(config, "UNet2DModel"),
    is_tensors: |store| is_unet(store) && !store.names().any(|name| name.contains(".attn2.")),
    is_path: |_| false,
    load: |checkpoint| Ok(Box::new(UNet2DModel::from_scope(&checkpoint.scope("unet")?, UNet2DConfig::from_config(checkpoint.config()?)?)?)),
};
