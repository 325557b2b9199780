//! Scans: every block's coefficients from the bits (ITU T.81, F.2 sequential, G.2 progressive).

use super::bits::{Bits, Table};
use super::headers::{Component, Frame, Headers, NATURAL};
use super::{Step, Stop, idct};

/// A component of a scan and the numbers of its tables.
pub struct Part {
    pub component: usize,
    pub dc: usize,
    pub ac: usize,
}

/// The coefficients of a scan, `from..=to` in zigzag order, and their bits: from bit `high` (none known if 0) down to `low`.
pub struct Progress {
    pub from: usize,
    pub to: usize,
    pub high: u8,
    pub low: u8,
}

/// What goes from block to block.
#[derive(Default)]
struct State {
    /// By component, the last DC value.
    last: [i32; 4],
    /// Blocks to come that have no new coefficient.
    empty: u32,
}

struct Tables<'a> {
    dc: Option<&'a Table>,
    ac: Option<&'a Table>,
}

/// Decodes one scan whose data begin at `at`; where they end.
pub fn decode(headers: &Headers, frame: &mut Frame, parts: &[Part], progress: &Progress, bytes: &[u8], at: usize) -> Step<usize> {
    check(frame, parts, progress)?;
    let tables = parts.iter().map(|part| tables(headers, part, frame.is_progressive, progress)).collect::<Step<Vec<_>>>()?;
    let single = parts.len() == 1;
    let first = &frame.components[parts[0].component];
    let (across, down) = if single { (first.width.div_ceil(8), first.height.div_ceil(8)) } else { frame.units };
    let (mut bits, mut state) = (Bits::new(bytes, at), State::default());
    let mut done = 0usize;
    for y in 0..down {
        for x in 0..across {
            if headers.restart > 0 && done > 0 && done.is_multiple_of(headers.restart) {
                bits.restart(((done / headers.restart - 1) % 8) as u8)?;
                state = State::default();
            }
            done += 1;
            for (part, tables) in parts.iter().zip(&tables) {
                let component = &mut frame.components[part.component];
                let (h, v) = if single { (1, 1) } else { (component.h, component.v) };
                for k in 0..h * v {
                    let block = (y * v + k / h) * component.blocks + x * h + k % h;
                    let done = match frame.is_progressive {
                        true => progressive(&mut bits, tables, progress, &mut state, part.component, &mut component.coefficients[block]),
                        false => sequential(&mut bits, tables, &mut state.last[part.component], component, block),
                    };
                    // What bits that are not in the file would mean is no fact about the file.
                    done.or_else(|stop| bits.check().and(Err(stop)))?;
                }
            }
            bits.check()?;
        }
    }
    Ok(bits.end())
}

/// Every bit of every coefficient comes once and in order; notes what is known now.
fn check(frame: &mut Frame, parts: &[Part], progress: &Progress) -> Step<()> {
    let Progress { from, to, high, low } = *progress;
    let single = parts.len() == 1;
    let is_range = if frame.is_progressive && from == 0 { to == 0 } else { from <= to && to < 64 && (single || !frame.is_progressive) };
    if parts.is_empty() || !is_range || low > 13 || (high != 0 && high != low + 1) {
        return Err(Stop::Damaged("a scan is of no coefficients"));
    }
    let blocks: usize = parts.iter().map(|p| frame.components[p.component].h * frame.components[p.component].v).sum();
    if !single && blocks > 10 {
        return Err(Stop::Damaged("a unit has more than 10 blocks"));
    }
    for part in parts {
        let c = &mut frame.components[part.component];
        if c.quantisation.is_none() {
            return Err(Stop::Damaged("a quantisation table is missing"));
        }
        if c.known[from..=to].iter().any(|&bit| bit != if high == 0 { 255 } else { high }) {
            return Err(Stop::Damaged("a scan repeats or leaves out bits"));
        }
        c.known[from..=to].fill(low);
    }
    Ok(())
}

/// The tables that a scan needs. Standard tables of files without any (motion JPEG) are not known here.
fn tables<'a>(headers: &'a Headers, part: &Part, is_progressive: bool, progress: &Progress) -> Step<Tables<'a>> {
    let get =
        |from: &'a [Option<Table>; 4], index: usize| from.get(index).ok_or(Stop::Damaged("there is no such Huffman table"))?.as_ref().ok_or(Stop::Unknown);
    let (needs_dc, needs_ac) = match is_progressive {
        true => (progress.from == 0 && progress.high == 0, progress.from > 0),
        false => (true, true),
    };
    let dc = if needs_dc { Some(get(&headers.dc, part.dc)?) } else { None };
    if dc.is_some_and(|table| !table.is_of_dc()) {
        return Err(Stop::Damaged("a Huffman table is not one of DC differences"));
    }
    Ok(Tables { dc, ac: if needs_ac { Some(get(&headers.ac, part.ac)?) } else { None } })
}

const NO_TABLE: Stop = Stop::Damaged("a Huffman table is missing");
const TOO_LONG: Stop = Stop::Damaged("a block has more than 64 coefficients");

