// conv2d of few channels as a product by tiles in workgroup memory (lib/tile_64): rows are output pixels of the whole batch, columns are
// output channels, and K runs over a whole receptive field, so that a step holds several of its cells.   One group, O % 4 == 0.
// Each invocation loads four values of one receptive field and four columns of w per step; what is outside x is zero.
struct Params {
    batch: u32, in_h: u32, in_w: u32, in_c: u32, out_h: u32, out_w: u32, out_c: u32, kernel_h: u32, kernel_w: u32,
    stride_h: u32, stride_w: u32, pad_top: u32, pad_left: u32, dilation_h: u32, dilation_w: u32, groups: u32, has_bias: u32,
    enlarged: u32, added_rows: u32, added_count: u32, function: u32, a: f32, b: f32,
}
@group(0) @binding(0) var<uniform>             p:     Params;
@group(0) @binding(1) var<storage, read>       x:     array<elem>;    // [N, H, W, I]
@group(0) @binding(2) var<storage, read>       w:     array<elem4>;   // [KH, KW, I, O / 4]
@group(0) @binding(3) var<storage, read>       bias:  array<elem4>;   // [O / 4], or anything when has_bias is 0
@group(0) @binding(4) var<storage, read>       added: array<elem4>;   // [rows, O / 4], or anything when added_count is 0
@group(0) @binding(5) var<storage, read_write> y:     array<elem4>;   // [N, OH, OW, O / 4]

var<private> tile: vec3<u32>;   // the workgroup's
var<private> top: u32;          // of the receptive field of the pixel that this invocation brings; above the image it wraps to a huge number
var<private> start: u32;        // likewise, to the left
var<private> image: u32;        // the first stored row of its image

// Value k of the receptive field [KH, KW, I].
fn field_value(k: u32) -> f32 {
    let cell = k / p.in_c;
    let ih = top + cell / p.kernel_w * p.dilation_h;
    let iw = start + cell % p.kernel_w * p.dilation_w;
    if cell >= p.kernel_h * p.kernel_w || ih >= p.in_h || iw >= p.in_w { return 0.0; }
    return f32(x[((image + (ih >> p.enlarged)) * (p.in_w >> p.enlarged) + (iw >> p.enlarged)) * p.in_c + k % p.in_c]);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    tile = wid;
    let o4 = p.out_c / 4u;
    let depth = p.kernel_h * p.kernel_w * p.in_c;
    let pixel = wid.y * TILE_M + lane / (TILE_K / 4u);   // whose four values this invocation loads
    let k_of_pixel = lane % (TILE_K / 4u) * 4u;
    let column = wid.x * TILE_N4 + lane % TILE_N4;       // of w, in groups of four, and its row
    let k_of_column = lane / TILE_N4;
    let inside = pixel < p.batch * p.out_h * p.out_w;
    top = pixel / p.out_w % p.out_h * p.stride_h - p.pad_top;
    start = pixel % p.out_w * p.stride_w - p.pad_left;
    image = pixel / (p.out_w * p.out_h) * (p.in_h >> p.enlarged);

    let steps = (depth + TILE_K - 1u) / TILE_K;
    for (var s = 0u; s <= steps; s++) {
        var x_next = vec4<f32>();
        var w_next = vec4<f32>();
        if s < steps {
            let k = s * TILE_K + k_of_pixel;
            if inside { x_next = vec4<f32>(field_value(k), field_value(k + 1u), field_value(k + 2u), field_value(k + 3u)); }
            let kc = s * TILE_K + k_of_column;
            if column < o4 && kc < depth { w_next = vec4<f32>(w[kc * o4 + column]); }
        }
        if s > 0u { multiply_tile((s - 1u) % 2u, lane / LANES, lane % LANES); }
        if s < steps {
            store_left(s % 2u, lane / (TILE_K / 4u), k_of_pixel, x_next);
            store_right(s % 2u, k_of_column, lane % TILE_N4, w_next);
        }
        workgroupBarrier();
    }
    finish_tile(lane / LANES, lane % LANES);
}

// A row and a group of four columns of the workgroup's tile: a pixel's channels.
fn store_result(row: u32, column: u32, value: vec4<f32>) {
    let o4 = p.out_c / 4u;
    let pixel = tile.y * TILE_M + row;
    let col = tile.x * TILE_N4 + column;
    if pixel >= p.batch * p.out_h * p.out_w || col >= o4 { return; }
    y[pixel * o4 + col] = finished(value, pixel, col, o4);
}
