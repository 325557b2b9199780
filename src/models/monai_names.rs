//! Names of MONAI's `DiffusionModelUNet` and `AutoencoderKL`, and of MONAI Generative before it, as diffusers calls the same places.
//! Source: `monai/networks/nets/diffusion_model_unet.py` and `autoencoderkl.py`, whose `load_old_state_dict` tells the older names.

use crate::models::name_map::{NameMap, View};

/// Which of the writers a file is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dialect {
    /// MONAI Generative.
    pub generative: bool,
    /// use_combined_linear: queries, keys and values of self-attention are rows of one matrix.
    pub combined: bool,
}

const RESNET: [(&str, &str, View); 6] = [
    ("norm1", "norm1", View::Same),
    ("conv1.conv", "conv1", View::Same),
    ("time_emb_proj", "time_emb_proj", View::Same),
    ("norm2", "norm2", View::Same),
    ("conv2.conv", "conv2", View::Same),
    ("skip_connection.conv", "conv_shortcut", View::Same),
];
const VAE_RESNET: [(&str, &str, View); 5] = [
    ("norm1", "norm1", View::Same),
    ("conv1.conv", "conv1", View::Same),
    ("norm2", "norm2", View::Same),
    ("conv2.conv", "conv2", View::Same),
    ("nin_shortcut.conv", "conv_shortcut", View::Same),
];
const QUERY_KEY_VALUE: [&str; 3] = ["to_q", "to_k", "to_v"];

impl Dialect {
    /// `SpatialAttentionBlock`.
    fn attention(self, map: &mut NameMap, file: &str, model: &str) {
        let inner = if self.generative { file.to_string() } else { format!("{file}.attn") };
        map.add(format!("{file}.norm"), format!("{model}.group_norm"), View::Same);
        map.add(format!("{inner}.{}", if self.generative { "proj_attn" } else { "out_proj" }), format!("{model}.to_out.0"), View::Same);
        self.projections(map, &inner, model);
    }

    fn projections(self, map: &mut NameMap, file: &str, model: &str) {
        for (index, name) in QUERY_KEY_VALUE.into_iter().enumerate() {
            if self.combined {
                map.add(format!("{file}.qkv"), format!("{model}.{name}"), View::Third(index));
            } else {
                map.add(format!("{file}.{name}"), format!("{model}.{name}"), View::Same);
            }
        }
    }

    /// `SpatialTransformer` of `depth` blocks.
    fn transformer(self, map: &mut NameMap, file: &str, model: &str, depth: usize) {
        let out = if self.generative { "to_out.0" } else { "out_proj" };
        map.add_below(file, model, &[("norm", "norm", View::Same), ("proj_in.conv", "proj_in", View::Same), ("proj_out.conv", "proj_out", View::Same)]);
        for block in 0..depth {
            let (file, model) = (format!("{file}.transformer_blocks.{block}"), format!("{model}.transformer_blocks.{block}"));
            for name in ["norm1", "norm2", "norm3"] {
                map.add(format!("{file}.{name}"), format!("{model}.{name}"), View::Same);
            }
            map.add_below(&file, &model, &[("ff.linear1", "ff.net.0.proj", View::Same), ("ff.linear2", "ff.net.2", View::Same)]);
            for name in ["attn1", "attn2"] {
                let of = if name == "attn1" { self } else { Dialect { combined: false, ..self } };
                of.projections(map, &format!("{file}.{name}"), &format!("{model}.{name}"));
                map.add(format!("{file}.{name}.{out}"), format!("{model}.{name}.to_out.0"), View::Same);
            }
        }
    }

    /// The convolution behind an upsampling.
    fn upsampling(self) -> &'static str {
        if self.generative { "conv.conv" } else { "postconv.conv" }
    }
}

/// What a UNet of these names is made of, as far as the names depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnetShape {
    /// Residual blocks of each level on the way down; there is one more on the way up.
    pub layers: Vec<usize>,
    /// Whether a level has attention.
    pub attention: Vec<bool>,
    /// Blocks of each transformer; None: attention over positions alone.
    pub depth: Option<usize>,
    /// Changes of resolution by residual blocks.
    pub resnet_resample: bool,
}

