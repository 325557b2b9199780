//! Names of the latent diffusion code (CompVis, Stability AI) and what diffusers and transformers call the same places.
//! Source: `ldm/modules/diffusionmodules/openaimodel.py` and `model.py`, `open_clip/model.py`; each map is held against
//! diffusers' own converters by tests.

use crate::models::name_map::{NameMap, View};

const RESNET: [(&str, &str, View); 6] = [
    ("in_layers.0", "norm1", View::Same),
    ("in_layers.2", "conv1", View::Same),
    ("emb_layers.1", "time_emb_proj", View::Same),
    ("out_layers.0", "norm2", View::Same),
    ("out_layers.3", "conv2", View::Same),
    ("skip_connection", "conv_shortcut", View::Same),
];

const UNET_ENDS: [(&str, &str); 5] = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

/// What a UNet of these names is made of, as far as the names depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnetShape {
    /// Residual blocks per level on the way down; there is one more on the way up.
    pub layers: usize,
    /// Whether a level has attention, from the full resolution on.
    pub attention: Vec<bool>,
    /// diffusers' name of `label_emb.0`: `add_embedding` or `class_embedding`.
    pub label_embedding: Option<&'static str>,
}

/// `input_blocks`, `middle_block`, `output_blocks` as `down_blocks`, `mid_block`, `up_blocks`.
pub fn unet(shape: &UnetShape) -> NameMap {
    let mut map = NameMap::new();
    for (file, model) in UNET_ENDS {
        map.add(file, model, View::Same);
    }
    if let Some(embedding) = shape.label_embedding {
        map.add_below("label_emb.0", embedding, &[("0", "linear_1", View::Same), ("2", "linear_2", View::Same)]);
    }
    let levels = shape.attention.len();
    let per_level = shape.layers + 1;
    for (level, &attention) in shape.attention.iter().enumerate() {
        for layer in 0..shape.layers {
            let file = format!("input_blocks.{}", 1 + level * per_level + layer);
            resnet_and_attention(&mut map, &file, &format!("down_blocks.{level}"), layer, attention);
        }
        if level + 1 < levels {
            let file = format!("input_blocks.{}.0.op", (level + 1) * per_level);
            map.add(file, format!("down_blocks.{level}.downsamplers.0.conv"), View::Same);
        }
    }
    map.add_below("middle_block.0", "mid_block.resnets.0", &RESNET);
    map.add("middle_block.1", "mid_block.attentions.0", View::Same);
    map.add_below("middle_block.2", "mid_block.resnets.1", &RESNET);
    for (block, &attention) in shape.attention.iter().rev().enumerate() {
        for layer in 0..per_level {
            let file = format!("output_blocks.{}", block * per_level + layer);
            resnet_and_attention(&mut map, &file, &format!("up_blocks.{block}"), layer, attention);
        }
        if block + 1 < levels {
            // The upsampling stands behind the attention where there is one.
            let file = format!("output_blocks.{}.{}.conv", block * per_level + shape.layers, 1 + usize::from(attention));
            map.add(file, format!("up_blocks.{block}.upsamplers.0.conv"), View::Same);
        }
    }
    map
}

fn resnet_and_attention(map: &mut NameMap, file: &str, model: &str, layer: usize, attention: bool) {
    map.add_below(&format!("{file}.0"), &format!("{model}.resnets.{layer}"), &RESNET);
    if attention {
        map.add(format!("{file}.1"), format!("{model}.attentions.{layer}"), View::Same);
    }
}

const VAE_RESNET: [(&str, &str, View); 5] = [
    ("norm1", "norm1", View::Same),
    ("conv1", "conv1", View::Same),
    ("norm2", "norm2", View::Same),
    ("conv2", "conv2", View::Same),
    ("nin_shortcut", "conv_shortcut", View::Same),
];

/// Linear maps are 1x1 convolutions there.
const VAE_ATTENTION: [(&str, &str, View); 9] = [
    ("norm", "group_norm", View::Same),
    ("q.weight", "to_q.weight", View::Pointwise),
    ("q.bias", "to_q.bias", View::Same),
    ("k.weight", "to_k.weight", View::Pointwise),
    ("k.bias", "to_k.bias", View::Same),
    ("v.weight", "to_v.weight", View::Pointwise),
    ("v.bias", "to_v.bias", View::Same),
    ("proj_out.weight", "to_out.0.weight", View::Pointwise),
    ("proj_out.bias", "to_out.0.bias", View::Same),
];

