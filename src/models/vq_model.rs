//! diffusers `VQModel`: images to latents, and latents to images by way of the nearest rows of a codebook.
//! Source: `diffusers/models/autoencoders/vq_model.py`; Esser et al., "Taming Transformers for High-Resolution Image
//! Synthesis" (2021).

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::autoencoder_blocks::{Decoder, Encoder, check_latents};
use crate::models::autoencoder_config::AutoencoderConfig;
use crate::models::model::{Architecture, Autoencoder, Component, Inputs, Model, Output, Port, is_class};
use crate::nn::Conv2d;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::plan::{Layout, Tape, Tensor, Weight};
use crate::weights::{Config, Scope};

const MAX_CODES: usize = 1 << 20;

/// The model and its weights. Pixels are in [-1, 1] on either side.
pub struct VqModel {
    config: AutoencoderConfig,
    codebook: Codebook,
    parameters: u64,
    encoder: Encoder,
    quant_conv: Conv2d,
    /// `quantize.embedding`, `[num_vq_embeddings, vq_embed_dim]`.
    embedding: Weight,
    post_quant_conv: Conv2d,
    decoder: Decoder,
}

/// Rows of the codebook and numbers of each: what `VQModel` has beside [`AutoencoderConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Codebook {
    num_vq_embeddings: usize,
    vq_embed_dim: usize,
}

fn read_config(c: &Config) -> Result<(AutoencoderConfig, Codebook)> {
    c.require("_class_name", "VQModel")?;
    let config = AutoencoderConfig::from_config(c, 3)?;
    // `spatial` normalises by the latents themselves.
    c.choice("norm_type", Some(()), &[("group", ())])?;
    // It concerns latents that are already row numbers.
    if c.flag("lookup_from_codebook", false)? {
        return Err(c.error("lookup_from_codebook", "true, expected false: latents are vectors, and are quantised when they are decoded"));
    }
    let codebook = Codebook {
        num_vq_embeddings: c.integer("num_vq_embeddings", 256, 1..=MAX_CODES)?,
        vq_embed_dim: c.nullable_integer("vq_embed_dim", None, 1..=65_536)?.unwrap_or(config.latent_channels),
    };
    c.finish()?;
    Ok((config, codebook))
}

impl VqModel {
    /// Loads the weights of `scope`, its root, and closes its account.
    pub fn from_scope(scope: &Scope, config: &Config) -> Result<VqModel> {
        let (config, codebook) = read_config(config)?;
        let (latents, width) = (config.latent_channels, codebook.vq_embed_dim);
        let conv = |name: &str, inputs, outputs| Conv2d::load(&scope.child(name), inputs, outputs, 1, Geometry::default());
        let mut model = VqModel {
            encoder: Encoder::load(&scope.child("encoder"), &config, latents),
            quant_conv: conv("quant_conv", latents, width),
            embedding: scope.child("quantize.embedding").weight("weight", &[codebook.num_vq_embeddings, width], Layout::Plain),
            post_quant_conv: conv("post_quant_conv", width, latents),
            decoder: Decoder::load(&scope.child("decoder"), &config),
            codebook,
            config,
            parameters: 0,
        };
        model.parameters = scope.finish()?.parameters;
        Ok(model)
    }

    /// sample: `[N, H, W, in_channels]`; result `[N, h, w, vq_embed_dim]`, not yet quantised.
    pub fn encode(&self, t: &mut Tape, sample: Tensor) -> Result<Tensor> {
        let h = self.encoder.forward(t, sample)?;
        self.quant_conv.forward(t, h)
    }

    /// latents: `[N, h, w, vq_embed_dim]`, not scaled, quantised here; result `[N, H, W, out_channels]`.
    pub fn decode(&self, t: &mut Tape, latents: Tensor) -> Result<Tensor> {
        check_latents(t, latents, self.codebook.vq_embed_dim)?;
        let quantised = t.scope("quantize", |t| {
            let table = t.weight(&self.embedding);
            t.nearest_row(latents, table)
        })?;
        let h = self.post_quant_conv.forward(t, quantised)?;
        self.decoder.forward(t, h)
    }
}

impl Model for VqModel {
    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let c = &self.config;
        vec![
            ("latent_channels", json!(self.codebook.vq_embed_dim)),
            ("num_vq_embeddings", json!(self.codebook.num_vq_embeddings)),
            ("downscale", json!(c.downscale())),
            ("block_out_channels", json!(c.block_out_channels)),
            ("sample_size", json!(c.sample_size)),
            ("scaling_factor", json!(c.scaling_factor)),
        ]
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::VaeEncoder, Component::VaeDecoder]
    }

    fn ports(&self, component: Component, batch: usize) -> Vec<Port> {
        let c = &self.config;
        let [h, w] = c.pixels();
        match component {
            Component::VaeEncoder => vec![Port::image("sample", [batch, h, w, c.in_channels])],
            _ => vec![Port::image("latents", [batch, h / c.downscale(), w / c.downscale(), self.codebook.vq_embed_dim])],
        }
    }

    fn record(&self, t: &mut Tape, component: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        Ok(match component {
            Component::VaeEncoder => vec![Output::image("latents", self.encode(t, inputs.get("sample")?)?)],
            _ => vec![Output::image("sample", self.decode(t, inputs.get("latents")?)?)],
        })
    }

    fn autoencoder(&self) -> Option<Autoencoder> {
        Some(Autoencoder {
            latent_channels: self.codebook.vq_embed_dim,
            downscale: self.config.downscale(),
            scaling_factor: Some(self.config.scaling_factor),
            shift_factor: 0.0,
            pixel_range: [-1.0, 1.0],
        })
    }
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "diffusers VQModel",
    is_config: |config| is_class(config, "VQModel"),
    // Without its configuration the groups of its norms are unknown.
    is_tensors: |_| false,
    is_path: |_| false,
    load: |checkpoint| Ok(Box::new(VqModel::from_scope(&checkpoint.scope("vae")?, checkpoint.config()?)?)),
};

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<(AutoencoderConfig, Codebook)> {
        read_config(&Config::parse(&format!("{{\"_class_name\":\"VQModel\"{fields}}}"), "vae/config.json").unwrap())
    }

    #[test]
    fn codes_are_as_wide_as_latents_unless_told() {
        let (c, codebook) = parse(r#","vq_embed_dim":null,"norm_type":"group""#).unwrap();
        assert_eq!((c.latent_channels, codebook), (3, Codebook { num_vq_embeddings: 256, vq_embed_dim: 3 }));
        assert_eq!(parse(r#","vq_embed_dim":5,"num_vq_embeddings":7"#).unwrap().1, Codebook { num_vq_embeddings: 7, vq_embed_dim: 5 });
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let rows = [
            (r#","norm_type":"spatial""#, r#"vae/config.json: norm_type: "spatial", expected "group""#),
            (r#","lookup_from_codebook":true"#, "vae/config.json: lookup_from_codebook: true, expected false"),
            (r#","num_vq_embeddings":0"#, "vae/config.json: num_vq_embeddings: 0, expected an integer from 1"),
            (r#","shift_factor":1"#, "vae/config.json: unknown or unsupported field `shift_factor`"),
        ];
        for (fields, want) in rows {
            let error = parse(fields).err().unwrap().to_string();
            assert!(error.starts_with(want), "{fields}: {error}");
        }
    }
}
