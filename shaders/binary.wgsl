// binary: y = a op b, elementwise; op by code `function`.   a, b, y: [n]
struct Params { len: u32, function: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       a: array<elem>;   // [n]
@group(0) @binding(2) var<storage, read>       b: array<elem>;   // [n]
@group(0) @binding(3) var<storage, read_write> y: array<elem>;   // [n]

override WG: u32 = 64u;

// The codes are ops::binary::Operator.
const ADD: u32 = 0u;
const SUB: u32 = 1u;
const MUL: u32 = 2u;

fn apply(a: f32, b: f32) -> f32 {
    switch p.function {
        case ADD: { return a + b; }
        case SUB: { return a - b; }
        case MUL: { return a * b; }
        default: { return a; }
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    y[i] = elem(apply(f32(a[i]), f32(b[i])));
}
