use super::*;
use crate::driver::features::Classifier;

const CLASSES: [&str; 2] = ["df", "nv"];

fn features(rows: &[(&str, [f32; 3], [f32; 2])]) -> Features {
    let n = rows.len();
    Features {
        ids: rows.iter().map(|r| r.0.to_string()).collect(),
        features: Array::new(&[n, 3], rows.iter().flat_map(|r| r.1).collect()).unwrap(),
        logits: Array::new(&[n, 2], rows.iter().flat_map(|r| r.2).collect()).unwrap(),
        classifier: Classifier { path: "c".into(), sha256: "1".into(), classes: CLASSES.map(String::from).to_vec() },
        skipped: vec![],
    }
}

const DF: [f32; 2] = [2.0, 1.0];
const NV: [f32; 2] = [1.0, 2.0];

/// df around (10, 0, 0), nv around (0, 10, 0).
fn real() -> (Features, Vec<(&'static str, &'static str)>) {
    let rows = [
        ("d0", [10.0, 1.0, 0.0], DF),
        ("d1", [10.0, -1.0, 0.0], DF),
        ("d2", [10.0, 0.0, 1.0], DF),
        ("d3", [10.0, 0.0, -1.0], DF),
        ("d4", [11.0, 0.5, 0.5], DF),
        ("n0", [1.0, 10.0, 0.0], NV),
        ("n1", [-1.0, 10.0, 0.0], NV),
        ("n2", [0.0, 9.0, 1.0], NV),
    ];
    let labels = rows.map(|r| (r.0, if r.0.starts_with('d') { "df" } else { "nv" })).to_vec();
    (features(&rows), labels)
}

fn candidates(rows: &[(&str, &str, &str)]) -> Vec<Candidate> {
    rows.iter().map(|r| Candidate { sample_id: r.0.into(), class: r.1.into(), group: r.2.into(), image: PathBuf::new() }).collect()
}

/// Samples of df, each a step further out, and one of nv.
fn samples() -> (Vec<Candidate>, Features) {
    let list = candidates(&[("s3", "df", "g2"), ("s1", "df", "g1"), ("s0", "df", "g1"), ("s2", "df", "g2"), ("t0", "nv", "g1")]);
    let found = features(&[
        ("s0", [10.2, 0.6, 0.6], DF),
        ("s1", [10.2, 2.0, 2.0], DF),
        ("s2", [10.2, 3.0, 3.0], DF),
        ("s3", [10.2, 4.0, 4.0], DF),
        ("t0", [0.4, 10.0, 0.9], NV),
    ]);
    (list, found)
}

/// Without the near-duplicate gate: in three dimensions everything is near.
fn options() -> SelectOptions {
    SelectOptions { max_cosine: 1.0, ..SelectOptions::default() }
}

fn kept(selection: &Selection) -> Vec<&str> {
    selection.lines.iter().filter(|line| line.kept).map(|line| line.sample_id.as_str()).collect()
}

#[test]
fn the_nearest_of_each_class_are_kept() {
    let ((real, labels), (list, found)) = (real(), samples());
    for method in Method::ALL {
        let selection = select(&real, &labels, &list, &found, &SelectOptions { method, k: 2, ..options() }).unwrap();
        assert_eq!(kept(&selection), ["s0", "s1", "t0"], "{method:?}");
        assert!(selection.lines.is_sorted_by(|a, b| a.sample_id < b.sample_id));
        let percentiles: Vec<f64> = selection.lines[..4].iter().map(|line| line.percentile.unwrap()).collect();
        assert!(percentiles.is_sorted() && percentiles[0] < 100.0 && percentiles[3] == 100.0, "{percentiles:?}");
        assert_eq!(selection.lines[0].nearest_id.as_deref(), Some("d4"));
        let counts: Vec<_> = selection.classes.iter().map(|c| (c.class.as_str(), c.real, c.candidates, c.passed, c.kept)).collect();
        assert_eq!(counts, [("df", 5, 4, 4, 2), ("nv", 3, 1, 1, 1)]);
        let mut turned = list.clone();
        turned.reverse();
        assert_eq!(select(&real, &labels, &turned, &found, &SelectOptions { method, k: 2, ..options() }).unwrap(), selection);
    }
}

#[test]
fn a_group_gives_its_best_alone() {
    let ((real, labels), (list, found)) = (real(), samples());
    let one = |gamma| select(&real, &labels, &list, &found, &SelectOptions { one_per_group: true, gamma, ..options() }).unwrap();
    assert_eq!(kept(&one(1.0)), ["s0", "s2", "t0"]);
    assert_eq!((one(1.0).classes[0].same_group, one(1.0).classes[0].passed), (2, 2));
    assert_eq!(kept(&one(0.5)), ["s0", "t0"]);
    assert!(kept(&one(0.0)).is_empty());
}

