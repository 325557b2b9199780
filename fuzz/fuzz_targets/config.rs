//! A config.json of any architecture beside a file without weights: every number it claims must be bounded before anything
//! is made of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use naevus::weights::Writer;

fuzz_target!(|bytes: &[u8]| {
    let weights = naevus_fuzz::folder().join("model.safetensors");
    if !weights.is_file() {
        let mut writer = Writer::new();
        writer.f32("x", &[1], vec![0.0]).expect("one number");
        writer.write(&weights).expect("a file in a temporary folder");
    }
    std::fs::write(naevus_fuzz::folder().join("config.json"), bytes).expect("a file in a temporary folder");
    naevus_fuzz::hold(naevus_fuzz::load(naevus_fuzz::folder()));
});