/// One block, all of it: decoded, dequantised and transformed into the plane.
fn sequential(bits: &mut Bits, tables: &Tables, last: &mut i32, component: &mut Component, block: usize) -> Step<()> {
    let (dc, ac) = (tables.dc.ok_or(NO_TABLE)?, tables.ac.ok_or(NO_TABLE)?);
    let quantisation = component.quantisation.as_ref().ok_or(NO_TABLE)?;
    let mut coefficients = [0i16; 64];
    *last = last.wrapping_add(difference(bits, dc)?);
    coefficients[0] = (*last as i16).wrapping_mul(quantisation[0] as i16);
    let mut k = 1;
    while k < 64 {
        let symbol = bits.symbol(ac)?;
        let (run, size) = (usize::from(symbol >> 4), symbol & 15);
        if size == 0 {
            if run != 15 {
                break;
            }
            k += 16;
            continue;
        }
        k += run;
        let place = usize::from(*NATURAL.get(k).ok_or(TOO_LONG)?);
        coefficients[place] = (bits.signed(size) as i16).wrapping_mul(quantisation[place] as i16);
        k += 1;
    }
    let at = component.at(block);
    idct::block(&coefficients, &mut component.plane[at..], 8 * component.blocks);
    Ok(())
}

fn difference(bits: &mut Bits, dc: &Table) -> Step<i32> {
    let size = bits.symbol(dc)?;
    Ok(bits.signed(size))
}

/// One block's share of a progressive scan.
fn progressive(bits: &mut Bits, tables: &Tables, progress: &Progress, state: &mut State, component: usize, block: &mut [i16; 64]) -> Step<()> {
    match (progress.from, progress.high) {
        (0, 0) => {
            let last = &mut state.last[component];
            *last = last.wrapping_add(difference(bits, tables.dc.ok_or(NO_TABLE)?)?);
            block[0] = (*last << progress.low) as i16;
            Ok(())
        }
        (0, _) => {
            block[0] |= (bits.number(1) << progress.low) as i16;
            Ok(())
        }
        (_, 0) => first_ac(bits, tables.ac.ok_or(NO_TABLE)?, progress, state, block),
        _ => next_ac(bits, tables.ac.ok_or(NO_TABLE)?, progress, state, block),
    }
}

/// The first bits of AC coefficients (G.1.2.2).
fn first_ac(bits: &mut Bits, ac: &Table, progress: &Progress, state: &mut State, block: &mut [i16; 64]) -> Step<()> {
    if state.empty > 0 {
        state.empty -= 1;
        return Ok(());
    }
    let mut k = progress.from;
    while k <= progress.to {
        let symbol = bits.symbol(ac)?;
        let (run, size) = (symbol >> 4, symbol & 15);
        if size == 0 {
            if run != 15 {
                state.empty = empty_blocks(bits, run) - 1;
                break;
            }
            k += 16;
            continue;
        }
        k += usize::from(run);
        if k > progress.to {
            return Err(TOO_LONG);
        }
        block[k] = (bits.signed(size) << progress.low) as i16;
        k += 1;
    }
    Ok(())
}

/// How many blocks, this one among them, have nothing more.
fn empty_blocks(bits: &mut Bits, run: u8) -> u32 {
    (1 << run) + bits.number(run.into())
}

/// One more bit of AC coefficients (G.1.2.3): a correction for each that is not 0, and new ones of that bit.
fn next_ac(bits: &mut Bits, ac: &Table, progress: &Progress, state: &mut State, block: &mut [i16; 64]) -> Step<()> {
    let bit = 1i16 << progress.low;
    let mut k = progress.from;
    while state.empty == 0 && k <= progress.to {
        let symbol = bits.symbol(ac)?;
        let (run, size) = (symbol >> 4, symbol & 15);
        let value = match size {
            0 if run != 15 => {
                state.empty = empty_blocks(bits, run);
                break;
            }
            0 => 0,
            1 => {
                if bits.signed(1) > 0 {
                    bit
                } else {
                    -bit
                }
            }
            _ => return Err(Stop::Damaged("a new coefficient has more than one bit")),
        };
        k = correct(bits, bit, &mut block[..=progress.to], k, u32::from(run));
        if value != 0 {
            *block.get_mut(k).filter(|_| k <= progress.to).ok_or(TOO_LONG)? = value;
        }
        k += 1;
    }
    if state.empty > 0 {
        correct(bits, bit, &mut block[..=progress.to], k, 64);
        state.empty -= 1;
    }
    Ok(())
}

/// Reads the bits of coefficients that are not 0, from `k` until `zeros` that are were passed; where the next 0 is.
fn correct(bits: &mut Bits, bit: i16, block: &mut [i16], mut k: usize, mut zeros: u32) -> usize {
    while let Some(value) = block.get_mut(k) {
        if *value == 0 {
            if zeros == 0 {
                break;
            }
            zeros -= 1;
        } else if bits.number(1) == 1 && *value & bit == 0 {
            *value = value.wrapping_add(if *value > 0 { bit } else { -bit });
        }
        k += 1;
    }
    k
}
