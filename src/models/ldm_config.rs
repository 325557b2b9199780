//! The configurations that a single-file Stable Diffusion checkpoint implies, told from names and shapes alone, as
//! diffusers and transformers would write them.
//! What no shape shows is the published models' own: 32 groups in every norm, 8 heads where the transformers project by
//! convolutions (Stable Diffusion 1), heads of 64 channels where they project by linear layers (2 and XL).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::base::{Error, Kind, Result};
use crate::models::ldm_names::UnetShape;

/// Bounds of a hostile file: no published model comes near.
const MAX_BLOCKS: usize = 128;
const MAX_LEVELS: usize = 16;
const MAX_DEPTH: usize = 128;
/// Channels of a head where the shapes leave the choice.
const HEAD_CHANNELS: usize = 64;
/// Numbers beside the pooled text in what SDXL is conditioned by, and in its refiner.
const TIME_IDS: usize = 6;
const REFINER_TIME_IDS: usize = 5;
/// Width of the embedding of each of them, where the file holds no text encoder to tell.
const TIME_ID_WIDTH: usize = 256;

/// Shapes by the names in the file, without the part's prefix.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// A family of published models; what the shapes do not tell depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    One,
    Two,
    Xl,
    XlRefiner,
}

fn fault(place: &str, fact: String) -> Error {
    Error::new(Kind::Weights, place, fact)
}

fn find<'a>(shapes: &'a Shapes, name: &str) -> Result<&'a [usize]> {
    shapes.get(name).map(Vec::as_slice).ok_or_else(|| fault(name, "missing, expected it to tell the model's sizes".to_string()))
}

/// Dimension `axis` of a tensor of `axes` axes.
fn size(shapes: &Shapes, name: &str, axes: usize, axis: usize) -> Result<usize> {
    let shape = find(shapes, name)?;
    if shape.len() != axes || shape.contains(&0) {
        return Err(fault(name, format!("is {shape:?}, expected {axes} axes")));
    }
    Ok(shape[axis])
}

/// How many of `name(0)`, `name(1)`, ... there are from the first on.
fn count(shapes: &Shapes, limit: usize, name: impl Fn(usize) -> String) -> usize {
    (0..limit).take_while(|&i| shapes.contains_key(&name(i))).count()
}

/// The number that all are, where they are.
fn same(values: &[usize], place: &str, what: &str) -> Result<usize> {
    match values.split_first() {
        Some((first, rest)) if rest.iter().all(|value| value == first) => Ok(*first),
        _ => Err(fault(place, format!("{what} are {values:?}, expected the same number each"))),
    }
}

/// One resolution of the down path.
struct Level {
    /// Of each residual block.
    channels: Vec<usize>,
    /// Transformer blocks behind each residual block.
    depths: Vec<usize>,
}

fn levels(shapes: &Shapes) -> Result<Vec<Level>> {
    let mut levels = vec![Level { channels: Vec::new(), depths: Vec::new() }];
    for block in 1..MAX_BLOCKS {
        let at = format!("input_blocks.{block}");
        if shapes.contains_key(&format!("{at}.0.op.weight")) && levels.len() < MAX_LEVELS {
            levels.push(Level { channels: Vec::new(), depths: Vec::new() });
        } else if let (true, Some(level)) = (shapes.contains_key(&format!("{at}.0.in_layers.2.weight")), levels.last_mut()) {
            if shapes.contains_key(&format!("{at}.1.qkv.weight")) {
                return Err(fault(&at, "attention over positions alone, expected the transformers of Stable Diffusion".to_string()));
            }
            level.channels.push(size(shapes, &format!("{at}.0.in_layers.2.weight"), 4, 0)?);
            level.depths.push(depth(shapes, &format!("{at}.1")));
        } else {
            return Ok(levels);
        }
    }
    Err(fault("input_blocks", format!("{MAX_BLOCKS} or more, expected fewer")))
}

fn depth(shapes: &Shapes, transformer: &str) -> usize {
    count(shapes, MAX_DEPTH, |i| format!("{transformer}.transformer_blocks.{i}.norm1.weight"))
}

