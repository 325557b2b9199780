//! diffusers `AutoencoderTiny`: the TAESD family (taesd, taesdxl, taesd3, taef1) under diffusers' names, with pixels in [-1, 1].
//! Source: `diffusers/models/autoencoders/autoencoder_tiny.py`, `vae.py` (`EncoderTiny`, `DecoderTiny`).

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::autoencoder_blocks::check_latents;
use crate::models::autoencoder_config::ACTIVATIONS;
use crate::models::model::{Architecture, Autoencoder, Component, Inputs, Model, Output, Port, is_class};
use crate::nn::Conv2d;
use crate::ops::activation::Function;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope};

const MAX_CHANNELS: usize = 65_536;
const MAX_STAGES: usize = 8;
const MAX_BLOCKS: usize = 64;
/// Rows and columns that `inspect` runs with: the configuration tells none.
const SIZE: usize = 512;
/// Latents beyond this are compressed at the decoder's entry: 3 tanh(x / 3).
const CLAMP: Function = Function::TanhClamp { limit: 3.0 };
/// [-1, 1] to [0, 1], and back.
const TO_UNIT: Function = Function::Affine { scale: 0.5, shift: 0.5 };
const FROM_UNIT: Function = Function::Affine { scale: 2.0, shift: -1.0 };

#[derive(Clone, Debug, PartialEq)]
struct TinyConfig {
    in_channels: usize,
    out_channels: usize,
    latent_channels: usize,
    /// Channels inside, the same in all stages, and blocks of each stage.
    encoder: (usize, Vec<usize>),
    decoder: (usize, Vec<usize>),
    upsampling_scaling_factor: usize,
    act_fn: Function,
    scaling_factor: f32,
    shift_factor: f32,
}

impl TinyConfig {
    fn from_config(c: &Config) -> Result<TinyConfig> {
        c.require("_class_name", "AutoencoderTiny")?;
        let channels = 1..=MAX_CHANNELS;
        let part = |part: &str, blocks: [usize; 4]| -> Result<(usize, Vec<usize>)> {
            let blocks = c.integers(&format!("num_{part}_blocks"), Some(&blocks), 0..=MAX_BLOCKS, MAX_STAGES)?;
            let field = format!("{part}_block_out_channels");
            let widths = c.integers(&field, Some(&[64; 4]), channels.clone(), MAX_STAGES)?;
            // Between stages a convolution has as many channels on either side as the stage: others would not run in PyTorch.
            match widths.iter().all(|&width| width == widths[0]) && widths.len() == blocks.len() {
                true => Ok((widths[0], blocks)),
                false => Err(c.error(&field, format!("{widths:?}, expected {} equal numbers, one for each of num_{part}_blocks", blocks.len()))),
            }
        };
        let config = TinyConfig {
            in_channels: c.integer("in_channels", 3, channels.clone())?,
            out_channels: c.integer("out_channels", 3, channels.clone())?,
            latent_channels: c.integer("latent_channels", 4, channels.clone())?,
            encoder: part("encoder", [1, 3, 3, 3])?,
            decoder: part("decoder", [3, 3, 3, 1])?,
            upsampling_scaling_factor: c.integer("upsampling_scaling_factor", 2, 1..=64)?,
            act_fn: c.choice("act_fn", Some(Function::Relu), &ACTIVATIONS)?,
            scaling_factor: c.number("scaling_factor", 1.0, 1e-6..=1e6)? as f32,
            shift_factor: c.number("shift_factor", 0.0, -1e6..=1e6)? as f32,
        };
        c.choice("upsample_fn", Some(()), &[("nearest", ())])?;
        // These two store latents as bytes: neither encoder nor decoder asks for them.
        c.number("latent_magnitude", 3.0, 1e-6..=1e6)?;
        c.number("latent_shift", 0.5, -1e6..=1e6)?;
        // It asks for f32, which is what runs here.
        c.flag("force_upcast", false)?;
        // diffusers writes the decoder's once more.
        c.ignore(&["block_out_channels"]);
        c.finish()?;
        let upscale = config.decoder.1[1..].iter().try_fold(1usize, |product, _| product.checked_mul(config.upsampling_scaling_factor));
        if upscale != Some(config.downscale()) {
            let fact = format!(
                "{} between {} stages, expected {} in all, as the encoder halves",
                config.upsampling_scaling_factor,
                config.decoder.1.len(),
                config.downscale()
            );
            return Err(c.error("upsampling_scaling_factor", fact));
        }
        Ok(config)
    }

    /// Pixels per latent along one axis: each stage but the first halves them.
    fn downscale(&self) -> usize {
        1 << (self.encoder.1.len() - 1)
    }
}

/// relu(conv(x) + x): `AutoencoderTinyBlock`.
struct Block {
    name: String,
    conv: [Conv2d; 3],
    act_fn: Function,
}

