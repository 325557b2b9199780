// layer_norm: y = (x - mean) / sqrt(var + eps) * weight + bias, mean and var per row.   x, y: [R, C]
// One workgroup per row. Two passes over x: the variance is taken about the mean.
struct Params { rows: u32, channels: u32, eps: f32 }
@group(0) @binding(0) var<uniform>             p:      Params;
@group(0) @binding(1) var<storage, read>       x:      array<elem>;   // [R, C]
@group(0) @binding(2) var<storage, read>       weight: array<elem>;   // [C]
@group(0) @binding(3) var<storage, read>       bias:   array<elem>;   // [C]
@group(0) @binding(4) var<storage, read_write> y:      array<elem>;   // [R, C]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, own: Own) {
    let lane = own.lane;
    let job = wid.x + wid.y * groups.x;
    let base = min(job, p.rows - 1u) * p.channels;   // surplus groups of the grid repeat the last row: barriers stay uniform

    var sum = 0.0;
    for (var c = lane; c < p.channels; c += WG) { sum += f32(x[base + c]); }
    let mean = tree_sum(own, sum) / f32(p.channels);
    var square = 0.0;
    for (var c = lane; c < p.channels; c += WG) {
        let d = f32(x[base + c]) - mean;
        square += d * d;
    }
    let inv = 1.0 / sqrt(tree_sum(own, square) / f32(p.channels) + p.eps);
    if job >= p.rows { return; }
    for (var c = lane; c < p.channels; c += WG) {
        y[base + c] = elem((f32(x[base + c]) - mean) * inv * f32(weight[c]) + f32(bias[c]));
    }
}
