//! The house's rules, held by a machine: a file imports only from floors below it, a crate is named only in its room,
//! files stay readable, nothing is left undone. Each rule is shown to fail on a line that breaks it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Rooms and their floors. A file of `src/<room>` may name `crate::<other>` only where `other` is on a lower floor or in `beside`.
const ROOMS: &[Room] = &[
    Room { name: "base", floor: 0, beside: &[], except: &[] },
    Room { name: "plan", floor: 1, beside: &[], except: &[] },
    // Tensors become a plan's weights, in its layouts.
    Room { name: "weights", floor: 1, beside: &["plan"], except: &[] },
    Room { name: "ops", floor: 2, beside: &[], except: &[] },
    Room { name: "nn", floor: 3, beside: &[], except: &[] },
    Room { name: "models", floor: 4, beside: &[], except: &[] },
    Room { name: "diffusion", floor: 5, beside: &[], except: &[] },
    Room { name: "ood", floor: 5, beside: &[], except: &[] },
    Room { name: "driver", floor: 6, beside: &["exec"], except: &[] },
    Room { name: "cli", floor: 7, beside: &["exec"], except: &[] },
    // The tower runs plans: it knows what an op is, never what a model is. Nobody below the driver names it.
    Room { name: "exec", floor: 3, beside: &[], except: &["weights"] },
];

const TOWER: &str = "exec";

/// Crates and the rooms, as path prefixes below `src`, that may name them. No rooms: any.
const CRATES: &[(&str, &[&str])] = &[
    ("bytemuck", &[]),
    ("clap", &["cli", "main.rs"]),
    ("csv", &["driver"]),
    ("ctrlc", &["cli", "main.rs"]),
    ("fast_image_resize", &["driver"]),
    ("gemm", &["ops"]),
    ("half", &["base", "exec", "ops", "weights"]),
    ("image", &["driver"]),
    ("indicatif", &["cli", "main.rs"]),
    ("libm", &[]),
    ("memmap2", &["weights"]),
    ("naga", &["exec/gpu"]),
    ("png", &["driver"]),
    ("noto_sans_mono_bitmap", &["driver/canvas.rs"]),
    ("pollster", &["exec/gpu"]),
    ("pulp", &["ops/lanes.rs"]),
    ("rand_chacha", &[]),
    ("rand_core", &[]),
    ("rayon", &[]),
    ("safetensors", &["weights"]),
    ("serde", &[]),
    ("serde_json", &[]),
    ("sha2", &[]),
    ("tempfile", &[]),
    ("thiserror", &[]),
    ("tokenizers", &["models/tokenizer.rs"]),
    ("toml", &[]),
    ("tracing", &[]),
    ("wgpu", &["exec/gpu"]),
];

const MAX_LINES: usize = 600;
const UNDONE: &[&str] = &["todo!(", "unimplemented!(", "#[ignore"];

struct Room {
    name: &'static str,
    floor: u32,
    /// Rooms that are not below and may be named all the same.
    beside: &'static [&'static str],
    /// Rooms below that may not be named.
    except: &'static [&'static str],
}

fn room(name: &str) -> Option<&'static Room> {
    ROOMS.iter().find(|r| r.name == name)
}

impl Room {
    fn may_name(&self, other: &Room) -> bool {
        let below = other.floor < self.floor && other.name != TOWER && !self.except.contains(&other.name);
        self.name == other.name || below || self.beside.contains(&other.name)
    }
}

