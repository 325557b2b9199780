//! Inception-v3 with torchvision's and timm's names, and TensorFlow's network behind the Frechet Inception distance.
//! Sources: Szegedy et al., "Rethinking the Inception Architecture" (2016); `torchvision/models/inception.py`;
//! `mseitzer/pytorch-fid/src/pytorch_fid/inception.py`, whose weights (`pt_inception-2015-12-05`, 1008 classes) have the
//! same names: there a mean does not count padding, and the last block takes a maximum instead of a mean.

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::classifier::{self, Classifier, Loaded, Network, Prediction, last_layer, predict, read_config};
use crate::models::model::{Architecture, timm_architecture};
use crate::models::preprocess::{IMAGENET_MEAN, IMAGENET_STD, Preprocess};
use crate::nn::{Conv2d, Linear};
use crate::ops::activation::Function;
use crate::ops::pool2d::Pool2d;
use crate::plan::{Tape, Tensor, Weight};
use crate::weights::{Config, Scope};

const EPS: f64 = 1e-3;
/// What the weights for the Frechet distance are called, in a config or as the file that pytorch-fid publishes.
const FRECHET: [&str; 3] = ["pt_inception-2015-12-05", "fid_inception_v3", "inception_v3_fid"];
/// Classes of those weights: no others have as many.
const FRECHET_CLASSES: usize = 1008;

/// relu(bn(conv(x))).
struct ConvNorm {
    name: String,
    conv: Conv2d,
}

impl ConvNorm {
    /// Padded by half its kernel, or not at all where the stride is 2 or `is_padded` is not set.
    fn load(scope: &Scope, inputs: usize, stride: usize, is_padded: bool) -> ConvNorm {
        let conv = Conv2d::as_stored(&scope.child("conv"), inputs, stride);
        let conv = if is_padded && stride == 1 { conv } else { conv.unpadded() };
        ConvNorm { name: scope.name().to_string(), conv: conv.batch_normed(&scope.child("bn"), EPS) }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.conv.forward(t, x)?;
            t.activation(h, Function::Relu)
        })
    }
}

/// How a branch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Input,
    /// The mean over 3x3 of stride 1, padded.
    Mean,
    /// The maximum over 3x3 of stride 1, padded.
    Max,
    /// The maximum over 3x3 of stride 2: the branch has no convolution.
    Halve,
}

/// A row of convolutions; then two side by side where the names end in `a` and `b`.
struct Branch {
    start: Start,
    row: Vec<ConvNorm>,
    fork: Vec<ConvNorm>,
}

/// How a branch begins, the names of its row, those of its fork.
type Plan = (Start, &'static [&'static str], &'static [&'static str]);

