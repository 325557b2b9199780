//! MONAI's `AutoencoderKL` in two dimensions: diffusers' blocks in one flat list per part, with attention where the settings say.
//! Source: `monai/networks/nets/autoencoderkl.py`; Pinaya et al., "Brain Imaging Generation with Latent Diffusion Models" (2022).

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::model::{Architecture, Autoencoder, Checkpoint, Component, Inputs, Model, Output, Port};
use crate::models::monai_config::{Levels, MonaiAutoencoderConfig, is_target};
use crate::models::monai_names::{self, Block, Dialect};
use crate::models::resnet_block_2d::{Resample, ResnetBlock2D, ResnetConfig, Sampler};
use crate::nn::attention::AttentionConfig;
use crate::nn::{Attention, Conv2d, GroupNorm};
use crate::ops::activation::Function;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::plan::{Tape, Tensor};
use crate::weights::Scope;

/// The logarithm of the variance is kept between these.
const LOGVAR: Function = Function::Clamp { low: -30.0, high: 20.0 };

enum Layer {
    Conv(Conv2d),
    Resnet(ResnetBlock2D),
    Attention(Attention),
    Sampler(Sampler),
    Norm(GroupNorm),
}

impl Layer {
    fn load(scope: &Scope, block: Block, c: &Levels) -> Layer {
        let eps = c.norm_eps as f32;
        let resnet = ResnetConfig {
            time_embedding_dim: None,
            norm_groups: c.norm_num_groups,
            eps,
            act: Function::Silu,
            scale_shift: false,
            skip_time_act: false,
            output_scale_factor: 1.0,
        };
        match block {
            Block::Conv { inputs, outputs } => Layer::Conv(Conv2d::load(scope, inputs, outputs, 3, Geometry::padded(1))),
            Block::Resnet { inputs, outputs } => Layer::Resnet(ResnetBlock2D::load(scope, &resnet, inputs, outputs, Resample::None)),
            Block::Attention(channels) => {
                let config = AttentionConfig { channels, head_dim: channels, norm_groups: Some(c.norm_num_groups), eps, rescale_output_factor: 1.0 };
                Layer::Attention(Attention::load(scope, &config))
            }
            Block::Down(channels) => Layer::Sampler(Sampler::down(scope, channels, 0)),
            Block::Up(channels) => Layer::Sampler(Sampler::up(scope, channels)),
            Block::Norm(channels) => Layer::Norm(GroupNorm::load(scope, channels, c.norm_num_groups, eps)),
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        match self {
            Layer::Conv(conv) => conv.forward(t, x),
            Layer::Resnet(resnet) => resnet.forward(t, x, None),
            Layer::Attention(attention) => attention.forward(t, x),
            Layer::Sampler(sampler) => sampler.forward(t, x, None),
            Layer::Norm(norm) => norm.forward(t, x),
        }
    }
}

/// The model and its weights.
pub struct MonaiAutoencoder {
    config: MonaiAutoencoderConfig,
    parameters: u64,
    encoder: Vec<Layer>,
    quant_conv_mu: Conv2d,
    quant_conv_log_sigma: Conv2d,
    post_quant_conv: Conv2d,
    decoder: Vec<Layer>,
}

impl MonaiAutoencoder {
    pub fn load(checkpoint: &Checkpoint) -> Result<MonaiAutoencoder> {
        let config = MonaiAutoencoderConfig::from_config(checkpoint.config()?)?;
        let (encoder, decoder) = (config.encoder(), config.decoder());
        let store = checkpoint.store()?;
        let dialect = Dialect { generative: store.names().any(|name| name.ends_with(".proj_attn.weight")), combined: config.levels.combined };
        let scope = Scope::new(monai_names::autoencoder(&encoder, &decoder, dialect).apply(store, |_| false)?, "vae");
        let layers = |part: &str, blocks: &[Block]| -> Vec<Layer> {
            let part = scope.child(part);
            blocks.iter().enumerate().map(|(i, block)| Layer::load(&part.child(&format!("blocks.{i}")), *block, &config.levels)).collect()
        };
        let pointwise = |name: &str| Conv2d::load(&scope.child(name), config.latent_channels, config.latent_channels, 1, Geometry::default());
        let mut model = MonaiAutoencoder {
            encoder: layers("encoder", &encoder),
            quant_conv_mu: pointwise("quant_conv_mu"),
            quant_conv_log_sigma: pointwise("quant_conv_log_sigma"),
            post_quant_conv: pointwise("post_quant_conv"),
            decoder: layers("decoder", &decoder),
            parameters: 0,
            config,
        };
        model.parameters = scope.finish()?.parameters;
        Ok(model)
    }

