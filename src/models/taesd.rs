//! The TAESD family: small autoencoders between images and the latents of diffusion models.
//! Source: <https://github.com/madebyollin/taesd>, whose weights are two plain `torch.nn.Sequential`s. Their structure is
//! read from the names and shapes: an index without weights is a ReLU, an upsampling or the clamp at a decoder's entry.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::base::{Error, Kind, Result};
use crate::models::model::{Architecture, Autoencoder, Component, Inputs, Model, Output, Port, is_class};
use crate::nn::{Conv2d, GroupNorm};
use crate::ops::activation::Function;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope};

/// Latents beyond this are compressed at a decoder's entry: 3 tanh(x / 3).
const LATENT_LIMIT: f32 = 3.0;
/// Groups of a pool branch's norm, and what torch.nn.GroupNorm adds to the variance.
const POOL_GROUPS: usize = 4;
const POOL_EPS: f32 = 1e-5;
/// Layers of a Sequential that a hostile file may claim.
const MAX_LAYERS: usize = 256;

/// relu(conv(x) + skip(x)), where pool(x) is added to x before.
struct Block {
    name: String,
    conv: [Conv2d; 3],
    skip: Option<Conv2d>,
    pool: Option<Pool>,
}

/// `pool.0`, `pool.1`, `pool.3`.
struct Pool {
    expand: Conv2d,
    norm: GroupNorm,
    reduce: Conv2d,
}

enum Layer {
    Clamp { name: String },
    Conv(Conv2d),
    Relu { name: String },
    Upsample { name: String },
    Block(Box<Block>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Encoder,
    Decoder,
}

impl Part {
    pub(crate) fn name(self) -> &'static str {
        if self == Part::Encoder { "encoder" } else { "decoder" }
    }
}

/// An encoder or a decoder.
pub(crate) struct Sequential {
    layers: Vec<Layer>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Pixels per latent along one axis.
    pub(crate) factor: usize,
    pub(crate) has_pool_branch: bool,
    pub(crate) parameters: u64,
}

/// The config.json of a folder with both parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaesdConfig {
    /// taesd, taesdxl, taesd3, taef1, taef2, taesana.
    pub variant: String,
    pub latent_channels: usize,
    /// Pixels per latent along one axis.
    pub downscale: usize,
    pub pool_branch_in_middle_blocks: bool,
    /// File names within the folder.
    pub encoder: String,
    pub decoder: String,
}

/// Both parts. Pixels are in [0, 1] on either side.
pub struct Taesd {
    pub config: TaesdConfig,
    encoder: Sequential,
    decoder: Sequential,
}

impl TaesdConfig {
    pub fn read(path: &Path) -> Result<TaesdConfig> {
        let c = Config::read(path)?;
        c.require("_class_name", "TAESD")?;
        let variants = ["taesd", "taesdxl", "taesd3", "taef1", "taef2", "taesana"].map(|v| (v, v));
        for field in ["input_range", "output_range"] {
            if c.numbers::<2>(field, Some([0.0, 1.0]), -1e3..=1e3)? != [0.0, 1.0] {
                return Err(c.error(field, "expected [0, 1]: the range of every TAESD"));
            }
        }
        let files = c.object("files")?;
        let file = |part: Part| -> Result<String> {
            let default = format!("{}.safetensors", part.name());
            let Some(files) = &files else { return Ok(default) };
            let name = files.text(part.name(), Some(&default))?;
            if name.contains(['/', '\\', ':', '\0']) {
                return Err(files.error(part.name(), format!("{name:?}, expected a file name within the folder")));
            }
            Ok(name)
        };
        let config = TaesdConfig {
            variant: c.choice("variant", None, &variants)?.to_string(),
            latent_channels: c.integer("latent_channels", None, 1..=1024)?,
            downscale: c.integer("downscale", 8, 1..=256)?,
            pool_branch_in_middle_blocks: c.flag("pool_branch_in_middle_blocks", false)?,
            encoder: file(Part::Encoder)?,
            decoder: file(Part::Decoder)?,
        };
        files.map_or(Ok(()), |f| f.finish())?;
        c.finish()?;
        Ok(config)
    }
}

