//! `naevus demo` from outside: a program that lies alone in an empty folder writes samples, scores and pictures, and the same ones again.
#![cfg(feature = "demo")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use naevus::driver::files::sha256_of;
use naevus::driver::image::read_rgb;
use tempfile::TempDir;

/// What the demo writes into its folder.
const WRITTEN: [&str; 8] = ["README.md", "contact_sheet.png", "images", "manifest.jsonl", "models", "run.toml", "selection.jsonl", "verdicts.jsonl"];
/// Enough to pass every line of code, and soon done.
const SMALL: [&str; 6] = ["demo", "--device", "cpu", "--per-class=1", "--steps=2", "--quiet"];

/// An empty folder to call the program in; nothing of the checkout is beside it.
struct Place {
    dir: TempDir,
    program: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = TempDir::new().unwrap();
        let program = dir.path().join(format!("naevus{}", std::env::consts::EXE_SUFFIX));
        let built = env!("CARGO_BIN_EXE_naevus");
        if std::fs::hard_link(built, &program).is_err() {
            std::fs::copy(built, &program).unwrap();
        }
        std::fs::create_dir(dir.path().join("here")).unwrap();
        Place { dir, program }
    }

    fn here(&self) -> PathBuf {
        self.dir.path().join("here")
    }

    fn call(&self, args: &[&str]) -> (i32, String, String) {
        let output = Command::new(&self.program).args(args).current_dir(self.here()).env_clear().output().expect("it runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    /// Exit code 0; what it said on stdout.
    fn done(&self, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.call(args);
        assert_eq!(code, 0, "{args:?}: {stderr}");
        stdout
    }

    /// Exit code 2, and one line that holds every part.
    fn refused(&self, args: &[&str], parts: &[&str]) {
        let (code, stdout, stderr) = self.call(args);
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("naevus: ")).collect();
        assert_eq!((code, errors.len(), stdout.as_str()), (2, 1, ""), "{args:?}: {stderr}");
        for part in parts {
            assert!(errors[0].contains(part), "{args:?}: `{}` does not hold `{part}`", errors[0]);
        }
    }
}

fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SMALL.iter().chain(more).copied().collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// SHA-256 of what must be the same in every run, by path: all but the times in the manifest.
fn sums(folder: &Path) -> BTreeMap<String, String> {
    let images = ["df", "vasc", "akiec"].map(|class| format!("images/{class}/{class}_s0_000000.png"));
    let others = ["contact_sheet.png", "run.toml", "selection.jsonl", "verdicts.jsonl"].map(String::from);
    images.into_iter().chain(others).map(|name| (name.clone(), sha256_of(&folder.join(name)).unwrap())).collect()
}

fn json_lines(path: &Path) -> Vec<serde_json::Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

#[test]
fn a_program_alone_shows_the_whole_path_and_repeats_it() {
    let [one, two] = [Place::new(), Place::new()];
    let stdout = one.done(&small(&["--strip", "strip.png"]));
    assert_eq!(names(&one.here()), ["naevus-demo", "strip.png"]);
    let out = one.here().join("naevus-demo");
    assert_eq!(names(&out), WRITTEN);
    for part in ["dermatofibroma           1", "done in ", "contact_sheet.png", "manifest.jsonl", "not for diagnosis", "models/README.md"] {
        assert!(stdout.contains(part), "`{part}`: {stdout}");
    }
    let samples: Vec<_> = json_lines(&out.join("manifest.jsonl")).into_iter().filter(|line| line["sample_id"].is_string()).collect();
    assert!(samples.len() == 3 && samples.iter().all(|sample| sample["source_id"] == samples[0]["source_id"]), "{samples:?}");
    for name in ["selection.jsonl", "verdicts.jsonl"] {
        assert_eq!(json_lines(&out.join(name)).len(), 3, "{name}");
    }
    let [sheet, strip] = [out.join("contact_sheet.png"), one.here().join("strip.png")].map(|path| read_rgb(&path).unwrap());
    assert!(sheet.width > 5 * 192 && sheet.height > 192 && strip.width > 5 * 128 && strip.height < sheet.height);

    let report: serde_json::Value = serde_json::from_str(&two.done(&small(&["--threads", "1", "--json"]))).unwrap();
    assert!(report["classes"].as_array().unwrap().iter().all(|class| class["samples"] == 1), "{report}");
    assert_eq!(sums(&two.here().join("naevus-demo")), sums(&out), "another folder, one thread");
}

#[test]
fn an_earlier_demo_is_taken_up_and_its_settings_are_held() {
    let place = Place::new();
    place.done(&small(&[]));
    let out = place.here().join("naevus-demo");
    let (first, manifest) = (sums(&out), std::fs::read(out.join("manifest.jsonl")).unwrap());
    place.done(&small(&[]));
    assert_eq!((sums(&out), std::fs::read(out.join("manifest.jsonl")).unwrap()), (first.clone(), manifest), "nothing was made twice");
    place.refused(&small(&["--seed", "1"]), &["run.toml: seed: 0, but this run has 1", "another --out"]);

    // As the folder's README says.
    place.done(&["synthesize", "--quiet", "--config", "naevus-demo/run.toml", "--out", "again"]);
    let select = |classifier: &str| {
        let features = "naevus-demo/models/reference/features.safetensors";
        ["select", "--quiet", "--device", "cpu", "--out", "again", "--reference", features, "--classifier", classifier].map(String::from)
    };
    let [classifier, judge] = ["naevus-demo/models/classifier", "naevus-demo/models/judge"].map(select);
    place.done(&classifier.each_ref().map(String::as_str));
    for name in ["images/vasc/vasc_s0_000000.png", "selection.jsonl"] {
        assert_eq!(sha256_of(&place.here().join("again").join(name)).unwrap(), first[name], "{name}");
    }
    place.refused(&judge.each_ref().map(String::as_str), &["real features are of classifier", "expected one classifier"]);

    std::fs::write(out.join("models/judge/config.json"), "{}").unwrap();
    place.refused(&small(&[]), &["config.json", "another file than this program's"]);
}

#[test]
fn what_cannot_start_is_refused_and_writes_nothing() {
    let place = Place::new();
    for (args, parts) in [
        (&["--per-class", "0"], &["--per-class 0: expected 1 to 1000"][..]),
        (&["--per-class", "1001"], &["--per-class 1001"]),
        (&["--steps", "0"], &["--steps 0: expected 1 to 1000"]),
        (&["--seed", "18446744073709551615"], &["--seed 18446744073709551615: expected 0 to 9223372036854775807"]),
        (&["--device", "no such adapter"], &["--device no such adapter"]),
        (&["--precision", "f16"], &["--precision f16"]),
    ] {
        place.refused(&["demo", "--quiet", args[0], args[1]], parts);
    }
    assert!(names(&place.here()).is_empty(), "{:?}", names(&place.here()));

    std::fs::write(place.here().join("file"), "mine").unwrap();
    place.refused(&small(&["--out", "file"]), &["file: "]);
    place.refused(&small(&["--out", "file/below"]), &["file/below: "]);
    std::fs::create_dir(place.here().join("thesis")).unwrap();
    std::fs::write(place.here().join("thesis/README.md"), "# Thesis").unwrap();
    place.refused(&small(&["--out", "thesis"]), &["--out thesis: holds other files", "another --out"]);
    assert_eq!(names(&place.here().join("thesis")), ["README.md"]);
    place.refused(&small(&["--out", "new", "--weights", "nowhere"]), &["nowhere"]);
}
