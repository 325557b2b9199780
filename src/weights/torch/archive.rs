//! The directory of a zip archive of stored entries, as torch.save writes it, zip64 too.
//! Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3.
//!
//! The reader is our own for the same reason as that of safetensors: of two entries with one name a library keeps the last in silence,
//! and an entry is here a range of the mapped file, checked to lie within it, that nobody copies.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::weights::json::shorten;

const END: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const ENTRY: &[u8] = b"PK\x01\x02";
const ENTRY_BYTES: usize = 46;
const LOCAL: &[u8] = b"PK\x03\x04";
const LOCAL_BYTES: usize = 30;

type Fact<T> = Result<T, String>;

/// Entries by name, as ranges of the file.
pub(crate) fn entries(file: &[u8]) -> Fact<BTreeMap<&str, Range<usize>>> {
    let (directory, count) = directory(file)?;
    let mut found = BTreeMap::new();
    let mut at = directory.start;
    for _ in 0..count {
        let (name, range, next) = entry(file, at, directory.clone())?;
        if name.starts_with('/') || name.contains('\\') || name.split('/').any(|step| step == "..") {
            return Err(format!("zip: entry `{}`, expected a name within the archive", shorten(name)));
        }
        if found.insert(name, range).is_some() {
            return Err(format!("zip: entry `{}` stands there twice", shorten(name)));
        }
        at = next;
    }
    overlaps(&found)?;
    Ok(found)
}

/// Little-endian number of `N` bytes at `at`.
fn number<const N: usize>(file: &[u8], at: usize) -> Fact<u64> {
    let bytes = at.checked_add(N).and_then(|end| file.get(at..end)).ok_or_else(|| format!("zip: ends at byte {}, expected more: truncated", file.len()))?;
    Ok(bytes.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b)))
}

fn size(value: u64) -> Fact<usize> {
    usize::try_from(value).map_err(|_| format!("zip: {value} bytes, expected less than the file"))
}

/// The central directory and the number of its entries.
fn directory(file: &[u8]) -> Fact<(Range<usize>, usize)> {
    let absent = "zip: no directory at the end of the file: truncated, or not a zip archive";
    // A comment of up to 65535 bytes may follow.
    let from = file.len().saturating_sub(END_BYTES + 0xffff);
    let end = (from..=file.len().saturating_sub(END_BYTES)).rev().find(|&at| file[at..].starts_with(END)).ok_or(absent)?;
    let (mut count, mut bytes, mut start) = (number::<2>(file, end + 10)?, number::<4>(file, end + 12)?, number::<4>(file, end + 16)?);
    // torch writes the locator of the zip64 record always; it holds where the old fields are full.
    if (count == 0xffff || bytes == 0xffff_ffff || start == 0xffff_ffff) && end >= 20 && file[end - 20..].starts_with(b"PK\x06\x07") {
        let record = size(number::<8>(file, end - 20 + 8)?)?;
        if !file.get(record..).is_some_and(|rest| rest.starts_with(b"PK\x06\x06")) {
            return Err(format!("zip: no zip64 record at byte {record}, where its locator says"));
        }
        (count, bytes, start) = (number::<8>(file, record + 32)?, number::<8>(file, record + 40)?, number::<8>(file, record + 48)?);
    }
    let (start, bytes) = (size(start)?, size(bytes)?);
    let range = start.checked_add(bytes).filter(|&to| to <= end).map(|to| start..to);
    let range = range.ok_or_else(|| format!("zip: directory of {bytes} bytes at {start}, expected it before byte {end}"))?;
    match usize::try_from(count).ok().filter(|n| n.checked_mul(ENTRY_BYTES).is_some_and(|need| need <= bytes)) {
        Some(count) => Ok((range, count)),
        None => Err(format!("zip: {count} entries in a directory of {bytes} bytes")),
    }
}

