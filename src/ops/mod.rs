//! Floor 2: one file per op. Formula, parameters, card, recording function, CPU twin, cost, cases.

pub mod activation;
pub mod attention;
pub mod axes;
pub mod binary;
pub mod case;
pub mod channel_affine;
pub mod concat;
pub mod conv2d;
pub(crate) mod conv2d_cpu;
pub mod convert;
pub mod count_nonfinite;
pub mod ddim_step;
pub mod divide;
pub mod embedding;
pub(crate) mod epilogue;
pub mod gated;
pub mod golden;
pub mod group_moments;
pub mod group_norm;
pub mod group_norm_apply;
pub mod image_to_tensor;
pub mod join;
pub(crate) mod lanes;
pub mod layer_norm;
pub mod matmul;
pub mod modulate;
pub mod nearest_row;
pub mod permute;
pub mod pool2d;
pub mod reduce;
pub mod repeat;
pub mod resize_bilinear;
pub(crate) mod row_slices;
pub mod slice;
pub mod softmax;
pub mod solver_step;
pub mod tensor_to_image;
pub mod threshold_quantile;
pub mod timestep_embedding;
pub mod upsample_nearest;
pub(crate) mod winograd;

use crate::plan::Op;

/// WGSL fragment: the storage type. [`crate::plan::Variant::wgsl`] puts the f16 one in its place.
pub(crate) const ELEM: &str = crate::plan::card::ELEM;
/// WGSL fragment: the index of an invocation in a `grid_1d` grid.
pub(crate) const LINEAR_INDEX: &str = include_str!("../../shaders/lib/linear_index.wgsl");
/// WGSL fragment: NaN, and the extremes that keep it.
pub(crate) const NAN: &str = include_str!("../../shaders/lib/nan.wgsl");
/// WGSL fragment: exponential and power; needs [`NAN`].
pub(crate) const EXPONENTIAL: &str = include_str!("../../shaders/lib/exponential.wgsl");
/// WGSL fragment: sum and maximum over a workgroup.
pub(crate) const TREE_F32: &str = include_str!("../../shaders/lib/tree_f32.wgsl");
/// WGSL fragments with the interface of [`TREE_F32`]: over slices of a workgroup, and by its subgroups.
pub(crate) const TREE_SLICES: &str = include_str!("../../shaders/lib/tree_slices.wgsl");
pub(crate) const TREE_SUBGROUP: &str = crate::plan::card::TREE_SUBGROUP;
/// WGSL fragment: integer sum and minimum over a workgroup.
pub(crate) const TREE_U32: &str = include_str!("../../shaders/lib/tree_u32.wgsl");

/// WGSL fragments: products of 64 x 64 and of 128 x 128 values in workgroup memory, with one interface; `TILE_STORE` fills either.
pub(crate) const TILE_64: &str = include_str!("../../shaders/lib/tile_64.wgsl");
pub(crate) const TILE_128: &str = include_str!("../../shaders/lib/tile_128.wgsl");
pub(crate) const TILE_STORE: &str = include_str!("../../shaders/lib/tile_store.wgsl");

/// WGSL fragments: products of 128 x 128, 64 x 160 and 32 x 80 values by cooperative matrices of 16 x 16, and of 64 x 64 by those of 8 x 8, with one
/// interface. [`ELEM_MATRICES`] comes first.
pub(crate) const ELEM_MATRICES: &str = include_str!("../../shaders/lib/elem_matrices.wgsl");
pub(crate) const MATRICES: &str = include_str!("../../shaders/lib/matrices.wgsl");
pub(crate) const MATRICES_OF_8: &str = include_str!("../../shaders/lib/matrices_of_8.wgsl");
pub(crate) const MATRICES_8: &str = include_str!("../../shaders/lib/matrices_8.wgsl");
pub(crate) const MATRICES_128: &str = include_str!("../../shaders/lib/matrices_128.wgsl");
pub(crate) const MATRICES_160: &str = include_str!("../../shaders/lib/matrices_160.wgsl");
pub(crate) const MATRICES_SPLIT: &str = include_str!("../../shaders/lib/matrices_split.wgsl");
pub(crate) const MATRICES_STAGE: &str = include_str!("../../shaders/lib/matrices_stage.wgsl");

/// Every op. A test holds this list against the shader files, the modules and the goldens.
pub static ALL: &[&Op] = &[
    &activation::OP,
    &attention::OP,
    &binary::OP,
    &channel_affine::OP,
    &concat::OP,
    &conv2d::OP,
    &convert::OP,
    &count_nonfinite::OP,
    &ddim_step::OP,
    &divide::OP,
    &embedding::OP,
    &gated::OP,
    &group_moments::OP,
    &group_norm::OP,
    &group_norm_apply::OP,
    &image_to_tensor::OP,
    &layer_norm::OP,
    &matmul::OP,
    &modulate::OP,
    &nearest_row::OP,
    &permute::OP,
    &pool2d::OP,
    &reduce::OP,
    &repeat::OP,
    &resize_bilinear::OP,
    &slice::OP,
    &softmax::OP,
    &solver_step::OP,
    &tensor_to_image::OP,
    &threshold_quantile::OP,
    &timestep_embedding::OP,
    &upsample_nearest::OP,
];
