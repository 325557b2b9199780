// activation: y = f(x), elementwise; f by code. `a` and `b` are its constants.   x, y: [n]
struct Params { len: u32, function: u32, a: f32, b: f32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [n]
@group(0) @binding(2) var<storage, read_write> y: array<elem>;   // [n]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    y[i] = elem(activate(p.function, f32(x[i]), p.a, p.b));
}