/// Name and bytes of the entry at `at` of the directory, and where the next one is.
fn entry(file: &[u8], at: usize, directory: Range<usize>) -> Fact<(&str, Range<usize>, usize)> {
    if !file[at.min(directory.end)..directory.end].starts_with(ENTRY) {
        return Err(format!("zip: no entry at byte {at} of the directory, expected one"));
    }
    let lengths = [number::<2>(file, at + 28)?, number::<2>(file, at + 30)?, number::<2>(file, at + 32)?].map(|n| n as usize);
    let name = file.get(at + ENTRY_BYTES..at + ENTRY_BYTES + lengths[0]).and_then(|bytes| std::str::from_utf8(bytes).ok());
    let name = name.ok_or_else(|| format!("zip: name of the entry at byte {at} is not UTF-8 text"))?;
    let extra = at + ENTRY_BYTES + lengths[0]..at + ENTRY_BYTES + lengths[0] + lengths[1];
    let next = extra.end + lengths[2];
    if next > directory.end {
        return Err(format!("zip: entry `{}` is longer than the directory", shorten(name)));
    }
    let wrong = |fact: String| format!("zip: entry `{}`: {fact}", shorten(name));
    let (flags, method) = (number::<2>(file, at + 8)?, number::<2>(file, at + 10)?);
    if flags & 1 != 0 || method != 0 {
        let how = if flags & 1 != 0 { "encrypted".to_string() } else { format!("compressed with method {method}") };
        return Err(wrong(format!("is {how}, expected stored bytes as torch.save writes them")));
    }
    let fields = [number::<4>(file, at + 24)?, number::<4>(file, at + 20)?, number::<4>(file, at + 42)?];
    let [bytes, stored, local] = zip64(file, extra, fields).map_err(wrong)?;
    if bytes != stored {
        return Err(wrong(format!("{stored} bytes stored for {bytes}")));
    }
    let (bytes, local) = (size(bytes)?, size(local)?);
    if !file.get(local..).is_some_and(|rest| rest.starts_with(LOCAL)) {
        return Err(wrong(format!("no local header at byte {local}")));
    }
    let start = local + LOCAL_BYTES + number::<2>(file, local + 26)? as usize + number::<2>(file, local + 28)? as usize;
    match start.checked_add(bytes).filter(|&end| end <= directory.start) {
        Some(end) => Ok((name, start..end, next)),
        None => Err(wrong(format!("{bytes} bytes at {start}, expected them before the directory at {}", directory.start))),
    }
}

/// Uncompressed size, compressed size and offset, of which the full ones stand in the extra field 1.
fn zip64(file: &[u8], extra: Range<usize>, mut fields: [u64; 3]) -> Fact<[u64; 3]> {
    if fields.iter().all(|&field| field != 0xffff_ffff) {
        return Ok(fields);
    }
    let mut at = extra.start;
    while at + 4 <= extra.end {
        let (tag, length) = (number::<2>(file, at)?, number::<2>(file, at + 2)? as usize);
        if tag == 1 {
            let end = (at + 4 + length).min(extra.end);
            at += 4;
            for field in fields.iter_mut().filter(|field| **field == 0xffff_ffff) {
                if at + 8 > end {
                    return Err("sizes of more than 4 GiB are missing".to_string());
                }
                *field = number::<8>(file, at)?;
                at += 8;
            }
            return Ok(fields);
        }
        at += 4 + length;
    }
    Err("sizes of more than 4 GiB are missing".to_string())
}

/// Two entries that share bytes are a lie: small files that claim to be large.
fn overlaps(entries: &BTreeMap<&str, Range<usize>>) -> Fact<()> {
    let mut sorted: Vec<_> = entries.iter().filter(|(_, range)| !range.is_empty()).collect();
    sorted.sort_by_key(|(_, range)| range.start);
    match sorted.windows(2).find(|pair| pair[0].1.end > pair[1].1.start) {
        Some(pair) => Err(format!("zip: entries `{}` and `{}` overlap", shorten(pair[0].0), shorten(pair[1].0))),
        None => Ok(()),
    }
}
