//! A zip file as torch.save writes it: archive, pickle, storages.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| naevus_fuzz::load_file("model.pt", bytes));
