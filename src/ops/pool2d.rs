//! Pooling of images: the maximum or the mean over windows, and the mean over a whole image.
//!
//! y[n, oh, ow, c] = max or mean over kh, kw of x[n, oh sh + kh - top, ow sw + kw - left, c].   x: `[N, H, W, C]`;
//! y: `[N, OH, OW, C]`, or `[N, C]` for the whole image. OH = floor((H + top + bottom - KH) / sh) + 1, as in PyTorch with
//! `ceil_mode=False`. Padding never wins a maximum; a mean counts it as zeros when `count_padding` is set.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::card::grid_1d;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Machine, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub in_h: u32,
        pub in_w: u32,
        pub channels: u32,
        pub out_h: u32,
        pub out_w: u32,
        pub kernel_h: u32,
        pub kernel_w: u32,
        pub stride_h: u32,
        pub stride_w: u32,
        pub pad_top: u32,
        pub pad_left: u32,
        pub average: u32,
        pub count_padding: u32,
        /// A mean over all pixels of an image without padding.
        pub whole: u32,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    Max,
    Average,
}

/// Geometry of a pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2d {
    pub mode: PoolMode,
    /// Rows, columns.
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    /// Rows and columns added at the top, bottom, left, right; each smaller than the kernel.
    pub padding: [usize; 4],
    /// Whether padding counts in a mean, as zeros (PyTorch's `count_include_pad`).
    pub count_padding: bool,
}

impl Pool2d {
    /// The maximum over `kernel` x `kernel` windows.
    pub fn max(kernel: usize, stride: usize, padding: usize) -> Pool2d {
        Pool2d { mode: PoolMode::Max, kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 4], count_padding: false }
    }

    /// The mean over `kernel` x `kernel` windows, padding counted as zeros.
    pub fn mean(kernel: usize, stride: usize, padding: usize) -> Pool2d {
        Pool2d { mode: PoolMode::Average, count_padding: true, ..Pool2d::max(kernel, stride, padding) }
    }

    /// PyTorch's `ceil_mode` for images of `size` rows and columns: a last window that starts inside the image (or its
    /// padding before it) is kept although it ends behind. What it takes in there is no value, so `count_padding` is off.
    pub fn covering(self, size: [usize; 2]) -> Pool2d {
        let [top, mut bottom, left, mut right] = self.padding;
        let rest = |axis: usize, before: usize, after: usize| {
            let side = size[axis] + before + after;
            let Some(room) = side.checked_sub(self.kernel[axis]) else { return self.kernel[axis] - side };
            let stride = self.stride[axis].max(1);
            let lacking = room.next_multiple_of(stride) - room;
            // The window that this would add starts at room rounded up.
            if lacking > 0 && room + lacking < size[axis] + before { lacking } else { 0 }
        };
        bottom += rest(0, top, bottom);
        right += rest(1, left, right);
        Pool2d { padding: [top, bottom, left, right], count_padding: false, ..self }
    }
}

/// Channels of a workgroup in the `whole` variant.
const WHOLE_CHANNELS: usize = 8;

pub static OP: Op = Op {
    name: "pool2d",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 2e-5, reason: "f32 sums of up to 1e4 values one after the other, whose mean is 1/100 of their size" },
    f16: true,
    statistics: &[],
    variants: &[
        Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/pool2d.wgsl")]),
        Variant {
            name: "whole",
            family: "whole",
            source: &[ELEM, include_str!("../../shaders/pool2d_whole.wgsl")],
            workgroup: 64,
            meant_for: Machine::Any,
            constants: |_| vec![],
            accepts: |s| s.params::<Params>().whole != 0,
            grid: |s| grid_1d(s.inputs[0][0] * s.output.last().div_ceil(WHOLE_CHANNELS), 1),
        },
    ],
};

impl Tape {
    /// Pooling of `x` `[N, H, W, C]`.
    pub fn pool2d(&mut self, x: Tensor, geometry: &Pool2d) -> Result<Tensor> {
        let [n, _, _, c] = self.nhwc(x)?;
        let params = self.pool2d_params(x, geometry)?;
        Ok(self.push(&OP, &params, &[x], &[n, params.out_h as usize, params.out_w as usize, c], DType::F32))
    }

