//! Vision transformers as classifiers and feature extractors: ViT, DeiT (distilled, III) and DINOv2 with timm's names, and
//! ViT with torchvision's.
//! Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021); Touvron et al., "Training data-efficient image
//! transformers" (2021) and "DeiT III" (2022); Oquab et al., "DINOv2" (2023); Darcet et al., "Vision Transformers Need
//! Registers" (2023); `timm/models/vision_transformer.py`, `torchvision/models/vision_transformer.py`.
//!
//! The names tell depth, widths, class and register tokens, layer scales and norms; the architecture's name tells the heads
//! where there are not 64 channels in each.

use serde_json::{Value, json};

use crate::base::{Error, Kind, Result};
use crate::models::classifier::{self, Classifier, Loaded, Network, Prediction, last_layer};
use crate::models::model::{Architecture, timm_architecture};
use crate::models::preprocess::Preprocess;
use crate::models::timm_config::TimmConfig;
use crate::nn::{Conv2d, LayerNorm, Linear};
use crate::ops::activation::Function;
use crate::ops::conv2d::Conv2d as Geometry;
use crate::ops::reduce::Reduction;
use crate::plan::{Layout, Tape, Tensor, Weight};
use crate::weights::{Config, Scope};

/// Added to the variance; CLIP's, which normalise before the first block too, take the other.
const EPS: f32 = 1e-6;
const CLIP_EPS: f32 = 1e-5;
const HEAD_DIM: usize = 64;
/// Blocks that a hostile file may claim.
const MOST_BLOCKS: usize = 256;

/// Where the two libraries put the same thing.
struct Names {
    patches: &'static str,
    class_token: &'static str,
    positions: &'static str,
    /// Blocks are this and their number.
    block: &'static str,
    norm1: &'static str,
    attention: &'static str,
    qkv: [&'static str; 2],
    projection: &'static str,
    norm2: &'static str,
    fc: [&'static str; 2],
    norm: &'static str,
    head: &'static str,
}

const TIMM: Names = Names {
    patches: "patch_embed.proj",
    class_token: "cls_token",
    positions: "pos_embed",
    block: "blocks.",
    norm1: "norm1",
    attention: "attn",
    qkv: ["qkv.weight", "qkv.bias"],
    projection: "proj",
    norm2: "norm2",
    fc: ["fc1", "fc2"],
    norm: "norm",
    head: "head",
};

const TORCHVISION: Names = Names {
    patches: "conv_proj",
    class_token: "class_token",
    positions: "encoder.pos_embedding",
    block: "encoder.layers.encoder_layer_",
    norm1: "ln_1",
    attention: "self_attention",
    qkv: ["in_proj_weight", "in_proj_bias"],
    projection: "out_proj",
    norm2: "ln_2",
    fc: ["0", "3"],
    norm: "encoder.ln",
    head: "heads.head",
};

/// softmax(q k^T / sqrt(d)) v of q, k, v linear in x, and a linear layer behind it.
struct Attention {
    name: &'static str,
    /// `[D, 3 D]`.
    qkv: Weight,
    qkv_bias: Option<Weight>,
    /// Of each head's queries and keys.
    norms: Option<[LayerNorm; 2]>,
    projection: Linear,
    heads: usize,
}

impl Attention {
    fn load(scope: &Scope, names: &Names, width: usize, heads: usize, eps: f32) -> Attention {
        let [weight, bias] = names.qkv;
        let norm = |name: &str| LayerNorm::load(&scope.child(name), width / heads, eps);
        Attention {
            name: names.attention,
            qkv: scope.weight(weight, &[3 * width, width], Layout::LinearWeight),
            qkv_bias: scope.has(bias).then(|| scope.weight(bias, &[3 * width], Layout::Plain)),
            norms: scope.has("q_norm.weight").then(|| ["q_norm", "k_norm"].map(norm)),
            projection: Linear::load(&scope.child(names.projection), width, width),
            heads,
        }
    }

    /// x: `[N, L, D]`.
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(self.name, |t| {
            let weight = t.weight(&self.qkv);
            let bias = self.qkv_bias.as_ref().map(|bias| t.weight(bias));
            let qkv = t.linear(x, weight, bias)?;
            let parts = t.split(qkv, 2, 3)?;
            let [mut q, mut k] = [parts[0], parts[1]];
            if let Some([q_norm, k_norm]) = &self.norms {
                q = self.per_head(t, q, q_norm)?;
                k = self.per_head(t, k, k_norm)?;
            }
            let h = t.attention(q, k, parts[2], self.heads)?;
            self.projection.forward(t, h)
        })
    }

    fn per_head(&self, t: &mut Tape, x: Tensor, norm: &LayerNorm) -> Result<Tensor> {
        let shape = t.shape(x).dims().to_vec();
        let heads = t.reshape(x, &[shape[0], shape[1], self.heads, shape[2] / self.heads])?;
        let h = norm.forward(t, heads)?;
        t.reshape(h, &shape)
    }
}

/// Two linear layers and a function between them; or, where the first is twice as wide as the second takes, SwiGLU
/// (Shazeer 2020): silu of the first half times the second.
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Function,
    gated: bool,
}

