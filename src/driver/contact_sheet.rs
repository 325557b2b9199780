//! A sheet of pictures in rows and columns, with a title, heads above the columns, two lines below each picture and notes at the end.

use crate::base::{Error, Kind, Result};
use crate::driver::canvas::{Canvas, Colour, Face};
use crate::driver::image::Rgb8;
use crate::driver::resize;

const PAPER: Colour = [255, 255, 255];
const INK: Colour = [34, 40, 49];
const GREY: Colour = [110, 118, 128];
const HAIR: Colour = [216, 220, 226];
const GREEN: Colour = [15, 138, 110];
const AMBER: Colour = [196, 110, 20];

const MARGIN: usize = 40;
const GAP: usize = 24;
const LINE: usize = 20;
const FRAME: usize = 4;
const DOT: usize = 11;

/// A dot before a caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Full and green.
    Agrees,
    /// An amber ring.
    Differs,
}

/// One picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub picture: Rgb8,
    pub mark: Option<Mark>,
    /// Below the picture.
    pub captions: [String; 2],
    pub is_framed: bool,
}

/// Everything on the sheet. Rows are as long as there are heads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sheet {
    pub title: String,
    pub subtitle: String,
    /// Above each column: a name and what it means.
    pub heads: Vec<[String; 2]>,
    pub rows: Vec<Vec<Cell>>,
    pub notes: Vec<String>,
}

fn face(colour: Colour) -> Face {
    Face { is_bold: false, is_large: false, colour }
}

impl Sheet {
    /// Draws the pictures `side` pixels wide and high. Fails where a row has not as many cells as there are heads.
    pub fn draw(&self, side: usize) -> Result<Rgb8> {
        let columns = self.heads.len();
        if let Some(row) = self.rows.iter().find(|row| row.len() != columns) {
            return Err(Error::new(Kind::Shape, "contact sheet", format!("a row of {} cells, expected {columns}", row.len())));
        }
        let captions = self.caption_lines();
        let pictures = columns * side + columns.saturating_sub(1) * GAP;
        let texts = [(&self.title, Face { is_bold: true, is_large: true, colour: INK }), (&self.subtitle, face(GREY))];
        let widest = texts.iter().map(|(text, face)| face.width(text)).chain(self.notes.iter().map(|note| face(GREY).width(note))).max();
        let width = 2 * MARGIN + pictures.max(widest.unwrap_or(0));
        let row_height = side + captions * LINE + GAP;
        let top = MARGIN + self.head_height();
        let notes = self.notes.len() * LINE;
        let mut canvas = Canvas::new(width, top + self.rows.len() * row_height + notes + MARGIN, PAPER);
        self.draw_heads(&mut canvas, side);
        for (i, row) in self.rows.iter().enumerate() {
            for (k, cell) in row.iter().enumerate() {
                cell.draw(&mut canvas, [MARGIN + k * (side + GAP), top + i * row_height], side);
            }
        }
        let below = top + self.rows.len() * row_height;
        self.notes.iter().enumerate().for_each(|(i, note)| canvas.text([MARGIN, below + i * LINE], note, face(GREY)));
        Ok(canvas.image)
    }

    /// Captions are as many lines as the fullest cell has, and a little air above them.
    fn caption_lines(&self) -> usize {
        let lines = |cell: &Cell| cell.captions.iter().rposition(|line| !line.is_empty()).map_or(0, |at| at + 1);
        self.rows.iter().flatten().map(lines).max().unwrap_or(0)
    }

    fn title_height(&self) -> usize {
        if self.title.is_empty() { 0 } else { 36 + if self.subtitle.is_empty() { 0 } else { LINE } + GAP }
    }

    fn head_height(&self) -> usize {
        let lines = self.heads.iter().map(|head| head.iter().filter(|line| !line.is_empty()).count()).max().unwrap_or(0);
        self.title_height() + lines * LINE + 8
    }

    fn draw_heads(&self, canvas: &mut Canvas, side: usize) {
        if !self.title.is_empty() {
            canvas.text([MARGIN, MARGIN], &self.title, Face { is_bold: true, is_large: true, colour: INK });
            canvas.text([MARGIN, MARGIN + 36], &self.subtitle, face(GREY));
        }
        let y = MARGIN + self.title_height();
        for (k, [name, meaning]) in self.heads.iter().enumerate() {
            let x = MARGIN + k * (side + GAP);
            canvas.text([x, y], name, Face { is_bold: true, ..face(INK) });
            canvas.text([x, y + LINE], meaning, face(GREY));
        }
    }
}

