//! The settings of MONAI's `DiffusionModelUNet` and `AutoencoderKL`: their constructors' arguments in a config.json beside the
//! weights, as the `network_def` of a MONAI bundle has them, with MONAI's own defaults. The weights are a bare state dict, whose
//! shapes tell neither heads nor the groups of the norms.

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::monai_names::{Block, UnetShape};
use crate::weights::Config;

/// Bounds of a hostile file: no published model comes near.
const MAX_CHANNELS: usize = 65_536;
const MAX_BLOCKS: usize = 16;
const MAX_LAYERS: usize = 64;
/// Where the names of the classes begin, in MONAI and in MONAI Generative.
const MODULES: [&str; 4] =
    ["monai.networks.nets.", "monai.networks.nets.diffusion_model_unet.", "monai.networks.nets.autoencoderkl.", "generative.networks.nets."];
/// Of the norm before a transformer; no configuration of diffusers changes it.
const TRANSFORMER_EPS: f64 = 1e-6;

/// Whether `_target_` is `class`.
pub fn is_target(config: &Config, class: &str) -> bool {
    let target = config.has("_target_").then(|| config.text("_target_", None).ok()).flatten();
    target.is_some_and(|target| MODULES.iter().any(|module| target.strip_prefix(module) == Some(class)))
}

/// What both have.
#[derive(Clone, Debug, PartialEq)]
pub struct Levels {
    pub in_channels: usize,
    pub out_channels: usize,
    pub channels: Vec<usize>,
    /// Residual blocks per level.
    pub layers: Vec<usize>,
    pub attention: Vec<bool>,
    pub norm_num_groups: usize,
    pub norm_eps: f64,
    /// Queries, keys and values are one linear layer.
    pub combined: bool,
}

impl Levels {
    fn from_config(c: &Config, default_channels: Option<usize>) -> Result<Levels> {
        let dims = c.integer("spatial_dims", None, 1..=3)?;
        if dims != 2 {
            return Err(c.error("spatial_dims", format!("{dims}, expected 2: images of rows and columns")));
        }
        // MONAI Generative's name of it.
        let field = if c.has("num_channels") { "num_channels" } else { "channels" };
        let channels = c.integers(field, Some(&[32, 64, 64, 64]), 1..=MAX_CHANNELS, MAX_BLOCKS)?;
        let count = channels.len();
        let layer = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..=MAX_LAYERS).contains(v));
        let layers = c.each("num_res_blocks", 2, count, &format!("an integer from 1 to {MAX_LAYERS}"), layer)?;
        let last_two: Vec<bool> = (0..4).map(|level| level > 1).collect();
        let attention = if c.has("attention_levels") { c.each("attention_levels", false, count, "true or false", Value::as_bool)? } else { last_two };
        let levels = Levels {
            in_channels: c.integer("in_channels", default_channels, 1..=MAX_CHANNELS)?,
            out_channels: c.integer("out_channels", default_channels, 1..=MAX_CHANNELS)?,
            norm_num_groups: c.integer("norm_num_groups", 32, 1..=MAX_CHANNELS)?,
            norm_eps: c.number("norm_eps", 1e-6, 0.0..=1.0)?,
            combined: c.flag("use_combined_linear", false)?,
            channels,
            layers,
            attention,
        };
        if levels.attention.len() != count {
            return Err(c.error("attention_levels", format!("absent, expected {count} flags as {field} has numbers")));
        }
        if !c.flag("include_fc", true)? {
            return Err(c.error("include_fc", "false, expected true: attention without its last layer is not supported"));
        }
        // How attention is computed, not what.
        c.flag("use_flash_attention", false)?;
        Ok(levels)
    }
}

/// `DiffusionModelUNet`.
#[derive(Clone, Debug, PartialEq)]
pub struct MonaiUnetConfig {
    pub levels: Levels,
    /// Channels of a head, per level.
    pub head_channels: Vec<usize>,
    pub resnet_resample: bool,
    /// Width of the tokens, and blocks of each transformer.
    pub tokens: Option<(usize, usize)>,
    pub classes: Option<usize>,
}

