// attention by cooperative matrices (lib/matrices): a workgroup makes 64 queries of one head, 16 a subgroup, over blocks of 64
// keys; f16 factors, f32 scores and sums.   D % 4 == 0, D <= 160, no bias.
// The result stays in the matrices, whose rows cannot be scaled. So the running softmax subtracts a row's *reference*: the
// maximum of its first block. Where a later score lies more than AHEAD above it, the reference rises and the result is scaled
// by way of workgroup memory. Weights are at most exp(AHEAD), which f16 holds, and the reference cancels out in the end.
struct Params { batch: u32, queries: u32, keys: u32, heads: u32, head_dim: u32, scale: f32, bias_rows: u32, bias_heads: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       q: array<elem4>;   // [N, Lq, heads D / 4]
@group(0) @binding(2) var<storage, read>       k: array<elem4>;   // [N, Lk, heads D / 4]
@group(0) @binding(3) var<storage, read>       v: array<elem4>;   // [N, Lk, heads D / 4]
@group(0) @binding(4) var<storage, read>       bias: array<elem>; // not read
@group(0) @binding(5) var<storage, read_write> y: array<elem4>;   // [N, Lq, heads D / 4]

override TILES: u32 = 3u;                    // of 16 channels: D rounded up
const BLOCK: u32 = 64u;                      // queries, and keys, of a step
const AHEAD: f32 = 6.0;
const LOWEST: f32 = -3.4028234e38;
const SCORE_STRIDE: u32 = 72u;               // rows are padded against bank conflicts
const IS_BEHIND: u32 = 65u;                  // in the padding: whether a reference must rise
const WEIGHT_STRIDE: u32 = 18u;              // in groups of four
override ROWS_STRIDE: u32 = TILES * 4u + 2u;    // likewise

var<workgroup> rows: array<vec4<f16>, BLOCK * ROWS_STRIDE>;   // queries, then keys and values in turn
var<workgroup> scores: array<f32, 4608>;              // [subgroup][16][SCORE_STRIDE]
var<workgroup> weights: array<vec4<f16>, 1152>;       // [subgroup][16][WEIGHT_STRIDE]

// Row `row` of the tile and channels from 4 d4 on, zero past the head's last one.
fn stage(lane: u32, i: u32, value: vec4<f16>) {
    let at = lane + i * 128u;
    rows[at / (TILES * 4u) * ROWS_STRIDE + at % (TILES * 4u)] = value;
}

fn queries_at(d: u32, row: u32) -> Left {
    return coopLoadT<Left>(&rows[row * ROWS_STRIDE + d * 4u], ROWS_STRIDE);
}

fn keys_at(d: u32, key: u32) -> Right {
    return coopLoad<Right>(&rows[key * ROWS_STRIDE + d * 4u], ROWS_STRIDE);
}

fn values_at(key: u32, d: u32) -> Right {
    return coopLoadT<Right>(&rows[key * ROWS_STRIDE + d * 4u], ROWS_STRIDE);
}

fn weights_at(first: u32, key: u32) -> Left {
    return coopLoadT<Left>(&weights[first + key / 4u], WEIGHT_STRIDE);
}

// Sums with each row times the invocation's `factor` for it, by way of the subgroup's part of `scores`.
fn scaled(sums: Sums, own: u32, factor: f32) -> Sums {
    coopStoreT(sums, &scores[own], SCORE_STRIDE);
    workgroupBarrier();
    let at = own + member / 2u * SCORE_STRIDE + member % 2u * 8u;
    for (var i = 0u; i < 8u; i++) { scores[at + i] *= factor; }
    workgroupBarrier();
    let result = coopLoadT<Sums>(&scores[own], SCORE_STRIDE);
    workgroupBarrier();
    return result;
}

// Stores 16 channels of a subgroup's queries from group of four `d4` on, times the invocation's `factor` for its row.
fn store(sums: Sums, own: u32, out: u32, is_row: bool, d4: u32, factor: f32) {
    coopStoreT(sums, &scores[own], SCORE_STRIDE);
    workgroupBarrier();
    let at = own + member / 2u * SCORE_STRIDE + member % 2u * 8u;
    let d = d4 + member % 2u * 2u;
    if is_row && d < p.head_dim / 4u { y[out + d] = elem4(factor * vec4<f32>(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u])); }
    if is_row && d + 1u < p.head_dim / 4u {
        y[out + d + 1u] = elem4(factor * vec4<f32>(scores[at + 4u], scores[at + 5u], scores[at + 6u], scores[at + 7u]));
    }
    workgroupBarrier();
}

