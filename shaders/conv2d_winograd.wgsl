// conv2d 3x3 of stride 1 by minimal filtering, F(2x2, 3x3) (Lavin & Gray 2015), all of it in one kernel: a workgroup makes 32 tiles of
// 2 x 2 pixels of the whole batch x 32 channels. In steps of four input channels half of the invocations transform patches of x and the
// other half the weight into workgroup memory; then 16 invocations for each of the 16 points add its product, 8 tiles x 8 channels each.
// At the end the points of a tile meet in workgroup memory, a quarter of the workgroup's results at a time.
// One group, dilation 1, I % 4 == 0, O % 4 == 0, any padding.
struct Params {
    batch: u32, in_h: u32, in_w: u32, in_c: u32, out_h: u32, out_w: u32, out_c: u32, kernel_h: u32, kernel_w: u32,
    stride_h: u32, stride_w: u32, pad_top: u32, pad_left: u32, dilation_h: u32, dilation_w: u32, groups: u32, has_bias: u32,
    enlarged: u32, added_rows: u32, added_count: u32, function: u32, a: f32, b: f32,
}
@group(0) @binding(0) var<uniform>             p:     Params;
@group(0) @binding(1) var<storage, read>       x:     array<elem4>;   // [N, H, W, I / 4]
@group(0) @binding(2) var<storage, read>       w:     array<elem4>;   // [3, 3, I, O / 4]
@group(0) @binding(3) var<storage, read>       bias:  array<elem4>;   // [O / 4], or anything when has_bias is 0
@group(0) @binding(4) var<storage, read>       added: array<elem4>;   // [rows, O / 4], or anything when added_count is 0
@group(0) @binding(5) var<storage, read_write> y:     array<elem4>;   // [N, OH, OW, O / 4]

const RIGHT: u32 = 512u;
// Of x [k][point][tile / 4], from RIGHT on of the weight [k][point][channel / 4]; at the end sums [point][tile][channel / 4].
var<workgroup> points: array<vec4<f32>, 1024>;
var<private> sums: array<vec4<f32>, 16>;   // [tile][channel / 4]; constant indices only, or drivers keep it in memory

// A row of a point's patch, from two rows of x: the transform along the columns.
struct Row { a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32> }

// Four channels of the pixel in row `ih` and column `iw` of the image whose first row is `image`; zero outside it, where both wrap to huge numbers.
fn pixel(image: u32, ih: u32, iw: u32, c: u32) -> vec4<f32> {
    if ih >= p.in_h || iw >= p.in_w { return vec4<f32>(); }
    return vec4<f32>(x[((image + (ih >> p.enlarged)) * (p.in_w >> p.enlarged) + (iw >> p.enlarged)) * (p.in_c / 4u) + c]);
}

// Row `r` of B^T d B for a patch d whose first pixel is (top, start): rows of B^T are d0 - d2, d1 + d2, d2 - d1, d1 - d3.
fn row_of_x(image: u32, top: u32, start: u32, c: u32, r: u32) -> Row {
    let first = top + select(select(1u, 2u, r == 2u), 0u, r == 0u);
    let second = top + select(select(2u, 1u, r == 2u), 3u, r == 3u);
    let sign = select(-1.0, 1.0, r == 1u);
    let t0 = pixel(image, first, start, c) + sign * pixel(image, second, start, c);
    let t1 = pixel(image, first, start + 1u, c) + sign * pixel(image, second, start + 1u, c);
    let t2 = pixel(image, first, start + 2u, c) + sign * pixel(image, second, start + 2u, c);
    let t3 = pixel(image, first, start + 3u, c) + sign * pixel(image, second, start + 3u, c);
    return Row(t0 - t2, t1 + t2, t2 - t1, t1 - t3);
}

