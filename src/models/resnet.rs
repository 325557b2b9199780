//! ResNet classifiers with torchvision's names, in a folder as timm writes it.
//! Source: He et al., "Deep Residual Learning for Image Recognition" (2016); `torchvision/models/resnet.py` (stride in the
//! 3x3 convolution of a bottleneck). Batch norms are folded into the convolutions before them.

use std::path::Path;

use serde_json::{Value, json};

use crate::base::{Error, Kind, Result};
use crate::models::model::{Architecture, Checkpoint, Component, Inputs, Model, Output, Port, timm_architecture};
use crate::models::preprocess::Preprocess;
use crate::nn::{Conv2d, Linear};
use crate::ops::activation::Function;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::ops::pool2d::{Pool2d, PoolMode};
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope};

/// Architecture, whether its blocks are bottlenecks, blocks per stage. The first name of a row is torchvision's and timm's.
type Row = (&'static str, (bool, [usize; 4]));
const ARCHITECTURES: [Row; 6] = [
    ("resnet18", (false, [2, 2, 2, 2])),
    ("resnet26", (true, [2, 2, 2, 2])),
    ("resnet34", (false, [3, 4, 6, 3])),
    ("resnet50", (true, [3, 4, 6, 3])),
    ("resnet101", (true, [3, 4, 23, 3])),
    ("resnet152", (true, [3, 8, 36, 3])),
];

/// What a published `pretrained_cfg` says about its origin and its tests: of no consequence for a forward pass.
const OF_ORIGIN: [&str; 22] = [
    "tag",
    "url",
    "file",
    "hf_hub_id",
    "hf_hub_filename",
    "source",
    "architecture",
    "custom_load",
    "license",
    "description",
    "origin_url",
    "paper_name",
    "paper_ids",
    "notes",
    "test_input_size",
    "test_crop_pct",
    "test_pool_size",
    "min_input_size",
    "fixed_input_size",
    "pool_size",
    "label_names",
    "label_descriptions",
];

#[derive(Clone, Debug, PartialEq)]
pub struct ResNetConfig {
    pub architecture: String,
    pub num_classes: usize,
    pub num_features: Option<usize>,
    /// Names of the classes in the order of the logits.
    pub label_names: Option<Vec<String>>,
    pub preprocess: Preprocess,
    bottleneck: bool,
    stages: [usize; 4],
}

impl ResNetConfig {
    pub fn read(path: &Path) -> Result<ResNetConfig> {
        Self::from_config(&Config::read(path)?)
    }

    pub fn from_config(c: &Config) -> Result<ResNetConfig> {
        // A tag, `resnet50.a1_in1k`, says how the weights were trained.
        let name = timm_architecture(c).unwrap_or_default();
        let row = ARCHITECTURES.iter().find(|row| row.0 == name).map(|row| row.1);
        let (bottleneck, stages) = row.map_or_else(|| c.choice("architecture", None, &ARCHITECTURES), Ok)?;
        let pretrained = c.object("pretrained_cfg")?.ok_or_else(|| c.error("pretrained_cfg", "absent, expected an object with mean, std and input_size"))?;
        let num_classes = c.integer("num_classes", None, 0..=1_000_000)?;
        let told = pretrained.integer("num_classes", num_classes, 0..=1_000_000)?;
        if told != num_classes {
            return Err(pretrained.error("num_classes", format!("{told}, expected {num_classes} as the file says further out")));
        }
        let label_names = c.texts("label_names", 1_000_000)?;
        if let Some(names) = &label_names
            && names.len() != num_classes
        {
            return Err(c.error("label_names", format!("{} names, expected {num_classes} as num_classes says", names.len())));
        }
        if let Some(arguments) = c.object("model_args")? {
            arguments.integer("num_classes", num_classes, num_classes..=num_classes)?;
            arguments.integer("in_chans", 3, 3..=3)?;
            arguments.choice("global_pool", Some(()), &[("avg", ())])?;
            arguments.finish()?;
        }
        c.choice("global_pool", Some(()), &[("avg", ())])?;
        c.ignore(&["label_descriptions"]);
        let config = ResNetConfig {
            architecture: c.text("architecture", None)?,
            num_classes,
            num_features: c.nullable_integer("num_features", None, 1..=65_536)?,
            label_names,
            preprocess: preprocess(&pretrained)?,
            bottleneck,
            stages,
        };
        c.finish()?;
        Ok(config)
    }
}

fn preprocess(c: &Config) -> Result<Preprocess> {
    let size = c.integers("input_size", Some(&[3, 224, 224]), 1..=65_536, 3)?;
    let &[3, height, width] = size.as_slice() else {
        return Err(c.error("input_size", format!("{size:?}, expected [3, height, width]")));
    };
    c.require_or_absent("first_conv", "conv1")?;
    c.require_or_absent("classifier", "fc")?;
    c.ignore(&OF_ORIGIN);
    let names = |names: &[&'static str]| names.iter().map(|n| (*n, *n)).collect::<Vec<_>>();
    let preprocess = Preprocess {
        input_size: [height, width],
        interpolation: c.choice("interpolation", Some("bicubic"), &names(&["nearest", "bilinear", "bicubic", "lanczos"]))?.to_string(),
        crop_pct: c.number("crop_pct", 0.875, 0.01..=1.0)?,
        crop_mode: c.choice("crop_mode", Some("center"), &names(&["center", "squash", "border"]))?.to_string(),
        mean: c.numbers("mean", Some([0.485, 0.456, 0.406]), -1e3..=1e3)?.map(|v| v as f32),
        std: c.numbers("std", Some([0.229, 0.224, 0.225]), 1e-6..=1e6)?.map(|v| v as f32),
    };
    c.finish()?;
    Ok(preprocess)
}

/// `BasicBlock` (two convolutions) or `Bottleneck` (three).
struct Block {
    name: String,
    convs: Vec<Conv2d>,
    downsample: Option<Conv2d>,
}

impl Block {
    fn load(scope: &Scope, bottleneck: bool, inputs: usize, planes: usize, stride: usize) -> Block {
        let conv = |i: usize, inputs, outputs, kernel: usize, stride| {
            let geometry = Geometry::padded(kernel / 2).strided(stride);
            Conv2d::with_batch_norm(scope, &format!("conv{i}"), &format!("bn{i}"), inputs, outputs, kernel, geometry)
        };
        let outputs = if bottleneck { 4 * planes } else { planes };
        let convs = if bottleneck {
            vec![conv(1, inputs, planes, 1, 1), conv(2, planes, planes, 3, stride), conv(3, planes, outputs, 1, 1)]
        } else {
            vec![conv(1, inputs, planes, 3, stride), conv(2, planes, planes, 3, 1)]
        };
        let downsample = || Conv2d::with_batch_norm(&scope.child("downsample"), "0", "1", inputs, outputs, 1, Geometry::default().strided(stride));
        Block { name: scope.name().to_string(), convs, downsample: (stride != 1 || inputs != outputs).then(downsample) }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let mut h = x;
            for (i, conv) in self.convs.iter().enumerate() {
                if i > 0 {
                    h = t.activation(h, Function::Relu)?;
                }
                h = conv.forward(t, h)?;
            }
            let x = match &self.downsample {
                Some(conv) => t.scope("downsample", |t| conv.forward(t, x))?,
                None => x,
            };
            let y = t.add(h, x)?;
            t.activation(y, Function::Relu)
        })
    }
}

