// group_norm: y = act((x - mean) / sqrt(var + eps) * weight + bias), mean and var per (n, g).   x, y: [N, S, C]
// One workgroup per (n, g). Two passes over x: the variance is taken about the mean, because the one-pass form
// loses all digits where |mean| is much larger than the deviation.
struct Params { spatial: u32, channels: u32, groups: u32, eps: f32, silu: u32, batch: u32 }
@group(0) @binding(0) var<uniform>             p:      Params;
@group(0) @binding(1) var<storage, read>       x:      array<elem>;   // [N, S, C]
@group(0) @binding(2) var<storage, read>       weight: array<elem>;   // [C]
@group(0) @binding(3) var<storage, read>       bias:   array<elem>;   // [C]
@group(0) @binding(4) var<storage, read_write> y:      array<elem>;   // [N, S, C]

override WG: u32 = 64u;   // power of two: the tree sum halves it

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, own: Own) {
    let lane = own.lane;
    let job = wid.x + wid.y * groups.x;
    let n = min(job / p.groups, p.batch - 1u);   // surplus groups of the grid repeat the last one: barriers stay uniform
    let g = job % p.groups;
    let width = p.channels / p.groups;
    let count = p.spatial * width;
    let base = n * p.spatial * p.channels + g * width;

    var sum = 0.0;
    for (var i = lane; i < count; i += WG) {
        sum += f32(x[base + (i / width) * p.channels + i % width]);
    }
    let mean = tree_sum(own, sum) / f32(count);
    var square = 0.0;
    for (var i = lane; i < count; i += WG) {
        let d = f32(x[base + (i / width) * p.channels + i % width]) - mean;
        square += d * d;
    }
    let inv = 1.0 / sqrt(tree_sum(own, square) / f32(count) + p.eps);
    if job >= p.batch * p.groups { return; }
    for (var i = lane; i < count; i += WG) {
        let c = g * width + i % width;
        let at = base + (i / width) * p.channels + i % width;
        let v = (f32(x[at]) - mean) * inv * f32(weight[c]) + f32(bias[c]);
        y[at] = elem(select(v, v * sigmoid(v), p.silu != 0u));
    }
}
