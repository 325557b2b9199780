//! An encoder or decoder image by image, and in tiles, where a batch or a whole image would exceed a limit of the device.
//!
//! Sizes are in latent cells; an array with f rows per cell is cut at f times the cell. Tiles are `tile` cells wide and begin
//! every 3/4 `tile`; where two overlap, the earlier fades into the later one over `tile` / 4, first from above, then from the left.
//! Source: diffusers `AutoencoderKL.tiled_encode` and `tiled_decode` with tile_overlap_factor 0.25. The logarithm of a variance is
//! clamped before it fades, there after it.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::base::{Array, Error, Kind, Result, Shape};
use crate::plan::{Cost, Session, Tape};

/// Gives a plan a device. The caller knows which.
pub type Prepare<'a> = dyn FnMut(Tape) -> Result<Box<dyn Session>> + 'a;

/// Tiles are a multiple of this many cells: a quarter of them overlaps.
const QUARTERS: usize = 4;
/// The widest tile that can be asked for.
const MAX_PIXELS: usize = 1 << 20;

/// What `--tiles` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Tiles {
    /// The largest that fit, where the whole image exceeds a limit of the device.
    #[default]
    Auto,
    /// None: what exceeds a limit is an error.
    Off,
    /// Of so many pixels a side, where the image is larger.
    Pixels(usize),
}

impl Tiles {
    /// `auto`, `off` or pixels.
    pub fn parse(text: &str) -> Result<Tiles> {
        match text {
            "auto" => Ok(Tiles::Auto),
            "off" => Ok(Tiles::Off),
            _ => match text.parse() {
                Ok(pixels @ 1..=MAX_PIXELS) => Ok(Tiles::Pixels(pixels)),
                _ => Err(Error::new(Kind::Usage, "--tiles", format!("{text}, expected auto, off or pixels from 1 to {MAX_PIXELS}"))),
            },
        }
    }

    /// Cells of a tile that is asked for. Fails where they would not be whole quarters.
    fn cells(pixels: usize, downscale: usize) -> Result<usize> {
        let multiple = QUARTERS * downscale.max(1);
        match pixels > 0 && pixels.is_multiple_of(multiple) {
            true => Ok(pixels / downscale.max(1)),
            false => Err(Error::new(Kind::Usage, "--tiles", format!("{pixels}, expected a multiple of {multiple} pixels: {QUARTERS} latents of this model"))),
        }
    }
}

impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tiles::Auto => f.write_str("auto"),
            Tiles::Off => f.write_str("off"),
            Tiles::Pixels(pixels) => write!(f, "{pixels}"),
        }
    }
}

impl TryFrom<String> for Tiles {
    type Error = Error;
    fn try_from(text: String) -> Result<Tiles> {
        Tiles::parse(&text)
    }
}

impl From<Tiles> for String {
    fn from(tiles: Tiles) -> String {
        tiles.to_string()
    }
}

/// How one axis is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Cells of the axis.
    pub length: usize,
    /// Cells of a tile, a multiple of 4.
    pub tile: usize,
}

impl Cut {
    /// Cells over which two tiles fade into each other.
    fn overlap(self) -> usize {
        self.tile / QUARTERS
    }

    /// Where the tiles lie. The last may be one that the tile before it covers.
    pub fn ranges(self) -> Vec<Range<usize>> {
        let step = (self.tile - self.overlap()).max(1);
        (0..self.length).step_by(step).map(|start| start..(start + self.tile).min(self.length)).collect()
    }
}

/// What makes the plan for so many images of so many rows and columns of cells.
pub type Record<'a> = dyn FnMut(usize, [usize; 2]) -> Result<Tape> + 'a;

/// A part of an autoencoder: whole, image by image, or in tiles.
pub struct Patchwork {
    /// Images in all, and images at once.
    batch: usize,
    at_once: usize,
    /// Rows and columns of cells.
    size: [usize; 2],
    rows: Vec<Range<usize>>,
    columns: Vec<Range<usize>>,
    overlap: usize,
    /// A plan for each size of tile, at most four.
    plans: Vec<([usize; 2], Box<dyn Session>)>,
    /// In words, where it is cut: into what and why.
    note: Option<String>,
}