/// An autoencoder of `levels` resolutions with `layers` residual blocks each in the encoder, one more in the decoder.
/// The file counts the decoder's levels from the full resolution on, diffusers in the order of the forward pass.
pub fn autoencoder(levels: usize, layers: usize) -> NameMap {
    let mut map = NameMap::new();
    for name in ["quant_conv", "post_quant_conv"] {
        map.add(name, name, View::Same);
    }
    for part in ["encoder", "decoder"] {
        map.add_below(part, part, &[("conv_in", "conv_in", View::Same), ("norm_out", "conv_norm_out", View::Same), ("conv_out", "conv_out", View::Same)]);
        map.add_below(&format!("{part}.mid.block_1"), &format!("{part}.mid_block.resnets.0"), &VAE_RESNET);
        map.add_below(&format!("{part}.mid.attn_1"), &format!("{part}.mid_block.attentions.0"), &VAE_ATTENTION);
        map.add_below(&format!("{part}.mid.block_2"), &format!("{part}.mid_block.resnets.1"), &VAE_RESNET);
    }
    for level in 0..levels {
        let (down, up) = (format!("encoder.down_blocks.{level}"), format!("decoder.up_blocks.{}", levels - 1 - level));
        for layer in 0..layers {
            map.add_below(&format!("encoder.down.{level}.block.{layer}"), &format!("{down}.resnets.{layer}"), &VAE_RESNET);
        }
        for layer in 0..=layers {
            map.add_below(&format!("decoder.up.{level}.block.{layer}"), &format!("{up}.resnets.{layer}"), &VAE_RESNET);
        }
        if level + 1 < levels {
            map.add(format!("encoder.down.{level}.downsample.conv"), format!("{down}.downsamplers.0.conv"), View::Same);
        }
        if level > 0 {
            map.add(format!("decoder.up.{level}.upsample.conv"), format!("{up}.upsamplers.0.conv"), View::Same);
        }
    }
    map
}

const OPEN_CLIP_LAYER: [(&str, &str, View); 11] = [
    ("ln_1", "layer_norm1", View::Same),
    ("ln_2", "layer_norm2", View::Same),
    ("mlp.c_fc", "mlp.fc1", View::Same),
    ("mlp.c_proj", "mlp.fc2", View::Same),
    ("attn.out_proj", "self_attn.out_proj", View::Same),
    ("attn.in_proj_weight", "self_attn.q_proj.weight", View::Third(0)),
    ("attn.in_proj_weight", "self_attn.k_proj.weight", View::Third(1)),
    ("attn.in_proj_weight", "self_attn.v_proj.weight", View::Third(2)),
    ("attn.in_proj_bias", "self_attn.q_proj.bias", View::Third(0)),
    ("attn.in_proj_bias", "self_attn.k_proj.bias", View::Third(1)),
    ("attn.in_proj_bias", "self_attn.v_proj.bias", View::Third(2)),
];

/// A text encoder of OpenCLIP as transformers has it, its first `layers` layers; `projection`: with `text_projection`.
pub fn open_clip(layers: usize, projection: bool) -> NameMap {
    let mut map = NameMap::new();
    map.add("token_embedding", "text_model.embeddings.token_embedding", View::Same);
    map.add("positional_embedding", "text_model.embeddings.position_embedding.weight", View::Same);
    map.add("ln_final", "text_model.final_layer_norm", View::Same);
    if projection {
        map.add("text_projection", "text_projection.weight", View::Transposed);
    }
    for layer in 0..layers {
        map.add_below(&format!("transformer.resblocks.{layer}"), &format!("text_model.encoder.layers.{layer}"), &OPEN_CLIP_LAYER);
    }
    map
}

