//! A single-file Stable Diffusion checkpoint as one model: its UNet, autoencoder and text encoders.

use serde_json::{Value, json};

use crate::base::{Error, Kind, Result};
use crate::models::autoencoder_kl::AutoencoderKl;
use crate::models::clip_text::{ClipText, ClipTextConfig};
use crate::models::ldm::{self, LdmPart};
use crate::models::ldm_config::Family;
use crate::models::model::{Architecture, Autoencoder, Checkpoint, Component, Denoiser, Inputs, Model, Output, Port};
use crate::models::unet_2d_condition::UNet2DConditionModel;
use crate::models::unet_2d_condition_config::UNet2DConditionConfig;
use crate::plan::Tape;
use crate::weights::{Scope, Store};

/// The loaded parts. A file may hold the UNet alone.
pub struct SingleFile {
    unet: Box<dyn Model>,
    vae: Option<Box<dyn Model>>,
    text_encoder: Option<Box<dyn Model>>,
    text_encoder_2: Option<Box<dyn Model>>,
    prediction_type: Option<&'static str>,
    dropped: Vec<String>,
}

type Loader = fn(LdmPart) -> Result<Box<dyn Model>>;

fn load_unet(part: LdmPart) -> Result<Box<dyn Model>> {
    let config = UNet2DConditionConfig::from_config(&part.config)?;
    Ok(Box::new(UNet2DConditionModel::from_scope(&Scope::new(part.store, "unet"), config)?))
}

fn load_vae(part: LdmPart) -> Result<Box<dyn Model>> {
    Ok(Box::new(AutoencoderKl::from_scope(&Scope::new(part.store, "vae"), &part.config)?))
}

fn load_text_encoder(part: LdmPart) -> Result<Box<dyn Model>> {
    let config = ClipTextConfig::from_config(&part.config)?;
    Ok(Box::new(ClipText::from_scope(&Scope::new(part.store, "text encoder"), config)?))
}

impl SingleFile {
    pub fn load(checkpoint: &Checkpoint) -> Result<SingleFile> {
        let parts = ldm::parts(&checkpoint.store()?)?;
        let mut dropped = parts.dropped;
        let mut load = |part: Option<LdmPart>, loader: Loader| -> Result<Option<Box<dyn Model>>> {
            let model = part.map(loader).transpose()?;
            dropped.extend(model.iter().flat_map(|model| model.dropped().to_vec()));
            Ok(model)
        };
        let place = checkpoint.path.display().to_string();
        Ok(SingleFile {
            unet: load(parts.unet, load_unet)?.ok_or_else(|| Error::new(Kind::Weights, place, "no UNet in the file, expected one"))?,
            vae: load(parts.vae, load_vae)?,
            text_encoder: load(parts.text_encoder, load_text_encoder)?,
            text_encoder_2: load(parts.text_encoder_2, load_text_encoder)?,
            prediction_type: parts.prediction_type,
            dropped,
        })
    }

    fn models(&self) -> impl Iterator<Item = (&'static str, &dyn Model)> {
        let optional = [("vae", &self.vae), ("text_encoder", &self.text_encoder), ("text_encoder_2", &self.text_encoder_2)];
        let optional = optional.into_iter().filter_map(|(name, model)| Some((name, model.as_ref()?.as_ref())));
        std::iter::once(("unet", self.unet.as_ref())).chain(optional)
    }

    /// The model that runs `component`. SDXL's second text encoder is one of [`ldm::parts`], and no component of its own.
    fn model(&self, component: Component) -> Option<&dyn Model> {
        self.models().map(|(_, model)| model).find(|model| model.components().contains(&component))
    }
}

impl Model for SingleFile {
    fn parameters(&self) -> u64 {
        self.models().map(|(_, model)| model.parameters()).sum()
    }

    fn dropped(&self) -> &[String] {
        &self.dropped
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let of_part = |(name, model): (&'static str, &dyn Model)| {
            let mut facts: serde_json::Map<String, Value> = model.facts().into_iter().map(|(fact, value)| (fact.to_string(), value)).collect();
            facts.insert("parameters".to_string(), json!(model.parameters()));
            (name, Value::Object(facts))
        };
        let prediction = json!(self.prediction_type.unwrap_or("not in the file: epsilon in Stable Diffusion 2 base, v_prediction in 2 at 768 pixels"));
        std::iter::once(("prediction_type", prediction)).chain(self.models().map(of_part)).collect()
    }

    fn components(&self) -> Vec<Component> {
        let mut components: Vec<Component> = self.models().flat_map(|(_, model)| model.components()).collect();
        components.dedup();
        components
    }

    fn ports(&self, component: Component, batch: usize) -> Vec<Port> {
        self.model(component).map_or(Vec::new(), |model| model.ports(component, batch))
    }

    fn record(&self, t: &mut Tape, component: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        let absent = || Error::new(Kind::Usage, component.name(), "the file holds no such model");
        self.model(component).ok_or_else(absent)?.record(t, component, inputs)
    }

    fn denoiser(&self) -> Option<Denoiser> {
        self.unet.denoiser()
    }

    fn autoencoder(&self) -> Option<Autoencoder> {
        self.vae.as_ref()?.autoencoder()
    }
}

/// Channels of a denoiser that sees a mask and masked latents beside its own, and of one that sees a depth map.
const INPAINTING: usize = 9;
const DEPTH: usize = 5;

fn is(store: &Store, family: Family, in_channels: Option<usize>) -> bool {
    ldm::family(store) == Some(family) && in_channels.is_none_or(|channels| ldm::in_channels(store) == Some(channels))
}

const fn row(name: &'static str, is_tensors: fn(&Store) -> bool) -> Architecture {
    Architecture { name, is_config: |_| false, is_tensors, is_path: |_| false, load: |checkpoint| Ok(Box::new(SingleFile::load(checkpoint)?)) }
}

pub static SD1_INPAINTING: Architecture = row("Stable Diffusion 1.x inpainting, single file", |store| is(store, Family::One, Some(INPAINTING)));
pub static SD1: Architecture = row("Stable Diffusion 1.x, single file", |store| is(store, Family::One, None));
pub static SD2_INPAINTING: Architecture = row("Stable Diffusion 2.x inpainting, single file", |store| is(store, Family::Two, Some(INPAINTING)));
pub static SD2_DEPTH: Architecture = row("Stable Diffusion 2.x depth, single file", |store| is(store, Family::Two, Some(DEPTH)));
pub static SD2: Architecture = row("Stable Diffusion 2.x, single file", |store| is(store, Family::Two, None));
pub static SDXL_INPAINTING: Architecture = row("Stable Diffusion XL inpainting, single file", |store| is(store, Family::Xl, Some(INPAINTING)));
pub static SDXL: Architecture = row("Stable Diffusion XL, single file", |store| is(store, Family::Xl, None));
pub static SDXL_REFINER: Architecture = row("Stable Diffusion XL refiner, single file", |store| is(store, Family::XlRefiner, None));