impl Mlp {
    fn load(scope: &Scope, names: &Names, width: usize, activation: Function) -> Mlp {
        let [fc1, fc2] = names.fc;
        let hidden = scope.shape(&format!("{fc1}.weight")).and_then(|s| s.first()).copied().unwrap_or(4 * width);
        let inner = scope.shape(&format!("{fc2}.weight")).and_then(|s| s.get(1)).copied().unwrap_or(hidden);
        let gated = hidden == 2 * inner;
        let (fc1, fc2) = (Linear::load(&scope.child(fc1), width, hidden), Linear::load(&scope.child(fc2), if gated { inner } else { hidden }, width));
        Mlp { fc1, fc2, activation, gated }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope("mlp", |t| {
            let h = self.fc1.forward(t, x)?;
            let h = if self.gated {
                let halves = t.split(h, 2, 2)?;
                let gate = t.activation(halves[0], Function::Silu)?;
                t.mul(gate, halves[1])?
            } else {
                t.activation(h, self.activation)?
            };
            self.fc2.forward(t, h)
        })
    }
}

/// x + ls1 attn(norm1(x)), then x + ls2 mlp(norm2(x)).
struct Block {
    name: String,
    norm1: LayerNorm,
    attention: Attention,
    ls1: Option<Weight>,
    norm2: LayerNorm,
    mlp: Mlp,
    ls2: Option<Weight>,
}

impl Block {
    fn load(scope: &Scope, names: &Names, width: usize, shape: &Shape) -> Block {
        let gamma = |name: &str| scope.has(name).then(|| scope.weight(name, &[width], Layout::Plain));
        Block {
            name: scope.name().to_string(),
            norm1: LayerNorm::load(&scope.child(names.norm1), width, shape.eps),
            attention: Attention::load(&scope.child(names.attention), names, width, shape.heads, shape.eps),
            ls1: gamma("ls1.gamma"),
            norm2: LayerNorm::load(&scope.child(names.norm2), width, shape.eps),
            mlp: Mlp::load(&scope.child("mlp"), names, width, shape.activation),
            ls2: gamma("ls2.gamma"),
        }
    }

    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.norm1.forward(t, x)?;
            let h = self.attention.forward(t, h)?;
            let h = scaled(t, h, "ls1", self.ls1.as_ref())?;
            let x = t.add(x, h)?;
            let h = self.norm2.forward(t, x)?;
            let h = self.mlp.forward(t, h)?;
            let h = scaled(t, h, "ls2", self.ls2.as_ref())?;
            t.add(x, h)
        })
    }
}

fn scaled(t: &mut Tape, x: Tensor, name: &str, gamma: Option<&Weight>) -> Result<Tensor> {
    let Some(gamma) = gamma else { return Ok(x) };
    t.scope(name, |t| {
        let gamma = t.weight(gamma);
        t.mul(x, gamma)
    })
}

/// What the names of the tensors do not tell.
struct Shape {
    heads: usize,
    eps: f32,
    activation: Function,
    /// Rows and columns of patches.
    grid: [usize; 2],
    /// Features are the mean over the patches, not the class token.
    average: bool,
    /// The position embedding has rows for the class and register tokens.
    prefix_has_position: bool,
}

