//! diffusers `UNet2DConditionModel`: the denoiser of Stable Diffusion 1, 2 and XL and of what was tuned from them.
//! Source: `diffusers/models/unets/unet_2d_condition.py`; Rombach et al., "High-Resolution Image Synthesis with Latent
//! Diffusion Models" (2022); Podell et al., "SDXL" (2023).

use std::path::Path;

use serde_json::{Value, json};

use crate::base::{DType, Error, Kind, Result};
use crate::models::model::{Architecture, Component, Denoiser, Inputs, Model, Output, Port, is_class};
use crate::models::resnet_block_2d::TimeEmbedded;
use crate::models::unet_2d::{is_unet, per_item};
use crate::models::unet_2d_blocks::{Conditioning, DownBlock, MidBlock, UpBlock, UpChannels};
use crate::models::unet_2d_condition_config::{ClassEmbedding, UNet2DConditionConfig};
use crate::models::unet_2d_config::TimeEmbedding;
use crate::nn::{Conv2d, Embedding, GroupNorm, Linear, TimestepEmbedding, TimestepProjection};
use crate::ops::conv2d::Conv2d as Geometry;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope};

/// Tokens that `inspect` and `bench` run with: those of a CLIP prompt.
const TOKENS: usize = 77;

const SAMPLE: &str = "sample";
const TIMESTEP: &str = "timestep";
const TOKEN_PORT: &str = "encoder_hidden_states";
const CLASS_LABELS: &str = "class_labels";
const TEXT_EMBEDS: &str = "text_embeds";
const TIME_IDS: &str = "time_ids";
const TIMESTEP_COND: &str = "timestep_cond";

/// `class_embedding`.
enum ClassLayer {
    Labels(Embedding),
    /// Of an embedded number.
    Timestep(TimestepEmbedding),
    Identity,
    Projection(TimestepEmbedding),
    SimpleProjection(Linear),
}

/// `add_time_proj` and `add_embedding`.
struct TextTimeLayers {
    add_time_proj: TimestepProjection,
    add_embedding: TimestepEmbedding,
}

