// attention: y = softmax(q k^T * scale + bias) v per (n, head), streaming over the keys with a running maximum and sum.
// One workgroup per (n, head, query). For a tile of 64 keys each lane makes one score; then each lane owns the channels
// lane, lane + 64, ... of the result.   q, y: [N, Lq, heads D], k, v: [N, Lk, heads D], D <= 1024
struct Params { batch: u32, queries: u32, keys: u32, heads: u32, head_dim: u32, scale: f32, bias_rows: u32, bias_heads: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       q: array<elem>;   // [N, Lq, heads D]
@group(0) @binding(2) var<storage, read>       k: array<elem>;   // [N, Lk, heads D]
@group(0) @binding(3) var<storage, read>       v: array<elem>;   // [N, Lk, heads D]
@group(0) @binding(4) var<storage, read>       bias: array<elem>; // [W, heads or 1, Lq, Lk], or anything when bias_rows is 0
@group(0) @binding(5) var<storage, read_write> y: array<elem>;   // [N, Lq, heads D]

const LANES: u32 = 64u;
const LOWEST: f32 = -3.4028234e38;
var<workgroup> probability: array<f32, LANES>;
var<workgroup> partial: array<f32, LANES>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let jobs = p.batch * p.heads * p.queries;
    let raw = wid.x + wid.y * groups.x;
    let job = min(raw, jobs - 1u);             // surplus groups repeat the last job: barriers stay uniform
    let width = p.heads * p.head_dim;
    let head = job / p.queries % p.heads;
    let n = job / p.queries / p.heads;
    let q0 = (n * p.queries + job % p.queries) * width + head * p.head_dim;
    let k0 = n * p.keys * width + head * p.head_dim;
    let b0 = ((n % max(p.bias_rows, 1u) * p.bias_heads + head % p.bias_heads) * p.queries + job % p.queries) * p.keys;

    var acc: array<f32, 16>;
    var top = LOWEST;
    var sum = 0.0;
    for (var start = 0u; start < p.keys; start += LANES) {
        let count = min(LANES, p.keys - start);
        var score = LOWEST;
        if lane < count {
            let at = k0 + (start + lane) * width;
            score = 0.0;
            for (var d = 0u; d < p.head_dim; d++) { score += f32(q[q0 + d]) * f32(k[at + d]); }
            score *= p.scale;
            if p.bias_rows != 0u { score += f32(bias[b0 + start + lane]); }
        }
        partial[lane] = score;
        workgroupBarrier();
        for (var half = LANES / 2u; half > 0u; half /= 2u) {
            if lane < half { partial[lane] = max(partial[lane], partial[lane + half]); }
            workgroupBarrier();
        }
        let new_top = max(top, partial[0]);
        workgroupBarrier();
        let mine = select(0.0, exp(score - new_top), lane < count);
        probability[lane] = mine;
        partial[lane] = mine;
        workgroupBarrier();
        for (var half = LANES / 2u; half > 0u; half /= 2u) {
            if lane < half { partial[lane] += partial[lane + half]; }
            workgroupBarrier();
        }
        let correction = exp(top - new_top);   // 0 for the first tile
        sum = sum * correction + partial[0];
        top = new_top;
        for (var j = 0u; j < 16u; j++) {
            let d = lane + j * LANES;
            if d >= p.head_dim { break; }
            var a = acc[j] * correction;
            for (var i = 0u; i < count; i++) { a += probability[i] * f32(v[k0 + (start + i) * width + d]); }
            acc[j] = a;
        }
        workgroupBarrier();
    }
    if raw >= jobs { return; }
    for (var j = 0u; j < 16u; j++) {
        let d = lane + j * LANES;
        if d >= p.head_dim { break; }
        y[q0 + d] = elem(acc[j] / sum);
    }
}
