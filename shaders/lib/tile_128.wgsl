// A product of tiles in workgroup memory: 256 invocations make 128 x 128 values, 8 x 8 each, in steps of 8 along K.
// Two halves: while one is multiplied, the next tile is on its way into the other, and one barrier per step suffices.
const TILE_M: u32 = 128u;
const TILE_N4: u32 = 32u;      // groups of four columns
const TILE_K: u32 = 8u;
const LANES: u32 = 16u;        // invocations along each side of the tile
const ROW_GROUPS: u32 = 2u;    // groups of four rows of an invocation
const COLUMN_GROUPS: u32 = 2u; // groups of four columns of an invocation

var<workgroup> left: array<vec4<f32>, 512>;    // [half][TILE_K][TILE_M / 4]
var<workgroup> right: array<vec4<f32>, 512>;   // [half][TILE_K][TILE_N4]
var<private> sums: array<vec4<f32>, 16>;       // [row][column group]

// Adds the product of a half's tiles to the sums of the invocation at row lane `ty` and column lane `tx`.
fn multiply_tile(half: u32, ty: u32, tx: u32) {
    for (var k = 0u; k < TILE_K; k++) {
        let at = (half * TILE_K + k) * 32u;
        let a0 = left[at + ty];
        let a1 = left[at + 16u + ty];
        let b0 = right[at + tx];
        let b1 = right[at + 16u + tx];
        sums[0] = fma(vec4<f32>(a0.x), b0, sums[0]);   sums[1] = fma(vec4<f32>(a0.x), b1, sums[1]);
        sums[2] = fma(vec4<f32>(a0.y), b0, sums[2]);   sums[3] = fma(vec4<f32>(a0.y), b1, sums[3]);
        sums[4] = fma(vec4<f32>(a0.z), b0, sums[4]);   sums[5] = fma(vec4<f32>(a0.z), b1, sums[5]);
        sums[6] = fma(vec4<f32>(a0.w), b0, sums[6]);   sums[7] = fma(vec4<f32>(a0.w), b1, sums[7]);
        sums[8] = fma(vec4<f32>(a1.x), b0, sums[8]);   sums[9] = fma(vec4<f32>(a1.x), b1, sums[9]);
        sums[10] = fma(vec4<f32>(a1.y), b0, sums[10]); sums[11] = fma(vec4<f32>(a1.y), b1, sums[11]);
        sums[12] = fma(vec4<f32>(a1.z), b0, sums[12]); sums[13] = fma(vec4<f32>(a1.z), b1, sums[13]);
        sums[14] = fma(vec4<f32>(a1.w), b0, sums[14]); sums[15] = fma(vec4<f32>(a1.w), b1, sums[15]);
    }
}
