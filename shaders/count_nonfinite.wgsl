// count_nonfinite: the number of values of x that are infinite or NaN.   x: [n]; y: [1]
// By the exponent's bits: x != x and comparisons with infinity are folded away under fast-math.
// One workgroup, so that no atomics are needed.
struct Params { len: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [n]
@group(0) @binding(2) var<storage, read_write> y: array<u32>;    // [1]

override WG: u32 = 256u;

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) lane: u32) {
    var count = 0u;
    for (var i = lane; i < p.len; i += WG) {
        let exponent = bitcast<u32>(f32(x[i])) & 0x7f800000u;
        count += select(0u, 1u, exponent == 0x7f800000u);
    }
    let sum = tree_sum(lane, count);
    if lane == 0u { y[0] = sum; }
}
