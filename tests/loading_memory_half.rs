//! A checkpoint of half precision takes the memory of its file, not twice that. A file of its own, because the peak of a process
//! only rises.
#![cfg(target_os = "linux")]

use std::io::Write;

use half::f16;
use naevus::plan::Layout;
use naevus::weights::Scope;

const TENSORS: usize = 24;
const SHAPE: [usize; 2] = [1024, 2048];

/// A field of /proc/self/status in bytes.
fn status(field: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn the_peak_is_at_most_1_3_times_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let bytes = 2 * SHAPE[0] * SHAPE[1];
    let entry = |i: usize| format!("\"layer.{i}.weight\":{{\"dtype\":\"F16\",\"shape\":{SHAPE:?},\"data_offsets\":[{},{}]}}", i * bytes, (i + 1) * bytes);
    let header = format!("{{{}}}", (0..TENSORS).map(entry).collect::<Vec<_>>().join(","));
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    for i in 0..TENSORS {
        let row: Vec<u8> = (0..SHAPE[1]).flat_map(|column| f16::from_f32((i + column) as f32).to_le_bytes()).collect();
        (0..SHAPE[0]).for_each(|_| file.write_all(&row).unwrap());
    }
    let before = status("VmRSS:");
    let scope = Scope::open(&path, "model").unwrap();
    let weights: Vec<_> = (0..TENSORS).map(|i| scope.weight(&format!("layer.{i}.weight"), &SHAPE, Layout::LinearWeight)).collect();
    scope.finish().unwrap();
    let peak = status("VmHWM:") - before;
    // Turned: the first values are those of the first column.
    let mut first = [0.0; 2];
    weights[7].array.widen(SHAPE[0], &mut first);
    assert_eq!(first, [8.0, 8.0]);
    println!("peak {} MiB for a file of {} MiB", peak >> 20, (TENSORS * bytes) >> 20);
    assert!(peak <= 13 * TENSORS * bytes / 10, "peak {peak} bytes for a file of {}", TENSORS * bytes);
}