/// Everything that `source`, the file at `path` below `src`, does against the rules: `path:line: fact`.
fn violations(path: &str, source: &str) -> Vec<String> {
    let code = code_only(source);
    let mut found = undone(path, &code);
    found.extend(too_long(path, source));
    let product = without_tests(&code);
    let place = |at: usize, fact: String| format!("src/{path}:{}: {fact}", product[..at].matches('\n').count() + 1);
    let own = path.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    match room(own) {
        Some(from) => {
            for (at, name) in crate_paths(&product) {
                if room(&name).is_some_and(|to| !from.may_name(to)) {
                    found.push(place(at, format!("{own} names crate::{name}, which is not below it")));
                }
            }
        }
        None if !["lib.rs", "main.rs"].contains(&path) => found.push(format!("src/{path}: {own} has no floor, give it one in tests/floors.rs")),
        None => {}
    }
    for (name, rooms) in CRATES {
        if rooms.is_empty() || rooms.iter().any(|r| path == *r || path.starts_with(&format!("{r}/")) || path == format!("{r}.rs")) {
            continue;
        }
        if let Some(at) = names_crate(&product, name) {
            found.push(place(at, format!("names the crate {name}, which belongs to {}", rooms.join(", "))));
        }
    }
    found
}

fn undone(path: &str, code: &str) -> Vec<String> {
    let lines = code.lines().enumerate();
    lines.flat_map(|(i, line)| UNDONE.iter().filter(|u| line.contains(**u)).map(move |u| format!("{path}:{}: {u}", i + 1)).collect::<Vec<_>>()).collect()
}

fn too_long(path: &str, source: &str) -> Option<String> {
    let lines = source.lines().count();
    (lines > MAX_LINES).then(|| format!("{path}: {lines} lines, expected at most {MAX_LINES}"))
}

