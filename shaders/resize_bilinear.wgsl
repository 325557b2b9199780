// resize_bilinear: y at (h, w) is the mean of four pixels of x weighed by distance.   x: [N, H, W, C]; y: [N, OH, OW, C]
// A place along an axis is (max(i step + add, sub) - sub) / div pixels, in whole numbers.
struct Params {
    len: u32, in_h: u32, in_w: u32, out_h: u32, out_w: u32, channels: u32,
    step_h: u32, add_h: u32, sub_h: u32, div_h: u32,
    step_w: u32, add_w: u32, sub_w: u32, div_w: u32,
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
    let pixel = i / p.channels;
    let place_w = max(pixel % p.out_w * p.step_w + p.add_w, p.sub_w) - p.sub_w;
    let row = pixel / p.out_w;   // n * OH + h
    let place_h = max(row % p.out_h * p.step_h + p.add_h, p.sub_h) - p.sub_h;
    let top = min(place_h / p.div_h, p.in_h - 1u);
    let left = min(place_w / p.div_w, p.in_w - 1u);
    let a = f32(place_h % p.div_h) / f32(p.div_h);
    let b = f32(place_w % p.div_w) / f32(p.div_w);
    let image = row / p.out_h * p.in_h;
    let first = (image + top) * p.in_w;
    let second = (image + min(top + 1u, p.in_h - 1u)) * p.in_w;
    let right = min(left + 1u, p.in_w - 1u);
    let upper = f32(x[(first + left) * p.channels + c]) * (1.0 - b) + f32(x[(first + right) * p.channels + c]) * b;
    let lower = f32(x[(second + left) * p.channels + c]) * (1.0 - b) + f32(x[(second + right) * p.channels + c]) * b;
    y[i] = elem(upper * (1.0 - a) + lower * a);
}
