// binary, equal: y = a op b for one shape of all three; op by code `function`.   a, b, y: [n]
struct Params {
    len: u32, function: u32,
    size0: u32, size1: u32, size2: u32, size3: u32, size4: u32, size5: u32,
    a_stride0: u32, a_stride1: u32, a_stride2: u32, a_stride3: u32, a_stride4: u32, a_stride5: u32,
    b_stride0: u32, b_stride1: u32, b_stride2: u32, b_stride3: u32, b_stride4: u32, b_stride5: u32,
}
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       a: array<elem>;   // [n]
@group(0) @binding(2) var<storage, read>       b: array<elem>;   // [n]
@group(0) @binding(3) var<storage, read_write> y: array<elem>;   // [n]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    y[i] = elem(operate(p.function, f32(a[i]), f32(b[i])));
}
