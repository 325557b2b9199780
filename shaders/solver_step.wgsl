// solver_step: guidance, one step of a linear solver with memory, and the known region.   y: [slots N, H, W, C], latents first, then the memory
//   out       = uncond + guidance_scale (cond - uncond)
//   converted = from_latents latents + from_output out                  limited by clip_range
//   y[s]      = sum_j a[s][j] state[j] + a[s][slots] converted + a[s][slots + 1] variance_noise
//   y[0]      = hole y[0] + (1 - hole) (known_z0 z0 + known_noise noise)
struct Params {
    len: u32, item: u32, channels: u32, rows: u32, slots: u32, guided: u32, clip: u32, variance: u32, reimpose: u32,
    guidance_scale: f32, clip_range: f32,
}
@group(0) @binding(0) var<uniform>             p:              Params;
@group(0) @binding(1) var<storage, read>       model_output:   array<elem>;   // guided: [2 N, H, W, C], unconditional first; else [N, H, W, C]
@group(0) @binding(2) var<storage, read>       state:          array<elem>;   // [slots N, H, W, C], latents first
@group(0) @binding(3) var<storage, read>       hole:           array<elem>;   // reimpose: [N, H, W, 1], 1 = repaint
@group(0) @binding(4) var<storage, read>       z0:             array<elem>;   // reimpose: [N, H, W, C]
@group(0) @binding(5) var<storage, read>       noise:          array<elem>;   // reimpose: [N, H, W, C]
@group(0) @binding(6) var<storage, read>       variance_noise: array<elem>;   // variance: [N, H, W, C]
@group(0) @binding(7) var<storage, read>       row:            array<elem>;   // [rows, HEAD + slots (slots + 2)], rows = 1 or N
@group(0) @binding(8) var<storage, read_write> y:              array<elem>;   // [slots N, H, W, C]

override WG: u32 = 64u;

// The head of a row is ops::solver_step::Head.
const FROM_LATENTS: u32 = 0u;
const FROM_OUTPUT: u32 = 1u;
const KNOWN_Z0: u32 = 2u;
const KNOWN_NOISE: u32 = 3u;
const HEAD: u32 = 4u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let at = linear_index(gid, groups, WG);
    if at >= p.len * p.slots { return; }
    let slot = at / p.len;
    let i = at % p.len;
    let width = p.slots + 2u;
    let k = select(0u, i / p.item, p.rows > 1u) * (HEAD + p.slots * width);
    var output = f32(model_output[i]);
    if p.guided != 0u { output += p.guidance_scale * (f32(model_output[i + p.len]) - output); }
    var converted = f32(row[k + FROM_LATENTS]) * f32(state[i]) + f32(row[k + FROM_OUTPUT]) * output;
    if p.clip != 0u { converted = clamp(converted, -p.clip_range, p.clip_range); }

    let a = k + HEAD + slot * width;
    var next = f32(row[a + p.slots]) * converted;
    for (var j = 0u; j < p.slots; j++) { next += f32(row[a + j]) * f32(state[j * p.len + i]); }
    if p.variance != 0u { next += f32(row[a + p.slots + 1u]) * f32(variance_noise[i]); }
    if p.reimpose != 0u && slot == 0u {
        let known = f32(row[k + KNOWN_Z0]) * f32(z0[i]) + f32(row[k + KNOWN_NOISE]) * f32(noise[i]);
        let repaint = f32(hole[i / p.channels]);
        next = repaint * next + (1.0 - repaint) * known;
    }
    y[at] = elem(next);
}