const A: &[Plan] = &[
    (Start::Input, &["branch1x1"], &[]),
    (Start::Input, &["branch5x5_1", "branch5x5_2"], &[]),
    (Start::Input, &["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], &[]),
    (Start::Mean, &["branch_pool"], &[]),
];
/// The last convolution of each branch has stride 2.
const B: &[Plan] =
    &[(Start::Input, &["branch3x3"], &[]), (Start::Input, &["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], &[]), (Start::Halve, &[], &[])];
const C: &[Plan] = &[
    (Start::Input, &["branch1x1"], &[]),
    (Start::Input, &["branch7x7_1", "branch7x7_2", "branch7x7_3"], &[]),
    (Start::Input, &["branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"], &[]),
    (Start::Mean, &["branch_pool"], &[]),
];
/// The last convolution of each branch has stride 2.
const D: &[Plan] = &[
    (Start::Input, &["branch3x3_1", "branch3x3_2"], &[]),
    (Start::Input, &["branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"], &[]),
    (Start::Halve, &[], &[]),
];
const E: &[Plan] = &[
    (Start::Input, &["branch1x1"], &[]),
    (Start::Input, &["branch3x3_1"], &["branch3x3_2a", "branch3x3_2b"]),
    (Start::Input, &["branch3x3dbl_1", "branch3x3dbl_2"], &["branch3x3dbl_3a", "branch3x3dbl_3b"]),
    (Start::Mean, &["branch_pool"], &[]),
];
/// Blocks, their branches, whether they halve the image.
const BLOCKS: [(&str, &[Plan], bool); 11] = [
    ("Mixed_5b", A, false),
    ("Mixed_5c", A, false),
    ("Mixed_5d", A, false),
    ("Mixed_6a", B, true),
    ("Mixed_6b", C, false),
    ("Mixed_6c", C, false),
    ("Mixed_6d", C, false),
    ("Mixed_6e", C, false),
    ("Mixed_7a", D, true),
    ("Mixed_7b", E, false),
    ("Mixed_7c", E, false),
];
/// Convolutions before the blocks: name, stride, whether padded, whether a maximum over 3x3 of stride 2 follows.
const STEM: [(&str, usize, bool, Option<&str>); 5] = [
    ("Conv2d_1a_3x3", 2, false, None),
    ("Conv2d_2a_3x3", 1, false, None),
    ("Conv2d_2b_3x3", 1, true, Some("maxpool1")),
    ("Conv2d_3b_1x1", 1, false, None),
    ("Conv2d_4a_3x3", 1, false, Some("maxpool2")),
];

struct Block {
    name: &'static str,
    branches: Vec<Branch>,
    /// Whether a mean counts padding.
    counts_padding: bool,
}

impl Block {
    fn load(scope: &Scope, (name, plan, halves): (&'static str, &[Plan], bool), inputs: usize, is_frechet: bool) -> (Block, usize) {
        let block = scope.child(name);
        let mut outputs = 0;
        let mut branches = Vec::new();
        for &(start, row_names, fork_names) in plan {
            let mut width = inputs;
            let mut row = Vec::new();
            for (i, part) in row_names.iter().enumerate() {
                let stride = if halves && i + 1 == row_names.len() { 2 } else { 1 };
                let conv = ConvNorm::load(&block.child(part), width, stride, true);
                width = conv.conv.outputs();
                row.push(conv);
            }
            let fork: Vec<ConvNorm> = fork_names.iter().map(|part| ConvNorm::load(&block.child(part), width, 1, true)).collect();
            outputs += if fork.is_empty() { width } else { fork.iter().map(|conv| conv.conv.outputs()).sum() };
            let start = if is_frechet && start == Start::Mean && name == "Mixed_7c" { Start::Max } else { start };
            branches.push(Branch { start, row, fork });
        }
        (Block { name, branches, counts_padding: !is_frechet }, outputs)
    }

    fn branch(&self, t: &mut Tape, x: Tensor, branch: &Branch, out: &mut Vec<Tensor>) -> Result<()> {
        let h = match branch.start {
            Start::Input => x,
            Start::Mean => t.pool2d(x, &Pool2d { count_padding: self.counts_padding, ..Pool2d::mean(3, 1, 1) })?,
            Start::Max => t.pool2d(x, &Pool2d::max(3, 1, 1))?,
            Start::Halve => t.pool2d(x, &Pool2d::max(3, 2, 0))?,
        };
        let h = branch.row.iter().try_fold(h, |h, conv| conv.forward(t, h))?;
        if branch.fork.is_empty() {
            out.push(h);
        }
        for conv in &branch.fork {
            out.push(conv.forward(t, h)?);
        }
        Ok(())
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(self.name, |t| {
            let mut parts = Vec::new();
            for branch in &self.branches {
                self.branch(t, x, branch, &mut parts)?;
            }
            t.concat_axis(&parts, 3)
        })
    }
}

struct Inception {
    is_frechet: bool,
    /// Scale and shift per channel that take pixels normalised by ImageNet's mean and deviation to [-1, 1].
    input: Option<[Weight; 2]>,
    stem: Vec<(ConvNorm, Option<&'static str>)>,
    blocks: Vec<Block>,
    fc: Option<Linear>,
}

impl Network for Inception {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Prediction> {
        let mut h = x;
        if let Some([scale, shift]) = &self.input {
            let (scale, shift) = (t.weight(scale), t.weight(shift));
            h = t.channel_affine(h, scale, shift, false)?;
        }
        for (conv, pool) in &self.stem {
            h = conv.forward(t, h)?;
            if let Some(name) = pool {
                h = t.scope(name, |t| t.pool2d(h, &Pool2d::max(3, 2, 0)))?;
            }
        }
        let h = self.blocks.iter().try_fold(h, |h, block| block.forward(t, h))?;
        let features = t.scope("avgpool", |t| t.global_average_pool(h))?;
        predict(t, features, self.fc.as_ref())
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        vec![("pooling", json!(if self.is_frechet { "as TensorFlow's network for the Frechet distance has it" } else { "as torchvision has it" }))]
    }
}

/// `model_args` that change the model: torchvision's `transform_input`.
fn read_arguments(c: &Config) -> Result<bool> {
    c.ignore(&["aux_logits", "init_weights", "dropout"]);
    c.number("norm_eps", EPS, EPS..=EPS)?;
    c.flag("transform_input", false)
}

/// Per channel: 2 (std x + mean) - 1 of pixels x that were normalised with ImageNet's mean and std, as `transform_input` has it.
fn to_symmetric() -> [Weight; 2] {
    let [scale, shift] = [0, 1].map(|which| {
        let value = |c: usize| if which == 0 { IMAGENET_STD[c] / 0.5 } else { (IMAGENET_MEAN[c] - 0.5) / 0.5 };
        crate::base::Array { shape: crate::base::Shape::new(&[3]), data: (0..3).map(value).collect() }
    });
    [Weight::new("transform_input.scale", scale), Weight::new("transform_input.shift", shift)]
}

/// Every tensor of the training head `AuxLogits`.
fn drop_auxiliary(scope: &Scope) {
    let names: Vec<String> = scope.store().names().filter(|name| name.starts_with("AuxLogits.")).map(str::to_string).collect();
    names.iter().for_each(|name| scope.dropping(name));
}

/// Loads the weights of `scope`, its root, and closes its account.
pub fn load(config: Option<&Config>, scope: &Scope) -> Result<Classifier> {
    let (timm, transforms_input) = read_config(config, read_arguments)?;
    let classes = scope.shape("fc.weight").and_then(|s| s.first()).copied();
    let is_named = timm.as_ref().is_some_and(|c| FRECHET.contains(&c.architecture.as_str()));
    let is_frechet = is_named || classes == Some(FRECHET_CLASSES);
    drop_auxiliary(scope);
    let mut width = 3;
    let mut stem = Vec::new();
    for (name, stride, is_padded, pool) in STEM {
        let conv = ConvNorm::load(&scope.child(name), width, stride, is_padded);
        width = conv.conv.outputs();
        stem.push((conv, pool));
    }
    let mut blocks = Vec::new();
    for plan in BLOCKS {
        let (block, outputs) = Block::load(scope, plan, width, is_frechet);
        width = outputs;
        blocks.push(block);
    }
    let (fc, num_classes) = last_layer(scope, "fc", width, timm.as_ref());
    // Trained on pixels in [-1, 1]; for the Frechet distance images are resized to the input's size as they are.
    let published = Preprocess::assumed(299).symmetric();
    let preprocess = if is_frechet { Preprocess { crop_pct: 1.0, crop_mode: "squash".to_string(), ..published } } else { published };
    let network = Box::new(Inception { is_frechet, input: transforms_input.then(to_symmetric), stem, blocks, fc });
    Classifier::new("Inception-v3", timm, scope, Loaded { network, num_features: width, feature_map: width, num_classes, preprocess })
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "Inception-v3 classifier",
    is_config: |config| {
        timm_architecture(config).is_some_and(|name| {
            ["inception_v3", "tf_inception_v3", "adv_inception_v3", "gluon_inception_v3"].contains(&name.as_str()) || FRECHET.contains(&name.as_str())
        })
    },
    is_tensors: |store| {
        ["Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch1x1.conv.weight", "Mixed_7c.branch_pool.bn.running_mean"].iter().all(|name| store.shape(name).is_some())
    },
    is_path: |_| false,
    load: |checkpoint| classifier::load(checkpoint, load),
};
