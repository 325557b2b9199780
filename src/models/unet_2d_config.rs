//! The config.json of a diffusers `UNet2DModel`, every field of it, with diffusers' own defaults.
//! Source: `diffusers/models/unets/unet_2d.py`.

use std::path::Path;

use crate::base::Result;
use crate::models::resnet_block_2d::ResnetConfig;
use crate::models::unet_2d_blocks::{BlockConfig, MixerConfig};
use crate::nn::attention::AttentionConfig;
use crate::ops::activation::Function;
use crate::weights::Config;

/// Bounds of a hostile file: no published model comes near.
pub(super) const MAX_CHANNELS: usize = 65_536;
pub(super) const MAX_BLOCKS: usize = 16;
pub(super) const MAX_LAYERS: usize = 64;

/// What mixes positions after each residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixing {
    None,
    Attention,
    /// Transformer blocks, which attend to tokens too.
    CrossAttention,
}

/// How a block changes the resolution, and with what it mixes positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockType {
    pub mixing: Mixing,
    /// Change of resolution by a residual block in place of a convolution.
    pub resnet_resample: bool,
}

pub(super) const PLAIN: BlockType = BlockType { mixing: Mixing::None, resnet_resample: false };
pub(super) const ATTENTION: BlockType = BlockType { mixing: Mixing::Attention, resnet_resample: false };
pub(super) const RESNET: BlockType = BlockType { mixing: Mixing::None, resnet_resample: true };

/// The names with `UNetRes` before them are those of the first published checkpoints.
const DOWN_BLOCKS: [(&str, BlockType); 5] = [
    ("DownBlock2D", PLAIN),
    ("AttnDownBlock2D", ATTENTION),
    ("ResnetDownsampleBlock2D", RESNET),
    ("UNetResDownBlock2D", PLAIN),
    ("UNetResAttnDownBlock2D", ATTENTION),
];
const UP_BLOCKS: [(&str, BlockType); 5] =
    [("UpBlock2D", PLAIN), ("AttnUpBlock2D", ATTENTION), ("ResnetUpsampleBlock2D", RESNET), ("UNetResUpBlock2D", PLAIN), ("UNetResAttnUpBlock2D", ATTENTION)];
