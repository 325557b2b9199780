//! The ops' goldens against the ops' tables: neither a case nor a file is missing or too many, and every shape agrees.
//! That the twins agree with the values is proved in tests/ops.rs.

use std::collections::BTreeSet;
use std::path::Path;

use naevus::base::DType;
use naevus::ops::{self, case, golden};
use naevus::plan::{Case, CaseInput, Fill, Layout};

/// Bytes of a golden file: they are committed and carried inside the program.
const FILE_BYTES: usize = 128 << 10;

/// What is wrong with the golden of `case`, if anything.
fn fault(goldens: &golden::Goldens, case: &Case) -> Option<String> {
    let inputs = match goldens.inputs(case) {
        Ok(inputs) => inputs,
        Err(e) => return Some(e.to_string()),
    };
    let (tape, y_tensor) = match case::record(case) {
        Ok(recorded) => recorded,
        Err(e) => return Some(e.to_string()),
    };
    let shape = tape.shape(y_tensor).dims();
    for (array, input) in inputs.iter().zip(&case.inputs) {
        // Results of four axes are stored as images; a plain input of four axes would make that a guess.
        if shape.len() == 4 && input.shape.len() == 4 && input.layout == Layout::Plain {
            return Some(format!("{}/{} has four axes, expected an image or a weight", case.name, input.name));
        }
        if let Fill::Index(bound) = input.fill
            && array.data.iter().any(|v| v.to_bits() >= bound && bound != u32::MAX)
        {
            return Some(format!("{}/{}: an index is not below {bound}", case.name, input.name));
        }
    }
    // Four axes are an image: [N, H, W, C] here, [N, C, H, W] there.
    let expected: Vec<usize> = match shape.len() {
        4 => [0, 3, 1, 2].iter().map(|&axis| shape[axis]).collect(),
        _ => shape.to_vec(),
    };
    match goldens.expected(case) {
        Err(e) => Some(e.to_string()),
        Ok(y) if y.dims() != expected => Some(format!("{}/y is {}, expected {expected:?}", case.name, y.shape)),
        Ok(y) if tape.dtype(y_tensor) == DType::F32 && y.data.iter().any(|v| !v.is_finite()) => Some(format!("{}/y is not finite", case.name)),
        Ok(_) => None,
    }
}

#[test]
fn the_files_are_the_ops() {
    let listed: Vec<&str> = golden::FILES.iter().map(|(name, _)| *name).collect();
    assert_eq!(listed, ops::ALL.iter().map(|op| op.name).collect::<Vec<_>>());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ops");
    let files: BTreeSet<String> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, listed.iter().map(|name| format!("{name}.safetensors")).collect());
    for (name, bytes) in golden::FILES {
        assert!((1..=FILE_BYTES).contains(&bytes.len()), "{name}: {} bytes, at most {FILE_BYTES}", bytes.len());
    }
}

#[test]
fn the_cases_are_the_tables() {
    for op in ops::ALL {
        let goldens = golden::Goldens::of(op).unwrap();
        let cases: Vec<Case> = (op.cases)().into_iter().filter(|case| case.golden).collect();
        let expected: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
        assert!(!cases.is_empty() && expected.len() == cases.len(), "{}: {expected:?}", op.name);
        assert_eq!(goldens.cases().into_iter().collect::<BTreeSet<_>>(), expected, "{}", op.name);
        let faults: Vec<String> = cases.iter().filter_map(|case| fault(&goldens, case)).collect();
        assert!(faults.is_empty(), "{}: {}", op.name, faults.join("; "));
    }
}

/// A case of another shape than the golden's is found.
#[test]
fn a_changed_table_is_found() {
    let op = &ops::softmax::OP;
    let goldens = golden::Goldens::of(op).unwrap();
    let changed = |name, shape: &[usize]| fault(&goldens, &Case::new(name, vec![CaseInput::plain("x", shape)], |t, i| t.softmax(i[0])));
    assert_eq!(changed("logits", &[5, 7]), None);
    assert!(changed("logits", &[7, 5]).unwrap().contains("golden is [5, 7]"));
    assert!(changed("unknown", &[5, 7]).unwrap().contains("does not hold it"));
}