/// The model and its weights.
pub struct ResNet {
    pub config: ResNetConfig,
    /// Numbers in all parameters.
    pub parameters: u64,
    /// Names in the file that a forward pass does not need: the batch norms' `num_batches_tracked`.
    pub dropped: Vec<String>,
    /// Width of the features: 512 or 2048 in the published models.
    pub num_features: usize,
    conv1: Conv2d,
    layers: Vec<Vec<Block>>,
    fc: Option<Linear>,
}

impl ResNet {
    /// Loads `config.json` and `model.safetensors` of a folder.
    pub fn load(folder: &Path) -> Result<ResNet> {
        let config = ResNetConfig::read(&folder.join("config.json"))?;
        Self::from_scope(&Scope::open(folder, "classifier")?, config)
    }

    /// Loads the weights of `scope`, its root, and closes its account. The widths of the stages are those of the weights.
    pub fn from_scope(scope: &Scope, config: ResNetConfig) -> Result<ResNet> {
        let width = |name: &str, default: usize| scope.shape(name).and_then(|s| s.first()).copied().unwrap_or(default);
        let stem = width("conv1.weight", 64);
        let mut inputs = stem;
        let conv1 = Conv2d::with_batch_norm(scope, "conv1", "bn1", 3, stem, 7, Geometry::padded(3).strided(2));
        let mut layers = Vec::new();
        for (stage, &count) in config.stages.iter().enumerate() {
            let layer = scope.child(&format!("layer{}", stage + 1));
            let planes = width(&format!("layer{}.0.conv1.weight", stage + 1), 64 << stage);
            let mut blocks = Vec::new();
            for i in 0..count {
                let stride = if stage > 0 && i == 0 { 2 } else { 1 };
                blocks.push(Block::load(&layer.child(&i.to_string()), config.bottleneck, inputs, planes, stride));
                inputs = if config.bottleneck { 4 * planes } else { planes };
            }
            layers.push(blocks);
        }
        let fc = (config.num_classes > 0).then(|| Linear::load(&scope.child("fc"), inputs, config.num_classes));
        let account = scope.finish()?;
        if config.num_features.is_some_and(|told| told != inputs) {
            let fact = format!("num_features is {:?} in config.json, expected {inputs} as the weights have", config.num_features.unwrap_or(0));
            return Err(Error::new(Kind::Config, "classifier", fact).remark(scope.store().place()));
        }
        Ok(ResNet { config, parameters: account.parameters, dropped: account.dropped, num_features: inputs, conv1, layers, fc })
    }