/// A text encoder in transformers' own names, which is what Stable Diffusion 1 holds; without `wrapped` the first step of
/// the names is absent, as newer transformers have it in memory.
pub fn clip(wrapped: bool) -> NameMap {
    let mut map = NameMap::new();
    for part in ["embeddings", "encoder", "final_layer_norm"] {
        let model = format!("text_model.{part}");
        map.add(if wrapped { &model } else { part }, &model, View::Same);
    }
    map
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// One tensor of tests/golden/names: part, name in the file, shape there, names in the model.
    pub struct Told {
        pub part: String,
        pub file: String,
        pub shape: Vec<usize>,
        model: Vec<String>,
    }

    /// A list of tools/golden/ldm.py, where diffusers' converters have confirmed every row.
    pub fn told(list: &str) -> Vec<Told> {
        let mut above = [const { String::new() }; 4];
        let row = |line: &str| {
            for (text, column) in line.split(' ').zip(&mut above) {
                let (shared, rest) = text.split_once(':').unwrap();
                *column = format!("{}{rest}", &column[..shared.parse::<usize>().unwrap()]);
            }
            let model = above[3].split('+').filter(|name| *name != "-").map(str::to_string).collect();
            let shape = above[2].split('x').map(|dim| dim.parse().unwrap()).collect();
            Told { part: above[0].clone(), file: above[1].clone(), shape, model }
        };
        list.lines().map(row).collect()
    }

    /// Every tensor of the file goes to the model's names and back, and no name of either side is met twice.
    fn holds(list: &[Told], part: &str, prefix: &str, map: &NameMap) {
        let rows: Vec<&Told> = list.iter().filter(|told| told.part == part).collect();
        assert!(!rows.is_empty(), "{part}");
        let (mut files, mut models) = (BTreeSet::new(), BTreeSet::new());
        for told in rows {
            let name = told.file.strip_prefix(prefix).unwrap();
            let mut found: Vec<String> = map.to_model(name).into_iter().map(|(name, _)| name).collect();
            found.sort();
            assert_eq!(found, told.model, "{name}");
            assert!(files.insert(name), "{name} twice");
            for model in &told.model {
                let (back, view) = map.to_file(model).unwrap();
                assert_eq!(back, name, "{model}");
                assert!(map.to_model(name).contains(&(model.clone(), view)), "{model}");
                assert!(models.insert(model.clone()), "{model} twice");
            }
        }
        let rows = map.rows();
        assert_eq!(rows.iter().map(|row| &row.model).collect::<BTreeSet<_>>().len(), rows.len(), "a place of the model has two rows");
    }

    fn shape(attention: &[bool], label_embedding: Option<&'static str>) -> UnetShape {
        UnetShape { layers: 2, attention: attention.to_vec(), label_embedding }
    }

    #[test]
    fn stable_diffusion_1_is_total_in_both_directions() {
        let list = told(include_str!("../../tests/golden/names/sd1-inpaint.txt"));
        assert_eq!(list.len(), 686 + 248 + 196);
        holds(&list, "unet", "model.diffusion_model.", &unet(&shape(&[true, true, true, false], None)));
        holds(&list, "vae", "first_stage_model.", &autoencoder(4, 2));
        holds(&list, "text_encoder", "cond_stage_model.transformer.", &clip(true));
        assert_eq!(clip(false).to_model("embeddings.x")[0].0, "text_model.embeddings.x");
    }

    #[test]
    fn stable_diffusion_2_is_total_in_both_directions_and_leaves_the_last_layer() {
        let list = told(include_str!("../../tests/golden/names/sd2-depth.txt"));
        holds(&list, "unet", "model.diffusion_model.", &unet(&shape(&[true, true, true, false], None)));
        holds(&list, "text_encoder", "cond_stage_model.model.", &open_clip(23, false));
        let left: Vec<&str> = list.iter().filter(|told| told.model.is_empty()).map(|told| told.file.as_str()).collect();
        assert!(left.len() == 12 && left.iter().all(|name| name.contains(".resblocks.23.")), "{left:?}");
    }

    #[test]
    fn stable_diffusion_xl_is_total_in_both_directions() {
        let list = told(include_str!("../../tests/golden/names/sdxl.txt"));
        holds(&list, "unet", "model.diffusion_model.", &unet(&shape(&[false, true, true], Some("add_embedding"))));
        holds(&list, "text_encoder", "conditioner.embedders.0.transformer.", &clip(true));
        holds(&list, "text_encoder_2", "conditioner.embedders.1.model.", &open_clip(32, true));
        let refiner = told(include_str!("../../tests/golden/names/sdxl-refiner.txt"));
        holds(&refiner, "unet", "model.diffusion_model.", &unet(&shape(&[false, true, true, false], Some("add_embedding"))));
        let views = open_clip(32, true);
        assert_eq!(views.to_file("text_projection.weight"), Some(("text_projection".to_string(), View::Transposed)));
    }
}
