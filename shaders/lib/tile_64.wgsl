// A product of tiles in workgroup memory: 256 invocations make 64 x 64 values, 4 x 4 each, in steps of 16 along K.
// Two halves: while one is multiplied, the next tile is on its way into the other, and one barrier per step suffices.
const TILE_M: u32 = 64u;
const TILE_N4: u32 = 16u;      // groups of four columns
const TILE_K: u32 = 16u;
const LANES: u32 = 16u;        // invocations along each side of the tile
const ROW_GROUPS: u32 = 1u;    // groups of four rows of an invocation
const COLUMN_GROUPS: u32 = 1u; // groups of four columns of an invocation

var<workgroup> left: array<vec4<f32>, 512>;    // [half][TILE_K][TILE_M / 4]
var<workgroup> right: array<vec4<f32>, 512>;   // [half][TILE_K][TILE_N4]
var<private> sums: array<vec4<f32>, 4>;        // [row]

// Adds the product of a half's tiles to the sums of the invocation at row lane `ty` and column lane `tx`.
fn multiply_tile(half: u32, ty: u32, tx: u32) {
    for (var k = 0u; k < TILE_K; k++) {
        let at = (half * TILE_K + k) * 16u;
        let a = left[at + ty];
        let b = right[at + tx];
        sums[0] = fma(vec4<f32>(a.x), b, sums[0]);
        sums[1] = fma(vec4<f32>(a.y), b, sums[1]);
        sums[2] = fma(vec4<f32>(a.z), b, sums[2]);
        sums[3] = fma(vec4<f32>(a.w), b, sums[3]);
    }
}
