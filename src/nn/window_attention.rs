//! Attention inside the windows of an image, which may be shifted: Swin transformers.
//! Source: Liu et al., "Swin Transformer" (2021), section 3.2 and equation 4; `timm/models/swin_transformer.py`,
//! `torchvision/models/swin_transformer.py`.

use crate::base::{Array, Result};
use crate::nn::Linear;
use crate::plan::{Layout, Tape, Tensor, Weight};
use crate::weights::Scope;

/// What keeps pixels that the shift brought together from seeing each other; finite, as the reference has it.
const MASKED: f32 = -100.0;
/// Longest side of a window: a table for a larger one would claim more memory than any published model needs.
pub const LONGEST_WINDOW: usize = 32;

/// Where the windows of a block lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Rows, columns.
    pub size: [usize; 2],
    /// Pixels that the windows are moved by, down and to the right.
    pub shift: [usize; 2],
    /// The image is padded to whole windows before it is shifted, not after.
    pub pads_first: bool,
    /// Windows are shifted along an axis that one of them covers, too.
    pub shifts_always: bool,
}

/// proj(softmax(q k^T / sqrt(d) + bias + mask) v) per window, with q, k, v linear in x; the bias depends on the distance of two
/// pixels along both axes, per head.
pub struct WindowAttention {
    name: String,
    qkv: Linear,
    /// `[1, heads, A, A]`, A pixels in a window.
    bias: Weight,
    proj: Linear,
    heads: usize,
    windows: Windows,
}

impl WindowAttention {
    /// `scope` holds qkv, proj and the table of biases, a row for every distance, a column for every head.
    pub fn load(scope: &Scope, width: usize, windows: Windows) -> WindowAttention {
        let [rows, columns] = windows.size;
        let heads = scope.shape("relative_position_bias_table").and_then(|s| s.get(1)).copied().unwrap_or(1);
        let inner = scope.shape("qkv.weight").and_then(|s| s.first()).map_or(width, |rows| rows / 3);
        let fits = (1..=LONGEST_WINDOW).contains(&rows) && (1..=LONGEST_WINDOW).contains(&columns);
        if !fits {
            scope.fault(&format!("windows of {rows} x {columns} pixels, expected sides of 1 to {LONGEST_WINDOW}"));
        }
        if heads == 0 || !inner.is_multiple_of(heads) {
            scope.fault(&format!("{inner} channels in {heads} heads"));
        }
        let distances = (2 * rows).saturating_sub(1).saturating_mul((2 * columns).saturating_sub(1));
        let table = scope.weight("relative_position_bias_table", &[distances, heads], Layout::Plain);
        // Both follow from the window's size.
        scope.dropping("relative_position_index");
        let qkv = scope.child("qkv");
        let qkv = if qkv.has("bias") { Linear::load(&qkv, width, 3 * inner) } else { Linear::without_bias(&qkv, width, 3 * inner) };
        let name = format!("{}.bias", table.name);
        let bias = Weight::new(&name, if fits { relative_bias(&table.array.to_array(), windows.size, heads) } else { Array::zeros(&[1, heads, 0, 0]) });
        WindowAttention { name: scope.name().to_string(), qkv, bias, proj: Linear::load(&scope.child("proj"), inner, width), heads, windows }
    }

    pub fn heads(&self) -> usize {
        self.heads
    }

    pub fn window(&self) -> [usize; 2] {
        self.windows.size
    }

    /// x: `[N, H, W, C]`, as is the result.
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.within(&self.name, |t| {
            let [_, h, w, _] = t.nhwc(x)?;
            let Windows { size, shift, pads_first, shifts_always } = self.windows;
            let whole = [h.div_ceil(size[0]) * size[0], w.div_ceil(size[1]) * size[1]];
            let shift: [usize; 2] = std::array::from_fn(|axis| if shifts_always || [h, w][axis] > size[axis] { shift[axis] } else { 0 });
            let y = if pads_first {
                let y = padded(t, x, whole)?;
                rolled(t, y, shift)?
            } else {
                let y = rolled(t, x, shift)?;
                padded(t, y, whole)?
            };
            let y = self.attend(t, y, shift)?;
            // A roll is undone by the rest of the way round.
            let rest = |size: [usize; 2]| std::array::from_fn(|axis| (size[axis] - shift[axis] % size[axis]) % size[axis]);
            if pads_first {
                let y = rolled(t, y, rest(whole))?;
                cropped(t, y, [h, w])
            } else {
                let y = cropped(t, y, [h, w])?;
                rolled(t, y, rest([h, w]))
            }
        })
    }

    /// x: `[N, H, W, C]` of whole windows.
    fn attend(&self, t: &mut Tape, x: Tensor, shift: [usize; 2]) -> Result<Tensor> {
        let [n, h, w, c] = t.nhwc(x)?;
        let [rows, columns] = self.windows.size;
        let (down, across, area) = (h / rows, w / columns, rows * columns);
        let y = t.reshape(x, &[n, down, rows, across, columns, c])?;
        let y = t.permute(y, &[0, 1, 3, 2, 4, 5])?;
        let y = t.reshape(y, &[n * down * across, area, c])?;
        let y = self.qkv.forward(t, y)?;
        let parts = t.split(y, 2, 3)?;
        let mut bias = t.weight(&self.bias);
        if shift != [0, 0] {
            let mask = t.weight(&Weight::new("attn_mask", mask([h, w], self.windows.size, shift)));
            bias = t.add(bias, mask)?;
        }
        let y = t.attention_with_bias(parts[0], parts[1], parts[2], bias, self.heads)?;
        let y = self.proj.forward(t, y)?;
        let y = t.reshape(y, &[n, down, across, rows, columns, c])?;
        let y = t.permute(y, &[0, 1, 3, 2, 4, 5])?;
        t.reshape(y, &[n, h, w, c])
    }
}

