// image_to_tensor: y[.., c] = byte c of the pixel / 255 * scale[c] + shift[c].   pixels: [P] packed RGBA; y: [P, 3]
struct Params { len: u32, scale_r: f32, scale_g: f32, scale_b: f32, shift_r: f32, shift_g: f32, shift_b: f32 }
@group(0) @binding(0) var<uniform>             p:      Params;
@group(0) @binding(1) var<storage, read>       pixels: array<u32>;    // [P], r | g << 8 | b << 16 | a << 24
@group(0) @binding(2) var<storage, read_write> y:      array<elem>;   // [P, 3]

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_index(gid, groups, WG);
    if i >= p.len { return; }
    let c = i % 3u;
    let value = f32((pixels[i / 3u] >> (8u * c)) & 0xffu) / 255.0;
    let scale = select(select(p.scale_b, p.scale_g, c == 1u), p.scale_r, c == 0u);
    let shift = select(select(p.shift_b, p.shift_g, c == 1u), p.shift_r, c == 0u);
    y[i] = elem(value * scale + shift);
}
