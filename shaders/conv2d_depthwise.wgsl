// conv2d, depthwise: an invocation makes 4 pixels of one output row x 4 channels, each from its own channel of x.
// Neighbouring lanes have neighbouring channels, so all loads lie side by side.   G = I = O, O % 4 == 0.
struct Params {
    batch: u32, in_h: u32, in_w: u32, in_c: u32, out_h: u32, out_w: u32, out_c: u32, kernel_h: u32, kernel_w: u32,
    stride_h: u32, stride_w: u32, pad_top: u32, pad_left: u32, dilation_h: u32, dilation_w: u32, groups: u32, has_bias: u32,
    enlarged: u32, added_rows: u32, added_count: u32, function: u32, a: f32, b: f32,
}
@group(0) @binding(0) var<uniform>             p:     Params;
@group(0) @binding(1) var<storage, read>       x:     array<elem4>;   // [N, H, W, O / 4]
@group(0) @binding(2) var<storage, read>       w:     array<elem4>;   // [KH, KW, 1, O / 4]
@group(0) @binding(3) var<storage, read>       bias:  array<elem4>;   // [O / 4], or anything when has_bias is 0
@group(0) @binding(4) var<storage, read>       added: array<elem4>;   // [rows, O / 4], or anything when added_count is 0
@group(0) @binding(5) var<storage, read_write> y:     array<elem4>;   // [N, OH, OW, O / 4]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = linear_index(gid, groups, WG);
    let o4 = p.out_c / 4u;
    let tiles = (p.out_w + 3u) / 4u;
    if index >= p.batch * p.out_h * tiles * o4 { return; }
    let col = index % o4;
    let ow0 = index / o4 % tiles * 4u;
    let row = index / o4 / tiles;                                       // n OH + oh
    let oh = row % p.out_h;
    let n = row / p.out_h;
    var s0 = vec4<f32>(); var s1 = vec4<f32>(); var s2 = vec4<f32>(); var s3 = vec4<f32>();
    for (var kh = 0u; kh < p.kernel_h; kh++) {
        let ih = oh * p.stride_h + kh * p.dilation_h - p.pad_top;       // above the image it wraps to a huge number
        if ih >= p.in_h { continue; }
        let line = (n * (p.in_h >> p.enlarged) + (ih >> p.enlarged)) * (p.in_w >> p.enlarged) * o4 + col;
        for (var kw = 0u; kw < p.kernel_w; kw++) {
            let v = vec4<f32>(w[(kh * p.kernel_w + kw) * o4 + col]);
            let i0 = ow0 * p.stride_w + kw * p.dilation_w - p.pad_left;
            let i1 = i0 + p.stride_w; let i2 = i1 + p.stride_w; let i3 = i2 + p.stride_w;
            if i0 < p.in_w { s0 += vec4<f32>(x[line + (i0 >> p.enlarged) * o4]) * v; }
            if i1 < p.in_w { s1 += vec4<f32>(x[line + (i1 >> p.enlarged) * o4]) * v; }
            if i2 < p.in_w { s2 += vec4<f32>(x[line + (i2 >> p.enlarged) * o4]) * v; }
            if i3 < p.in_w { s3 += vec4<f32>(x[line + (i3 >> p.enlarged) * o4]) * v; }
        }
    }
    let pixel = row * p.out_w + ow0;
    let out = pixel * o4 + col;
    let count = p.out_w - ow0;
    y[out] = finished(s0, pixel, col, o4);
    if count > 1u { y[out + o4] = finished(s1, pixel + 1u, col, o4); }
    if count > 2u { y[out + 2u * o4] = finished(s2, pixel + 2u, col, o4); }
    if count > 3u { y[out + 3u * o4] = finished(s3, pixel + 3u, col, o4); }
}
