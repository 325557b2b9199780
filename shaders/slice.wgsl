// slice: y[r, c] = x[r, start + c].   x: [R, width]; y: [R, length]
struct Params { len: u32, width: u32, start: u32, length: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [R, width]
@group(0) @binding(2) var<storage, read_write> y: array<elem>;   // [R, length]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    y[i] = x[i / p.length * p.width + p.start + i % p.length];
}
