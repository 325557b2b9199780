//! Single-file Stable Diffusion checkpoints: the parts under diffusers' and transformers' names, with the configurations that
//! they imply. Every tensor of the file belongs to a part, or is known to be needed by nobody, or is an error.

use serde_json::Value;

use crate::base::{Error, Kind, Result};
use crate::models::ldm_config::{self, Family, Shapes};
use crate::models::ldm_names;
use crate::models::name_map::NameMap;
use crate::weights::{Config, Store};

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
/// Text encoders in transformers' names, and in OpenCLIP's.
const CLIP: [&str; 2] = ["cond_stage_model.transformer.", "conditioner.embedders.0.transformer."];
const OPEN_CLIP: [&str; 3] = ["cond_stage_model.model.", "conditioner.embedders.0.model.", "conditioner.embedders.1.model."];

/// Training state and constants of the noise schedule.
const DROPPED: [&str; 23] = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "scale_factor",
    "global_step",
    "epoch",
    "denoiser.sigmas",
    "v_pred",
    "ztsnr",
    "cond_stage_model.logit_scale",
    "cond_stage_model.text_projection",
    "first_stage_model.quantize.embedding.weight",
];
/// Averages of the same weights, the autoencoder's discriminator, and the network that makes depth maps.
const DROPPED_PREFIXES: [&str; 4] = ["model_ema.", "first_stage_model.model_ema.", "first_stage_model.loss.", "depth_model."];
/// Within a text encoder: buffers, and the scale of its contrastive training.
const DROPPED_TEXT: [&str; 5] = ["logit_scale", "attn_mask", "text_model.embeddings.position_ids", "embeddings.position_ids", "text_projection.weight"];
/// Names that an error lists.
const LISTED: usize = 8;
/// Where Stability AI's Stable Diffusion 2 base ended, which diffusers knows it by.
const TWO_BASE_STEPS: i64 = 875_000;

/// One model of the file: its tensors and its config.json.
pub struct LdmPart {
    pub store: Store,
    pub config: Config,
}

/// A file's models, under the names of the folders that diffusers would save them in.
pub struct LdmParts {
    pub family: Family,
    /// Channels that the UNet takes; None: the file holds none.
    pub in_channels: Option<usize>,
    /// What the UNet predicts: `epsilon`, `v_prediction`; None: nothing in the file tells.
    pub prediction_type: Option<&'static str>,
    pub unet: Option<LdmPart>,
    pub vae: Option<LdmPart>,
    pub text_encoder: Option<LdmPart>,
    /// SDXL's second.
    pub text_encoder_2: Option<LdmPart>,
    /// Names in the file that no model needs.
    pub dropped: Vec<String>,
}

/// The family that names and shapes are of; None: the file is no such checkpoint.
pub fn family(store: &Store) -> Option<Family> {
    let any = |prefix: &str| store.names().any(|name| name.starts_with(prefix));
    store.shape(&format!("{UNET}input_blocks.0.0.weight"))?;
    let tokens = store.shape(&format!("{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"));
    Some(match (any(CLIP[0]), any(OPEN_CLIP[0]), any(OPEN_CLIP[2]), any(OPEN_CLIP[1])) {
        (true, ..) => Family::One,
        (_, true, ..) => Family::Two,
        (_, _, true, _) => Family::Xl,
        (.., true) => Family::XlRefiner,
        _ => match tokens.and_then(|shape| shape.get(1)) {
            Some(1024) => Family::Two,
            Some(2048) => Family::Xl,
            Some(1280) => Family::XlRefiner,
            _ => Family::One,
        },
    })
}

/// Channels that the UNet takes.
pub fn in_channels(store: &Store) -> Option<usize> {
    store.shape(&format!("{UNET}input_blocks.0.0.weight"))?.get(1).copied()
}