impl Taesd {
    /// Loads a folder: config.json and the two files that it names. The structure found in the weights must be what the
    /// config says.
    pub fn load(folder: &Path) -> Result<Taesd> {
        let path = folder.join("config.json");
        let config = TaesdConfig::read(&path)?;
        let part = |part: Part, file: &str| Sequential::load(&Scope::open(&folder.join(file), &format!("vae.{}", part.name()))?, part);
        let (encoder, decoder) = (part(Part::Encoder, &config.encoder)?, part(Part::Decoder, &config.decoder)?);
        let place = path.display().to_string();
        let bad = |what: String, found: String, expected: String| {
            Err(Error::new(Kind::Config, place.clone(), format!("{what} {found} in the weights, expected {expected}")))
        };
        for (part, sequential, [inputs, outputs]) in
            [(Part::Encoder, &encoder, [3, config.latent_channels]), (Part::Decoder, &decoder, [config.latent_channels, 3])]
        {
            let name = part.name();
            let numbers = [
                ("input channels", sequential.inputs, inputs),
                ("output channels", sequential.outputs, outputs),
                ("downscale", sequential.factor, config.downscale),
            ];
            if let Some((what, found, expected)) = numbers.into_iter().find(|(_, found, expected)| found != expected) {
                return bad(format!("{name}: {what}"), found.to_string(), expected.to_string());
            }
            let (found, expected) = (sequential.has_pool_branch, config.pool_branch_in_middle_blocks);
            if found != expected {
                return bad(format!("{name}: pool_branch_in_middle_blocks"), found.to_string(), expected.to_string());
            }
        }
        Ok(Taesd { config, encoder, decoder })
    }

    /// Numbers in the parameters of both parts.
    pub fn parameters(&self) -> u64 {
        self.encoder.parameters + self.decoder.parameters
    }

    /// image: `[N, H, W, 3]` in [0, 1], H and W multiples of the downscale; result: latents
    /// `[N, H / downscale, W / downscale, latent_channels]`, not scaled.
    pub fn encode(&self, t: &mut Tape, image: Tensor) -> Result<Tensor> {
        self.encoder.encode(t, image)
    }

    /// latents: `[N, H, W, latent_channels]`, not scaled; result: `[N, H downscale, W downscale, 3]`, about [0, 1] but not
    /// clamped to it.
    pub fn decode(&self, t: &mut Tape, latents: Tensor) -> Result<Tensor> {
        self.decoder.decode(t, latents)
    }
}

impl Sequential {
    pub(crate) fn load(scope: &Scope, part: Part) -> Result<Sequential> {
        let place = scope.store().place().to_string();
        let discovered = Discovered::read(scope)?;
        let bad = |index: usize, fact: &str| Error::new(Kind::Weights, format!("vae.{}: layer {index}", part.name()), fact).remark(&place);
        if discovered.kinds.contains_key(&0) != (part == Part::Encoder) {
            return Err(bad(0, "an encoder begins with a convolution, a decoder with a clamp, which has no weights; this file does the other"));
        }
        let mut sequential = Sequential { layers: Vec::new(), inputs: 0, outputs: 0, factor: 1, has_pool_branch: false, parameters: 0 };
        for index in 0..discovered.count {
            let name = index.to_string();
            let layer = match discovered.kinds.get(&index) {
                Some(Found::Block { has_pool }) => {
                    sequential.has_pool_branch |= has_pool;
                    let (inputs, outputs) = channels(scope, &format!("{index}.conv.0.weight")).ok_or_else(|| bad(index, "no `conv.0.weight`"))?;
                    sequential.outputs = outputs;
                    Layer::Block(Box::new(Block::load(&scope.child(&name), inputs, outputs, *has_pool)))
                }
                Some(&Found::Conv { has_bias }) => {
                    let (inputs, outputs) = channels(scope, &format!("{index}.weight")).ok_or_else(|| bad(index, "`weight` is not a convolution's"))?;
                    let stride = discovered.stride(part, index, has_bias);
                    if sequential.inputs == 0 {
                        sequential.inputs = inputs;
                    }
                    sequential.outputs = outputs;
                    sequential.factor = sequential.factor.saturating_mul(stride);
                    let load = if has_bias { Conv2d::load } else { Conv2d::without_bias };
                    Layer::Conv(load(&scope.child(&name), inputs, outputs, 3, Geometry::padded(1).strided(stride)))
                }
                None => {
                    let layer =
                        discovered.weightless(part, index, name).ok_or_else(|| bad(index, "has no weights, expected a convolution or a block there"))?;
                    if matches!(layer, Layer::Upsample { .. }) {
                        sequential.factor = sequential.factor.saturating_mul(2);
                    }
                    layer
                }
            };
            sequential.layers.push(layer);
        }
        sequential.parameters = scope.finish()?.parameters;
        Ok(sequential)
    }