struct VisionTransformer {
    shape: Shape,
    patch: usize,
    width: usize,
    patch_embed: Conv2d,
    /// Class, distillation and register tokens in the order in which they stand before the patches, each `[1, n, D]`.
    prefix: Vec<Weight>,
    prefix_tokens: usize,
    distilled: bool,
    positions: Weight,
    norm_pre: Option<LayerNorm>,
    blocks: Vec<Block>,
    norm: Option<LayerNorm>,
    fc_norm: Option<LayerNorm>,
    head: Option<Linear>,
    head_dist: Option<Linear>,
}

impl VisionTransformer {
    /// Patches, tokens before them and positions: `[N, L, D]`.
    fn embed(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        let [n, h, w, _] = t.nhwc(x)?;
        let [rows, columns] = self.shape.grid;
        if [h, w] != [rows * self.patch, columns * self.patch] {
            let fact = format!(
                "pixels are [{n}, 3, {h}, {w}], expected [N, 3, {}, {}]: the position embedding has {rows} x {columns} patches",
                rows * self.patch,
                columns * self.patch
            );
            return Err(t.mismatch(fact));
        }
        let patches = self.patch_embed.forward(t, x)?;
        let mut tokens = t.reshape(patches, &[n, rows * columns, self.width])?;
        let positions = t.weight(&self.positions);
        if !self.shape.prefix_has_position {
            tokens = t.add(tokens, positions)?;
        }
        let mut all = Vec::new();
        for token in &self.prefix {
            let token = t.weight(token);
            all.push(t.repeat(token, n)?);
        }
        all.push(tokens);
        let mut tokens = t.concat_axis(&all, 1)?;
        if self.shape.prefix_has_position {
            tokens = t.add(tokens, positions)?;
        }
        match &self.norm_pre {
            Some(norm) => norm.forward(t, tokens),
            None => Ok(tokens),
        }
    }

    /// Token `at` as `[N, D]`.
    fn token(&self, t: &mut Tape, x: Tensor, at: usize) -> Result<Tensor> {
        let n = t.shape(x)[0];
        let token = t.slice(x, 1, at, 1)?;
        t.reshape(token, &[n, self.width])
    }
}

impl Network for VisionTransformer {
    fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Prediction> {
        let mut h = self.embed(t, x)?;
        for block in &self.blocks {
            h = block.forward(t, h)?;
        }
        if let Some(norm) = &self.norm {
            h = norm.forward(t, h)?;
        }
        if self.distilled {
            let (class, distilled) = (self.token(t, h, 0)?, self.token(t, h, 1)?);
            let both = t.add(class, distilled)?;
            let features = t.affine(both, 0.5, 0.0)?;
            let (Some(head), Some(head_dist)) = (&self.head, &self.head_dist) else { return Ok(Prediction { features, logits: None }) };
            let (a, b) = (head.forward(t, class)?, head_dist.forward(t, distilled)?);
            let both = t.add(a, b)?;
            return Ok(Prediction { features, logits: Some(t.affine(both, 0.5, 0.0)?) });
        }
        let mut features = if self.shape.average {
            let [rows, columns] = self.shape.grid;
            let patches = t.slice(h, 1, self.prefix_tokens, rows * columns)?;
            t.reduce(patches, 1, Reduction::Mean)?
        } else {
            self.token(t, h, 0)?
        };
        if let Some(norm) = &self.fc_norm {
            features = norm.forward(t, features)?;
        }
        classifier::predict(t, features, self.head.as_ref())
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("depth", json!(self.blocks.len())),
            ("heads", json!(self.shape.heads)),
            ("patch_size", json!(self.patch)),
            ("grid", json!(self.shape.grid)),
            ("features_of", json!(if self.shape.average { "mean of the patches" } else { "class token" })),
        ]
    }
}

/// Heads of the architectures whose heads have other than 64 channels.
const HEADS: [(&str, usize); 5] = [("vit_base_patch16_gap_", 16), ("vit_huge_", 16), ("vit_giant_", 16), ("vit_gigantic_", 16), ("deit3_huge_", 16)];

