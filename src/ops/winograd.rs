//! 3x3 convolutions of stride 1 on the CPU by minimal filtering, F(4x4, 3x3): Lavin & Gray 2015, "Fast Algorithms for Convolutional
//! Neural Networks". Not an op of its own: conv2d's twin takes it for the shapes of [`is_faster`].
//!
//! A tile of 4 x 4 output pixels is A^T [ (G g G^T) * (B^T d B) ] A, with its 6 x 6 patch d of the input and the kernel g. The product *
//! is value by value for one channel, and so 36 matrix products over the input channels: 36 multiplications where the sum takes 144.
//!
//! The matrices interpolate at 0, +-1/sqrt 2, +-sqrt 2 and infinity. At the paper's 0, +-1, +-2 the result loses twice as much. Sums over
//! channels are cut into parts of [`DEPTH`], which halves their error. Relative to the result's rms, for normal values, against f64:
//!
//! | input channels | direct sum, rms (largest) | this, rms (largest) | F(2x2, 3x3) |
//! |---|---|---|---|
//! | 64  | 3.8e-7 (2.7e-6) | 8.2e-7 (4.5e-6) | 2.6e-7 (1.7e-6) |
//! | 320 | 4.0e-7 (2.5e-6) | 1.0e-6 (5.8e-6) | 3.3e-7 (1.5e-6) |
//! | 640 | 4.1e-7 (2.3e-6) | 1.1e-6 (7.0e-6) | 3.6e-7 (1.8e-6) |
//!
//! An error is a share of the largest values of the tile's patch, not of the pixel's own nine. A value that is not finite spreads over its tiles.

use std::cell::Cell;

use rayon::prelude::*;

use crate::ops::conv2d::Params;
use crate::ops::epilogue::epilogue;
use crate::ops::lanes::{self, LANES};
use crate::ops::matmul::{Product, is_shared};
use crate::plan::TwinCall;

/// Output pixels along a tile's side, and input pixels along its patch.
const SIDE: usize = 4;
const PATCH: usize = 6;
const POINTS: usize = PATCH * PATCH;

/// Tiles of a panel, at most: these and [`DEPTH`] channels are transformed and multiplied at a time.
const TILES: usize = 32;
const DEPTH: usize = 128;
/// Output channels whose weights are transformed at a time: at most so many, and fewer where they would take more than so many bytes.
const BLOCK: usize = 192;
const BLOCK_BYTES: usize = 12 << 20;
/// But no fewer than a product needs. With them 2700 input channels stay inside [`BLOCK_BYTES`].
const LEAST: usize = 32;

/// Values of 16 channels: what a loop takes at once.
type Lanes = [f32; LANES];

/// Whether these shapes are faster this way than by columns. It looks at the item, not at the batch or the threads, as a row's bits must not depend on them.
///
/// Measured on two cores with AVX-512, items of one batch, I = O; times the speed of the direct sum:
///
/// | image   | tiles | 32  | 64  | 128 | 192 | 320 | 640 | 1280 |
/// |---------|-------|-----|-----|-----|-----|-----|-----|------|
/// | 8 x 8   | 4     | 0.6 | 0.8 | 0.8 | 0.7 | 0.4 | 0.4 | 0.3  |
/// | 12 x 12 | 9     | 1.4 | 1.5 | 1.4 | 1.2 | 1.0 | 1.2 | 0.7  |
/// | 16 x 16 | 16    | 1.5 | 1.7 | 1.9 | 1.7 | 1.4 | 1.1 | 0.9 to 1.5 |
/// | 20 x 20 | 25    | 1.8 | 2.1 | 1.9 | 1.5 | 1.3 | 1.5 | 1.3  |
/// | 24 x 24 | 36    | 1.6 | 2.2 | 2.2 | 1.9 | 2.0 | 1.9 | 1.6  |
///
/// Few tiles do not repay the transformed weight, the less the larger it is. Tiles that are partly outside the image are lost work: 13 x 13
/// pixels (66 % of 16 tiles) 1.1 to 1.7, 9 x 9 (56 % of 9) 0.9 to 1.0. Few input channels leave the products nothing to add: of 64 x 64 pixels
/// with 4 input channels 0.5, with 8 1.0, with 16 1.4; with 1 output channel 0.6, with 2 and with 4 1.4 to 1.5.
pub(crate) fn is_faster(p: &Params) -> bool {
    let plain = [p.kernel_h, p.kernel_w, p.stride_h, p.stride_w, p.dilation_h, p.dilation_w, p.groups] == [3, 3, 1, 1, 1, 1, 1];
    let [h, w] = [p.out_h, p.out_w].map(|v| v as usize);
    let tiles = h.div_ceil(SIDE) * w.div_ceil(SIDE);
    let filled = h * w * 8 >= tiles * SIDE * SIDE * 5;
    let repaid = tiles >= 24 || tiles >= 9 && p.in_c as usize * p.out_c as usize <= 6400 * tiles;
    plain && p.in_c >= 16 && p.out_c >= 2 && filled && repaid
}

