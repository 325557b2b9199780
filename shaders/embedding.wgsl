// embedding: y[n] = table[index[n]].   table: [V, D]; index: [N]; y: [N, D]
struct Params { len: u32, rows: u32, channels: u32 }
@group(0) @binding(0) var<uniform>             p:     Params;
@group(0) @binding(1) var<storage, read>       table: array<elem>;   // [V, D]
@group(0) @binding(2) var<storage, read>       index: array<u32>;    // [N], held below V
@group(0) @binding(3) var<storage, read_write> y:     array<elem>;   // [N, D]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let row = min(index[i / p.channels], p.rows - 1u);
    y[i] = elem(f32(table[row * p.channels + i % p.channels]));
}
