//! A picture that is drawn on: rectangles, images, text in Noto Sans Mono. What lies outside is cut off.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use crate::driver::image::Rgb8;

pub type Colour = [u8; 3];

/// How text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Face {
    pub is_bold: bool,
    pub is_large: bool,
    pub colour: Colour,
}

impl Face {
    fn weight(self) -> FontWeight {
        if self.is_bold { FontWeight::Bold } else { FontWeight::Regular }
    }

    fn size(self) -> RasterHeight {
        if self.is_large { RasterHeight::Size24 } else { RasterHeight::Size16 }
    }

    /// Pixels of `text` along the line.
    pub fn width(self, text: &str) -> usize {
        text.chars().count() * get_raster_width(self.weight(), self.size())
    }

    /// Pixels of a line from top to bottom.
    pub fn height(self) -> usize {
        self.size().val()
    }
}

pub struct Canvas {
    pub image: Rgb8,
}

impl Canvas {
    pub fn new(width: usize, height: usize, colour: Colour) -> Canvas {
        Canvas { image: Rgb8 { width, height, data: colour.repeat(width * height) } }
    }

    /// Mixes `colour` into pixel (x, y): `cover` 255 replaces it.
    fn mix(&mut self, x: usize, y: usize, colour: Colour, cover: u8) {
        if x < self.image.width && y < self.image.height {
            let at = (y * self.image.width + x) * 3;
            for (below, above) in self.image.data[at..at + 3].iter_mut().zip(colour) {
                let (a, b, c) = (u32::from(*below), u32::from(above), u32::from(cover));
                *below = ((a * (255 - c) + b * c + 127) / 255) as u8;
            }
        }
    }

    pub fn fill(&mut self, [x, y]: [usize; 2], [width, height]: [usize; 2], colour: Colour) {
        (y..y + height).for_each(|y| (x..x + width).for_each(|x| self.mix(x, y, colour, 255)));
    }

    /// A frame of `thick` pixels around the rectangle, outside it.
    pub fn frame(&mut self, [x, y]: [usize; 2], [width, height]: [usize; 2], thick: usize, colour: Colour) {
        let (left, top) = (x.saturating_sub(thick), y.saturating_sub(thick));
        let (whole, side) = ([x + width + thick - left, y - top], [x - left, y + height + thick - top]);
        self.fill([left, top], whole, colour);
        self.fill([left, y + height], [whole[0], thick], colour);
        self.fill([left, top], side, colour);
        self.fill([x + width, top], [thick, side[1]], colour);
    }

    /// A disc, or a ring of `thick` pixels, with soft edges, in the square of `size` pixels.
    pub fn disc(&mut self, [x, y]: [usize; 2], size: usize, thick: Option<f32>, colour: Colour) {
        let radius = size as f32 / 2.0;
        for (dx, dy) in (0..size * size).map(|i| (i % size, i / size)) {
            let distance = (dx as f32 + 0.5 - radius).hypot(dy as f32 + 0.5 - radius);
            let outer = (radius - distance).clamp(0.0, 1.0);
            let inner = thick.map_or(0.0, |thick| (radius - thick - distance).clamp(0.0, 1.0));
            self.mix(x + dx, y + dy, colour, ((outer - inner) * 255.0) as u8);
        }
    }

    pub fn paste(&mut self, [x, y]: [usize; 2], image: &Rgb8) {
        for (i, pixel) in image.data.chunks_exact(3).enumerate() {
            self.mix(x + i % image.width, y + i / image.width, [pixel[0], pixel[1], pixel[2]], 255);
        }
    }

    /// One line whose upper left corner is (x, y). A character that the font lacks is drawn as `?`.
    pub fn text(&mut self, [x, y]: [usize; 2], text: &str, face: Face) {
        let step = get_raster_width(face.weight(), face.size());
        for (i, c) in text.chars().enumerate() {
            let raster = get_raster(c, face.weight(), face.size()).or_else(|| get_raster('?', face.weight(), face.size()));
            for (dy, row) in raster.iter().flat_map(|raster| raster.rows()).enumerate() {
                row.iter().enumerate().for_each(|(dx, &cover)| self.mix(x + i * step + dx, y + dy, face.colour, cover));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INK: Face = Face { is_bold: false, is_large: false, colour: [0; 3] };

    fn dark(canvas: &Canvas) -> usize {
        canvas.image.data.chunks(3).filter(|pixel| pixel[0] < 128).count()
    }

    #[test]
    fn frames_lie_outside_and_everything_is_cut_at_the_edge() {
        let mut canvas = Canvas::new(10, 8, [255; 3]);
        canvas.frame([3, 3], [4, 2], 1, [0; 3]);
        assert_eq!(dark(&canvas), 6 * 4 - 4 * 2);
        assert_eq!(canvas.image.data[(3 * 10 + 3) * 3], 255);
        canvas.fill([8, 6], [50, 50], [0; 3]);
        canvas.paste([9, 0], &Rgb8 { width: 3, height: 1, data: vec![0; 9] });
        canvas.frame([0, 0], [2, 2], 5, [9; 3]);
        canvas.text([5, 5], "cut", INK);
        assert_eq!(canvas.image.data.len(), 10 * 8 * 3);
    }

    #[test]
    fn letters_differ_and_unknown_ones_are_question_marks() {
        let draw = |text: &str, face: Face| {
            let mut canvas = Canvas::new(60, 30, [255; 3]);
            canvas.text([2, 2], text, face);
            canvas.image
        };
        assert_ne!(draw("df", INK), draw("vasc", INK));
        assert_ne!(draw("df", INK), draw("df", Face { is_bold: true, ..INK }));
        assert_eq!(draw("\u{1F600}", INK), draw("?", INK));
        assert!(INK.width("four") == 4 * INK.width("f") && Face { is_large: true, ..INK }.height() == 24);
    }
}