/// The source with comments and the insides of strings and character literals blanked; line breaks stay.
fn code_only(source: &str) -> String {
    let text: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < text.len() {
        let end = literal_end(&text, at);
        if end > at {
            out.extend(text[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    out
}

/// Where the comment or literal that starts at `at` ends; `at` where none does.
fn literal_end(text: &[char], at: usize) -> usize {
    let starts = |pattern: &str| pattern.chars().enumerate().all(|(i, c)| text.get(at + i) == Some(&c));
    let inside_word = at > 0 && (text[at - 1].is_alphanumeric() || text[at - 1] == '_');
    if starts("//") {
        return (at..text.len()).find(|&i| text[i] == '\n').unwrap_or(text.len());
    }
    if starts("/*") {
        return block_comment_end(text, at);
    }
    if text[at] == '"' {
        return quoted_end(text, at + 1, '"');
    }
    if !inside_word && (starts("r\"") || starts("r#")) {
        let hashes = text[at + 1..].iter().take_while(|&&c| c == '#').count();
        if text.get(at + 1 + hashes) == Some(&'"') {
            return raw_string_end(text, at + 2 + hashes, hashes);
        }
    }
    // A lifetime has no closing quote after one character.
    if text[at] == '\'' && (text.get(at + 1) == Some(&'\\') || text.get(at + 2) == Some(&'\'')) {
        return quoted_end(text, at + 1, '\'');
    }
    at
}

fn quoted_end(text: &[char], mut at: usize, quote: char) -> usize {
    while at < text.len() && text[at] != quote {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

fn raw_string_end(text: &[char], mut at: usize, hashes: usize) -> usize {
    while at < text.len() {
        if text[at] == '"' && text[at + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    text.len()
}

fn block_comment_end(text: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < text.len() {
        match (text[at], text.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Unit tests may name any room: a `#[cfg(test)] mod` at the left margin is blanked, up to its closing brace at the left margin.
fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut lines = code.lines().peekable();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        if line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.starts_with("mod ") && next.ends_with('{')) {
            for inner in lines.by_ref() {
                out.push('\n');
                if inner == "}" {
                    break;
                }
            }
        }
    }
    out
}

/// Every first segment behind `crate::`, groups included, with its place.
fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let mut found = vec![];
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let rest = code[at + "crate::".len()..].trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            found.extend(group_heads(group).into_iter().map(|name| (at, name)));
        } else {
            found.push((at, word(rest)));
        }
    }
    found
}

/// First segments of a use group's members: `a::{b, c}, d` gives a and d.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut expect) = (0, vec![], true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expect = true,
            c if expect && is_word(c) => {
                heads.push(word(&group[at..]));
                expect = false;
            }
            _ => {}
        }
    }
    heads
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word(text: &str) -> String {
    text.chars().take_while(|&c| is_word(c)).collect()
}

/// Where `code` names the crate `name`: as the head of a path or of a use. A module of ours with that name is not it.
fn names_crate(code: &str, name: &str) -> Option<usize> {
    let module = [format!("mod {name};"), format!("mod {name} {{")].iter().any(|m| code.contains(m));
    let shadowed = module || imports(code).any(|import| import.split(|c| !is_word(c)).any(|w| w == name));
    code.match_indices(name).map(|(at, _)| at).find(|&at| {
        let (before, after) = (&code[..at], &code[at + name.len()..]);
        let whole = !before.ends_with(is_word) && !after.starts_with(is_word);
        let absolute = before.strip_suffix("::").is_some_and(|b| !b.ends_with(is_word));
        let relative = !before.ends_with("::") && !before.ends_with('.');
        let used = before.trim_end().ends_with("use") && [";", " as "].iter().any(|s| after.starts_with(s));
        whole && (absolute || relative && !shadowed) && (after.starts_with("::") || used)
    })
}

/// The uses of our own modules, each up to its semicolon.
fn imports(code: &str) -> impl Iterator<Item = &str> {
    let statements = code.match_indices("use ").map(|(at, _)| code[at..].split(';').next().unwrap_or_default());
    statements.filter(|s| ["use crate::", "use super::", "use self::"].iter().any(|own| s.starts_with(own)))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` with this extension, in order, as (path below `folder`, text).
fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = vec![];
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    let below = |path: &Path| path.strip_prefix(root().join(folder)).unwrap().to_str().unwrap().replace('\\', "/");
    found.into_iter().map(|path| (below(&path), std::fs::read_to_string(&path).unwrap())).collect()
}

#[test]
fn every_file_keeps_to_its_floor_and_room() {
    let sources = files("src", "rs");
    assert!(sources.len() >= 15, "only {} files read", sources.len());
    let found: Vec<String> = sources.iter().flat_map(|(path, source)| violations(path, source)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn shaders_and_tests_are_readable_and_done() {
    let shaders = files("shaders", "wgsl");
    assert!(shaders.len() >= 5, "only {} shaders read", shaders.len());
    let tests = files("tests", "rs");
    let mut found: Vec<String> = shaders.iter().chain(&tests).filter_map(|(path, source)| too_long(path, source)).collect();
    found.extend(tests.iter().flat_map(|(path, source)| undone(&format!("tests/{path}"), &code_only(source))));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_dependency_has_a_room() {
    let manifest: toml::Table = std::fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let listed: BTreeSet<&str> = CRATES.iter().map(|(name, _)| *name).collect();
    let named: Vec<String> = manifest["dependencies"].as_table().unwrap().keys().map(|name| name.replace('-', "_")).collect();
    assert!(named.len() >= 10, "only {} dependencies read", named.len());
    let homeless: Vec<&String> = named.iter().filter(|name| !listed.contains(name.as_str())).collect();
    assert!(homeless.is_empty(), "{homeless:?}: no room in tests/floors.rs");
}

#[test]
fn forbidden_lines_are_found() {
    let rows: &[(&str, &str, &str)] = &[
        ("base/shape.rs", "use crate::plan::Tape;", "base names crate::plan"),
        ("plan/tape.rs", "use crate::weights::Store;", "plan names crate::weights"),
        ("ops/conv2d.rs", "use crate::nn::Conv2d;", "ops names crate::nn"),
        ("ops/conv2d.rs", "use crate::exec::cpu;", "ops names crate::exec"),
        ("models/unet.rs", "use crate::{base::{Error, Result}, exec};", "models names crate::exec"),
        ("models/unet.rs", "fn f() { crate::diffusion::ddim::step(); }", "models names crate::diffusion"),
        ("diffusion/ddim.rs", "use crate::ood::knn;", "diffusion names crate::ood"),
        ("exec/cpu.rs", "use crate::models::UNet;", "exec names crate::models"),
        ("driver/job.rs", "pub(in crate::cli) fn f() {}", "driver names crate::cli"),
        ("driver/job.rs", "use crate::\n    cli::Progress;", "driver names crate::cli"),
        ("garage/car.rs", "", "garage has no floor"),
        ("exec/cpu.rs", "let d = wgpu::Device::default();", "names the crate wgpu"),
        ("driver/job.rs", "use wgpu::Device;", "names the crate wgpu"),
        ("driver/job.rs", "use wgpu as gpu;", "names the crate wgpu"),
        ("driver/job.rs", "::wgpu::Device", "names the crate wgpu"),
        ("cli/mod.rs", "use image::RgbImage;", "names the crate image"),
        ("driver/job.rs", "#[derive(clap::Parser)]", "names the crate clap"),
        ("models/unet.rs", "use half::f16;", "names the crate half"),
        ("main.rs", "use csv::Reader;", "names the crate csv"),
        ("base/shape.rs", "fn f() { todo!() }", "todo!("),
        ("base/shape.rs", "#[cfg(test)]\nmod tests {\n    #[ignore]\n}\n", "#[ignore"),
        ("base/shape.rs", "const C: char = '\"'; use crate::plan::Tape;", "base names crate::plan"),
        ("base/shape.rs", "fn f<'a>(x: &'a str) {} use crate::plan::Tape;", "base names crate::plan"),
        ("base/shape.rs", "const S: &str = r#\"a \" b\"#; use crate::plan::Tape;", "base names crate::plan"),
        ("base/shape.rs", "#[cfg(test)]\nmod tests {\n}\nuse crate::plan::Tape;", "src/base/shape.rs:4: base names crate::plan"),
    ];
    for (path, source, expected) in rows {
        let found = violations(path, source);
        assert!(found.len() == 1 && found[0].contains(expected), "{path} with {source:?}: {found:?}, expected {expected}");
    }
    assert_eq!(violations("base/shape.rs", &"\n".repeat(MAX_LINES + 1)).len(), 1);
}

#[test]
fn allowed_lines_are_left_alone() {
    let rows: &[(&str, &str)] = &[
        ("weights/store.rs", "use crate::plan::{Layout, Weight}; use half::f16; use memmap2::Mmap;"),
        ("ops/conv2d.rs", "use crate::{base::Result, params, plan::Tape}; gemm::gemm();"),
        ("exec/gpu/device.rs", "use crate::ops; use wgpu::Device; pollster::block_on(f);"),
        ("driver/job.rs", "use crate::{exec::cpu, models, ood}; use image::RgbImage;"),
        ("cli/mod.rs", "use crate::driver::image; use clap::Parser; fn f() { image::open(); }"),
        ("cli.rs", "use clap::Parser; use crate::exec;"),
        ("main.rs", "fn main() { naevus::cli::main() } use clap as _;"),
        ("lib.rs", "pub mod base; pub mod exec;"),
        ("models/unet.rs", "// use crate::exec::cpu; wgpu::Device\n/* todo!() /* wgpu:: */ */ const S: &str = \"use crate::exec; // wgpu::\";"),
        ("models/unet.rs", "#[cfg(test)]\nmod tests {\n    use crate::exec::cpu;\n}\n"),
        ("models/unet.rs", "let half = image.height(); let csv = x::half::y; naevus_wgpu::f();"),
    ];
    for (path, source) in rows {
        assert_eq!(violations(path, source), Vec::<String>::new(), "{path} with {source:?}");
    }
    assert!(violations("base/shape.rs", &"\n".repeat(MAX_LINES)).is_empty());
}
