// repeat: y[m] = x[m mod N], along the first axis.   x: [N, ITEM]; y: [TIMES N, ITEM]
struct Params { len: u32, x_len: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [N, ITEM]
@group(0) @binding(2) var<storage, read_write> y: array<elem>;   // [TIMES N, ITEM]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    y[i] = x[i % p.x_len];
}
