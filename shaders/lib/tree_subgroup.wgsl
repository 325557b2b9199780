// Reductions over a workgroup by its subgroups, then over their results in shared memory. Every invocation must call.
// Nothing is taken for granted of a subgroup: not its size, nor that it is full, nor which invocations are in it. naga has no
// `enable subgroups;`: the operations are there where the device has the feature.
struct Own {
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}

override LANES: u32 = WG;   // a row has the whole workgroup
var<workgroup> partial: array<f32, WG>;   // one of each subgroup

// One invocation writes; naga has no subgroupElect.
fn keep(own: Own, result: f32) {
    if subgroupBroadcastFirst(own.lane) == own.lane { partial[own.subgroup] = result; }
}

fn tree_sum(own: Own, value: f32) -> f32 {
    keep(own, subgroupAdd(value));
    workgroupBarrier();
    var sum = partial[0];
    for (var i = 1u; i < own.subgroups; i++) { sum += partial[i]; }
    workgroupBarrier();
    return sum;
}

fn tree_max(own: Own, value: f32) -> f32 {
    keep(own, subgroupMax(value));
    workgroupBarrier();
    var largest = partial[0];
    for (var i = 1u; i < own.subgroups; i++) { largest = max(largest, partial[i]); }
    workgroupBarrier();
    return largest;
}