impl Block {
    fn load(scope: &Scope, channels: usize, act_fn: Function) -> Block {
        let conv = |name: &str| Conv2d::load(&scope.child(name), channels, channels, 3, Geometry::padded(1));
        Block { name: scope.name().to_string(), conv: ["conv.0", "conv.2", "conv.4"].map(conv), act_fn }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let mut h = self.conv[0].forward(t, x)?;
            for conv in &self.conv[1..] {
                h = t.activation(h, self.act_fn)?;
                h = conv.forward(t, h)?;
            }
            let y = t.add(h, x)?;
            t.activation(y, Function::Relu)
        })
    }
}

enum Layer {
    Conv(Conv2d),
    Block(Block),
    Activation { name: String, function: Function },
    Upsample { name: String, factor: usize },
}

/// `layers` of an encoder or decoder: a `Sequential`, whose names are positions.
struct Layers {
    scope: Scope,
    layers: Vec<Layer>,
}

impl Layers {
    fn push(&mut self, make: impl FnOnce(&Scope) -> Layer) {
        let scope = self.scope.child(&self.layers.len().to_string());
        self.layers.push(make(&scope));
    }

    fn blocks(&mut self, count: usize, channels: usize, act_fn: Function) {
        (0..count).for_each(|_| self.push(|scope| Layer::Block(Block::load(scope, channels, act_fn))));
    }

    fn encoder(scope: Scope, c: &TinyConfig) -> Vec<Layer> {
        let (width, stages) = &c.encoder;
        let mut all = Layers { scope, layers: Vec::new() };
        for (i, &blocks) in stages.iter().enumerate() {
            all.push(|scope| match i {
                0 => Layer::Conv(Conv2d::load(scope, c.in_channels, *width, 3, Geometry::padded(1))),
                _ => Layer::Conv(Conv2d::without_bias(scope, *width, *width, 3, Geometry::padded(1).strided(2))),
            });
            all.blocks(blocks, *width, c.act_fn);
        }
        all.push(|scope| Layer::Conv(Conv2d::load(scope, *width, c.latent_channels, 3, Geometry::padded(1))));
        all.layers
    }

    fn decoder(scope: Scope, c: &TinyConfig) -> Vec<Layer> {
        let (width, stages) = &c.decoder;
        let mut all = Layers { scope, layers: Vec::new() };
        all.push(|scope| Layer::Conv(Conv2d::load(scope, c.latent_channels, *width, 3, Geometry::padded(1))));
        all.push(|scope| Layer::Activation { name: scope.name().to_string(), function: c.act_fn });
        for (i, &blocks) in stages.iter().enumerate() {
            all.blocks(blocks, *width, c.act_fn);
            if i + 1 == stages.len() {
                all.push(|scope| Layer::Conv(Conv2d::load(scope, *width, c.out_channels, 3, Geometry::padded(1))));
            } else {
                all.push(|scope| Layer::Upsample { name: scope.name().to_string(), factor: c.upsampling_scaling_factor });
                all.push(|scope| Layer::Conv(Conv2d::without_bias(scope, *width, *width, 3, Geometry::padded(1))));
            }
        }
        all.layers
    }
}

fn forward(layers: &[Layer], t: &mut Tape, x: Tensor) -> Result<Tensor> {
    t.scope("layers", |t| {
        layers.iter().try_fold(x, |h, layer| match layer {
            Layer::Conv(conv) => conv.forward(t, h),
            Layer::Block(block) => block.forward(t, h),
            Layer::Activation { name, function } => t.scope(name, |t| t.activation(h, *function)),
            Layer::Upsample { name, factor } => t.scope(name, |t| t.upsample_nearest(h, *factor)),
        })
    })
}

/// The model and its weights.
pub struct AutoencoderTiny {
    config: TinyConfig,
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
    parameters: u64,
}

impl AutoencoderTiny {
    /// Loads the weights of `scope`, its root, and closes its account.
    pub fn from_scope(scope: &Scope, config: &Config) -> Result<AutoencoderTiny> {
        let config = TinyConfig::from_config(config)?;
        let encoder = Layers::encoder(scope.child("encoder.layers"), &config);
        let decoder = Layers::decoder(scope.child("decoder.layers"), &config);
        Ok(AutoencoderTiny { config, encoder, decoder, parameters: scope.finish()?.parameters })
    }

    /// sample: `[N, H, W, in_channels]` in [-1, 1], H and W multiples of the downscale; result `[N, h, w, latent_channels]`.
    pub fn encode(&self, t: &mut Tape, sample: Tensor) -> Result<Tensor> {
        let [n, h, w, c] = t.nhwc(sample)?;
        let (inputs, multiple) = (self.config.in_channels, self.config.downscale());
        if c != inputs || n * h * w == 0 || !h.is_multiple_of(multiple) || !w.is_multiple_of(multiple) {
            return Err(t.mismatch(format!("sample is [{n}, {c}, {h}, {w}], expected [N, {inputs}, H, W] with H and W multiples of {multiple}")));
        }
        t.scope("encoder", |t| {
            let pixels = t.activation(sample, TO_UNIT)?;
            forward(&self.encoder, t, pixels)
        })
    }

