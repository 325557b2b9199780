//! The config.json of a diffusers `UNet2DConditionModel`, every field of it, with diffusers' own defaults.
//! Source: `diffusers/models/unets/unet_2d_condition.py`.

use std::path::Path;

use serde_json::Value;

use crate::base::Result;
use crate::models::resnet_block_2d::ResnetConfig;
use crate::models::transformer_2d::TransformerConfig;
use crate::models::unet_2d_blocks::{BlockConfig, MixerConfig};
use crate::models::unet_2d_config::{
    ACTIVATIONS, ATTENTION, BlockType, MAX_BLOCKS, MAX_CHANNELS, MAX_LAYERS, Mixing, PLAIN, RESNET, TimeEmbedding, sample_size,
};
use crate::nn::attention::AttentionConfig;
use crate::ops::activation::Function;
use crate::weights::Config;

/// Bound of a hostile file: transformer blocks of the whole model. SDXL has 70.
const MAX_TRANSFORMER_BLOCKS: usize = 1024;
/// Numbers in `time_ids` of SDXL: original size, crop, target size.
const TIME_IDS: usize = 6;
/// Those of its refiner: original size, crop, aesthetic score.
const REFINER_TIME_IDS: usize = 5;

const CROSS_ATTENTION: BlockType = BlockType { mixing: Mixing::CrossAttention, resnet_resample: false };
const DOWN_BLOCKS: [(&str, BlockType); 4] =
    [("CrossAttnDownBlock2D", CROSS_ATTENTION), ("DownBlock2D", PLAIN), ("AttnDownBlock2D", ATTENTION), ("ResnetDownsampleBlock2D", RESNET)];
const UP_BLOCKS: [(&str, BlockType); 4] =
    [("CrossAttnUpBlock2D", CROSS_ATTENTION), ("UpBlock2D", PLAIN), ("AttnUpBlock2D", ATTENTION), ("ResnetUpsampleBlock2D", RESNET)];

/// The block between the two paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MidBlockType {
    /// Residual block, transformer, residual block.
    CrossAttention,
    /// One residual block.
    Resnet,
}

/// What conditions the model beside timestep and tokens: `class_labels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassEmbedding {
    None,
    /// Labels below this number.
    Labels(usize),
    /// A number per item, embedded as a timestep is.
    Timestep,
    /// A vector per item as wide as the time embedding.
    Identity,
    /// A vector per item of this width through two linear layers.
    Projection(usize),
    /// The same through one.
    SimpleProjection(usize),
}

/// addition_embed_type `text_time`: `text_embeds` and the embedded `time_ids` side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextTime {
    /// Width that each of the `time_ids` is embedded in.
    pub time_embed_dim: usize,
    /// Width of both together.
    pub input_dim: usize,
}

/// Transformer layers behind the residual blocks of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Depth {
    /// As many behind each.
    Same(usize),
    Each(Vec<usize>),
}

