//! Swin transformers, the first version, with timm's names (of today and of the original checkpoints) and torchvision's.
//! Sources: Liu et al., "Swin Transformer" (2021); Chen et al., "Searching the Search Space of Vision Transformer" (2021,
//! windows that differ per stage); `timm/models/swin_transformer.py`, `torchvision/models/swin_transformer.py`.
//!
//! Names and shapes tell depths, widths, heads and the windows where these are squares; config.json those that are not.

use serde_json::{Value, json};

use crate::base::Result;
use crate::models::classifier::{self, Classifier, Loaded, Network, Prediction, count, last_layer, predict, read_config};
use crate::models::model::{Architecture, timm_architecture};
use crate::models::preprocess::Preprocess;
use crate::nn::window_attention::{WindowAttention, Windows, padded};
use crate::nn::{Conv2d, LayerNorm, Linear};
use crate::ops::activation::Function;
use crate::plan::{Tape, Tensor};
use crate::weights::{Config, Scope, Store};

/// torch.nn.LayerNorm's own.
const EPS: f32 = 1e-5;
const STAGES: usize = 4;
/// Pixels per token behind the last stage, of patches of four.
const STRIDE: usize = 32;

/// Whether `architecture` is a Swin transformer of the first version.
pub fn is_architecture(architecture: &str) -> bool {
    let name = architecture.strip_suffix("_in22k").unwrap_or(architecture);
    let Some(rest) = name.strip_prefix("swin_") else { return false };
    let is_plain = ["tiny", "small", "base", "large"]
        .iter()
        .any(|size| rest.strip_prefix(size).is_some_and(|rest| ["_patch4_window7_224", "_patch4_window12_384"].contains(&rest)));
    is_plain || ["s3_tiny_224", "s3_small_224", "s3_base_224"].contains(&rest)
}

/// Whether the tensors are named as a Swin transformer's are. The second version's have a `logit_scale`.
fn is_tensors(store: &Store) -> bool {
    let has = |name: &str| store.shape(name).is_some();
    ["layers.0.blocks.0", "features.1.0"].iter().any(|block| {
        has(&format!("{block}.attn.relative_position_bias_table")) && has(&format!("{block}.norm1.weight")) && !has(&format!("{block}.attn.logit_scale"))
    })
}

/// Where the libraries put the same thing.
struct Names {
    is_torchvision: bool,
    patches: &'static str,
    patch_norm: &'static str,
    fc: [&'static str; 2],
    head: &'static str,
}

impl Names {
    fn of(scope: &Scope) -> Names {
        if scope.has("features.0.0.weight") {
            return Names { is_torchvision: true, patches: "features.0.0", patch_norm: "features.0.2", fc: ["mlp.0", "mlp.3"], head: "head" };
        }
        let head = if scope.has("head.weight") { "head" } else { "head.fc" };
        Names { is_torchvision: false, patches: "patch_embed.proj", patch_norm: "patch_embed.norm", fc: ["mlp.fc1", "mlp.fc2"], head }
    }

