//! Two-dimensional convolution (cross-correlation, as every framework has it).
//!
//! y[n, oh, ow, o] = bias[o] + sum over kh, kw, i of x[n, oh sh + kh dh - top, ow sw + kw dw - left, g I/G + i] w[kh, kw, i, o]
//! with g = o / (O/G) and zero outside x.  x: `[N, H, W, I]`; w: `[KH, KW, I/G, O]`; bias: `[O]`; y: `[N, OH, OW, O]`.

use crate::base::{DType, Result, Tolerance};
use crate::ops::activation::{Function, SIGMOID};
use crate::ops::epilogue::{EPILOGUE, EPILOGUE_4, NETWORK, epilogue};
use crate::ops::join::joined;
use crate::ops::matmul::{column_lanes, fills_the_device, shuffled_lanes};
use crate::ops::{
    ELEM, ELEM_MATRICES, LINEAR_INDEX, MATRICES, MATRICES_8, MATRICES_128, MATRICES_160, MATRICES_OF_8, MATRICES_SPLIT, MATRICES_STAGE, TILE_64, TILE_128,
    TILE_STORE, conv2d_cpu,
};
use crate::params;
use crate::plan::card::{SHUFFLE, grid_1d};
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Machine, Op, StepView, Tape, Tensor, Variant};

params! {
    pub struct Params {
        pub batch: u32,
        pub in_h: u32,
        pub in_w: u32,
        pub in_c: u32,
        pub out_h: u32,
        pub out_w: u32,
        pub out_c: u32,
        pub kernel_h: u32,
        pub kernel_w: u32,
        pub stride_h: u32,
        pub stride_w: u32,
        pub pad_top: u32,
        pub pad_left: u32,
        pub dilation_h: u32,
        pub dilation_w: u32,
        pub groups: u32,
        pub has_bias: u32,
        /// x is stored with one pixel for each square of 2^enlarged pixels a side; `in_h` and `in_w` count the latter.
        pub enlarged: u32,
        /// The end of the kernel: `ops::epilogue`.
        pub added_rows: u32,
        pub added_count: u32,
        pub function: u32,
        pub a: f32,
        pub b: f32,
    }
}

/// Geometry of a convolution. The kernel's size is the weight's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Rows, columns.
    pub stride: [usize; 2],
    /// Zeros added at the top, bottom, left, right.
    pub padding: [usize; 4],
    pub dilation: [usize; 2],
    pub groups: usize,
}

impl Default for Conv2d {
    fn default() -> Self {
        Conv2d { stride: [1, 1], padding: [0; 4], dilation: [1, 1], groups: 1 }
    }
}

impl Conv2d {
    /// The same padding on all four sides.
    pub fn padded(padding: usize) -> Self {
        Conv2d { padding: [padding; 4], ..Self::default() }
    }

    pub fn strided(self, stride: usize) -> Self {
        Conv2d { stride: [stride, stride], ..self }
    }
}

/// Output pixels of an invocation's tile in the `tiled` variant.
const TILE_PIXELS: u32 = 8;
/// And of one in the `depthwise` variant.
const DEPTHWISE_PIXELS: u32 = 4;