    /// The mean over H and W of `x` `[N, H, W, C]`, as `[N, C]`.
    pub fn global_average_pool(&mut self, x: Tensor) -> Result<Tensor> {
        let [n, h, w, c] = self.nhwc(x)?;
        let geometry = Pool2d { mode: PoolMode::Average, kernel: [h, w], stride: [1, 1], padding: [0; 4], count_padding: false };
        let params = self.pool2d_params(x, &geometry)?;
        Ok(self.push(&OP, &params, &[x], &[n, c], DType::F32))
    }

    fn pool2d_params(&self, x: Tensor, geometry: &Pool2d) -> Result<Params> {
        let [n, h, w, c] = self.nhwc(x)?;
        let Pool2d { mode, kernel, stride, padding: [top, bottom, left, right], count_padding } = *geometry;
        let extent = |size: usize, before: usize, after: usize, kernel: usize, stride: usize| {
            let room = size.checked_add(before)?.checked_add(after)?.checked_sub(kernel)?;
            (size > 0 && stride > 0 && before < kernel && after < kernel).then(|| room / stride + 1)
        };
        let out_h = extent(h, top, bottom, kernel[0], stride[0]);
        let out_w = extent(w, left, right, kernel[1], stride[1]);
        let (Some(out_h), Some(out_w)) = (out_h, out_w) else {
            let fact = format!("pool2d of [{n}, {c}, {h}, {w}]: kernel {kernel:?} with stride {stride:?} and padding {:?} does not fit", geometry.padding);
            return Err(self.mismatch(fact));
        };
        let average = mode == PoolMode::Average;
        Ok(Params {
            len: (n * out_h * out_w * c) as u32,
            in_h: h as u32,
            in_w: w as u32,
            channels: c as u32,
            out_h: out_h as u32,
            out_w: out_w as u32,
            kernel_h: kernel[0] as u32,
            kernel_w: kernel[1] as u32,
            stride_h: stride[0] as u32,
            stride_w: stride[1] as u32,
            pad_top: top as u32,
            pad_left: left as u32,
            average: u32::from(average),
            count_padding: u32::from(count_padding),
            whole: u32::from(average && kernel == [h, w] && geometry.padding == [0; 4]),
        })
    }
}

/// The part of window `at` that lies inside an axis of `size`.
fn window(at: usize, stride: u32, kernel: u32, before: u32, size: u32) -> std::ops::Range<usize> {
    let start = at * stride as usize;
    start.saturating_sub(before as usize)..(start + kernel as usize).saturating_sub(before as usize).min(size as usize)
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let (in_h, in_w, channels) = (p.in_h as usize, p.in_w as usize, p.channels as usize);
    let (out_h, out_w) = (p.out_h as usize, p.out_w as usize);
    let x = call.inputs[0];
    call.output.par_chunks_mut((out_w * channels).max(1)).enumerate().for_each(|(row, y)| {
        let image = &x[row / out_h * in_h * in_w * channels..];
        let rows = window(row % out_h, p.stride_h, p.kernel_h, p.pad_top, p.in_h);
        let mut sum = vec![0f64; channels];
        for (ow, y) in y.chunks_exact_mut(channels).enumerate() {
            let columns = window(ow, p.stride_w, p.kernel_w, p.pad_left, p.in_w);
            let values = rows.clone().flat_map(|h| columns.clone().map(move |w| &image[(h * in_w + w) * channels..][..channels]));
            if p.average != 0 {
                sum.fill(0.0);
                values.for_each(|x| sum.iter_mut().zip(x).for_each(|(s, &v)| *s += f64::from(v)));
                let count = if p.count_padding != 0 { (p.kernel_h * p.kernel_w) as usize } else { rows.len() * columns.len() };
                y.iter_mut().zip(&sum).for_each(|(y, s)| *y = (s / count as f64) as f32);
            } else {
                y.fill(f32::NEG_INFINITY);
                values.for_each(|x| y.iter_mut().zip(x).for_each(|(y, &v)| *y = if v > *y || v.is_nan() { v } else { *y }));
            }
        }
    });
}

fn cost(s: &StepView) -> Cost {
    let p: Params = s.params();
    Cost { flops: s.output.numel() as u64 * u64::from(p.kernel_h) * u64::from(p.kernel_w), bytes: s.bytes() }
}

fn case(name: &'static str, x: [usize; 4], geometry: Pool2d) -> Case {
    // Shifted below zero: a padding that won a maximum, or a mean that counted it wrongly, would show.
    let x = CaseInput::new("x", &x, Layout::Image, Fill::Affine { scale: 1.0, shift: -2.0 });
    Case::new(name, vec![x], move |t, i| t.pool2d(i[0], &geometry))
}