// Four scores of the invocation's row; keys past the end are as low as can be.
fn scores_at(at: u32, key: u32) -> vec4<f32> {
    let s = vec4<f32>(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]) * p.scale;
    return select(vec4<f32>(LOWEST), s, vec4<u32>(key, key + 1u, key + 2u, key + 3u) < vec4<u32>(p.keys));
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    member = lane % 32u;
    let n = wid.y / p.heads;
    let d4 = p.head_dim / 4u;
    let width = p.heads * d4;
    let q_at = n * p.queries * width + wid.y % p.heads * d4;
    let k_at = n * p.keys * width + wid.y % p.heads * d4;
    let first_row = lane / 32u * 16u;                      // the subgroup's, within the tile
    let own = first_row * SCORE_STRIDE;
    let own_weights = first_row * WEIGHT_STRIDE;
    let row_at = own + member / 2u * SCORE_STRIDE;       // of the row that the invocation and its neighbour reduce
    let half = member % 2u * 4u;

    for (var i = 0u; i < TILES * 2u; i++) {
        let at = lane + i * 128u;
        let query = wid.x * BLOCK + at / (TILES * 4u);
        let d = at % (TILES * 4u);
        var value = vec4<f16>();
        if query < p.queries && d < d4 { value = q[q_at + query * width + d]; }
        stage(lane, i, value);
    }
    if lane == 0u { scores[IS_BEHIND] = 0.0; }
    workgroupBarrier();
    var q0: Left; var q1: Left; var q2: Left; var q3: Left; var q4: Left; var q5: Left; var q6: Left; var q7: Left; var q8: Left; var q9: Left;
    q0 = queries_at(0u, first_row);
    if TILES > 1u { q1 = queries_at(1u, first_row); }
    if TILES > 2u { q2 = queries_at(2u, first_row); }
    if TILES > 3u { q3 = queries_at(3u, first_row); }
    if TILES > 4u { q4 = queries_at(4u, first_row); }
    if TILES > 5u { q5 = queries_at(5u, first_row); }
    if TILES > 6u { q6 = queries_at(6u, first_row); }
    if TILES > 7u { q7 = queries_at(7u, first_row); }
    if TILES > 8u { q8 = queries_at(8u, first_row); }
    if TILES > 9u { q9 = queries_at(9u, first_row); }
    workgroupBarrier();
    var o0: Sums; var o1: Sums; var o2: Sums; var o3: Sums; var o4: Sums; var o5: Sums; var o6: Sums; var o7: Sums; var o8: Sums; var o9: Sums;
    var reference = LOWEST;
    var total = 0.0;                                       // of the invocation's half of the weights
    for (var first = 0u; first < p.keys; first += BLOCK) {
        for (var i = 0u; i < TILES * 2u; i++) {
            let at = lane + i * 128u;
            let key = first + at / (TILES * 4u);
            let d = at % (TILES * 4u);
            var value = vec4<f16>();
            if key < p.keys && d < d4 { value = k[k_at + key * width + d]; }
            stage(lane, i, value);
        }
        workgroupBarrier();
        for (var key = 0u; key < BLOCK; key += 32u) {
            var s0: Sums;
            var s1: Sums;
            s0 = coopMultiplyAdd(q0, keys_at(0u, key), s0); s1 = coopMultiplyAdd(q0, keys_at(0u, key + 16u), s1);
            if TILES > 1u { s0 = coopMultiplyAdd(q1, keys_at(1u, key), s0); s1 = coopMultiplyAdd(q1, keys_at(1u, key + 16u), s1); }
            if TILES > 2u { s0 = coopMultiplyAdd(q2, keys_at(2u, key), s0); s1 = coopMultiplyAdd(q2, keys_at(2u, key + 16u), s1); }
            if TILES > 3u { s0 = coopMultiplyAdd(q3, keys_at(3u, key), s0); s1 = coopMultiplyAdd(q3, keys_at(3u, key + 16u), s1); }
            if TILES > 4u { s0 = coopMultiplyAdd(q4, keys_at(4u, key), s0); s1 = coopMultiplyAdd(q4, keys_at(4u, key + 16u), s1); }
            if TILES > 5u { s0 = coopMultiplyAdd(q5, keys_at(5u, key), s0); s1 = coopMultiplyAdd(q5, keys_at(5u, key + 16u), s1); }
            if TILES > 6u { s0 = coopMultiplyAdd(q6, keys_at(6u, key), s0); s1 = coopMultiplyAdd(q6, keys_at(6u, key + 16u), s1); }
            if TILES > 7u { s0 = coopMultiplyAdd(q7, keys_at(7u, key), s0); s1 = coopMultiplyAdd(q7, keys_at(7u, key + 16u), s1); }
            if TILES > 8u { s0 = coopMultiplyAdd(q8, keys_at(8u, key), s0); s1 = coopMultiplyAdd(q8, keys_at(8u, key + 16u), s1); }
            if TILES > 9u { s0 = coopMultiplyAdd(q9, keys_at(9u, key), s0); s1 = coopMultiplyAdd(q9, keys_at(9u, key + 16u), s1); }
            coopStoreT(s0, &scores[own + key], SCORE_STRIDE);
            coopStoreT(s1, &scores[own + key + 16u], SCORE_STRIDE);
        }
        workgroupBarrier();

        for (var i = 0u; i < TILES * 2u; i++) {
            let at = lane + i * 128u;
            let key = first + at / (TILES * 4u);
            let d = at % (TILES * 4u);
            var value = vec4<f16>();
            if key < p.keys && d < d4 { value = v[k_at + key * width + d]; }
            stage(lane, i, value);
        }
        var most = vec4<f32>(LOWEST);
        for (var key = 0u; key < BLOCK; key += 4u) { most = max(most, scores_at(row_at + key, first + key)); }
        let highest = max(max(most.x, most.y), max(most.z, most.w));
        var factor = 1.0;
        if highest > reference + AHEAD || first == 0u {
            factor = exp(reference - highest);             // 0 for the first block
            reference = highest;
            if first > 0u { scores[IS_BEHIND] = 1.0; }
        }
        total *= factor;
        for (var key = half; key < BLOCK; key += 8u) {
            let inside = vec4<u32>(first + key, first + key + 1u, first + key + 2u, first + key + 3u) < vec4<u32>(p.keys);
            let e = select(vec4<f32>(), exp(scores_at(row_at + key, first + key) - reference), inside);
            let weight = vec4<f16>(e);
            total += dot(vec4<f32>(weight), vec4<f32>(1.0));   // of what is multiplied: rounding cancels out
            weights[own_weights + member / 2u * WEIGHT_STRIDE + key / 4u] = weight;
        }
        if workgroupUniformLoad(&scores[IS_BEHIND]) != 0.0 {
            o0 = scaled(o0, own, factor);
            if TILES > 1u { o1 = scaled(o1, own, factor); }
            if TILES > 2u { o2 = scaled(o2, own, factor); }
            if TILES > 3u { o3 = scaled(o3, own, factor); }
            if TILES > 4u { o4 = scaled(o4, own, factor); }
            if TILES > 5u { o5 = scaled(o5, own, factor); }
            if TILES > 6u { o6 = scaled(o6, own, factor); }
            if TILES > 7u { o7 = scaled(o7, own, factor); }
            if TILES > 8u { o8 = scaled(o8, own, factor); }
            if TILES > 9u { o9 = scaled(o9, own, factor); }
            if lane == 0u { scores[IS_BEHIND] = 0.0; }
        }
        for (var key = 0u; key < BLOCK; key += 16u) {
            let weight = weights_at(own_weights, key);
            o0 = coopMultiplyAdd(weight, values_at(key, 0u), o0);
            if TILES > 1u { o1 = coopMultiplyAdd(weight, values_at(key, 1u), o1); }
            if TILES > 2u { o2 = coopMultiplyAdd(weight, values_at(key, 2u), o2); }
            if TILES > 3u { o3 = coopMultiplyAdd(weight, values_at(key, 3u), o3); }
            if TILES > 4u { o4 = coopMultiplyAdd(weight, values_at(key, 4u), o4); }
            if TILES > 5u { o5 = coopMultiplyAdd(weight, values_at(key, 5u), o5); }
            if TILES > 6u { o6 = coopMultiplyAdd(weight, values_at(key, 6u), o6); }
            if TILES > 7u { o7 = coopMultiplyAdd(weight, values_at(key, 7u), o7); }
            if TILES > 8u { o8 = coopMultiplyAdd(weight, values_at(key, 8u), o8); }
            if TILES > 9u { o9 = coopMultiplyAdd(weight, values_at(key, 9u), o9); }
        }
        workgroupBarrier();
    }
    scores[row_at + BLOCK + half] = total;                 // in the padding
    workgroupBarrier();
    let over = 1.0 / (scores[row_at + BLOCK] + scores[row_at + BLOCK + 4u]);
    let query = wid.x * BLOCK + first_row + member / 2u;
    let out = q_at + query * width;
    let is_row = query < p.queries;
    store(o0, own, out, is_row, 0u, over);
    if TILES > 1u { store(o1, own, out, is_row, 4u, over); }
    if TILES > 2u { store(o2, own, out, is_row, 8u, over); }
    if TILES > 3u { store(o3, own, out, is_row, 12u, over); }
    if TILES > 4u { store(o4, own, out, is_row, 16u, over); }
    if TILES > 5u { store(o5, own, out, is_row, 20u, over); }
    if TILES > 6u { store(o6, own, out, is_row, 24u, over); }
    if TILES > 7u { store(o7, own, out, is_row, 28u, over); }
    if TILES > 8u { store(o8, own, out, is_row, 32u, over); }
    if TILES > 9u { store(o9, own, out, is_row, 36u, over); }
}