/// The model and its weights.
pub struct UNet2DConditionModel {
    pub config: UNet2DConditionConfig,
    /// Numbers in all parameters.
    pub parameters: u64,
    conv_in: Conv2d,
    time_proj: TimestepProjection,
    time_embedding: TimestepEmbedding,
    encoder_hid_proj: Option<Linear>,
    class_embedding: Option<ClassLayer>,
    text_time: Option<TextTimeLayers>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet2DConditionModel {
    /// Loads `config.json` and the weights of a folder as diffusers saves it.
    pub fn load(folder: &Path) -> Result<UNet2DConditionModel> {
        let config = Config::read(&folder.join("config.json"))?;
        let scope = Scope::open(folder, "unet")?;
        Self::from_scope(&scope, UNet2DConditionConfig::from_config(&config)?)
    }

    /// Loads the weights of `scope`, its root, and closes its account.
    pub fn from_scope(scope: &Scope, c: UNet2DConditionConfig) -> Result<UNet2DConditionModel> {
        let channels = &c.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let time_proj = match c.time_embedding_type {
            TimeEmbedding::Fourier => TimestepProjection::fourier(&scope.child("time_proj"), c.time_embedding_dim / 2, false, c.flip_sin_to_cos),
            TimeEmbedding::Positional => positional("time_proj", first, &c)?,
        };
        let conv = |name: &str, inputs, outputs, kernel: usize| Conv2d::load(&scope.child(name), inputs, outputs, kernel, Geometry::padded(kernel / 2));
        let projected = c.encoder_hid_dim.map(|width| [width, c.cross_attention_dim().unwrap_or(width)]);
        let mut model = UNet2DConditionModel {
            conv_in: conv("conv_in", c.in_channels, first, c.conv_in_kernel),
            time_embedding: time_embedding(scope, &c, time_proj.width),
            encoder_hid_proj: projected.map(|[from, to]| Linear::load(&scope.child("encoder_hid_proj"), from, to)),
            class_embedding: class_layer(scope, &c, time_proj.width),
            text_time: text_time_layers(scope, &c)?,
            down_blocks: (0..channels.len())
                .map(|i| {
                    let scope = scope.child(&format!("down_blocks.{i}"));
                    DownBlock::load(&scope, &c.down_block(i), channels[i.saturating_sub(1)], channels[i], i + 1 < channels.len())
                })
                .collect(),
            mid_block: c.mid_block.map(|kind| MidBlock::load(&scope.child("mid_block"), &c.middle_block(kind), last)),
            up_blocks: (0..channels.len())
                .map(|i| UpBlock::load(&scope.child(&format!("up_blocks.{i}")), &c.up_block(i), UpChannels::of(channels, i), i + 1 < channels.len()))
                .collect(),
            conv_norm_out: GroupNorm::load(&scope.child("conv_norm_out"), first, c.norm_num_groups, c.norm_eps),
            conv_out: conv("conv_out", first, c.out_channels, c.conv_out_kernel),
            time_proj,
            config: c,
            parameters: 0,
        };
        model.parameters = scope.finish()?.parameters;
        Ok(model)
    }

    /// Inputs by the names of [`Model::ports`]: sample `[N, H, W, in_channels]`, timestep f32 `[N]`, or `[1]` for all,
    /// encoder_hidden_states `[N, L, D]` with any number of tokens, and what else the configuration asks for.
    /// Result: `[N, H, W, out_channels]`.
    pub fn forward(&self, t: &mut Tape, inputs: &Inputs) -> Result<Tensor> {
        let sample = inputs.get(SAMPLE)?;
        let batch = self.check_sample(t, sample)?;
        let timesteps = per_item(t, inputs.get(TIMESTEP)?, batch)?;
        let emb = self.embed(t, timesteps, inputs, batch)?;
        let temb = TimeEmbedded { plain: emb, activated: t.activation(emb, self.config.act_fn)? };
        let given = Conditioning { temb, tokens: self.tokens(t, inputs, batch)? };
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
        let h = self.conv_norm_out.activated(t, h, self.config.act_fn)?;
        t.tap("conv_act", h);
        self.conv_out.forward(t, h)
    }

    /// Time embedding with all that is added to it or put beside it, `[N, E]`.
    fn embed(&self, t: &mut Tape, timesteps: Tensor, inputs: &Inputs, batch: usize) -> Result<Tensor> {
        let h = self.time_proj.forward(t, timesteps)?;
        let condition = self.config.time_cond_proj_dim.zip(inputs.find(TIMESTEP_COND));
        let condition = condition.map(|(width, tensor)| expect(t, TIMESTEP_COND, tensor, DType::F32, &[batch, width])).transpose()?;
        let mut emb = self.time_embedding.conditioned(t, h, condition)?;
        if let Some(class) = self.class(t, inputs, batch)? {
            emb = if self.config.class_embeddings_concat { t.concat(emb, class)? } else { t.add(emb, class)? };
        }
        if let Some(layers) = &self.text_time {
            let added = self.text_and_time(t, layers, inputs, batch)?;
            emb = t.add(emb, added)?;
        }
        match self.config.time_embedding_act {
            Some(act) => t.activation(emb, act),
            None => Ok(emb),
        }
    }

    /// The embedded `class_labels`.
    fn class(&self, t: &mut Tape, inputs: &Inputs, batch: usize) -> Result<Option<Tensor>> {
        let (Some(layer), Some(port)) = (&self.class_embedding, self.class_port(batch)) else { return Ok(None) };
        let class = expect(t, CLASS_LABELS, inputs.get(CLASS_LABELS)?, port.dtype, &port.shape)?;
        Ok(Some(match layer {
            ClassLayer::Labels(table) => table.forward(t, class)?,
            ClassLayer::Timestep(embedding) => {
                let h = self.time_proj.forward(t, class)?;
                embedding.forward(t, h)?
            }
            ClassLayer::Identity => {
                t.tap("class_embedding", class);
                class
            }
            ClassLayer::Projection(embedding) => embedding.forward(t, class)?,
            ClassLayer::SimpleProjection(linear) => linear.forward(t, class)?,
        }))
    }

    /// add_embedding of text_embeds `[N, W]` beside every embedded number of time_ids `[N, K]`.
    fn text_and_time(&self, t: &mut Tape, layers: &TextTimeLayers, inputs: &Inputs, batch: usize) -> Result<Tensor> {
        let (text, ids) = (inputs.get(TEXT_EMBEDS)?, inputs.get(TIME_IDS)?);
        let [width, count] = [text, ids].map(|tensor| t.shape(tensor).last());
        let text = expect(t, TEXT_EMBEDS, text, DType::F32, &[batch, width])?;
        let ids = expect(t, TIME_IDS, ids, DType::F32, &[batch, count])?;
        let TextTimeLayers { add_time_proj, add_embedding } = layers;
        let input_dim = self.config.text_time.map_or(0, |c| c.input_dim);
        if width + count * add_time_proj.width != input_dim {
            let fact = format!("{TEXT_EMBEDS} of {width} and {count} {TIME_IDS} of {} each, expected {input_dim} in all", add_time_proj.width);
            return Err(t.mismatch(fact));
        }
        let ids = t.reshape(ids, &[batch * count])?;
        let times = add_time_proj.forward(t, ids)?;
        let times = t.reshape(times, &[batch, count * add_time_proj.width])?;
        let both = t.concat(text, times)?;
        add_embedding.forward(t, both)
    }

    /// The tokens that the blocks attend to.
    fn tokens(&self, t: &mut Tape, inputs: &Inputs, batch: usize) -> Result<Option<Tensor>> {
        let Some(width) = self.config.token_width() else { return Ok(None) };
        let tokens = inputs.get(TOKEN_PORT)?;
        let length = match *t.shape(tokens).dims() {
            [_, length, _] if length > 0 => length,
            _ => TOKENS,
        };
        let tokens = expect(t, TOKEN_PORT, tokens, DType::F32, &[batch, length, width])?;
        match &self.encoder_hid_proj {
            Some(projection) => projection.forward(t, tokens).map(Some),
            None => Ok(Some(tokens)),
        }
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

    fn class_port(&self, batch: usize) -> Option<Port> {
        match self.config.class_embedding {
            ClassEmbedding::None => None,
            ClassEmbedding::Labels(rows) => Some(Port::indices(CLASS_LABELS, &[batch], rows)),
            ClassEmbedding::Timestep => Some(Port::plain(CLASS_LABELS, &[batch])),
            ClassEmbedding::Identity => Some(Port::plain(CLASS_LABELS, &[batch, self.config.time_embedding_dim])),
            ClassEmbedding::Projection(width) | ClassEmbedding::SimpleProjection(width) => Some(Port::plain(CLASS_LABELS, &[batch, width])),
        }
    }
}

/// `tensor` when it is as expected.
fn expect(t: &Tape, name: &str, tensor: Tensor, dtype: DType, dims: &[usize]) -> Result<Tensor> {
    if t.dtype(tensor) == dtype && t.shape(tensor).dims() == dims {
        return Ok(tensor);
    }
    Err(t.mismatch(format!("{name} is {:?} {}, expected {dtype:?} {dims:?}", t.dtype(tensor), t.shape(tensor))))
}

fn positional(name: &str, width: usize, c: &UNet2DConditionConfig) -> Result<TimestepProjection> {
    let lost = || Error::new(Kind::Config, "freq_shift", format!("no frequency is left of {width} channels"));
    TimestepProjection::positional(name, width, c.flip_sin_to_cos, c.freq_shift).ok_or_else(lost)
}

fn time_embedding(scope: &Scope, c: &UNet2DConditionConfig, inputs: usize) -> TimestepEmbedding {
    let scope = scope.child("time_embedding");
    let embedding = TimestepEmbedding::load(&scope, inputs, c.time_embedding_dim).with_acts(c.act_fn, c.timestep_post_act);
    match c.time_cond_proj_dim {
        Some(width) => embedding.with_condition(&scope, width, inputs),
        None => embedding,
    }
}

fn class_layer(scope: &Scope, c: &UNet2DConditionConfig, time_width: usize) -> Option<ClassLayer> {
    let (scope, width) = (scope.child("class_embedding"), c.time_embedding_dim);
    match c.class_embedding {
        ClassEmbedding::None => None,
        ClassEmbedding::Labels(rows) => Some(ClassLayer::Labels(Embedding::load(&scope, rows, width))),
        ClassEmbedding::Timestep => Some(ClassLayer::Timestep(TimestepEmbedding::load(&scope, time_width, width).with_acts(c.act_fn, None))),
        ClassEmbedding::Identity => Some(ClassLayer::Identity),
        ClassEmbedding::Projection(inputs) => Some(ClassLayer::Projection(TimestepEmbedding::load(&scope, inputs, width))),
        ClassEmbedding::SimpleProjection(inputs) => Some(ClassLayer::SimpleProjection(Linear::load(&scope, inputs, width))),
    }
}

fn text_time_layers(scope: &Scope, c: &UNet2DConditionConfig) -> Result<Option<TextTimeLayers>> {
    let Some(text_time) = c.text_time else { return Ok(None) };
    let add_time_proj = positional("add_time_proj", text_time.time_embed_dim, c)?;
    let add_embedding = TimestepEmbedding::load(&scope.child("add_embedding"), text_time.input_dim, c.time_embedding_dim);
    Ok(Some(TextTimeLayers { add_time_proj, add_embedding }))
}

impl Model for UNet2DConditionModel {
    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let c = &self.config;
        let classes = match c.class_embedding {
            ClassEmbedding::Labels(rows) => json!(rows),
            _ => Value::Null,
        };
        vec![
            ("in_channels", json!(c.in_channels)),
            ("out_channels", json!(c.out_channels)),
            ("block_out_channels", json!(c.block_out_channels)),
            ("sample_size", json!(c.sample_size)),
            ("token_width", json!(c.token_width())),
            ("classes", classes),
        ]
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::Unet]
    }