    /// sample: `[N, H, W, in_channels]`, H and W multiples of the downscale; result: mean and logarithm of the variance of the latents.
    pub fn encode(&self, t: &mut Tape, sample: Tensor) -> Result<[Tensor; 2]> {
        let [n, h, w, c] = t.nhwc(sample)?;
        let (inputs, multiple) = (self.config.levels.in_channels, self.config.downscale());
        if c != inputs || n * h * w == 0 || !h.is_multiple_of(multiple) || !w.is_multiple_of(multiple) {
            return Err(t.mismatch(format!("sample is [{n}, {c}, {h}, {w}], expected [N, {inputs}, H, W] with H and W multiples of {multiple}")));
        }
        let h = t.scope("encoder", |t| self.encoder.iter().try_fold(sample, |h, layer| layer.forward(t, h)))?;
        let mean = self.quant_conv_mu.forward(t, h)?;
        let logvar = self.quant_conv_log_sigma.forward(t, h)?;
        Ok([mean, t.activation(logvar, LOGVAR)?])
    }

    /// latents: `[N, H, W, latent_channels]`; result: `[N, H downscale, W downscale, out_channels]`.
    pub fn decode(&self, t: &mut Tape, latents: Tensor) -> Result<Tensor> {
        let [n, h, w, c] = t.nhwc(latents)?;
        if c != self.config.latent_channels || n * h * w == 0 {
            return Err(t.mismatch(format!("latents are [{n}, {c}, {h}, {w}], expected [N, {}, H, W]", self.config.latent_channels)));
        }
        let h = self.post_quant_conv.forward(t, latents)?;
        t.scope("decoder", |t| self.decoder.iter().try_fold(h, |h, layer| layer.forward(t, h)))
    }
}

impl Model for MonaiAutoencoder {
    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let c = &self.config;
        vec![
            ("in_channels", json!(c.levels.in_channels)),
            ("latent_channels", json!(c.latent_channels)),
            ("downscale", json!(c.downscale())),
            ("channels", json!(c.levels.channels)),
        ]
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::VaeEncoder, Component::VaeDecoder]
    }

    fn ports(&self, component: Component, batch: usize) -> Vec<Port> {
        let c = &self.config;
        let size = 64usize.next_multiple_of(c.downscale());
        let latents = size / c.downscale();
        match component {
            Component::VaeEncoder => vec![Port::image("sample", [batch, size, size, c.levels.in_channels])],
            _ => vec![Port::image("latents", [batch, latents, latents, c.latent_channels])],
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
        // MONAI scales images to [0, 1]; the factor of the latents is measured in training and kept beside the model.
        Some(Autoencoder { latent_channels: c.latent_channels, downscale: c.downscale(), scaling_factor: None, shift_factor: 0.0, pixel_range: [0.0, 1.0] })
    }
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "MONAI AutoencoderKL",
    is_config: |config| is_target(config, "AutoencoderKL"),
    is_tensors: |store| ["encoder.blocks.0.conv.weight", "quant_conv_mu.conv.weight"].iter().all(|name| store.shape(name).is_some()),
    is_path: |_| false,
    load: |checkpoint| Ok(Box::new(MonaiAutoencoder::load(checkpoint)?)),
};
