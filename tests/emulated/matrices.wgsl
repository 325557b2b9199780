// Cooperative matrices on a device that has none, in place of lib/matrices.wgsl. Invocation m of a subgroup holds row m / 2 of
// a left matrix, and of the sums the columns from m % 2 * 8 on; a right matrix is read from memory when it is multiplied.
// tests/matrices.rs puts the names of workgroup arrays in the place of ARRAY.
struct Left { v: array<f32, 16> }
struct Right { at: u32, row_step: u32, column_step: u32 }   // in values
struct Sums { v: array<f32, 8> }

var<private> member: u32;

fn coopMultiplyAdd_emulated(a: Left, b: Right, c: Sums) -> Sums {
    var l = a;
    var y = c;
    for (var k = 0u; k < 16u; k++) {
        for (var j = 0u; j < 8u; j++) {
            let at = b.at + k * b.row_step + (member % 2u * 8u + j) * b.column_step;
            y.v[j] += l.v[k] * f32(RIGHT[at / 4u][at % 4u]);
        }
    }
    return y;
}
//:Left
fn coopLoadT_Left_ARRAY(at: u32, stride: u32) -> Left {
    var y: Left;
    for (var k = 0u; k < 16u; k++) { y.v[k] = f32(ARRAY[at + member / 2u * stride + k / 4u][k % 4u]); }
    return y;
}
//:Right
fn coopLoadT_Right_ARRAY(at: u32, stride: u32) -> Right { return Right(at * 4u, stride * 4u, 1u); }
fn coopLoad_Right_ARRAY(at: u32, stride: u32) -> Right { return Right(at * 4u, 1u, stride * 4u); }
//:Sums
fn coopLoadT_Sums_ARRAY(at: u32, stride: u32) -> Sums {
    var y: Sums;
    for (var j = 0u; j < 8u; j++) { y.v[j] = ARRAY[at + member / 2u * stride + member % 2u * 2u + j / 4u][j % 4u]; }
    return y;
}
fn coopStoreT_ARRAY(sums: Sums, at: u32, stride: u32) {
    var s = sums;
    for (var j = 0u; j < 8u; j++) { ARRAY[at + member / 2u * stride + member % 2u * 2u + j / 4u][j % 4u] = s.v[j]; }
}