    /// x: normalised pixels `[N, H, W, 3]`; result: the values before the classifier, `[N, num_features]`.
    pub fn features(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let [n, h, w, c] = t.nhwc(x)?;
        if c != 3 || n * h * w == 0 {
            return Err(t.mismatch(format!("pixels are [{n}, {c}, {h}, {w}], expected [N, 3, H, W]")));
        }
        let h = self.conv1.forward(t, x)?;
        let h = t.activation(h, Function::Relu)?;
        let pool = Pool2d { mode: PoolMode::Max, kernel: [3, 3], stride: [2, 2], padding: [1; 4], count_padding: false };
        let mut h = t.scope("maxpool", |t| t.pool2d(h, &pool))?;
        for (i, blocks) in self.layers.iter().enumerate() {
            h = t.scope(&format!("layer{}", i + 1), |t| blocks.iter().try_fold(h, |h, block| block.forward(t, h)))?;
        }
        t.scope("avgpool", |t| t.global_average_pool(h))
    }

    /// features: `[N, num_features]`; result: `[N, num_classes]` before a softmax.
    pub fn logits(&self, t: &mut Tape, features: Tensor) -> Result<Tensor> {
        match &self.fc {
            Some(fc) => fc.forward(t, features),
            None => Err(Error::new(Kind::Usage, "classifier", "the checkpoint has no classifier (num_classes 0): it gives features, not logits")),
        }
    }
}

