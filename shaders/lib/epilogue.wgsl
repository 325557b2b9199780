// What becomes of a finished sum: f((sum + bias) + added), ops/epilogue.rs. The shader has `p`, `bias` and `added`.
override FUNCTION: u32 = 0u;   // p.function, so that a kernel holds one function and not all

fn finished(sum: f32, row: u32, column: u32, columns: u32) -> elem {
    var v = sum;
    if p.has_bias != 0u { v += f32(bias[column]); }
    if p.added_count != 0u { v += f32(added[row / p.added_rows % p.added_count * columns + column]); }
    if FUNCTION != 0u { v = network_function(FUNCTION, v, p.a, p.b); }
    return elem(v);
}
