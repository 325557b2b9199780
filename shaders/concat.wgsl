// concat: y[r] = (a[r], b[r]), along the last axis.   a: [R, A]; b: [R, B]; y: [R, A + B]
struct Params { len: u32, a_channels: u32, b_channels: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       a: array<elem>;   // [R, A]
@group(0) @binding(2) var<storage, read>       b: array<elem>;   // [R, B]
@group(0) @binding(3) var<storage, read_write> y: array<elem>;   // [R, A + B]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let width = p.a_channels + p.b_channels;
    let row = i / width;
    let c = i % width;
    if c < p.a_channels {
        y[i] = elem(f32(a[row * p.a_channels + c]));
    } else {
        y[i] = elem(f32(b[row * p.b_channels + c - p.a_channels]));
    }
}