pub(super) const ACTIVATIONS: [(&str, Function); 5] =
    [("silu", Function::Silu), ("swish", Function::Silu), ("mish", Function::Mish), ("gelu", Function::Gelu), ("relu", Function::Relu)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeEmbedding {
    Positional,
    /// The model also divides its result by the timestep.
    Fourier,
}

/// What conditions the model beside the timestep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassEmbed {
    None,
    /// Labels below this number.
    Labels(usize),
    /// A number per item, embedded as a timestep is.
    Timestep,
    /// A vector per item, added to the time embedding.
    Identity,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UNet2DConfig {
    /// Rows and columns of the samples it was trained on. It runs on others.
    pub sample_size: Option<[usize; 2]>,
    pub in_channels: usize,
    pub out_channels: usize,
    pub center_input_sample: bool,
    pub time_embedding_type: TimeEmbedding,
    /// Width of the time embedding.
    pub time_embedding_dim: usize,
    pub freq_shift: f64,
    pub flip_sin_to_cos: bool,
    pub down_blocks: Vec<BlockType>,
    pub mid_block: bool,
    pub up_blocks: Vec<BlockType>,
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level on the way down; there is one more on the way up.
    pub layers_per_block: Vec<usize>,
    pub mid_block_scale_factor: f32,
    /// 0: one row and column of zeros after the last, 1: one on each side.
    pub downsample_padding: usize,
    pub act_fn: Function,
    /// Of each level. None: one head of all channels.
    pub attention_head_dim: Vec<Option<usize>>,
    pub norm_num_groups: usize,
    pub attn_norm_num_groups: Option<usize>,
    pub norm_eps: f32,
    /// resnet_time_scale_shift is `scale_shift`: the time embedding scales and shifts; otherwise it is added.
    pub scale_shift: bool,
    /// Attention in the middle block.
    pub add_attention: bool,
    pub class_embed: ClassEmbed,
}

impl UNet2DConfig {
    /// Reads a config.json.
    pub fn read(path: &Path) -> Result<UNet2DConfig> {
        Self::from_config(&Config::read(path)?)
    }

    /// Fails at the first field that is unknown, of another type, or asks for what is not supported.
    pub fn from_config(c: &Config) -> Result<UNet2DConfig> {
        c.require("_class_name", "UNet2DModel")?;
        let channels = 1..=MAX_CHANNELS;
        let block_out_channels = c.integers("block_out_channels", Some(&[224, 448, 672, 896]), channels.clone(), MAX_BLOCKS)?;
        let levels = block_out_channels.len();
        let resample = [("conv", false), ("resnet", true)];
        let downsample_by_resnet = c.nullable_choice("downsample_type", Some(false), &resample)?.unwrap_or(false);
        let upsample_by_resnet = c.nullable_choice("upsample_type", Some(false), &resample)?.unwrap_or(false);
        let config = UNet2DConfig {
            sample_size: sample_size(c)?,
            in_channels: c.integer("in_channels", 3, channels.clone())?,
            out_channels: c.integer("out_channels", 3, channels.clone())?,
            center_input_sample: c.flag("center_input_sample", false)?,
            time_embedding_type: c.choice(
                "time_embedding_type",
                Some(TimeEmbedding::Positional),
                &[("positional", TimeEmbedding::Positional), ("fourier", TimeEmbedding::Fourier)],
            )?,
            time_embedding_dim: c.nullable_integer("time_embedding_dim", None, 0..=MAX_CHANNELS)?.filter(|&d| d > 0).unwrap_or(4 * block_out_channels[0]),
            freq_shift: c.number("freq_shift", 0.0, 0.0..=1.0)?,
            flip_sin_to_cos: c.flag("flip_sin_to_cos", true)?,
            down_blocks: blocks(c, "down_block_types", &[PLAIN, ATTENTION, ATTENTION, ATTENTION], &DOWN_BLOCKS, downsample_by_resnet)?,
            mid_block: c.nullable_choice("mid_block_type", Some(()), &[("UNetMidBlock2D", ())])?.is_some(),
            up_blocks: blocks(c, "up_block_types", &[ATTENTION, ATTENTION, ATTENTION, PLAIN], &UP_BLOCKS, upsample_by_resnet)?,
            block_out_channels,
            layers_per_block: vec![c.integer("layers_per_block", 2, 1..=MAX_LAYERS)?; levels],
            mid_block_scale_factor: c.number("mid_block_scale_factor", 1.0, 1e-3..=1e3)? as f32,
            downsample_padding: c.integer("downsample_padding", 1, 0..=1)?,
            act_fn: c.choice("act_fn", Some(Function::Silu), &ACTIVATIONS)?,
            attention_head_dim: vec![c.nullable_integer("attention_head_dim", Some(8), channels.clone())?; levels],
            norm_num_groups: c.integer("norm_num_groups", 32, channels.clone())?,
            attn_norm_num_groups: c.nullable_integer("attn_norm_num_groups", None, channels)?,
            norm_eps: c.number("norm_eps", 1e-5, 0.0..=1.0)? as f32,
            scale_shift: c.choice("resnet_time_scale_shift", Some(false), &[("default", false), ("scale_shift", true)])?,
            add_attention: c.flag("add_attention", true)?,
            class_embed: class_embed(c)?,
        };
        // Of training only.
        c.number("dropout", 0.0, 0.0..=1.0)?;
        c.nullable_integer("num_train_timesteps", None, 0..=1_000_000_000)?;
        c.finish()?;
        config.check(c)
    }

    fn check(self, c: &Config) -> Result<UNet2DConfig> {
        for (field, count) in [("down_block_types", self.down_blocks.len()), ("up_block_types", self.up_blocks.len())] {
            if count != self.block_out_channels.len() {
                return Err(c.error(field, format!("{count} blocks, expected {} as block_out_channels has", self.block_out_channels.len())));
            }
        }
        if self.time_embedding_type == TimeEmbedding::Positional
            && ((self.block_out_channels[0] / 2) as f64 - self.freq_shift) * (self.block_out_channels[0] / 2) as f64 == 0.0
        {
            return Err(
                c.error("freq_shift", format!("{} with {} channels in the first block leaves no frequency", self.freq_shift, self.block_out_channels[0]))
            );
        }
        Ok(self)
    }

    /// Rows and columns of a sample must be multiples of this: each block but the last halves them.
    pub fn size_multiple(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// What the residual blocks have in common.
    fn resnet(&self) -> ResnetConfig {
        ResnetConfig {
            time_embedding_dim: Some(self.time_embedding_dim),
            norm_groups: self.norm_num_groups,
            eps: self.norm_eps,
            act: self.act_fn,
            scale_shift: self.scale_shift,
            skip_time_act: false,
            output_scale_factor: 1.0,
        }
    }

    fn block(&self, kind: BlockType, layers: usize, level: usize) -> BlockConfig {
        let channels = self.block_out_channels[level];
        let head_dim = self.attention_head_dim[level].unwrap_or(channels);
        let attention = AttentionConfig { channels, head_dim, norm_groups: Some(self.norm_num_groups), eps: self.norm_eps, rescale_output_factor: 1.0 };
        BlockConfig {
            resnet: self.resnet(),
            layers,
            mixer: if kind.mixing == Mixing::None { MixerConfig::None } else { MixerConfig::Attention(attention) },
            resnet_resample: kind.resnet_resample,
            downsample_padding: self.downsample_padding,
        }
    }

    /// Block `i` of the down path.
    pub fn down_block(&self, i: usize) -> BlockConfig {
        self.block(self.down_blocks[i], self.layers_per_block[i], i)
    }

    /// Block `i` of the up path.
    pub fn up_block(&self, i: usize) -> BlockConfig {
        let level = self.block_out_channels.len() - 1 - i;
        self.block(self.up_blocks[i], self.layers_per_block[level] + 1, level)
    }

    /// The middle block, of `channels`.
    pub fn middle_block(&self, channels: usize) -> BlockConfig {
        let factor = self.mid_block_scale_factor;
        let attention = AttentionConfig {
            channels,
            head_dim: self.attention_head_dim.last().copied().flatten().unwrap_or(channels),
            norm_groups: self.mid_attention_groups(),
            eps: self.norm_eps,
            rescale_output_factor: factor,
        };
        BlockConfig {
            resnet: ResnetConfig { output_scale_factor: factor, ..self.resnet() },
            layers: 2,
            mixer: if self.add_attention { MixerConfig::Attention(attention) } else { MixerConfig::None },
            resnet_resample: false,
            downsample_padding: self.downsample_padding,
        }
    }

    /// Groups of the norm in the middle block's attention; None: no norm.
    pub fn mid_attention_groups(&self) -> Option<usize> {
        self.attn_norm_num_groups.or((!self.scale_shift).then_some(self.norm_num_groups))
    }
}

/// Null, a number, or rows and columns.
pub(super) fn sample_size(c: &Config) -> Result<Option<[usize; 2]>> {
    if let Ok(size) = c.nullable_integer("sample_size", None, 1..=MAX_CHANNELS) {
        return Ok(size.map(|s| [s, s]));
    }
    let sizes = c.integers("sample_size", None, 1..=MAX_CHANNELS, 2)?;
    <[usize; 2]>::try_from(sizes).map(Some).map_err(|_| c.error("sample_size", "expected one size, two, or null"))
}

/// Block types. `by_resnet` is downsample_type or upsample_type: in diffusers only the attention blocks follow it.
fn blocks(c: &Config, field: &str, default: &[BlockType], names: &[(&str, BlockType)], by_resnet: bool) -> Result<Vec<BlockType>> {
    let types = c.choices(field, Some(default), names, MAX_BLOCKS)?;
    Ok(types.into_iter().map(|b| BlockType { resnet_resample: b.resnet_resample || (b.mixing == Mixing::Attention && by_resnet), ..b }).collect())
}

fn class_embed(c: &Config) -> Result<ClassEmbed> {
    let labels = c.nullable_integer("num_class_embeds", None, 1..=1_000_000)?;
    let kind = c.nullable_choice("class_embed_type", None, &[("timestep", ClassEmbed::Timestep), ("identity", ClassEmbed::Identity)])?;
    Ok(kind.unwrap_or(labels.map_or(ClassEmbed::None, ClassEmbed::Labels)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<UNet2DConfig> {
        let comma = if fields.is_empty() { "" } else { "," };
        UNet2DConfig::from_config(&Config::parse(&format!("{{\"_class_name\":\"UNet2DModel\"{comma}{fields}}}"), "unet/config.json").unwrap())
    }

    #[test]
    fn defaults_are_diffusers_own() {
        let c = parse("").unwrap();
        assert_eq!((c.block_out_channels.len(), c.time_embedding_dim, c.size_multiple(), c.attention_head_dim.clone()), (4, 896, 8, vec![Some(8); 4]));
        assert_eq!((c.mid_attention_groups(), c.class_embed, c.sample_size), (Some(32), ClassEmbed::None, None));
        assert_eq!(parse("\"attention_head_dim\":null").unwrap().attention_head_dim, [None; 4]);
        assert_eq!(parse("\"sample_size\":[8,12]").unwrap().sample_size, Some([8, 12]));
        let c = parse("\"resnet_time_scale_shift\":\"scale_shift\"").unwrap();
        assert_eq!(c.mid_attention_groups(), None);
        let c = parse("\"downsample_type\":\"resnet\"").unwrap();
        assert_eq!(c.down_blocks.iter().map(|b| b.resnet_resample).collect::<Vec<_>>(), [false, true, true, true]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let rows = [
            (r#""act_fn":"geglu""#, r#"unet/config.json: act_fn: "geglu", expected one of "silu", "swish", "mish", "gelu", "relu""#),
            (
                r#""down_block_types":["SkipDownBlock2D"],"up_block_types":["UpBlock2D"],"block_out_channels":[8]"#,
                r#"unet/config.json: down_block_types: "SkipDownBlock2D", expected one of "DownBlock2D", "AttnDownBlock2D""#,
            ),
            (r#""time_embedding_type":"learned""#, r#"unet/config.json: time_embedding_type: "learned", expected one of "positional", "fourier""#),
            (r#""block_out_channels":[8,8]"#, "unet/config.json: down_block_types: 4 blocks, expected 2"),
            (r#""block_out_channels":[1000000000]"#, "unet/config.json: block_out_channels: 1000000000, expected an integer from 1 to 65536"),
            (r#""layers_per_block":-1"#, "unet/config.json: layers_per_block: -1, expected"),
            (r#""dropout":7"#, "unet/config.json: dropout: 7, expected a number from 0 to 1"),
            (r#""fir_kernel":[1,3,3,1]"#, "unet/config.json: unknown or unsupported field `fir_kernel`"),
            (r#""sample_size":[1,2,3]"#, "unet/config.json: sample_size: [1,2,3], expected"),
            (r#""norm_num_groups":null"#, "unet/config.json: norm_num_groups: null, expected"),
            (r#""freq_shift":1,"block_out_channels":[2,8,8,8]"#, "unet/config.json: freq_shift: 1 with 2 channels"),
        ];
        for (fields, want) in rows {
            let error = parse(fields).unwrap_err().to_string();
            assert!(error.starts_with(want), "{fields}: {error}");
        }
        let other = Config::parse(r#"{"_class_name":"UNet2DConditionModel"}"#, "c").unwrap();
        assert!(UNet2DConfig::from_config(&other).unwrap_err().to_string().contains("_class_name"));
    }
}