    /// The blocks of stage `at`, and what makes the image smaller before it. The original checkpoints have that in the stage before.
    fn stage(&self, scope: &Scope, at: usize) -> (Scope, Scope) {
        let path = |prefix: &str, at: usize| scope.child(&format!("{prefix}.{at}"));
        if self.is_torchvision {
            return (path("features", 2 * at + 1), path("features", 2 * at));
        }
        let is_original = scope.has("layers.0.downsample.reduction.weight");
        let holder = if is_original { at.saturating_sub(1) } else { at };
        let downsample = scope.child(&format!("layers.{holder}.downsample")).named(&format!("layers.{at}.downsample"));
        (scope.child(&format!("layers.{at}.blocks")), downsample)
    }
}

/// x + attn(norm1(x)), then x + mlp(norm2(x)).
struct Block {
    name: String,
    norm1: LayerNorm,
    attn: WindowAttention,
    norm2: LayerNorm,
    fc: [Linear; 2],
}

impl Block {
    fn load(scope: &Scope, names: &Names, width: usize, windows: Windows) -> Block {
        let hidden = scope.shape(&format!("{}.weight", names.fc[0])).and_then(|s| s.first()).copied().unwrap_or(4 * width);
        // The mask follows from sizes.
        scope.dropping("attn_mask");
        Block {
            name: scope.name().to_string(),
            norm1: LayerNorm::load(&scope.child("norm1"), width, EPS),
            attn: WindowAttention::load(&scope.child("attn"), width, windows),
            norm2: LayerNorm::load(&scope.child("norm2"), width, EPS),
            fc: [Linear::load(&scope.child(names.fc[0]), width, hidden), Linear::load(&scope.child(names.fc[1]), hidden, width)],
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.norm1.forward(t, x)?;
            let h = self.attn.forward(t, h)?;
            let x = t.add(x, h)?;
            let h = self.norm2.forward(t, x)?;
            let h = self.fc[0].forward(t, h)?;
            let h = t.activation(h, Function::Gelu)?;
            let h = self.fc[1].forward(t, h)?;
            t.add(x, h)
        })
    }
}

/// Squares of 2x2 tokens as one: reduction(norm(their channels side by side)).
struct PatchMerging {
    name: String,
    norm: LayerNorm,
    reduction: Linear,
}

impl PatchMerging {
    /// And its width.
    fn load(scope: &Scope, width: usize) -> (PatchMerging, usize) {
        let reduction = scope.child("reduction");
        let outputs = reduction.shape("weight").and_then(|s| s.first()).copied().unwrap_or(2 * width);
        let norm = LayerNorm::load(&scope.child("norm"), 4 * width, EPS);
        (PatchMerging { name: scope.name().to_string(), norm, reduction: Linear::without_bias(&reduction, 4 * width, outputs) }, outputs)
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let [n, h, w, c] = t.nhwc(x)?;
            let (rows, columns) = (h.div_ceil(2), w.div_ceil(2));
            let y = padded(t, x, [2 * rows, 2 * columns])?;
            let y = t.reshape(y, &[n, rows, 2, columns, 2, c])?;
            // Column by column: upper left, lower left, upper right, lower right.
            let y = t.permute(y, &[0, 1, 3, 4, 2, 5])?;
            let y = t.reshape(y, &[n, rows, columns, 4 * c])?;
            let y = self.norm.forward(t, y)?;
            self.reduction.forward(t, y)
        })
    }
}

struct Stage {
    downsample: Option<PatchMerging>,
    within: String,
    blocks: Vec<Block>,
}

impl Stage {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let h = self.downsample.as_ref().map_or(Ok(x), |d| d.forward(t, x))?;
        t.scope(&self.within, |t| self.blocks.iter().try_fold(h, |h, block| block.forward(t, h)))
    }
}

struct Swin {
    patches: Conv2d,
    patch_norm: LayerNorm,
    stages: Vec<Stage>,
    norm: LayerNorm,
    head: Option<Linear>,
    /// Rows and columns of pixels; None: any.
    size: Option<[usize; 2]>,
}

impl Network for Swin {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Prediction> {
        let [n, h, w, _] = t.nhwc(x)?;
        if let Some([rows, columns]) = self.size.filter(|size| *size != [h, w]) {
            return Err(t.mismatch(format!("pixels are [{n}, 3, {h}, {w}], expected [N, 3, {rows}, {columns}]: the windows are made for that size")));
        }
        let mut h = self.patches.forward(t, x)?;
        h = self.patch_norm.forward(t, h)?;
        for stage in &self.stages {
            h = stage.forward(t, h)?;
        }
        let h = self.norm.forward(t, h)?;
        let features = t.global_average_pool(h)?;
        predict(t, features, self.head.as_ref())
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let each = |fact: &dyn Fn(&Stage) -> Value| Value::Array(self.stages.iter().map(fact).collect());
        vec![
            ("blocks", each(&|stage| json!(stage.blocks.len()))),
            ("heads", each(&|stage| json!(stage.blocks[0].attn.heads()))),
            ("windows", each(&|stage| json!(stage.blocks[0].attn.window()))),
        ]
    }
}

