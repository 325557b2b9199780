//! The hole: which pixels and latent cells are repainted. Pure functions of masks and images on the host.
//!
//! Pixels outside the hole are known; the sample shows them as the input has them.

use std::ops::Range;

use crate::base::{Error, Kind, Result};

/// A set of cells of a grid, row-major: the hole where `true`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    pub width: usize,
    pub height: usize,
    pub open: Vec<bool>,
}

impl Region {
    /// The cells of `values` (row-major, `height` rows) that `is_open` takes. Fails when the count is not width times height.
    pub fn new<T: Copy>(width: usize, height: usize, values: &[T], is_open: impl Fn(T) -> bool) -> Result<Region> {
        if width.checked_mul(height) != Some(values.len()) {
            return Err(Error::new(Kind::Shape, "hole", format!("{} values, expected {height} rows of {width}", values.len())));
        }
        Ok(Region { width, height, open: values.iter().map(|&v| is_open(v)).collect() })
    }

    /// Number of open cells.
    pub fn area(&self) -> usize {
        self.open.iter().filter(|&&open| open).count()
    }

    /// 1.0 where open, else 0.0.
    pub fn values(&self) -> Vec<f32> {
        self.open.iter().map(|&open| f32::from(u8::from(open))).collect()
    }

    /// Maximum over the (2 radius + 1) square around each cell; outside the grid nothing is open.
    pub fn dilate(&self, radius: usize) -> Region {
        let (w, h) = (self.width, self.height);
        let row = |x: usize, y: usize| around(x, radius, w).any(|x| self.open[y * w + x]);
        let rows: Vec<bool> = (0..w * h).map(|i| row(i % w, i / w)).collect();
        let column = |x: usize, y: usize| around(y, radius, h).any(|y| rows[y * w + x]);
        Region { width: w, height: h, open: (0..w * h).map(|i| column(i % w, i / w)).collect() }
    }

    /// The grid of `cell` by `cell` blocks: a block is open when any of its cells is. A block that the grid's edge cuts counts.
    pub fn max_pool(&self, cell: usize) -> Region {
        let (w, h) = (self.width.div_ceil(cell), self.height.div_ceil(cell));
        let mut open = vec![false; w * h];
        for (i, _) in self.open.iter().enumerate().filter(|(_, open)| **open) {
            open[i / self.width / cell * w + i % self.width / cell] = true;
        }
        Region { width: w, height: h, open }
    }

    /// Every `cell`-th cell of every `cell`-th row: torch's nearest resizing by a whole factor.
    pub fn nearest(&self, cell: usize) -> Region {
        let (w, h) = (self.width / cell, self.height / cell);
        let open = (0..w * h).map(|i| self.open[i / w * cell * self.width + i % w * cell]).collect();
        Region { width: w, height: h, open }
    }

    /// Every cell as a block of `cell` by `cell`.
    pub fn enlarge(&self, cell: usize) -> Region {
        let (w, h) = (self.width * cell, self.height * cell);
        let open = (0..w * h).map(|i| self.open[i / w / cell * self.width + i % w / cell]).collect();
        Region { width: w, height: h, open }
    }

    /// How much of the repainted image shows in each cell: 0 outside the hole; inside, a ramp over `feather` cells from its edge,
    /// 1 / (feather + 1) beside a known cell and 1 further in. The image's own border is no edge.
    pub fn weights(&self, feather: usize) -> Vec<f32> {
        let mut weights = self.values();
        let step = 1.0 / (feather + 1) as f32;
        let closed = Region { open: self.open.iter().map(|open| !open).collect(), ..*self };
        for distance in (1..=feather).rev() {
            let near = closed.dilate(distance);
            let edge = weights.iter_mut().zip(&near.open).zip(&self.open).filter(|((_, near), open)| **near && **open);
            edge.for_each(|((weight, _), _)| *weight = distance as f32 * step);
        }
        weights
    }
}

fn around(center: usize, radius: usize, len: usize) -> Range<usize> {
    center.saturating_sub(radius)..(center + radius + 1).min(len)
}

/// `image` (`[H, W, channels]`) with `fill` in the hole.
pub fn masked_image(image: &[f32], hole: &Region, channels: usize, fill: f32) -> Vec<f32> {
    let pixels = image.chunks(channels).zip(&hole.open);
    pixels.flat_map(|(pixel, &open)| pixel.iter().map(move |&v| if open { fill } else { v })).collect()
}

