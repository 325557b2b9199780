//! Measurement: a kernel or a plan is proved first, then timed. Medians with their spread, never a single number.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::array::relative_rms;
use crate::base::{Array, DType, Result, rng};
use crate::exec::Device;
use crate::exec::check::{Proof, prove_case, prove_twin};
use crate::exec::gpu::{Gpu, KernelRun};
use crate::exec::precision::{Precision, stored_as_f16};
use crate::ops::{self, activation, case};
use crate::plan::{Case, CaseInput, Cost, Machine, Op, Options, Session, Tape, Variant};

/// Milliseconds of repeated runs of one thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median_ms: f64,
    /// Median absolute deviation from the median.
    pub mad_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    pub runs: usize,
}

impl Spread {
    /// `samples` holds at least one value.
    pub fn of(samples: &[f64]) -> Spread {
        let median_ms = median(samples);
        let deviations: Vec<f64> = samples.iter().map(|s| (s - median_ms).abs()).collect();
        let min_ms = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let max_ms = samples.iter().copied().fold(0.0, f64::max);
        Spread { median_ms, mad_ms: median(&deviations), min_ms, max_ms, runs: samples.len() }
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Times `once` on the host's clock: a warm-up, then 5 to 200 runs until `budget` is spent; fewer than 5 where these would take ten times the budget.
fn wall_clock(budget: Duration, mut once: impl FnMut() -> Result<()>) -> Result<Spread> {
    once()?;
    let mut samples = Vec::new();
    let begin = Instant::now();
    while samples.is_empty() || (samples.len() < 5 && begin.elapsed() < 10 * budget) || (begin.elapsed() < budget && samples.len() < 200) {
        let start = Instant::now();
        once()?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Spread::of(&samples))
}

/// One line of a benchmark.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub variant: String,
    pub shape: String,
    /// How its floats were stored.
    pub precision: Precision,
    pub spread: Spread,
    /// `gpu` (timestamps on the device) or `wall` (the host's clock).
    pub timer: &'static str,
    pub cost: Cost,
    pub proved: bool,
    pub max_rel_err: f64,
    pub warnings: Vec<String>,
}

impl Row {
    pub fn flop_per_s(&self) -> f64 {
        self.cost.flops as f64 / (self.spread.median_ms * 1e-3)
    }

    pub fn bytes_per_s(&self) -> f64 {
        self.cost.bytes as f64 / (self.spread.median_ms * 1e-3)
    }
}

/// What the device reaches at best, measured by a copy and a product.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    pub copy_bytes_per_s: f64,
    pub product_flop_per_s: f64,
}

/// Noise above which a row carries a warning: the spread is larger than a tenth of the median.
const NOISY: f64 = 0.1;

fn warnings(spread: &Spread, timer: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    if spread.mad_ms > NOISY * spread.median_ms {
        warnings.push(format!("noisy: the runs deviate by {:.0} % of the median; close other programs and repeat", 100.0 * spread.mad_ms / spread.median_ms));
    }
    if timer == "wall" && spread.median_ms < 0.02 {
        warnings.push("short: below 20 us the host's clock and the call weigh in".to_string());
    }
    warnings
}

/// Times the bench cases of `op` whose names are wanted: its variants on `gpu`, or its twin.
pub fn bench_op(gpu: Option<&Arc<Gpu>>, op: &'static Op, budget: Duration, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let cases: Vec<Case> = (op.bench)().into_iter().filter(|case| wanted(case.name)).collect();
    if cases.is_empty() {
        return Ok(rows);
    }
    let twin = prove_twin(op);
    let twin_ok = twin.iter().all(|p| p.passed);
    let twin_worst = twin.iter().map(|p| p.worst).fold(0.0, f64::max);
    for case in cases {
        match gpu {
            None => rows.push(time_twin(op, &case, budget, twin_ok, twin_worst)?),
            Some(gpu) => {
                let floats = if op.f16 && gpu.settings.precision == Precision::F16 { DType::F16 } else { DType::F32 };
                for variant in op.variants {
                    // A variant is timed only on shapes for which it has just been proved.
                    let Some(proof) = prove_case(gpu, op, &case, variant, floats, None) else { continue };
                    rows.push(time_variant(gpu, op, &case, variant, budget, &proof, twin_ok)?);
                }
            }
        }
    }
    Ok(rows)
}

