//! Segments of a file between its scans (ITU T.81, annex B), and the frame they describe.

use super::bits::Table;
use super::scan::{self, Part, Progress};
use super::{Step, Stop, idct};

/// More scans than any encoder writes; each walks over the whole image.
const MAX_SCANS: usize = 100;

/// Coefficients in zigzag order: their place, row by row.
pub const NATURAL: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29,
    22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// The picture: size in pixels, and one component (grey) or three.
pub struct Frame {
    pub width: usize,
    pub height: usize,
    pub max_h: usize,
    pub max_v: usize,
    /// Minimum coded units across and down.
    pub units: (usize, usize),
    pub is_progressive: bool,
    /// The components are colours as they are, not YCbCr.
    pub is_rgb: bool,
    pub components: Vec<Component>,
}

pub struct Component {
    id: u8,
    pub h: usize,
    pub v: usize,
    table: usize,
    /// The quantisation table, row by row, as it was when the component's first scan began.
    pub quantisation: Option<[u16; 64]>,
    /// Samples that belong to the picture.
    pub width: usize,
    pub height: usize,
    /// Blocks in a row of the plane: whole units.
    pub blocks: usize,
    /// Samples, `8 * blocks` in a row.
    pub plane: Vec<u8>,
    /// Of a progressive frame, block by block, zigzag order.
    pub coefficients: Vec<[i16; 64]>,
    /// By coefficient, the lowest bit that is known; 255 for none.
    pub known: [u8; 64],
}

impl Component {
    /// A row of samples; all of the plane's width.
    pub fn row(&self, y: usize) -> &[u8] {
        &self.plane[8 * self.blocks * y..][..8 * self.blocks]
    }

    /// Where the samples of a block begin.
    pub fn at(&self, block: usize) -> usize {
        64 * self.blocks * (block / self.blocks) + 8 * (block % self.blocks)
    }
}

/// What segments have said so far.
pub struct Headers {
    quantisation: [Option<[u16; 64]>; 4],
    pub dc: [Option<Table>; 4],
    pub ac: [Option<Table>; 4],
    /// Units between restart markers, or 0.
    pub restart: usize,
    has_jfif: bool,
    /// The transform of Adobe's segment.
    adobe: Option<u8>,
    frame: Option<Frame>,
    scans: usize,
}

/// Reads all segments and scans.
pub fn read(bytes: &[u8]) -> Step<Frame> {
    if !bytes.starts_with(&[0xff, 0xd8]) {
        return Err(Stop::Damaged("no JPEG data"));
    }
    let none = || [const { None }; 4];
    let mut headers = Headers { quantisation: [None; 4], dc: none(), ac: none(), restart: 0, has_jfif: false, adobe: None, frame: None, scans: 0 };
    let mut at = 2;
    loop {
        let marker = next_marker(bytes, &mut at)?;
        match marker {
            0x01 | 0xd0..=0xd7 => continue,
            0xd8 => return Err(Stop::Damaged("a second image begins inside the first")),
            0xd9 => return headers.finish(),
            _ => (),
        }
        let length = bytes.get(at..at + 2).map_or(0, |l| usize::from(u16::from_be_bytes([l[0], l[1]])));
        let body = (length >= 2).then(|| bytes.get(at + 2..at + length)).flatten().ok_or(Stop::Damaged("truncated: a segment ends early"))?;
        at += length;
        match marker {
            0xda => at = headers.scan(body, bytes, at)?,
            _ => headers.segment(marker, body, bytes.len())?,
        }
    }
}

/// The next marker, and `at` is behind it. Bytes before it are skipped, as libjpeg does.
fn next_marker(bytes: &[u8], at: &mut usize) -> Step<u8> {
    loop {
        match bytes.get(*at..) {
            Some([0xff, marker, ..]) if !matches!(marker, 0x00 | 0xff) => {
                *at += 2;
                return Ok(*marker);
            }
            Some([_, _, ..]) => *at += 1,
            _ => return Err(Stop::Damaged("truncated: the JPEG data have no end-of-image marker")),
        }
    }
}

/// `count` bytes from the front of a segment.
fn part<'a>(body: &mut &'a [u8], count: usize) -> Step<&'a [u8]> {
    let (front, rest) = body.split_at_checked(count).ok_or(Stop::Damaged("a segment is too short"))?;
    *body = rest;
    Ok(front)
}

impl Headers {
    fn segment(&mut self, marker: u8, body: &[u8], file: usize) -> Step<()> {
        match marker {
            0xc0..=0xc2 => self.frame(marker == 0xc2, body, file)?,
            0xc4 => self.huffman(body)?,
            0xc3 | 0xc5..=0xcf | 0xdc | 0xde | 0xdf => return Err(Stop::Unknown),
            0xdb => self.quantisation(body)?,
            0xdd => self.restart = usize::from(u16::from_be_bytes(body.try_into().map_err(|_| Stop::Damaged("a restart interval is not two bytes"))?)),
            0xe0 if body.len() >= 14 && body.starts_with(b"JFIF\0") => self.has_jfif = true,
            0xee if body.len() >= 12 && body.starts_with(b"Adobe") => self.adobe = Some(body[11]),
            _ => (),
        }
        Ok(())
    }

    fn quantisation(&mut self, mut body: &[u8]) -> Step<()> {
        while !body.is_empty() {
            let head = part(&mut body, 1)?[0];
            let bytes = if head >> 4 == 0 { 1 } else { 2 };
            let values = part(&mut body, 64 * bytes)?.chunks_exact(bytes);
            let table = self.quantisation.get_mut(usize::from(head & 15)).ok_or(Stop::Damaged("there is no such quantisation table"))?;
            let mut natural = [0; 64];
            for (value, place) in values.zip(NATURAL) {
                natural[usize::from(place)] = value.iter().fold(0, |all, &byte| all << 8 | u16::from(byte));
            }
            *table = Some(natural);
        }
        Ok(())
    }

