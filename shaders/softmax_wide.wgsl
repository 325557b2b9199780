// softmax, rows in registers: x is read once, each exponential made once and y written once.   C % 4 == 0, C <= 32 LANES
// WG / LANES rows per workgroup. An invocation holds PIECES groups of four values, LANES groups apart, by constant indices: an
// array that is indexed by a variable leaves the registers.
struct Params { rows: u32, channels: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem4>;   // [R, C / 4]
@group(0) @binding(2) var<storage, read_write> y: array<elem4>;   // [R, C / 4]

override WG: u32 = 64u;
override PIECES: u32 = 8u;

// The row's last group beyond the row, which changes no maximum. No branch: a lane's loads are under way together.
fn piece(base: u32, c: u32) -> vec4<f32> {
    return vec4<f32>(x[base + min(c, p.channels / 4u - 1u)]);
}

fn powers(v: vec4<f32>, shift: f32, c: u32) -> vec4<f32> {
    return select(vec4<f32>(), exp(v - shift), c < p.channels / 4u);
}

fn store(base: u32, c: u32, v: vec4<f32>) {
    if c < p.channels / 4u { y[base + c] = elem4(v); }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, own: Own) {
    let row = (wid.x + wid.y * groups.x) * (WG / LANES) + own.lane / LANES;
    let base = min(row, p.rows - 1u) * (p.channels / 4u);   // surplus slices of the grid repeat the last row: barriers stay uniform
    let c = own.lane % LANES;

    var v0 = piece(base, c);
    var v1 = v0;
    var v2 = v0;
    var v3 = v0;
    var v4 = v0;
    var v5 = v0;
    var v6 = v0;
    var v7 = v0;
    if PIECES > 1u { v1 = piece(base, c + LANES); }
    if PIECES > 2u { v2 = piece(base, c + 2u * LANES); }
    if PIECES > 3u { v3 = piece(base, c + 3u * LANES); }
    if PIECES > 4u { v4 = piece(base, c + 4u * LANES); }
    if PIECES > 5u { v5 = piece(base, c + 5u * LANES); }
    if PIECES > 6u { v6 = piece(base, c + 6u * LANES); }
    if PIECES > 7u { v7 = piece(base, c + 7u * LANES); }
    let most = max(max(max(v0, v1), max(v2, v3)), max(max(v4, v5), max(v6, v7)));
    let shift = tree_max(own, max(max(most.x, most.y), max(most.z, most.w)));
    v0 = powers(v0, shift, c);
    var sum = v0;
    if PIECES > 1u { v1 = powers(v1, shift, c + LANES); sum += v1; }
    if PIECES > 2u { v2 = powers(v2, shift, c + 2u * LANES); sum += v2; }
    if PIECES > 3u { v3 = powers(v3, shift, c + 3u * LANES); sum += v3; }
    if PIECES > 4u { v4 = powers(v4, shift, c + 4u * LANES); sum += v4; }
    if PIECES > 5u { v5 = powers(v5, shift, c + 5u * LANES); sum += v5; }
    if PIECES > 6u { v6 = powers(v6, shift, c + 6u * LANES); sum += v6; }
    if PIECES > 7u { v7 = powers(v7, shift, c + 7u * LANES); sum += v7; }
    let total = tree_sum(own, (sum.x + sum.y) + (sum.z + sum.w));
    if row >= p.rows { return; }
    store(base, c, v0 / total);
    if PIECES > 1u { store(base, c + LANES, v1 / total); }
    if PIECES > 2u { store(base, c + 2u * LANES, v2 / total); }
    if PIECES > 3u { store(base, c + 3u * LANES, v3 / total); }
    if PIECES > 4u { store(base, c + 4u * LANES, v4 / total); }
    if PIECES > 5u { store(base, c + 5u * LANES, v5 / total); }
    if PIECES > 6u { store(base, c + 6u * LANES, v6 / total); }
    if PIECES > 7u { store(base, c + 7u * LANES, v7 / total); }
}
