//! U-Net on a ResNet encoder with the names of segmentation-models-pytorch.
//! Sources: Ronneberger et al., "U-Net" (2015); `segmentation_models_pytorch/decoders/unet/{model,decoder}.py`,
//! `encoders/resnet.py`, `base/hub_mixin.py` (config.json as `save_pretrained` writes it).
//!
//! Weights alone are taken as of the library's default, nearest interpolation: they do not show another.

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::model::Architecture;
use crate::models::preprocess::Preprocess;
use crate::models::resnet::{Backbone, Shrink};
use crate::models::segmenter::{self, ConvRelu, Loaded, Network, Segmenter, conv_norm_relu, drop_all};
use crate::nn::Conv2d;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope, Store};

/// The library's field for the class of the model, and the encoders that are torchvision's ResNets.
const CLASS: &str = "_model_class";
const ENCODERS: [&str; 11] = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_32x16d",
    "resnext101_32x32d",
    "resnext101_32x48d",
];
/// Levels below the image.
const DEPTH: usize = 5;
/// What the library's examples train on; any other size runs too.
const SIZE: usize = 256;

/// How the decoder enlarges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interpolation {
    Nearest,
    /// Pixels are areas: corners are not aligned.
    Bilinear,
}

/// What config.json says.
#[derive(Clone, Debug, PartialEq)]
struct UnetConfig {
    depth: usize,
    /// Outputs of the decoder's blocks; None: as the weights have them.
    channels: Option<Vec<usize>>,
    interpolation: Interpolation,
    /// None: as the weights have them.
    classes: Option<usize>,
    has_norm: Option<bool>,
}

impl UnetConfig {
    /// Of weights alone.
    fn of(scope: &Scope) -> UnetConfig {
        let block = |i: usize| scope.has(&format!("decoder.blocks.{i}.conv1.0.weight"));
        let depth = (0..DEPTH).take_while(|&i| block(i)).count().max(3);
        UnetConfig { depth, channels: None, interpolation: Interpolation::Nearest, classes: None, has_norm: None }
    }

    /// Reads all of `c`, strictly.
    fn read(c: &Config) -> Result<UnetConfig> {
        if c.has(CLASS) {
            c.require(CLASS, "Unet")?;
        }
        let encoders = ENCODERS.map(|name| (name, ()));
        c.choice("encoder_name", Some(()), &encoders)?;
        // Where the encoder's weights were once taken from, and the head for whole images that acts in training.
        c.ignore(&["encoder_weights", "aux_params"]);
        c.integer("in_channels", 3, 3..=3)?;
        for (field, identity) in [("activation", "identity"), ("decoder_attention_type", "")] {
            if let Some(other) = c.nullable_text(field)?.filter(|text| text != identity) {
                return Err(c.error(field, format!("\"{other}\", expected null")));
            }
        }
        let depth = c.integer("encoder_depth", DEPTH, 3..=DEPTH)?;
        let channels = c.integers("decoder_channels", Some(&[256, 128, 64, 32, 16]), 1..=65_536, DEPTH)?;
        if channels.len() != depth {
            return Err(c.error("decoder_channels", format!("{} of them, expected {depth} as encoder_depth says", channels.len())));
        }
        let kinds = [("nearest", Interpolation::Nearest), ("bilinear", Interpolation::Bilinear)];
        let interpolation = c.choice("decoder_interpolation", Some(Interpolation::Nearest), &kinds)?;
        // The older name of the same.
        let norm = if c.has("decoder_use_batchnorm") { "decoder_use_batchnorm" } else { "decoder_use_norm" };
        let has_norm = match c.flag(norm, true) {
            Ok(flag) => flag,
            Err(_) => c.choice(norm, None, &[("batchnorm", true), ("identity", false)])?,
        };
        let classes = c.integer("classes", 1, 1..=65_536)?;
        c.finish()?;
        Ok(UnetConfig { depth, channels: Some(channels), interpolation, classes: Some(classes), has_norm: Some(has_norm) })
    }
}

/// Enlarges, joins what the encoder had at that size, and convolves twice.
struct Block {
    name: String,
    conv1: ConvRelu,
    conv2: ConvRelu,
}