impl Model for ResNet {
    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn dropped(&self) -> &[String] {
        &self.dropped
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let c = &self.config;
        vec![
            ("architecture", json!(c.architecture)),
            ("num_features", json!(self.num_features)),
            ("num_classes", json!(c.num_classes)),
            ("label_names", json!(c.label_names)),
            ("input_size", json!(c.preprocess.input_size)),
        ]
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::Classifier]
    }

    fn ports(&self, _: Component, batch: usize) -> Vec<Port> {
        let [h, w] = self.config.preprocess.input_size;
        vec![Port::image("pixel_values", [batch, h, w, 3])]
    }

    fn record(&self, t: &mut Tape, _: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        let features = self.features(t, inputs.get("pixel_values")?)?;
        let mut outputs = vec![Output::plain("features", features)];
        if self.config.num_classes > 0 {
            outputs.push(Output::plain("logits", self.logits(t, features)?));
        }
        Ok(outputs)
    }

    fn preprocess(&self) -> Option<&Preprocess> {
        Some(&self.config.preprocess)
    }

    fn class_names(&self) -> Option<&[String]> {
        self.config.label_names.as_deref()
    }
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "ResNet classifier",
    is_config: |config| timm_architecture(config).is_some_and(|name| ARCHITECTURES.iter().any(|row| row.0 == name)),
    is_tensors: |_| false,
    is_path: |_| false,
    load: |checkpoint: &Checkpoint| {
        let config = ResNetConfig::from_config(checkpoint.config()?)?;
        Ok(Box::new(ResNet::from_scope(&checkpoint.scope("classifier")?, config)?))
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(root: &str, pretrained: &str) -> Result<ResNetConfig> {
        let text = format!("{{{root}, \"pretrained_cfg\": {{{pretrained}}}}}");
        ResNetConfig::from_config(&Config::parse(&text, "config.json").unwrap())
    }

    #[test]
    fn a_published_config_is_read() {
        let root = r#""architecture": "resnet18", "num_classes": 1000, "num_features": 512, "global_pool": "avg""#;
        let pretrained = r#""tag": "a1_in1k", "custom_load": false, "input_size": [3, 224, 224], "test_input_size": [3, 288, 288],
            "fixed_input_size": false, "interpolation": "bicubic", "crop_pct": 0.95, "test_crop_pct": 1.0, "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 1000, "pool_size": [7, 7], "first_conv": "conv1",
            "classifier": "fc", "license": "apache-2.0", "origin_url": "https://x", "paper_ids": "arXiv:2110.00476""#;
        let c = parse(root, pretrained).unwrap();
        assert_eq!((c.preprocess.input_size, c.preprocess.crop_pct, c.stages), ([224, 224], 0.95, [2, 2, 2, 2]));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let ok = r#""architecture": "resnet18", "num_classes": 2"#;
        let rows = [
            (r#""architecture": "resnet18d", "num_classes": 2"#, "", r#"config.json: architecture: "resnet18d", expected one of "resnet18""#),
            (ok, r#""first_conv": "conv1.0""#, "config.json: pretrained_cfg: first_conv: \"conv1.0\", expected \"conv1\""),
            (ok, r#""num_classes": 3"#, "config.json: pretrained_cfg: num_classes: 3, expected 2"),
            (ok, r#""std": [0, 1, 1]"#, "config.json: pretrained_cfg: std: 0, expected a number from"),
            (ok, r#""input_size": [1, 8, 8]"#, "config.json: pretrained_cfg: input_size: [1, 8, 8], expected [3, height, width]"),
            (ok, r#""blur": 1"#, "config.json: pretrained_cfg: unknown or unsupported field `blur`"),
            (r#""architecture": "resnet18", "num_classes": 2, "label_names": ["a"]"#, "", "config.json: label_names: 1 names, expected 2"),
            (r#""architecture": "resnet18", "num_classes": 2, "global_pool": "catavgmax""#, "", "config.json: global_pool: \"catavgmax\", expected \"avg\""),
            (r#""architecture": "resnet18", "num_classes": 2, "model_args": {"stem_type": "deep"}"#, "", "config.json: model_args: unknown"),
        ];
        for (root, pretrained, want) in rows {
            let error = parse(root, pretrained).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }
}