    /// See [`Taesd::encode`].
    pub(crate) fn encode(&self, t: &mut Tape, image: Tensor) -> Result<Tensor> {
        let [n, h, w, c] = t.nhwc(image)?;
        let factor = self.factor;
        if c != self.inputs || h % factor != 0 || w % factor != 0 || h * w == 0 {
            return Err(t.mismatch(format!("image is [{n}, {c}, {h}, {w}], expected [N, {}, H, W] with H and W multiples of {factor}", self.inputs)));
        }
        t.scope(Part::Encoder.name(), |t| self.forward(t, image))
    }

    /// See [`Taesd::decode`].
    pub(crate) fn decode(&self, t: &mut Tape, latents: Tensor) -> Result<Tensor> {
        let [n, h, w, c] = t.nhwc(latents)?;
        if c != self.inputs {
            return Err(t.mismatch(format!("latents are [{n}, {c}, {h}, {w}], expected [N, {}, H, W]", self.inputs)));
        }
        t.scope(Part::Decoder.name(), |t| self.forward(t, latents))
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        self.layers.iter().try_fold(x, |h, layer| match layer {
            Layer::Clamp { name } => t.scope(name, |t| t.activation(h, Function::TanhClamp { limit: LATENT_LIMIT })),
            Layer::Conv(conv) => conv.forward(t, h),
            Layer::Relu { name } => t.scope(name, |t| t.activation(h, Function::Relu)),
            Layer::Upsample { name } => t.scope(name, |t| t.upsample_nearest(h, 2)),
            Layer::Block(block) => block.forward(t, h),
        })
    }
}

/// What the names say about a layer.
enum Found {
    Conv { has_bias: bool },
    Block { has_pool: bool },
}

/// Layers with weights by their index.
struct Discovered {
    kinds: BTreeMap<usize, Found>,
    count: usize,
}

impl Discovered {
    /// Reads the indices. Names of another pattern stay unread, so that the account lists them.
    fn read(scope: &Scope) -> Result<Discovered> {
        let mut kinds = BTreeMap::new();
        for name in scope.store().names() {
            let Some((index, rest)) = name.split_once('.') else { continue };
            // Only the form that PyTorch writes: `07` is not `7`.
            let Some(index) = index.parse::<usize>().ok().filter(|i| i.to_string() == index && *i < MAX_LAYERS) else { continue };
            match rest {
                "weight" => kinds.insert(index, Found::Conv { has_bias: scope.has(&format!("{index}.bias")) }),
                "conv.0.weight" => kinds.insert(index, Found::Block { has_pool: scope.has(&format!("{index}.pool.0.weight")) }),
                _ => None,
            };
        }
        let count = kinds.keys().next_back().map_or(0, |last| last + 1);
        if count == 0 {
            let fact = "no layer of a TAESD, expected names such as `1.conv.0.weight`";
            return Err(Error::new(Kind::Weights, scope.store().place(), fact));
        }
        Ok(Discovered { kinds, count })
    }

    fn is_conv(&self, index: usize, bias: bool) -> bool {
        matches!(self.kinds.get(&index), Some(Found::Conv { has_bias }) if *has_bias == bias)
    }

    /// An encoder halves the resolution in convolutions without a bias, and in a stem of convolutions with a ReLU behind.
    fn stride(&self, part: Part, index: usize, has_bias: bool) -> usize {
        let before_relu = index + 1 < self.count && !self.kinds.contains_key(&(index + 1));
        if part == Part::Encoder && (!has_bias || before_relu) { 2 } else { 1 }
    }