/// One step of the down path and the one that mirrors it.
#[derive(Clone, Debug, PartialEq)]
struct Level {
    channels: usize,
    layers: usize,
    /// Of transformers. diffusers calls it attention_head_dim.
    heads: usize,
    cross_attention_dim: usize,
    only_cross_attention: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UNet2DConditionConfig {
    /// Rows and columns of the samples it was trained on. It runs on others.
    pub sample_size: Option<[usize; 2]>,
    pub in_channels: usize,
    pub out_channels: usize,
    pub center_input_sample: bool,
    pub time_embedding_type: TimeEmbedding,
    /// Width of the time embedding.
    pub time_embedding_dim: usize,
    /// Through this before the blocks' own activation.
    pub time_embedding_act: Option<Function>,
    pub timestep_post_act: Option<Function>,
    /// Width of `timestep_cond`, which the model runs without.
    pub time_cond_proj_dim: Option<usize>,
    pub freq_shift: f64,
    pub flip_sin_to_cos: bool,
    pub down_blocks: Vec<BlockType>,
    pub mid_block: Option<MidBlockType>,
    pub up_blocks: Vec<BlockType>,
    pub block_out_channels: Vec<usize>,
    pub mid_block_scale_factor: f32,
    pub downsample_padding: usize,
    pub act_fn: Function,
    pub norm_num_groups: usize,
    pub norm_eps: f32,
    pub scale_shift: bool,
    /// Of the blocks that change the resolution by residual blocks only.
    pub resnet_skip_time_act: bool,
    pub resnet_out_scale_factor: f32,
    pub linear_projection: bool,
    pub conv_in_kernel: usize,
    pub conv_out_kernel: usize,
    pub class_embedding: ClassEmbedding,
    /// The class embedding stands beside the time embedding; otherwise it is added.
    pub class_embeddings_concat: bool,
    pub text_time: Option<TextTime>,
    /// Width of `encoder_hidden_states` before `encoder_hid_proj`.
    pub encoder_hid_dim: Option<usize>,
    levels: Vec<Level>,
    down_depths: Vec<Depth>,
    /// In the order of the up path.
    up_depths: Vec<Depth>,
}

impl UNet2DConditionConfig {
    /// Reads a config.json.
    pub fn read(path: &Path) -> Result<UNet2DConditionConfig> {
        Self::from_config(&Config::read(path)?)
    }

    /// Fails at the first field that is unknown, of another type, or asks for what is not supported.
    pub fn from_config(c: &Config) -> Result<UNet2DConditionConfig> {
        c.require("_class_name", "UNet2DConditionModel")?;
        let channels = 1..=MAX_CHANNELS;
        let levels = levels(c)?;
        let block_out_channels: Vec<usize> = levels.iter().map(|level| level.channels).collect();
        let (down_depths, up_depths) = depths(c, levels.len())?;
        let time = [("positional", TimeEmbedding::Positional), ("fourier", TimeEmbedding::Fourier)];
        let time_embedding_type = c.choice("time_embedding_type", Some(TimeEmbedding::Positional), &time)?;
        let time_width = if time_embedding_type == TimeEmbedding::Fourier { 2 } else { 4 } * block_out_channels[0];
        let down = [CROSS_ATTENTION, CROSS_ATTENTION, CROSS_ATTENTION, PLAIN];
        let up = [PLAIN, CROSS_ATTENTION, CROSS_ATTENTION, CROSS_ATTENTION];
        let middles = [("UNetMidBlock2DCrossAttn", MidBlockType::CrossAttention), ("UNetMidBlock2D", MidBlockType::Resnet)];
        let config = UNet2DConditionConfig {
            sample_size: sample_size(c)?,
            in_channels: c.integer("in_channels", 4, channels.clone())?,
            out_channels: c.integer("out_channels", 4, channels.clone())?,
            center_input_sample: c.flag("center_input_sample", false)?,
            time_embedding_type,
            time_embedding_dim: c.nullable_integer("time_embedding_dim", None, 0..=MAX_CHANNELS)?.filter(|&d| d > 0).unwrap_or(time_width),
            time_embedding_act: c.nullable_choice("time_embedding_act_fn", None, &ACTIVATIONS)?,
            timestep_post_act: c.nullable_choice("timestep_post_act", None, &ACTIVATIONS)?,
            time_cond_proj_dim: c.nullable_integer("time_cond_proj_dim", None, channels.clone())?,
            freq_shift: c.number("freq_shift", 0.0, 0.0..=1.0)?,
            flip_sin_to_cos: c.flag("flip_sin_to_cos", true)?,
            down_blocks: c.choices("down_block_types", Some(&down), &DOWN_BLOCKS, MAX_BLOCKS)?,
            mid_block: c.nullable_choice("mid_block_type", Some(MidBlockType::CrossAttention), &middles)?,
            up_blocks: c.choices("up_block_types", Some(&up), &UP_BLOCKS, MAX_BLOCKS)?,
            block_out_channels,
            mid_block_scale_factor: c.number("mid_block_scale_factor", 1.0, 1e-3..=1e3)? as f32,
            downsample_padding: c.integer("downsample_padding", 1, 0..=1)?,
            act_fn: c.choice("act_fn", Some(Function::Silu), &ACTIVATIONS)?,
            norm_num_groups: c.integer("norm_num_groups", 32, channels)?,
            norm_eps: c.number("norm_eps", 1e-5, 0.0..=1.0)? as f32,
            scale_shift: c.choice("resnet_time_scale_shift", Some(false), &[("default", false), ("scale_shift", true)])?,
            resnet_skip_time_act: c.flag("resnet_skip_time_act", false)?,
            resnet_out_scale_factor: c.number("resnet_out_scale_factor", 1.0, 1e-3..=1e3)? as f32,
            linear_projection: c.flag("use_linear_projection", false)?,
            conv_in_kernel: kernel(c, "conv_in_kernel")?,
            conv_out_kernel: kernel(c, "conv_out_kernel")?,
            class_embedding: class_embedding(c)?,
            class_embeddings_concat: c.flag("class_embeddings_concat", false)?,
            text_time: text_time(c)?,
            encoder_hid_dim: encoder_hid_dim(c)?,
            levels,
            down_depths,
            up_depths,
        };
        without_consequence(c)?;
        c.finish()?;
        config.check(c)
    }

