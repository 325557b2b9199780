// channel_affine: y[r, c] = act(x[r, c] scale[c] + shift[c]), act is ReLU or nothing.   x, y: [R, C]
struct Params { len: u32, channels: u32, relu: u32 }
@group(0) @binding(0) var<uniform>             p:     Params;
@group(0) @binding(1) var<storage, read>       x:     array<elem>;   // [R, C]
@group(0) @binding(2) var<storage, read>       scale: array<elem>;   // [C]
@group(0) @binding(3) var<storage, read>       shift: array<elem>;   // [C]
@group(0) @binding(4) var<storage, read_write> y:     array<elem>;   // [R, C]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let c = i % p.channels;
    let v = f32(x[i]) * f32(scale[c]) + f32(shift[c]);
    y[i] = elem(select(v, 0.0, p.relu != 0u && v < 0.0));   // not max: it may turn NaN into 0
}
