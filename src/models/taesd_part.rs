//! One half of a TAESD, as its files stand on their own: `taef2_encoder.pth`, `taesd_decoder.safetensors`. A folder with both halves
//! and a config.json is a [`Taesd`](crate::models::Taesd).

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::model::{Architecture, Autoencoder, Component, Inputs, Model, Output, Port};
use crate::models::taesd::{Part, Sequential};
use crate::plan::Tape;
use crate::weights::{Scope, Store};

/// An encoder or a decoder. Pixels are in [0, 1].
struct TaesdPart {
    part: Part,
    layers: Sequential,
}

impl TaesdPart {
    fn load(scope: &Scope) -> Result<TaesdPart> {
        let part = if has_first_layer(scope.store()) { Part::Encoder } else { Part::Decoder };
        Ok(TaesdPart { part, layers: Sequential::load(scope, part)? })
    }
}

/// An encoder begins with a convolution; a decoder with a clamp, which has no weights.
fn has_first_layer(store: &Store) -> bool {
    store.names().any(|name| name.starts_with("0."))
}

/// Whether every name begins with the index of a layer, and some are those of blocks of three convolutions.
fn is_tensors(store: &Store) -> bool {
    let of_layer = |name: &str| name.split_once('.').is_some_and(|(index, _)| index.parse::<u16>().is_ok());
    let ends = |end: &str| store.names().any(|name| name.ends_with(end));
    store.names().all(of_layer) && [".conv.0.weight", ".conv.2.weight", ".conv.4.weight"].into_iter().all(ends)
}

impl Model for TaesdPart {
    fn parameters(&self) -> u64 {
        self.layers.parameters
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let latent_channels = if self.part == Part::Encoder { self.layers.outputs } else { self.layers.inputs };
        vec![
            ("part", json!(self.part.name())),
            ("latent_channels", json!(latent_channels)),
            ("downscale", json!(self.layers.factor)),
            ("pool_branch_in_middle_blocks", json!(self.layers.has_pool_branch)),
        ]
    }

    fn components(&self) -> Vec<Component> {
        vec![if self.part == Part::Encoder { Component::VaeEncoder } else { Component::VaeDecoder }]
    }

    fn ports(&self, component: Component, batch: usize) -> Vec<Port> {
        let size = 256usize.next_multiple_of(self.layers.factor.max(1));
        let latents = size / self.layers.factor.max(1);
        match component {
            Component::VaeEncoder => vec![Port::image("sample", [batch, size, size, self.layers.inputs])],
            _ => vec![Port::image("latents", [batch, latents, latents, self.layers.inputs])],
        }
    }

    fn record(&self, t: &mut Tape, component: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        Ok(match component {
            Component::VaeEncoder => vec![Output::image("latents", self.layers.encode(t, inputs.get("sample")?)?)],
            _ => vec![Output::image("sample", self.layers.decode(t, inputs.get("latents")?)?)],
        })
    }

    fn autoencoder(&self) -> Option<Autoencoder> {
        let latent_channels = if self.part == Part::Encoder { self.layers.outputs } else { self.layers.inputs };
        Some(Autoencoder { latent_channels, downscale: self.layers.factor, scaling_factor: None, shift_factor: 0.0, pixel_range: [0.0, 1.0] })
    }
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "half of a TAESD autoencoder",
    is_config: |_| false,
    is_tensors,
    is_path: |_| false,
    load: |checkpoint| Ok(Box::new(TaesdPart::load(&checkpoint.scope("vae")?)?)),
};
