// Cooperative matrices of 8 x 8 on a device that has none, in place of lib/matrices_of_8.wgsl. Invocation m of a subgroup holds row m / 4 of
// a left matrix, and of the sums the columns m % 4 * 2 and the next; a right matrix is read from memory when it is multiplied.
// tests/matrices.rs puts the names of workgroup arrays in the place of ARRAY.
struct Left { v: array<f32, 8> }
struct Right { at: u32, row_step: u32 }   // in values
struct Sums { v: array<f32, 2> }

var<private> member: u32;

fn coopMultiplyAdd_emulated(a: Left, b: Right, c: Sums) -> Sums {
    var l = a;
    var y = c;
    for (var k = 0u; k < 8u; k++) {
        let at = b.at + k * b.row_step + member % 4u * 2u;
        y.v[0] += l.v[k] * f32(RIGHT[at]);
        y.v[1] += l.v[k] * f32(RIGHT[at + 1u]);
    }
    return y;
}
//:Left
fn coopLoadT_Left_ARRAY(at: u32, stride: u32) -> Left {
    var y: Left;
    for (var k = 0u; k < 8u; k++) { y.v[k] = f32(ARRAY[at + member / 4u * stride + k]); }
    return y;
}
//:Right
fn coopLoadT_Right_ARRAY(at: u32, stride: u32) -> Right { return Right(at, stride); }
//:Sums
fn coopStoreT_ARRAY(sums: Sums, at: u32, stride: u32) {
    let to = at + member / 4u * stride + member % 4u * 2u;
    ARRAY[to] = sums.v[0];
    ARRAY[to + 1u] = sums.v[1];
}
