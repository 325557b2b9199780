// matmul of few rows: a workgroup makes 64 columns of one row, and its 16 slices part K among them.   N % 4 == 0.
struct Params {
    batch: u32, m: u32, k: u32, n: u32, batched: u32, has_bias: u32,
    added_rows: u32, added_count: u32, function: u32, a: f32, b: f32,
}
@group(0) @binding(0) var<uniform>             p:     Params;
@group(0) @binding(1) var<storage, read>       a:     array<elem>;    // [B, M, K]
@group(0) @binding(2) var<storage, read>       w:     array<elem4>;   // [B or 1, K, N / 4]
@group(0) @binding(3) var<storage, read>       bias:  array<elem4>;   // [N / 4], or anything when has_bias is 0
@group(0) @binding(4) var<storage, read>       added: array<elem4>;   // [rows, N / 4], or anything when added_count is 0
@group(0) @binding(5) var<storage, read_write> y:     array<elem4>;   // [B, M, N / 4]

const SLICES: u32 = 16u;

var<workgroup> sums: array<vec4<f32>, 256>;   // [slice][16 groups of four columns]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n4 = p.n / 4u;
    let column = wid.x * 16u + lane % 16u;
    let row = wid.z * p.m + wid.y;
    var at = select(0u, wid.z * p.k * n4, p.batched != 0u) + lane / 16u * n4 + column;
    var sum = vec4<f32>();
    if column < n4 {
        for (var k = lane / 16u; k < p.k; k += SLICES) {
            sum = fma(vec4<f32>(f32(a[row * p.k + k])), vec4<f32>(w[at]), sum);
            at += SLICES * n4;
        }
    }
    sums[lane] = sum;
    workgroupBarrier();
    if lane >= 16u || column >= n4 { return; }
    for (var s = 1u; s < SLICES; s++) { sum += sums[s * 16u + lane]; }
    y[row * n4 + column] = finished(sum, row, column, n4);
}