/// What `model_args` may say.
#[derive(Default)]
struct Arguments {
    num_heads: Option<usize>,
    img_size: Option<[usize; 2]>,
}

impl Arguments {
    /// Fields that the names and shapes of the weights tell again, and so need no reading.
    const TOLD: [&str; 13] = [
        "patch_size",
        "embed_dim",
        "depth",
        "mlp_ratio",
        "qkv_bias",
        "qk_norm",
        "class_token",
        "reg_tokens",
        "no_embed_class",
        "init_values",
        "pre_norm",
        "fc_norm",
        "final_norm",
    ];

    fn read(c: &Config) -> Result<Arguments> {
        c.ignore(&Self::TOLD);
        let num_heads = c.nullable_integer("num_heads", None, 1..=1024)?;
        let img_size = match c.nullable_integer("img_size", None, 1..=65_536) {
            Ok(size) => size.map(|s| [s, s]),
            Err(_) => <[usize; 2]>::try_from(c.integers("img_size", None, 1..=65_536, 2)?).ok(),
        };
        Ok(Arguments { num_heads, img_size })
    }
}

/// Loads the weights of `scope`, its root, and closes its account.
fn load(config: Option<&Config>, scope: &Scope) -> Result<Classifier> {
    let (timm, arguments) = match config {
        Some(c) => {
            let (timm, arguments) = TimmConfig::read(c, |stored| stored.map_or(Ok(Arguments::default()), Arguments::read))?;
            (Some(timm), arguments)
        }
        None => (None, Arguments::default()),
    };
    let names = if scope.has("conv_proj.weight") { &TORCHVISION } else { &TIMM };
    let wrong = |fact: String| Error::new(Kind::Weights, "classifier", fact).remark(scope.store().place());
    let patches = format!("{}.weight", names.patches);
    let (width, patch) = match scope.shape(&patches) {
        Some(&[width, 3, rows, columns]) if rows == columns && rows > 0 && width > 0 => (width, rows),
        found => return Err(wrong(format!("{patches} is {found:?}, expected [width, 3, patch, patch]"))),
    };
    let prefix_names = [names.class_token, "dist_token", "reg_token"];
    let lengths = prefix_names.map(|name| scope.shape(name).and_then(|s| s.get(1)).copied().unwrap_or(0));
    let prefix_tokens: usize = lengths.iter().sum();
    let positions = scope.shape(names.positions).and_then(|s| s.get(1)).copied().ok_or_else(|| wrong(format!("no {}", names.positions)))?;
    let told = arguments.img_size.or(timm.as_ref().filter(|c| !c.preprocess.assumed).map(|c| c.preprocess.input_size));
    let (grid, prefix_has_position) = grid(positions, prefix_tokens, told.map(|s| s.map(|s| s / patch))).ok_or_else(|| {
        wrong(format!("{} has {positions} rows, expected those of a square of patches, with or without {prefix_tokens} tokens before them", names.positions))
    })?;
    let architecture = timm.as_ref().map(|c| c.architecture.as_str());
    let heads = heads(width, &arguments, architecture).ok_or_else(|| {
        wrong(format!("{width} channels in heads of {HEAD_DIM} or as the architecture has them, expected config.json to give num_heads in model_args"))
    })?;
    let is_clip = scope.has("norm_pre.weight");
    let shape = Shape {
        heads,
        eps: if is_clip { CLIP_EPS } else { EPS },
        activation: if architecture.is_some_and(|name| name.contains("quickgelu")) { Function::QuickGelu } else { Function::Gelu },
        grid,
        average: average(scope, names, timm.as_ref())?,
        prefix_has_position,
    };
    let network = network(scope, names, shape, width, patch, lengths, positions, timm.as_ref());
    // Of masked-image pre-training.
    scope.dropping("mask_token");
    let num_classes = network.head.as_ref().map_or(0, |head| head.weight.dims().last().copied().unwrap_or(0));
    let size = [grid[0] * patch, grid[1] * patch];
    let mut preprocess = Preprocess { input_size: size, ..Preprocess::assumed(size[0]) };
    if names.patches == TIMM.patches {
        preprocess = Preprocess { interpolation: "bicubic".to_string(), crop_pct: 0.9, ..preprocess }.symmetric();
    }
    let timm = timm.map(|mut c| {
        c.preprocess.input_size = size;
        c
    });
    Classifier::new("ViT", timm, scope, Loaded { network: Box::new(network), num_features: width, feature_map: width, num_classes, preprocess })
}

