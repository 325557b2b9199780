// In place of lib/network.wgsl in a kernel with FUNCTION 0: drivers take long to find out that none of these functions is called.
fn network_function(function: u32, v: f32, a: f32, b: f32) -> f32 { return v; }
