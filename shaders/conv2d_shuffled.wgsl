// conv2d, register tile of 8 pixels of one output row x 4 channels an invocation; no workgroup memory. The members of a subgroup each
// bring one channel of x for the 8 pixels, and take the others' from their registers.   One group, O % 4 == 0.
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

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, own: Own) {
    let o4 = p.out_c / 4u;
    let col = wid.z * WG + own.lane;
    let members = min(own.size, WG);
    let ow0 = wid.x * 8u;
    let oh = wid.y % p.out_h;
    let n = wid.y / p.out_h;
    var s0 = vec4<f32>(); var s1 = vec4<f32>(); var s2 = vec4<f32>(); var s3 = vec4<f32>();
    var s4 = vec4<f32>(); var s5 = vec4<f32>(); var s6 = vec4<f32>(); var s7 = vec4<f32>();
    for (var kh = 0u; kh < p.kernel_h; kh++) {
        let ih = oh * p.stride_h + kh * p.dilation_h - p.pad_top;       // above the image it wraps to a huge number
        if ih >= p.in_h { continue; }
        let row = (n * (p.in_h >> p.enlarged) + (ih >> p.enlarged)) * (p.in_w >> p.enlarged);
        for (var kw = 0u; kw < p.kernel_w; kw++) {
            let iw = ow0 * p.stride_w + kw * p.dilation_w - p.pad_left;
            // A column outside x loads column 0 and counts as zero.
            let i0 = iw; let i1 = iw + p.stride_w; let i2 = i1 + p.stride_w; let i3 = i2 + p.stride_w;
            let i4 = i3 + p.stride_w; let i5 = i4 + p.stride_w; let i6 = i5 + p.stride_w; let i7 = i6 + p.stride_w;
            let m0 = i0 < p.in_w; let m1 = i1 < p.in_w;
            let m2 = i2 < p.in_w; let m3 = i3 < p.in_w;
            let m4 = i4 < p.in_w; let m5 = i5 < p.in_w;
            let m6 = i6 < p.in_w; let m7 = i7 < p.in_w;
            let a0 = (row + (select(0u, i0, m0) >> p.enlarged)) * p.in_c; let a1 = (row + (select(0u, i1, m1) >> p.enlarged)) * p.in_c;
            let a2 = (row + (select(0u, i2, m2) >> p.enlarged)) * p.in_c; let a3 = (row + (select(0u, i3, m3) >> p.enlarged)) * p.in_c;
            let a4 = (row + (select(0u, i4, m4) >> p.enlarged)) * p.in_c; let a5 = (row + (select(0u, i5, m5) >> p.enlarged)) * p.in_c;
            let a6 = (row + (select(0u, i6, m6) >> p.enlarged)) * p.in_c; let a7 = (row + (select(0u, i7, m7) >> p.enlarged)) * p.in_c;
            // Columns past the end repeat the last one and are not stored: every member of a subgroup shuffles.
            let at = (kh * p.kernel_w + kw) * p.in_c * o4 + min(col, o4 - 1u);
            for (var c = 0u; c < p.in_c; c += members) {
                let i = min(c + own.member, p.in_c - 1u);
                let x0 = select(0.0, f32(x[a0 + i]), m0); let x1 = select(0.0, f32(x[a1 + i]), m1);
                let x2 = select(0.0, f32(x[a2 + i]), m2); let x3 = select(0.0, f32(x[a3 + i]), m3);
                let x4 = select(0.0, f32(x[a4 + i]), m4); let x5 = select(0.0, f32(x[a5 + i]), m5);
                let x6 = select(0.0, f32(x[a6 + i]), m6); let x7 = select(0.0, f32(x[a7 + i]), m7);
                let count = min(members, p.in_c - c);
                for (var j = 0u; j < count; j++) {
                    let v = vec4<f32>(w[at + (c + j) * o4]);
                    s0 += subgroupShuffle(x0, j) * v;
                    s1 += subgroupShuffle(x1, j) * v;
                    s2 += subgroupShuffle(x2, j) * v;
                    s3 += subgroupShuffle(x3, j) * v;
                    s4 += subgroupShuffle(x4, j) * v;
                    s5 += subgroupShuffle(x5, j) * v;
                    s6 += subgroupShuffle(x6, j) * v;
                    s7 += subgroupShuffle(x7, j) * v;
                }
            }
        }
    }
    if col >= o4 { return; }
    let pixel = wid.y * p.out_w + ow0;
    let out = pixel * o4 + col;
    let count = p.out_w - ow0;
    y[out] = finished(s0, pixel, col, o4);
    if count > 1u { y[out + o4] = finished(s1, pixel + 1u, col, o4); }
    if count > 2u { y[out + 2u * o4] = finished(s2, pixel + 2u, col, o4); }
    if count > 3u { y[out + 3u * o4] = finished(s3, pixel + 3u, col, o4); }
    if count > 4u { y[out + 4u * o4] = finished(s4, pixel + 4u, col, o4); }
    if count > 5u { y[out + 5u * o4] = finished(s5, pixel + 5u, col, o4); }
    if count > 6u { y[out + 6u * o4] = finished(s6, pixel + 6u, col, o4); }
    if count > 7u { y[out + 7u * o4] = finished(s7, pixel + 7u, col, o4); }
}
