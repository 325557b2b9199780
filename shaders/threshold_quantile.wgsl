// threshold_quantile: y[n] = the coefficient row with s in its THRESHOLD column, s = clamp(quantile(|x0| of sample n), 1, limit).
// One workgroup per sample. The order statistics are found by bisection on the bits of |x0|, which order as the values do:
// the k-th smallest is the least v with more than k values <= v. No sorting, no memory; x0 is predicted anew in each of 32 passes.
struct Params { batch: u32, item: u32, rows: u32, guided: u32, prediction: u32, below: u32, weight: f32, limit: f32, guidance_scale: f32 }
@group(0) @binding(0) var<uniform>             p:            Params;
@group(0) @binding(1) var<storage, read>       model_output: array<elem>;   // guided: [2 N, H, W, C], unconditional first; else [N, H, W, C]
@group(0) @binding(2) var<storage, read>       latents:      array<elem>;   // [N, H, W, C], x_t
@group(0) @binding(3) var<storage, read>       row:          array<elem>;   // [rows, COLUMNS], rows = 1 or N
@group(0) @binding(4) var<storage, read_write> y:            array<elem>;   // [N, COLUMNS]

override WG: u32 = 256u;

fn magnitude_bits(i: u32, a: f32, b: f32) -> u32 {
    var output = f32(model_output[i]);
    if p.guided != 0u { output += p.guidance_scale * (f32(model_output[i + p.batch * p.item]) - output); }
    return bitcast<u32>(predict(p.prediction, output, f32(latents[i]), a, b).x0) & 0x7fffffffu;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let job = wid.x + wid.y * groups.x;
    let n = min(job, p.batch - 1u);   // surplus groups of the grid repeat the last sample: barriers stay uniform
    let k = select(0u, n, p.rows > 1u) * COLUMNS;
    let a = f32(row[k + SQRT_ALPHA]);
    let b = f32(row[k + SQRT_ONE_MINUS_ALPHA]);
    let start = n * p.item;

    var low = 0u;
    var through = 0u;   // values <= low, at the end
    for (var bit = 0u; bit < 31u; bit++) {
        let step = 1u << (30u - bit);
        let trial = low + (step - 1u);
        var count = 0u;
        for (var i = lane; i < p.item; i += WG) { count += select(0u, 1u, magnitude_bits(start + i, a, b) <= trial); }
        let total = tree_sum(lane, count);
        if total <= p.below { low += step; } else { through = total; }
    }
    var next = 0xffffffffu;
    for (var i = lane; i < p.item; i += WG) {
        let bits = magnitude_bits(start + i, a, b);
        if bits > low { next = min(next, bits); }
    }
    // The next order statistic is the same value when that value occurs again, or when it is the last.
    let above = tree_min(lane, next);
    let repeated = through > p.below + 1u || above == 0xffffffffu;
    let lower = bitcast<f32>(low);
    let upper = bitcast<f32>(select(above, low, repeated));
    let s = clamp(lower + p.weight * (upper - lower), 1.0, p.limit);
    if job < p.batch && lane < COLUMNS {
        y[n * COLUMNS + lane] = elem(select(f32(row[k + lane]), s, lane == THRESHOLD));
    }
}
