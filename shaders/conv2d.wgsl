// conv2d: y[n, oh, ow, o] = bias[o] + sum x[n, oh sh + kh dh - top, ow sw + kw dw - left, g I/G + i] w[kh, kw, i, o], g = o / (O/G)
// One invocation per element of y.   x: [N, H, W, I], w: [KH, KW, I/G, O], y: [N, OH, OW, O]
struct Params {
    batch: u32, in_h: u32, in_w: u32, in_c: u32, out_h: u32, out_w: u32, out_c: u32, kernel_h: u32, kernel_w: u32,
    stride_h: u32, stride_w: u32, pad_top: u32, pad_left: u32, dilation_h: u32, dilation_w: u32, groups: u32, has_bias: u32,
    enlarged: u32, added_rows: u32, added_count: u32, function: u32, a: f32, b: f32,
}
@group(0) @binding(0) var<uniform>             p:     Params;
@group(0) @binding(1) var<storage, read>       x:     array<elem>;   // [N, H, W, I]
@group(0) @binding(2) var<storage, read>       w:     array<elem>;   // [KH, KW, I/G, O]
@group(0) @binding(3) var<storage, read>       bias:  array<elem>;   // [O], or anything when has_bias is 0
@group(0) @binding(4) var<storage, read>       added: array<elem>;   // [rows, O], or anything when added_count is 0
@group(0) @binding(5) var<storage, read_write> y:     array<elem>;   // [N, OH, OW, O]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = linear_index(gid, groups, WG);
    if index >= p.batch * p.out_h * p.out_w * p.out_c { return; }
    let o = index % p.out_c;
    let ow = index / p.out_c % p.out_w;
    let oh = index / p.out_c / p.out_w % p.out_h;
    let n = index / p.out_c / p.out_w / p.out_h;
    let per_group = p.in_c / p.groups;
    let c0 = o / (p.out_c / p.groups) * per_group;
    var sum = 0.0;
    for (var kh = 0u; kh < p.kernel_h; kh++) {
        let ih = oh * p.stride_h + kh * p.dilation_h - p.pad_top;       // above the image it wraps to a huge number
        if ih >= p.in_h { continue; }
        for (var kw = 0u; kw < p.kernel_w; kw++) {
            let iw = ow * p.stride_w + kw * p.dilation_w - p.pad_left;
            if iw >= p.in_w { continue; }
            let start = ((n * (p.in_h >> p.enlarged) + (ih >> p.enlarged)) * (p.in_w >> p.enlarged) + (iw >> p.enlarged)) * p.in_c + c0;
            let tap = (kh * p.kernel_w + kw) * per_group * p.out_c + o;
            for (var i = 0u; i < per_group; i++) {
                sum += f32(x[start + i]) * f32(w[tap + i * p.out_c]);
            }
        }
    }
    y[index] = finished(sum, index / p.out_c, o, p.out_c);
}