impl Block {
    fn load(scope: &Scope, inputs: usize, outputs: Option<usize>, has_norm: Option<bool>) -> Block {
        let conv = |name: &str, inputs: usize| {
            let part = scope.child(name);
            let has_norm = has_norm.unwrap_or(part.has("1.weight"));
            let conv = if has_norm { conv_norm_relu(&part, "0", "1", inputs) } else { ConvRelu::new(&part, Conv2d::as_stored(&part.child("0"), inputs, 1)) };
            if outputs.is_some_and(|outputs| outputs != conv.outputs()) {
                part.fault(&format!("gives {} channels, expected {} as decoder_channels says", conv.outputs(), outputs.unwrap_or(0)));
            }
            conv
        };
        let conv1 = conv("conv1", inputs);
        let conv2 = conv("conv2", conv1.outputs());
        Block { name: scope.name().to_string(), conv1, conv2 }
    }

    /// x at the size of `like`, the map of the encoder's above it, which is joined to it where there is one.
    fn forward(&self, t: &mut Tape, x: Tensor, size: [usize; 2], skip: Option<Tensor>, interpolation: Interpolation) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = match interpolation {
                Interpolation::Bilinear => t.resize_bilinear(x, size, false)?,
                Interpolation::Nearest => enlarge(t, x, size)?,
            };
            let h = match skip {
                Some(skip) => t.concat_axis(&[h, skip], 3)?,
                None => h,
            };
            let h = self.conv1.forward(t, h)?;
            self.conv2.forward(t, h)
        })
    }
}

/// Twice the size, less the last row and column where `size` is odd: floor(i n / (2 n - 1)) is floor(i / 2) for all i below 2 n - 1.
fn enlarge(t: &mut Tape, x: Tensor, size: [usize; 2]) -> Result<Tensor> {
    let mut h = t.upsample_nearest(x, 2)?;
    for (axis, size) in size.into_iter().enumerate() {
        if t.shape(h)[axis + 1] != size {
            h = t.slice(h, axis + 1, 0, size)?;
        }
    }
    Ok(h)
}

struct Unet {
    encoder: Backbone,
    blocks: Vec<Block>,
    /// `segmentation_head.0`.
    head: Conv2d,
    interpolation: Interpolation,
}

impl Network for Unet {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let [_, h, w, _] = t.nhwc(x)?;
        let maps = t.within("encoder", |t| self.encoder.forward(t, x))?;
        let mut skips: Vec<Tensor> = maps;
        let mut y = skips.pop().ok_or_else(|| t.mismatch("no feature map".to_string()))?;
        y = t.scope("decoder", |t| {
            t.within("blocks", |t| {
                for block in &self.blocks {
                    let skip = skips.pop();
                    let size = match skip {
                        Some(skip) => t.nhwc(skip).map(|[_, h, w, _]| [h, w])?,
                        None => [h, w],
                    };
                    y = block.forward(t, y, size, skip, self.interpolation)?;
                }
                Ok(y)
            })
        })?;
        t.within("segmentation_head", |t| self.head.forward(t, y))
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let channels: Vec<usize> = self.blocks.iter().map(|block| block.conv2.outputs()).collect();
        let interpolation = if self.interpolation == Interpolation::Nearest { "nearest" } else { "bilinear" };
        vec![("encoder_blocks", json!(self.encoder.depths())), ("decoder_channels", json!(channels)), ("decoder_interpolation", json!(interpolation))]
    }
}

