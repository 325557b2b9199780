//! A safetensors file: header, shapes, byte ranges.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| naevus_fuzz::load_file("model.safetensors", bytes));