const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;

/// B^T d along one axis. Its even and odd parts serve two points each, of either sign.
#[inline(always)]
fn of_patch(d: [f32; PATCH]) -> [f32; PATCH] {
    let (even_a, odd_a) = (d[4] - 2.0 * d[2], A * (d[3] - 2.0 * d[1]));
    let (even_b, odd_b) = (d[4] - 0.5 * d[2], B * (d[3] - 0.5 * d[1]));
    [(d[0] - 2.5 * d[2]) + d[4], even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, (d[1] - 2.5 * d[3]) + d[5]]
}

/// G g along one axis.
#[inline(always)]
fn of_kernel(g: [f32; 3]) -> [f32; PATCH] {
    let (even_a, odd_a) = (g[0] + 0.5 * g[2], A * g[1]);
    let (even_b, odd_b) = (g[0] + 2.0 * g[2], B * g[1]);
    let (a, b) = (-2.0 / 3.0, 1.0 / 6.0);
    [g[0], a * (even_a + odd_a), a * (even_a - odd_a), b * (even_b + odd_b), b * (even_b - odd_b), g[2]]
}

/// A^T m along one axis.
#[inline(always)]
fn of_points(m: [f32; PATCH]) -> [f32; SIDE] {
    let (even_a, odd_a) = (m[1] + m[2], A * (m[1] - m[2]));
    let (even_b, odd_b) = (m[3] + m[4], B * (m[3] - m[4]));
    [m[0] + even_a + even_b, odd_a + odd_b, 0.5 * even_a + 2.0 * even_b, (0.5 * odd_a + 2.0 * odd_b) + m[5]]
}

/// y = f d f^T: `f` along the columns of `d`, then along the rows of that.
#[inline(always)]
fn along_both<const N: usize, const M: usize>(d: &[[Lanes; N]; N], y: &mut [[Lanes; M]; M], f: impl Fn([f32; N]) -> [f32; M]) {
    let mut half = [[[0.0; LANES]; N]; M];
    for c in 0..N {
        for l in 0..LANES {
            let mut v = [0.0; N];
            for r in 0..N {
                v[r] = d[r][c][l];
            }
            let v = f(v);
            for r in 0..M {
                half[r][c][l] = v[r];
            }
        }
    }
    for r in 0..M {
        for l in 0..LANES {
            let mut v = [0.0; N];
            for c in 0..N {
                v[c] = half[r][c][l];
            }
            let v = f(v);
            for c in 0..M {
                y[r][c][l] = v[c];
            }
        }
    }
}

/// The values of `row` from `at` on, zeros behind its end.
#[inline(always)]
fn load(row: &[f32], at: usize) -> Lanes {
    if let Some(whole) = row[at..].first_chunk() {
        return *whole;
    }
    let mut lanes = [0.0; LANES];
    lanes[..row.len() - at].copy_from_slice(&row[at..]);
    lanes
}

