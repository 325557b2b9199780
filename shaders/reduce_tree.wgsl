// reduce, tree: y[o, i] = f over l of x[o, l, i]; f by code `function`.   x: [O, L, I]; y: [O, I]
// One workgroup per result, for long rows of few neighbours: its lanes load side by side.
struct Params { len: u32, length: u32, inner: u32, function: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [O, L, I]
@group(0) @binding(2) var<storage, read_write> y: array<elem>;   // [O, I]

override WG: u32 = 64u;   // power of two: the tree halves it
const BLOCK: u32 = 64u;
var<workgroup> partial: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let job = wid.x + wid.y * groups.x;
    let i = min(job, p.len - 1u);   // surplus groups of the grid repeat the last one: barriers stay uniform
    let base = i / p.inner * p.length * p.inner + i % p.inner;
    let neutral = start(p.function, f32(x[base]));
    var total = neutral;
    for (var block = lane; block < p.length; block += BLOCK * WG) {
        var part = neutral;
        for (var l = block; l < min(block + BLOCK * WG, p.length); l += WG) {
            part = join(p.function, part, term(p.function, f32(x[base + l * p.inner])));
        }
        total = join(p.function, total, part);
    }
    partial[lane] = total;
    workgroupBarrier();
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        if lane < stride { partial[lane] = join(p.function, partial[lane], partial[lane + stride]); }
        workgroupBarrier();
    }
    if lane == 0u && job < p.len { y[job] = elem(finish(p.function, partial[0], p.length)); }
}
