//! The files of a tokenizer's folder, separated by NUL bytes: tokenizer_config.json, vocab.json, merges.txt, tokenizer.json,
//! and a text to encode.

#![no_main]

use libfuzzer_sys::fuzz_target;
use naevus::models::tokenizer::Tokenizer;

const FILES: [&str; 4] = ["tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.json"];

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.split(|&b| b == 0);
    for name in FILES {
        let path = naevus_fuzz::folder().join(name);
        match parts.next().filter(|part| !part.is_empty()) {
            Some(part) => std::fs::write(path, part).expect("a file in a temporary folder"),
            None => drop(std::fs::remove_file(path)),
        }
    }
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    naevus_fuzz::hold(Tokenizer::read(naevus_fuzz::folder()).and_then(|tokenizer| tokenizer.encode(&text, 77)));
});
