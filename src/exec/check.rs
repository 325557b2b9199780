//! Proof of kernels on a device: every case and variant of an op against its CPU twin, with guard bands, poison and replay.

use std::sync::Arc;

use crate::base::{Array, Comparison, DType, Error, Result, Tolerance, compare};
use crate::exec::gpu::{Gpu, KernelRun};
use crate::exec::precision::stored_as_f16;
use crate::ops::golden::Goldens;
use crate::ops::{attention, case, convert};
use crate::plan::{Case, Op, Tape, Variant};

/// One proof.
#[derive(Clone, Debug)]
pub struct Proof {
    pub op: &'static str,
    pub variant: &'static str,
    /// What the kernel's floats were stored as.
    pub floats: DType,
    /// Whether it ran with runtime checks.
    pub checked: bool,
    pub case: &'static str,
    pub passed: bool,
    /// Largest error as a share of the expected values' root mean square.
    pub worst: f64,
    /// One line: the error, or what failed.
    pub what: String,
}

/// Right without runtime checks, but not to the same bits as with them, so that these stay.
const OTHER_BITS: &str = "other bits than with runtime checks";

impl Proof {
    /// The kernel is right, and runs with its runtime checks, because it rounds differently without them.
    pub fn keeps_checks(&self) -> bool {
        !self.passed && !self.checked && self.what == OTHER_BITS
    }

    /// Something is wrong with the kernel.
    pub fn is_failure(&self) -> bool {
        !self.passed && !self.keeps_checks()
    }
}

/// Proves the twin of `op` on every golden case against PyTorch's float64 result.
pub fn prove_twin(op: &'static Op) -> Vec<Proof> {
    let proof = |case, passed, worst, what| Proof { op: op.name, variant: "twin", floats: DType::F32, checked: true, case, passed, worst, what };
    let goldens = match Goldens::of(op) {
        Ok(goldens) => goldens,
        Err(e) => return vec![proof("-", false, f64::INFINITY, e.to_string())],
    };
    let mut proofs = Vec::new();
    for case in (op.cases)().iter().filter(|case| case.golden) {
        let compared = goldens.inputs(case).and_then(|inputs| {
            let (actual, dtype) = case::run_twin(case, &inputs)?;
            Ok(judge(op, "twin", dtype, &actual.to_channels_first().data, &goldens.expected(case)?.data))
        });
        proofs.push(match compared {
            Ok(c) => proof(case.name, c.passed, c.worst, c.what),
            Err(e) => proof(case.name, false, f64::INFINITY, e.to_string()),
        });
    }
    proofs
}

/// How floats of `op` may be stored on `gpu`: as f32, and as f16 where both take it.
pub fn storages(gpu: &Gpu, op: &Op) -> &'static [DType] {
    match (gpu.summary().f16, op.f16) {
        (true, true) => &[DType::F32, DType::F16],
        (false, _) if op.name == convert::OP.name => &[],
        _ => &[DType::F32],
    }
}

/// Proves every case and variant of `op` on `gpu` with floats stored as `floats`, and that variants of one family give the same
/// bits; with `sabotage`, with every shader of the op broken by [`sabotaged`].
pub fn prove_op(gpu: &Arc<Gpu>, op: &'static Op, floats: DType, sabotage: bool) -> Vec<Proof> {
    let mut proofs = Vec::new();
    for case in (op.cases)() {
        let failed = |e: Error| failure(op, "-", floats, &case, e.to_string());
        match Oracle::new(op, &case, floats) {
            Ok(oracle) => oracle.prove_all(gpu, sabotage, true, &|_| true, &mut proofs),
            Err(e) => proofs.push(failed(e)),
        }
    }
    proofs.sort_by_key(|proof| op.variants.iter().position(|v| v.name == proof.variant));
    proofs
}

/// Proves the variants of `op` that are `fit` without runtime checks: as [`prove_op`] does, and each to the bits that it has with them.
pub fn prove_unchecked(gpu: &Arc<Gpu>, op: &'static Op, floats: DType, sabotage: bool, fit: &dyn Fn(&Variant) -> bool) -> Vec<Proof> {
    let mut proofs = Vec::new();
    for case in (op.cases)() {
        match Oracle::new(op, &case, floats) {
            Ok(oracle) => oracle.prove_all(gpu, sabotage, false, fit, &mut proofs),
            Err(e) => proofs.push(Proof { checked: false, ..failure(op, "-", floats, &case, e.to_string()) }),
        }
    }
    proofs.sort_by_key(|proof| op.variants.iter().position(|v| v.name == proof.variant));
    proofs
}

/// The shader with every stored float a tenth of a percent too large: a subtle fault that the proofs must find.
pub fn sabotaged(source: &str) -> String {
    let stored = |line: &str| ["= elem", "return elem"].into_iter().find_map(|word| Some(line.find(word)? + word.len()));
    let line = |line: &str| match (stored(line), line.rfind(");")) {
        (Some(after), Some(end)) if line[after..].contains('(') => {
            let open = after + line[after..].find('(').unwrap_or(0) + 1;
            if open < end { format!("{}1.001 * ({}){}", &line[..open], &line[open..end], &line[end..]) } else { line.to_string() }
        }
        _ => line.to_string(),
    };
    source.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Proves one case with one variant and floats stored as `floats`; `None` where the variant does not take the case's shapes.
/// `source` replaces the variant's WGSL.
pub fn prove_case(gpu: &Arc<Gpu>, op: &'static Op, case: &Case, variant: &'static Variant, floats: DType, source: Option<&str>) -> Option<Proof> {
    match Oracle::new(op, case, floats) {
        Ok(oracle) => {
            let checked = source.is_some() || gpu.is_checked(op, variant, floats);
            oracle.accepts(variant).then(|| oracle.prove(gpu, variant, source, checked).0)
        }
        Err(e) => Some(failure(op, variant.name, floats, case, e.to_string())),
    }
}

fn failure(op: &Op, variant: &'static str, floats: DType, case: &Case, what: String) -> Proof {
    Proof { op: op.name, variant, floats, checked: true, case: case.name, passed: false, worst: f64::INFINITY, what }
}

/// A case with its twin's result.
struct Oracle<'a> {
    op: &'static Op,
    case: &'a Case,
    tape: Tape,
    inputs: Vec<Array>,
    expected: Array,
    dtype: DType,
    floats: DType,
}