#[test]
fn each_gate_is_told() {
    let (real, labels) = real();
    let rows = [("label", "df"), ("copy", "df"), ("nan", "df"), ("zero", "df"), ("logit", "df"), ("gone", "df"), ("good", "df")].map(|(id, c)| (id, c, id));
    let found = features(&[
        ("label", [10.0, 2.0, 2.0], NV),
        ("copy", [20.0, 2.0, 0.0], DF),
        ("nan", [f32::NAN, 0.0, 0.0], DF),
        ("zero", [0.0, 0.0, 0.0], DF),
        ("logit", [10.0, 2.0, 2.0], [f32::INFINITY, 0.0]),
        ("good", [10.0, 3.0, 3.0], DF),
    ]);
    let selection = select(&real, &labels, &candidates(&rows), &found, &SelectOptions { gamma: 1.0, ..SelectOptions::default() }).unwrap();
    assert_eq!(kept(&selection), ["good"]);
    let gates: BTreeMap<&str, Gates> = selection.lines.iter().map(|line| (line.sample_id.as_str(), line.gates)).collect();
    let all = Gates { readable: true, finite: true, label: true, duplicate: true, group: true };
    let want = [
        ("good", all),
        ("label", Gates { label: false, ..all }),
        ("copy", Gates { duplicate: false, ..all }),
        ("nan", Gates { finite: false, duplicate: false, ..all }),
        ("zero", Gates { finite: false, duplicate: false, ..all }),
        ("logit", Gates { finite: false, label: false, ..all }),
        ("gone", Gates { group: true, ..Gates::default() }),
    ];
    for (id, want) in want {
        assert_eq!(gates[id], want, "{id}");
    }
    let summary = &selection.classes[0];
    assert_eq!((summary.unreadable, summary.not_finite, summary.other_label, summary.duplicates, summary.passed), (1, 3, 2, 3, 1));
    let copy = selection.lines.iter().find(|line| line.sample_id == "copy").unwrap();
    assert!(copy.nearest_id.as_deref() == Some("d0") && copy.nearest_cosine.unwrap() > 0.999_999);
}

#[test]
fn what_is_written_is_read() {
    let ((real, labels), (list, found)) = (real(), samples());
    let selection = select(&real, &labels, &list[..3], &found, &options()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = selection.write(dir.path()).unwrap();
    selection.write(dir.path()).unwrap();
    let close = |a: Option<f64>, b: Option<f64>| a.zip(b).is_some_and(|(a, b)| (a - b).abs() < 1e-12 * a.abs().max(1.0));
    let lines = read(&path).unwrap();
    assert_eq!(lines.len(), 3);
    for (a, b) in lines.into_iter().zip(&selection.lines) {
        assert!(close(a.score_mahalanobis, b.score_mahalanobis) && close(a.nearest_cosine, b.nearest_cosine));
        assert_eq!(Line { score_mahalanobis: b.score_mahalanobis, score_knn: b.score_knn, nearest_cosine: b.nearest_cosine, ..a }, *b);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    std::fs::write(&path, "{}\n").unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("selection.jsonl:1: "));
}

#[test]
fn what_cannot_be_selected_is_an_error() {
    let ((real, labels), (list, found)) = (real(), samples());
    let fails = |real: &Features, labels: &[(&str, &str)], list: &[Candidate], options: &SelectOptions, want: &str| {
        let error = select(real, labels, list, &found, options).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    fails(&real, &labels, &[], &options(), "no written samples");
    fails(&real, &labels, &candidates(&[("x", "vasc", "g")]), &options(), "does not know the class `vasc`, it has df, nv");
    fails(&real, &labels[..1], &list, &options(), "df: 1 real images of this class have features, expected at least 2");
    fails(&real, &labels, &list, &SelectOptions { gamma: 1.5, ..options() }, "--gamma: 1.5");
    fails(&real, &labels, &list, &SelectOptions { max_cosine: f64::NAN, ..options() }, "--max-cosine");
    fails(&real, &labels, &list, &SelectOptions { k: 0, ..options() }, "k is 0");
    let mut other = real.clone();
    other.classifier.sha256 = "2".into();
    fails(&other, &labels, &list, &options(), "expected one classifier");
}

#[test]
fn candidates_are_the_written_samples_of_a_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let line = |id: &str, class: &str, group: &str, status: &str| {
        format!(
            r#"{{"sample_id":"{id}","class":"{class}","class_index":0,"source_id":"I1","source_group":{group},"source_sha256":"","mask_sha256":"","output_sha256":"","seed":0,"job":0,"steps":1,"guidance":1.0,"strength":1.0,"eta":0.0,"width":8,"height":8,"outside_mask_max_abs_diff":0,"device":"","precision":"","model_sha256":"","naevus_version":"","created_at":"","status":"{status}"}}"#
        )
    };
    let write = |lines: &[String]| std::fs::write(dir.path().join("manifest.jsonl"), lines.join("\n") + "\n").unwrap();
    write(&[line("b", "df", "\"L1\"", "written"), line("a", "df", "null", "written"), line("c", "df", "null", "failed")]);
    let found = super::candidates(dir.path()).unwrap();
    assert_eq!(found.iter().map(|c| (c.sample_id.as_str(), c.group.as_str())).collect::<Vec<_>>(), [("a", "I1"), ("b", "L1")]);
    assert_eq!(found[0].image, dir.path().join("images/df/a.png"));
    for (id, class) in [("../../x", "df"), ("x", "..")] {
        write(&[line(id, class, "null", "written")]);
        assert!(super::candidates(dir.path()).unwrap_err().to_string().contains("expected a plain file name"));
    }
    assert_eq!(super::candidates(&dir.path().join("absent")).unwrap_err().kind(), Kind::Io);
}