impl MonaiUnetConfig {
    /// Fails at the first field that is unknown, of another type, or asks for what is not supported.
    pub fn from_config(c: &Config) -> Result<MonaiUnetConfig> {
        let levels = Levels::from_config(c, None)?;
        let count = levels.channels.len();
        let head = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| *v <= MAX_CHANNELS);
        let head_channels = c.each("num_head_channels", 8, count, &format!("an integer from 0 to {MAX_CHANNELS}"), head)?;
        let depth = c.integer("transformer_num_layers", 1, 1..=MAX_LAYERS)?;
        let width = c.nullable_integer("cross_attention_dim", None, 1..=MAX_CHANNELS)?;
        let is_conditioned = c.flag("with_conditioning", false)?;
        if is_conditioned != width.is_some() {
            return Err(c.error("cross_attention_dim", format!("{width:?} with with_conditioning {is_conditioned}, expected a width with true alone")));
        }
        if is_conditioned && levels.norm_eps != TRANSFORMER_EPS {
            return Err(c.error("norm_eps", format!("{} with with_conditioning, expected {TRANSFORMER_EPS}", levels.norm_eps)));
        }
        // Of training, and of half precision.
        c.flag("upcast_attention", false)?;
        c.number("dropout_cattn", 0.0, 0.0..=1.0)?;
        let config = MonaiUnetConfig {
            resnet_resample: c.flag("resblock_updown", false)?,
            tokens: width.map(|width| (width, depth)),
            classes: c.nullable_integer("num_class_embeds", None, 1..=1_000_000)?,
            levels,
            head_channels,
        };
        c.finish()?;
        for level in (0..count).filter(|&level| config.is_attended(level)) {
            let (channels, head) = (config.levels.channels[level], config.head_channels[level]);
            if head == 0 || channels % head != 0 {
                return Err(c.error("num_head_channels", format!("{head} at a level of {channels} channels, expected a divisor of these")));
            }
        }
        Ok(config)
    }

    /// The middle block has attention of the last level's heads.
    fn is_attended(&self, level: usize) -> bool {
        self.levels.attention[level] || level + 1 == self.levels.channels.len()
    }

    /// Channels of a head where there are heads; the whole level elsewhere.
    pub fn head_dim(&self, level: usize) -> usize {
        if self.is_attended(level) { self.head_channels[level] } else { self.levels.channels[level] }
    }

    pub fn shape(&self) -> UnetShape {
        let Levels { layers, attention, .. } = self.levels.clone();
        UnetShape { layers, attention, depth: self.tokens.map(|(_, depth)| depth), resnet_resample: self.resnet_resample }
    }

    /// The config.json of the diffusers model of the same topology: a `UNet2DConditionModel` where it takes tokens, a
    /// `UNet2DModel` otherwise. The latter has one number of layers and one size of heads: the caller sets those of each level.
    pub fn diffusers(&self) -> Value {
        let Levels { in_channels, out_channels, channels, layers, attention, norm_num_groups, norm_eps, .. } = &self.levels;
        let attended = if self.tokens.is_some() { "CrossAttn" } else { "Attn" };
        let kind = |way: &str, level: usize| if attention[level] { format!("{attended}{way}Block2D") } else { format!("{way}Block2D") };
        let count = channels.len();
        let mut config = json!({
            "_class_name": "UNet2DModel",
            "in_channels": in_channels,
            "out_channels": out_channels,
            "block_out_channels": channels,
            "down_block_types": (0..count).map(|level| kind("Down", level)).collect::<Vec<_>>(),
            "up_block_types": (0..count).rev().map(|level| kind("Up", level)).collect::<Vec<_>>(),
            "norm_num_groups": norm_num_groups,
            "norm_eps": norm_eps,
            "num_class_embeds": self.classes,
        });
        if let Some((width, depth)) = self.tokens {
            config["_class_name"] = json!("UNet2DConditionModel");
            config["layers_per_block"] = json!(layers);
            config["cross_attention_dim"] = json!(width);
            config["transformer_layers_per_block"] = json!(depth);
            // diffusers calls the number of heads so.
            config["attention_head_dim"] = json!((0..count).map(|level| channels[level] / self.head_dim(level)).collect::<Vec<_>>());
        }
        config
    }
}

/// `AutoencoderKL`.
#[derive(Clone, Debug, PartialEq)]
pub struct MonaiAutoencoderConfig {
    pub levels: Levels,
    pub latent_channels: usize,
    encoder_attention: bool,
    decoder_attention: bool,
}

impl MonaiAutoencoderConfig {
    /// Fails at the first field that is unknown, of another type, or asks for what is not supported.
    pub fn from_config(c: &Config) -> Result<MonaiAutoencoderConfig> {
        let config = MonaiAutoencoderConfig {
            levels: Levels::from_config(c, Some(1))?,
            latent_channels: c.integer("latent_channels", 3, 1..=MAX_CHANNELS)?,
            encoder_attention: c.flag("with_encoder_nonlocal_attn", true)?,
            decoder_attention: c.flag("with_decoder_nonlocal_attn", true)?,
        };
        if c.flag("use_convtranspose", false)? {
            return Err(c.error("use_convtranspose", "true, expected false: transposed convolutions are not supported"));
        }
        // Of training.
        c.flag("use_checkpoint", false)?;
        c.flag("use_checkpointing", false)?;
        c.finish()?;
        Ok(config)
    }

    /// Pixels per latent along one axis.
    pub fn downscale(&self) -> usize {
        1 << (self.levels.channels.len() - 1)
    }

    /// `encoder.blocks` in order.
    pub fn encoder(&self) -> Vec<Block> {
        let channels = &self.levels.channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut blocks = vec![Block::Conv { inputs: self.levels.in_channels, outputs: first }];
        for (level, &outputs) in channels.iter().enumerate() {
            self.level(&mut blocks, level, channels[level.saturating_sub(1)], outputs);
            if level + 1 < channels.len() {
                blocks.push(Block::Down(outputs));
            }
        }
        middle(&mut blocks, self.encoder_attention, last);
        blocks.extend([Block::Norm(last), Block::Conv { inputs: last, outputs: self.latent_channels }]);
        blocks
    }

