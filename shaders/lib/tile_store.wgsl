// How an invocation's four values of one row of the left matrix (columns k0 to k0 + 3 of the tile) and its four columns of
// one row of the right matrix come into a half of the tiles of tile_64 or tile_128.
fn store_left(half: u32, row: u32, k0: u32, v: vec4<f32>) {
    let at = (half * TILE_K + k0) * (TILE_M / 4u) + row / 4u;
    let c = row % 4u;
    left[at][c] = v.x;
    left[at + TILE_M / 4u][c] = v.y;
    left[at + TILE_M / 2u][c] = v.z;
    left[at + TILE_M / 4u * 3u][c] = v.w;
}

fn store_right(half: u32, k: u32, column: u32, v: vec4<f32>) {
    right[(half * TILE_K + k) * TILE_N4 + column] = v;
}
