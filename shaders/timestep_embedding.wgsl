// timestep_embedding: y[n] = (sin a, cos a, 0) or (cos a, sin a, 0), a = t[n] f or log(t[n]) f.   y: [N, width]
struct Params { len: u32, width: u32, frequencies: u32, sin_first: u32, log: u32 }
@group(0) @binding(0) var<uniform>             p:           Params;
@group(0) @binding(1) var<storage, read>       timesteps:   array<elem>;   // [N]
@group(0) @binding(2) var<storage, read>       frequencies: array<elem>;   // [F], 2 F <= width
@group(0) @binding(3) var<storage, read_write> y:           array<elem>;   // [N, width]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let c = i % p.width;
    if c >= 2u * p.frequencies {
        y[i] = elem(0.0);
        return;
    }
    var t = f32(timesteps[i / p.width]);
    if p.log != 0u { t = log_accurate(t); }
    let angle = t * f32(frequencies[c % p.frequencies]);
    let is_sin = (c < p.frequencies) == (p.sin_first != 0u);
    y[i] = elem(sin_quarter(angle, select(1u, 0u, is_sin)));
}