fn network(
    scope: &Scope,
    names: &Names,
    shape: Shape,
    width: usize,
    patch: usize,
    lengths: [usize; 3],
    positions: usize,
    timm: Option<&TimmConfig>,
) -> VisionTransformer {
    let geometry = Geometry { stride: [patch, patch], ..Geometry::default() };
    let conv = scope.child(names.patches);
    let patch_embed = if conv.has("bias") { Conv2d::load(&conv, 3, width, patch, geometry) } else { Conv2d::without_bias(&conv, 3, width, patch, geometry) };
    let token = |(name, &length): (&str, &usize)| (length > 0).then(|| scope.weight(name, &[1, length, width], Layout::Plain));
    let norm = |name: &str, eps: f32| scope.has(&format!("{name}.weight")).then(|| LayerNorm::load(&scope.child(name), width, eps));
    let block = |i: usize| scope.child(&format!("{}{i}", names.block));
    let depth = (0..MOST_BLOCKS).take_while(|&i| block(i).has(&format!("{}.weight", names.norm1))).count();
    let (head, _) = last_layer(scope, names.head, width, timm);
    let distilled = lengths[1] > 0;
    VisionTransformer {
        patch,
        width,
        patch_embed,
        prefix: [names.class_token, "dist_token", "reg_token"].into_iter().zip(&lengths).filter_map(token).collect(),
        prefix_tokens: lengths.iter().sum(),
        distilled,
        positions: scope.weight(names.positions, &[1, positions, width], Layout::Plain),
        norm_pre: norm("norm_pre", shape.eps),
        blocks: (0..depth).map(|i| Block::load(&block(i), names, width, &shape)).collect(),
        norm: norm(names.norm, shape.eps),
        fc_norm: norm("fc_norm", shape.eps),
        head_dist: distilled.then(|| last_layer(scope, "head_dist", width, timm).0).flatten(),
        head,
        shape,
    }
}

/// Rows and columns of the patches of a position embedding, and whether the tokens before them have rows of their own in it.
/// `told` is what the configuration's image size comes to.
fn grid(positions: usize, prefix: usize, told: Option<[usize; 2]>) -> Option<([usize; 2], bool)> {
    let of_patches = |patches: Option<usize>| {
        let patches = patches.filter(|&p| p > 0)?;
        if let Some(told) = told.filter(|[rows, columns]| rows * columns == patches) {
            return Some(told);
        }
        let side = patches.isqrt();
        (side * side == patches).then_some([side, side])
    };
    let (with, without) = (of_patches(positions.checked_sub(prefix)), of_patches(Some(positions)));
    match (with, without) {
        (Some(grid), _) if prefix == 0 => Some((grid, false)),
        (Some(with), Some(without)) => {
            // Both are squares: the configuration decides.
            if told == Some(with) { Some((with, true)) } else { (told == Some(without)).then_some((without, false)) }
        }
        (Some(grid), None) => Some((grid, true)),
        (None, Some(grid)) => Some((grid, false)),
        (None, None) => None,
    }
}

fn heads(width: usize, arguments: &Arguments, architecture: Option<&str>) -> Option<usize> {
    let by_name = || HEADS.iter().find(|(prefix, _)| architecture.is_some_and(|name| name.starts_with(prefix))).map(|(_, heads)| *heads);
    let published = || if width == 1280 { Some(16) } else { width.is_multiple_of(HEAD_DIM).then_some(width / HEAD_DIM) };
    arguments.num_heads.or_else(by_name).or_else(published).filter(|&heads| heads > 0 && width.is_multiple_of(heads))
}