pub fn unet(shape: &UnetShape, dialect: Dialect) -> NameMap {
    let mut map = NameMap::new();
    for (file, model) in [
        ("conv_in.conv", "conv_in"),
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("class_embedding", "class_embedding"),
        ("out.0", "conv_norm_out"),
        ("out.2.conv", "conv_out"),
    ] {
        map.add(file, model, View::Same);
    }
    let mixer = |map: &mut NameMap, file: &str, model: &str| match shape.depth {
        Some(depth) => dialect.transformer(map, file, model, depth),
        None => dialect.attention(map, file, model),
    };
    let mut block = |path: &str, index: usize, level: usize, layers: usize, sampler: (&str, &str, &str)| {
        let at = format!("{path}.{index}");
        for layer in 0..layers {
            let resnet = format!("{at}.resnets.{layer}");
            map.add_below(&resnet, &resnet, &RESNET);
            if shape.attention[level] {
                let attention = format!("{at}.attentions.{layer}");
                mixer(&mut map, &attention, &attention);
            }
        }
        let (file, model, conv) = sampler;
        if index + 1 < shape.layers.len() && shape.resnet_resample {
            map.add_below(&format!("{at}.{file}"), &format!("{at}.{model}"), &RESNET);
        } else if index + 1 < shape.layers.len() {
            map.add(format!("{at}.{file}.{conv}"), format!("{at}.{model}.conv"), View::Same);
        }
    };
    for (level, &layers) in shape.layers.iter().enumerate() {
        block("down_blocks", level, level, layers, ("downsampler", "downsamplers.0", "op.conv"));
        let up = shape.layers.len() - 1 - level;
        block("up_blocks", up, level, layers + 1, ("upsampler", "upsamplers.0", dialect.upsampling()));
    }
    map.add_below("middle_block.resnet_1", "mid_block.resnets.0", &RESNET);
    mixer(&mut map, "middle_block.attention", "mid_block.attentions.0");
    map.add_below("middle_block.resnet_2", "mid_block.resnets.1", &RESNET);
    map
}

/// A block of an autoencoder's `encoder.blocks` or `decoder.blocks`, with its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    Conv { inputs: usize, outputs: usize },
    Resnet { inputs: usize, outputs: usize },
    Attention(usize),
    Down(usize),
    Up(usize),
    Norm(usize),
}

pub fn autoencoder(encoder: &[Block], decoder: &[Block], dialect: Dialect) -> NameMap {
    let mut map = NameMap::new();
    for name in ["quant_conv_mu", "quant_conv_log_sigma", "post_quant_conv"] {
        map.add(format!("{name}.conv"), name, View::Same);
    }
    for (part, blocks) in [("encoder", encoder), ("decoder", decoder)] {
        for (index, block) in blocks.iter().enumerate() {
            let at = format!("{part}.blocks.{index}");
            match block {
                Block::Conv { .. } => map.add(format!("{at}.conv"), &at, View::Same),
                Block::Resnet { .. } => map.add_below(&at, &at, &VAE_RESNET),
                Block::Attention(_) => dialect.attention(&mut map, &at, &at),
                Block::Down(_) => map.add(format!("{at}.conv.conv"), format!("{at}.conv"), View::Same),
                Block::Up(_) => map.add(format!("{at}.{}", dialect.upsampling()), format!("{at}.conv"), View::Same),
                Block::Norm(_) => map.add(&at, &at, View::Same),
            }
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::models::monai_config::{MonaiAutoencoderConfig, MonaiUnetConfig};
    use crate::weights::Config;

    /// Every tensor of a golden's file goes to the model's names and back, and no name is met twice.
    fn holds(weights: &str, map: &NameMap) {
        let recipe: serde_json::Value = serde_json::from_str(weights).unwrap();
        let names: Vec<&str> = recipe["tensors"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap()).collect();
        let mut models = BTreeSet::new();
        for name in names {
            let targets = map.to_model(name);
            assert_eq!(targets.len(), if name.contains("qkv") { 3 } else { 1 }, "{name}");
            for (model, view) in targets {
                assert_eq!(map.to_file(&model), Some((name.to_string(), view)), "{model}");
                assert!(models.insert(model.clone()), "{model} twice");
            }
        }
        // Every row is of the file, but for shortcuts of blocks that keep their channels, and classes.
        let is_met = |place: &str| models.iter().any(|name| name.starts_with(&format!("{place}.")));
        let unmet: Vec<&str> = map.rows().iter().map(|row| row.model.as_str()).filter(|place| !is_met(place)).collect();
        assert!(unmet.iter().all(|place| place.ends_with("conv_shortcut") || *place == "class_embedding"), "{unmet:?}");
    }

    macro_rules! golden {
        ($name:literal) => {
            (
                Config::parse(include_str!(concat!("../../tests/golden/models/", $name, "/config.json")), "config.json").unwrap(),
                include_str!(concat!("../../tests/golden/models/", $name, "/weights.json")),
            )
        };
    }

    #[test]
    fn unets_are_total_in_both_directions() {
        for ((config, weights), generative) in [
            (golden!("monai-unet"), false),
            (golden!("monai-unet-cross-attention"), false),
            (golden!("monai-unet-resblock-updown"), false),
            (golden!("monai-generative-unet"), true),
        ] {
            let config = MonaiUnetConfig::from_config(&config).unwrap();
            holds(weights, &unet(&config.shape(), Dialect { generative, combined: config.levels.combined }));
        }
    }

    #[test]
    fn autoencoders_are_total_in_both_directions() {
        for ((config, weights), generative) in [(golden!("monai-autoencoder-kl"), false), (golden!("monai-generative-autoencoder-kl"), true)] {
            let config = MonaiAutoencoderConfig::from_config(&config).unwrap();
            holds(weights, &autoencoder(&config.encoder(), &config.decoder(), Dialect { generative, combined: false }));
        }
    }
}
