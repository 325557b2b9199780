// group_norm_apply: y = act((x - mean) / sqrt(var + eps) * weight + bias), mean and var per (n, g) from those of chunks of pixels.
// One workgroup of 256 per (n, chunk). It adds up the chunks' moments (Chan et al.), 256 / G slices of chunks at a time; then an
// invocation stays with four channels.   C % 4 == 0, G <= 256.
struct Params { spatial: u32, channels: u32, groups: u32, chunk: u32, eps: f32, silu: u32, batch: u32 }
@group(0) @binding(0) var<uniform>             p:       Params;
@group(0) @binding(1) var<storage, read>       x:       array<elem4>;       // [N, S, C / 4]
@group(0) @binding(2) var<storage, read>       weight:  array<elem4>;       // [C / 4]
@group(0) @binding(3) var<storage, read>       bias:    array<elem4>;       // [C / 4]
@group(0) @binding(4) var<storage, read>       moments: array<f32>;         // [N, P, 2 G]
@group(0) @binding(5) var<storage, read_write> y:       array<elem4>;       // [N, S, C / 4]

var<workgroup> parts: array<vec3<f32>, 256>;     // [slice][G]: count, mean, sum of squares about it
var<workgroup> wholes: array<vec2<f32>, 256>;    // [G]: mean, 1 / deviation

// Count, mean and sum of squares of two sets.
fn joined(a: vec3<f32>, b: vec3<f32>) -> vec3<f32> {
    let count = a.x + b.x;
    if count == 0.0 { return a; }
    let d = b.y - a.y;
    return vec3<f32>(count, a.y + d * (b.x / count), a.z + b.z + d * d * (a.x * b.x / count));
}

fn finished(v: vec4<f32>) -> vec4<f32> {
    if p.silu == 0u { return v; }
    return v * vec4<f32>(sigmoid(v.x), sigmoid(v.y), sigmoid(v.z), sigmoid(v.w));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let width = p.channels / p.groups;
    let chunks = (p.spatial + p.chunk - 1u) / p.chunk;
    let slices = 256u / p.groups;
    var part = vec3<f32>();
    if lane < slices * p.groups {
        for (var c = lane / p.groups; c < chunks; c += slices) {
            let count = f32(min(p.chunk, p.spatial - c * p.chunk) * width);
            let at = ((wid.y * chunks + c) * p.groups + lane % p.groups) * 2u;
            part = joined(part, vec3<f32>(count, moments[at], moments[at + 1u] * count));
        }
    }
    parts[lane] = part;
    workgroupBarrier();
    if lane < p.groups {
        for (var s = 1u; s < slices; s++) { part = joined(part, parts[s * p.groups + lane]); }
        wholes[lane] = vec2<f32>(part.y, 1.0 / sqrt(part.z / part.x + p.eps));
    }
    workgroupBarrier();

    let c4 = p.channels / 4u;
    let side = max(256u / c4, 1u);               // pixels side by side
    let first = wid.x * p.chunk;
    let pixels = min(p.chunk, p.spatial - first);
    let base = (wid.y * p.spatial + first) * c4;
    if lane >= side * c4 && c4 <= 256u { return; }
    for (var quad = lane % c4; quad < c4; quad += 256u) {
        let g0 = wholes[4u * quad / width];
        let g1 = wholes[(4u * quad + 1u) / width];
        let g2 = wholes[(4u * quad + 2u) / width];
        let g3 = wholes[(4u * quad + 3u) / width];
        let mean = vec4<f32>(g0.x, g1.x, g2.x, g3.x);
        let scale = vec4<f32>(g0.y, g1.y, g2.y, g3.y);
        let w = vec4<f32>(weight[quad]);
        let b = vec4<f32>(bias[quad]);
        let step = side * c4;
        var s = select(lane / c4, 0u, c4 > 256u);
        for (; s + 3u * side < pixels; s += 4u * side) {
            let at = base + s * c4 + quad;
            let v0 = vec4<f32>(x[at]);
            let v1 = vec4<f32>(x[at + step]);
            let v2 = vec4<f32>(x[at + 2u * step]);
            let v3 = vec4<f32>(x[at + 3u * step]);
            y[at] = elem4(finished((v0 - mean) * scale * w + b));
            y[at + step] = elem4(finished((v1 - mean) * scale * w + b));
            y[at + 2u * step] = elem4(finished((v2 - mean) * scale * w + b));
            y[at + 3u * step] = elem4(finished((v3 - mean) * scale * w + b));
        }
        for (; s < pixels; s += side) {
            let at = base + s * c4 + quad;
            y[at] = elem4(finished((vec4<f32>(x[at]) - mean) * scale * w + b));
        }
    }
}