/// Whether features are the mean over the patches.
fn average(scope: &Scope, names: &Names, timm: Option<&TimmConfig>) -> Result<bool> {
    let has_class = scope.has(names.class_token);
    match timm.and_then(|c| c.global_pool.as_deref()) {
        None => Ok(!has_class || scope.has("fc_norm.weight")),
        Some("token") if has_class => Ok(false),
        Some("avg") => Ok(true),
        Some(other) => {
            let fact = format!("\"{other}\", expected \"avg\"{}", if has_class { " or \"token\"" } else { ": the weights have no class token" });
            Err(Error::new(Kind::Config, "classifier: global_pool", fact).remark(scope.store().place()))
        }
    }
}

/// Parts of a name whose networks are built otherwise.
const OTHERS: [&str; 23] = [
    "siglip", "radio", "_xp_", "18x2", "36x1", "rpn", "_map_", "tips", "intern", "so400m", "relpos", "sam", "hybrid", "dlittle", "rope", "dinov3", "_mci_",
    "sapiens", "lingbot", "_r50_", "_r26_", "_r_s16", "_pe_",
];

fn is_vit(name: &str) -> bool {
    let family = [
        "vit_tiny_",
        "vit_xsmall_",
        "vit_small_",
        "vit_medium_",
        "vit_mediumd_",
        "vit_base_",
        "vit_large_",
        "vit_huge_",
        "vit_giant_",
        "vit_gigantic_",
        "vit_betwixt_",
        "vit_little_",
        "vit_wee_",
        "vit_so150m",
        "deit_",
        "deit3_",
    ];
    family.iter().any(|start| name.starts_with(start)) && !OTHERS.iter().any(|part| name.contains(part))
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "ViT classifier (ViT, DeiT, DINOv2)",
    is_config: |config| timm_architecture(config).is_some_and(|name| is_vit(&name)),
    is_tensors: |store| {
        let has = |name: &str| store.shape(name).is_some();
        let timm = has("patch_embed.proj.weight") && has("pos_embed") && has("blocks.0.attn.qkv.weight") && has("blocks.0.norm1.weight");
        timm || (has("conv_proj.weight") && has("encoder.pos_embedding"))
    },
    is_path: |_| false,
    load: |checkpoint| classifier::load(checkpoint, load),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_embedding_tells_the_grid() {
        assert_eq!(grid(197, 1, None), Some(([14, 14], true)));
        assert_eq!(grid(196, 1, None), Some(([14, 14], false)));
        assert_eq!(grid(256, 0, None), Some(([16, 16], false)));
        assert_eq!(grid(13, 1, Some([3, 4])), Some(([3, 4], true)));
        assert_eq!(grid(13, 1, None), None);
        // 9 is 3 x 3, and 2 x 2 with five tokens before.
        assert_eq!(grid(9, 5, None), None);
        assert_eq!(grid(9, 5, Some([2, 2])), Some(([2, 2], true)));
        assert_eq!(grid(9, 5, Some([3, 3])), Some(([3, 3], false)));
    }

    #[test]
    fn heads_have_64_channels_but_for_some() {
        let none = Arguments::default();
        assert_eq!(heads(192, &none, None), Some(3));
        assert_eq!(heads(768, &none, Some("vit_base_patch16_gap_224")), Some(16));
        assert_eq!(heads(1280, &none, None), Some(16));
        assert_eq!(heads(100, &none, None), None);
        assert_eq!(heads(24, &Arguments { num_heads: Some(3), img_size: None }, None), Some(3));
        assert_eq!(heads(24, &Arguments { num_heads: Some(5), img_size: None }, None), None);
    }

    #[test]
    fn other_networks_of_the_same_file_are_left_alone() {
        assert!(is_vit("vit_small_patch14_reg4_dinov2") && is_vit("deit_tiny_distilled_patch16_224"));
        assert!(!is_vit("vit_base_patch16_siglip_224") && !is_vit("vit_small_patch16_18x2_224") && !is_vit("vit_relpos_small_patch16_224"));
        assert!(!is_vit("vit_small_patch16_dinov3") && !is_vit("vit_base_r50_s16_224") && !is_vit("vit_betwixt_patch16_rope_reg4_gap_256"));
    }
}
