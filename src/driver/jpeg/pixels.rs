//! From component planes to pixels as libjpeg does: triangle filters where chroma is halved, else repetition; then colours.

use image::{DynamicImage, GrayImage, RgbImage};

use super::headers::{Component, Frame};

/// The whole image. Planes of a frame are complete.
pub fn image(frame: &Frame) -> DynamicImage {
    let (width, height) = (frame.width, frame.height);
    let size = (width as u32, height as u32);
    let mut rows: Vec<Vec<u8>> = frame.components.iter().map(|_| vec![0; width + 1]).collect();
    let mut data = Vec::with_capacity(width * height * rows.len());
    for y in 0..height {
        for (component, row) in frame.components.iter().zip(&mut rows) {
            upsample(component, frame, y, row);
        }
        match &rows[..] {
            [grey] => data.extend_from_slice(&grey[..width]),
            [a, b, c] => colours(frame.is_rgb, [&a[..width], &b[..width], &c[..width]], &mut data),
            _ => (),
        }
    }
    let whole = "a byte for each channel of each pixel";
    match rows.len() {
        1 => GrayImage::from_raw(size.0, size.1, data).expect(whole).into(),
        _ => RgbImage::from_raw(size.0, size.1, data).expect(whole).into(),
    }
}

/// JFIF's YCbCr to RGB, constants of 16 bits.
fn colours(is_rgb: bool, [luma, blue, red]: [&[u8]; 3], data: &mut Vec<u8>) {
    const HALF: i32 = 1 << 15;
    let from = data.len();
    data.resize(from + 3 * luma.len(), 0);
    for (((pixel, &y), &cb), &cr) in data[from..].chunks_exact_mut(3).zip(luma).zip(blue).zip(red) {
        if is_rgb {
            pixel.copy_from_slice(&[y, cb, cr]);
            continue;
        }
        let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        let r = y + ((91881 * cr + HALF) >> 16);
        let g = y + ((-22554 * cb - 46802 * cr + HALF) >> 16);
        let b = y + ((116130 * cb + HALF) >> 16);
        pixel.copy_from_slice(&[r, g, b].map(|v| v.clamp(0, 255) as u8));
    }
}

/// Row `y` of the image's size from a component's plane. `out` has room for one pixel more than the width.
fn upsample(c: &Component, frame: &Frame, y: usize, out: &mut [u8]) {
    let (across, down) = (frame.max_h / c.h, frame.max_v / c.v);
    // As in libjpeg, the filter along the row needs three samples.
    let smooth = across == 2 && c.width > 2;
    match (across, down) {
        (1, 1) => out[..frame.width].copy_from_slice(&c.row(y)[..frame.width]),
        (1, 2) => {
            let bias = 1 + (y as u16 & 1);
            for ((pixel, near), far) in out.iter_mut().zip(&c.row(y / 2)[..c.width]).zip(c.row(neighbour(y, c.height))) {
                *pixel = ((3 * u16::from(*near) + u16::from(*far) + bias) >> 2) as u8;
            }
        }
        (2, 1) if smooth => {
            let row: Vec<u16> = c.row(y)[..c.width].iter().map(|&v| u16::from(v)).collect();
            along(&row, 2, [1, 2], out);
        }
        (2, 2) if smooth => {
            let pairs = c.row(y / 2)[..c.width].iter().zip(c.row(neighbour(y, c.height)));
            let row: Vec<u16> = pairs.map(|(near, far)| 3 * u16::from(*near) + u16::from(*far)).collect();
            along(&row, 4, [8, 7], out);
        }
        _ => {
            let row = c.row(y / down);
            for (x, pixel) in out[..frame.width].iter_mut().enumerate() {
                *pixel = row[x / across];
            }
        }
    }
}

/// The row of a halved plane that is second nearest to row `y` of the image: the one above for even rows, below for odd ones.
fn neighbour(y: usize, height: usize) -> usize {
    if y.is_multiple_of(2) { (y / 2).saturating_sub(1) } else { (y / 2 + 1).min(height - 1) }
}

/// Twice as many samples: 3/4 of the near and 1/4 of the far one, at both ends the end itself. Divided by 2^shift; the left and the right of
/// a pair are rounded by different biases.
fn along(row: &[u16], shift: u32, [left, right]: [u16; 2], out: &mut [u8]) {
    let last = row.len() - 1;
    let ends = [(0, 4 * row[0] + left), (2 * last + 1, 4 * row[last] + right)];
    for (k, pair) in row.windows(2).enumerate() {
        let at = 2 * k + 1;
        out[at] = ((3 * pair[0] + pair[1] + right) >> shift) as u8;
        if at + 1 < out.len() {
            out[at + 1] = ((3 * pair[1] + pair[0] + left) >> shift) as u8;
        }
    }
    for (at, value) in ends {
        if at < out.len() {
            out[at] = (value >> shift) as u8;
        }
    }
}