/// Takes a file apart. Fails with the name of a tensor that belongs nowhere, or whose shape contradicts the rest.
pub fn parts(store: &Store) -> Result<LdmParts> {
    let error = |error: Error| error.remark(store.place());
    let family = family(store).ok_or_else(|| error(Error::new(Kind::Weights, UNET, "no UNet, expected a single-file Stable Diffusion checkpoint")))?;
    let mut found = LdmParts {
        family,
        in_channels: in_channels(store),
        prediction_type: prediction_type(store, family),
        unet: None,
        vae: None,
        text_encoder: None,
        text_encoder_2: None,
        dropped: Vec::new(),
    };
    found.dropped.extend(store.names().filter(|name| is_dropped(name)).map(str::to_string));
    refuse_strangers(store)?;
    let read = |found: &mut LdmParts| -> Result<()> {
        found.unet = Some(unet(store, family, &mut found.dropped)?);
        found.vae = autoencoder(store, family)?;
        let mut texts = Vec::new();
        for prefix in CLIP {
            texts.extend(clip(store, prefix, &mut found.dropped)?);
        }
        for prefix in OPEN_CLIP {
            texts.extend(open_clip(store, prefix, &mut found.dropped)?);
        }
        let mut texts = texts.into_iter();
        found.text_encoder = texts.next();
        found.text_encoder_2 = texts.next();
        Ok(())
    };
    read(&mut found).map_err(error)?;
    Ok(found)
}

fn is_dropped(name: &str) -> bool {
    DROPPED.contains(&name) || DROPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Tensors beside the parts: a ControlNet, another architecture.
fn refuse_strangers(store: &Store) -> Result<()> {
    let is_known = |name: &str| is_dropped(name) || [UNET, VAE].iter().chain(&CLIP).chain(&OPEN_CLIP).any(|prefix| name.starts_with(prefix));
    let strangers: Vec<&str> = store.names().filter(|name| !is_known(name)).collect();
    if strangers.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = strangers.iter().take(LISTED).map(|name| name.chars().take(160).collect()).collect();
    let more = if strangers.len() > LISTED { format!(" and {} more", strangers.len() - LISTED) } else { String::new() };
    let fact = format!("unused {}{more}, expected tensors of a UNet, an autoencoder and text encoders alone", shown.join(", "));
    Err(Error::new(Kind::Weights, "single file", fact).remark(store.place()))
}

/// What diffusers assumes, where that is certain: Stable Diffusion 2 has a base model that predicts noise and a later one that
/// predicts velocity, in files of the same names and shapes. A file that says so itself holds `v_pred`.
fn prediction_type(store: &Store, family: Family) -> Option<&'static str> {
    if store.shape("v_pred").is_some() {
        return Some("v_prediction");
    }
    let steps = store.integers("global_step").ok();
    match (family, in_channels(store)) {
        (Family::Two, Some(4)) if steps == Some(vec![TWO_BASE_STEPS]) => Some("epsilon"),
        (Family::Two, Some(4)) => None,
        _ => Some("epsilon"),
    }
}

fn shapes(store: &Store) -> Shapes {
    store.entries().into_iter().map(|entry| (entry.name, entry.shape)).collect()
}

/// A part of the file under the model's names. What it drops is added to `dropped`, by its name in the file.
fn renamed(store: Store, map: &NameMap, prefix: &str, is_dropped: impl Fn(&str) -> bool, dropped: &mut Vec<String>) -> Result<Store> {
    let store = map.apply(store, is_dropped)?;
    dropped.extend(store.dropped().iter().map(|name| format!("{prefix}{name}")));
    Ok(store)
}

fn config(store: &Store, part: &str, value: &Value) -> Result<Config> {
    Config::parse(&value.to_string(), &format!("{}: {part}", store.place()))
}

