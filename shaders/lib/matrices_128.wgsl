// A product by cooperative matrices: 8 subgroups make 128 x 128 values, 64 x 32 each, in steps of 32 along K. While a step is
// multiplied, the next one's values are on their way into registers.
const TILE_M: u32 = 128u;
const TILE_N4: u32 = 32u;        // groups of four columns
const TILE_K: u32 = 32u;
const LEFT_STRIDE: u32 = 10u;     // in groups of four: rows are padded against bank conflicts
const INVOCATIONS: u32 = 256u;
const RIGHT_STRIDE: u32 = 34u;

var<workgroup> left: array<vec4<f16>, 1280>;    // [TILE_M][LEFT_STRIDE]
var<workgroup> right: array<vec4<f16>, 1088>;   // [TILE_K][RIGHT_STRIDE]
var<workgroup> result: array<vec4<f32>, 512>;   // [subgroup][16][4]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    tile = wid;
    member = lane % 32u;
    prepare(lane);
    let row = lane / 128u * 64u;
    let column = lane / 32u % 4u * 32u;
    let k = lane / TILE_N4;
    let n4 = lane % TILE_N4;
    var c0: Sums; var c1: Sums; var c2: Sums; var c3: Sums; var c4: Sums; var c5: Sums; var c6: Sums; var c7: Sums;
    var a = left_values();
    var b0 = right_values(k, n4);
    var b1 = right_values(k + 8u, n4);
    var b2 = right_values(k + 16u, n4);
    var b3 = right_values(k + 24u, n4);
    let last = steps();
    for (var s = 1u; s <= last; s++) {
        stage_left(lane, a);
        right[k * RIGHT_STRIDE + n4] = b0;
        right[(k + 8u) * RIGHT_STRIDE + n4] = b1;
        right[(k + 16u) * RIGHT_STRIDE + n4] = b2;
        right[(k + 24u) * RIGHT_STRIDE + n4] = b3;
        workgroupBarrier();
        if s < last {
            advance();
            a = left_values();
            b0 = right_values(k, n4);
            b1 = right_values(k + 8u, n4);
            b2 = right_values(k + 16u, n4);
            b3 = right_values(k + 24u, n4);
        }
        let r0 = right_at(0u, column);
        let r1 = right_at(0u, column + 16u);
        let l0 = left_at(row, 0u);
        c0 = coopMultiplyAdd(l0, r0, c0);
        c1 = coopMultiplyAdd(l0, r1, c1);
        let l1 = left_at(row + 16u, 0u);
        c2 = coopMultiplyAdd(l1, r0, c2);
        c3 = coopMultiplyAdd(l1, r1, c3);
        let l2 = left_at(row + 32u, 0u);
        c4 = coopMultiplyAdd(l2, r0, c4);
        c5 = coopMultiplyAdd(l2, r1, c5);
        let l3 = left_at(row + 48u, 0u);
        c6 = coopMultiplyAdd(l3, r0, c6);
        c7 = coopMultiplyAdd(l3, r1, c7);
        let r2 = right_at(16u, column);
        let r3 = right_at(16u, column + 16u);
        let l4 = left_at(row, 16u);
        c0 = coopMultiplyAdd(l4, r2, c0);
        c1 = coopMultiplyAdd(l4, r3, c1);
        let l5 = left_at(row + 16u, 16u);
        c2 = coopMultiplyAdd(l5, r2, c2);
        c3 = coopMultiplyAdd(l5, r3, c3);
        let l6 = left_at(row + 32u, 16u);
        c4 = coopMultiplyAdd(l6, r2, c4);
        c5 = coopMultiplyAdd(l6, r3, c5);
        let l7 = left_at(row + 48u, 16u);
        c6 = coopMultiplyAdd(l7, r2, c6);
        c7 = coopMultiplyAdd(l7, r3, c7);
        workgroupBarrier();
    }
    let own = lane / 32u * 64u;
    finish(own, row, column, c0);
    finish(own, row, column + 16u, c1);
    finish(own, row + 16u, column, c2);
    finish(own, row + 16u, column + 16u, c3);
    finish(own, row + 32u, column, c4);
    finish(own, row + 32u, column + 16u, c5);
    finish(own, row + 48u, column, c6);
    finish(own, row + 48u, column + 16u, c7);
}
