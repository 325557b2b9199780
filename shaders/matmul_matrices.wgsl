// matmul by cooperative matrices (lib/matrices_*): f16 factors, f32 sums.   K % 4 == 0, N % 4 == 0.
// What hangs over an edge of the tiles is filled with zeros.
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

var<private> tile: vec3<u32>;    // the workgroup's
var<private> left_row: u32;      // of a, the first of four that this invocation brings
var<private> left_k4: u32;       // and its group of four along K within the step
var<private> first_k: u32;       // of the step
var<private> right_start: u32;   // of the workgroup's item in w

fn prepare(lane: u32) {
    left_row = tile.y * TILE_M + lane / 8u;
    left_k4 = lane % 8u;
    first_k = 0u;
    right_start = select(0u, tile.z * p.k * (p.n / 4u), p.batched != 0u);
}

fn steps() -> u32 { return (p.k + TILE_K - 1u) / TILE_K; }

fn advance() { first_k += TILE_K; }

fn left_value(i: u32, k4_on: u32) -> vec4<f16> {
    let row = left_row + i * (INVOCATIONS / 8u);
    let k4 = first_k / 4u + left_k4 + k4_on;
    if row >= p.m || k4 >= p.k / 4u { return vec4<f16>(); }
    return a[(tile.z * p.m + row) * (p.k / 4u) + k4];
}

fn right_values(k: u32, n4: u32) -> vec4<f16> {
    let column = tile.x * TILE_N4 + n4;
    if column >= p.n / 4u || first_k + k >= p.k { return vec4<f16>(); }
    return w[right_start + (first_k + k) * (p.n / 4u) + column];
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
