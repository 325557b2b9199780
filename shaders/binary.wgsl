// binary: y = a op b with broadcasting; op by code `function`.   y: six axes of `size`, the last one innermost
// One invocation per value of y. A stride is 0 where an input repeats along the axis.
struct Params {
    len: u32, function: u32,
    size0: u32, size1: u32, size2: u32, size3: u32, size4: u32, size5: u32,
    a_stride0: u32, a_stride1: u32, a_stride2: u32, a_stride3: u32, a_stride4: u32, a_stride5: u32,
    b_stride0: u32, b_stride1: u32, b_stride2: u32, b_stride3: u32, b_stride4: u32, b_stride5: u32,
}
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       a: array<elem>;
@group(0) @binding(2) var<storage, read>       b: array<elem>;
@group(0) @binding(3) var<storage, read_write> y: array<elem>;   // [len]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let i5 = i % p.size5;
    let above5 = i / p.size5;
    let i4 = above5 % p.size4;
    let above4 = above5 / p.size4;
    let i3 = above4 % p.size3;
    let above3 = above4 / p.size3;
    let i2 = above3 % p.size2;
    let above2 = above3 / p.size2;
    let i1 = above2 % p.size1;
    let i0 = above2 / p.size1;
    let at_a = i0 * p.a_stride0 + i1 * p.a_stride1 + i2 * p.a_stride2 + i3 * p.a_stride3 + i4 * p.a_stride4 + i5 * p.a_stride5;
    let at_b = i0 * p.b_stride0 + i1 * p.b_stride1 + i2 * p.b_stride2 + i3 * p.b_stride3 + i4 * p.b_stride4 + i5 * p.b_stride5;
    y[i] = elem(operate(p.function, f32(a[at_a]), f32(b[at_b])));
}