/// What all tasks of a block of output channels know.
struct Layer<'a> {
    p: &'a Params,
    bias: &'a [f32],
    tiles_w: usize,
    /// The block's channels, and what its rows in memory are: rounded up to [`LANES`], zeros behind them.
    from: usize,
    channels: usize,
    row: usize,
}

impl Layer<'_> {
    /// Channels `from..from + k` of the item's pixel in row `ih` and column `iw`, which wrap to huge numbers on the left and above it. Nothing outside it.
    /// Here pixels are read, and nowhere else.
    #[inline(always)]
    fn pixel<'x>(&self, x: &'x [f32], ih: usize, iw: usize, from: usize, k: usize) -> Option<&'x [f32]> {
        let (in_w, in_c, enlarged) = (self.p.in_w as usize, self.p.in_c as usize, self.p.enlarged);
        (ih < self.p.in_h as usize && iw < in_w).then(|| &x[((ih >> enlarged) * (in_w >> enlarged) + (iw >> enlarged)) * in_c + from..][..k])
    }

    /// Writes the sum and the bias of channels from `o` on of one pixel.
    #[inline(always)]
    fn store(&self, y: &mut [f32], o: usize, sum: &Lanes, bias: &Lanes) {
        let mut value = *sum;
        for l in 0..LANES {
            value[l] += bias[l];
        }
        match y[o..].first_chunk_mut::<LANES>() {
            Some(whole) if o + LANES <= self.from + self.channels => *whole = value,
            _ => y[o..self.from + self.channels].copy_from_slice(&value[..self.from + self.channels - o]),
        }
    }
}

/// G g G^T of some input channels for a block of output channels.
struct Weights<'a> {
    layer: &'a Layer<'a>,
    /// `[3, 3, I, O]`.
    weight: &'a [f32],
    first: usize,
    /// `[POINTS]` of rows `[channels]`, from the `first` input channel on.
    u: Vec<&'a mut [f32]>,
}

impl lanes::Job for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        let Layer { p, from, channels, row, .. } = *self.layer;
        let (in_c, out_c) = (p.in_c as usize, p.out_c as usize);
        let mut d = [[[0.0; LANES]; 3]; 3];
        let mut y = [[[0.0; LANES]; PATCH]; PATCH];
        for (i, to) in (self.first..in_c).zip((0..self.u[0].len()).step_by(row)) {
            for o in (0..channels).step_by(LANES) {
                for q in 0..9 {
                    d[q / 3][q % 3] = load(&self.weight[(q * in_c + i) * out_c + from..][..channels], o);
                }
                along_both(&d, &mut y, of_kernel);
                for q in 0..POINTS {
                    self.u[q][to + o..][..LANES].copy_from_slice(&y[q / PATCH][q % PATCH]);
                }
            }
        }
    }
}

/// B^T d B of `k` channels of some tiles.
struct Patches<'a> {
    layer: &'a Layer<'a>,
    /// From the item on.
    x: &'a [f32],
    first: usize,
    tiles: usize,
    from: usize,
    k: usize,
    /// `[POINTS]` of rows `[k]`, rounded up to [`LANES`], a row for each tile; `plane` values for a point.
    v: &'a mut [f32],
    plane: usize,
}

impl lanes::Job for Patches<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Layer { p, tiles_w, .. } = *self.layer;
        let row = self.k.next_multiple_of(LANES);
        let mut d = [[[0.0; LANES]; PATCH]; PATCH];
        let mut y = d;
        for tile in 0..self.tiles {
            let top = ((self.first + tile) / tiles_w * SIDE).wrapping_sub(p.pad_top as usize);
            let left = ((self.first + tile) % tiles_w * SIDE).wrapping_sub(p.pad_left as usize);
            let mut patch = [&[0.0; DEPTH][..self.k]; POINTS];
            for q in 0..POINTS {
                if let Some(pixel) = self.layer.pixel(self.x, top.wrapping_add(q / PATCH), left.wrapping_add(q % PATCH), self.from, self.k) {
                    patch[q] = pixel;
                }
            }
            for c in (0..self.k).step_by(LANES) {
                for q in 0..POINTS {
                    d[q / PATCH][q % PATCH] = load(patch[q], c);
                }
                along_both(&d, &mut y, of_patch);
                for q in 0..POINTS {
                    self.v[q * self.plane + tile * row + c..][..LANES].copy_from_slice(&y[q / PATCH][q % PATCH]);
                }
            }
        }
    }
}

