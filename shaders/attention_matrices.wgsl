// attention by cooperative matrices (lib/matrices): a workgroup makes 64 queries of one head, 16 a subgroup, over blocks of 64
// keys; f16 factors, f32 scores and sums.   D % 4 == 0, D <= 160, no bias.
// The result stays in the matrices, whose rows cannot be scaled. So the running softmax subtracts a row's *reference*: the
// maximum of its first block. Where a later score lies more than AHEAD above it, the reference rises and the result is scaled
// by way of workgroup memory. Weights are at most exp(AHEAD), which f16 holds, and the reference cancels out in the end.
// Keys and values are on their way into registers while the block before them is multiplied.
struct Params { batch: u32, queries: u32, keys: u32, heads: u32, head_dim: u32, scale: f32, bias_rows: u32, bias_heads: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       q: array<elem4>;   // [N, Lq, heads D / 4]
@group(0) @binding(2) var<storage, read>       k: array<elem4>;   // [N, Lk, heads D / 4]
@group(0) @binding(3) var<storage, read>       v: array<elem4>;   // [N, Lk, heads D / 4]
@group(0) @binding(4) var<storage, read>       bias: array<elem>; // not read
@group(0) @binding(5) var<storage, read_write> y: array<elem4>;   // [N, Lq, heads D / 4]

override TILES: u32 = 3u;                    // of 16 channels: D rounded up
override ROWS_STRIDE: u32 = TILES * 4u + 2u; // in groups of four: rows are padded against bank conflicts
const BLOCK: u32 = 64u;                      // queries, and keys, of a step
const AHEAD: f32 = 6.0;
const LOWEST: f32 = -3.4028234e38;
const SCORE_STRIDE: u32 = 18u;               // in groups of four
const IS_BEHIND: u32 = 17u;                  // in the padding: whether a reference must rise
const WEIGHT_STRIDE: u32 = 18u;              // in groups of four

var<workgroup> rows: array<vec4<f16>, BLOCK * ROWS_STRIDE>;   // queries, then keys and values in turn
var<workgroup> scores: array<vec4<f32>, 1152>;        // [subgroup][16][SCORE_STRIDE]
var<workgroup> weights: array<vec4<f16>, 1152>;       // [subgroup][16][WEIGHT_STRIDE]

// Value `i` of a tile of 64 rows: the key and the group of four channels that this invocation brings.
fn row_of(lane: u32, i: u32) -> vec2<u32> {
    let at = lane + i * 128u;
    return vec2<u32>(at / (TILES * 4u), at % (TILES * 4u));
}

fn key_value(at: u32, width: u32, first: u32, r: vec2<u32>) -> vec4<f16> {
    if first + r.x >= p.keys || r.y >= p.head_dim / 4u { return vec4<f16>(); }
    return k[at + (first + r.x) * width + r.y];
}

fn value_value(at: u32, width: u32, first: u32, r: vec2<u32>) -> vec4<f16> {
    if first + r.x >= p.keys || r.y >= p.head_dim / 4u { return vec4<f16>(); }
    return v[at + (first + r.x) * width + r.y];
}

fn stage(r: vec2<u32>, value: vec4<f16>) { rows[r.x * ROWS_STRIDE + r.y] = value; }

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
    let at = own + member / 2u * SCORE_STRIDE + member % 2u * 2u;
    scores[at] *= factor;
    scores[at + 1u] *= factor;
    workgroupBarrier();
    let result = coopLoadT<Sums>(&scores[own], SCORE_STRIDE);
    workgroupBarrier();
    return result;
}

// Stores 16 channels of a subgroup's queries from group of four `first_d4` on, times the invocation's `factor` for its row.
fn store(sums: Sums, own: u32, out: u32, is_row: bool, first_d4: u32, factor: f32) {
    coopStoreT(sums, &scores[own], SCORE_STRIDE);
    workgroupBarrier();
    let at = own + member / 2u * SCORE_STRIDE + member % 2u * 2u;
    let d = first_d4 + member % 2u * 2u;
    if is_row && d < p.head_dim / 4u { y[out + d] = elem4(factor * scores[at]); }
    if is_row && d + 1u < p.head_dim / 4u { y[out + d + 1u] = elem4(factor * scores[at + 1u]); }
    workgroupBarrier();
}

