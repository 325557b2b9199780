// A product by cooperative matrices: 4 subgroups make 64 x 160 values, 32 x 80 each, in steps of 32 along K. While a step is
// multiplied, the next one's values are on their way into registers. The widths of Stable Diffusion are multiples of 160.
const TILE_M: u32 = 64u;
const TILE_N4: u32 = 40u;        // groups of four columns
const TILE_K: u32 = 32u;
const LEFT_STRIDE: u32 = 10u;     // in groups of four: rows are padded against bank conflicts
const INVOCATIONS: u32 = 128u;
const RIGHT_STRIDE: u32 = 42u;

var<workgroup> left: array<vec4<f16>, 640>;     // [TILE_M][LEFT_STRIDE]
var<workgroup> right: array<vec4<f16>, 1344>;   // [TILE_K][RIGHT_STRIDE]
var<workgroup> result: array<vec4<f32>, 256>;   // [subgroup][16][4]

// Value `i` of the ten of the right tile that an invocation brings.
fn bring(lane: u32, i: u32) -> vec4<f16> {
    let at = lane + i * INVOCATIONS;
    return right_values(at / TILE_N4, at % TILE_N4);
}

fn stage(lane: u32, i: u32, value: vec4<f16>) {
    let at = lane + i * INVOCATIONS;
    right[at / TILE_N4 * RIGHT_STRIDE + at % TILE_N4] = value;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    tile = wid;
    member = lane % 32u;
    prepare(lane);
    let row = lane / 64u * 32u;
    let column = lane / 32u % 2u * 80u;
    var c0: Sums; var c1: Sums; var c2: Sums; var c3: Sums; var c4: Sums;
    var c5: Sums; var c6: Sums; var c7: Sums; var c8: Sums; var c9: Sums;
    var a = left_values();
    var b0 = bring(lane, 0u); var b1 = bring(lane, 1u); var b2 = bring(lane, 2u); var b3 = bring(lane, 3u); var b4 = bring(lane, 4u);
    var b5 = bring(lane, 5u); var b6 = bring(lane, 6u); var b7 = bring(lane, 7u); var b8 = bring(lane, 8u); var b9 = bring(lane, 9u);
    let last = steps();
    for (var s = 1u; s <= last; s++) {
        stage_left(lane, a);
        stage(lane, 0u, b0); stage(lane, 1u, b1); stage(lane, 2u, b2); stage(lane, 3u, b3); stage(lane, 4u, b4);
        stage(lane, 5u, b5); stage(lane, 6u, b6); stage(lane, 7u, b7); stage(lane, 8u, b8); stage(lane, 9u, b9);
        workgroupBarrier();
        if s < last {
            advance();
            a = left_values();
            b0 = bring(lane, 0u); b1 = bring(lane, 1u); b2 = bring(lane, 2u); b3 = bring(lane, 3u); b4 = bring(lane, 4u);
            b5 = bring(lane, 5u); b6 = bring(lane, 6u); b7 = bring(lane, 7u); b8 = bring(lane, 8u); b9 = bring(lane, 9u);
        }
        let l0 = left_at(row, 0u);
        let l1 = left_at(row + 16u, 0u);
        let r0 = right_at(0u, column);
        c0 = coopMultiplyAdd(l0, r0, c0);
        c5 = coopMultiplyAdd(l1, r0, c5);
        let r1 = right_at(0u, column + 16u);
        c1 = coopMultiplyAdd(l0, r1, c1);
        c6 = coopMultiplyAdd(l1, r1, c6);
        let r2 = right_at(0u, column + 32u);
        c2 = coopMultiplyAdd(l0, r2, c2);
        c7 = coopMultiplyAdd(l1, r2, c7);
        let r3 = right_at(0u, column + 48u);
        c3 = coopMultiplyAdd(l0, r3, c3);
        c8 = coopMultiplyAdd(l1, r3, c8);
        let r4 = right_at(0u, column + 64u);
        c4 = coopMultiplyAdd(l0, r4, c4);
        c9 = coopMultiplyAdd(l1, r4, c9);
        let l2 = left_at(row, 16u);
        let l3 = left_at(row + 16u, 16u);
        let r5 = right_at(16u, column);
        c0 = coopMultiplyAdd(l2, r5, c0);
        c5 = coopMultiplyAdd(l3, r5, c5);
        let r6 = right_at(16u, column + 16u);
        c1 = coopMultiplyAdd(l2, r6, c1);
        c6 = coopMultiplyAdd(l3, r6, c6);
        let r7 = right_at(16u, column + 32u);
        c2 = coopMultiplyAdd(l2, r7, c2);
        c7 = coopMultiplyAdd(l3, r7, c7);
        let r8 = right_at(16u, column + 48u);
        c3 = coopMultiplyAdd(l2, r8, c3);
        c8 = coopMultiplyAdd(l3, r8, c8);
        let r9 = right_at(16u, column + 64u);
        c4 = coopMultiplyAdd(l2, r9, c4);
        c9 = coopMultiplyAdd(l3, r9, c9);
        workgroupBarrier();
    }
    let own = lane / 32u * 64u;
    finish(own, row, column, c0);
    finish(own, row, column + 16u, c1);
    finish(own, row, column + 32u, c2);
    finish(own, row, column + 48u, c3);
    finish(own, row, column + 64u, c4);
    finish(own, row + 16u, column, c5);
    finish(own, row + 16u, column + 16u, c6);
    finish(own, row + 16u, column + 32u, c7);
    finish(own, row + 16u, column + 48u, c8);
    finish(own, row + 16u, column + 64u, c9);
}