impl Patchwork {
    /// Prepares the plan that `record` makes for `batch` images of `size` cells of `downscale` pixels, cut as `tiles` says; where that
    /// exceeds a limit, for one image; where that does too and `tiles` is auto, for the largest tiles of one image that do not.
    /// Fails with the limit that the whole exceeds when nothing fits.
    pub fn new(batch: usize, size: [usize; 2], tiles: Tiles, downscale: usize, record: &mut Record, prepare: &mut Prepare) -> Result<Patchwork> {
        let longest = size[0].max(size[1]);
        let asked = match tiles {
            Tiles::Pixels(pixels) => Some(Tiles::cells(pixels, downscale)?).filter(|&cells| cells < longest),
            _ => None,
        };
        let mut cuts = vec![(batch, asked)];
        cuts.extend((batch > 1).then_some((1, asked)));
        if tiles == Tiles::Auto {
            let largest = longest.saturating_sub(1).checked_ilog2().map_or(0, |log| 1 << log);
            let sizes = std::iter::successors(Some(largest), |tile| Some(tile / 2)).take_while(|&tile| tile >= QUARTERS);
            cuts.extend(sizes.map(|tile| (1, Some(tile))));
        }
        let mut limit = None;
        for (at_once, tile) in cuts {
            match (Self::cut(batch, at_once, size, tile, record, prepare), limit) {
                (Ok(patchwork), limit) => return Ok(patchwork.noted(downscale, limit.as_ref())),
                (Err(error), first) if error.kind() == Kind::Limit => limit = first.or(Some(error)),
                (Err(error), _) => return Err(error),
            }
        }
        Err(limit.unwrap_or_else(|| Error::new(Kind::Limit, "--tiles", "nothing fits the device")))
    }

    /// Prepares plans for `at_once` images and tiles of `tile` cells, a multiple of 4; None: whole.
    pub fn cut(batch: usize, at_once: usize, size: [usize; 2], tile: Option<usize>, record: &mut Record, prepare: &mut Prepare) -> Result<Patchwork> {
        if tile.is_some_and(|tile| tile == 0 || !tile.is_multiple_of(QUARTERS)) || at_once == 0 || !batch.is_multiple_of(at_once) {
            let fact = format!("{at_once} of {batch} images and tiles of {} latents, expected multiples of {QUARTERS}", tile.unwrap_or(0));
            return Err(Error::new(Kind::Usage, "tiles", fact));
        }
        let [rows, columns] = size.map(|length| tile.map_or_else(|| std::iter::once(0..length).collect(), |tile| Cut { length, tile }.ranges()));
        let mut plans: Vec<([usize; 2], Box<dyn Session>)> = Vec::new();
        // The largest first: it is the one that may exceed a limit.
        for size in rows.iter().flat_map(|r| columns.iter().map(|c| [r.len(), c.len()])) {
            if plans.iter().all(|(have, _)| *have != size) {
                let tape = record(at_once, size)?;
                plans.push((size, prepare(tape)?));
            }
        }
        Ok(Patchwork { batch, at_once, size, rows, columns, overlap: tile.unwrap_or(0) / QUARTERS, plans, note: None })
    }

    fn noted(self, downscale: usize, limit: Option<&Error>) -> Patchwork {
        let tiles = self.rows.len() * self.columns.len();
        let cut = match self.plans.first() {
            Some(([h, w], _)) if tiles > 1 => {
                let [w, h, overlap] = [w, h, &self.overlap].map(|cells| cells * downscale);
                format!("in {tiles} tiles of {w} x {h} pixels that overlap by {overlap}")
            }
            _ => "image by image".to_string(),
        };
        let note = match limit {
            Some(limit) => Some(format!("{cut}, because the whole does not fit: {limit}")),
            None if tiles > 1 => Some(cut),
            None => None,
        };
        Patchwork { note, ..self }
    }

    /// Into what it is cut and why; None: it is whole.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The plans, the largest tile's first.
    pub fn sessions(&self) -> impl Iterator<Item = &dyn Session> {
        self.plans.iter().map(|(_, session)| session.as_ref())
    }

    /// Work of one run on all images.
    pub fn cost(&self) -> Cost {
        let plan =
            |size: [usize; 2]| self.plans.iter().find(|(have, _)| *have == size).map_or(Cost::default(), |(_, session)| session.plan().tape.total_cost());
        let tiles = self.rows.iter().flat_map(|r| self.columns.iter().map(|c| plan([r.len(), c.len()])));
        let times = (self.batch / self.at_once) as u64;
        tiles.fold(Cost::default(), |sum, tile| Cost { flops: sum.flops + times * tile.flops, bytes: sum.bytes + times * tile.bytes })
    }

    /// Runs on `inputs` `[N, h f, w f, C]`, each with its own number f of rows per cell, and gives the outputs of these names
    /// whole. A value that is not finite is `Kind::Numeric` and names the first layer that made one; `part` is in its words.
    pub fn run(&mut self, part: &str, inputs: &[(&str, &Array)], outputs: &[&str]) -> Result<Vec<Array>> {
        if self.at_once == self.batch {
            return self.run_images(part, inputs, outputs);
        }
        let mut whole: Vec<Array> = Vec::new();
        for start in (0..self.batch).step_by(self.at_once) {
            let rows: Vec<(&str, Array)> = inputs.iter().map(|(name, array)| (*name, array.rows(start, start + self.at_once))).collect();
            let rows: Vec<(&str, &Array)> = rows.iter().map(|(name, array)| (*name, array)).collect();
            for (k, array) in self.run_images(part, &rows, outputs)?.into_iter().enumerate() {
                match whole.get_mut(k) {
                    Some(all) => all.data.extend(array.data),
                    None => whole.push(array),
                }
            }
        }
        for array in &mut whole {
            let mut dims = array.dims().to_vec();
            dims[0] = self.batch;
            array.shape = Shape::new(&dims);
        }
        Ok(whole)
    }

