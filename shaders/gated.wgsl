// gated: y[r, c] = x[r, c] f(x[r, C + c]); f by code. `a` and `b` are its constants.   x: [R, 2 C]; y: [R, C]
struct Params { len: u32, channels: u32, function: u32, a: f32, b: f32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [R, 2 C]
@group(0) @binding(2) var<storage, read_write> y: array<elem>;   // [R, C]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let at = i + i / p.channels * p.channels;
    y[i] = elem(f32(x[at]) * activate(p.function, f32(x[at + p.channels]), p.a, p.b));
}
