// matmul, register tile of 8 rows x 4 columns an invocation; no workgroup memory. The members of a subgroup each bring one column of a for the
// 8 rows, and take the others' from their registers.   N % 4 == 0.
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

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, own: Own) {
    let n4 = p.n / 4u;
    let col = wid.y * WG + own.lane;
    let m0 = wid.x * 8u;
    let row0 = wid.z * p.m + m0;
    // Columns past the end repeat the last one and are not stored: every member of a subgroup shuffles.
    let right = select(0u, wid.z * p.k * n4, p.batched != 0u) + min(col, n4 - 1u);
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
    let members = min(own.size, WG);
    for (var k0 = 0u; k0 < p.k; k0 += members) {
        let k = min(k0 + own.member, p.k - 1u);
        let a0 = f32(a[r0 + k]); let a1 = f32(a[r1 + k]); let a2 = f32(a[r2 + k]); let a3 = f32(a[r3 + k]);
        let a4 = f32(a[r4 + k]); let a5 = f32(a[r5 + k]); let a6 = f32(a[r6 + k]); let a7 = f32(a[r7 + k]);
        let count = min(members, p.k - k0);
        for (var j = 0u; j < count; j++) {
            let v = vec4<f32>(w[right + (k0 + j) * n4]);
            s0 += subgroupShuffle(a0, j) * v;
            s1 += subgroupShuffle(a1, j) * v;
            s2 += subgroupShuffle(a2, j) * v;
            s3 += subgroupShuffle(a3, j) * v;
            s4 += subgroupShuffle(a4, j) * v;
            s5 += subgroupShuffle(a5, j) * v;
            s6 += subgroupShuffle(a6, j) * v;
            s7 += subgroupShuffle(a7, j) * v;
        }
    }
    if col >= n4 { return; }
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
