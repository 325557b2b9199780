// Reductions over each slice of LANES invocations of a workgroup. LANES and WG are powers of two, LANES >= 4. Every invocation must call.
// Each reads all values of its slice: a tree would hold the row's registers over a barrier for every halving.
struct Own { @builtin(local_invocation_index) lane: u32 }

override LANES: u32 = 64u;
var<workgroup> partial: array<vec4<f32>, 64>;   // WG <= 256; naga 30 panics where its length is WG / 4u

fn tree_sum(own: Own, value: f32) -> f32 {
    partial[own.lane / 4u][own.lane % 4u] = value;
    workgroupBarrier();
    let first = own.lane / LANES * (LANES / 4u);
    var sums = partial[first];
    for (var i = 1u; i < LANES / 4u; i++) { sums += partial[first + i]; }
    workgroupBarrier();
    return (sums.x + sums.y) + (sums.z + sums.w);
}

fn tree_max(own: Own, value: f32) -> f32 {
    partial[own.lane / 4u][own.lane % 4u] = value;
    workgroupBarrier();
    let first = own.lane / LANES * (LANES / 4u);
    var most = partial[first];
    for (var i = 1u; i < LANES / 4u; i++) { most = max(most, partial[first + i]); }
    workgroupBarrier();
    return max(max(most.x, most.y), max(most.z, most.w));
}
