// modulate: y = act(x * (1 + scale) + shift), scale and shift per (n, c).   x, y: [N, S, C]
struct Params { len: u32, item: u32, channels: u32, scaled: u32, silu: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [N, S, C], S * C = item
@group(0) @binding(2) var<storage, read>       v: array<elem>;   // scaled: [N, 2 C], scale then shift; else [N, C], shift
@group(0) @binding(3) var<storage, read_write> y: array<elem>;   // [N, S, C]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let n = i / p.item;
    let c = i % p.channels;
    var value = f32(x[i]);
    if p.scaled != 0u {
        let at = n * 2u * p.channels + c;
        value = value * (1.0 + f32(v[at])) + f32(v[at + p.channels]);
    } else {
        value += f32(v[n * p.channels + c]);
    }
    y[i] = elem(select(value, value * sigmoid(value), p.silu != 0u));
}
