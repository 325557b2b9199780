//! conv2d on the CPU: depthwise in loops along the channels, by minimal filtering where that is faster ([`winograd`]), else as a product of columns.

use std::cell::Cell;

use rayon::prelude::*;

use crate::ops::conv2d::{Params, is_depthwise};
use crate::ops::epilogue::epilogue;
use crate::ops::matmul::{PANEL_BYTES, Product, is_shared, rows_per_task};
use crate::ops::{lanes, winograd};
use crate::plan::TwinCall;

/// The card's twin. What is taken depends on the item alone.
pub(crate) fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    if is_depthwise(&p) {
        return depthwise(call, &p);
    }
    if winograd::is_faster(&p) {
        return winograd::twin(call, &p);
    }
    by_columns(call, &p);
}

/// An output row at a time, in loops along the channels.
fn depthwise(call: &mut TwinCall, p: &Params) {
    let [x, weight, bias, added] = *call.inputs else { return };
    let (channels, out_w, out_h) = (p.out_c as usize, p.out_w as usize, p.out_h as usize);
    let stored = ((p.in_h >> p.enlarged) * (p.in_w >> p.enlarged)) as usize * channels;
    call.output.par_chunks_mut((out_w * channels).max(1)).enumerate().for_each(|(row, y)| {
        let (n, oh) = (row / out_h, row % out_h);
        lanes::wide(DepthwiseRow { p, y, x: &x[n * stored..], weight, bias, oh });
        epilogue!(p).finish(y, row * out_w, channels, added);
    });
}

struct DepthwiseRow<'a> {
    p: &'a Params,
    y: &'a mut [f32],
    /// From the item on.
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    oh: usize,
}

impl lanes::Job for DepthwiseRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let p = self.p;
        let (channels, in_w) = (p.out_c as usize, p.in_w as usize);
        for (ow, y) in self.y.chunks_exact_mut(channels).enumerate() {
            if p.has_bias != 0 {
                y.copy_from_slice(self.bias);
            } else {
                y.fill(0.0);
            }
            for kh in 0..p.kernel_h as usize {
                let ih = (self.oh * p.stride_h as usize + kh * p.dilation_h as usize).wrapping_sub(p.pad_top as usize);
                if ih >= p.in_h as usize {
                    continue;
                }
                for kw in 0..p.kernel_w as usize {
                    let iw = (ow * p.stride_w as usize + kw * p.dilation_w as usize).wrapping_sub(p.pad_left as usize);
                    if iw >= in_w {
                        continue;
                    }
                    let x = &self.x[((ih >> p.enlarged) * (in_w >> p.enlarged) + (iw >> p.enlarged)) * channels..][..channels];
                    let w = &self.weight[(kh * p.kernel_w as usize + kw) * channels..][..channels];
                    y.iter_mut().zip(x.iter().zip(w)).for_each(|(y, (x, w))| *y += x * w);
                }
            }
        }
    }
}

/// Column panels (im2col) of a few output pixels and a part of the depth at a time, each multiplied by those rows of the weight.
fn by_columns(call: &mut TwinCall, p: &Params) {
    let [x, weight, bias, added] = *call.inputs else { return };
    let (in_c, out_c, groups) = (p.in_c as usize, p.out_c as usize, p.groups as usize);
    let (ic, oc) = (in_c / groups, out_c / groups);
    let depth = p.kernel_h as usize * p.kernel_w as usize * ic;
    let pixels = (p.out_h * p.out_w) as usize;
    let pointwise = p.kernel_h * p.kernel_w * p.stride_h * p.stride_w == 1 && p.enlarged == 0 && p.out_h == p.in_h && p.out_w == p.in_w;
    let rows = rows_per_task(pixels, depth);
    let part = if pointwise { depth } else { (PANEL_BYTES / 4 / rows).clamp(1, depth.max(1)) };
    let mut tasks: Vec<&mut [f32]> = Vec::new();
    for item in call.output.chunks_mut((pixels * out_c).max(1)) {
        tasks.extend(item.chunks_mut((rows * out_c).max(1)));
    }
    let per_item = pixels.div_ceil(rows);
    let shared = is_shared(tasks.len());
    tasks.into_par_iter().enumerate().for_each(|(task, y)| {
        let mut columns = COLUMNS.take();
        let first = task / per_item * pixels + task % per_item * rows;
        let m = y.len() / out_c;
        if p.has_bias != 0 {
            y.chunks_exact_mut(out_c).for_each(|row| row.copy_from_slice(bias));
        }
        for g in 0..groups {
            for from in (0..depth).step_by(part) {
                let k = part.min(depth - from);
                let (a, lda) = if pointwise {
                    (&x[first * in_c + g * ic..], in_c)
                } else {
                    columns.resize(columns.len().max(m * k), 0.0);
                    gather_columns(p, x, first, g, from, k, &mut columns[..m * k]);
                    (&columns[..], k)
                };
                let b = &weight[from * out_c + g * oc..];
                let accumulate = p.has_bias != 0 || from > 0;
                Product { m, k, n: oc, a, lda, b, ldb: out_c, b_transposed: false, accumulate, scale: 1.0, shared }.run(&mut y[g * oc..], out_c);
            }
        }
        epilogue!(p).finish(y, first, out_c, added);
        COLUMNS.set(columns);
    });
}

thread_local! {
    /// A thread's columns, from one convolution to the next; a task that is begun while another waits for a shared product finds none.
    static COLUMNS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Writes `depth` values from `from` on of the receptive fields `[KH, KW, I/G]` of output pixels from `first` on, a row for each pixel; zero outside x.
fn gather_columns(p: &Params, x: &[f32], first: usize, g: usize, from: usize, depth: usize, columns: &mut [f32]) {
    let (ic, kernel_w) = ((p.in_c / p.groups) as usize, p.kernel_w as usize);
    let (out_h, out_w, in_w, in_c) = (p.out_h as usize, p.out_w as usize, p.in_w as usize, p.in_c as usize);
    let stored_w = in_w >> p.enlarged;
    for (row, columns) in columns.chunks_exact_mut(depth).enumerate() {
        let pixel = first + row;
        let (ow, oh, n) = (pixel % out_w, pixel / out_w % out_h, pixel / out_w / out_h);
        let image = &x[n * (p.in_h >> p.enlarged) as usize * stored_w * in_c..];
        let mut c = from % ic;
        let (mut kh, mut kw) = (from / ic / kernel_w, from / ic % kernel_w);
        let mut at = 0;
        while at < depth {
            let cell = &mut columns[at..(at + ic - c).min(depth)];
            let ih = (oh * p.stride_h as usize + kh * p.dilation_h as usize).wrapping_sub(p.pad_top as usize);
            let iw = (ow * p.stride_w as usize + kw * p.dilation_w as usize).wrapping_sub(p.pad_left as usize);
            if ih < p.in_h as usize && iw < in_w {
                let start = ((ih >> p.enlarged) * stored_w + (iw >> p.enlarged)) * in_c + g * ic + c;
                cell.copy_from_slice(&image[start..start + cell.len()]);
            } else {
                cell.fill(0.0);
            }
            at += ic - c;
            c = 0;
            kw += 1;
            if kw == kernel_w {
                (kh, kw) = (kh + 1, 0);
            }
        }
    }
}
