// nearest_row: y[r] = table[argmin over v of |x[r] - table[v]|], the first of equally near rows.   x, y: [R, D]; table: [V, D]
struct Params { len: u32, rows: u32, channels: u32 }
@group(0) @binding(0) var<uniform>             p:     Params;
@group(0) @binding(1) var<storage, read>       x:     array<elem>;   // [R, D]
@group(0) @binding(2) var<storage, read>       table: array<elem>;   // [V, D]
@group(0) @binding(3) var<storage, read_write> y:     array<elem>;   // [R, D]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let r = linear_index(gid, groups, WG);
    if r >= p.len { return; }
    let at = r * p.channels;
    var nearest = 0u;
    var least = 0.0;
    for (var v = 0u; v < p.rows; v += 1u) {
        var distance = 0.0;
        for (var c = 0u; c < p.channels; c += 1u) {
            let d = f32(x[at + c]) - f32(table[v * p.channels + c]);
            distance += d * d;
        }
        if v == 0u || distance < least {
            least = distance;
            nearest = v;
        }
    }
    var finite = true;
    for (var c = 0u; c < p.channels; c += 1u) {
        finite = finite && (bitcast<u32>(f32(x[at + c])) & 0x7f800000u) != 0x7f800000u;
    }
    for (var c = 0u; c < p.channels; c += 1u) {
        let value = bitcast<u32>(f32(table[nearest * p.channels + c]));
        y[at + c] = elem(bitcast<f32>(select(0x7fc00000u, value, finite)));
    }
}