fn inside(key: u32) -> vec4<bool> { return vec4<u32>(key, key + 1u, key + 2u, key + 3u) < vec4<u32>(p.keys); }

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
    let row_at = own + member / 2u * SCORE_STRIDE;         // of the row that the invocation and its neighbour reduce
    let half = member % 2u;

    for (var i = 0u; i < TILES * 2u; i++) {
        let r = row_of(lane, i);
        let query = wid.x * BLOCK + r.x;
        var value = vec4<f16>();
        if query < p.queries && r.y < d4 { value = q[q_at + query * width + r.y]; }
        stage(r, value);
    }
    if lane == 0u { scores[IS_BEHIND] = vec4<f32>(); }
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
    var n0: vec4<f16>; var n1: vec4<f16>; var n2: vec4<f16>; var n3: vec4<f16>; var n4: vec4<f16>; var n5: vec4<f16>; var n6: vec4<f16>; var n7: vec4<f16>; var n8: vec4<f16>; var n9: vec4<f16>;   // what is on its way
    var n10: vec4<f16>; var n11: vec4<f16>; var n12: vec4<f16>; var n13: vec4<f16>; var n14: vec4<f16>; var n15: vec4<f16>; var n16: vec4<f16>; var n17: vec4<f16>; var n18: vec4<f16>; var n19: vec4<f16>;
    n0 = key_value(k_at, width, 0u, row_of(lane, 0u)); n1 = key_value(k_at, width, 0u, row_of(lane, 1u));
    if TILES > 1u { n2 = key_value(k_at, width, 0u, row_of(lane, 2u)); n3 = key_value(k_at, width, 0u, row_of(lane, 3u)); }
    if TILES > 2u { n4 = key_value(k_at, width, 0u, row_of(lane, 4u)); n5 = key_value(k_at, width, 0u, row_of(lane, 5u)); }
    if TILES > 3u { n6 = key_value(k_at, width, 0u, row_of(lane, 6u)); n7 = key_value(k_at, width, 0u, row_of(lane, 7u)); }
    if TILES > 4u { n8 = key_value(k_at, width, 0u, row_of(lane, 8u)); n9 = key_value(k_at, width, 0u, row_of(lane, 9u)); }
    if TILES > 5u { n10 = key_value(k_at, width, 0u, row_of(lane, 10u)); n11 = key_value(k_at, width, 0u, row_of(lane, 11u)); }
    if TILES > 6u { n12 = key_value(k_at, width, 0u, row_of(lane, 12u)); n13 = key_value(k_at, width, 0u, row_of(lane, 13u)); }
    if TILES > 7u { n14 = key_value(k_at, width, 0u, row_of(lane, 14u)); n15 = key_value(k_at, width, 0u, row_of(lane, 15u)); }
    if TILES > 8u { n16 = key_value(k_at, width, 0u, row_of(lane, 16u)); n17 = key_value(k_at, width, 0u, row_of(lane, 17u)); }
    if TILES > 9u { n18 = key_value(k_at, width, 0u, row_of(lane, 18u)); n19 = key_value(k_at, width, 0u, row_of(lane, 19u)); }
    var reference = LOWEST;
    var total = 0.0;                                       // of the invocation's half of the weights
    for (var first = 0u; first < p.keys; first += BLOCK) {
        stage(row_of(lane, 0u), n0); stage(row_of(lane, 1u), n1);
        if TILES > 1u { stage(row_of(lane, 2u), n2); stage(row_of(lane, 3u), n3); }
        if TILES > 2u { stage(row_of(lane, 4u), n4); stage(row_of(lane, 5u), n5); }
        if TILES > 3u { stage(row_of(lane, 6u), n6); stage(row_of(lane, 7u), n7); }
        if TILES > 4u { stage(row_of(lane, 8u), n8); stage(row_of(lane, 9u), n9); }
        if TILES > 5u { stage(row_of(lane, 10u), n10); stage(row_of(lane, 11u), n11); }
        if TILES > 6u { stage(row_of(lane, 12u), n12); stage(row_of(lane, 13u), n13); }
        if TILES > 7u { stage(row_of(lane, 14u), n14); stage(row_of(lane, 15u), n15); }
        if TILES > 8u { stage(row_of(lane, 16u), n16); stage(row_of(lane, 17u), n17); }
        if TILES > 9u { stage(row_of(lane, 18u), n18); stage(row_of(lane, 19u), n19); }
        workgroupBarrier();
        n0 = value_value(k_at, width, first, row_of(lane, 0u)); n1 = value_value(k_at, width, first, row_of(lane, 1u));
        if TILES > 1u { n2 = value_value(k_at, width, first, row_of(lane, 2u)); n3 = value_value(k_at, width, first, row_of(lane, 3u)); }
        if TILES > 2u { n4 = value_value(k_at, width, first, row_of(lane, 4u)); n5 = value_value(k_at, width, first, row_of(lane, 5u)); }
        if TILES > 3u { n6 = value_value(k_at, width, first, row_of(lane, 6u)); n7 = value_value(k_at, width, first, row_of(lane, 7u)); }
        if TILES > 4u { n8 = value_value(k_at, width, first, row_of(lane, 8u)); n9 = value_value(k_at, width, first, row_of(lane, 9u)); }
        if TILES > 5u { n10 = value_value(k_at, width, first, row_of(lane, 10u)); n11 = value_value(k_at, width, first, row_of(lane, 11u)); }
        if TILES > 6u { n12 = value_value(k_at, width, first, row_of(lane, 12u)); n13 = value_value(k_at, width, first, row_of(lane, 13u)); }
        if TILES > 7u { n14 = value_value(k_at, width, first, row_of(lane, 14u)); n15 = value_value(k_at, width, first, row_of(lane, 15u)); }
        if TILES > 8u { n16 = value_value(k_at, width, first, row_of(lane, 16u)); n17 = value_value(k_at, width, first, row_of(lane, 17u)); }
        if TILES > 9u { n18 = value_value(k_at, width, first, row_of(lane, 18u)); n19 = value_value(k_at, width, first, row_of(lane, 19u)); }
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
            coopStoreT(s0, &scores[own + key / 4u], SCORE_STRIDE);
            coopStoreT(s1, &scores[own + key / 4u + 4u], SCORE_STRIDE);
        }
        workgroupBarrier();

        stage(row_of(lane, 0u), n0); stage(row_of(lane, 1u), n1);
        if TILES > 1u { stage(row_of(lane, 2u), n2); stage(row_of(lane, 3u), n3); }
        if TILES > 2u { stage(row_of(lane, 4u), n4); stage(row_of(lane, 5u), n5); }
        if TILES > 3u { stage(row_of(lane, 6u), n6); stage(row_of(lane, 7u), n7); }
        if TILES > 4u { stage(row_of(lane, 8u), n8); stage(row_of(lane, 9u), n9); }
        if TILES > 5u { stage(row_of(lane, 10u), n10); stage(row_of(lane, 11u), n11); }
        if TILES > 6u { stage(row_of(lane, 12u), n12); stage(row_of(lane, 13u), n13); }
        if TILES > 7u { stage(row_of(lane, 14u), n14); stage(row_of(lane, 15u), n15); }
        if TILES > 8u { stage(row_of(lane, 16u), n16); stage(row_of(lane, 17u), n17); }
        if TILES > 9u { stage(row_of(lane, 18u), n18); stage(row_of(lane, 19u), n19); }
        var most = vec4<f32>(LOWEST);
        for (var i = 0u; i < 16u; i++) { most = max(most, select(vec4<f32>(LOWEST), scores[row_at + i] * p.scale, inside(first + i * 4u))); }
        let highest = max(max(most.x, most.y), max(most.z, most.w));
        var factor = 1.0;
        if highest > reference + AHEAD || first == 0u {
            factor = exp(reference - highest);             // 0 for the first block
            reference = highest;
            if first > 0u { scores[IS_BEHIND] = vec4<f32>(1.0); }
        }
        total *= factor;
        for (var i = half; i < 16u; i += 2u) {
            let e = exp(scores[row_at + i] * p.scale - reference);
            let weight = select(vec4<f16>(), vec4<f16>(e), inside(first + i * 4u));
            total += dot(vec4<f32>(weight), vec4<f32>(1.0));   // of what is multiplied: rounding cancels out
            weights[own_weights + member / 2u * WEIGHT_STRIDE + i] = weight;
        }
        if workgroupUniformLoad(&scores[IS_BEHIND]).x != 0.0 {
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
            if lane == 0u { scores[IS_BEHIND] = vec4<f32>(); }
        }
        n0 = key_value(k_at, width, first + BLOCK, row_of(lane, 0u)); n1 = key_value(k_at, width, first + BLOCK, row_of(lane, 1u));
        if TILES > 1u { n2 = key_value(k_at, width, first + BLOCK, row_of(lane, 2u)); n3 = key_value(k_at, width, first + BLOCK, row_of(lane, 3u)); }
        if TILES > 2u { n4 = key_value(k_at, width, first + BLOCK, row_of(lane, 4u)); n5 = key_value(k_at, width, first + BLOCK, row_of(lane, 5u)); }
        if TILES > 3u { n6 = key_value(k_at, width, first + BLOCK, row_of(lane, 6u)); n7 = key_value(k_at, width, first + BLOCK, row_of(lane, 7u)); }
        if TILES > 4u { n8 = key_value(k_at, width, first + BLOCK, row_of(lane, 8u)); n9 = key_value(k_at, width, first + BLOCK, row_of(lane, 9u)); }
        if TILES > 5u { n10 = key_value(k_at, width, first + BLOCK, row_of(lane, 10u)); n11 = key_value(k_at, width, first + BLOCK, row_of(lane, 11u)); }
        if TILES > 6u { n12 = key_value(k_at, width, first + BLOCK, row_of(lane, 12u)); n13 = key_value(k_at, width, first + BLOCK, row_of(lane, 13u)); }
        if TILES > 7u { n14 = key_value(k_at, width, first + BLOCK, row_of(lane, 14u)); n15 = key_value(k_at, width, first + BLOCK, row_of(lane, 15u)); }
        if TILES > 8u { n16 = key_value(k_at, width, first + BLOCK, row_of(lane, 16u)); n17 = key_value(k_at, width, first + BLOCK, row_of(lane, 17u)); }
        if TILES > 9u { n18 = key_value(k_at, width, first + BLOCK, row_of(lane, 18u)); n19 = key_value(k_at, width, first + BLOCK, row_of(lane, 19u)); }
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
    if half == 0u { scores[row_at + 16u].x = total; } else { scores[row_at + 16u].y = total; }   // in the padding
    workgroupBarrier();
    let over = 1.0 / (scores[row_at + 16u].x + scores[row_at + 16u].y);
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
