// conv2d to few channels, at most 4: an invocation makes all channels of 4 pixels of one output row, whose weights are the same for
// the whole workgroup, and goes through the channels of x by fours.   One group, I % 4 == 0.
struct Params {
    batch: u32, in_h: u32, in_w: u32, in_c: u32, out_h: u32, out_w: u32, out_c: u32, kernel_h: u32, kernel_w: u32,
    stride_h: u32, stride_w: u32, pad_top: u32, pad_left: u32, dilation_h: u32, dilation_w: u32, groups: u32, has_bias: u32,
    enlarged: u32, added_rows: u32, added_count: u32, function: u32, a: f32, b: f32,
}
@group(0) @binding(0) var<uniform>             p:     Params;
@group(0) @binding(1) var<storage, read>       x:     array<elem4>;   // [N, H, W, I / 4]
@group(0) @binding(2) var<storage, read>       w:     array<elem>;    // [KH, KW, I, O]
@group(0) @binding(3) var<storage, read>       bias:  array<elem>;    // [O], or anything when has_bias is 0
@group(0) @binding(4) var<storage, read>       added: array<elem>;    // [rows, O], or anything when added_count is 0
@group(0) @binding(5) var<storage, read_write> y:     array<elem>;    // [N, OH, OW, O]

override WG: u32 = 64u;

// Weights of one channel of x; what is past the last output is zero.
fn weights(at: u32) -> vec4<f32> {
    var v = vec4<f32>(f32(w[at]), 0.0, 0.0, 0.0);
    if p.out_c > 1u { v.y = f32(w[at + 1u]); }
    if p.out_c > 2u { v.z = f32(w[at + 2u]); }
    if p.out_c > 3u { v.w = f32(w[at + 3u]); }
    return v;
}

fn store(pixel: u32, sums: vec4<f32>) {
    let at = pixel * p.out_c;
    y[at] = finished(sums.x, pixel, 0u, p.out_c);
    if p.out_c > 1u { y[at + 1u] = finished(sums.y, pixel, 1u, p.out_c); }
    if p.out_c > 2u { y[at + 2u] = finished(sums.z, pixel, 2u, p.out_c); }
    if p.out_c > 3u { y[at + 3u] = finished(sums.w, pixel, 3u, p.out_c); }
}

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = linear_index(gid, groups, WG);
    let tiles = (p.out_w + 3u) / 4u;
    if index >= p.batch * p.out_h * tiles { return; }
    let ow0 = index % tiles * 4u;
    let row = index / tiles;                                            // n OH + oh
    let oh = row % p.out_h;
    let n = row / p.out_h;
    let i4 = p.in_c / 4u;
    var s0 = vec4<f32>(); var s1 = vec4<f32>(); var s2 = vec4<f32>(); var s3 = vec4<f32>();
    for (var kh = 0u; kh < p.kernel_h; kh++) {
        let ih = oh * p.stride_h + kh * p.dilation_h - p.pad_top;       // above the image it wraps to a huge number
        if ih >= p.in_h { continue; }
        let line = (n * (p.in_h >> p.enlarged) + (ih >> p.enlarged)) * (p.in_w >> p.enlarged);
        for (var kw = 0u; kw < p.kernel_w; kw++) {
            let c0 = ow0 * p.stride_w + kw * p.dilation_w - p.pad_left;
            let c1 = c0 + p.stride_w; let c2 = c1 + p.stride_w; let c3 = c2 + p.stride_w;
            // A column outside x loads column 0 and counts as zero.
            let m0 = c0 < p.in_w; let m1 = c1 < p.in_w; let m2 = c2 < p.in_w; let m3 = c3 < p.in_w;
            let a0 = (line + (select(0u, c0, m0) >> p.enlarged)) * i4;
            let a1 = (line + (select(0u, c1, m1) >> p.enlarged)) * i4;
            let a2 = (line + (select(0u, c2, m2) >> p.enlarged)) * i4;
            let a3 = (line + (select(0u, c3, m3) >> p.enlarged)) * i4;
            var at = (kh * p.kernel_w + kw) * p.in_c * p.out_c;
            for (var i = 0u; i < i4; i++) {
                let v0 = select(vec4<f32>(), vec4<f32>(x[a0 + i]), m0);
                let v1 = select(vec4<f32>(), vec4<f32>(x[a1 + i]), m1);
                let v2 = select(vec4<f32>(), vec4<f32>(x[a2 + i]), m2);
                let v3 = select(vec4<f32>(), vec4<f32>(x[a3 + i]), m3);
                let wx = weights(at);
                s0 += v0.x * wx; s1 += v1.x * wx; s2 += v2.x * wx; s3 += v3.x * wx;
                let wy = weights(at + p.out_c);
                s0 += v0.y * wy; s1 += v1.y * wy; s2 += v2.y * wy; s3 += v3.y * wy;
                let wz = weights(at + 2u * p.out_c);
                s0 += v0.z * wz; s1 += v1.z * wz; s2 += v2.z * wz; s3 += v3.z * wz;
                let ww = weights(at + 3u * p.out_c);
                s0 += v0.w * ww; s1 += v1.w * ww; s2 += v2.w * ww; s3 += v3.w * ww;
                at += 4u * p.out_c;
            }
        }
    }
    let pixel = row * p.out_w + ow0;
    let count = p.out_w - ow0;
    store(pixel, s0);
    if count > 1u { store(pixel + 1u, s1); }
    if count > 2u { store(pixel + 2u, s2); }
    if count > 3u { store(pixel + 3u, s3); }
}