    /// The layer at an index without weights.
    fn weightless(&self, part: Part, index: usize, name: String) -> Option<Layer> {
        let after_conv = index > 0 && self.is_conv(index - 1, true);
        match part {
            Part::Decoder if index == 0 => Some(Layer::Clamp { name }),
            Part::Decoder if !after_conv && self.is_conv(index + 1, false) => Some(Layer::Upsample { name }),
            _ if after_conv && !self.is_conv(index + 1, false) => Some(Layer::Relu { name }),
            _ => None,
        }
    }
}

/// Input and output channels of the convolution weight `name`.
fn channels(scope: &Scope, name: &str) -> Option<(usize, usize)> {
    match scope.shape(name) {
        Some(&[outputs, inputs, _, _]) => Some((inputs, outputs)),
        _ => None,
    }
}

impl Block {
    fn load(scope: &Scope, inputs: usize, outputs: usize, has_pool: bool) -> Block {
        let conv = |name: &str, inputs| Conv2d::load(&scope.child(name), inputs, outputs, 3, Geometry::padded(1));
        let skip = || Conv2d::without_bias(&scope.child("skip"), inputs, outputs, 1, Geometry::default());
        Block {
            name: scope.name().to_string(),
            conv: [conv("conv.0", inputs), conv("conv.2", outputs), conv("conv.4", outputs)],
            skip: (inputs != outputs).then(skip),
            pool: has_pool.then(|| Pool::load(scope, inputs)),
        }
    }

    /// x: `[N, H, W, C]`.
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let x = match &self.pool {
                Some(pool) => {
                    let pooled = pool.forward(t, x)?;
                    t.add(x, pooled)?
                }
                None => x,
            };
            let mut h = self.conv[0].forward(t, x)?;
            for conv in &self.conv[1..] {
                h = t.activation(h, Function::Relu)?;
                h = conv.forward(t, h)?;
            }
            let x = match &self.skip {
                Some(skip) => skip.forward(t, x)?,
                None => x,
            };
            let y = t.add(h, x)?;
            t.activation(y, Function::Relu)
        })
    }
}

impl Pool {
    fn load(scope: &Scope, channels: usize) -> Pool {
        let inner = 4 * channels;
        Pool {
            expand: Conv2d::without_bias(&scope.child("pool.0"), channels, inner, 1, Geometry::default()),
            norm: GroupNorm::load(&scope.child("pool.1"), inner, POOL_GROUPS, POOL_EPS),
            reduce: Conv2d::without_bias(&scope.child("pool.3"), inner, channels, 1, Geometry::default()),
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let h = self.expand.forward(t, x)?;
        let h = self.norm.activated(t, h, Function::Relu)?;
        self.reduce.forward(t, h)
    }
}

impl Model for Taesd {
    fn parameters(&self) -> u64 {
        self.encoder.parameters + self.decoder.parameters
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        vec![("variant", json!(self.config.variant)), ("latent_channels", json!(self.config.latent_channels)), ("downscale", json!(self.config.downscale))]
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::VaeEncoder, Component::VaeDecoder]
    }

    fn ports(&self, component: Component, batch: usize) -> Vec<Port> {
        let size = 256usize.next_multiple_of(self.config.downscale);
        let latents = size / self.config.downscale;
        match component {
            Component::VaeEncoder => vec![Port::image("sample", [batch, size, size, 3])],
            _ => vec![Port::image("latents", [batch, latents, latents, self.config.latent_channels])],
        }
    }

    fn record(&self, t: &mut Tape, component: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        Ok(match component {
            Component::VaeEncoder => vec![Output::image("latents", self.encode(t, inputs.get("sample")?)?)],
            _ => vec![Output::image("sample", self.decode(t, inputs.get("latents")?)?)],
        })
    }

    fn autoencoder(&self) -> Option<Autoencoder> {
        let TaesdConfig { latent_channels, downscale, .. } = self.config;
        Some(Autoencoder { latent_channels, downscale, scaling_factor: None, shift_factor: 0.0, pixel_range: [0.0, 1.0] })
    }
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "TAESD autoencoder",
    is_config: |config| is_class(config, "TAESD"),
    is_tensors: |_| false,
    is_path: |_| false,
    load: |checkpoint| Ok(Box::new(Taesd::load(&checkpoint.path)?)),
};