    /// `decoder.blocks` in order.
    pub fn decoder(&self) -> Vec<Block> {
        let channels = &self.levels.channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut blocks = vec![Block::Conv { inputs: self.latent_channels, outputs: last }];
        middle(&mut blocks, self.decoder_attention, last);
        for (level, &outputs) in channels.iter().enumerate().rev() {
            self.level(&mut blocks, level, channels[(level + 1).min(channels.len() - 1)], outputs);
            if level > 0 {
                blocks.push(Block::Up(outputs));
            }
        }
        blocks.extend([Block::Norm(first), Block::Conv { inputs: first, outputs: self.levels.out_channels }]);
        blocks
    }

    fn level(&self, blocks: &mut Vec<Block>, level: usize, inputs: usize, outputs: usize) {
        for layer in 0..self.levels.layers[level] {
            blocks.push(Block::Resnet { inputs: if layer == 0 { inputs } else { outputs }, outputs });
            if self.levels.attention[level] {
                blocks.push(Block::Attention(outputs));
            }
        }
    }
}

/// with_encoder_nonlocal_attn, with_decoder_nonlocal_attn.
fn middle(blocks: &mut Vec<Block>, is_there: bool, channels: usize) {
    let resnet = Block::Resnet { inputs: channels, outputs: channels };
    if is_there {
        blocks.extend([resnet, Block::Attention(channels), resnet]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(fields: &str) -> Config {
        Config::parse(&format!("{{\"spatial_dims\": 2, {fields}}}"), "config.json").unwrap()
    }

    #[test]
    fn defaults_are_monais_own() {
        let c = MonaiUnetConfig::from_config(&config(r#""in_channels": 1, "out_channels": 1"#)).unwrap();
        assert_eq!((c.levels.channels.as_slice(), c.levels.layers.as_slice(), c.levels.norm_num_groups), (&[32, 64, 64, 64][..], &[2; 4][..], 32));
        assert_eq!((c.levels.attention.as_slice(), c.head_channels.as_slice(), c.head_dim(0)), (&[false, false, true, true][..], &[8; 4][..], 32));
        let c = MonaiAutoencoderConfig::from_config(&config(r#""_target_": "AutoencoderKL""#)).unwrap();
        assert_eq!((c.latent_channels, c.downscale(), c.levels.in_channels), (3, 8, 1));
        assert_eq!(c.encoder().len(), 1 + 2 + 1 + 2 + 1 + 4 + 1 + 4 + 3 + 2);
    }

    #[test]
    fn targets_are_told_apart() {
        let is = |target: &str| is_target(&Config::parse(&format!("{{\"_target_\": \"{target}\"}}"), "c").unwrap(), "AutoencoderKL");
        assert!(is("monai.networks.nets.AutoencoderKL") && is("generative.networks.nets.AutoencoderKL"));
        assert!(!is("monai.networks.nets.DiffusionModelUNet") && !is("AutoencoderKL") && !is("x.monai.networks.nets.AutoencoderKL"));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let both = r#""in_channels": 1, "out_channels": 1"#;
        let rows = [
            (r#""num_head_channels": 5"#, "num_head_channels: 5 at a level of 64 channels, expected a divisor of these"),
            (r#""num_head_channels": [8, 8, 8, 0]"#, "num_head_channels: 0 at a level of 64 channels"),
            (r#""with_conditioning": true"#, "cross_attention_dim: None with with_conditioning true"),
            (r#""with_conditioning": true, "cross_attention_dim": 8, "norm_eps": 1e-5"#, "norm_eps: 0.00001 with with_conditioning, expected 0.000001"),
            (r#""channels": [32, 64]"#, "attention_levels: absent, expected 2 flags as channels has numbers"),
            (r#""attention_levels": [true]"#, "attention_levels: [true], expected true or false, or a list of 4"),
            (r#""include_fc": false"#, "include_fc: false, expected true"),
            (r#""num_res_block": 2"#, "unknown or unsupported field `num_res_block`, the nearest known field is `num_res_blocks`"),
            (r#""channels": [1000000]"#, "channels: 1000000, expected an integer from 1 to 65536"),
        ];
        for (fields, want) in rows {
            let error = MonaiUnetConfig::from_config(&config(&format!("{both}, {fields}"))).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {want}")), "{error}");
        }
        let three = Config::parse(r#"{"spatial_dims": 3}"#, "c").unwrap();
        assert_eq!(MonaiUnetConfig::from_config(&three).unwrap_err().to_string(), "c: spatial_dims: 3, expected 2: images of rows and columns");
        let error = MonaiAutoencoderConfig::from_config(&config(r#""use_convtranspose": true"#)).unwrap_err().to_string();
        assert_eq!(error, "config.json: use_convtranspose: true, expected false: transposed convolutions are not supported");
    }
}
