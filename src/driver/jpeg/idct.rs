//! The inverse DCT of libjpeg's `islow` method: C. Loeffler, A. Ligtenberg, G. Moschytz, "Practical fast 1-D DCT algorithms with
//! 11 multiplications" (ICASSP 1989), constants of 13 bits, two more bits kept between the passes. What no encoder makes, values
//! beyond 16 bits, wraps and saturates where libjpeg-turbo's vector code does.

const BITS: u32 = 13;
const KEPT: u32 = 2;

/// A row of eight values, one of each column.
type Row = [i16; 8];

/// Eight rows of eight coefficients, already dequantised, become pixels at `out`, rows `stride` apart.
pub fn block(coefficients: &[i16; 64], out: &mut [u8], stride: usize) {
    let flat = coefficients[0] << KEPT;
    if coefficients[1..].iter().all(|&c| c == 0) {
        let pixel = sample((i32::from(flat) + (1 << (KEPT + 2))) >> (KEPT + 3));
        out.chunks_mut(stride).take(8).for_each(|row| row[..8].fill(pixel));
        return;
    }
    let mut rows = [Row::default(); 8];
    for (row, values) in rows.iter_mut().zip(coefficients.chunks_exact(8)) {
        row.copy_from_slice(values);
    }
    if coefficients[8..].iter().all(|&c| c == 0) {
        rows = [rows[0].map(|c| c << KEPT); 8];
    } else {
        rows = pass::<{ BITS - KEPT }>(&rows);
    }
    let rows = transposed(&pass::<{ BITS + KEPT + 3 }>(&transposed(&rows)));
    for (row, pixels) in rows.iter().zip(out.chunks_mut(stride)) {
        for (value, pixel) in row.iter().zip(pixels) {
            *pixel = sample(i32::from(*value));
        }
    }
}

fn sample(value: i32) -> u8 {
    (value.clamp(-128, 127) + 128) as u8
}

fn transposed(rows: &[Row; 8]) -> [Row; 8] {
    let mut out = [Row::default(); 8];
    for (i, row) in rows.iter().enumerate() {
        for (j, value) in row.iter().enumerate() {
            out[j][i] = *value;
        }
    }
    out
}

/// One dimension: every column is transformed and divided by 2^SHIFT, rounded.
fn pass<const SHIFT: u32>(rows: &[Row; 8]) -> [Row; 8] {
    let mut out = [Row::default(); 8];
    for i in 0..8 {
        let column = rows.map(|row| row[i]);
        for (row, value) in out.iter_mut().zip(transform::<SHIFT>(column)) {
            row[i] = value;
        }
    }
    out
}

fn transform<const SHIFT: u32>([x0, x1, x2, x3, x4, x5, x6, x7]: [i16; 8]) -> [i16; 8] {
    let times = |x: i16, constant: i32| i32::from(x) * constant;
    let sum = |terms: [i32; 2]| terms[0].wrapping_add(terms[1]);
    // Even part: rotation by 6 pi / 16.
    let (low, high) = (times(x2, 4433) + times(x6, 4433 - 15137), times(x2, 4433 + 6270) + times(x6, 4433));
    let (same, other) = (i32::from(x0.wrapping_add(x4)) << BITS, i32::from(x0.wrapping_sub(x4)) << BITS);
    let even = [sum([same, high]), sum([other, low]), sum([other, -low]), sum([same, -high])];
    // Odd part: the paper's figure 8, the rotations' common factors multiplied out.
    let (a, b) = (x7.wrapping_add(x3), x5.wrapping_add(x1));
    let (c, d) = (times(a, 9633 - 16069) + times(b, 9633), times(a, 9633) + times(b, 9633 - 3196));
    let odd = [
        sum([times(x1, 12299 - 7373) + times(x7, -7373), d]),
        sum([times(x3, 25172 - 20995) + times(x5, -20995), c]),
        sum([times(x5, 16819 - 20995) + times(x3, -20995), d]),
        sum([times(x7, 2446 - 7373) + times(x1, -7373), c]),
    ];
    let rounded = |value: i32| (value.wrapping_add(1 << (SHIFT - 1)) >> SHIFT).clamp(i16::MIN.into(), i16::MAX.into()) as i16;
    let both = |k: usize| (rounded(even[k].wrapping_add(odd[k])), rounded(even[k].wrapping_sub(odd[k])));
    let [(y0, y7), (y1, y6), (y2, y5), (y3, y4)] = [both(0), both(1), both(2), both(3)];
    [y0, y1, y2, y3, y4, y5, y6, y7]
}
