// How the tiles of matrices_128 and matrices_160 are filled, read and given to the shader's `store_result`. The shader has
// `prepare`, which takes the invocation's index; `steps`, the number of steps along K; `advance` to the next one; and the values
// of the present one: `left_value(i, k4)` of row lane / 8 + i INVOCATIONS / 8 and the group of four lane % 8 + k4 along K, and
// `right_values(k, n4)`.

struct Four { a: vec4<f16>, b: vec4<f16>, c: vec4<f16>, d: vec4<f16> }

// The groups of four along K of the four rows that an invocation brings.
fn left_values() -> Four {
    return Four(left_value(0u, 0u), left_value(1u, 0u), left_value(2u, 0u), left_value(3u, 0u));
}

fn stage_left(lane: u32, v: Four) {
    let at = lane / 8u * LEFT_STRIDE + lane % 8u;
    let rows = INVOCATIONS / 8u * LEFT_STRIDE;
    left[at] = v.a;
    left[at + rows] = v.b;
    left[at + 2u * rows] = v.c;
    left[at + 3u * rows] = v.d;
}

fn left_at(row: u32, k: u32) -> Left {
    return coopLoadT<Left>(&left[row * LEFT_STRIDE + k / 4u], LEFT_STRIDE);
}

fn right_at(k: u32, column: u32) -> Right {
    return coopLoadT<Right>(&right[k * RIGHT_STRIDE + column / 4u], RIGHT_STRIDE);
}

// Stores a subgroup's sums, which begin at a row and a column of the tile, by way of its own part of workgroup memory.
fn finish(own: u32, row: u32, column: u32, sums: Sums) {
    coopStoreT(sums, &result[own], 4u);
    workgroupBarrier();
    let at = own + member * 2u;
    let r = row + member / 2u;
    let c = column / 4u + member % 2u * 2u;
    store_result(r, c, result[at]);
    store_result(r, c + 1u, result[at + 1u]);
    workgroupBarrier();
}
