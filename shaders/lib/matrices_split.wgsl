// A product by cooperative matrices where there are few rows: 4 subgroups share 32 x 80 values and part K among them. A step is
// 128 along K, 32 a subgroup; their sums are added at the end. While a step is multiplied, the next one's values are on their way.
const TILE_M: u32 = 32u;
const TILE_N4: u32 = 20u;        // groups of four columns
const TILE_K: u32 = 128u;
const INVOCATIONS: u32 = 128u;
const LEFT_STRIDE: u32 = 34u;    // in groups of four: rows are padded against bank conflicts
const RIGHT_STRIDE: u32 = 22u;

var<workgroup> left: array<vec4<f16>, 1088>;    // [TILE_M][LEFT_STRIDE]
var<workgroup> right: array<vec4<f16>, 2816>;   // [TILE_K][RIGHT_STRIDE]
var<workgroup> result: array<vec4<f32>, 256>;   // [subgroup][16][4]

struct Eight { a: vec4<f16>, b: vec4<f16>, c: vec4<f16>, d: vec4<f16>, e: vec4<f16>, f: vec4<f16>, g: vec4<f16>, h: vec4<f16> }
struct Ten {
    a: vec4<f16>, b: vec4<f16>, c: vec4<f16>, d: vec4<f16>, e: vec4<f16>, f: vec4<f16>, g: vec4<f16>, h: vec4<f16>, i: vec4<f16>, j: vec4<f16>,
}

fn left_values() -> Eight {
    return Eight(left_value(0u, 0u), left_value(0u, 8u), left_value(0u, 16u), left_value(0u, 24u),
                 left_value(1u, 0u), left_value(1u, 8u), left_value(1u, 16u), left_value(1u, 24u));
}

fn stage_left(lane: u32, v: Eight) {
    let at = lane / 8u * LEFT_STRIDE + lane % 8u;
    let below = at + 16u * LEFT_STRIDE;
    left[at] = v.a; left[at + 8u] = v.b; left[at + 16u] = v.c; left[at + 24u] = v.d;
    left[below] = v.e; left[below + 8u] = v.f; left[below + 16u] = v.g; left[below + 24u] = v.h;
}

// Value `i` of the twenty of the right tile that an invocation brings.
fn bring(lane: u32, i: u32) -> vec4<f16> {
    let at = lane + i * INVOCATIONS;
    return right_values(at / TILE_N4, at % TILE_N4);
}

fn bring_ten(lane: u32, i: u32) -> Ten {
    return Ten(bring(lane, i), bring(lane, i + 1u), bring(lane, i + 2u), bring(lane, i + 3u), bring(lane, i + 4u),
               bring(lane, i + 5u), bring(lane, i + 6u), bring(lane, i + 7u), bring(lane, i + 8u), bring(lane, i + 9u));
}

fn stage(lane: u32, i: u32, value: vec4<f16>) {
    let at = lane + i * INVOCATIONS;
    right[at / TILE_N4 * RIGHT_STRIDE + at % TILE_N4] = value;
}

fn stage_ten(lane: u32, i: u32, v: Ten) {
    stage(lane, i, v.a); stage(lane, i + 1u, v.b); stage(lane, i + 2u, v.c); stage(lane, i + 3u, v.d); stage(lane, i + 4u, v.e);
    stage(lane, i + 5u, v.f); stage(lane, i + 6u, v.g); stage(lane, i + 7u, v.h); stage(lane, i + 8u, v.i); stage(lane, i + 9u, v.j);
}

fn left_at(row: u32, k: u32) -> Left {
    return coopLoadT<Left>(&left[row * LEFT_STRIDE + k / 4u], LEFT_STRIDE);
}

fn right_at(k: u32, column: u32) -> Right {
    return coopLoadT<Right>(&right[k * RIGHT_STRIDE + column / 4u], RIGHT_STRIDE);
}

// Adds the subgroups' sums of 16 x 16 values, and stores them.
fn finish(lane: u32, row: u32, column: u32, sums: Sums) {
    coopStoreT(sums, &result[lane / 32u * 64u], 4u);
    workgroupBarrier();
    if lane < 64u {
        let value = (result[lane] + result[64u + lane]) + (result[128u + lane] + result[192u + lane]);
        store_result(row + lane / 4u, column / 4u + lane % 4u, value);
    }
    workgroupBarrier();
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    tile = wid;
    member = lane % 32u;
    prepare(lane);
    let own = lane / 32u * 32u;   // the subgroup's part of a step
    var c0: Sums; var c1: Sums; var c2: Sums; var c3: Sums; var c4: Sums;
    var c5: Sums; var c6: Sums; var c7: Sums; var c8: Sums; var c9: Sums;
    var a = left_values();
    var b0 = bring_ten(lane, 0u);
    var b1 = bring_ten(lane, 10u);
    let last = steps();
    for (var s = 1u; s <= last; s++) {
        stage_left(lane, a);
        stage_ten(lane, 0u, b0);
        stage_ten(lane, 10u, b1);
        workgroupBarrier();
        if s < last {
            advance();
            a = left_values();
            b0 = bring_ten(lane, 0u);
            b1 = bring_ten(lane, 10u);
        }
        let l0 = left_at(0u, own);
        let l1 = left_at(16u, own);
        let r0 = right_at(own, 0u);
        c0 = coopMultiplyAdd(l0, r0, c0);
        c5 = coopMultiplyAdd(l1, r0, c5);
        let r1 = right_at(own, 16u);
        c1 = coopMultiplyAdd(l0, r1, c1);
        c6 = coopMultiplyAdd(l1, r1, c6);
        let r2 = right_at(own, 32u);
        c2 = coopMultiplyAdd(l0, r2, c2);
        c7 = coopMultiplyAdd(l1, r2, c7);
        let r3 = right_at(own, 48u);
        c3 = coopMultiplyAdd(l0, r3, c3);
        c8 = coopMultiplyAdd(l1, r3, c8);
        let r4 = right_at(own, 64u);
        c4 = coopMultiplyAdd(l0, r4, c4);
        c9 = coopMultiplyAdd(l1, r4, c9);
        let l2 = left_at(0u, own + 16u);
        let l3 = left_at(16u, own + 16u);
        let r5 = right_at(own + 16u, 0u);
        c0 = coopMultiplyAdd(l2, r5, c0);
        c5 = coopMultiplyAdd(l3, r5, c5);
        let r6 = right_at(own + 16u, 16u);
        c1 = coopMultiplyAdd(l2, r6, c1);
        c6 = coopMultiplyAdd(l3, r6, c6);
        let r7 = right_at(own + 16u, 32u);
        c2 = coopMultiplyAdd(l2, r7, c2);
        c7 = coopMultiplyAdd(l3, r7, c7);
        let r8 = right_at(own + 16u, 48u);
        c3 = coopMultiplyAdd(l2, r8, c3);
        c8 = coopMultiplyAdd(l3, r8, c8);
        let r9 = right_at(own + 16u, 64u);
        c4 = coopMultiplyAdd(l2, r9, c4);
        c9 = coopMultiplyAdd(l3, r9, c9);
        workgroupBarrier();
    }
    finish(lane, 0u, 0u, c0);
    finish(lane, 0u, 16u, c1);
    finish(lane, 0u, 32u, c2);
    finish(lane, 0u, 48u, c3);
    finish(lane, 0u, 64u, c4);
    finish(lane, 16u, 0u, c5);
    finish(lane, 16u, 16u, c6);
    finish(lane, 16u, 32u, c7);
    finish(lane, 16u, 48u, c8);
    finish(lane, 16u, 64u, c9);
}
