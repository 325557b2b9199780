// pool2d: maximum or mean over windows of x.   x: [N, H, W, C]; y: [N, OH, OW, C]
// One invocation per output value. Padding never wins a maximum; a mean counts it when count_padding is set.
// Every window holds at least one value of x: each padding is smaller than the kernel.
struct Params {
    len: u32, in_h: u32, in_w: u32, channels: u32, out_h: u32, out_w: u32, kernel_h: u32, kernel_w: u32,
    stride_h: u32, stride_w: u32, pad_top: u32, pad_left: u32, average: u32, count_padding: u32, whole: u32,
}
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [N, H, W, C]
@group(0) @binding(2) var<storage, read_write> y: array<elem>;   // [N, OH, OW, C]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let c = i % p.channels;
    let ow = i / p.channels % p.out_w;
    let oh = i / p.channels / p.out_w % p.out_h;
    let n = i / p.channels / p.out_w / p.out_h;
    // The window's rows and columns that lie inside x.
    let top = oh * p.stride_h;
    let left = ow * p.stride_w;
    let h0 = max(top, p.pad_top) - p.pad_top;
    let w0 = max(left, p.pad_left) - p.pad_left;
    let h1 = min(top + p.kernel_h - p.pad_top, p.in_h);
    let w1 = min(left + p.kernel_w - p.pad_left, p.in_w);
    let image = n * p.in_h * p.in_w;
    var sum = 0.0;
    var largest = f32(x[(image + h0 * p.in_w + w0) * p.channels + c]);
    for (var h = h0; h < h1; h++) {
        for (var w = w0; w < w1; w++) {
            let value = f32(x[(image + h * p.in_w + w) * p.channels + c]);
            sum += value;
            largest = max(largest, value);
        }
    }
    let count = select((h1 - h0) * (w1 - w0), p.kernel_h * p.kernel_w, p.count_padding != 0u);
    y[i] = elem(select(largest, sum / f32(count), p.average != 0u));
}