/// What `model_args` may say.
#[derive(Clone, Debug, Default, PartialEq)]
struct Arguments {
    img_size: Option<[usize; 2]>,
    /// Per stage.
    window_size: Option<[[usize; 2]; STAGES]>,
    always_partition: bool,
}

impl Arguments {
    /// Fields that the names and shapes of the weights tell again, and one of training.
    const TOLD: [&str; 8] = ["patch_size", "embed_dim", "depths", "num_heads", "head_dim", "mlp_ratio", "qkv_bias", "weight_init"];

    fn read(c: &Config) -> Result<Arguments> {
        c.ignore(&Self::TOLD);
        for (field, expected) in [("strict_img_size", true), ("dynamic_img_size", false)] {
            if c.flag(field, expected)? != expected {
                return Err(c.error(field, format!("{}, expected {expected}", !expected)));
            }
        }
        c.require_or_absent("norm_layer", "layernorm")?;
        let pair = |numbers: &[usize]| match *numbers {
            [size] => Some([size, size]),
            [rows, columns] => Some([rows, columns]),
            _ => None,
        };
        let numbers = |field: &str, longest: usize| match c.nullable_integer(field, None, 1..=65_536) {
            Ok(one) => Ok(one.map(|one| vec![one])),
            Err(_) => c.integers(field, None, 1..=65_536, longest).map(Some),
        };
        let img_size = numbers("img_size", 2)?.and_then(|numbers| pair(&numbers));
        let window_size = match numbers("window_size", STAGES)? {
            Some(numbers) if numbers.len() == STAGES => Some(std::array::from_fn(|at| [numbers[at], numbers[at]])),
            Some(numbers) => match pair(&numbers) {
                Some(pair) => Some([pair; STAGES]),
                None => return Err(c.error("window_size", format!("{numbers:?}, expected 1, 2 or {STAGES} integers"))),
            },
            None => None,
        };
        Ok(Arguments { img_size, window_size, always_partition: c.flag("always_partition", false)? })
    }
}

/// Windows of stage `at`, whose image has `grid` tokens where that is known: those that the configuration tells, no larger than
/// the image; else the square that the table of biases is for.
fn windows(blocks: &Scope, arguments: &Arguments, at: usize, grid: Option<[usize; 2]>, pads_first: bool) -> Windows {
    let shifts_always = arguments.always_partition;
    let rows = blocks.shape("0.attn.relative_position_bias_table").and_then(|s| s.first()).copied().unwrap_or(0);
    let square = rows.isqrt().div_ceil(2).max(1);
    let told = arguments.window_size.map(|sizes| sizes[at]);
    let size = match (told, grid) {
        (Some(told), Some(grid)) if !shifts_always => std::array::from_fn(|axis| told[axis].min(grid[axis])),
        (Some(told), _) => told,
        (None, _) => [square, square],
    };
    Windows { size, shift: told.unwrap_or(size).map(|side| side / 2), pads_first, shifts_always }
}