pub static OP: Op = Op {
    name: "conv2d",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin: conv2d_cpu::twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 2e-5, reason: "f32 sums over KH KW I <= 9 * 320 terms in another order" },
    f16: true,
    statistics: &[],
    variants: &[
        Variant {
            constants: |s| vec![("WG", 256.0), function(s)],
            ..Variant::per_element(&[ELEM, LINEAR_INDEX, SIGMOID, NETWORK, EPILOGUE, include_str!("../../shaders/conv2d.wgsl")])
        },
        Variant {
            name: "depthwise",
            family: "depthwise",
            source: &[ELEM, LINEAR_INDEX, SIGMOID, NETWORK, EPILOGUE_4, include_str!("../../shaders/conv2d_depthwise.wgsl")],
            workgroup: 64,
            meant_for: Machine::Any,
            constants: |s| vec![function(s)],
            accepts: |s| {
                let p: Params = s.params();
                is_depthwise(&p) && p.out_c.is_multiple_of(4)
            },
            grid: |s| {
                let p: Params = s.params();
                let tiles = [p.batch, p.out_h, p.out_w.div_ceil(DEPTHWISE_PIXELS), p.out_c / 4].into_iter().map(|v| v as usize).product();
                grid_1d(tiles, 64)
            },
        },
        // Before `tiled`, so that only a measurement chooses it.
        Variant {
            name: "winograd",
            family: "winograd",
            source: &[ELEM, SIGMOID, NETWORK, EPILOGUE_4, include_str!("../../shaders/conv2d_winograd.wgsl")],
            workgroup: 256,
            meant_for: Machine::Hardware,
            constants: |s| vec![function(s)],
            accepts: |s| {
                let p: Params = s.params();
                let plain = [p.kernel_h, p.kernel_w, p.stride_h, p.stride_w, p.dilation_h, p.dilation_w] == [3, 3, 1, 1, 1, 1];
                plain && accepts_shared(s) && winograd_tiles(&p) <= 65_535
            },
            grid: |s| {
                let p: Params = s.params();
                [p.out_c.div_ceil(32), winograd_tiles(&p), 1]
            },
        },
        // Before `tiled`, so that only a measurement chooses it.
        Variant {
            name: "shuffled",
            family: "shuffled",
            source: &[ELEM, SHUFFLE, SIGMOID, NETWORK, EPILOGUE_4, include_str!("../../shaders/conv2d_shuffled.wgsl")],
            workgroup: 64,
            meant_for: Machine::Hardware,
            constants: |s| vec![("WG", f64::from(shuffled_lanes(s.params::<Params>().out_c))), function(s)],
            accepts: accepts_tiled,
            grid: |s| {
                let p: Params = s.params();
                [p.out_w.div_ceil(TILE_PIXELS), p.batch * p.out_h, p.out_c.div_ceil(4 * shuffled_lanes(p.out_c))]
            },
        },
        Variant {
            name: "tiled",
            family: "tiled",
            source: &[ELEM, SIGMOID, NETWORK, EPILOGUE_4, include_str!("../../shaders/conv2d_tiled.wgsl")],
            workgroup: 16,
            meant_for: Machine::Any,
            constants: |s| vec![("WG", f64::from(column_lanes(s.params::<Params>().out_c))), function(s)],
            accepts: accepts_tiled,
            grid: |s| {
                let p: Params = s.params();
                [p.out_w.div_ceil(TILE_PIXELS), p.batch * p.out_h, p.out_c.div_ceil(4 * column_lanes(p.out_c))]
            },
        },
        // Before `shared_64`: with indices into its sums that were not constant it ran at a fifteenth of what it can (docs/performance.md).
        Variant {
            name: "shared_128",
            family: "shared",
            source: &[ELEM, TILE_128, TILE_STORE, SIGMOID, NETWORK, EPILOGUE_4, SHARED],
            workgroup: 256,
            meant_for: Machine::Hardware,
            constants: |s| vec![function(s)],
            accepts: |s| accepts_shared(s) && fills_the_device(shared_grid(s, 128)),
            grid: |s| shared_grid(s, 128),
        },
        Variant {
            name: "shared_64",
            family: "shared",
            source: &[ELEM, TILE_64, TILE_STORE, SIGMOID, NETWORK, EPILOGUE_4, SHARED],
            workgroup: 256,
            meant_for: Machine::Hardware,
            constants: |s| vec![function(s)],
            accepts: accepts_shared,
            grid: |s| shared_grid(s, 64),
        },
        Variant {
            name: "few_in",
            family: "few_in",
            source: &[ELEM, TILE_64, TILE_STORE, SIGMOID, NETWORK, EPILOGUE_4, include_str!("../../shaders/conv2d_few_in.wgsl")],
            workgroup: 256,
            meant_for: Machine::Hardware,
            constants: |s| vec![function(s)],
            accepts: |s| {
                let p: Params = s.params();
                p.groups == 1 && p.in_c < 16 && p.out_c.is_multiple_of(4) && pixels(&p).div_ceil(64) <= 65_535
            },
            grid: |s| shared_grid(s, 64),
        },
        Variant {
            name: "few_out",
            family: "few_out",
            source: &[ELEM, LINEAR_INDEX, SIGMOID, NETWORK, EPILOGUE, include_str!("../../shaders/conv2d_few_out.wgsl")],
            workgroup: 64,
            meant_for: Machine::Any,
            constants: |s| vec![function(s)],
            accepts: |s| {
                let p: Params = s.params();
                p.groups == 1 && p.out_c <= 4 && p.in_c.is_multiple_of(4)
            },
            grid: |s| {
                let p: Params = s.params();
                let tiles = [p.batch, p.out_h, p.out_w.div_ceil(4)].into_iter().map(|v| v as usize).product();
                grid_1d(tiles, 64)
            },
        },
        Variant {
            name: "matrices_8",
            family: "matrices_8",
            source: &[ELEM_MATRICES, MATRICES_OF_8, MATRICES_8, SIGMOID, NETWORK, EPILOGUE_4, BY_MATRICES],
            workgroup: 128,
            meant_for: Machine::Matrices8,
            constants: |s| vec![function(s)],
            accepts: accepts_matrices,
            grid: |s| shared_grid(s, 64),
        },
        Variant {
            name: "matrices_128",
            family: "matrices",
            source: &[ELEM_MATRICES, MATRICES, MATRICES_128, MATRICES_STAGE, SIGMOID, NETWORK, EPILOGUE_4, BY_MATRICES],
            workgroup: 256,
            meant_for: Machine::Matrices,
            constants: |s| vec![function(s)],
            accepts: accepts_matrices,
            grid: |s| shared_grid(s, 128),
        },
        Variant {
            name: "matrices_160",
            family: "matrices",
            source: &[ELEM_MATRICES, MATRICES, MATRICES_160, MATRICES_STAGE, SIGMOID, NETWORK, EPILOGUE_4, BY_MATRICES],
            workgroup: 128,
            meant_for: Machine::Matrices,
            constants: |s| vec![function(s)],
            accepts: |s| accepts_matrices(s) && s.params::<Params>().out_c.is_multiple_of(160),
            grid: |s| {
                let p: Params = s.params();
                [p.out_c.div_ceil(160), pixels(&p).div_ceil(64), 1]
            },
        },
        Variant {
            name: "matrices_split",
            family: "matrices_split",
            source: &[ELEM_MATRICES, MATRICES, MATRICES_SPLIT, SIGMOID, NETWORK, EPILOGUE_4, BY_MATRICES],
            workgroup: 128,
            meant_for: Machine::Matrices,
            constants: |s| vec![function(s)],
            accepts: |s| {
                let p: Params = s.params();
                accepts_matrices(s) && p.out_c.is_multiple_of(80) && p.in_c >= 128 && p.out_h * p.out_w <= 128
            },
            grid: |s| {
                let p: Params = s.params();
                [p.out_c / 80, pixels(&p).div_ceil(32), 1]
            },
        },
    ],
};

