//! What a vision transformer's configuration and name say and its tensors do not: heads, the grid of patches, and whether it is one of
//! the networks in `vit`.

use crate::base::Result;
use crate::weights::Config;

/// Channels of a head, but for [`HEADS`].
pub const HEAD_DIM: usize = 64;
/// Heads of architectures by the beginnings of their names; the first row counts.
const HEADS: [(&str, usize); 7] = [
    ("vit_giant_patch14_dinov2", 24),
    ("vit_giant_patch14_reg4_dinov2", 24),
    ("vit_base_patch16_gap_", 16),
    ("vit_huge_", 16),
    ("vit_giant_", 16),
    ("vit_gigantic_", 16),
    ("deit3_huge_", 16),
];

/// What `model_args` may say.
#[derive(Default)]
pub struct Arguments {
    pub num_heads: Option<usize>,
    pub img_size: Option<[usize; 2]>,
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

    pub fn read(c: &Config) -> Result<Arguments> {
        c.ignore(&Self::TOLD);
        let num_heads = c.nullable_integer("num_heads", None, 1..=1024)?;
        let img_size = match c.nullable_integer("img_size", None, 1..=65_536) {
            Ok(size) => size.map(|s| [s, s]),
            Err(_) => <[usize; 2]>::try_from(c.integers("img_size", None, 1..=65_536, 2)?).ok(),
        };
        Ok(Arguments { num_heads, img_size })
    }
}

/// Rows and columns of the patches of a position embedding, and whether the tokens before them have rows of their own in it.
/// `told` is what the configuration's image size comes to.
pub fn grid(positions: usize, prefix: usize, told: Option<[usize; 2]>) -> Option<([usize; 2], bool)> {
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

pub fn heads(width: usize, arguments: &Arguments, architecture: Option<&str>) -> Option<usize> {
    let by_name = || HEADS.iter().find(|(prefix, _)| architecture.is_some_and(|name| name.starts_with(prefix))).map(|(_, heads)| *heads);
    let published = || if width == 1280 { Some(16) } else { width.is_multiple_of(HEAD_DIM).then_some(width / HEAD_DIM) };
    arguments.num_heads.or_else(by_name).or_else(published).filter(|&heads| heads > 0 && width.is_multiple_of(heads))
}

/// Parts of a name whose networks are built otherwise.
const OTHERS: [&str; 23] = [
    "siglip", "radio", "_xp_", "18x2", "36x1", "rpn", "_map_", "tips", "intern", "so400m", "relpos", "sam", "hybrid", "dlittle", "rope", "dinov3", "_mci_",
    "sapiens", "lingbot", "_r50_", "_r26_", "_r_s16", "_resnet",
];

/// Whether timm calls a network of `vit` so.
pub fn is_vit(name: &str) -> bool {
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
        assert_eq!(heads(1536, &none, Some("vit_giant_patch14_reg4_dinov2")), Some(24));
        assert_eq!(heads(1408, &none, Some("vit_giant_patch14_clip_224")), Some(16));
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
