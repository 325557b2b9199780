// convert: the same values in another storage type; here f32 to f16, rounded to nearest.   x, y: [n]
enable f16;
struct Params { len: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<f32>;   // [n]
@group(0) @binding(2) var<storage, read_write> y: array<f16>;   // [n]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    y[i] = f16(x[i]);
}