/// Loads the weights of `scope`, its root, and closes its account.
fn load(config: Option<&Config>, scope: &Scope) -> Result<Classifier> {
    let (timm, arguments) = read_config(config, Arguments::read)?;
    let names = Names::of(scope);
    let conv = scope.child(names.patches);
    let patch = conv.shape("weight").and_then(|s| s.last()).copied().unwrap_or(4).max(1);
    let patches = Conv2d::as_stored(&conv, 3, patch).unpadded();
    let mut width = patches.outputs();
    let patch_norm = LayerNorm::load(&scope.child(names.patch_norm), width, EPS);
    let told = timm.as_ref().filter(|_| !names.is_torchvision);
    let size = told.and_then(|c| arguments.img_size.or((!c.preprocess.assumed).then_some(c.preprocess.input_size)));
    let mut grid = size.map(|size| size.map(|side| side / patch));
    let mut stages = Vec::new();
    for at in 0..STAGES {
        let (blocks, merging) = names.stage(scope, at);
        let mut downsample = None;
        if at > 0 {
            let (merging, outputs) = PatchMerging::load(&merging, width);
            (downsample, width) = (Some(merging), outputs);
            grid = grid.map(|grid| grid.map(|side| side.div_ceil(2)));
        }
        let windows = windows(&blocks, &arguments, at, grid, names.is_torchvision);
        let plain = Windows { shift: [0, 0], ..windows };
        // A stage has one block at least: a file without it is then told what is missing.
        let depth = count(&blocks, &["norm1.weight"]).max(1);
        let block = |i: usize| Block::load(&blocks.child(&i.to_string()), &names, width, if i.is_multiple_of(2) { plain } else { windows });
        stages.push(Stage { downsample, within: blocks.name().to_string(), blocks: (0..depth).map(block).collect() });
    }
    let norm = LayerNorm::load(&scope.child("norm"), width, EPS);
    let (head, num_classes) = last_layer(scope, names.head, width, timm.as_ref());
    // The last stage of a published model is one window.
    let published = size.unwrap_or(stages[STAGES - 1].blocks[0].attn.window().map(|side| side * STRIDE));
    let assumed = Preprocess { input_size: published, ..Preprocess::assumed(224) };
    let preprocess = if names.is_torchvision { assumed } else { Preprocess { interpolation: "bicubic".to_string(), crop_pct: 0.9, ..assumed } };
    let timm = timm.map(|mut c| {
        c.preprocess.input_size = published;
        c
    });
    let network = Box::new(Swin { patches, patch_norm, stages, norm, head, size });
    Classifier::new("Swin", timm, scope, Loaded { network, num_features: width, feature_map: width, num_classes, preprocess })
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "Swin classifier",
    is_config: |config| timm_architecture(config).is_some_and(|name| is_architecture(&name)),
    is_tensors: |store| is_tensors(store),
    is_path: |_| false,
    load: |checkpoint| classifier::load(checkpoint, load),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_told_apart_by_name() {
        let ours = ["swin_tiny_patch4_window7_224", "swin_base_patch4_window12_384", "swin_large_patch4_window7_224_in22k", "swin_s3_base_224"];
        let others = ["swinv2_tiny_window8_256", "swinv2_cr_small_224", "swin_tiny_patch4_window8_256", "swin_", "swin_tiny", "swin_s3_large_224"];
        assert!(ours.iter().all(|name| is_architecture(name)), "{ours:?}");
        assert!(!others.iter().any(|name| is_architecture(name)), "{others:?}");
    }

    #[test]
    fn arguments_are_read_strictly() {
        let read = |text: &str| Arguments::read(&Config::parse(text, "model_args").unwrap()).map_err(|e| e.to_string());
        assert_eq!(read(r#"{"window_size": 7, "img_size": [8, 9]}"#).unwrap().window_size, Some([[7, 7]; 4]));
        assert_eq!(read(r#"{"window_size": [7, 5]}"#).unwrap().window_size, Some([[7, 5]; 4]));
        assert_eq!(read(r#"{"window_size": [7, 7, 14, 7]}"#).unwrap().window_size, Some([[7, 7], [7, 7], [14, 14], [7, 7]]));
        for (text, want) in [
            (r#"{"window_size": [7, 7, 14]}"#, "model_args: window_size: [7, 7, 14], expected 1, 2 or 4 integers"),
            (r#"{"window_size": [[7, 7], [7, 7], [7, 7], [7, 7]]}"#, "model_args: window_size: [7,7], expected an integer"),
            (r#"{"strict_img_size": false}"#, "model_args: strict_img_size: false, expected true"),
            (r#"{"dynamic_img_size": true}"#, "model_args: dynamic_img_size: true, expected false"),
            (r#"{"norm_layer": "rmsnorm"}"#, "model_args: norm_layer: \"rmsnorm\", expected \"layernorm\""),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(want), "{error}");
        }
    }
}
