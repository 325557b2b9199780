// Reductions over a workgroup by a tree in shared memory. WG is a power of two. Every invocation must call.
// tree_slices and tree_subgroup have the same interface.
struct Own { @builtin(local_invocation_index) lane: u32 }

var<workgroup> partial: array<f32, WG>;

fn tree_sum(own: Own, value: f32) -> f32 {
    let lane = own.lane;
    partial[lane] = value;
    workgroupBarrier();
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        if lane < stride { partial[lane] += partial[lane + stride]; }
        workgroupBarrier();
    }
    let sum = partial[0];
    workgroupBarrier();
    return sum;
}

fn tree_max(own: Own, value: f32) -> f32 {
    let lane = own.lane;
    partial[lane] = value;
    workgroupBarrier();
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        if lane < stride { partial[lane] = max(partial[lane], partial[lane + stride]); }
        workgroupBarrier();
    }
    let largest = partial[0];
    workgroupBarrier();
    return largest;
}