/// The text, or as much of its beginning as is `width` pixels wide with two dots at its end.
fn fitting(text: &str, face: Face, width: usize) -> String {
    let most = width / face.width("x");
    if text.chars().count() <= most { text.to_string() } else { text.chars().take(most.saturating_sub(2)).chain("..".chars()).collect() }
}

impl Cell {
    fn draw(&self, canvas: &mut Canvas, [x, y]: [usize; 2], side: usize) {
        let picture = if self.picture.width == side && self.picture.height == side { &self.picture } else { &resize::bicubic(&self.picture, side, side) };
        let (thick, colour) = if self.is_framed { (FRAME, GREEN) } else { (1, HAIR) };
        canvas.frame([x, y], [side, side], thick, colour);
        canvas.paste([x, y], picture);
        let mut at = x;
        let line = y + side + 6;
        if let Some(mark) = self.mark {
            let (thick, colour) = if mark == Mark::Agrees { (None, GREEN) } else { (Some(2.0), AMBER) };
            canvas.disc([x, line + 3], DOT, thick, colour);
            at += DOT + 6;
        }
        canvas.text([at, line], &fitting(&self.captions[0], face(INK), x + side - at), face(INK));
        let below = face(if self.is_framed { GREEN } else { GREY });
        canvas.text([x, line + LINE - 2], &fitting(&self.captions[1], below, side), below);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet(rows: usize, captions: [&str; 2]) -> Sheet {
        let picture = Rgb8 { width: 2, height: 2, data: vec![200, 0, 0, 200, 0, 0, 200, 0, 0, 200, 0, 0] };
        let cell = Cell { picture, mark: Some(Mark::Differs), captions: captions.map(String::from), is_framed: true };
        Sheet { heads: vec![["a".into(), "b".into()], ["c".into(), String::new()]], rows: vec![vec![cell; 2]; rows], ..Sheet::default() }
    }

    fn count(image: &Rgb8, colour: Colour) -> usize {
        image.data.chunks(3).filter(|pixel| **pixel == colour).count()
    }

    #[test]
    fn sizes_follow_from_rows_columns_and_lines() {
        let image = sheet(3, ["one", ""]).draw(64).unwrap();
        assert_eq!((image.width, image.height), (2 * MARGIN + 2 * 64 + GAP, 2 * MARGIN + 2 * LINE + 8 + 3 * (64 + LINE + GAP)));
        assert_eq!(sheet(3, ["one", "two"]).draw(64).unwrap().height - image.height, 3 * LINE);
        let wide = Sheet { notes: vec!["x".repeat(500)], ..sheet(1, ["", ""]) };
        assert_eq!(wide.draw(64).unwrap().width, 2 * MARGIN + face(GREY).width(&wide.notes[0]));
    }

    #[test]
    fn pictures_frames_and_marks_are_seen() {
        let image = sheet(2, ["one", "two"]).draw(64).unwrap();
        assert_eq!(count(&image, [200, 0, 0]), 4 * 64 * 64);
        assert!(count(&image, GREEN) >= 4 * ((64 + 2 * FRAME) * (64 + 2 * FRAME) - 64 * 64));
        assert!(count(&image, AMBER) > 0);
    }

    #[test]
    fn captions_end_where_their_picture_does() {
        let ink = face(INK);
        let fit = |room: &str| fitting("kept: score 120", ink, ink.width(room));
        assert_eq!([fit("kept: score 120"), fit("kept: score 1"), fit("")], ["kept: score 120", "kept: score..", ".."]);
        let image = sheet(1, ["one", &"x".repeat(30)]).draw(64).unwrap();
        let gap = MARGIN + 64 + FRAME..MARGIN + 64 + GAP - FRAME;
        let below = MARGIN + 2 * LINE + 8 + 64 + FRAME;
        assert!((below..image.height).all(|y| gap.clone().all(|x| image.data[(y * image.width + x) * 3..][..3] == PAPER)));
    }

    #[test]
    fn ragged_rows_are_refused() {
        let mut ragged = sheet(2, ["", ""]);
        ragged.rows[1].pop();
        assert_eq!(ragged.draw(64).unwrap_err().to_string(), "contact sheet: a row of 1 cells, expected 2");
    }
}
