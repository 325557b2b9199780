// group_moments, one workgroup of 256 per (n, chunk): an invocation stays with four channels, so that no index is divided in
// the loop and loads lie side by side.   C % 4 == 0, C <= 1024, G <= 256.
// One pass: sums are taken about the chunk's first value of the group, which is as near to the mean as any value is.
struct Params { spatial: u32, channels: u32, groups: u32, chunk: u32, batch: u32 }
@group(0) @binding(0) var<uniform>             p: Params;
@group(0) @binding(1) var<storage, read>       x: array<elem4>;   // [N, S, C / 4]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;     // [N, P, 2 G]

var<workgroup> firsts: array<vec4<f32>, 256>;    // [C / 4]: the first pixel
var<workgroup> sums: array<vec4<f32>, 256>;      // [pixel side by side][C / 4]
var<workgroup> squares: array<vec4<f32>, 256>;   // likewise

fn about(c: u32) -> f32 {
    let first = c / (p.channels / p.groups) * (p.channels / p.groups);
    return firsts[first / 4u][first % 4u];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let c4 = p.channels / 4u;
    let side = 256u / c4;                        // pixels side by side
    let first = wid.x * p.chunk;
    let pixels = min(p.chunk, p.spatial - first);
    let base = (wid.y * p.spatial + first) * c4;
    if lane < c4 { firsts[lane] = vec4<f32>(x[base + lane]); }
    workgroupBarrier();
    let quad = lane % c4;
    let shift = vec4<f32>(about(4u * quad), about(4u * quad + 1u), about(4u * quad + 2u), about(4u * quad + 3u));
    var sum = vec4<f32>();
    var square = vec4<f32>();
    var s = select(lane / c4, pixels, lane >= side * c4);
    for (; s + 3u * side < pixels; s += 4u * side) {
        let at = base + s * c4 + quad;
        let step = side * c4;
        let a = vec4<f32>(x[at]) - shift;
        let b = vec4<f32>(x[at + step]) - shift;
        let c = vec4<f32>(x[at + 2u * step]) - shift;
        let d = vec4<f32>(x[at + 3u * step]) - shift;
        sum += (a + b) + (c + d);
        square += (a * a + b * b) + (c * c + d * d);
    }
    for (; s < pixels; s += side) {
        let a = vec4<f32>(x[base + s * c4 + quad]) - shift;
        sum += a;
        square += a * a;
    }
    sums[lane] = sum;
    squares[lane] = square;
    workgroupBarrier();
    if lane >= p.groups { return; }
    let width = p.channels / p.groups;
    var total = 0.0;
    var total_square = 0.0;
    for (var r = 0u; r < side; r++) {
        for (var c = lane * width; c < (lane + 1u) * width; c++) {
            total += sums[r * c4 + c / 4u][c % 4u];
            total_square += squares[r * c4 + c / 4u][c % 4u];
        }
    }
    let count = f32(pixels * width);
    let mean = total / count;
    let at = ((wid.y * ((p.spatial + p.chunk - 1u) / p.chunk) + wid.x) * p.groups + lane) * 2u;
    y[at] = about(lane * width) + mean;
    y[at + 1u] = max(total_square / count - mean * mean, 0.0);
}