fn time_variant(gpu: &Arc<Gpu>, op: &'static Op, case: &Case, variant: &'static Variant, budget: Duration, proof: &Proof, twin_ok: bool) -> Result<Row> {
    let inputs = case::generated_inputs(op, case);
    let (mut tape, y) = case::record(case)?;
    if proof.floats == DType::F16 {
        tape = stored_as_f16(tape);
    }
    let timing = KernelRun::new(gpu, &tape, variant, &case::bound(&tape, &inputs), None)?.time(budget)?;
    let spread = Spread::of(&timing.samples_ms);
    let mut warnings = warnings(&spread, timing.timer);
    if !proof.passed || !twin_ok {
        warnings.push(format!("not proved: {}", proof.what));
    }
    Ok(Row {
        name: format!("{} {}", op.name, case.name),
        variant: variant.name.to_string(),
        precision: if proof.floats == DType::F16 { Precision::F16 } else { Precision::F32 },
        shape: shape_text(&inputs, tape.shape(y).dims()),
        spread,
        timer: timing.timer,
        cost: tape.total_cost(),
        proved: proof.passed && twin_ok,
        max_rel_err: proof.worst,
        warnings,
    })
}

fn time_twin(op: &'static Op, case: &Case, budget: Duration, proved: bool, worst: f64) -> Result<Row> {
    let inputs = case::generated_inputs(op, case);
    let (tape, y) = case::record(case)?;
    let spread = wall_clock(budget, || case::run_twin(case, &inputs).map(|_| ()))?;
    Ok(Row {
        name: format!("{} {}", op.name, case.name),
        variant: "twin".to_string(),
        precision: Precision::F32,
        shape: shape_text(&inputs, tape.shape(y).dims()),
        warnings: warnings(&spread, "wall"),
        spread,
        timer: "wall",
        cost: tape.total_cost(),
        proved,
        max_rel_err: worst,
    })
}

fn shape_text(inputs: &[Array], output: &[usize]) -> String {
    let inputs: Vec<String> = inputs.iter().map(|a| a.shape.to_string()).collect();
    format!("{} -> {output:?}", inputs.join(" * "))
}

/// Runs a copy and a product kernel: on hardware of a size that no cache holds and that occupies all of the device.
pub fn ceilings(gpu: Option<&Arc<Gpu>>, budget: Duration) -> Result<Ceilings> {
    let machine = gpu.map_or(Machine::Any, |gpu| gpu.limits().machine);
    let (values, side) = if machine == Machine::Hardware { (32 << 20, 2048) } else { (8 << 20, 1024) };
    let copy = Case::new("copy", vec![CaseInput::plain("x", &[values])], |t, i| t.activation(i[0], activation::Function::Identity));
    let product = Case::new("product", vec![CaseInput::plain("a", &[1, side, side]), CaseInput::plain("b", &[1, side, side])], |t, i| t.matmul(i[0], i[1]));
    let best = |op: &'static Op, case: &Case| -> Result<Row> {
        let Some(gpu) = gpu else { return time_twin(op, case, budget, true, 0.0) };
        let (tape, _) = case::record(case)?;
        let missing = || crate::base::Error::new(crate::base::Kind::Shape, op.name, "no kernel takes the case");
        let variant = tape.view(&tape.steps()[0], |view| op.choose(view, machine)).ok_or_else(missing)?;
        let proof = prove_case(gpu, op, case, variant, DType::F32, None).ok_or_else(missing)?;
        time_variant(gpu, op, case, variant, budget, &proof, true)
    };
    let copy = best(&ops::activation::OP, &copy)?;
    let product = best(&ops::matmul::OP, &product)?;
    // The best run, not the median: a ceiling is what the device can do.
    Ok(Ceilings {
        copy_bytes_per_s: copy.cost.bytes as f64 / (copy.spread.min_ms * 1e-3),
        product_flop_per_s: product.cost.flops as f64 / (product.spread.min_ms * 1e-3),
    })
}

/// Largest relative error of a whole model against the CPU executor: hundreds of layers, in another order of summation, and each
/// result rounded to 11 bits where f16 is stored.
fn model_tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 1e-4,
        Precision::F16 => 1e-2,
    }
}

