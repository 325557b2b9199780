// pool2d, whole: the mean over all pixels of an image.   x: [N, S, C], S = H W; y: [N, C]
// A workgroup takes 8 neighbouring channels of one image: its WG / 8 streams of pixels are summed side by side, then by a tree.
struct Params {
    len: u32, in_h: u32, in_w: u32, channels: u32, out_h: u32, out_w: u32, kernel_h: u32, kernel_w: u32,
    stride_h: u32, stride_w: u32, pad_top: u32, pad_left: u32, average: u32, count_padding: u32, whole: u32,
}
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [N, S, C]
@group(0) @binding(2) var<storage, read_write> y: array<elem>;   // [N, C]

const CHANNELS: u32 = 8u;
override WG: u32 = 64u;   // CHANNELS times a power of two
var<workgroup> partial: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let job = wid.x + wid.y * groups.x;
    let blocks = (p.channels + CHANNELS - 1u) / CHANNELS;
    let n = job / blocks;
    let c = job % blocks * CHANNELS + lane % CHANNELS;
    let inside = n * p.channels < p.len && c < p.channels;
    let pixels = p.in_h * p.in_w;
    var sum = 0.0;
    if inside {
        for (var s = lane / CHANNELS; s < pixels; s += WG / CHANNELS) { sum += f32(x[(n * pixels + s) * p.channels + c]); }
    }
    partial[lane] = sum;
    workgroupBarrier();
    // Strides are multiples of CHANNELS, so a lane only ever adds its own channel.
    for (var stride = WG / 2u; stride >= CHANNELS; stride /= 2u) {
        if lane < stride { partial[lane] += partial[lane + stride]; }
        workgroupBarrier();
    }
    if inside && lane < CHANNELS { y[n * p.channels + c] = elem(partial[lane] / f32(pixels)); }
}
