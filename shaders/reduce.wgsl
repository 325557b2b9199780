// reduce: y[o, i] = f over l of x[o, l, i]; f by code `function`.   x: [O, L, I]; y: [O, I]
// One invocation per result. Blocks of a row are joined by themselves: the error of a sum grows with their number and length,
// not with their product.
struct Params { len: u32, length: u32, inner: u32, function: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [O, L, I]
@group(0) @binding(2) var<storage, read_write> y: array<elem>;   // [O, I]

override WG: u32 = 64u;
const BLOCK: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let base = i / p.inner * p.length * p.inner + i % p.inner;
    let neutral = start(p.function, f32(x[base]));
    var total = neutral;
    for (var block = 0u; block < p.length; block += BLOCK) {
        var part = neutral;
        for (var l = block; l < min(block + BLOCK, p.length); l++) {
            part = join(p.function, part, term(p.function, f32(x[base + l * p.inner])));
        }
        total = join(p.function, total, part);
    }
    y[i] = elem(finish(p.function, total, p.length));
}
