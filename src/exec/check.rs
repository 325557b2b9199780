//! Proof of kernels on a device: every case and variant of an op against its CPU twin, with guard bands, poison and replay.

use std::sync::Arc;

use crate::base::{Comparison, DType, Result, compare};
use crate::exec::gpu::{Gpu, KernelRun};
use crate::ops::case;
use crate::ops::golden::Goldens;
use crate::plan::{Case, Op, Variant};

/// One proof.
#[derive(Clone, Debug)]
pub struct Proof {
    pub op: &'static str,
    pub variant: &'static str,
    pub case: &'static str,
    pub passed: bool,
    /// Largest error as a share of the expected values' root mean square.
    pub worst: f64,
    /// One line: the error, or what failed.
    pub what: String,
}

/// Proves the twin of `op` on every golden case against PyTorch's float64 result.
pub fn prove_twin(op: &'static Op) -> Vec<Proof> {
    let proof = |case, passed, worst, what| Proof { op: op.name, variant: "twin", case, passed, worst, what };
    let goldens = match Goldens::of(op) {
        Ok(goldens) => goldens,
        Err(e) => return vec![proof("-", false, f64::INFINITY, e.to_string())],
    };
    let mut proofs = Vec::new();
    for case in (op.cases)().iter().filter(|case| case.golden) {
        let compared = goldens.inputs(case).and_then(|inputs| {
            let (actual, dtype) = case::run_twin(case, &inputs)?;
            Ok(judge(op, dtype, &actual.to_channels_first().data, &goldens.expected(case)?.data))
        });
        proofs.push(match compared {
            Ok(c) => proof(case.name, c.passed, c.worst, c.what),
            Err(e) => proof(case.name, false, f64::INFINITY, e.to_string()),
        });
    }
    proofs
}

/// Proves every case and variant of `op` on `gpu`; with `sabotage`, with every shader of the op broken by [`sabotaged`].
pub fn prove_op(gpu: &Arc<Gpu>, op: &'static Op, sabotage: bool) -> Vec<Proof> {
    let mut proofs = Vec::new();
    for variant in op.variants {
        let source = sabotage.then(|| sabotaged(&variant.source.join("\n")));
        for case in (op.cases)() {
            proofs.extend(prove_case(gpu, op, &case, variant, source.as_deref()));
        }
    }
    proofs
}

/// The shader with every stored float a tenth of a percent too large: a subtle fault that the proofs must find.
pub fn sabotaged(source: &str) -> String {
    let line = |line: &str| match (line.split_once("= elem"), line.rfind(");")) {
        (Some((before, rest)), Some(end)) if rest.contains('(') => {
            let open = before.len() + "= elem".len() + rest.find('(').unwrap_or(0) + 1;
            if open < end { format!("{}1.001 * ({}){}", &line[..open], &line[open..end], &line[end..]) } else { line.to_string() }
        }
        _ => line.to_string(),
    };
    source.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Proves one case with one variant; `None` where the variant does not take the case's shapes.
/// `source` replaces the variant's WGSL.
pub fn prove_case(gpu: &Arc<Gpu>, op: &'static Op, case: &Case, variant: &'static Variant, source: Option<&str>) -> Option<Proof> {
    let failed = |what: String| Proof { op: op.name, variant: variant.name, case: case.name, passed: false, worst: f64::INFINITY, what };
    match try_prove(gpu, op, case, variant, source) {
        Ok(proof) => proof,
        Err(e) => Some(failed(e.to_string())),
    }
}

fn try_prove(gpu: &Arc<Gpu>, op: &'static Op, case: &Case, variant: &'static Variant, source: Option<&str>) -> Result<Option<Proof>> {
    let inputs = case::generated_inputs(op, case);
    let (tape, _) = case::record(case)?;
    if !tape.view(&tape.steps()[0], |view| (variant.accepts)(view)) {
        return Ok(None);
    }
    let (expected, dtype) = case::run_twin(case, &inputs)?;
    let run = KernelRun::new(gpu, &tape, variant, &case::bound(&tape, &inputs), source)?;
    let actual = run.output()?;
    let again = run.output()?;
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let proof = |passed, worst, what| Some(Proof { op: op.name, variant: variant.name, case: case.name, passed, worst, what });
    if bits(&actual) != bits(&again) {
        return Ok(proof(false, f64::INFINITY, "two runs gave different bytes".to_string()));
    }
    let comparison = judge(op, dtype, &actual, &expected.data);
    Ok(proof(comparison.passed, comparison.worst, comparison.what))
}

/// Integers are compared byte by byte as numbers: counts and packed pixels alike.
fn judge(op: &Op, dtype: DType, actual: &[f32], expected: &[f32]) -> Comparison {
    match dtype {
        DType::F32 => compare(actual, expected, op.tolerance),
        DType::U32 => compare(&as_numbers(actual), &as_numbers(expected), op.tolerance),
    }
}

fn as_numbers(values: &[f32]) -> Vec<f32> {
    values.iter().flat_map(|v| v.to_bits().to_le_bytes()).map(f32::from).collect()
}