fn unet(store: &Store, family: Family, dropped: &mut Vec<String>) -> Result<LdmPart> {
    let pooled = OPEN_CLIP[1..].iter().find_map(|prefix| store.shape(&format!("{prefix}text_projection"))?.get(1).copied());
    let part = store.under(UNET);
    let (shape, value) = ldm_config::unet(&shapes(&part), family, pooled).map_err(|e| e.within("unet"))?;
    let config = config(store, "unet", &value)?;
    Ok(LdmPart { store: renamed(part, &ldm_names::unet(&shape), UNET, |_| false, dropped)?, config })
}

fn autoencoder(store: &Store, family: Family) -> Result<Option<LdmPart>> {
    let part = store.under(VAE);
    if part.names().next().is_none() {
        return Ok(None);
    }
    let (levels, layers, value) = ldm_config::autoencoder(&shapes(&part), family).map_err(|e| e.within("vae"))?;
    let config = config(store, "vae", &value)?;
    // Those are in the whole file's list.
    let is_dropped = |name: &str| is_dropped(&format!("{VAE}{name}"));
    let store = renamed(part, &ldm_names::autoencoder(levels, layers), VAE, is_dropped, &mut Vec::new())?;
    Ok(Some(LdmPart { store, config }))
}

fn clip(store: &Store, prefix: &str, dropped: &mut Vec<String>) -> Result<Option<LdmPart>> {
    let part = store.under(prefix);
    if part.names().next().is_none() {
        return Ok(None);
    }
    let wrapped = part.names().any(|name| name.starts_with("text_model."));
    let inner = if wrapped { part.under("text_model.") } else { part.clone() };
    let value = ldm_config::clip(&shapes(&inner)).map_err(|e| e.within("text_encoder"))?;
    let config = config(store, "text_encoder", &value)?;
    let store = renamed(part, &ldm_names::clip(wrapped), prefix, |name| DROPPED_TEXT.contains(&name), dropped)?;
    Ok(Some(LdmPart { store, config }))
}

