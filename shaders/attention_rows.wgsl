// attention, one invocation per query: the query and its result stay in registers, keys and values are the same for the
// whole workgroup; no workgroup memory, no barriers.   D % 4 == 0, D <= 64.
struct Params { batch: u32, queries: u32, keys: u32, heads: u32, head_dim: u32, scale: f32, bias_rows: u32, bias_heads: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       q: array<elem4>;   // [N, Lq, heads D / 4]
@group(0) @binding(2) var<storage, read>       k: array<elem4>;   // [N, Lk, heads D / 4]
@group(0) @binding(3) var<storage, read>       v: array<elem4>;   // [N, Lk, heads D / 4]
@group(0) @binding(4) var<storage, read>       bias: array<elem>; // [W, heads or 1, Lq, Lk], or anything when bias_rows is 0
@group(0) @binding(5) var<storage, read_write> y: array<elem4>;   // [N, Lq, heads D / 4]

override WG: u32 = 32u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let query = wid.x * WG + lane;
    if query >= p.queries { return; }
    let n = wid.y / p.heads;
    let head = wid.y % p.heads;
    let d4 = p.head_dim / 4u;
    let width = p.heads * d4;
    let q0 = (n * p.queries + query) * width + head * d4;
    let k0 = n * p.keys * width + head * d4;
    let b0 = ((n % max(p.bias_rows, 1u) * p.bias_heads + head % p.bias_heads) * p.queries + query) * p.keys;

    var row: array<vec4<f32>, 16>;
    var acc: array<vec4<f32>, 16>;
    for (var d = 0u; d < d4; d++) { row[d] = vec4<f32>(q[q0 + d]) * p.scale; }
    var top = -3.4028234e38;
    var sum = 0.0;
    for (var j = 0u; j < p.keys; j++) {
        let at = k0 + j * width;
        var score = 0.0;
        for (var d = 0u; d < d4; d++) { score += dot(row[d], vec4<f32>(k[at + d])); }
        if p.bias_rows != 0u { score += f32(bias[b0 + j]); }
        let new_top = max(top, score);
        let correction = exp(top - new_top);   // 0 for the first key
        let weight = exp(score - new_top);
        top = new_top;
        sum = sum * correction + weight;
        for (var d = 0u; d < d4; d++) { acc[d] = acc[d] * correction + weight * vec4<f32>(v[at + d]); }
    }
    for (var d = 0u; d < d4; d++) { y[q0 + d] = elem4(acc[d] / sum); }
}
