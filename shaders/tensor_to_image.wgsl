// tensor_to_image: byte c of the pixel = round(255 clamp(x[.., c] * scale[c] + shift[c], 0, 1)).   x: [P, 3]; y: [P] packed RGBA
struct Params { len: u32, scale_r: f32, scale_g: f32, scale_b: f32, shift_r: f32, shift_g: f32, shift_b: f32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem>;   // [P, 3]
@group(0) @binding(2) var<storage, read_write> y: array<u32>;    // [P], r | g << 8 | b << 16 | 255 << 24

override WG: u32 = 64u;

// Halves round up.
fn level(value: f32) -> u32 {
    return u32(floor(clamp(value, 0.0, 1.0) * 255.0 + 0.5));
}

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let r = level(f32(x[3u * i]) * p.scale_r + p.shift_r);
    let g = level(f32(x[3u * i + 1u]) * p.scale_g + p.shift_g);
    let b = level(f32(x[3u * i + 2u]) * p.scale_b + p.shift_b);
    y[i] = r | (g << 8u) | (b << 16u) | (255u << 24u);
}