/// What `model.diffusion_model.` holds: for the map of names, and as the config.json of a `UNet2DConditionModel`.
/// `pooled`: width of the pooled text, where a text encoder tells it.
pub fn unet(shapes: &Shapes, family: Family, pooled: Option<usize>) -> Result<(UnetShape, Value)> {
    if shapes.contains_key("label_emb.weight") {
        return Err(fault("label_emb.weight", "an embedding of noise levels, expected no upscaler".to_string()));
    }
    let levels = levels(shapes)?;
    let layers = same(&levels.iter().map(|level| level.channels.len()).collect::<Vec<_>>(), "input_blocks", "residual blocks per resolution")?;
    let mut channels = Vec::new();
    let mut depths = Vec::new();
    for level in &levels {
        channels.push(same(&level.channels, "input_blocks", "channels of the blocks of one resolution")?);
        depths.push(same(&level.depths, "input_blocks", "transformer blocks of one resolution")?);
    }
    let attention: Vec<bool> = depths.iter().map(|&depth| depth > 0).collect();
    let middle = depth(shapes, "middle_block.1");
    let key = "middle_block.1.transformer_blocks.0.attn2.to_k.weight";
    let linear = find(shapes, "middle_block.1.proj_in.weight")?.len() == 2;
    let last = depths.len() - 1;
    if attention[last] && depths[last] != middle {
        return Err(fault("middle_block.1", format!("{middle} transformer blocks, expected {} as in the last input block", depths[last])));
    }
    let depths: Vec<usize> = depths
        .iter()
        .enumerate()
        .map(|(i, &depth)| {
            if depth > 0 {
                depth
            } else if i == last {
                middle
            } else {
                1
            }
        })
        .collect();
    let kinds = |name: &str, attention: &mut dyn Iterator<Item = &bool>| -> Vec<String> {
        attention.map(|&attended| if attended { format!("CrossAttn{name}Block2D") } else { format!("{name}Block2D") }).collect()
    };
    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "sample_size": latent_size(family, size(shapes, "input_blocks.0.0.weight", 4, 1)?),
        "in_channels": size(shapes, "input_blocks.0.0.weight", 4, 1)?,
        "out_channels": size(shapes, "out.2.weight", 4, 0)?,
        "down_block_types": kinds("Down", &mut attention.iter()),
        "up_block_types": kinds("Up", &mut attention.iter().rev()),
        "block_out_channels": channels,
        "layers_per_block": layers,
        "cross_attention_dim": size(shapes, key, 2, 1)?,
        "transformer_layers_per_block": depths,
        "attention_head_dim": heads(&channels, linear)?,
        "use_linear_projection": linear,
    });
    let label_embedding = label_embedding(shapes, family, pooled, &mut config)?;
    Ok((UnetShape { layers, attention, label_embedding }, config))
}

/// Heads per block, which diffusers calls attention_head_dim.
fn heads(channels: &[usize], linear: bool) -> Result<Value> {
    match channels.iter().find(|channels| *channels % HEAD_CHANNELS != 0) {
        _ if !linear => Ok(json!(8)),
        None => Ok(json!(channels.iter().map(|channels| channels / HEAD_CHANNELS).collect::<Vec<_>>())),
        Some(channels) => Err(fault("input_blocks", format!("{channels} channels with linear projections, expected multiples of {HEAD_CHANNELS}"))),
    }
}

/// Fields for `label_emb.0`; diffusers' name of it.
fn label_embedding(shapes: &Shapes, family: Family, pooled: Option<usize>, config: &mut Value) -> Result<Option<&'static str>> {
    if !shapes.contains_key("label_emb.0.0.weight") {
        return Ok(None);
    }
    let width = size(shapes, "label_emb.0.0.weight", 2, 1)?;
    config["projection_class_embeddings_input_dim"] = json!(width);
    let ids = match family {
        Family::One | Family::Two => {
            config["class_embed_type"] = json!("projection");
            return Ok(Some("class_embedding"));
        }
        Family::Xl => TIME_IDS,
        Family::XlRefiner => REFINER_TIME_IDS,
    };
    let each = match pooled {
        Some(pooled) => width.checked_sub(pooled).filter(|rest| *rest > 0 && rest % ids == 0).map(|rest| rest / ids),
        None => Some(TIME_ID_WIDTH),
    };
    let each =
        each.ok_or_else(|| fault("label_emb.0.0.weight", format!("{width} inputs, expected the {pooled:?} of the pooled text and {ids} equal parts")))?;
    config["addition_embed_type"] = json!("text_time");
    config["addition_time_embed_dim"] = json!(each);
    Ok(Some("add_embedding"))
}

/// Rows and columns of latents that the published model was trained on. Inpainting with 2 is its model of 512 pixels.
fn latent_size(family: Family, in_channels: usize) -> usize {
    match family {
        Family::One => 64,
        Family::Two if in_channels == 9 => 64,
        Family::Two => 96,
        Family::Xl | Family::XlRefiner => 128,
    }
}