// Column `kw` of row `r` of G g: g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2.
fn column_of_w(at: u32, row: u32, r: u32) -> vec4<f32> {
    if r == 0u { return vec4<f32>(w[at]); }
    if r == 3u { return vec4<f32>(w[at + 2u * row]); }
    let outer = vec4<f32>(w[at]) + vec4<f32>(w[at + 2u * row]);
    return 0.5 * (outer + select(-1.0, 1.0, r == 1u) * vec4<f32>(w[at + row]));
}

// Row `r` of G g G^T for four channels of the output and input channel `i`.
fn row_of_w(i: u32, col: u32, r: u32) -> Row {
    let o4 = p.out_c / 4u;
    if i >= p.in_c || col >= o4 { return Row(); }
    let cell = p.in_c * o4;
    let at = i * o4 + col;
    let t0 = column_of_w(at, 3u * cell, r);
    let t1 = column_of_w(at + cell, 3u * cell, r);
    let t2 = column_of_w(at + 2u * cell, 3u * cell, r);
    return Row(t0, 0.5 * (t0 + t1 + t2), 0.5 * (t0 - t1 + t2), t2);
}

// A point's values of four channels of x for one tile.
fn store_point(point: u32, tile: u32, v: vec4<f32>) {
    let at = point * 8u + tile / 4u;
    let c = tile % 4u;
    points[at][c] = v.x;
    points[at + 128u][c] = v.y;
    points[at + 256u][c] = v.z;
    points[at + 384u][c] = v.w;
}

// Adds input channel `k` of the step. `a` and `b` are the invocation's first tiles and channels of its point.
fn multiply(k: u32, a: u32, b: u32) {
    let a0 = points[k * 128u + a];
    let a1 = points[k * 128u + a + 4u];
    let b0 = points[RIGHT + k * 128u + b];
    let b1 = points[RIGHT + k * 128u + b + 4u];
    sums[0] = fma(vec4<f32>(a0.x), b0, sums[0]);
    sums[1] = fma(vec4<f32>(a0.x), b1, sums[1]);
    sums[2] = fma(vec4<f32>(a0.y), b0, sums[2]);
    sums[3] = fma(vec4<f32>(a0.y), b1, sums[3]);
    sums[4] = fma(vec4<f32>(a0.z), b0, sums[4]);
    sums[5] = fma(vec4<f32>(a0.z), b1, sums[5]);
    sums[6] = fma(vec4<f32>(a0.w), b0, sums[6]);
    sums[7] = fma(vec4<f32>(a0.w), b1, sums[7]);
    sums[8] = fma(vec4<f32>(a1.x), b0, sums[8]);
    sums[9] = fma(vec4<f32>(a1.x), b1, sums[9]);
    sums[10] = fma(vec4<f32>(a1.y), b0, sums[10]);
    sums[11] = fma(vec4<f32>(a1.y), b1, sums[11]);
    sums[12] = fma(vec4<f32>(a1.z), b0, sums[12]);
    sums[13] = fma(vec4<f32>(a1.z), b1, sums[13]);
    sums[14] = fma(vec4<f32>(a1.w), b0, sums[14]);
    sums[15] = fma(vec4<f32>(a1.w), b1, sums[15]);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tiles_w = (p.out_w + 1u) / 2u;
    let tiles_h = (p.out_h + 1u) / 2u;
    let tiles = p.batch * tiles_h * tiles_w;
    // What this invocation transforms: a row of points, of a tile of x or of channel `k` and four columns of w.
    let is_x = lane < 128u;
    let r = lane / 32u % 4u;
    let t = wid.y * 32u + lane % 32u;
    let has_tile = is_x && t < tiles;
    let top = t / tiles_w % tiles_h * 2u - p.pad_top;
    let start = t % tiles_w * 2u - p.pad_left;
    let image = t / (tiles_w * tiles_h) * (p.in_h >> p.enlarged);
    let k = lane / 8u % 4u;
    let col = wid.x * 8u + lane % 8u;
    // What it multiplies: 8 tiles and 8 channels, in two runs of four each.
    let point = lane / 16u;
    let a = point * 8u + lane / 4u % 4u;
    let b = point * 8u + lane % 4u;

    let i4 = p.in_c / 4u;
    for (var s = 0u; s <= i4; s++) {
        var next = Row();
        if s < i4 {
            if has_tile {
                next = row_of_x(image, top, start, s, r);
            } else if !is_x {
                next = row_of_w(s * 4u + k, col, r);
            }
        }
        if s > 0u {
            multiply(0u, a, b);
            multiply(1u, a, b);
            multiply(2u, a, b);
            multiply(3u, a, b);
        }
        workgroupBarrier();
        if s < i4 {
            if is_x {
                store_point(r * 4u, lane % 32u, next.a);
                store_point(r * 4u + 1u, lane % 32u, next.b);
                store_point(r * 4u + 2u, lane % 32u, next.c);
                store_point(r * 4u + 3u, lane % 32u, next.d);
            } else {
                let at = RIGHT + (k * 16u + r * 4u) * 8u + lane % 8u;
                points[at] = next.a;
                points[at + 8u] = next.b;
                points[at + 16u] = next.c;
                points[at + 24u] = next.d;
            }
        }
        workgroupBarrier();
    }
    finish(wid, lane, 0u, 0u, sums[0], sums[2], sums[4], sums[6]);
    finish(wid, lane, 0u, 1u, sums[1], sums[3], sums[5], sums[7]);
    finish(wid, lane, 1u, 0u, sums[8], sums[10], sums[12], sums[14]);
    finish(wid, lane, 1u, 1u, sums[9], sums[11], sums[13], sums[15]);
}