/// Times a model's forward on random inputs: one row for the whole and, with `layers`, one for each step. On a GPU the
/// outputs are first compared with the CPU executor's; on the CPU the twins of its ops are first held against their goldens.
pub fn bench_tape(device: &Device, tape: &Tape, name: &str, budget: Duration, layers: bool) -> Result<Vec<Row>> {
    let precision = device.precision();
    let mut session = device.prepare(tape.clone(), &Options::default())?;
    feed(session.as_mut(), name)?;
    session.run()?;
    let error = match device {
        Device::Cpu => twins_error(tape),
        Device::Gpu(_) => {
            let mut oracle = Device::Cpu.prepare(tape.clone(), &Options::default())?;
            feed(oracle.as_mut(), name)?;
            oracle.run()?;
            let mut worst = 0f64;
            for (output, _) in tape.outputs() {
                worst = worst.max(relative_rms(&session.read(output)?.data, &oracle.read(output)?.data));
            }
            worst
        }
    };
    let spread = wall_clock(budget, || {
        session.run()?;
        session.finish()
    })?;
    let whole = Row {
        name: format!("{name}.forward"),
        variant: "plan".to_string(),
        precision,
        shape: tape.outputs().first().map(|(_, t)| tape.shape(*t).to_string()).unwrap_or_default(),
        warnings: warnings(&spread, "wall"),
        spread,
        timer: "wall",
        cost: tape.total_cost(),
        proved: error <= model_tolerance(precision),
        max_rel_err: error,
    };
    let mut rows = vec![whole];
    if layers {
        rows.extend(layer_rows(session.as_mut(), name, &rows[0])?);
    }
    Ok(rows)
}

/// The largest error of the twins that `tape` runs against PyTorch's goldens; infinite where one fails.
fn twins_error(tape: &Tape) -> f64 {
    let mut ops: Vec<&'static Op> = Vec::new();
    for step in tape.steps() {
        if !ops.iter().any(|op| op.name == step.op.name) {
            ops.push(step.op);
        }
    }
    let proofs = ops.into_iter().flat_map(prove_twin);
    proofs.map(|p| if p.passed { p.worst } else { f64::INFINITY }).fold(0.0, f64::max)
}

/// Random values in every input, a function of (model, input) names; indices are 0.
fn feed(session: &mut dyn Session, name: &str) -> Result<()> {
    let inputs: Vec<(String, usize, DType)> = session.plan().tape.inputs().map(|(n, info)| (n.to_string(), info.shape.numel(), info.dtype)).collect();
    for (input, len, dtype) in inputs {
        let values = match dtype {
            DType::F32 | DType::F16 => rng::uniform(rng::name_seed(&format!("{name}/{input}")), 0, 0, len),
            DType::U32 => vec![0.0; len],
        };
        session.write(&input, &values)?;
    }
    Ok(())
}

/// One row for each step; as proved as the whole is.
fn layer_rows(session: &mut dyn Session, name: &str, whole: &Row) -> Result<Vec<Row>> {
    let runs: Vec<Vec<f64>> = (0..5).map(|_| session.run_timed()).collect::<Result<_>>()?;
    let plan = session.plan();
    let row = |(s, step): (usize, &crate::plan::Step)| {
        let samples: Vec<f64> = runs.iter().map(|run| run[s]).collect();
        let spread = Spread::of(&samples);
        Row {
            name: format!("{name}.{} {}", step.place, step.op.name),
            variant: plan.kernels[s].map_or("-", |kernel| kernel.name).to_string(),
            precision: whole.precision,
            shape: plan.tape.shape(step.output).to_string(),
            warnings: Vec::new(),
            spread,
            timer: "wall",
            cost: plan.tape.cost(step),
            proved: whole.proved,
            max_rel_err: whole.max_rel_err,
        }
    };
    Ok(plan.steps().iter().enumerate().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_robust() {
        let s = Spread::of(&[3.0, 1.0, 2.0, 100.0]);
        assert_eq!((s.median_ms, s.mad_ms, s.min_ms, s.max_ms, s.runs), (2.5, 1.0, 1.0, 100.0, 4));
    }
}
