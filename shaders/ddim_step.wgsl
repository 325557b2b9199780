// ddim_step: guidance, DDIM update and the known region in one pass.   y: [N, H, W, C], x_(t-1)
//   out  = uncond + guidance_scale (cond - uncond)
//   prev = sqrt(alpha_prev) x0 + direction epsilon + sigma variance_noise      x0 limited by clip_range or by the row's threshold
//   y    = hole prev + (1 - hole) (known_sqrt_alpha z0 + known_sqrt_one_minus_alpha noise)
struct Params {
    len: u32, item: u32, channels: u32, rows: u32, guided: u32, prediction: u32, clip: u32, threshold: u32, variance: u32, reimpose: u32,
    guidance_scale: f32, clip_range: f32,
}
@group(0) @binding(0) var<uniform>             p:              Params;
@group(0) @binding(1) var<storage, read>       model_output:   array<elem>;   // guided: [2 N, H, W, C], unconditional first; else [N, H, W, C]
@group(0) @binding(2) var<storage, read>       latents:        array<elem>;   // [N, H, W, C], x_t
@group(0) @binding(3) var<storage, read>       hole:           array<elem>;   // reimpose: [N, H, W, 1], 1 = repaint
@group(0) @binding(4) var<storage, read>       z0:             array<elem>;   // reimpose: [N, H, W, C]
@group(0) @binding(5) var<storage, read>       noise:          array<elem>;   // reimpose: [N, H, W, C]
@group(0) @binding(6) var<storage, read>       variance_noise: array<elem>;   // variance: [N, H, W, C]
@group(0) @binding(7) var<storage, read>       row:            array<elem>;   // [rows, COLUMNS], rows = 1 or N
@group(0) @binding(8) var<storage, read_write> y:              array<elem>;   // [N, H, W, C]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let k = select(0u, i / p.item, p.rows > 1u) * COLUMNS;
    var output = f32(model_output[i]);
    if p.guided != 0u { output += p.guidance_scale * (f32(model_output[i + p.len]) - output); }
    let predicted = predict(p.prediction, output, f32(latents[i]), f32(row[k + SQRT_ALPHA]), f32(row[k + SQRT_ONE_MINUS_ALPHA]));
    var x0 = predicted.x0;
    if p.threshold != 0u {
        let s = f32(row[k + THRESHOLD]);
        x0 = clamp(x0, -s, s) / s;
    } else if p.clip != 0u {
        x0 = clamp(x0, -p.clip_range, p.clip_range);
    }
    var prev = f32(row[k + SQRT_ALPHA_PREV]) * x0 + f32(row[k + DIRECTION]) * predicted.epsilon;
    if p.variance != 0u { prev += f32(row[k + SIGMA]) * f32(variance_noise[i]); }
    if p.reimpose != 0u {
        let known = f32(row[k + KNOWN_SQRT_ALPHA]) * f32(z0[i]) + f32(row[k + KNOWN_SQRT_ONE_MINUS_ALPHA]) * f32(noise[i]);
        let repaint = f32(hole[i / p.channels]);
        prev = repaint * prev + (1.0 - repaint) * known;
    }
    y[i] = elem(prev);
}