/// Row (di + R - 1) (2 C - 1) + dj + C - 1 of the table for two pixels of a window R x C that lie di rows and dj columns apart:
/// `[1, heads, A, A]`. A table that could not be loaded gives no values.
fn relative_bias(table: &Array, [rows, columns]: [usize; 2], heads: usize) -> Array {
    let area = rows * columns;
    let place = |query: usize, key: usize| {
        let down = query / columns + rows - 1 - key / columns;
        let across = query % columns + columns - 1 - key % columns;
        down * (2 * columns - 1) + across
    };
    let mut data = Vec::new();
    if !table.data.is_empty() {
        data.reserve_exact(heads * area * area);
        for head in 0..heads {
            data.extend((0..area * area).map(|i| table.data[place(i / area, i % area) * heads + head]));
        }
    }
    Array { shape: crate::base::Shape::new(&[1, heads, area, area]), data }
}

/// 0 for two pixels of a window that lay in one part of the image before it was shifted, else [`MASKED`]:
/// `[windows, 1, A, A]`.
fn mask(size: [usize; 2], window: [usize; 2], shift: [usize; 2]) -> Array {
    // Before the last window, before the pixels that came from the other end, and those; one part where nothing is shifted.
    let part = |at: usize, axis: usize| match shift[axis] {
        0 => 0,
        _ if at < size[axis] - window[axis] => 0,
        shift if at < size[axis] - shift => 1,
        _ => 2,
    };
    let across = size[1] / window[1];
    let (count, area) = (size[0] / window[0] * across, window[0] * window[1]);
    let mut data = Vec::with_capacity(count * area * area);
    for at in 0..count {
        let parts: Vec<usize> =
            (0..area).map(|i| 3 * part(at / across * window[0] + i / window[1], 0) + part(at % across * window[1] + i % window[1], 1)).collect();
        data.extend(parts.iter().flat_map(|a| parts.iter().map(move |b| if a == b { 0.0 } else { MASKED })));
    }
    Array { shape: crate::base::Shape::new(&[count, 1, area, area]), data }
}

/// `x` `[N, H, W, C]` with zeros below and to the right, of `size` rows and columns.
pub fn padded(t: &mut Tape, x: Tensor, size: [usize; 2]) -> Result<Tensor> {
    let mut y = x;
    for (axis, size) in [(1, size[0]), (2, size[1])] {
        let mut dims = t.shape(y).dims().to_vec();
        let batch = dims[0];
        let Some(missing) = size.checked_sub(dims[axis]).filter(|&missing| missing > 0) else { continue };
        (dims[0], dims[axis]) = (1, missing);
        let zeros = t.weight(&Weight::new("padding", Array::zeros(&dims)));
        let zeros = t.repeat(zeros, batch)?;
        y = t.concat_axis(&[y, zeros], axis)?;
    }
    Ok(y)
}

fn cropped(t: &mut Tape, x: Tensor, size: [usize; 2]) -> Result<Tensor> {
    let mut y = x;
    for (axis, size) in [(1, size[0]), (2, size[1])] {
        if t.shape(y)[axis] != size {
            y = t.slice(y, axis, 0, size)?;
        }
    }
    Ok(y)
}

/// Row i of the result is row i + by[0] of `x`, around its end; columns likewise.
fn rolled(t: &mut Tape, x: Tensor, by: [usize; 2]) -> Result<Tensor> {
    let mut y = x;
    for (axis, by) in [(1, by[0]), (2, by[1])] {
        let size = t.shape(y)[axis];
        let by = by % size.max(1);
        if by > 0 {
            let (head, tail) = (t.slice(y, axis, 0, by)?, t.slice(y, axis, by, size - by)?);
            y = t.concat_axis(&[tail, head], axis)?;
        }
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DType;
    use crate::ops::case::run_tape;

    #[test]
    fn distances_have_one_row_each() {
        // Windows of 1 x 3: five distances, from -2 to 2.
        let table = Array::new(&[5, 2], (0..10).map(|v| v as f32).collect()).unwrap();
        let bias = relative_bias(&table, [1, 3], 2);
        assert_eq!(bias.dims(), [1, 2, 3, 3]);
        assert_eq!(bias.data[..9], [4.0, 2.0, 0.0, 6.0, 4.0, 2.0, 8.0, 6.0, 4.0], "the query's column less the key's, head 0");
        assert_eq!(bias.data[9..12], [5.0, 3.0, 1.0]);
        assert_eq!(relative_bias(&table, [3, 1], 2).data, bias.data);
    }

    #[test]
    fn a_shift_parts_the_last_windows_only() {
        let mask = mask([4, 2], [2, 2], [1, 0]);
        assert_eq!(mask.dims(), [2, 1, 4, 4]);
        assert!(mask.data[..16].iter().all(|v| *v == 0.0));
        let row = |i: usize| &mask.data[16 + 4 * i..20 + 4 * i];
        assert_eq!(row(0), [0.0, 0.0, MASKED, MASKED]);
        assert_eq!(row(3), [MASKED, MASKED, 0.0, 0.0]);
    }

    #[test]
    fn a_roll_goes_round() {
        let mut t = Tape::new();
        let x = t.input("x", &[1, 2, 3, 1], DType::F32);
        let y = rolled(&mut t, x, [1, 2]).unwrap();
        assert_eq!(run_tape(&t, &[&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]], y).unwrap(), [5.0, 3.0, 4.0, 2.0, 0.0, 1.0]);
    }
}