    /// Runs on as many images as the plans are made for.
    fn run_images(&mut self, part: &str, inputs: &[(&str, &Array)], outputs: &[&str]) -> Result<Vec<Array>> {
        let (rows, columns) = (self.rows.clone(), self.columns.clone());
        let mut whole: Vec<Array> = Vec::new();
        let mut above: Vec<Vec<Array>> = Vec::new();
        for row in &rows {
            let mut line: Vec<Vec<Array>> = Vec::new();
            for (j, column) in columns.iter().enumerate() {
                let mut tiles = self.run_tile(part, row, column, inputs, outputs)?;
                if rows.len() * columns.len() == 1 {
                    return Ok(tiles);
                }
                for (k, tile) in tiles.iter_mut().enumerate() {
                    let f = tile.dims()[1] / row.len();
                    if let Some(above) = above.get(j) {
                        fade(&above[k], tile, 1, self.overlap * f);
                    }
                    if let Some(left) = line.last() {
                        fade(&left[k], tile, 2, self.overlap * f);
                    }
                    if whole.len() <= k {
                        let [n, c] = [tile.dims()[0], tile.dims()[3]];
                        whole.push(Array::zeros(&[n, self.size[0] * f, self.size[1] * f, c]));
                    }
                    // Later tiles go over what earlier ones faded into.
                    place(tile, &mut whole[k], [row.start * f, column.start * f]);
                }
                line.push(tiles);
            }
            above = line;
        }
        Ok(whole)
    }

    fn run_tile(&mut self, part: &str, row: &Range<usize>, column: &Range<usize>, inputs: &[(&str, &Array)], outputs: &[&str]) -> Result<Vec<Array>> {
        let size = [row.len(), column.len()];
        let plan = self.plans.iter_mut().find(|(have, _)| *have == size);
        let session = plan.map(|(_, session)| session.as_mut()).ok_or_else(|| Error::new(Kind::Usage, part, format!("no plan for {size:?}")))?;
        for (name, array) in inputs {
            let f = array.dims().get(1).map_or(1, |h| h / self.size[0].max(1));
            session.write(name, &window(array, row.start * f..row.end * f, column.start * f..column.end * f)?.data)?;
        }
        session.run()?;
        let arrays: Vec<Array> = outputs.iter().map(|name| session.read(name)).collect::<Result<_>>()?;
        let finite = match session.plan().output("nonfinite") {
            Ok(_) => count_nonfinite(session)? == 0,
            Err(_) => arrays.iter().all(|array| array.data.iter().all(|v| v.is_finite())),
        };
        if finite { Ok(arrays) } else { Err(nonfinite(part, session)?) }
    }
}

/// What the plan's `nonfinite` output counts.
pub(crate) fn count_nonfinite(session: &mut dyn Session) -> Result<u32> {
    Ok(session.read("nonfinite")?.data.first().map_or(0, |v| v.to_bits()))
}

fn nonfinite(part: &str, session: &mut dyn Session) -> Result<Error> {
    let place = session.first_nonfinite()?.unwrap_or_else(|| part.to_string());
    Ok(Error::new(Kind::Numeric, place, format!("values that are not finite in the {part}")))
}

/// Rows and columns of `[N, H, W, C]`.
fn window(array: &Array, rows: Range<usize>, columns: Range<usize>) -> Result<Array> {
    let Some([n, h, w, c]) = array.shape.nhwc().filter(|&[_, h, w, _]| rows.end <= h && columns.end <= w) else {
        return Err(Error::new(Kind::Shape, "tile", format!("{}, expected [N, H, W, C] of at least {} x {}", array.shape, rows.end, columns.end)));
    };
    let mut data = Vec::with_capacity(n * rows.len() * columns.len() * c);
    for line in (0..n).flat_map(|n| rows.clone().map(move |y| n * h + y)) {
        data.extend_from_slice(&array.data[(line * w + columns.start) * c..(line * w + columns.end) * c]);
    }
    Ok(Array { shape: Shape::new(&[n, rows.len(), columns.len(), c]), data })
}

