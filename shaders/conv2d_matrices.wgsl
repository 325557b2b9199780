// conv2d as an implicit product by cooperative matrices (lib/matrices_*): rows are output pixels of the whole batch, columns are
// output channels, K runs over kernel rows, kernel columns and input channels; f16 factors, f32 sums.
// One group, I % 4 == 0, O % 4 == 0. What is outside x, or hangs over an edge of the tiles, is zero.
struct Params {
    batch: u32, in_h: u32, in_w: u32, in_c: u32, out_h: u32, out_w: u32, out_c: u32, kernel_h: u32, kernel_w: u32,
    stride_h: u32, stride_w: u32, pad_top: u32, pad_left: u32, dilation_h: u32, dilation_w: u32, groups: u32, has_bias: u32,
    enlarged: u32, added_rows: u32, added_count: u32, function: u32, a: f32, b: f32,
}
@group(0) @binding(0) var<uniform>             p:     Params;
@group(0) @binding(1) var<storage, read>       x:     array<elem4>;   // [N, H, W, I / 4]
@group(0) @binding(2) var<storage, read>       w:     array<elem4>;   // [KH, KW, I, O / 4]
@group(0) @binding(3) var<storage, read>       bias:  array<elem4>;   // [O / 4], or anything when has_bias is 0
@group(0) @binding(4) var<storage, read>       added: array<elem4>;   // [rows, O / 4], or anything when added_count is 0
@group(0) @binding(5) var<storage, read_write> y:     array<elem4>;   // [N, OH, OW, O / 4]

var<private> tile: vec3<u32>;     // the workgroup's
var<private> left_c4: u32;        // the group of four channels, within the step, that this invocation brings
var<private> top: vec4<u32>;      // of the receptive fields of its four pixels; above the image it wraps to a huge number
var<private> start: vec4<u32>;    // likewise, to the left
var<private> image: vec4<u32>;    // first rows of their images; past the last pixel, a number that no row comes to
var<private> kh: u32;
var<private> kw: u32;
var<private> first_c: u32;        // channel of the step

fn prepare(lane: u32) {
    let first = tile.y * TILE_M + lane / 8u;
    let pixel = vec4<u32>(0u, 1u, 2u, 3u) * (INVOCATIONS / 8u) + first;
    left_c4 = lane % 8u;
    top = pixel / p.out_w % p.out_h * p.stride_h - p.pad_top;
    start = pixel % p.out_w * p.stride_w - p.pad_left;
    image = pixel / (p.out_w * p.out_h) * (p.in_h >> p.enlarged);
    kh = 0u;
    kw = 0u;
    first_c = 0u;
}

fn steps() -> u32 { return p.kernel_h * p.kernel_w * ((p.in_c + TILE_K - 1u) / TILE_K); }

fn advance() {
    first_c += TILE_K;
    if first_c >= p.in_c { first_c = 0u; kw += 1u; }
    if kw == p.kernel_w { kw = 0u; kh += 1u; }
}

fn left_value(i: u32, c4_on: u32) -> vec4<f16> {
    let ih = top[i] + kh * p.dilation_h;
    let iw = start[i] + kw * p.dilation_w;
    let c4 = first_c / 4u + left_c4 + c4_on;
    if image[i] >= p.batch * (p.in_h >> p.enlarged) || ih >= p.in_h || iw >= p.in_w || c4 >= p.in_c / 4u { return vec4<f16>(); }
    return x[((image[i] + (ih >> p.enlarged)) * (p.in_w >> p.enlarged) + (iw >> p.enlarged)) * (p.in_c / 4u) + c4];
}

fn right_values(k: u32, n4: u32) -> vec4<f16> {
    let column = tile.x * TILE_N4 + n4;
    let c = first_c + k;
    if column >= p.out_c / 4u || c >= p.in_c { return vec4<f16>(); }
    return w[((kh * p.kernel_w + kw) * p.in_c + c) * (p.out_c / 4u) + column];
}

// A row and a group of four columns of the workgroup's tile: a pixel's channels.
fn store_result(row: u32, column: u32, value: vec4<f32>) {
    let o4 = p.out_c / 4u;
    let pixel = tile.y * TILE_M + row;
    let col = tile.x * TILE_N4 + column;
    if pixel >= p.batch * p.out_h * p.out_w || col >= o4 { return; }
    y[pixel * o4 + col] = finished(value, pixel, col, o4);
}