    fn check(self, c: &Config) -> Result<UNet2DConditionConfig> {
        let count = self.levels.len();
        for (field, found) in [("down_block_types", self.down_blocks.len()), ("up_block_types", self.up_blocks.len())] {
            if found != count {
                return Err(c.error(field, format!("{found} blocks, expected {count} as block_out_channels has")));
            }
        }
        let half = (self.block_out_channels[0] / 2) as f64;
        if self.time_embedding_type == TimeEmbedding::Positional && (half - self.freq_shift) * half == 0.0 {
            return Err(
                c.error("freq_shift", format!("{} with {} channels in the first block leaves no frequency", self.freq_shift, self.block_out_channels[0]))
            );
        }
        if self.time_embedding_type == TimeEmbedding::Fourier && !self.time_embedding_dim.is_multiple_of(2) {
            return Err(c.error("time_embedding_dim", format!("{}, expected an even number for fourier", self.time_embedding_dim)));
        }
        if self.class_embeddings_concat && (self.class_embedding == ClassEmbedding::None || self.text_time.is_some()) {
            return Err(c.error("class_embeddings_concat", "true, expected false without a class embedding or with addition_embed_type"));
        }
        let widths: Vec<usize> = self.cross_attended().map(|level| level.cross_attention_dim).collect();
        if widths.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(c.error("cross_attention_dim", "differs between blocks, expected one width: all attend to the same tokens"));
        }
        if let Some(level) = self.cross_attended().find(|level| level.heads > level.channels) {
            return Err(c.error("attention_head_dim", format!("{} heads in a block of {} channels, expected at most these", level.heads, level.channels)));
        }
        self.check_depths(c)?;
        Ok(self)
    }

    fn check_depths(&self, c: &Config) -> Result<()> {
        let count = self.levels.len();
        let mut blocks = 0;
        for i in 0..count {
            let (down, up) = (self.levels[i].layers, self.levels[count - 1 - i].layers + 1);
            let rows = [("transformer_layers_per_block", &self.down_depths[i], down), ("reverse_transformer_layers_per_block", &self.up_depths[i], up)];
            for (field, depth, layers) in rows {
                match depth {
                    Depth::Same(depth) => blocks += depth * layers,
                    Depth::Each(list) if list.len() == layers => blocks += list.iter().sum::<usize>(),
                    Depth::Each(list) => return Err(c.error(field, format!("{list:?} for a block of {layers} layers, expected as many numbers"))),
                }
            }
        }
        if blocks > MAX_TRANSFORMER_BLOCKS {
            return Err(c.error("transformer_layers_per_block", format!("{blocks} transformer layers in all, expected at most {MAX_TRANSFORMER_BLOCKS}")));
        }
        Ok(())
    }