const BY_MATRICES: &str = include_str!("../../shaders/conv2d_matrices.wgsl");
const SHARED: &str = include_str!("../../shaders/conv2d_shared.wgsl");

fn function(s: &StepView) -> (&'static str, f64) {
    epilogue!(s.params::<Params>()).constant()
}

pub(crate) fn is_depthwise(p: &Params) -> bool {
    p.groups > 1 && p.groups == p.in_c && p.groups == p.out_c
}

/// Tiles of 8 pixels of a row and four channels, whatever brings the values.
fn accepts_tiled(s: &StepView) -> bool {
    let p: Params = s.params();
    let tiles = p.out_w.div_ceil(TILE_PIXELS);
    p.groups == 1 && p.out_c.is_multiple_of(4) && p.batch * p.out_h <= 65_535 && tiles <= 65_535
}

/// Both tile sizes add along K in the same order, so the size may depend on the batch: a pixel's bits do not.
fn accepts_shared(s: &StepView) -> bool {
    let p: Params = s.params();
    p.groups == 1 && p.in_c.is_multiple_of(4) && p.out_c.is_multiple_of(4) && pixels(&p).div_ceil(64) <= 65_535
}

/// f16 factors only, and tiles that are mostly filled. It depends on the item alone, as a family must.
fn accepts_matrices(s: &StepView) -> bool {
    let p: Params = s.params();
    s.floats() == DType::F16 && accepts_shared(s) && p.out_c >= 64 && p.in_c >= 16
}

fn shared_grid(s: &StepView, tile: u32) -> [u32; 3] {
    let p: Params = s.params();
    [p.out_c.div_ceil(tile), pixels(&p).div_ceil(tile), 1]
}

/// Workgroups of the `winograd` variant along the image: of 32 tiles of 2 x 2 pixels.
fn winograd_tiles(p: &Params) -> u32 {
    p.batch.saturating_mul(p.out_h.div_ceil(2)).saturating_mul(p.out_w.div_ceil(2)).div_ceil(32)
}

