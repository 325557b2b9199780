// conv2d as an implicit product by tiles in workgroup memory (lib/tile_*): rows are output pixels of the whole batch,
// columns are output channels, K runs over kernel rows, kernel columns and input channels.   One group, I % 4 == 0, O % 4 == 0.
// Each invocation loads four channels of one pixel of x and four columns of w per step; what is outside x is zero.
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

var<private> tile: vec3<u32>;   // the workgroup's

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    tile = wid;
    let o4 = p.out_c / 4u;
    let i4 = p.in_c / 4u;
    let pixels = p.batch * p.out_h * p.out_w;
    let pixel = wid.y * TILE_M + lane / (TILE_K / 4u);   // whose four channels this invocation loads
    let c_of_pixel = lane % (TILE_K / 4u);
    let column = wid.x * TILE_N4 + lane % TILE_N4;       // of w, in groups of four, and its row
    let k_of_column = lane / TILE_N4;
    let top = pixel / p.out_w % p.out_h * p.stride_h - p.pad_top;   // above the image it wraps to a huge number
    let start = pixel % p.out_w * p.stride_w - p.pad_left;
    let image = pixel / (p.out_w * p.out_h) * (p.in_h >> p.enlarged);

    let per_cell = (p.in_c + TILE_K - 1u) / TILE_K;
    let steps = p.kernel_h * p.kernel_w * per_cell;
    var kh = 0u;
    var kw = 0u;
    var c = 0u;   // first channel of the step
    for (var s = 0u; s <= steps; s++) {
        var x_next = vec4<f32>();
        var w_next = vec4<f32>();
        if s < steps {
            let ih = top + kh * p.dilation_h;
            let iw = start + kw * p.dilation_w;
            let cx = c / 4u + c_of_pixel;
            if pixel < pixels && ih < p.in_h && iw < p.in_w && cx < i4 {
                x_next = vec4<f32>(x[((image + (ih >> p.enlarged)) * (p.in_w >> p.enlarged) + (iw >> p.enlarged)) * i4 + cx]);
            }
            let cw = c + k_of_column;
            if column < o4 && cw < p.in_c { w_next = vec4<f32>(w[((kh * p.kernel_w + kw) * p.in_c + cw) * o4 + column]); }
            c += TILE_K;
            if c >= p.in_c { c = 0u; kw += 1u; }
            if kw == p.kernel_w { kw = 0u; kh += 1u; }
        }
        if s > 0u { multiply_tile((s - 1u) % 2u, lane / LANES, lane % LANES); }
        if s < steps {
            store_left(s % 2u, lane / (TILE_K / 4u), c_of_pixel * 4u, x_next);
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