    /// The levels that attend to tokens, once for each block that does.
    fn cross_attended(&self) -> impl Iterator<Item = &Level> {
        let is_cross = |kind: &BlockType| kind.mixing == Mixing::CrossAttention;
        let down = self.levels.iter().zip(self.down_blocks.iter().map(is_cross));
        let up = self.levels.iter().rev().zip(self.up_blocks.iter().map(is_cross));
        let mid = self.levels.last().map(|level| (level, self.mid_block == Some(MidBlockType::CrossAttention)));
        down.chain(up).chain(mid).filter(|(_, is_cross)| *is_cross).map(|(level, _)| level)
    }

    /// Width of the tokens that the blocks attend to, after `encoder_hid_proj`; None: none does.
    pub fn cross_attention_dim(&self) -> Option<usize> {
        self.cross_attended().next().map(|level| level.cross_attention_dim)
    }

    /// Width of the input `encoder_hidden_states`; None: the model takes none.
    pub fn token_width(&self) -> Option<usize> {
        self.cross_attention_dim().map(|width| self.encoder_hid_dim.unwrap_or(width))
    }

    /// Rows and columns of a sample must be multiples of this: each block but the last halves them.
    pub fn size_multiple(&self) -> usize {
        1 << (self.levels.len() - 1)
    }

    /// Width of the embedding that the residual blocks take.
    pub fn blocks_time_embedding_dim(&self) -> usize {
        self.time_embedding_dim * if self.class_embeddings_concat { 2 } else { 1 }
    }

    /// Widths of `text_embeds` and `time_ids` as the published models have them. The configuration only tells their sum.
    pub fn text_time_widths(&self) -> Option<[usize; 2]> {
        let TextTime { time_embed_dim, input_dim } = self.text_time?;
        let text = |ids: usize| input_dim.checked_sub(ids * time_embed_dim).filter(|&width| width > 0);
        let is_refiner = text(REFINER_TIME_IDS).is_some() && text(REFINER_TIME_IDS) == self.cross_attention_dim();
        let ids = if is_refiner { REFINER_TIME_IDS } else { (1..=TIME_IDS).rev().find(|&ids| text(ids).is_some()).unwrap_or(0) };
        Some([input_dim.saturating_sub(ids * time_embed_dim), ids])
    }

    fn block(&self, level: &Level, kind: BlockType, layers: usize, depth: &Depth) -> BlockConfig {
        let (skip_time_act, output_scale_factor) = if kind.resnet_resample { (self.resnet_skip_time_act, self.resnet_out_scale_factor) } else { (false, 1.0) };
        let depths = match depth {
            Depth::Same(depth) => vec![*depth; layers],
            Depth::Each(list) => list.clone(),
        };
        let mixer = match kind.mixing {
            Mixing::None => MixerConfig::None,
            Mixing::Attention => MixerConfig::Attention(AttentionConfig {
                channels: level.channels,
                head_dim: level.heads,
                norm_groups: Some(self.norm_num_groups),
                eps: self.norm_eps,
                rescale_output_factor: 1.0,
            }),
            Mixing::CrossAttention => MixerConfig::Transformer(self.transformer(level, level.only_cross_attention), depths),
        };
        let resnet = ResnetConfig {
            time_embedding_dim: Some(self.blocks_time_embedding_dim()),
            norm_groups: self.norm_num_groups,
            eps: self.norm_eps,
            act: self.act_fn,
            scale_shift: self.scale_shift,
            skip_time_act,
            output_scale_factor,
        };
        BlockConfig { resnet, layers, mixer, resnet_resample: kind.resnet_resample, downsample_padding: self.downsample_padding }
    }

