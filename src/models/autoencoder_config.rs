//! The settings that diffusers' `AutoencoderKL` and `VQModel` share.
//! Source: `diffusers/models/autoencoders/autoencoder_kl.py`, `vq_model.py`.

use crate::base::Result;
use crate::ops::activation::Function;
use crate::weights::Config;

const MAX_CHANNELS: usize = 65_536;
const MAX_BLOCKS: usize = 16;
const MAX_LAYERS: usize = 64;

pub(crate) const ACTIVATIONS: [(&str, Function); 5] =
    [("silu", Function::Silu), ("swish", Function::Silu), ("mish", Function::Mish), ("gelu", Function::Gelu), ("relu", Function::Relu)];
/// Block types; whether each residual block has attention behind it.
const DOWN_BLOCKS: [(&str, bool); 2] = [("DownEncoderBlock2D", false), ("AttnDownEncoderBlock2D", true)];
const UP_BLOCKS: [(&str, bool); 2] = [("UpDecoderBlock2D", false), ("AttnUpDecoderBlock2D", true)];

/// Sizes of an encoder and its decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoencoderConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    /// Per block: attention behind each residual block.
    pub down_blocks: Vec<bool>,
    pub up_blocks: Vec<bool>,
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a down block; an up block has one more.
    pub layers_per_block: usize,
    pub act_fn: Function,
    pub norm_num_groups: usize,
    /// Rows and columns of the images that it was trained on. It runs on others.
    pub sample_size: [usize; 2],
    pub scaling_factor: f32,
    /// Attention between the residual blocks of the middle.
    pub mid_block_add_attention: bool,
}

impl AutoencoderConfig {
    /// Reads the shared fields; `latent_channels` is the class's default. The caller reads its own and calls [`Config::finish`].
    pub fn from_config(c: &Config, latent_channels: usize) -> Result<AutoencoderConfig> {
        let channels = 1..=MAX_CHANNELS;
        let config = AutoencoderConfig {
            in_channels: c.integer("in_channels", 3, channels.clone())?,
            out_channels: c.integer("out_channels", 3, channels.clone())?,
            latent_channels: c.integer("latent_channels", latent_channels, channels.clone())?,
            down_blocks: c.choices("down_block_types", Some(&[false]), &DOWN_BLOCKS, MAX_BLOCKS)?,
            up_blocks: c.choices("up_block_types", Some(&[false]), &UP_BLOCKS, MAX_BLOCKS)?,
            block_out_channels: c.integers("block_out_channels", Some(&[64]), channels.clone(), MAX_BLOCKS)?,
            layers_per_block: c.integer("layers_per_block", 1, 1..=MAX_LAYERS)?,
            act_fn: c.choice("act_fn", Some(Function::Silu), &ACTIVATIONS)?,
            norm_num_groups: c.integer("norm_num_groups", 32, channels)?,
            sample_size: sample_size(c)?,
            scaling_factor: c.number("scaling_factor", 0.18215, 1e-6..=1e6)? as f32,
            mid_block_add_attention: c.flag("mid_block_add_attention", true)?,
        };
        // It asks for f32, which is what runs here.
        c.flag("force_upcast", true)?;
        for (field, count) in [("down_block_types", config.down_blocks.len()), ("up_block_types", config.up_blocks.len())] {
            if count != config.block_out_channels.len() {
                return Err(c.error(field, format!("{count} blocks, expected {} as block_out_channels has", config.block_out_channels.len())));
            }
        }
        Ok(config)
    }

    /// Pixels per latent along one axis: each block but the last halves them.
    pub fn downscale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Rows and columns of pixels that `inspect` runs with: the trained size, up to the next whole latent.
    pub fn pixels(&self) -> [usize; 2] {
        self.sample_size.map(|size| size.next_multiple_of(self.downscale()))
    }
}

/// A number, or rows and columns.
fn sample_size(c: &Config) -> Result<[usize; 2]> {
    if let Ok(size) = c.integer("sample_size", 32, 1..=MAX_CHANNELS) {
        return Ok([size, size]);
    }
    let sizes = c.integers("sample_size", None, 1..=MAX_CHANNELS, 2)?;
    <[usize; 2]>::try_from(sizes).map_err(|_| c.error("sample_size", "expected one size or two"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<AutoencoderConfig> {
        AutoencoderConfig::from_config(&Config::parse(&format!("{{{fields}}}"), "vae/config.json").unwrap(), 4)
    }

    #[test]
    fn defaults_are_diffusers_own() {
        let c = parse("").unwrap();
        assert_eq!((c.block_out_channels.as_slice(), c.layers_per_block, c.downscale(), c.sample_size), (&[64][..], 1, 1, [32, 32]));
        assert_eq!(parse("\"sample_size\":[20,12]").unwrap().sample_size, [20, 12]);
        let fields = r#""block_out_channels":[8,8,8],"sample_size":17,"down_block_types":["DownEncoderBlock2D","DownEncoderBlock2D","AttnDownEncoderBlock2D"],
            "up_block_types":["AttnUpDecoderBlock2D","UpDecoderBlock2D","UpDecoderBlock2D"]"#;
        let c = parse(fields).unwrap();
        assert_eq!((c.down_blocks.clone(), c.up_blocks.clone(), c.downscale()), (vec![false, false, true], vec![true, false, false], 4));
        assert_eq!(parse(fields).unwrap().pixels(), [20, 20]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let rows = [
            (
                r#""down_block_types":["DownBlock2D"]"#,
                r#"vae/config.json: down_block_types: "DownBlock2D", expected one of "DownEncoderBlock2D", "AttnDownEncoderBlock2D""#,
            ),
            (
                r#""up_block_types":["UpBlock2D"]"#,
                r#"vae/config.json: up_block_types: "UpBlock2D", expected one of "UpDecoderBlock2D", "AttnUpDecoderBlock2D""#,
            ),
            (r#""block_out_channels":[8,8]"#, "vae/config.json: down_block_types: 1 blocks, expected 2 as block_out_channels has"),
            (r#""act_fn":"geglu""#, r#"vae/config.json: act_fn: "geglu", expected one of "silu""#),
            (r#""sample_size":[1,2,3]"#, "vae/config.json: sample_size: [1,2,3], expected"),
            (r#""scaling_factor":0"#, "vae/config.json: scaling_factor: 0, expected a number from"),
            (r#""norm_num_groups":0"#, "vae/config.json: norm_num_groups: 0, expected an integer from 1"),
        ];
        for (fields, want) in rows {
            let error = parse(fields).unwrap_err().to_string();
            assert!(error.starts_with(want), "{fields}: {error}");
        }
    }
}