impl<'a> Oracle<'a> {
    fn new(op: &'static Op, case: &'a Case, floats: DType) -> Result<Self> {
        let mut inputs = case::generated_inputs(op, case);
        let (mut tape, y) = case::record(case)?;
        if floats == DType::F16 {
            tape = stored_as_f16(tape);
            // The twin sees the numbers that the kernel sees.
            let halves = tape.inputs().zip(&mut inputs).filter(|((_, info), _)| info.dtype == DType::F16);
            halves.for_each(|(_, input)| input.data.iter_mut().for_each(|v| *v = convert::rounded(*v)));
        }
        let (mut expected, _) = case::run_twin(case, &inputs)?;
        let dtype = tape.dtype(y);
        if dtype == DType::F16 {
            expected.data.iter_mut().for_each(|v| *v = convert::rounded(*v));
        }
        Ok(Oracle { op, case, tape, inputs, expected, dtype, floats })
    }

    fn accepts(&self, variant: &Variant) -> bool {
        self.tape.view(&self.tape.steps()[0], |view| (variant.accepts)(view))
    }

    /// One proof of each variant that takes the case; a variant whose bits are not its family's has failed.
    fn prove_all(&self, gpu: &Arc<Gpu>, sabotage: bool, checked: bool, fit: &dyn Fn(&Variant) -> bool, proofs: &mut Vec<Proof>) {
        let mut families: Vec<(&Variant, Vec<u32>)> = Vec::new();
        for variant in self.op.variants.iter().filter(|v| v.runs_on(&gpu.limits()) && self.accepts(v) && fit(v)) {
            let source = sabotage.then(|| sabotaged(&variant.wgsl(self.floats)));
            let (mut proof, bits) = self.prove(gpu, variant, source.as_deref(), checked);
            if !checked && proof.passed && self.prove(gpu, variant, source.as_deref(), true).1 != bits {
                proof.passed = false;
                proof.what = OTHER_BITS.to_string();
            }
            match families.iter().find(|(first, _)| first.family == variant.family) {
                Some((first, expected)) if proof.passed && *expected != bits => {
                    proof.passed = false;
                    proof.what = format!("other bits than {}, of the same family", first.name);
                }
                Some(_) => {}
                None => families.push((variant, bits)),
            }
            proofs.push(proof);
        }
    }

    /// The proof, and the bits of the result; none where there is no result.
    fn prove(&self, gpu: &Arc<Gpu>, variant: &'static Variant, source: Option<&str>, checked: bool) -> (Proof, Vec<u32>) {
        match self.try_prove(gpu, variant, source, checked) {
            Ok(proved) => proved,
            Err(e) => (Proof { checked, ..failure(self.op, variant.name, self.floats, self.case, e.to_string()) }, Vec::new()),
        }
    }

    fn try_prove(&self, gpu: &Arc<Gpu>, variant: &'static Variant, source: Option<&str>, checked: bool) -> Result<(Proof, Vec<u32>)> {
        let run = KernelRun::with(gpu, &self.tape, variant, &case::bound(&self.tape, &self.inputs), source, checked)?;
        let actual = run.output()?;
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let (first, again) = (bits(&actual), bits(&run.output()?));
        let judged = judge(self.op, variant.family, self.dtype, &actual, &self.expected.data);
        let proof =
            |passed, worst, what| Proof { op: self.op.name, variant: variant.name, floats: self.floats, checked, case: self.case.name, passed, worst, what };
        let proof = match first == again {
            true => proof(judged.passed, judged.worst, judged.what),
            false => proof(false, f64::INFINITY, "two runs gave different bytes".to_string()),
        };
        Ok((proof, first))
    }
}

/// What rounding to f16 adds to an op's own tolerance.
const F16_ROUNDING: Tolerance = Tolerance { relative: 9.8e-4, reason: "one unit of f16: Vulkan lets a driver round towards zero" };

/// The same where a kernel's own factors, attention's weights, become f16 before they are multiplied by matrices.
const F16_FACTORS: Tolerance = Tolerance { relative: 2.0 * F16_ROUNDING.relative, reason: "f16 weights, then one unit of f16 as elsewhere" };

/// Integers are compared byte by byte as numbers: counts and packed pixels alike.
fn judge(op: &Op, family: &str, dtype: DType, actual: &[f32], expected: &[f32]) -> Comparison {
    match dtype {
        DType::F32 => compare(actual, expected, op.tolerance),
        DType::F16 => {
            let rounding = if op.name == attention::OP.name && family == "matrices" { F16_FACTORS } else { F16_ROUNDING };
            compare(actual, expected, Tolerance { relative: op.tolerance.relative + rounding.relative, ..rounding })
        }
        DType::U32 => compare(&as_numbers(actual), &as_numbers(expected), op.tolerance),
    }
}

fn as_numbers(values: &[f32]) -> Vec<f32> {
    values.iter().flat_map(|v| v.to_bits().to_le_bytes()).map(f32::from).collect()
}
