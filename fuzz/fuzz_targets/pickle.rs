//! An old-style torch file: a stream of pickles and raw storages.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| naevus_fuzz::load_file("model.pth", bytes));