    /// latents: `[N, h, w, latent_channels]`, not scaled; result `[N, H, W, out_channels]`, about [-1, 1].
    pub fn decode(&self, t: &mut Tape, latents: Tensor) -> Result<Tensor> {
        check_latents(t, latents, self.config.latent_channels)?;
        t.scope("decoder", |t| {
            let latents = t.activation(latents, CLAMP)?;
            let pixels = forward(&self.decoder, t, latents)?;
            t.activation(pixels, FROM_UNIT)
        })
    }
}

impl Model for AutoencoderTiny {
    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let c = &self.config;
        vec![
            ("latent_channels", json!(c.latent_channels)),
            ("downscale", json!(c.downscale())),
            ("channels", json!([c.encoder.0, c.decoder.0])),
            ("scaling_factor", json!(c.scaling_factor)),
            ("shift_factor", json!(c.shift_factor)),
        ]
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::VaeEncoder, Component::VaeDecoder]
    }

    fn ports(&self, component: Component, batch: usize) -> Vec<Port> {
        let c = &self.config;
        match component {
            Component::VaeEncoder => vec![Port::image("sample", [batch, SIZE, SIZE, c.in_channels])],
            _ => vec![Port::image("latents", [batch, SIZE / c.downscale(), SIZE / c.downscale(), c.latent_channels])],
        }
    }

    fn record(&self, t: &mut Tape, component: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        Ok(match component {
            Component::VaeEncoder => vec![Output::image("latents", self.encode(t, inputs.get("sample")?)?)],
            _ => vec![Output::image("sample", self.decode(t, inputs.get("latents")?)?)],
        })
    }

    fn autoencoder(&self) -> Option<Autoencoder> {
        let c = &self.config;
        Some(Autoencoder {
            latent_channels: c.latent_channels,
            downscale: c.downscale(),
            scaling_factor: Some(c.scaling_factor),
            shift_factor: c.shift_factor,
            pixel_range: [-1.0, 1.0],
        })
    }
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "diffusers AutoencoderTiny",
    is_config: |config| is_class(config, "AutoencoderTiny"),
    // Without its configuration the scale of its latents is unknown.
    is_tensors: |_| false,
    is_path: |_| false,
    load: |checkpoint| Ok(Box::new(AutoencoderTiny::from_scope(&checkpoint.scope("vae")?, checkpoint.config()?)?)),
};

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<TinyConfig> {
        TinyConfig::from_config(&Config::parse(&format!("{{\"_class_name\":\"AutoencoderTiny\"{fields}}}"), "vae/config.json").unwrap())
    }

    #[test]
    fn defaults_are_taesds() {
        let c = parse("").unwrap();
        assert_eq!((c.encoder.clone(), c.decoder.clone()), ((64, vec![1, 3, 3, 3]), (64, vec![3, 3, 3, 1])));
        assert_eq!((c.downscale(), c.scaling_factor, c.shift_factor, c.latent_channels), (8, 1.0, 0.0, 4));
        let same = r#","latent_magnitude":3,"latent_shift":0.5,"force_upcast":false,"block_out_channels":[64,64,64,64],"_diffusers_version":"0.20.0""#;
        assert_eq!(parse(same).unwrap(), c);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let rows = [
            (r#","encoder_block_out_channels":[64,64,64,32]"#, "encoder_block_out_channels: [64, 64, 64, 32], expected 4 equal numbers"),
            (r#","decoder_block_out_channels":[8,8]"#, "decoder_block_out_channels: [8, 8], expected 4 equal numbers"),
            (r#","num_encoder_blocks":[1,2,3]"#, "encoder_block_out_channels: [64, 64, 64, 64], expected 3 equal numbers"),
            (r#","upsampling_scaling_factor":3"#, "upsampling_scaling_factor: 3 between 4 stages, expected 8 in all"),
            (r#","upsample_fn":"bilinear""#, r#"upsample_fn: "bilinear", expected "nearest""#),
            (r#","act_fn":"tanh""#, r#"act_fn: "tanh", expected one of "silu""#),
            (r#","scaling_factor":0"#, "scaling_factor: 0, expected a number from"),
            (r#","sample_size":64"#, "unknown or unsupported field `sample_size`"),
        ];
        for (fields, want) in rows {
            let error = parse(fields).unwrap_err().to_string();
            assert!(error.starts_with(&format!("vae/config.json: {want}")), "{fields}: {error}");
        }
    }
}
