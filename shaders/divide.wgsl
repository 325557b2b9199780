// divide: y[n, ...] = x[n, ...] / d[n]; `item` elements share a divisor.   x, y: [N, ...]   d: [N] or [1]
struct Params { len: u32, item: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [N, ...]
@group(0) @binding(2) var<storage, read>       d: array<elem>;   // [N] or [1]
@group(0) @binding(3) var<storage, read_write> y: array<elem>;   // [N, ...]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    y[i] = elem(f32(x[i]) / f32(d[i / p.item]));
}
