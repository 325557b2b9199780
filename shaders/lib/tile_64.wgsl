// A product of tiles in workgroup memory: 256 invocations make 64 x 64 values, 4 x 4 each, in steps of 16 along K.
// Two halves: while one is multiplied, the next tile is on its way into the other, and one barrier per step suffices.
const TILE_M: u32 = 64u;
const TILE_N4: u32 = 16u;      // groups of four columns
const TILE_K: u32 = 16u;
const LANES: u32 = 16u;        // invocations along each side of the tile

var<workgroup> left: array<vec4<f32>, 512>;    // [half][TILE_K][TILE_M / 4]
var<workgroup> right: array<vec4<f32>, 512>;   // [half][TILE_K][TILE_N4]
var<private> sums: array<vec4<f32>, 4>;        // [row]; constant indices only, or drivers keep it in memory

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

// Gives the shader's `store_result` each row and group of four columns of the tile that this invocation made.
fn finish_tile(ty: u32, tx: u32) {
    store_result(ty * 4u, tx, sums[0]);
    store_result(ty * 4u + 1u, tx, sums[1]);
    store_result(ty * 4u + 2u, tx, sums[2]);
    store_result(ty * 4u + 3u, tx, sums[3]);
}
