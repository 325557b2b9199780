// Index of this invocation in the two-dimensional grid of plan::card::grid_1d.
fn linear_index(gid: vec3<u32>, groups: vec3<u32>, workgroup: u32) -> u32 {
    return gid.x + gid.y * groups.x * workgroup;
}
