//! What `weights/` holds: small enough, the bytes that its list of checksums names, a card in every folder, and all of it in the program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use naevus::driver::demo_models::{self, FILES};
use naevus::driver::files;

/// Of all files together.
const MOST_BYTES: u64 = 28 << 20;
const SUMS: &str = "SHA256SUMS";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("weights")
}

/// Files below `folder` by their path below `weights/`.
fn collect(folder: &Path, found: &mut BTreeMap<String, PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            let name: Vec<_> = path.strip_prefix(root()).unwrap().iter().map(|part| part.to_str().unwrap()).collect();
            found.insert(name.join("/"), path);
        }
    }
}

fn all() -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    collect(&root(), &mut found);
    assert!(found.len() > 60, "{} files", found.len());
    found
}

#[test]
fn all_files_together_are_small() {
    let bytes: u64 = all().values().map(|path| path.metadata().unwrap().len()).sum();
    assert!(bytes <= MOST_BYTES, "{bytes} bytes, expected at most {MOST_BYTES}");
}

#[test]
fn every_file_has_the_bytes_that_the_list_names() {
    let list = std::fs::read_to_string(root().join(SUMS)).unwrap();
    let named: BTreeMap<&str, &str> = list.lines().map(|line| line.split_once("  ").expect("sum  path")).map(|(sum, name)| (name, sum)).collect();
    let mut found = all();
    found.remove(SUMS);
    assert_eq!(named.keys().copied().collect::<Vec<_>>(), found.keys().map(String::as_str).collect::<Vec<_>>(), "weights/README.md says how {SUMS} is made");
    for (name, path) in found {
        assert_eq!(files::sha256_of(&path).unwrap(), named[name.as_str()], "{name}");
    }
}

#[test]
fn every_folder_has_a_card() {
    for entry in std::fs::read_dir(root()).unwrap() {
        let folder = entry.unwrap().path();
        if folder.is_dir() {
            let card = std::fs::read_to_string(folder.join("README.md")).expect("a card");
            assert!(card.contains("CC BY-NC 4.0") && card.to_lowercase().contains("not for diagnosis"), "{}", folder.display());
        }
    }
}

#[cfg(feature = "demo")]
#[test]
fn the_program_holds_every_file() {
    let inside: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
    demo_models::check_inside().unwrap();
    assert_eq!(inside, all().keys().map(String::as_str).collect::<Vec<_>>(), "`FILES` in src/driver/demo_models.rs is sorted by path");
    for (name, path) in all() {
        let bytes = FILES.iter().find(|(other, _)| *other == name).map(|(_, bytes)| *bytes);
        assert!(bytes == Some(&std::fs::read(path).unwrap()[..]), "{name}: the program was built with other bytes");
    }
}

#[cfg(not(feature = "demo"))]
#[test]
fn without_the_feature_the_program_holds_none() {
    assert!(FILES.is_empty());
    let error = demo_models::check_inside().unwrap_err();
    assert_eq!(error.to_string(), "demo: this program was built without its models (the cargo feature `demo`), expected --weights DIR");
}
