// group_moments: mean and variance of x per (n, chunk of pixels, g).   x: [N, S, C]; y: [N, P, 2 G]
// One invocation per (n, p, g). Two passes over x: the variance is taken about the mean.
struct Params { spatial: u32, channels: u32, groups: u32, chunk: u32, batch: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [N, S, C]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;    // [N, P, 2 G]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let job = linear_index(gid, groups, WG);
    let chunks = (p.spatial + p.chunk - 1u) / p.chunk;
    if job >= p.batch * chunks * p.groups { return; }
    let n = job / (chunks * p.groups);
    let first = job / p.groups % chunks * p.chunk;
    let pixels = min(p.chunk, p.spatial - first);
    let width = p.channels / p.groups;
    let base = (n * p.spatial + first) * p.channels + job % p.groups * width;
    var sum = 0.0;
    for (var s = 0u; s < pixels; s++) {
        for (var c = 0u; c < width; c++) { sum += f32(x[base + s * p.channels + c]); }
    }
    let mean = sum / f32(pixels * width);
    var square = 0.0;
    for (var s = 0u; s < pixels; s++) {
        for (var c = 0u; c < width; c++) {
            let d = f32(x[base + s * p.channels + c]) - mean;
            square += d * d;
        }
    }
    y[2u * job] = mean;
    y[2u * job + 1u] = square / f32(pixels * width);
}
