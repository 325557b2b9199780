// A product by cooperative matrices of 8 x 8 (lib/matrices_of_8), as Metal has them: 4 subgroups of 32 make 64 x 64 values, 32 x 32 each, in steps of 32
// along K. The shader has `prepare`, `steps`, `advance`, `left_value` and `right_values`, as for lib/matrices_stage.wgsl.
// The tiles are arrays of scalars: MSL loads a matrix through a pointer to these.
const TILE_M: u32 = 64u;
const TILE_N4: u32 = 16u;         // groups of four columns
const TILE_K: u32 = 32u;
const INVOCATIONS: u32 = 128u;
const LEFT_STRIDE: u32 = 40u;     // rows are padded against bank conflicts
const RIGHT_STRIDE: u32 = 72u;

var<workgroup> left: array<f16, 2560>;    // [TILE_M][LEFT_STRIDE]
var<workgroup> right: array<f16, 2304>;   // [TILE_K][RIGHT_STRIDE]
var<workgroup> result: array<f32, 256>;   // [subgroup][8][8]

struct Four { a: vec4<f16>, b: vec4<f16>, c: vec4<f16>, d: vec4<f16> }

fn left_values() -> Four {
    return Four(left_value(0u, 0u), left_value(1u, 0u), left_value(2u, 0u), left_value(3u, 0u));
}

fn right_values_of(lane: u32) -> Four {
    let k = lane / TILE_N4;
    let n4 = lane % TILE_N4;
    return Four(right_values(k, n4), right_values(k + 8u, n4), right_values(k + 16u, n4), right_values(k + 24u, n4));
}

fn put_left(at: u32, v: vec4<f16>) {
    left[at] = v.x;
    left[at + 1u] = v.y;
    left[at + 2u] = v.z;
    left[at + 3u] = v.w;
}

fn put_right(at: u32, v: vec4<f16>) {
    right[at] = v.x;
    right[at + 1u] = v.y;
    right[at + 2u] = v.z;
    right[at + 3u] = v.w;
}

fn left_at(row: u32, k: u32) -> Left {
    return coopLoadT<Left>(&left[row * LEFT_STRIDE + k], LEFT_STRIDE);
}

fn right_at(k: u32, column: u32) -> Right {
    return coopLoadT<Right>(&right[k * RIGHT_STRIDE + column], RIGHT_STRIDE);
}

// Stores a subgroup's sums, which begin at a row and a column of the tile, by way of its own part of workgroup memory.
fn finish(own: u32, row: u32, column: u32, sums: Sums) {
    coopStoreT(sums, &result[own], 8u);
    workgroupBarrier();
    if member < 16u {
        let at = own + member * 4u;
        store_result(row + member / 2u, column / 4u + member % 2u, vec4<f32>(result[at], result[at + 1u], result[at + 2u], result[at + 3u]));
    }
    workgroupBarrier();
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    tile = wid;
    member = lane % 32u;
    prepare(lane);
    let row = lane / 64u * 32u;
    let column = lane / 32u % 2u * 32u;
    var c00: Sums; var c01: Sums; var c02: Sums; var c03: Sums;
    var c10: Sums; var c11: Sums; var c12: Sums; var c13: Sums;
    var c20: Sums; var c21: Sums; var c22: Sums; var c23: Sums;
    var c30: Sums; var c31: Sums; var c32: Sums; var c33: Sums;
    var a = left_values();
    var b = right_values_of(lane);
    let last = steps();
    for (var s = 1u; s <= last; s++) {
        let left_to = lane / 8u * LEFT_STRIDE + lane % 8u * 4u;
        put_left(left_to, a.a);
        put_left(left_to + 16u * LEFT_STRIDE, a.b);
        put_left(left_to + 32u * LEFT_STRIDE, a.c);
        put_left(left_to + 48u * LEFT_STRIDE, a.d);
        let right_to = lane / TILE_N4 * RIGHT_STRIDE + lane % TILE_N4 * 4u;
        put_right(right_to, b.a);
        put_right(right_to + 8u * RIGHT_STRIDE, b.b);
        put_right(right_to + 16u * RIGHT_STRIDE, b.c);
        put_right(right_to + 24u * RIGHT_STRIDE, b.d);
        workgroupBarrier();
        if s < last {
            advance();
            a = left_values();
            b = right_values_of(lane);
        }
        for (var k = 0u; k < TILE_K; k += 8u) {
            let r0 = right_at(k, column);
            let r1 = right_at(k, column + 8u);
            let r2 = right_at(k, column + 16u);
            let r3 = right_at(k, column + 24u);
            let l0 = left_at(row, k);
            c00 = coopMultiplyAdd(l0, r0, c00);
            c01 = coopMultiplyAdd(l0, r1, c01);
            c02 = coopMultiplyAdd(l0, r2, c02);
            c03 = coopMultiplyAdd(l0, r3, c03);
            let l1 = left_at(row + 8u, k);
            c10 = coopMultiplyAdd(l1, r0, c10);
            c11 = coopMultiplyAdd(l1, r1, c11);
            c12 = coopMultiplyAdd(l1, r2, c12);
            c13 = coopMultiplyAdd(l1, r3, c13);
            let l2 = left_at(row + 16u, k);
            c20 = coopMultiplyAdd(l2, r0, c20);
            c21 = coopMultiplyAdd(l2, r1, c21);
            c22 = coopMultiplyAdd(l2, r2, c22);
            c23 = coopMultiplyAdd(l2, r3, c23);
            let l3 = left_at(row + 24u, k);
            c30 = coopMultiplyAdd(l3, r0, c30);
            c31 = coopMultiplyAdd(l3, r1, c31);
            c32 = coopMultiplyAdd(l3, r2, c32);
            c33 = coopMultiplyAdd(l3, r3, c33);
        }
        workgroupBarrier();
    }
    let own = lane / 32u * 64u;
    finish(own, row, column, c00);
    finish(own, row, column + 8u, c01);
    finish(own, row, column + 16u, c02);
    finish(own, row, column + 24u, c03);
    finish(own, row + 8u, column, c10);
    finish(own, row + 8u, column + 8u, c11);
    finish(own, row + 8u, column + 16u, c12);
    finish(own, row + 8u, column + 24u, c13);
    finish(own, row + 16u, column, c20);
    finish(own, row + 16u, column + 8u, c21);
    finish(own, row + 16u, column + 16u, c22);
    finish(own, row + 16u, column + 24u, c23);
    finish(own, row + 24u, column, c30);
    finish(own, row + 24u, column + 8u, c31);
    finish(own, row + 24u, column + 16u, c32);
    finish(own, row + 24u, column + 24u, c33);
}