fn open_clip(store: &Store, prefix: &str, dropped: &mut Vec<String>) -> Result<Option<LdmPart>> {
    let part = store.under(prefix);
    if part.names().next().is_none() {
        return Ok(None);
    }
    let projected = prefix != OPEN_CLIP[0];
    let (layers, value) = ldm_config::open_clip(&shapes(&part), projected).map_err(|e| e.within("text_encoder"))?;
    let config = config(store, "text_encoder", &value)?;
    let unread = format!("transformer.resblocks.{layers}.");
    let is_dropped = |name: &str| DROPPED_TEXT.contains(&name) || name == "text_projection" || name.starts_with(&unread);
    let store = renamed(part, &ldm_names::open_clip(layers, projected), prefix, is_dropped, dropped)?;
    Ok(Some(LdmPart { store, config }))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::models::model::Model;
    use crate::models::recognise;
    use crate::weights::Writer;

    type Rows = Vec<(String, Vec<usize>)>;

    /// Names and shapes of a golden's file.
    fn rows(weights: &str) -> Rows {
        let recipe: Value = serde_json::from_str(weights).unwrap();
        let mut rows: Rows = Vec::new();
        for row in recipe["tensors"].as_array().unwrap() {
            let (name, mut shape) = (row[0].as_str().unwrap(), serde_json::from_value::<Vec<usize>>(row[1].clone()).unwrap());
            if row.get(5).is_some() {
                shape.reverse();
            }
            match rows.last_mut().filter(|above| above.0 == name) {
                Some(above) => above.1[0] += shape[0],
                None => rows.push((name.to_string(), shape)),
            }
        }
        rows
    }

    /// A file of zeros. The folder goes with the path.
    fn file(rows: &Rows, steps: Option<i32>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut writer = Writer::new();
        for (name, shape) in rows {
            writer.f32(name, shape, vec![0.0; shape.iter().product()]).unwrap();
        }
        if let Some(steps) = steps {
            writer.i32("global_step", &[], vec![steps]).unwrap();
        }
        writer.write(&path).unwrap();
        (dir, path)
    }

    fn sd1() -> Rows {
        rows(include_str!("../../tests/golden/models/ldm-sd1-inpaint/weights.json"))
    }

    fn sd2() -> Rows {
        rows(include_str!("../../tests/golden/models/ldm-sd2/weights.json"))
    }

    fn model(rows: &Rows) -> Result<Box<dyn Model>> {
        let (_dir, path) = file(rows, None);
        recognise(&path).unwrap().load()
    }

    #[test]
    fn what_nobody_needs_is_told() {
        let dropped = model(&sd1()).unwrap().dropped().to_vec();
        for name in ["betas", "model_ema.decay", "alphas_cumprod"] {
            assert!(dropped.iter().any(|found| found == name), "{name}: {dropped:?}");
        }
        let (_dir, path) = file(&sd2(), None);
        let found = parts(&Store::open(&path).unwrap()).unwrap();
        for name in ["logit_scale", "text_projection", "transformer.resblocks.2.attn.in_proj_weight"] {
            assert!(found.dropped.contains(&format!("cond_stage_model.model.{name}")), "{name}: {:?}", found.dropped);
        }
        let text = found.text_encoder.unwrap().store;
        assert_eq!(text.shape("text_model.encoder.layers.1.self_attn.v_proj.bias"), Some(&[64][..]));
        assert_eq!(
            text.own_name("text_model.encoder.layers.1.self_attn.v_proj.bias"),
            Some("cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias")
        );
        assert!(!text.names().any(|name| name.contains("layers.2.")) && found.text_encoder_2.is_none());
    }

    #[test]
    fn a_tensor_that_belongs_nowhere_is_an_error() {
        let with = |name: &str| {
            let mut rows = sd1();
            rows.push((name.to_string(), vec![1]));
            model(&rows).err().unwrap().to_string()
        };
        let text = with("control_model.input_hint_block.0.weight");
        assert!(text.starts_with("single file: unused control_model.input_hint_block.0.weight, expected tensors of a UNet"), "{text}");
        let text = with("model.diffusion_model.input_blocks.1.0.extra.weight");
        assert!(text.starts_with("unet: unused input_blocks.1.0.extra.weight (in the file model.diffusion_model.input_blocks.1.0.extra.weight)"), "{text}");
        let text = with("first_stage_model.decoder.extra");
        assert!(text.starts_with("vae: unused decoder.extra (in the file first_stage_model.decoder.extra)"), "{text}");
    }

    #[test]
    fn a_tensor_that_is_not_there_is_named_as_the_model_calls_it() {
        let without = |name: &str| {
            let mut rows = sd1();
            rows.retain(|(found, _)| found != name);
            model(&rows).err().unwrap().to_string()
        };
        let text = without("model.diffusion_model.output_blocks.2.0.out_layers.3.bias");
        assert!(text.starts_with("unet: missing up_blocks.0.resnets.2.conv2.bias"), "{text}");
        let text = without("first_stage_model.encoder.mid.attn_1.q.weight");
        assert!(text.starts_with("vae: missing encoder.mid_block.attentions.0.to_q.weight"), "{text}");
        let text = without("model.diffusion_model.out.2.weight");
        assert!(text.contains("out.2.weight: missing, expected it to tell"), "{text}");
    }

    #[test]
    fn the_prediction_is_told_where_the_file_tells_it() {
        let told = |rows: &Rows, steps| {
            let (_dir, path) = file(rows, steps);
            parts(&Store::open(&path).unwrap()).unwrap().prediction_type
        };
        assert_eq!((told(&sd1(), None), told(&sd2(), None), told(&sd2(), Some(875_000))), (Some("epsilon"), None, Some("epsilon")));
        let mut rows = sd2();
        rows.push(("v_pred".to_string(), vec![1]));
        assert_eq!(told(&rows, None), Some("v_prediction"));
    }
}
