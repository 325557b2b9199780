// softmax: y = exp(x - max) / sum exp(x - max), per row.   x, y: [R, C]
// One workgroup per row.
struct Params { rows: u32, channels: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [R, C]
@group(0) @binding(2) var<storage, read_write> y: array<elem>;   // [R, C]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, own: Own) {
    let lane = own.lane;
    let job = wid.x + wid.y * groups.x;
    let base = min(job, p.rows - 1u) * p.channels;   // surplus groups of the grid repeat the last row: barriers stay uniform

    var largest = f32(x[base + min(lane, p.channels - 1u)]);
    for (var c = lane; c < p.channels; c += WG) { largest = max(largest, f32(x[base + c])); }
    let shift = tree_max(own, largest);
    var sum = 0.0;
    for (var c = lane; c < p.channels; c += WG) { sum += exp(f32(x[base + c]) - shift); }
    let total = tree_sum(own, sum);
    if job >= p.rows { return; }
    for (var c = lane; c < p.channels; c += WG) { y[base + c] = elem(exp(f32(x[base + c]) - shift) / total); }
}