/// A^T m A of some tiles, and what of them is inside the image.
struct Results<'a> {
    layer: &'a Layer<'a>,
    first: usize,
    tiles: usize,
    /// `[POINTS]` of rows `[channels]`, one for each tile; `plane` values for a point.
    m: &'a [f32],
    plane: usize,
    /// The task's rows of pixels, from `first_row` on.
    y: &'a mut [f32],
    first_row: usize,
}

impl lanes::Job for Results<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Layer { p, bias, tiles_w, from, channels, row } = *self.layer;
        let (out_h, out_w, out_c) = (p.out_h as usize, p.out_w as usize, p.out_c as usize);
        let mut d = [[[0.0; LANES]; PATCH]; PATCH];
        let mut y = [[[0.0; LANES]; SIDE]; SIDE];
        for tile in 0..self.tiles {
            let (top, left) = ((self.first + tile) / tiles_w * SIDE, (self.first + tile) % tiles_w * SIDE);
            for c in (0..channels).step_by(LANES) {
                for q in 0..POINTS {
                    d[q / PATCH][q % PATCH] = load(self.m, q * self.plane + tile * row + c);
                }
                along_both(&d, &mut y, of_points);
                let bias = if p.has_bias != 0 { load(&bias[..from + channels], from + c) } else { [0.0; LANES] };
                for r in 0..SIDE.min(out_h - top) {
                    for q in 0..SIDE.min(out_w - left) {
                        let pixel = (top - self.first_row + r) * out_w + left + q;
                        self.layer.store(&mut self.y[pixel * out_c..][..out_c], from + c, &y[r][q], &bias);
                    }
                }
            }
        }
    }
}