    fn transformer(&self, level: &Level, only_cross_attention: bool) -> TransformerConfig {
        TransformerConfig {
            channels: level.channels,
            heads: level.heads,
            norm_groups: self.norm_num_groups,
            cross_attention_dim: level.cross_attention_dim,
            linear_projection: self.linear_projection,
            only_cross_attention,
        }
    }

    /// Block `i` of the down path.
    pub fn down_block(&self, i: usize) -> BlockConfig {
        self.block(&self.levels[i], self.down_blocks[i], self.levels[i].layers, &self.down_depths[i])
    }

    /// Block `i` of the up path.
    pub fn up_block(&self, i: usize) -> BlockConfig {
        let level = &self.levels[self.levels.len() - 1 - i];
        self.block(level, self.up_blocks[i], level.layers + 1, &self.up_depths[i])
    }

    /// The middle block of type `kind`. Its first attention is to itself whatever only_cross_attention says.
    pub fn middle_block(&self, kind: MidBlockType) -> BlockConfig {
        let last = self.levels.len() - 1;
        let level = Level { only_cross_attention: false, ..self.levels[last].clone() };
        let depth = match &self.down_depths[last] {
            Depth::Same(depth) => *depth,
            Depth::Each(list) => list.first().copied().unwrap_or(1),
        };
        let (kind, layers) = if kind == MidBlockType::Resnet { (PLAIN, 1) } else { (CROSS_ATTENTION, 2) };
        let block = self.block(&level, kind, layers, &Depth::Same(depth));
        BlockConfig { resnet: ResnetConfig { output_scale_factor: self.mid_block_scale_factor, ..block.resnet }, ..block }
    }
}

fn integer(value: &Value, most: usize) -> Option<usize> {
    value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..=most).contains(v))
}

/// What is one value or one per block.
fn levels(c: &Config) -> Result<Vec<Level>> {
    let channels = c.integers("block_out_channels", Some(&[320, 640, 1280, 1280]), 1..=MAX_CHANNELS, MAX_BLOCKS)?;
    let count = channels.len();
    let positive = |most| move |value: &Value| integer(value, most);
    let wide = format!("an integer from 1 to {MAX_CHANNELS}");
    let layers = c.each("layers_per_block", 2, count, &format!("an integer from 1 to {MAX_LAYERS}"), positive(MAX_LAYERS))?;
    let heads = c.each("attention_head_dim", 8, count, &wide, positive(MAX_CHANNELS))?;
    let cross = c.each("cross_attention_dim", 1280, count, &wide, positive(MAX_CHANNELS))?;
    let only = c.each("only_cross_attention", false, count, "true or false", Value::as_bool)?;
    let level = |i: usize| Level { channels: channels[i], layers: layers[i], heads: heads[i], cross_attention_dim: cross[i], only_cross_attention: only[i] };
    Ok((0..count).map(level).collect())
}

/// Transformer layers of the down path and of the up path.
fn depths(c: &Config, count: usize) -> Result<(Vec<Depth>, Vec<Depth>)> {
    let number = |value: &Value| value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|&v| v <= MAX_LAYERS);
    let depth = |value: &Value| match value.as_array() {
        Some(list) if list.len() <= MAX_LAYERS + 1 => list.iter().map(number).collect::<Option<_>>().map(Depth::Each),
        Some(_) => None,
        None => number(value).map(Depth::Same),
    };
    let expected = format!("an integer from 0 to {MAX_LAYERS} or a list of one per layer");
    let down = c.each("transformer_layers_per_block", Depth::Same(1), count, &expected, depth)?;
    let reverse = "reverse_transformer_layers_per_block";
    if c.require_null(reverse).is_err() {
        return Ok((down, c.each(reverse, Depth::Same(1), count, &expected, depth)?));
    }
    if down.iter().any(|depth| matches!(depth, Depth::Each(_))) {
        return Err(c.error(reverse, "null, expected a list, as transformer_layers_per_block has lists for its blocks"));
    }
    let up = down.iter().rev().cloned().collect();
    Ok((down, up))
}