// A quarter of the results: a half of the tiles x a half of the channels. Each invocation gives its point's four tiles of them,
// and makes four channels of one pixel from the 9 points that have a part in it.
fn finish(wid: vec3<u32>, lane: u32, tile_half: u32, channel_half: u32, m0: vec4<f32>, m1: vec4<f32>, m2: vec4<f32>, m3: vec4<f32>) {
    let to = lane / 16u * 64u + lane / 4u % 4u * 16u + lane % 4u;   // [point][tile][channel / 4]
    points[to] = m0;
    points[to + 4u] = m1;
    points[to + 8u] = m2;
    points[to + 12u] = m3;
    workgroupBarrier();
    // Rows of A^T are m0 + m1 + m2 and m1 - m2 - m3.
    let row = lane / 128u;
    let column = lane / 64u % 2u;
    let of_rows = select(-1.0, 1.0, row == 0u);
    let of_columns = select(-1.0, 1.0, column == 0u);
    let from_point = (row * 4u + column) * 64u + lane % 64u;
    let t0 = points[from_point] + of_columns * (points[from_point + 64u] + points[from_point + 128u]);
    let t1 = points[from_point + 256u] + of_columns * (points[from_point + 320u] + points[from_point + 384u]);
    let t2 = points[from_point + 512u] + of_columns * (points[from_point + 576u] + points[from_point + 640u]);
    store_result(wid.y * 32u + tile_half * 16u + lane / 4u % 16u, row, column, wid.x * 8u + channel_half * 4u + lane % 4u, t0 + of_rows * (t1 + t2));
    workgroupBarrier();
}

// Four channels of the pixel in `row` and `column` of a tile.
fn store_result(tile: u32, row: u32, column: u32, col: u32, value: vec4<f32>) {
    let tiles_w = (p.out_w + 1u) / 2u;
    let tiles_h = (p.out_h + 1u) / 2u;
    let o4 = p.out_c / 4u;
    let oh = tile / tiles_w % tiles_h * 2u + row;
    let ow = tile % tiles_w * 2u + column;
    let n = tile / (tiles_w * tiles_h);
    if n >= p.batch || oh >= p.out_h || ow >= p.out_w || col >= o4 { return; }
    let pixel = (n * p.out_h + oh) * p.out_w + ow;
    y[pixel * o4 + col] = finished(value, pixel, col, o4);
}
