// layer_norm, rows in registers: x is read once and y written once.   C % 4 == 0, C <= 32 LANES
// WG / LANES rows per workgroup. An invocation holds PIECES groups of four channels, LANES groups apart, by constant indices: an
// array that is indexed by a variable leaves the registers. Values are held less the row's first one, so that a mean of many
// deviations costs no digits in whatever order it is summed; the variance is taken about the mean.
struct Params { rows: u32, channels: u32, eps: f32 }
@group(0) @binding(0) var<uniform>             p:      Params;
@group(0) @binding(1) var<storage, read>       x:      array<elem4>;   // [R, C / 4]
@group(0) @binding(2) var<storage, read>       weight: array<elem4>;   // [C / 4]
@group(0) @binding(3) var<storage, read>       bias:   array<elem4>;   // [C / 4]
@group(0) @binding(4) var<storage, read_write> y:      array<elem4>;   // [R, C / 4]

override WG: u32 = 64u;
override PIECES: u32 = 8u;

// Zero beyond the row. No branch: a lane's loads are under way together.
fn piece(base: u32, c: u32, first: f32) -> vec4<f32> {
    let c4 = p.channels / 4u;
    return select(vec4<f32>(), vec4<f32>(x[base + min(c, c4 - 1u)]) - first, c < c4);
}

fn about(v: vec4<f32>, mean: f32, c: u32) -> vec4<f32> {
    return select(vec4<f32>(), v - mean, c < p.channels / 4u);
}

fn store(base: u32, c: u32, v: vec4<f32>) {
    if c < p.channels / 4u { y[base + c] = elem4(v * vec4<f32>(weight[c]) + vec4<f32>(bias[c])); }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, own: Own) {
    let row = (wid.x + wid.y * groups.x) * (WG / LANES) + own.lane / LANES;
    let base = min(row, p.rows - 1u) * (p.channels / 4u);   // surplus slices of the grid repeat the last row: barriers stay uniform
    let c = own.lane % LANES;

    let first = f32(x[base].x);
    var v0 = piece(base, c, first);
    var v1 = vec4<f32>();
    var v2 = vec4<f32>();
    var v3 = vec4<f32>();
    var v4 = vec4<f32>();
    var v5 = vec4<f32>();
    var v6 = vec4<f32>();
    var v7 = vec4<f32>();
    if PIECES > 1u { v1 = piece(base, c + LANES, first); }
    if PIECES > 2u { v2 = piece(base, c + 2u * LANES, first); }
    if PIECES > 3u { v3 = piece(base, c + 3u * LANES, first); }
    if PIECES > 4u { v4 = piece(base, c + 4u * LANES, first); }
    if PIECES > 5u { v5 = piece(base, c + 5u * LANES, first); }
    if PIECES > 6u { v6 = piece(base, c + 6u * LANES, first); }
    if PIECES > 7u { v7 = piece(base, c + 7u * LANES, first); }
    let sum = ((v0 + v1) + (v2 + v3)) + ((v4 + v5) + (v6 + v7));
    let mean = tree_sum(own, (sum.x + sum.y) + (sum.z + sum.w)) / f32(p.channels);
    v0 = about(v0, mean, c);
    if PIECES > 1u { v1 = about(v1, mean, c + LANES); }
    if PIECES > 2u { v2 = about(v2, mean, c + 2u * LANES); }
    if PIECES > 3u { v3 = about(v3, mean, c + 3u * LANES); }
    if PIECES > 4u { v4 = about(v4, mean, c + 4u * LANES); }
    if PIECES > 5u { v5 = about(v5, mean, c + 5u * LANES); }
    if PIECES > 6u { v6 = about(v6, mean, c + 6u * LANES); }
    if PIECES > 7u { v7 = about(v7, mean, c + 7u * LANES); }
    let square = ((v0 * v0 + v1 * v1) + (v2 * v2 + v3 * v3)) + ((v4 * v4 + v5 * v5) + (v6 * v6 + v7 * v7));
    let inv = 1.0 / sqrt(tree_sum(own, (square.x + square.y) + (square.z + square.w)) / f32(p.channels) + p.eps);
    if row >= p.rows { return; }
    store(base, c, v0 * inv);
    if PIECES > 1u { store(base, c + LANES, v1 * inv); }
    if PIECES > 2u { store(base, c + 2u * LANES, v2 * inv); }
    if PIECES > 3u { store(base, c + 3u * LANES, v3 * inv); }
    if PIECES > 4u { store(base, c + 4u * LANES, v4 * inv); }
    if PIECES > 5u { store(base, c + 5u * LANES, v5 * inv); }
    if PIECES > 6u { store(base, c + 6u * LANES, v6 * inv); }
    if PIECES > 7u { store(base, c + 7u * LANES, v7 * inv); }
}