/// Loads the weights of `scope`, its root, and closes its account.
fn load(config: Option<&Config>, scope: &Scope) -> Result<Segmenter> {
    let config = config.map_or_else(|| Ok(UnetConfig::of(scope)), UnetConfig::read)?;
    let encoder = Backbone::load(&scope.child("encoder"), config.depth - 1, false, Shrink::Every);
    // An encoder of less depth keeps the layers that it does not run.
    (config.depth..DEPTH).for_each(|layer| drop_all(scope, &format!("encoder.layer{layer}.")));
    let mut skips = encoder.widths.clone();
    let mut width = skips.pop().unwrap_or(0);
    let mut blocks = Vec::new();
    for i in 0..config.depth {
        let outputs = config.channels.as_ref().map(|channels| channels[i]);
        let inputs = width + skips.pop().unwrap_or(0);
        let block = Block::load(&scope.child(&format!("decoder.blocks.{i}")).named(&i.to_string()), inputs, outputs, config.has_norm);
        width = block.conv2.outputs();
        blocks.push(block);
    }
    let head = scope.child("segmentation_head").child("0");
    let head_conv = Conv2d::as_stored(&head, width, 1);
    let num_classes = head_conv.outputs();
    if let Some(classes) = config.classes.filter(|&classes| classes != num_classes) {
        head.fault(&format!("gives {num_classes} channels, expected {classes} as classes says"));
    }
    drop_all(scope, "classification_head.");
    let preprocess = Preprocess { crop_pct: 1.0, ..Preprocess::assumed(SIZE) };
    let network = Box::new(Unet { encoder, blocks, head: head_conv, interpolation: config.interpolation });
    Segmenter::new("U-Net", scope, Loaded { network, num_classes, preprocess })
}

/// Whether the tensors are named as these are.
fn is_tensors(store: &Store) -> bool {
    let needed = ["encoder.conv1.weight", "encoder.layer1.0.conv1.weight", "decoder.blocks.0.conv1.0.weight", "segmentation_head.0.weight"];
    needed.iter().all(|name| store.shape(name).is_some())
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "segmentation-models-pytorch U-Net",
    is_config: |config| config.has(CLASS) || (config.has("encoder_name") && config.has("decoder_channels")),
    is_tensors: |store| is_tensors(store),
    is_path: |_| false,
    load: |checkpoint| segmenter::load(checkpoint, load),
};

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> std::result::Result<UnetConfig, String> {
        UnetConfig::read(&Config::parse(&format!("{{\"encoder_name\": \"resnet34\"{fields}}}"), "config.json").unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_the_librarys() {
        let c =
            read(r#", "_model_class": "Unet", "encoder_weights": "imagenet", "aux_params": null, "activation": null, "decoder_attention_type": null"#).unwrap();
        let want =
            UnetConfig { depth: 5, channels: Some(vec![256, 128, 64, 32, 16]), interpolation: Interpolation::Nearest, classes: Some(1), has_norm: Some(true) };
        assert_eq!(c, want);
        assert_eq!(read(r#", "decoder_use_batchnorm": false"#).unwrap().has_norm, Some(false));
        assert_eq!(read(r#", "decoder_use_norm": "identity""#).unwrap().has_norm, Some(false));
        assert_eq!(read(r#", "encoder_depth": 3, "decoder_channels": [4, 3, 2]"#).unwrap().depth, 3);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (fields, want) in [
            (r#", "_model_class": "FPN""#, "config.json: _model_class: \"FPN\", expected \"Unet\""),
            (r#", "encoder_depth": 4"#, "config.json: decoder_channels: 5 of them, expected 4 as encoder_depth says"),
            (r#", "decoder_attention_type": "scse""#, "config.json: decoder_attention_type: \"scse\", expected null"),
            (r#", "decoder_interpolation": "bicubic""#, "config.json: decoder_interpolation: \"bicubic\", expected one of \"nearest\", \"bilinear\""),
            (r#", "activation": "sigmoid""#, "config.json: activation: \"sigmoid\", expected null"),
            (r#", "in_channels": 1"#, "config.json: in_channels: 1, expected an integer from 3 to 3"),
            (r#", "decoder_use_norm": "layernorm""#, "config.json: decoder_use_norm: \"layernorm\", expected one of"),
            (r#", "encoder_output_stride": 16"#, "config.json: unknown or unsupported field `encoder_output_stride`"),
        ] {
            let error = read(fields).unwrap_err();
            assert!(error.starts_with(want), "{error}");
        }
        let error = UnetConfig::read(&Config::parse(r#"{"encoder_name": "mit_b0"}"#, "config.json").unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("config.json: encoder_name: \"mit_b0\", expected one of \"resnet18\""), "{error}");
    }
}
