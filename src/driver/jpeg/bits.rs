//! Entropy-coded bits and Huffman codes (ITU T.81, F.2.2 and annex C).

use super::{Step, Stop};

/// Codes of at most this many bits are found in one look.
const SHORT: u32 = 9;

/// A Huffman table: symbols by code.
#[derive(Clone, Debug)]
pub struct Table {
    /// By the next [`SHORT`] bits: length and symbol, or length 0 where the code is longer.
    short: Vec<(u8, u8)>,
    /// By length: one past the last code, shifted to 16 bits.
    ends: [u32; 17],
    /// By length: what a code is less than the index of its symbol, modulo 2^32.
    offsets: [u32; 17],
    symbols: Vec<u8>,
}

impl Table {
    /// `counts`: the number of codes of 1 to 16 bits, `symbols`: their symbols in order of code.
    pub fn new(counts: &[u8], symbols: &[u8]) -> Step<Table> {
        let mut table = Table { short: vec![(0, 0); 1 << SHORT], ends: [0; 17], offsets: [0; 17], symbols: symbols.to_vec() };
        let (mut code, mut index) = (0u32, 0u32);
        for length in 1..=16u32 {
            let count = u32::from(counts[length as usize - 1]);
            if code + count > 1 << length {
                return Err(Stop::Damaged("a Huffman table has more codes than fit"));
            }
            table.offsets[length as usize] = index.wrapping_sub(code);
            for _ in 0..count {
                if length <= SHORT {
                    let first = (code << (SHORT - length)) as usize;
                    table.short[first..first + (1 << (SHORT - length))].fill((length as u8, symbols[index as usize]));
                }
                (code, index) = (code + 1, index + 1);
            }
            table.ends[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }

    /// Whether every symbol is a number of bits of a DC difference.
    pub fn is_of_dc(&self) -> bool {
        self.symbols.iter().all(|&s| s <= 15)
    }
}

/// Reads bits of one scan, up to the next marker. Beyond it bits are 0, and [`Bits::check`] tells.
pub struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, from the top.
    next: u64,
    held: u32,
    /// How many of the held bits, at the end, are not in the file.
    invented: u32,
}

impl<'a> Bits<'a> {
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Bits { bytes, at, next: 0, held: 0, invented: 0 }
    }

    /// Holds at least 48 bits: a code of 16 bits and 16 bits that follow, with room.
    fn fill(&mut self) {
        if self.held >= 48 {
            return;
        }
        if self.held <= 32
            && self.invented == 0
            && let Some(&[a, b, c, d]) = self.bytes.get(self.at..self.at + 4)
            && ![a, b, c, d].contains(&0xff)
        {
            self.next |= u64::from(u32::from_be_bytes([a, b, c, d])) << (32 - self.held);
            self.held += 32;
            self.at += 4;
        }
        while self.held <= 56 {
            let byte = match self.bytes.get(self.at..) {
                Some([0xff, 0x00, ..]) => {
                    self.at += 2;
                    0xff
                }
                Some([byte, ..]) if *byte != 0xff => {
                    self.at += 1;
                    *byte
                }
                _ => {
                    self.invented += 8;
                    0
                }
            };
            self.next |= u64::from(byte) << (56 - self.held);
            self.held += 8;
        }
    }

    /// `count` of at most 16 bits that were made sure of.
    fn take(&mut self, count: u32) -> u32 {
        let bits = ((self.next >> 1) >> (63 - count)) as u32;
        self.next <<= count;
        self.held -= count;
        bits
    }

    /// The next `count` bits, at most 16, as a number.
    pub fn number(&mut self, count: u32) -> u32 {
        self.fill();
        self.take(count)
    }

    /// The next symbol, and the bits after it stay in reach of [`Bits::signed`].
    pub fn symbol(&mut self, table: &Table) -> Step<u8> {
        self.fill();
        let (length, symbol) = table.short[(self.next >> (64 - SHORT)) as usize];
        if length > 0 {
            self.take(u32::from(length));
            return Ok(symbol);
        }
        let look = (self.next >> 48) as u32;
        let length = (SHORT as usize + 1..=16).find(|&n| look < table.ends[n]).ok_or(Stop::Damaged("a code is in no Huffman table"))?;
        let index = self.take(length as u32).wrapping_add(table.offsets[length]);
        table.symbols.get(index as usize).copied().ok_or(Stop::Damaged("a code is in no Huffman table"))
    }

    /// A number of `size` bits, at most 15, after a symbol: its upper half is positive (F.2.2.1, EXTEND).
    pub fn signed(&mut self, size: u8) -> i32 {
        if size == 0 {
            return 0;
        }
        let value = self.take(u32::from(size)) as i32;
        if value < 1 << (size - 1) { value - (1 << size) + 1 } else { value }
    }

    /// Fails when bits were read that are not in the file.
    pub fn check(&self) -> Step<()> {
        if self.held < self.invented { Err(Stop::Damaged("the data of a scan end early")) } else { Ok(()) }
    }

    /// Goes behind the restart marker of this number, which must be next.
    pub fn restart(&mut self, number: u8) -> Step<()> {
        self.check()?;
        // Whole bytes that were fetched and not used lie before the marker: data that no block asked for.
        if self.held - self.invented >= 8 {
            return Err(Stop::Damaged("a restart marker comes late"));
        }
        while let Some([0xff, 0xff]) = self.bytes.get(self.at..self.at + 2) {
            self.at += 1;
        }
        if self.bytes.get(self.at..self.at + 2) != Some(&[0xff, 0xd0 + number]) {
            return Err(Stop::Damaged("a restart marker is missing"));
        }
        *self = Bits::new(self.bytes, self.at + 2);
        Ok(())
    }

    /// Where the bytes of the scan ended: at a marker, or later than all that was used.
    pub fn end(&self) -> usize {
        self.at
    }
}
