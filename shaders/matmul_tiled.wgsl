// matmul, register tile: an invocation makes 8 rows x 4 columns; no workgroup memory.
// Rows come from the workgroup id, so loads of a are the same for the whole workgroup; columns come from the lane,
// so loads of w lie side by side.   N % 4 == 0.
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

override WG: u32 = 16u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n4 = p.n / 4u;
    let col = wid.y * WG + lane;
    if col >= n4 { return; }
    let m0 = wid.x * 8u;
    let row0 = wid.z * p.m + m0;
    let right = select(0u, wid.z * p.k * n4, p.batched != 0u) + col;
    let last = p.m - 1u - m0;                // rows past the end repeat the last one and are not stored
    let r0 = row0 * p.k;
    let r1 = (row0 + min(1u, last)) * p.k;
    let r2 = (row0 + min(2u, last)) * p.k;
    let r3 = (row0 + min(3u, last)) * p.k;
    let r4 = (row0 + min(4u, last)) * p.k;
    let r5 = (row0 + min(5u, last)) * p.k;
    let r6 = (row0 + min(6u, last)) * p.k;
    let r7 = (row0 + min(7u, last)) * p.k;
    var s0 = vec4<f32>(); var s1 = vec4<f32>(); var s2 = vec4<f32>(); var s3 = vec4<f32>();
    var s4 = vec4<f32>(); var s5 = vec4<f32>(); var s6 = vec4<f32>(); var s7 = vec4<f32>();
    for (var k = 0u; k < p.k; k++) {
        let v = vec4<f32>(w[right + k * n4]);
        s0 += f32(a[r0 + k]) * v;
        s1 += f32(a[r1 + k]) * v;
        s2 += f32(a[r2 + k]) * v;
        s3 += f32(a[r3 + k]) * v;
        s4 += f32(a[r4 + k]) * v;
        s5 += f32(a[r5 + k]) * v;
        s6 += f32(a[r6 + k]) * v;
        s7 += f32(a[r7 + k]) * v;
    }
    let out = row0 * n4 + col;
    y[out] = finished(s0, row0, col, n4);
    if last >= 1u { y[out + n4] = finished(s1, row0 + 1u, col, n4); }
    if last >= 2u { y[out + 2u * n4] = finished(s2, row0 + 2u, col, n4); }
    if last >= 3u { y[out + 3u * n4] = finished(s3, row0 + 3u, col, n4); }
    if last >= 4u { y[out + 4u * n4] = finished(s4, row0 + 4u, col, n4); }
    if last >= 5u { y[out + 5u * n4] = finished(s5, row0 + 5u, col, n4); }
    if last >= 6u { y[out + 6u * n4] = finished(s6, row0 + 6u, col, n4); }
    if last >= 7u { y[out + 7u * n4] = finished(s7, row0 + 7u, col, n4); }
}