/// Odd, so that the size stays.
fn kernel(c: &Config, field: &str) -> Result<usize> {
    let kernel = c.integer(field, 3, 1..=31)?;
    if kernel % 2 == 1 { Ok(kernel) } else { Err(c.error(field, format!("{kernel}, expected an odd number"))) }
}

fn class_embedding(c: &Config) -> Result<ClassEmbedding> {
    let kinds = ["timestep", "identity", "projection", "simple_projection"].map(|name| (name, name));
    let labels = c.nullable_integer("num_class_embeds", None, 1..=1_000_000)?;
    let kind = c.nullable_choice("class_embed_type", None, &kinds)?;
    Ok(match kind {
        None => labels.map_or(ClassEmbedding::None, ClassEmbedding::Labels),
        Some("timestep") => ClassEmbedding::Timestep,
        Some("identity") => ClassEmbedding::Identity,
        Some("projection") => ClassEmbedding::Projection(projection_width(c)?),
        Some(_) => ClassEmbedding::SimpleProjection(projection_width(c)?),
    })
}

/// Width of what class_embed_type projection or addition_embed_type text_time project.
fn projection_width(c: &Config) -> Result<usize> {
    let field = "projection_class_embeddings_input_dim";
    c.nullable_integer(field, None, 1..=MAX_CHANNELS)?.ok_or_else(|| c.error(field, "null, expected the width of what is projected"))
}

fn text_time(c: &Config) -> Result<Option<TextTime>> {
    c.nullable_integer("addition_embed_type_num_heads", Some(64), 0..=MAX_CHANNELS)?;
    let width = c.nullable_integer("addition_time_embed_dim", None, 2..=MAX_CHANNELS)?;
    c.nullable_integer("projection_class_embeddings_input_dim", None, 1..=MAX_CHANNELS)?;
    if c.nullable_choice("addition_embed_type", None, &[("text_time", ())])?.is_none() {
        return Ok(None);
    }
    let width = width.ok_or_else(|| c.error("addition_time_embed_dim", "null, expected the width of one embedded time id"))?;
    let input_dim = projection_width(c)?;
    if input_dim <= width {
        return Err(c.error("projection_class_embeddings_input_dim", format!("{input_dim}, expected more than addition_time_embed_dim, {width}")));
    }
    Ok(Some(TextTime { time_embed_dim: width, input_dim }))
}

fn encoder_hid_dim(c: &Config) -> Result<Option<usize>> {
    let width = c.nullable_integer("encoder_hid_dim", None, 1..=MAX_CHANNELS)?;
    let is_projected = c.nullable_choice("encoder_hid_dim_type", None, &[("text_proj", ())])?.is_some();
    if is_projected && width.is_none() {
        return Err(c.error("encoder_hid_dim", "null, expected the width of the tokens before encoder_hid_proj"));
    }
    Ok(width)
}

/// Fields that must have one value, and those that change nothing here.
fn without_consequence(c: &Config) -> Result<()> {
    c.require_or_absent("attention_type", "default")?;
    if c.flag("dual_cross_attention", false)? {
        return Err(c.error("dual_cross_attention", "true, expected false: it is not supported"));
    }
    // diffusers refuses a number here: what it calls attention_head_dim is the number of heads.
    c.require_null("num_attention_heads")?;
    c.require_null("cross_attention_norm")?;
    // Of training, of Simple blocks, and of half precision: sums are always in f32.
    c.number("dropout", 0.0, 0.0..=1.0)?;
    c.ignore(&["upcast_attention", "mid_block_only_cross_attention"]);
    Ok(())
}

#[cfg(test)]
#[path = "unet_2d_condition_config_tests.rs"]
mod tests;
