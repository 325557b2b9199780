// matmul: y[b, m, n] = sum_k a[b, m, k] w[b, k, n] + bias[n].   a: [B, M, K], w: [B or 1, K, N], y: [B, M, N]
// One invocation per element of y.
struct Params {
    batch: u32, m: u32, k: u32, n: u32, batched: u32, has_bias: u32,
    added_rows: u32, added_count: u32, function: u32, a: f32, b: f32,
}
@group(0) @binding(0) var<uniform>             p:     Params;
@group(0) @binding(1) var<storage, read>       a:     array<elem>;   // [B, M, K]
@group(0) @binding(2) var<storage, read>       w:     array<elem>;   // [B or 1, K, N]
@group(0) @binding(3) var<storage, read>       bias:  array<elem>;   // [N], or anything when has_bias is 0
@group(0) @binding(4) var<storage, read>       added: array<elem>;   // [rows, N], or anything when added_count is 0
@group(0) @binding(5) var<storage, read_write> y:     array<elem>;   // [B, M, N]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.batch * p.m * p.n { return; }
    let n = i % p.n;
    let row = i / p.n;                       // b * M + m
    let right = select(0u, (row / p.m) * p.k * p.n, p.batched != 0u);
    var sum = 0.0;
    for (var k = 0u; k < p.k; k++) {
        sum += f32(a[row * p.k + k]) * f32(w[right + k * p.n + n]);
    }
    y[i] = finished(sum, row, n, p.n);
}