/// `decoded` in the hole and `image` outside it, both `[H, W, channels]`.
pub fn composite(image: &[f32], decoded: &[f32], hole: &Region, channels: usize) -> Vec<f32> {
    let pixels = image.chunks(channels).zip(decoded.chunks(channels)).zip(&hole.open);
    pixels.flat_map(|((known, new), &open)| if open { new } else { known }.iter().copied()).collect()
}

/// The written pixels: `image` (u8) outside the hole, bit for bit; inside, `decoded` ([0, 1], clamped) mixed in by
/// [`Region::weights`] and rounded to the nearest of 256 values.
pub fn composite_u8(image: &[u8], decoded: &[f32], hole: &Region, channels: usize, feather: usize) -> Vec<u8> {
    let weights = hole.weights(feather);
    let mix = |i: usize| {
        let weight = weights[i / channels];
        if weight == 0.0 {
            return image[i];
        }
        let known = f32::from(image[i]);
        (known + weight * (decoded[i].clamp(0.0, 1.0) * 255.0 - known)).round() as u8
    };
    (0..image.len()).map(mix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of `#` (open) and `.`.
    fn region(rows: &[&str]) -> Region {
        let text: Vec<u8> = rows.concat().into_bytes();
        Region::new(rows[0].len(), rows.len(), &text, |c| c == b'#').unwrap()
    }

    #[test]
    fn dilation_is_the_maximum_over_a_square() {
        let dot = region(&[".....", ".....", "..#..", "....."]);
        assert_eq!(dot.dilate(1), region(&[".....", ".###.", ".###.", ".###."]));
        assert_eq!(dot.dilate(0), dot);
        assert_eq!(dot.dilate(9).area(), 20);
        let corner = region(&["#..", "...", "..."]);
        assert_eq!(corner.dilate(1), region(&["##.", "##.", "..."]));
    }

    #[test]
    fn cells_open_by_any_pixel_and_come_back_as_blocks() {
        let pixels = region(&["....", ".#..", "....", "...."]);
        let cells = pixels.max_pool(2);
        assert_eq!(cells, region(&["#.", ".."]));
        assert_eq!(cells.enlarge(2), region(&["##..", "##..", "....", "...."]));
        assert_eq!(region(&["....#"]).max_pool(4), region(&[".#"]));
    }

    #[test]
    fn known_pixels_are_untouched_bit_for_bit() {
        let hole = region(&[".##.", ".##."]);
        let image: Vec<u8> = (0..24).map(|v| v * 10).collect();
        let decoded = vec![2.0f32; 24];
        for feather in [0, 1, 5] {
            let out = composite_u8(&image, &decoded, &hole, 3, feather);
            for i in (0..24).filter(|i| !hole.open[i / 3]) {
                assert_eq!(out[i], image[i]);
            }
        }
        let out = composite_u8(&image, &decoded, &hole, 3, 0);
        assert!((0..24).filter(|i| hole.open[i / 3]).all(|i| out[i] == 255));
        let image: Vec<f32> = (0..24).map(|v| v as f32 / 7.0).collect();
        let out = composite(&image, &decoded, &hole, 3);
        assert!((0..24).all(|i| out[i].to_bits() == if hole.open[i / 3] { 2.0f32 } else { image[i] }.to_bits()));
        assert!((0..24).all(|i| masked_image(&image, &hole, 3, 0.5)[i] == if hole.open[i / 3] { 0.5 } else { image[i] }));
    }

    #[test]
    fn feather_ramps_inside_the_hole_only() {
        let hole = region(&[".#####."]);
        let w = hole.weights(2);
        let want = [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 2.0 / 3.0, 1.0 / 3.0, 0.0];
        assert!(w.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{w:?}");
        assert_eq!(hole.weights(0), hole.values());
        assert!(region(&["###"]).weights(4).iter().all(|&w| w == 1.0), "the border of the image is no edge");
    }

    #[test]
    fn a_wrong_count_is_an_error() {
        let error = Region::new(3, 2, &[0.0f32; 5], |v| v > 0.5).unwrap_err();
        assert_eq!(error.to_string(), "hole: 5 values, expected 2 rows of 3");
    }
}
