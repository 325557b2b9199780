//! Loading holds the numbers and little else: the pages of a mapped file are given back while they are read.
//! A file of its own, so that no other test's memory is measured.
#![cfg(target_os = "linux")]

use std::io::Write;
use std::path::Path;

use naevus::plan::Layout;
use naevus::weights::{LowRank, Scope, Store, Writer};

const TENSORS: usize = 24;
const SHAPE: [usize; 2] = [1024, 2048];

/// A field of /proc/self/status in bytes.
fn status(field: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Writes a safetensors file of f32 tensors, one after the other.
fn write(path: &Path) -> usize {
    let bytes = 4 * SHAPE[0] * SHAPE[1];
    let entry = |i: usize| format!("\"layer.{i}.weight\":{{\"dtype\":\"F32\",\"shape\":{SHAPE:?},\"data_offsets\":[{},{}]}}", i * bytes, (i + 1) * bytes);
    let header = format!("{{{}}}", (0..TENSORS).map(entry).collect::<Vec<_>>().join(","));
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let values: Vec<u8> = (0..bytes / 4).flat_map(|i| (i as f32).to_le_bytes()).collect();
    (0..TENSORS).for_each(|_| file.write_all(&values).unwrap());
    TENSORS * bytes
}

/// The store of `path` with a change of rank 4 and scale 2 on every tensor.
fn changed(path: &Path, lora: &Path) -> Store {
    let (rank, [out, inputs]) = (4, SHAPE);
    let mut writer = Writer::new();
    writer.f32("up", &[out, rank], vec![0.5; out * rank]).unwrap();
    writer.f32("down", &[rank, inputs], vec![0.5; rank * inputs]).unwrap();
    writer.write(lora).unwrap();
    let (mut store, lora) = (Store::open(path).unwrap(), Store::open(lora).unwrap());
    for i in 0..TENSORS {
        let delta = LowRank { up: lora.view("up").unwrap(), mid: None, down: lora.view("down").unwrap(), scale: 2.0 };
        store.add_low_rank(&format!("layer.{i}.weight"), delta).unwrap();
    }
    store
}

#[test]
fn the_peak_is_at_most_1_3_times_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let file_bytes = write(&path);
    let before = status("VmRSS:");
    let scope = Scope::open(&path, "model").unwrap();
    let weights: Vec<_> = (0..TENSORS).map(|i| scope.weight(&format!("layer.{i}.weight"), &SHAPE, Layout::LinearWeight)).collect();
    scope.finish().unwrap();
    let peak = status("VmHWM:") - before;
    assert_eq!(weights.len(), TENSORS);
    println!("peak {} MiB for a file of {} MiB", peak >> 20, file_bytes >> 20);
    assert!(peak as f64 <= 1.3 * file_bytes as f64, "peak {peak} bytes for a file of {file_bytes}");

    // With a LoRA on every tensor it is the same: changed weights are made one by one.
    drop((weights, scope));
    let scope = Scope::new(changed(&path, &dir.path().join("lora.safetensors")), "model");
    let weights: Vec<_> = (0..TENSORS).map(|i| scope.weight(&format!("layer.{i}.weight"), &SHAPE, Layout::LinearWeight)).collect();
    scope.finish().unwrap();
    let peak = status("VmHWM:") - before;
    // up down is 4 * 0.5 * 0.5.
    assert_eq!((weights.len(), weights[0].array.values()[..2].to_vec()), (TENSORS, vec![2.0, 2.0 + SHAPE[1] as f32]));
    println!("peak {} MiB with a LoRA on every tensor", peak >> 20);
    assert!(peak as f64 <= 1.3 * file_bytes as f64, "peak {peak} bytes with a LoRA, for a file of {file_bytes}");
}