/// Copies `tile` into `whole` with its first pixel at row and column `at`.
fn place(tile: &Array, whole: &mut Array, at: [usize; 2]) {
    let (&[n, h, w, c], &[_, height, width, _]) = (tile.dims(), whole.dims()) else { return };
    for (i, line) in tile.data.chunks_exact((w * c).max(1)).enumerate() {
        let (n, y) = (i / h.max(1) % n.max(1), i % h.max(1));
        let start = ((n * height + at[0] + y) * width + at[1]) * c;
        whole.data[start..start + w * c].copy_from_slice(line);
    }
}

/// b's first lines along `axis` (1: rows, 2: columns) become a (1 - i / extent) + b i / extent, with a's last lines.
fn fade(a: &Array, b: &mut Array, axis: usize, extent: usize) {
    let (&[n, ah, aw, c], &[_, bh, bw, _]) = (a.dims(), b.dims()) else { return };
    let [along_a, along_b] = if axis == 1 { [ah, bh] } else { [aw, bw] };
    let extent = extent.min(along_a).min(along_b);
    let (h, w) = if axis == 1 { (extent, aw.min(bw)) } else { (ah.min(bh), extent) };
    for (n, y, x) in (0..n).flat_map(|n| (0..h).flat_map(move |y| (0..w).map(move |x| (n, y, x)))) {
        let (i, ya, xa) = if axis == 1 { (y, ah - extent + y, x) } else { (x, y, aw - extent + x) };
        let share = i as f32 / extent as f32;
        let (from, to) = (((n * ah + ya) * aw + xa) * c, ((n * bh + y) * bw + x) * c);
        for (a, b) in a.data[from..from + c].iter().zip(&mut b.data[to..to + c]) {
            *b = a * (1.0 - share) + *b * share;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_an_axis_and_overlap_by_a_quarter() {
        let ranges = |length, tile| Cut { length, tile }.ranges();
        assert_eq!(ranges(64, 32), [0..32, 24..56, 48..64]);
        assert_eq!((ranges(12, 16).len(), ranges(16, 16)), (1, vec![0..16, 12..16]));
        assert_eq!(ranges(11, 4), [0..4, 3..7, 6..10, 9..11]);
        // The tile before holds every row of the last.
        assert_eq!(ranges(14, 8), [0..8, 6..14, 12..14]);
        for (length, tile) in (1..70).flat_map(|length| [4, 8, 12, 32].map(|tile| (length, tile))) {
            let ranges = ranges(length, tile);
            assert!(ranges[0].start == 0 && ranges[ranges.len() - 1].end == length, "{length} {tile}: {ranges:?}");
            assert!(ranges.windows(2).all(|w| w[1].start < w[0].end && w[1].end >= w[0].end), "{length} {tile}: {ranges:?}");
        }
    }

    #[test]
    fn tiles_are_read_as_they_are_written() {
        for (text, want) in [("auto", Tiles::Auto), ("off", Tiles::Off), ("256", Tiles::Pixels(256))] {
            assert_eq!((Tiles::parse(text).unwrap(), want.to_string().as_str()), (want, text));
        }
        for text in ["", "0", "-8", "on", "1e3", "99999999999999999999"] {
            assert_eq!(Tiles::parse(text).unwrap_err().to_string(), format!("--tiles: {text}, expected auto, off or pixels from 1 to 1048576"));
        }
        assert_eq!(Tiles::cells(64, 8).unwrap(), 8);
        assert_eq!(Tiles::cells(60, 8).unwrap_err().to_string(), "--tiles: 60, expected a multiple of 32 pixels: 4 latents of this model");
    }

    #[test]
    fn a_later_line_takes_over_from_an_earlier_one() {
        let of = |shape: [usize; 4], value: f32| Array { shape: Shape::new(&shape), data: vec![value; shape.iter().product()] };
        let mut b = of([1, 6, 1, 1], 8.0);
        fade(&of([1, 5, 1, 1], 0.0), &mut b, 1, 4);
        assert_eq!(b.data, [0.0, 2.0, 4.0, 6.0, 8.0, 8.0]);
        let mut b = of([2, 1, 3, 1], 4.0);
        fade(&of([2, 1, 2, 1], 0.0), &mut b, 2, 9);
        assert_eq!(b.data, [0.0, 2.0, 4.0, 0.0, 2.0, 4.0]);
    }

    #[test]
    fn windows_are_put_back_where_they_were() {
        let whole = Array::new(&[2, 3, 4, 2], (0..48).map(|v| v as f32).collect()).unwrap();
        let mut copy = Array::zeros(&[2, 3, 4, 2]);
        for (rows, columns) in [(0..2, 0..3), (0..2, 3..4), (2..3, 0..3), (2..3, 3..4)] {
            place(&window(&whole, rows.clone(), columns.clone()).unwrap(), &mut copy, [rows.start, columns.start]);
        }
        assert_eq!(copy.data, whole.data);
        assert!(window(&whole, 0..4, 0..1).is_err() && window(&Array::zeros(&[3]), 0..1, 0..1).is_err());
    }
}