/// What `first_stage_model.` holds: levels and layers, and the config.json of an `AutoencoderKL`.
pub fn autoencoder(shapes: &Shapes, family: Family) -> Result<(usize, usize, Value)> {
    let block = |level: usize, layer: usize| format!("encoder.down.{level}.block.{layer}.conv1.weight");
    let levels = count(shapes, MAX_LEVELS, |level| block(level, 0));
    if levels == 0 {
        return Err(fault(&block(0, 0), "missing, expected it to tell the model's sizes".to_string()));
    }
    let layers: Vec<usize> = (0..levels).map(|level| count(shapes, MAX_BLOCKS, |layer| block(level, layer))).collect();
    let layers = same(&layers, "encoder.down", "residual blocks per resolution")?;
    let channels: Vec<usize> = (0..levels).map(|level| size(shapes, &block(level, 0), 4, 0)).collect::<Result<_>>()?;
    let xl = matches!(family, Family::Xl | Family::XlRefiner);
    let config = json!({
        "_class_name": "AutoencoderKL",
        "in_channels": size(shapes, "encoder.conv_in.weight", 4, 1)?,
        "out_channels": size(shapes, "decoder.conv_out.weight", 4, 0)?,
        "latent_channels": size(shapes, "decoder.conv_in.weight", 4, 1)?,
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "layers_per_block": layers,
        "sample_size": 8 * latent_size(family, 9),
        "scaling_factor": if xl { 0.13025 } else { 0.18215 },
    });
    Ok((levels, layers, config))
}

/// The config.json of the text encoder in transformers' names, `text_model.` removed.
pub fn clip(shapes: &Shapes) -> Result<Value> {
    let layers = count(shapes, MAX_DEPTH, |layer| format!("encoder.layers.{layer}.layer_norm1.weight"));
    let inner = size(shapes, "encoder.layers.0.mlp.fc1.weight", 2, 0)?;
    text(shapes, ["embeddings.token_embedding.weight", "embeddings.position_embedding.weight"], "CLIPTextModel", layers, inner, None)
}

/// Layers, and the config.json of OpenCLIP's text encoder. `projected`: SDXL reads the last layers' pooled and projected
/// text; Stable Diffusion 2 reads the last layer but one, and its map drops the last.
pub fn open_clip(shapes: &Shapes, projected: bool) -> Result<(usize, Value)> {
    let held = count(shapes, MAX_DEPTH, |layer| format!("transformer.resblocks.{layer}.ln_1.weight"));
    let inner = size(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2, 0)?;
    let names = ["token_embedding.weight", "positional_embedding"];
    let (layers, class) = if projected { (held, "CLIPTextModelWithProjection") } else { (held.saturating_sub(1), "CLIPTextModel") };
    let projection = projected.then(|| size(shapes, "text_projection", 2, 1)).transpose()?;
    Ok((layers, text(shapes, names, class, layers, inner, projection)?))
}

