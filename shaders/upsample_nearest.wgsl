// upsample_nearest: y[n, h, w, c] = x[n, h / f, w / f, c].   x: [N, H, W, C]; y: [N, f H, f W, C]
struct Params { len: u32, in_h: u32, in_w: u32, channels: u32, factor: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [N, H, W, C]
@group(0) @binding(2) var<storage, read_write> y: array<elem>;   // [N, f H, f W, C]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let c = i % p.channels;
    let pixel = i / p.channels;
    let out_w = p.in_w * p.factor;
    let w = pixel % out_w / p.factor;
    let row = pixel / out_w / p.factor;   // n * H + h: f divides the rows of each image
    y[i] = elem(f32(x[(row * p.in_w + w) * p.channels + c]));
}