thread_local! {
    /// The transformed weights of a block, 12 MB, of the thread that runs the convolution: from one convolution to the next.
    static WEIGHTS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// A thread's patches and products, 1.5 MB; a task that is begun while another waits for shared products finds none.
    static PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `len` values of a buffer, from the beginning of a cache line on: all loads and stores of [`LANES`] values are then inside one.
fn aligned(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(buffer.len().max(len + LANES), 0.0);
    let skip = buffer.as_ptr().align_offset(size_of::<Lanes>()).min(LANES);
    &mut buffer[skip..][..len]
}

/// The size of equal parts of `n`, at most `most`, in multiples of `multiple`.
fn part_of(n: usize, most: usize, multiple: usize) -> usize {
    n.div_ceil(n.div_ceil(most.max(1)).max(1)).next_multiple_of(multiple)
}

/// The convolution, where [`is_faster`].
pub(crate) fn twin(call: &mut TwinCall, p: &Params) {
    let (in_c, out_c) = (p.in_c as usize, p.out_c as usize);
    let block = part_of(out_c, (BLOCK_BYTES / 4 / POINTS / in_c / LEAST * LEAST).clamp(LEAST, BLOCK), LEAST);
    let mut weights = WEIGHTS.take();
    for from in (0..out_c).step_by(block) {
        let channels = block.min(out_c - from);
        let layer = Layer { p, bias: call.inputs[2], tiles_w: (p.out_w as usize).div_ceil(SIDE), from, channels, row: channels.next_multiple_of(LANES) };
        // Planes begin a line apart from a power of two, or all points of a tile fall into one set of the cache.
        let plane = in_c * layer.row + LANES;
        let u = aligned(&mut weights, POINTS * plane);
        transform_weights(&layer, call.inputs[1], u, plane);
        multiply(&layer, [call.inputs[0], call.inputs[3]], u, plane, call.output);
    }
    WEIGHTS.set(weights);
}

fn transform_weights(layer: &Layer, weight: &[f32], u: &mut [f32], plane: usize) {
    let in_c = layer.p.in_c as usize;
    let rows = LANES;
    let mut planes: Vec<_> = u.chunks_mut(plane).map(|plane| plane[..in_c * layer.row].chunks_mut(rows * layer.row)).collect();
    let parts: Vec<Vec<&mut [f32]>> = (0..in_c.div_ceil(rows)).map(|_| planes.iter_mut().filter_map(Iterator::next).collect()).collect();
    parts.into_par_iter().enumerate().for_each(|(part, u)| lanes::wide(Weights { layer, weight, first: part * rows, u }));
}

/// A block of output channels of all items. A task is some rows of tiles of one item, cut into panels: sizes are the item's.
fn multiply(layer: &Layer, [x, added]: [&[f32]; 2], u: &[f32], plane_u: usize, y: &mut [f32]) {
    let Layer { p, tiles_w, row, from, channels, .. } = *layer;
    let last = epilogue!(p);
    let (in_c, out_c, out_h, out_w) = (p.in_c as usize, p.out_c as usize, p.out_h as usize, p.out_w as usize);
    let tiles_h = out_h.div_ceil(SIDE);
    let rows = part_of(tiles_h, TILES / tiles_w, 1);
    let depth = part_of(in_c, DEPTH, LANES);
    let mut tasks: Vec<&mut [f32]> = Vec::new();
    for item in y.chunks_mut((out_h * out_w * out_c).max(1)) {
        tasks.extend(item.chunks_mut(rows * SIDE * out_w * out_c));
    }
    let per_item = tiles_h.div_ceil(rows);
    let shared = is_shared(tasks.len());
    tasks.into_par_iter().enumerate().for_each(|(task, y)| {
        let mut panels = PANELS.take();
        let x = &x[task / per_item * ((p.in_h >> p.enlarged) * (p.in_w >> p.enlarged)) as usize * in_c..];
        let first_row = task % per_item * rows;
        let (begin, end) = (first_row * tiles_w, (first_row + rows).min(tiles_h) * tiles_w);
        let panel = part_of(end - begin, TILES, 1);
        for first in (begin..end).step_by(panel) {
            let tiles = panel.min(end - first);
            let (plane_v, plane_m) = (tiles * depth + LANES, tiles * row + LANES);
            let (v, m) = aligned(&mut panels, POINTS * (plane_v + plane_m)).split_at_mut(POINTS * plane_v);
            for c in (0..in_c).step_by(depth) {
                let k = depth.min(in_c - c);
                lanes::wide(Patches { layer, x, first, tiles, from: c, k, v, plane: plane_v });
                let product = |(point, m): (usize, &mut [f32])| {
                    let (a, lda, b) = (&v[point * plane_v..], k.next_multiple_of(LANES), &u[point * plane_u + c * row..]);
                    Product { m: tiles, k, n: row, a, lda, b, ldb: row, b_transposed: false, accumulate: c > 0, scale: 1.0, shared: false }.run(m, row);
                };
                match shared {
                    true => m.par_chunks_mut(plane_m).enumerate().for_each(product),
                    false => m.chunks_mut(plane_m).enumerate().for_each(product),
                }
            }
            lanes::wide(Results { layer, first, tiles, m, plane: plane_m, y, first_row: first_row * SIDE });
        }
        let first = task / per_item * out_h * out_w + first_row * SIDE * out_w;
        for (pixel, y) in y.chunks_exact_mut(out_c).enumerate() {
            last.finish_part(&mut y[from..from + channels], first + pixel, out_c, from, added);
        }
        PANELS.set(panels);
    });
}

#[cfg(test)]
#[path = "winograd_tests.rs"]
mod tests;
