// permute: y is x with its axes in another order.   y: six axes of `size`, the last one innermost; `stride`: of y's axes in x
// One invocation per value of y: stores lie side by side, loads need not.
struct Params {
    len: u32,
    size0: u32, size1: u32, size2: u32, size3: u32, size4: u32, size5: u32,
    stride0: u32, stride1: u32, stride2: u32, stride3: u32, stride4: u32, stride5: u32,
}
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [len]
@group(0) @binding(2) var<storage, read_write> y: array<elem>;   // [len]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let above5 = i / p.size5;
    let above4 = above5 / p.size4;
    let above3 = above4 / p.size3;
    let above2 = above3 / p.size2;
    let i0 = above2 / p.size1;
    let outer = i0 * p.stride0 + above2 % p.size1 * p.stride1 + above3 % p.size2 * p.stride2;
    let inner = above4 % p.size3 * p.stride3 + above5 % p.size4 * p.stride4 + i % p.size5 * p.stride5;
    y[i] = elem(f32(x[outer + inner]));
}
