//! The decoder against Pillow's bytes (tools/golden/jpeg.py), and against files that are cut, changed, lying or of other kinds.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Stop, decode, headers};
use crate::base::rng;
use crate::driver::files::sha256;
use crate::driver::image::read_rgb;

const FOLDER: &str = "tests/golden/jpeg";

/// (file, width and height, SHA-256 of the RGB bytes) of each row of a table.
fn table(name: &str) -> Vec<(String, [usize; 2], String)> {
    let rows: serde_json::Map<String, Value> = serde_json::from_slice(&std::fs::read(Path::new(FOLDER).join(name)).unwrap()).unwrap();
    let side = |row: &Value, i: usize| row["size"][i].as_u64().unwrap() as usize;
    rows.iter().map(|(file, row)| (file.clone(), [side(row, 0), side(row, 1)], row["sha256"].as_str().unwrap().to_string())).collect()
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(FOLDER).join(format!("{name}.jpg"))).unwrap()
}

/// Every fixture's name and bytes.
fn fixtures() -> Vec<(String, Vec<u8>)> {
    table("pillow.json").into_iter().map(|(name, ..)| (name.clone(), fixture(&name))).collect()
}

/// What differs from the table, if anything: in a program's reading of the file, and in this decoder alone.
fn fault(path: &Path, size: [usize; 2], sum: &str) -> Option<String> {
    let read = match read_rgb(path) {
        Ok(read) => read,
        Err(e) => return Some(e.to_string()),
    };
    let ours = match decode(&std::fs::read(path).unwrap()) {
        Ok(Some(image)) => image.into_rgb8(),
        other => return Some(format!("{}: not decoded here: {other:?}", path.display())),
    };
    let is_same = [read.width, read.height] == size && sha256(&read.data) == sum && ours.as_raw() == &read.data;
    (!is_same).then(|| format!("{}: other pixels than Pillow's", path.display()))
}

