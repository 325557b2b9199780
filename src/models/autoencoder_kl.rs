//! diffusers `AutoencoderKL`: images to a Gaussian of latents, and latents to images.
//! Source: `diffusers/models/autoencoders/autoencoder_kl.py`; Rombach et al., "High-Resolution Image Synthesis with Latent
//! Diffusion Models" (2022).

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::autoencoder_blocks::{Decoder, Encoder, check_latents};
use crate::models::autoencoder_config::AutoencoderConfig;
use crate::models::model::{Architecture, Autoencoder, Component, Inputs, Model, Output, Port, is_class};
use crate::nn::Conv2d;
use crate::ops::activation::Function;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope};

/// The logarithm of the variance is kept between these: `DiagonalGaussianDistribution`.
const LOGVAR: Function = Function::Clamp { low: -30.0, high: 20.0 };

/// The model and its weights. Pixels are in [-1, 1] on either side.
pub struct AutoencoderKl {
    config: AutoencoderConfig,
    shift_factor: f32,
    parameters: u64,
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
}

/// What `AutoencoderKL` has beside [`AutoencoderConfig`].
struct Extras {
    shift_factor: f32,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
}

fn read_config(c: &Config) -> Result<(AutoencoderConfig, Extras)> {
    c.require("_class_name", "AutoencoderKL")?;
    let config = AutoencoderConfig::from_config(c, 4)?;
    for field in ["latents_mean", "latents_std"] {
        if c.nullable_numbers(field, -1e6..=1e6, 1024)?.is_some() {
            return Err(c.error(field, "numbers per channel, expected null: latents are scaled by scaling_factor and shift_factor alone"));
        }
    }
    let no_shift = matches!(c.nullable_numbers("shift_factor", -1e6..=1e6, 1), Ok(None));
    let shift_factor = if no_shift { 0.0 } else { c.number("shift_factor", 0.0, -1e6..=1e6)? as f32 };
    let extras = Extras { shift_factor, use_quant_conv: c.flag("use_quant_conv", true)?, use_post_quant_conv: c.flag("use_post_quant_conv", true)? };
    c.finish()?;
    Ok((config, extras))
}

impl AutoencoderKl {
    /// Loads the weights of `scope`, its root, and closes its account.
    pub fn from_scope(scope: &Scope, config: &Config) -> Result<AutoencoderKl> {
        let (config, extras) = read_config(config)?;
        let latents = config.latent_channels;
        let conv = |name: &str, channels| Conv2d::load(&scope.child(name), channels, channels, 1, Geometry::default());
        let mut model = AutoencoderKl {
            encoder: Encoder::load(&scope.child("encoder"), &config, 2 * latents),
            quant_conv: extras.use_quant_conv.then(|| conv("quant_conv", 2 * latents)),
            post_quant_conv: extras.use_post_quant_conv.then(|| conv("post_quant_conv", latents)),
            decoder: Decoder::load(&scope.child("decoder"), &config),
            shift_factor: extras.shift_factor,
            config,
            parameters: 0,
        };
        model.parameters = scope.finish()?.parameters;
        Ok(model)
    }

    /// sample: `[N, H, W, in_channels]`; result: mean and logarithm of the variance, each `[N, h, w, latent_channels]`.
    pub fn encode(&self, t: &mut Tape, sample: Tensor) -> Result<[Tensor; 2]> {
        let h = self.encoder.forward(t, sample)?;
        let moments = match &self.quant_conv {
            Some(conv) => conv.forward(t, h)?,
            None => h,
        };
        let latents = self.config.latent_channels;
        let mean = t.slice(moments, 3, 0, latents)?;
        let logvar = t.slice(moments, 3, latents, latents)?;
        Ok([mean, t.activation(logvar, LOGVAR)?])
    }

    /// latents: `[N, h, w, latent_channels]`, not scaled; result `[N, H, W, out_channels]`.
    pub fn decode(&self, t: &mut Tape, latents: Tensor) -> Result<Tensor> {
        check_latents(t, latents, self.config.latent_channels)?;
        let h = match &self.post_quant_conv {
            Some(conv) => conv.forward(t, latents)?,
            None => latents,
        };
        self.decoder.forward(t, h)
    }
}

impl Model for AutoencoderKl {
    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let c = &self.config;
        vec![
            ("latent_channels", json!(c.latent_channels)),
            ("downscale", json!(c.downscale())),
            ("block_out_channels", json!(c.block_out_channels)),
            ("sample_size", json!(c.sample_size)),
            ("scaling_factor", json!(c.scaling_factor)),
            ("shift_factor", json!(self.shift_factor)),
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
            _ => vec![Port::image("latents", [batch, h / c.downscale(), w / c.downscale(), c.latent_channels])],
        }
    }

    fn record(&self, t: &mut Tape, component: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        Ok(match component {
            Component::VaeEncoder => {
                let [mean, logvar] = self.encode(t, inputs.get("sample")?)?;
                vec![Output::image("latent_dist_mean", mean), Output::image("latent_dist_logvar", logvar)]
            }
            _ => vec![Output::image("sample", self.decode(t, inputs.get("latents")?)?)],
        })
    }

    fn autoencoder(&self) -> Option<Autoencoder> {
        let c = &self.config;
        Some(Autoencoder {
            latent_channels: c.latent_channels,
            downscale: c.downscale(),
            scaling_factor: Some(c.scaling_factor),
            shift_factor: self.shift_factor,
            pixel_range: [-1.0, 1.0],
        })
    }
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "diffusers AutoencoderKL",
    is_config: |config| is_class(config, "AutoencoderKL"),
    // Without its configuration the groups of its norms and the scale of its latents are unknown.
    is_tensors: |_| false,
    is_path: |_| false,
    load: |checkpoint| Ok(Box::new(AutoencoderKl::from_scope(&checkpoint.scope("vae")?, checkpoint.config()?)?)),
};

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<(AutoencoderConfig, Extras)> {
        read_config(&Config::parse(&format!("{{\"_class_name\":\"AutoencoderKL\"{fields}}}"), "vae/config.json").unwrap())
    }

    #[test]
    fn nulls_of_published_configurations_are_read() {
        let (c, extras) = parse(r#","force_upcast":true,"latents_mean":null,"latents_std":null,"shift_factor":null"#).unwrap();
        assert_eq!((c.scaling_factor, extras.shift_factor, extras.use_quant_conv, extras.use_post_quant_conv), (0.18215, 0.0, true, true));
        let (_, extras) = parse(r#","shift_factor":0.1159,"use_quant_conv":false,"use_post_quant_conv":false"#).unwrap();
        assert_eq!((extras.shift_factor, extras.use_quant_conv, extras.use_post_quant_conv), (0.1159, false, false));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let rows = [
            (r#","latents_mean":[0.5]"#, "vae/config.json: latents_mean: numbers per channel, expected null"),
            (r#","shift_factor":"x""#, "vae/config.json: shift_factor: \"x\", expected a number from"),
            (r#","num_vq_embeddings":4"#, "vae/config.json: unknown or unsupported field `num_vq_embeddings`"),
        ];
        for (fields, want) in rows {
            let error = parse(fields).err().unwrap().to_string();
            assert!(error.starts_with(want), "{fields}: {error}");
        }
    }
}