    fn huffman(&mut self, mut body: &[u8]) -> Step<()> {
        while !body.is_empty() {
            let head = part(&mut body, 1)?[0];
            let counts = part(&mut body, 16)?;
            let total = counts.iter().map(|&n| usize::from(n)).sum();
            let table = Table::new(counts, part(&mut body, total)?)?;
            let tables = if head >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables.get_mut(usize::from(head & 15)).filter(|_| head >> 4 <= 1).ok_or(Stop::Damaged("there is no such Huffman table"))? = Some(table);
        }
        Ok(())
    }

    fn frame(&mut self, is_progressive: bool, mut body: &[u8], file: usize) -> Step<()> {
        if self.frame.is_some() {
            return Err(Stop::Damaged("there are two frames"));
        }
        let head = part(&mut body, 6)?;
        let number = |i: usize| usize::from(u16::from_be_bytes([head[i], head[i + 1]]));
        let (height, width) = (number(1), number(3));
        // A height of 0 is told after the first scan.
        if head[0] != 8 || !matches!(head[5], 1 | 3) || height == 0 || width == 0 {
            return Err(Stop::Unknown);
        }
        let told = part(&mut body, 3 * usize::from(head[5]))?;
        let factors = |c: &[u8]| (usize::from(c[1] >> 4), usize::from(c[1] & 15));
        let (max_h, max_v) = told.chunks_exact(3).map(factors).fold((1, 1), |m, f| (m.0.max(f.0), m.1.max(f.1)));
        if told.chunks_exact(3).map(factors).any(|(h, v)| !(1..=4).contains(&h) || !(1..=4).contains(&v) || max_h % h != 0 || max_v % v != 0) {
            return Err(Stop::Unknown);
        }
        let units = (width.div_ceil(8 * max_h), height.div_ceil(8 * max_v));
        let component = |c: &[u8]| {
            let (h, v) = factors(c);
            let (width, height) = ((width * h).div_ceil(max_h), (height * v).div_ceil(max_v));
            // A block takes one bit at least: no memory for those that can't come.
            if width.div_ceil(8) * height.div_ceil(8) > file.saturating_mul(8) {
                return Err(Stop::Damaged("truncated: too few bytes for the size they claim"));
            }
            let (blocks, all) = (units.0 * h, units.0 * h * units.1 * v);
            let coefficients = if is_progressive { vec![[0; 64]; all] } else { Vec::new() };
            let table = usize::from(c[2]);
            Ok(Component { id: c[0], h, v, table, quantisation: None, width, height, blocks, plane: vec![0; 64 * all], coefficients, known: [255; 64] })
        };
        let components = told.chunks_exact(3).map(component).collect::<Step<Vec<_>>>()?;
        self.frame = Some(Frame { width, height, max_h, max_v, units, is_progressive, is_rgb: false, components });
        Ok(())
    }

    /// One scan; where its data end.
    fn scan(&mut self, mut body: &[u8], bytes: &[u8], at: usize) -> Step<usize> {
        let mut frame = self.frame.take().ok_or(Stop::Damaged("a scan comes before its frame"))?;
        self.scans += 1;
        if self.scans > MAX_SCANS {
            return Err(Stop::Damaged("there are more scans than an encoder writes"));
        }
        let count = usize::from(part(&mut body, 1)?[0]);
        let told = part(&mut body, 2 * count)?;
        let mut parts: Vec<Part> = Vec::new();
        for c in told.chunks_exact(2) {
            let index = frame.components.iter().position(|component| component.id == c[0]).ok_or(Stop::Damaged("a scan is of no component"))?;
            // Out of order, or two of one name.
            if parts.iter().any(|p| p.component >= index) {
                return Err(Stop::Unknown);
            }
            let component = &mut frame.components[index];
            if component.quantisation.is_none() {
                component.quantisation = self.quantisation.get(component.table).copied().flatten();
            }
            parts.push(Part { component: index, dc: usize::from(c[1] >> 4), ac: usize::from(c[1] & 15) });
        }
        let tail = part(&mut body, 3)?;
        let progress = match frame.is_progressive {
            true => Progress { from: tail[0].into(), to: tail[1].into(), high: tail[2] >> 4, low: tail[2] & 15 },
            false => Progress { from: 0, to: 63, high: 0, low: 0 },
        };
        let end = scan::decode(self, &mut frame, &parts, &progress, bytes, at)?;
        self.frame = Some(frame);
        Ok(end)
    }

    /// The frame with all planes.
    fn finish(self) -> Step<Frame> {
        let mut frame = self.frame.ok_or(Stop::Damaged("there is no frame"))?;
        for c in &mut frame.components {
            if c.known[0] == 255 {
                return Err(Stop::Damaged("a component has no scan"));
            }
            // libjpeg smooths what comes without its details.
            if c.known.iter().any(|&bit| bit != 0) {
                return Err(Stop::Unknown);
            }
            let quantisation = c.quantisation.ok_or(Stop::Damaged("a quantisation table is missing"))?;
            for (block, coefficients) in std::mem::take(&mut c.coefficients).iter().enumerate() {
                let mut natural = [0; 64];
                for (&value, place) in coefficients.iter().zip(NATURAL.map(usize::from)) {
                    natural[place] = value.wrapping_mul(quantisation[place] as i16);
                }
                let at = c.at(block);
                idct::block(&natural, &mut c.plane[at..], 8 * c.blocks);
            }
        }
        let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
        frame.is_rgb = !self.has_jfif && ids.len() == 3 && self.adobe.map_or(ids == *b"RGB", |transform| transform == 0);
        Ok(frame)
    }
}
