// attention by tiles in workgroup memory (lib/tile_64): a workgroup makes 64 queries x 64 channels of one head, over blocks
// of 64 keys. The scores of a block stay in registers, 4 x 4 an invocation; the softmax is a running one.   D % 4 == 0.
// A head of more than 64 channels is cut among workgroups, and each of them makes the scores again.
struct Params { batch: u32, queries: u32, keys: u32, heads: u32, head_dim: u32, scale: f32, bias_rows: u32, bias_heads: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       q: array<elem4>;   // [N, Lq, heads D / 4]
@group(0) @binding(2) var<storage, read>       k: array<elem4>;   // [N, Lk, heads D / 4]
@group(0) @binding(3) var<storage, read>       v: array<elem4>;   // [N, Lk, heads D / 4]
@group(0) @binding(4) var<storage, read>       bias: array<elem>; // [W, heads or 1, Lq, Lk], or anything when bias_rows is 0
@group(0) @binding(5) var<storage, read_write> y: array<elem4>;   // [N, Lq, heads D / 4]

const BLOCK: u32 = 64u;
const LOWEST: f32 = -3.4028234e38;

// Four values of one row of the keys stand in one column of the right tile.
fn store_right_transposed(half: u32, column: u32, k0: u32, value: vec4<f32>) {
    let at = (half * TILE_K + k0) * TILE_N4 + column / 4u;
    let c = column % 4u;
    right[at][c] = value.x;
    right[at + TILE_N4][c] = value.y;
    right[at + 2u * TILE_N4][c] = value.z;
    right[at + 3u * TILE_N4][c] = value.w;
}

// The 16 column lanes' values for the four rows of row lane `ty`, in the left tile's memory. All must call.
fn exchange(ty: u32, tx: u32, value: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) { left[(ty * 4u + i) * 4u + tx / 4u][tx % 4u] = value[i]; }
    workgroupBarrier();
}

fn row_max(row: u32) -> f32 {
    let m = max(max(left[row * 4u], left[row * 4u + 1u]), max(left[row * 4u + 2u], left[row * 4u + 3u]));
    return max(max(m.x, m.y), max(m.z, m.w));
}

fn row_sum(row: u32) -> f32 {
    let s = (left[row * 4u] + left[row * 4u + 1u]) + (left[row * 4u + 2u] + left[row * 4u + 3u]);
    return (s.x + s.y) + (s.z + s.w);
}