fn pixels(p: &Params) -> u32 {
    p.batch.saturating_mul(p.out_h).saturating_mul(p.out_w)
}

impl Tape {
    /// Convolution of `x` `[N, H, W, I]` with `weight` `[KH, KW, I/G, O]`.
    pub fn conv2d(&mut self, x: Tensor, weight: Tensor, bias: Option<Tensor>, geometry: &Conv2d) -> Result<Tensor> {
        let [n, h, w, c] = self.nhwc(x)?;
        let [kh, kw, per_group, out_c] = self.nhwc(weight)?;
        let Conv2d { stride, padding: [top, bottom, left, right], dilation, groups } = *geometry;
        if groups == 0 || per_group * groups != c || !out_c.is_multiple_of(groups) {
            return Err(self.mismatch(format!("conv2d of {c} channels in {groups} groups: weight is [{out_c}, {per_group}, {kh}, {kw}]")));
        }
        if let Some(bias) = bias
            && self.shape(bias).dims() != [out_c]
        {
            return Err(self.mismatch(format!("bias is {}, expected [{out_c}]", self.shape(bias))));
        }
        let extent = |size: usize, pads: usize, kernel: usize, stride: usize, dilation: usize| {
            let window = (kernel.checked_sub(1)?).checked_mul(dilation)?.checked_add(1)?;
            let room = size.checked_add(pads)?.checked_sub(window)?;
            (stride > 0 && dilation > 0).then(|| room / stride + 1)
        };
        let out_h = extent(h, top + bottom, kh, stride[0], dilation[0]);
        let out_w = extent(w, left + right, kw, stride[1], dilation[1]);
        let (Some(out_h), Some(out_w)) = (out_h, out_w) else {
            return Err(self.mismatch(format!("conv2d of [{n}, {c}, {h}, {w}]: the {kh}x{kw} kernel with dilation {dilation:?} does not fit")));
        };
        let params = Params {
            batch: n as u32,
            in_h: h as u32,
            in_w: w as u32,
            in_c: c as u32,
            out_h: out_h as u32,
            out_w: out_w as u32,
            out_c: out_c as u32,
            kernel_h: kh as u32,
            kernel_w: kw as u32,
            stride_h: stride[0] as u32,
            stride_w: stride[1] as u32,
            pad_top: top as u32,
            pad_left: left as u32,
            dilation_h: dilation[0] as u32,
            dilation_w: dilation[1] as u32,
            groups: groups as u32,
            has_bias: u32::from(bias.is_some()),
            ..bytemuck::Zeroable::zeroed()
        };
        // The weight stands for what is not there: a binding must hold something, and it is not read.
        Ok(self.push(&OP, &params, &[x, weight, bias.unwrap_or(weight), weight], &[n, out_h, out_w, out_c], DType::F32))
    }
}

fn cost(s: &StepView) -> Cost {
    let p: Params = s.params();
    let terms = u64::from(p.kernel_h) * u64::from(p.kernel_w) * u64::from(p.in_c / p.groups.max(1));
    let end = epilogue!(p);
    Cost { flops: 2 * s.output.numel() as u64 * terms + end.flops(s.output.numel()), bytes: end.bytes(s) }
}

fn case(name: &'static str, x: [usize; 4], weight: [usize; 4], bias: bool, geometry: Conv2d) -> Case {
    let mut inputs = vec![CaseInput::image("x", &x), CaseInput::new("weight", &weight, Layout::ConvWeight, Fill::Normal)];
    if bias {
        inputs.push(CaseInput::plain("bias", &weight[..1]));
    }
    Case::new(name, inputs, move |t, i| t.conv2d(i[0], i[1], i.get(2).copied(), &geometry))
}

/// A convolution with what `join` makes part of it: an enlargement by two, another tensor that is added, a function.
fn joined_case(
    name: &'static str,
    x: [usize; 4],
    weight: [usize; 4],
    geometry: Conv2d,
    enlarged: bool,
    added: Option<&'static [usize]>,
    function: Function,
) -> Case {
    let mut inputs = case(name, x, weight, true, geometry).inputs;
    let layout = |shape: &[usize]| if shape.len() == 4 { Layout::Image } else { Layout::Plain };
    inputs.extend(added.map(|shape| CaseInput::new("added", shape, layout(shape), Fill::Normal)));
    let record = move |t: &mut Tape, i: &[Tensor]| {
        let x = if enlarged { t.upsample_nearest(i[0], 2)? } else { i[0] };
        let y = t.conv2d(x, i[1], Some(i[2]), &geometry)?;
        let y = if added.is_some() { t.add(y, i[3])? } else { y };
        let y = if function == Function::Identity { y } else { t.activation(y, function)? };
        *t = joined(std::mem::take(t), &[]);
        Ok(y)
    };
    Case::new(name, inputs, record).without_golden()
}

