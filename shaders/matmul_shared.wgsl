// matmul by tiles in workgroup memory (lib/tile_*).   K % 4 == 0, N % 4 == 0.
// Each invocation loads four values of a and four of w per step; tiles that hang over the edge are filled with zeros.
struct Params {
    batch: u32, m: u32, k: u32, n: u32, batched: u32, has_bias: u32,
    added_rows: u32, added_count: u32, function: u32, a: f32, b: f32,
}
@group(0) @binding(0) var<uniform>             p:     Params;
@group(0) @binding(1) var<storage, read>       a:     array<elem4>;   // [B, M, K / 4]
@group(0) @binding(2) var<storage, read>       w:     array<elem4>;   // [B or 1, K, N / 4]
@group(0) @binding(3) var<storage, read>       bias:  array<elem4>;   // [N / 4], or anything when has_bias is 0
@group(0) @binding(4) var<storage, read>       added: array<elem4>;   // [rows, N / 4], or anything when added_count is 0
@group(0) @binding(5) var<storage, read_write> y:     array<elem4>;   // [B, M, N / 4]

var<private> tile: vec3<u32>;   // the workgroup's

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    tile = wid;
    let n4 = p.n / 4u;
    let k4 = p.k / 4u;
    let row = wid.y * TILE_M + lane / (TILE_K / 4u);   // of a, and the first of its four columns
    let k_of_row = lane % (TILE_K / 4u);
    let column = wid.x * TILE_N4 + lane % TILE_N4;     // of w, in groups of four, and its row
    let k_of_column = lane / TILE_N4;
    let row_at = (wid.z * p.m + row) * k4;
    let column_at = select(0u, wid.z * p.k * n4, p.batched != 0u) + column;

    let steps = (p.k + TILE_K - 1u) / TILE_K;
    for (var s = 0u; s <= steps; s++) {
        var a_next = vec4<f32>();
        var w_next = vec4<f32>();
        if s < steps {
            let ka = s * (TILE_K / 4u) + k_of_row;
            let kw = s * TILE_K + k_of_column;
            if row < p.m && ka < k4 { a_next = vec4<f32>(a[row_at + ka]); }
            if column < n4 && kw < p.k { w_next = vec4<f32>(w[column_at + kw * n4]); }
        }
        if s > 0u { multiply_tile((s - 1u) % 2u, lane / LANES, lane % LANES); }
        if s < steps {
            store_left(s % 2u, lane / (TILE_K / 4u), k_of_row * 4u, a_next);
            store_right(s % 2u, k_of_column, lane % TILE_N4, w_next);
        }
        workgroupBarrier();
    }
    finish_tile(lane / LANES, lane % LANES);
}

// A row and a group of four columns of the workgroup's tile.
fn store_result(row: u32, column: u32, value: vec4<f32>) {
    let n4 = p.n / 4u;
    let m = tile.y * TILE_M + row;
    let col = tile.x * TILE_N4 + column;
    if m >= p.m || col >= n4 { return; }
    let at = tile.z * p.m + m;
    y[at * n4 + col] = finished(value, at, col, n4);
}