// Scaled scores of a row with four keys from `key` on; keys past the end are as low as can be.
fn scored(row: vec4<f32>, key: u32, bias_at: u32) -> vec4<f32> {
    var score = row * p.scale;
    for (var j = 0u; j < 4u; j++) {
        if key + j >= p.keys { score[j] = LOWEST; }
        else if p.bias_rows != 0u { score[j] += f32(bias[bias_at + key + j]); }
    }
    return score;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n = wid.y / p.heads;
    let head = wid.y % p.heads;
    let d4 = p.head_dim / 4u;
    let width = p.heads * d4;
    let ty = lane / LANES;
    let tx = lane % LANES;
    let query = wid.x * BLOCK + lane / 4u;            // whose four channels this invocation loads
    let q_at = (n * p.queries + query) * width + head * d4;
    let k_at = n * p.keys * width + head * d4;
    let column = wid.z * TILE_N4 + tx;                // of the values and of y, in groups of four
    let first_row = wid.x * BLOCK + ty * 4u;
    let bias_at = ((n % max(p.bias_rows, 1u) * p.bias_heads + head % p.bias_heads) * p.queries + first_row) * p.keys;
    let last_row = p.queries - 1u - min(first_row, p.queries - 1u);   // rows past the end take the last row's bias
    let steps = (d4 + 3u) / 4u;

    var r0 = vec4<f32>(); var r1 = vec4<f32>(); var r2 = vec4<f32>(); var r3 = vec4<f32>();   // the result's rows
    var top = vec4<f32>(LOWEST);
    var total = vec4<f32>();                          // of this invocation's keys
    for (var first = 0u; first < p.keys; first += BLOCK) {
        sums[0] = vec4<f32>(); sums[1] = vec4<f32>(); sums[2] = vec4<f32>(); sums[3] = vec4<f32>();
        let key = first + lane / 4u;
        for (var s = 0u; s <= steps; s++) {
            var q_next = vec4<f32>();
            var k_next = vec4<f32>();
            let d = s * 4u + lane % 4u;
            if s < steps && d < d4 {
                if query < p.queries { q_next = vec4<f32>(q[q_at + d]); }
                if key < p.keys { k_next = vec4<f32>(k[k_at + key * width + d]); }
            }
            if s > 0u { multiply_tile((s - 1u) % 2u, ty, tx); }
            if s < steps {
                store_left(s % 2u, lane / 4u, lane % 4u * 4u, q_next);
                store_right_transposed(s % 2u, lane / 4u, lane % 4u * 4u, k_next);
            }
            workgroupBarrier();
        }

        let own = first + tx * 4u;                    // the first of this invocation's keys
        var s0 = scored(sums[0], own, bias_at);
        var s1 = scored(sums[1], own, bias_at + min(1u, last_row) * p.keys);
        var s2 = scored(sums[2], own, bias_at + min(2u, last_row) * p.keys);
        var s3 = scored(sums[3], own, bias_at + min(3u, last_row) * p.keys);
        exchange(ty, tx, vec4<f32>(max(max(s0.x, s0.y), max(s0.z, s0.w)), max(max(s1.x, s1.y), max(s1.z, s1.w)),
                                   max(max(s2.x, s2.y), max(s2.z, s2.w)), max(max(s3.x, s3.y), max(s3.z, s3.w))));
        let row = ty * 4u;
        let new_top = max(top, vec4<f32>(row_max(row), row_max(row + 1u), row_max(row + 2u), row_max(row + 3u)));
        let correction = exp(top - new_top);          // 0 for the first block
        top = new_top;
        let inside = vec4<u32>(own, own + 1u, own + 2u, own + 3u) < vec4<u32>(p.keys);
        s0 = select(vec4<f32>(), exp(s0 - top.x), inside);
        s1 = select(vec4<f32>(), exp(s1 - top.y), inside);
        s2 = select(vec4<f32>(), exp(s2 - top.z), inside);
        s3 = select(vec4<f32>(), exp(s3 - top.w), inside);
        let one = vec4<f32>(1.0);
        total = total * correction + vec4<f32>(dot(s0, one), dot(s1, one), dot(s2, one), dot(s3, one));
        sums[0] = r0 * correction.x; sums[1] = r1 * correction.y; sums[2] = r2 * correction.z; sums[3] = r3 * correction.w;
        workgroupBarrier();                           // the maxima were read

        for (var s = 0u; s <= 4u; s++) {
            var v_next = vec4<f32>();
            let value = first + s * TILE_K + lane / TILE_N4;
            if s < 4u && value < p.keys && column < d4 { v_next = vec4<f32>(v[k_at + value * width + column]); }
            if s > 0u { multiply_tile((s - 1u) % 2u, ty, tx); }
            if s < 4u {
                if tx / 4u == s {                     // these lanes hold the weights of the step's 16 keys
                    let at = (s % 2u * TILE_K + tx % 4u * 4u) * (TILE_M / 4u) + ty;
                    left[at] = vec4<f32>(s0.x, s1.x, s2.x, s3.x);
                    left[at + TILE_M / 4u] = vec4<f32>(s0.y, s1.y, s2.y, s3.y);
                    left[at + TILE_M / 2u] = vec4<f32>(s0.z, s1.z, s2.z, s3.z);
                    left[at + TILE_M / 4u * 3u] = vec4<f32>(s0.w, s1.w, s2.w, s3.w);
                }
                store_right(s % 2u, lane / TILE_N4, tx, v_next);
            }
            workgroupBarrier();
        }
        r0 = sums[0]; r1 = sums[1]; r2 = sums[2]; r3 = sums[3];
    }
    exchange(ty, tx, total);
    if column >= d4 { return; }
    let out = (n * p.queries + first_row) * width + head * d4 + column;
    let row = ty * 4u;
    if first_row < p.queries { y[out] = elem4(r0 / row_sum(row)); }
    if first_row + 1u < p.queries { y[out + width] = elem4(r1 / row_sum(row + 1u)); }
    if first_row + 2u < p.queries { y[out + 2u * width] = elem4(r2 / row_sum(row + 2u)); }
    if first_row + 3u < p.queries { y[out + 3u * width] = elem4(r3 / row_sum(row + 3u)); }
}