fn cases() -> Vec<Case> {
    let same = Conv2d::padded(1);
    vec![
        case("same_3x3", [2, 5, 7, 6], [8, 5, 3, 3], true, same),
        case("pointwise", [1, 12, 4, 5], [8, 12, 1, 1], true, Conv2d::default()),
        case("pointwise_odd", [2, 3, 5, 3], [7, 3, 1, 1], false, Conv2d::default()),
        case("stride_2", [1, 8, 9, 8], [12, 8, 3, 3], true, same.strided(2)),
        case("pad_after", [1, 4, 8, 8], [4, 4, 3, 3], true, Conv2d { stride: [2, 2], padding: [0, 1, 0, 1], ..Conv2d::default() }),
        case("uneven", [1, 3, 9, 11], [4, 3, 5, 2], true, Conv2d { stride: [2, 3], padding: [2, 1, 0, 3], dilation: [2, 1], groups: 1 }),
        case("dilated", [1, 4, 9, 9], [8, 4, 3, 3], false, Conv2d { dilation: [2, 2], padding: [2; 4], ..Conv2d::default() }),
        case("grouped", [2, 8, 5, 5], [12, 2, 3, 3], true, Conv2d { groups: 4, ..same }),
        case("depthwise", [1, 6, 6, 5], [6, 1, 3, 3], true, Conv2d { groups: 6, ..same }),
        case("stem_7x7", [1, 3, 14, 14], [8, 3, 7, 7], false, Conv2d::padded(3).strided(2)),
        case("depthwise_strided", [2, 8, 9, 7], [8, 1, 5, 3], true, Conv2d { stride: [2, 1], padding: [2, 2, 0, 1], dilation: [1, 2], groups: 8 })
            .without_golden(),
        case("depthwise_wide", [3, 68, 6, 33], [68, 1, 3, 3], false, Conv2d { groups: 68, ..same }).without_golden(),
        case("to_rgb", [1, 8, 6, 6], [3, 8, 3, 3], true, same),
        case("unet_in", [2, 65, 16, 16], [96, 65, 3, 3], true, same).without_golden(),
        case("unet_block", [2, 96, 16, 16], [192, 96, 3, 3], true, same).without_golden(),
        case("to_latents", [3, 12, 7, 9], [4, 12, 3, 3], true, same.strided(2)).without_golden(),
        case("to_one", [2, 8, 5, 70], [1, 8, 5, 3], false, Conv2d { padding: [2, 2, 1, 0], dilation: [1, 2], ..Conv2d::default() }).without_golden(),
        joined_case("joined_to_rgb", [2, 16, 5, 6], [3, 16, 3, 3], same, true, Some(&[2, 3, 10, 12]), Function::Tanh),
        case("few_in", [2, 9, 17, 19], [132, 9, 3, 3], true, same).without_golden(),
        case("stem_few_in", [3, 3, 30, 29], [64, 3, 7, 7], false, Conv2d::padded(3).strided(2)).without_golden(),
        joined_case("joined_few_in", [2, 5, 9, 8], [68, 5, 3, 3], same, true, Some(&[68]), Function::Relu),
        case("wide", [1, 16, 3, 300], [68, 16, 3, 3], true, same).without_golden(),
        case("tiles_of_4x4", [2, 20, 15, 22], [36, 20, 3, 3], true, same).without_golden(),
        case("tiles_unpadded", [1, 33, 18, 19], [24, 33, 3, 3], false, Conv2d::default()).without_golden(),
        case("tiles_uneven", [2, 140, 15, 26], [212, 140, 3, 3], false, Conv2d { padding: [2, 0, 0, 1], ..Conv2d::default() }).without_golden(),
        joined_case("joined_4x4", [2, 20, 9, 11], [36, 20, 3, 3], same, true, Some(&[2, 36, 18, 22]), Function::Gelu),
        joined_case("joined_blocks", [2, 16, 18, 17], [212, 16, 3, 3], same, false, Some(&[2, 212, 1, 1]), Function::Silu),
        case("split", [3, 132, 5, 6], [80, 132, 3, 3], true, same).without_golden(),
        case("wide_tiles", [2, 20, 9, 11], [160, 20, 3, 3], true, same.strided(2)).without_golden(),
        joined_case("joined_odd", [2, 3, 5, 4], [7, 3, 3, 3], same, true, Some(&[2, 7, 10, 8]), Function::LeakyRelu { slope: 0.2 }),
        joined_case("joined_depthwise", [2, 8, 6, 5], [8, 1, 3, 3], Conv2d { groups: 8, ..same.strided(2) }, true, Some(&[1, 8, 6, 5]), Function::HardSwish),
        joined_case("joined_item", [3, 20, 6, 7], [68, 20, 3, 3], same, false, Some(&[3, 68, 1, 1]), Function::Silu),
        joined_case("joined_sum", [2, 132, 5, 6], [80, 132, 3, 3], same, false, Some(&[2, 80, 5, 6]), Function::Identity),
        joined_case("joined_large", [2, 16, 4, 5], [160, 16, 3, 3], same, true, None, Function::Gelu),
        joined_case("joined_all", [3, 16, 9, 35], [136, 16, 3, 3], same, true, Some(&[1, 136, 18, 70]), Function::Relu6),
        case("many_tiles", [2, 4, 131, 127], [132, 4, 3, 3], true, same).without_golden(),
        case("many_strided_tiles", [3, 12, 200, 121], [136, 12, 5, 2], true, Conv2d { stride: [1, 2], padding: [2, 1, 0, 3], dilation: [2, 1], groups: 1 })
            .without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    let same = Conv2d::padded(1);
    vec![
        case("unet_96x16x16", [8, 96, 16, 16], [96, 96, 3, 3], true, same),
        case("unet_192x8x8", [8, 192, 8, 8], [192, 192, 3, 3], true, same),
        case("unet_384to192x8x8", [8, 384, 8, 8], [192, 384, 3, 3], true, same),
        case("taesd_64x64x64", [1, 64, 64, 64], [64, 64, 3, 3], true, same),
        case("depthwise_96x56x56", [8, 96, 56, 56], [96, 1, 3, 3], true, Conv2d { groups: 96, ..same }),
        case("depthwise_384x14x14", [8, 384, 14, 14], [384, 1, 7, 7], true, Conv2d { groups: 384, ..Conv2d::padded(3) }),
        case("sd_320x64x64", [2, 320, 64, 64], [320, 320, 3, 3], true, same),
        case("sd_640x64x64", [1, 640, 64, 64], [640, 640, 3, 3], true, same),
        case("sd_640x32x32", [2, 640, 32, 32], [640, 640, 3, 3], true, same),
        case("sd_1280x16x16", [2, 1280, 16, 16], [1280, 1280, 3, 3], true, same),
        case("sd_1280x8x8", [2, 1280, 8, 8], [1280, 1280, 3, 3], true, same),
        case("sd_in_9to320x64x64", [2, 9, 64, 64], [320, 9, 3, 3], true, same),
        case("sd_out_320to4x64x64", [2, 320, 64, 64], [4, 320, 3, 3], true, same),
        case("sd_vae_out_128to3x256x256", [1, 128, 256, 256], [3, 128, 3, 3], true, same),
        case("sd_vae_128x256x256", [1, 128, 256, 256], [128, 128, 3, 3], true, same),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[1, 4, 4, 6], DType::F32);
        let w = t.input("w", &[3, 3, 5, 8], DType::F32);
        let e = t.conv2d(x, w, None, &Conv2d::default()).unwrap_err();
        assert_eq!(e.fact(), "conv2d of 6 channels in 1 groups: weight is [8, 5, 3, 3]");
        let w = t.input("w2", &[7, 7, 6, 8], DType::F32);
        assert!(t.conv2d(x, w, None, &Conv2d::default()).unwrap_err().fact().ends_with("does not fit"));
        let w = t.input("w3", &[3, 3, 6, 8], DType::F32);
        assert!(t.conv2d(x, w, None, &Conv2d { stride: [0, 1], ..Conv2d::default() }).is_err());
        assert!(t.conv2d(x, w, Some(x), &Conv2d::default()).is_err());
    }
}