fn text(shapes: &Shapes, [tokens, positions]: [&str; 2], class: &str, layers: usize, inner: usize, projection: Option<usize>) -> Result<Value> {
    let hidden = size(shapes, tokens, 2, 1)?;
    if layers == 0 || !hidden.is_multiple_of(HEAD_CHANNELS) {
        return Err(fault(tokens, format!("{hidden} channels and {layers} layers, expected multiples of {HEAD_CHANNELS} and a layer")));
    }
    Ok(json!({
        "architectures": [class],
        "model_type": "clip_text_model",
        "vocab_size": size(shapes, tokens, 2, 0)?,
        "max_position_embeddings": size(shapes, positions, 2, 0)?,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden / HEAD_CHANNELS,
        "hidden_act": if tokens.starts_with("embeddings") { "quick_gelu" } else { "gelu" },
        "layer_norm_eps": 1e-5,
        // As published: the token of the largest number ends a text.
        "eos_token_id": 2,
        "projection_dim": projection.unwrap_or(hidden),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ldm_names::tests::{Told, told};

    fn part(list: &[Told], part: &str, prefix: &str) -> Shapes {
        let rows = list.iter().filter(|told| told.part == part);
        rows.map(|told| (told.file.strip_prefix(prefix).unwrap().to_string(), told.shape.clone())).collect()
    }

    /// Every field that was told is the published model's.
    fn agrees(found: &Value, published: &Value) {
        for (field, value) in found.as_object().unwrap() {
            assert_eq!(*value, published[field], "{field}");
        }
    }

    #[test]
    fn full_size_files_tell_their_published_configurations() {
        let unet_prefix = "model.diffusion_model.";
        for (list, json, family) in [
            (include_str!("../../tests/golden/names/sd1-inpaint.txt"), include_str!("../../tests/golden/names/sd1-inpaint.json"), Family::One),
            (include_str!("../../tests/golden/names/sd2-depth.txt"), include_str!("../../tests/golden/names/sd2-depth.json"), Family::Two),
            (include_str!("../../tests/golden/names/sdxl.txt"), include_str!("../../tests/golden/names/sdxl.json"), Family::Xl),
        ] {
            let (list, published): (Vec<Told>, Value) = (told(list), serde_json::from_str(json).unwrap());
            let pooled = (family == Family::Xl).then_some(1280);
            let (shape, config) = unet(&part(&list, "unet", unet_prefix), family, pooled).unwrap();
            agrees(&config, &published["unet"]);
            assert_eq!((shape.layers, shape.label_embedding.is_some()), (2, family == Family::Xl));
            match family {
                Family::One => {
                    let (levels, layers, config) = autoencoder(&part(&list, "vae", "first_stage_model."), family).unwrap();
                    assert_eq!((levels, layers), (4, 2));
                    agrees(&config, &published["vae"]);
                    agrees(&clip(&part(&list, "text_encoder", "cond_stage_model.transformer.text_model.")).unwrap(), &published["text_encoder"]);
                }
                Family::Two => {
                    let (layers, config) = open_clip(&part(&list, "text_encoder", "cond_stage_model.model."), false).unwrap();
                    assert_eq!(layers, 23);
                    agrees(&config, &published["text_encoder"]);
                }
                Family::Xl | Family::XlRefiner => {
                    agrees(&clip(&part(&list, "text_encoder", "conditioner.embedders.0.transformer.text_model.")).unwrap(), &published["text_encoder"]);
                    let (layers, config) = open_clip(&part(&list, "text_encoder_2", "conditioner.embedders.1.model."), true).unwrap();
                    assert_eq!(layers, 32);
                    agrees(&config, &published["text_encoder_2"]);
                }
            }
        }
    }

    #[test]
    fn the_refiner_tells_its_own() {
        let list = told(include_str!("../../tests/golden/names/sdxl-refiner.txt"));
        let published: Value = serde_json::from_str(include_str!("../../tests/golden/names/sdxl-refiner.json")).unwrap();
        let (shape, mut config) = unet(&part(&list, "unet", "model.diffusion_model."), Family::XlRefiner, Some(1280)).unwrap();
        assert_eq!(config["transformer_layers_per_block"], json!([1, 4, 4, 4]));
        config["transformer_layers_per_block"] = json!(4);
        agrees(&config, &published["unet"]);
        assert_eq!(shape.attention, [false, true, true, false]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let list = told(include_str!("../../tests/golden/names/sd1-inpaint.txt"));
        let good = part(&list, "unet", "model.diffusion_model.");
        let error = |change: &dyn Fn(&mut Shapes)| {
            let mut shapes = good.clone();
            change(&mut shapes);
            unet(&shapes, Family::One, None).unwrap_err().to_string()
        };
        let insert = |name: &'static str, shape: &'static [usize]| move |s: &mut Shapes| drop(s.insert(name.to_string(), shape.to_vec()));
        assert_eq!(error(&|s| s.clear()), "input_blocks: channels of the blocks of one resolution are [], expected the same number each");
        assert_eq!(error(&insert("label_emb.weight", &[1000, 1280])), "label_emb.weight: an embedding of noise levels, expected no upscaler");
        let at = "input_blocks.2.0.in_layers.2.weight";
        assert_eq!(
            error(&insert(at, &[640, 320, 3, 3])),
            "input_blocks: channels of the blocks of one resolution are [320, 640], expected the same number each"
        );
        assert_eq!(error(&insert(at, &[0, 320, 3, 3])), format!("{at}: is [0, 320, 3, 3], expected 4 axes"));
        let without = |name: &'static str| move |s: &mut Shapes| drop(s.remove(name));
        let residuals = "input_blocks: residual blocks per resolution are [2, 2, 1], expected the same number each";
        assert_eq!(error(&without("input_blocks.8.0.in_layers.2.weight")), residuals);
        assert!(error(&without("out.2.weight")).starts_with("out.2.weight: missing"));
        let qkv = "input_blocks.1.1.qkv.weight";
        assert!(error(&insert(qkv, &[1])).starts_with("input_blocks.1: attention over positions alone"));
        assert!(open_clip(&Shapes::new(), false).is_err() && clip(&Shapes::new()).is_err() && autoencoder(&Shapes::new(), Family::One).is_err());
        let one = Shapes::from([("transformer.resblocks.0.mlp.c_fc.weight".to_string(), vec![4, 1]), ("token_embedding.weight".to_string(), vec![4, 64])]);
        assert!(open_clip(&one, false).unwrap_err().to_string().contains("0 layers"));
    }
}