    fn ports(&self, _: Component, batch: usize) -> Vec<Port> {
        let c = &self.config;
        let [h, w] = c.sample_size.unwrap_or([32usize.next_multiple_of(c.size_multiple()); 2]);
        let mut ports = vec![Port::image(SAMPLE, [batch, h, w, c.in_channels]), Port::plain(TIMESTEP, &[batch])];
        ports.extend(c.token_width().map(|width| Port::plain(TOKEN_PORT, &[batch, TOKENS, width])));
        ports.extend(self.class_port(batch));
        if let Some([text, ids]) = c.text_time_widths() {
            ports.extend([Port::plain(TEXT_EMBEDS, &[batch, text]), Port::plain(TIME_IDS, &[batch, ids])]);
        }
        ports.extend(c.time_cond_proj_dim.map(|width| Port::plain(TIMESTEP_COND, &[batch, width]).optional()));
        ports
    }

    fn record(&self, t: &mut Tape, _: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        Ok(vec![Output::image("sample", self.forward(t, inputs)?)])
    }

    fn denoiser(&self) -> Option<Denoiser> {
        let c = &self.config;
        Some(Denoiser { in_channels: c.in_channels, out_channels: c.out_channels, size_multiple: c.size_multiple(), sample_size: c.sample_size })
    }
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "diffusers UNet2DConditionModel",
    is_config: |config| is_class(config, "UNet2DConditionModel"),
    is_tensors: |store| is_unet(store) && store.names().any(|name| name.contains(".attn2.")),
    is_path: |_| false,
    load: |checkpoint| {
        let config = UNet2DConditionConfig::from_config(checkpoint.config()?)?;
        Ok(Box::new(UNet2DConditionModel::from_scope(&checkpoint.scope("unet")?, config)?))
    },
};
