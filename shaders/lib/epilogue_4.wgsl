// What becomes of four finished sums side by side: f((sum + bias) + added), ops/epilogue.rs. Columns count groups of four. The shader
// has `p`, `bias` and `added`.
override FUNCTION: u32 = 0u;   // p.function, so that a kernel holds one function and not all

fn finished(sum: vec4<f32>, row: u32, column: u32, columns: u32) -> elem4 {
    var v = sum;
    if p.has_bias != 0u { v += vec4<f32>(bias[column]); }
    if p.added_count != 0u { v += vec4<f32>(added[row / p.added_rows % p.added_count * columns + column]); }
    if FUNCTION != 0u {
        v = vec4<f32>(
            network_function(FUNCTION, v.x, p.a, p.b), network_function(FUNCTION, v.y, p.a, p.b),
            network_function(FUNCTION, v.z, p.a, p.b), network_function(FUNCTION, v.w, p.a, p.b),
        );
    }
    return elem4(v);
}
