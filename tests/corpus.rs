//! Files that once broke the program, or that a fuzzer found worth keeping: `tests/corpus/<target>/<file>`. Each is loaded as the
//! fuzz target of that name does it, and must be refused in one line or load, without a panic and in short time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use naevus::base::{Result, Shape};
use naevus::models::{Inputs, Tokenizer, recognise};
use naevus::plan::{Options, Plan, Tape};

/// A target and the name that its bytes get; None: the files of a tokenizer, separated by NUL bytes.
const TARGETS: [(&str, Option<&str>); 6] = [
    ("safetensors", Some("model.safetensors")),
    ("pickle", Some("model.pth")),
    ("zip", Some("model.pt")),
    ("onnx", Some("model.onnx")),
    ("config", Some("config.json")),
    ("tokenizer", None),
];
const TOKENIZER_FILES: [&str; 4] = ["tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.json"];

/// Larger inputs are legal, and slow to plan for.
const LARGEST: usize = 1 << 24;

fn load(path: &Path) -> Result<()> {
    let model = recognise(path)?.load()?;
    for component in model.components() {
        let ports = model.ports(component, 1);
        if ports.iter().any(|port| Shape::new(&port.shape).numel() > LARGEST) {
            continue;
        }
        let mut t = Tape::new();
        let inputs: Vec<_> = ports.iter().map(|port| (port.name.clone(), t.input(&port.name, &port.shape, port.dtype))).collect();
        let outputs = model.record(&mut t, component, &Inputs::new(inputs))?;
        outputs.iter().for_each(|output| t.output(&output.name, output.tensor));
        Plan::freeze(t, &Options::default())?;
    }
    Ok(())
}

fn tokenize(folder: &Path, bytes: &[u8]) -> Result<()> {
    let mut parts = bytes.split(|&b| b == 0);
    for name in TOKENIZER_FILES {
        if let Some(part) = parts.next().filter(|part| !part.is_empty()) {
            std::fs::write(folder.join(name), part).unwrap();
        }
    }
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    Tokenizer::read(folder).and_then(|tokenizer| tokenizer.encode(&text, 77)).map(|_| ())
}

/// What is wrong with how `bytes` were taken; None: nothing.
fn fault(name: Option<&str>, bytes: &[u8]) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let attempt = || match name {
        None => tokenize(dir.path(), bytes),
        Some(name) => {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            load(&path)
        }
    };
    let Ok(result) = catch_unwind(AssertUnwindSafe(attempt)) else { return Some("panicked".to_string()) };
    if start.elapsed() > Duration::from_secs(10) {
        return Some(format!("took {:?}", start.elapsed()));
    }
    let error = result.err()?;
    let text = error.to_string();
    let is_line = !text.contains('\n') && text.len() < 16_384 && !error.fact().is_empty();
    (!is_line).then(|| format!("an error of {} bytes, expected one line", text.len()))
}

#[test]
fn every_file_of_the_corpus_is_one_line_or_a_model() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut faults = Vec::new();
    let mut files = 0;
    for entry in std::fs::read_dir(&root).unwrap().flatten() {
        let target = entry.file_name().to_string_lossy().into_owned();
        let (_, name) = TARGETS.into_iter().find(|(t, _)| *t == target).unwrap_or_else(|| panic!("tests/corpus/{target} is no fuzz target"));
        let paths: Vec<PathBuf> = std::fs::read_dir(entry.path()).unwrap().flatten().map(|file| file.path()).collect();
        for path in paths {
            files += 1;
            faults.extend(fault(name, &std::fs::read(&path).unwrap()).map(|what| format!("{}: {what}", path.display())));
        }
    }
    assert!(files > 0, "tests/corpus holds no file");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