#[test]
fn every_fixture_decodes_to_pillows_bytes() {
    let rows = table("pillow.json");
    let files = std::fs::read_dir(FOLDER).unwrap().filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "jpg")).count();
    assert!(files == rows.len() && files >= 60, "{files} files, {} rows", rows.len());
    let faults: Vec<String> = rows.iter().filter_map(|(name, size, sum)| fault(&Path::new(FOLDER).join(format!("{name}.jpg")), *size, sum)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn real_images_decode_to_pillows_bytes() {
    let data = Path::new("../shared/data/ham10000");
    if !data.is_dir() {
        println!("skipped: ../shared absent");
        return;
    }
    let rows = table("ham10000.json");
    let faults: Vec<String> = rows.iter().filter_map(|(name, size, sum)| fault(&data.join(name), *size, sum)).collect();
    assert!(faults.is_empty() && rows.len() >= 40, "{} of {}:\n{}", faults.len(), rows.len(), faults.join("\n"));
}

/// Pillow refuses every one of these too, but for an end marker sewn on, where libjpeg warns and fills with grey.
#[test]
fn a_file_cut_anywhere_is_refused() {
    for (name, bytes) in fixtures() {
        for end in 0..bytes.len() {
            let fact = decode(&bytes[..end]).expect_err(&format!("{name} cut at {end}"));
            let is_told = ["no JPEG data", "truncated", "end early", "a restart marker is missing"].iter().any(|told| fact.contains(told));
            assert!(is_told, "{name} cut at {end}: {fact}");
        }
        for end in (2..bytes.len() - 2).step_by(3) {
            let sewn = [&bytes[..end], &[0xff, 0xd9]].concat();
            // Without its last scans a progressive file is whole, and of another kind.
            assert!(!matches!(decode(&sewn), Ok(Some(_))), "{name} cut at {end} and ended");
        }
    }
}

/// A file's segments: marker, body, and the data behind it.
fn segments(bytes: &[u8]) -> Vec<(u8, Vec<u8>, Vec<u8>)> {
    let (mut at, mut found) = (2, Vec::new());
    while bytes[at + 1] != 0xd9 {
        let body = at + 4..at + 2 + usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
        let is_marker = |end: &usize| bytes[*end] == 0xff && !matches!(bytes[end + 1], 0 | 0xd0..=0xd7);
        let end = (body.end..).find(is_marker).unwrap();
        found.push((bytes[at + 1], bytes[body.clone()].to_vec(), bytes[body.end..end].to_vec()));
        at = end;
    }
    found
}

fn joined(segments: &[(u8, Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0xff, 0xd8];
    for (marker, body, data) in segments {
        bytes.extend([0xff, *marker]);
        bytes.extend((body.len() as u16 + 2).to_be_bytes());
        bytes.extend(body.iter().chain(data));
    }
    bytes.extend([0xff, 0xd9]);
    bytes
}

type Segments = Vec<(u8, Vec<u8>, Vec<u8>)>;

/// A fixture whose segments were changed.
fn changed(name: &str, change: impl Fn(&mut Segments)) -> Vec<u8> {
    let mut all = segments(&fixture(name));
    change(&mut all);
    joined(&all)
}

/// Where the first segment of this marker is.
fn first(all: &Segments, marker: u8) -> usize {
    all.iter().position(|(m, ..)| *m == marker).unwrap()
}

/// A baseline file with one byte of the first segment of `marker` set.
fn set(marker: u8, at: usize, value: u8) -> Vec<u8> {
    changed("baseline-420-q95", |all| {
        let i = first(all, marker);
        all[i].1[at] = value;
    })
}

fn sized(name: &str, frame: u8, [width, height]: [u16; 2]) -> Vec<u8> {
    changed(name, |all| {
        let i = first(all, frame);
        all[i].1[1..3].copy_from_slice(&height.to_be_bytes());
        all[i].1[3..5].copy_from_slice(&width.to_be_bytes());
    })
}

#[test]
fn lies_are_refused() {
    let (baseline, progressive) = ("baseline-420-q95", "progressive-420-q95");
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("too few bytes for the size they claim", sized(baseline, 0xc0, [65_535, 65_535])),
        ("too few bytes for the size they claim", sized(baseline, 0xc0, [9000, 9000])),
        ("too few bytes for the size they claim", sized(progressive, 0xc2, [9000, 9000])),
        ("the data of a scan end early", sized(baseline, 0xc0, [64, 64])),
        ("there is no such quantisation table", set(0xdb, 0, 4)),
        ("a segment is too short", set(0xdb, 0, 0x10)),
        ("there is no such Huffman table", set(0xc4, 0, 4)),
        ("there is no such Huffman table", set(0xc4, 0, 0x20)),
        (
            "a Huffman table has more codes than fit",
            changed(baseline, |all| {
                let i = first(all, 0xc4);
                // Of twelve codes three have one bit.
                (all[i].1[1], all[i].1[3]) = (3, 2);
            }),
        ),
        ("a segment is too short", set(0xc4, 16, 200)),
        ("a Huffman table is not one of DC differences", set(0xc4, 17, 16)),
        ("a scan is of no component", set(0xda, 1, 9)),
        ("there is no such Huffman table", set(0xda, 2, 0x40)),
        ("a segment is too short", set(0xda, 0, 5)),
        ("a scan is of no coefficients", set(0xda, 0, 0)),
        ("a quantisation table is missing", set(0xc0, 8, 3)),
        ("a unit has more than 10 blocks", set(0xc0, 7, 0x44)),
        ("a restart marker comes late", changed(baseline, |all| all.insert(0, (0xdd, vec![0, 1], vec![])))),
        ("a restart interval is not two bytes", changed(baseline, |all| all.insert(0, (0xdd, vec![1], vec![])))),
        ("a scan comes before its frame", changed(baseline, |all| all.retain(|s| s.0 != 0xc0))),
        ("there are two frames", changed(baseline, |all| all.insert(0, all[first(all, 0xc0)].clone()))),
        ("a component has no scan", changed(baseline, |all| all.retain(|s| s.0 != 0xda))),
        ("there is no frame", joined(&[])),
        ("a scan repeats or leaves out bits", changed(baseline, |all| all.push(all[first(all, 0xda)].clone()))),
        ("a scan repeats or leaves out bits", changed(progressive, |all| all.push(all[first(all, 0xda)].clone()))),
        ("a second image begins", [&[0xff, 0xd8], &fixture(baseline)[..]].concat()),
        ("a segment ends early", [&fixture(baseline)[..2], &[0xff, 0xfe, 0, 1, 0, 0]].concat()),
        ("no JPEG data", b"\x89PNG".to_vec()),
    ];
    for (want, bytes) in rows {
        let start = Instant::now();
        match decode(&bytes) {
            Err(fact) => assert!(fact.contains(want), "{fact}, expected {want}"),
            Ok(image) => panic!("accepted: {:?}, expected {want}", image.map(|i| (i.width(), i.height()))),
        }
        assert!(start.elapsed() < Duration::from_secs(1), "{want}: {:?}", start.elapsed());
    }
}

/// Restart markers that are out of turn, and data before them that no block asked for.
#[test]
fn restart_markers_are_counted() {
    let whole = fixture("baseline-420-restart");
    let at = whole.windows(2).position(|w| w == [0xff, 0xd1]).unwrap();
    let edited = |bytes: &[u8]| [&whole[..at], bytes, &whole[at + 2..]].concat();
    assert!(matches!(decode(&edited(&[0xff, 0xff, 0xff, 0xd1])), Ok(Some(_))));
    assert_eq!(decode(&edited(&[0xff, 0xd2])).unwrap_err(), "a restart marker is missing");
    assert_eq!(decode(&edited(&[])).unwrap_err(), "a restart marker comes late");
    assert_eq!(decode(&edited(&[1, 2, 0xff, 0xd1])).unwrap_err(), "a restart marker comes late");
}

/// libjpeg takes these without a change of pixels, and so does this.
#[test]
fn what_lies_between_and_behind_is_passed_over() {
    for name in ["baseline-420-q95", "progressive-420-q95"] {
        let whole = fixture(name);
        let want = decode(&whole).unwrap().unwrap().into_rgb8();
        let comments = changed(name, |all| all.splice(1..1, vec![(0xfe, vec![0xff; 300], vec![]); 40]).for_each(drop));
        let garbage = changed(name, |all| all.iter_mut().for_each(|s| s.2.extend([7, 0xff, 0, 0xff, 0xff])));
        let thumbnail = changed(name, |all| all.insert(1, (0xe1, [b"Exif\0\0", &whole[..]].concat(), vec![])));
        for bytes in [comments, garbage, thumbnail, [&whole, &whole[..]].concat(), [&whole[..], &[0; 9]].concat()] {
            assert!(decode(&bytes).unwrap().unwrap().into_rgb8() == want, "{name}");
        }
    }
}

/// Each scan walks over all blocks and may take no more than a few bytes: their number is bounded.
#[test]
fn a_flood_of_scans_is_refused() {
    let bytes = changed("progressive-grey-q95", |all| {
        let i = first(all, 0xda);
        all.truncate(i + 1);
        all[i].1 = vec![1, 1, 0, 0, 0, 0xd];
        // Bit by bit, one coefficient after the other; an AC table whose one code, of one bit, ends a block.
        all.insert(i, (0xc4, [&[0x10, 1][..], &[0; 15], &[0]].concat(), vec![]));
        for bit in (0..0xdu8).rev() {
            all.push((0xda, vec![1, 1, 0, 0, 0, (bit + 1) << 4 | bit], vec![0; 4]));
        }
        for k in 1..64u8 {
            for bit in (0..=0xdu8).rev() {
                all.push((0xda, vec![1, 1, 0, k, k, if bit == 0xd { bit } else { (bit + 1) << 4 | bit }], vec![0; 4]));
            }
        }
    });
    assert_eq!(decode(&bytes).unwrap_err(), "there are more scans than an encoder writes");
}

/// Kinds that the `image` crate gets: what it can't decode is an error of one line.
#[test]
fn other_kinds_are_not_for_this_decoder() {
    let frame = |marker: u8| changed("baseline-420-q95", |all| all.iter_mut().filter(|s| s.0 == 0xc0).for_each(|s| s.0 = marker));
    let mut rows: Vec<(String, Vec<u8>, bool)> = vec![
        ("12 bits".into(), set(0xc0, 0, 12), false),
        ("no height".into(), sized("baseline-420-q95", 0xc0, [45, 0]), false),
        ("no width".into(), sized("baseline-420-q95", 0xc0, [0, 35]), false),
        (
            "factors of 3 and 2".into(),
            changed("baseline-444-q95", |all| {
                let i = first(all, 0xc0);
                (all[i].1[7], all[i].1[10]) = (0x31, 0x21);
            }),
            false,
        ),
        ("factor of 0".into(), set(0xc0, 7, 0x20), false),
        ("no Huffman tables".into(), changed("baseline-420-q95", |all| all.retain(|s| s.0 != 0xc4)), false),
        (
            "no details".into(),
            changed("progressive-420-q95", |all| {
                let i = first(all, 0xda);
                all.truncate(i + 1);
            }),
            true,
        ),
    ];
    for marker in [0xc3, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf] {
        rows.push((format!("frame {marker:x}"), frame(marker), false));
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, is_read) in rows {
        assert_eq!(headers::read(&bytes).err(), Some(Stop::Unknown), "{name}");
        let path = dir.path().join("a.jpg");
        std::fs::write(&path, bytes).unwrap();
        match read_rgb(&path) {
            Ok(_) => assert!(is_read, "{name} was read"),
            Err(e) => assert!(!is_read && !e.to_string().contains('\n') && e.place().ends_with("a.jpg"), "{name}: {e}"),
        }
    }
}

/// A seeded change of a file: bytes set, bits flipped, a part taken out or repeated, a marker put in.
fn mutated(bytes: &[u8], numbers: &[f32]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for n in numbers.chunks_exact(4) {
        let (at, value) = ((n[1] * out.len() as f32) as usize, (n[2] * 256.0) as u8);
        let end = (at + 1 + (n[3] * 16.0) as usize).min(out.len());
        match (n[0] * 6.0) as u32 {
            0 => out[at] = value,
            1 => out[at] ^= 1 << (value % 8),
            2 => out[at] = if value < 128 { 0 } else { 0xff },
            3 => drop(out.drain(at..end)),
            4 => out.splice(at..at, bytes[at.min(bytes.len() - 1)..end.min(bytes.len())].to_vec()).for_each(drop),
            _ => out.splice(at..at, [0xff, value]).for_each(drop),
        }
    }
    out
}

#[test]
fn changed_files_never_panic() {
    let (mut accepted, mut refused, mut others) = (0, 0, 0);
    for (name, bytes) in fixtures() {
        let headers = bytes.windows(2).position(|w| w == [0xff, 0xda]).unwrap() + 14;
        for round in 0..200u64 {
            let numbers = rng::uniform(rng::name_seed(&name), round, 0, 4 * (1 + round as usize % 3));
            // Every other time only headers change, or scans would hide them.
            let broken = match round % 2 {
                0 => mutated(&bytes, &numbers),
                _ => [&mutated(&bytes[..headers], &numbers), &bytes[headers..]].concat(),
            };
            let start = Instant::now();
            match decode(&broken) {
                Ok(Some(image)) => accepted += usize::from(image.width() > 0 && image.height() > 0),
                Ok(None) => others += 1,
                Err(fact) => refused += usize::from(!fact.is_empty() && !fact.contains('\n')),
            }
            assert!(start.elapsed() < Duration::from_secs(2), "{name} {round}: {:?}", start.elapsed());
        }
    }
    println!("{accepted} accepted, {refused} refused, {others} of another kind");
    assert!(accepted + refused + others == 60 * 200 && accepted > 500 && refused > 3000 && others > 100, "{accepted}, {refused}, {others}");
}