fn whole(name: &'static str, x: [usize; 4]) -> Case {
    Case::new(name, vec![CaseInput::image("x", &x)], |t, i| t.global_average_pool(i[0]))
}

fn cases() -> Vec<Case> {
    let max = Pool2d { mode: PoolMode::Max, kernel: [3, 3], stride: [2, 2], padding: [1; 4], count_padding: false };
    let average = Pool2d { mode: PoolMode::Average, kernel: [2, 2], stride: [2, 2], padding: [0; 4], count_padding: true };
    vec![
        case("max", [2, 5, 9, 8], max),
        case("max_uneven", [1, 3, 7, 11], Pool2d { kernel: [4, 2], stride: [1, 3], padding: [0, 2, 1, 0], ..max }),
        case("average", [2, 5, 8, 7], average),
        case("average_padding", [1, 4, 7, 9], Pool2d { kernel: [3, 3], padding: [1; 4], ..average }),
        case("average_padding_apart", [2, 3, 7, 9], Pool2d { kernel: [3, 3], padding: [1; 4], count_padding: false, ..average }),
        case("average_uneven", [1, 3, 8, 6], Pool2d { kernel: [3, 4], stride: [3, 1], padding: [2, 0, 1, 3], count_padding: false, ..average }),
        whole("global", [2, 13, 5, 7]),
        whole("global_one_pixel", [3, 9, 1, 1]),
        case("stem", [1, 64, 112, 112], max).without_golden(),
        case("large", [1, 67, 181, 179], Pool2d { stride: [1, 1], ..max }).without_golden(),
        whole("global_large", [2, 515, 67, 97]).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    let max = Pool2d { mode: PoolMode::Max, kernel: [3, 3], stride: [2, 2], padding: [1; 4], count_padding: false };
    vec![case("resnet_stem_64x112x112", [8, 64, 112, 112], max), whole("resnet_global_2048x7x7", [8, 2048, 7, 7])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[1, 6, 5, 3], DType::F32);
        let good = Pool2d { mode: PoolMode::Max, kernel: [2, 2], stride: [2, 2], padding: [0; 4], count_padding: true };
        let y = t.pool2d(x, &good).unwrap();
        assert_eq!(t.shape(y).dims(), [1, 3, 2, 3]);
        for bad in [
            Pool2d { kernel: [7, 2], ..good },
            Pool2d { kernel: [0, 2], ..good },
            Pool2d { stride: [2, 0], ..good },
            Pool2d { padding: [2, 0, 0, 0], ..good },
            Pool2d { padding: [0, 0, 0, usize::MAX], ..good },
        ] {
            assert!(t.pool2d(x, &bad).unwrap_err().fact().contains("does not fit"), "{bad:?}");
        }
        let empty = t.input("empty", &[1, 0, 5, 3], DType::F32);
        assert!(t.global_average_pool(empty).is_err());
        let y = t.global_average_pool(x).unwrap();
        assert_eq!(t.shape(y).dims(), [1, 3]);
    }

    #[test]
    fn ceil_mode_keeps_the_last_window() {
        // As torch.nn.functional.max_pool2d(ceil_mode=True) has it: side, kernel, stride, padding, side of the result.
        for (side, kernel, stride, padding, want) in [(13, 3, 2, 0, 6), (14, 3, 2, 0, 7), (7, 2, 2, 0, 4), (1, 2, 2, 0, 1), (5, 2, 2, 1, 3), (6, 3, 3, 1, 3)] {
            let mut t = Tape::new();
            let x = t.input("x", &[1, side, side, 1], DType::F32);
            let y = t.pool2d(x, &Pool2d::max(kernel, stride, padding).covering([side, side])).unwrap();
            assert_eq!(t.shape(y).dims(), [1, want, want, 1], "{side} {kernel} {stride} {padding}");
        }
    }

    #[test]
    fn a_whole_image_takes_the_whole_variant() {
        for case in cases() {
            let (tape, _) = crate::ops::case::record(&case).unwrap();
            let chosen = tape.view(&tape.steps()[0], |view| OP.choose(view, Machine::Any).map(|v| v.name));
            assert_eq!(chosen, Some(if case.name.starts_with("global") { "whole" } else { "direct" }), "{}", case.name);
        }
    }
}
