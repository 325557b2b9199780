// group_norm, one workgroup of 256 per (n, g): an invocation stays with one channel and takes four pixels at a time, so that
// several loads are under way and no index is divided inside the loops.   C / G <= 256.
// Two passes over x: the variance is taken about the mean.
struct Params { spatial: u32, channels: u32, groups: u32, eps: f32, silu: u32, batch: u32 }
@group(0) @binding(0) var<uniform>             p:      Params;
@group(0) @binding(1) var<storage, read>       x:      array<elem>;   // [N, S, C]
@group(0) @binding(2) var<storage, read>       weight: array<elem>;   // [C]
@group(0) @binding(3) var<storage, read>       bias:   array<elem>;   // [C]
@group(0) @binding(4) var<storage, read_write> y:      array<elem>;   // [N, S, C]

override WG: u32 = 256u;   // power of two: the tree sum halves it

fn four(at: u32, stride: u32) -> vec4<f32> {
    return vec4<f32>(f32(x[at]), f32(x[at + stride]), f32(x[at + 2u * stride]), f32(x[at + 3u * stride]));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, own: Own) {
    let lane = own.lane;
    let job = wid.x + wid.y * groups.x;
    let n = min(job / p.groups, p.batch - 1u);   // surplus groups of the grid repeat the last one: barriers stay uniform
    let g = job % p.groups;
    let width = p.channels / p.groups;
    let step = WG / width;                       // pixels that the workgroup takes side by side
    let c = g * width + lane % width;
    let start = select(lane / width, p.spatial, lane >= step * width);
    let base = n * p.spatial * p.channels + c;
    let stride = step * p.channels;
    let count = f32(p.spatial * width);

    var sums = vec4<f32>();
    var s = start;
    for (; s + 3u * step < p.spatial; s += 4u * step) { sums += four(base + s * p.channels, stride); }
    for (; s < p.spatial; s += step) { sums.x += f32(x[base + s * p.channels]); }
    let mean = tree_sum(own, (sums.x + sums.y) + (sums.z + sums.w)) / count;
    var squares = vec4<f32>();
    s = start;
    for (; s + 3u * step < p.spatial; s += 4u * step) {
        let d = four(base + s * p.channels, stride) - mean;
        squares += d * d;
    }
    for (; s < p.spatial; s += step) {
        let d = f32(x[base + s * p.channels]) - mean;
        squares.x += d * d;
    }
    let inv = 1.0 / sqrt(tree_sum(own, (squares.x + squares.y) + (squares.z + squares.w)) / count + p.eps);
    if job >= p.batch * p.groups { return; }
    let w = f32(weight[c]);
    let b = f32(bias[c]);
    s = start;
    for (; s + 3u * step < p.spatial; s += 4u * step) {
        let at = base + s * p.channels;
        let v = (four(at, stride) - mean) * inv * w + b;
        y[at] = elem(finished(v.x));
        y[at + stride] = elem(finished(v.y));
        y[at + 2u * stride] = elem(finished(v.z));
        y[at + 3u * stride] = elem(finished(v.w));
    }
    for (; s < p.spatial; s += step) {
        let at = base + s * p.channels;
        y[at] = elem(finished((f32(x[at]) - mean) * inv * w + b));
    }
}

fn finished(v: f32) -> f32 { return select(v, v * sigmoid(v), p.silu != 0u); }
