//! Measurement: a kernel or a plan is proved first, then timed. Medians with their spread, never a single number.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::array::relative_rms;
use crate::base::{Array, DType, Error, Kind, Result, rng};
use crate::exec::Device;
use crate::exec::check::{Proof, prove_case, prove_twin};
use crate::exec::gpu::{AdapterKind, Gpu, KernelRun};
use crate::exec::precision::{Precision, stored_as_f16};
use crate::ops::{self, activation, case};
use crate::plan::{Case, CaseInput, Cost, Machine, Op, Options, Plan, Session, Step, StepTimes, Tape, Timer, Variant};

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
fn wall_clock(budget: Duration, mut once: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    once()?;
    let mut samples = Vec::new();
    let begin = Instant::now();
    while samples.is_empty() || (samples.len() < 5 && begin.elapsed() < 10 * budget) || (begin.elapsed() < budget && samples.len() < 200) {
        let start = Instant::now();
        once()?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(samples)
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
    pub timer: Timer,
    pub cost: Cost,
    pub proved: bool,
    pub max_rel_err: f64,
    pub warnings: Vec<Warning>,
    /// One step of the model that the rows before it time as a whole.
    pub is_layer: bool,
}

impl Row {
    pub fn flop_per_s(&self) -> f64 {
        self.cost.flops as f64 / (self.spread.median_ms * 1e-3)
    }

    pub fn bytes_per_s(&self) -> f64 {
        self.cost.bytes as f64 / (self.spread.median_ms * 1e-3)
    }

    /// The time that the ceilings allow as a share of the time taken, and whether arithmetic or memory sets it.
    pub fn roofline(&self, ceilings: &Ceilings) -> (f64, Bound) {
        let (product, copy) = (self.flop_per_s() / ceilings.product_flop_per_s, self.bytes_per_s() / ceilings.copy_bytes_per_s);
        if product > copy { (product, Bound::Product) } else { (copy, Bound::Copy) }
    }
}

/// The ceiling that a row could reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Product,
    Copy,
}

/// What the device reaches at best, measured by a copy and a product.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    pub copy_bytes_per_s: f64,
    pub product_flop_per_s: f64,
}

/// What makes a time doubtful, and what to do about it.
#[derive(Clone, Debug, PartialEq)]
pub enum Warning {
    /// The runs deviate by this share of the median.
    Noisy(f64),
    /// The slowest run took so many medians.
    Outlier(f64),
    Few(usize),
    /// Microseconds on the host's clock.
    Short(f64),
    /// The first half of the runs took so many times the second half.
    Cold(f64),
    /// The kernels take this share of the forward.
    Gaps(f64),
    /// Steps of a GPU on the host's clock.
    Submissions,
    NotProved(String),
}

impl Warning {
    /// One word.
    pub fn name(&self) -> &'static str {
        match self {
            Warning::Noisy(_) => "noisy",
            Warning::Outlier(_) => "outlier",
            Warning::Few(_) => "few",
            Warning::Short(_) => "short",
            Warning::Cold(_) => "cold",
            Warning::Gaps(_) => "gaps",
            Warning::Submissions => "submissions",
            Warning::NotProved(_) => "not proved",
        }
    }
}

/// `word: fact; advice`.
impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.name())?;
        match self {
            Warning::Noisy(share) => write!(f, "the runs deviate by {:.0} % of the median; close other programs and repeat", 100.0 * share),
            Warning::Outlier(times) => write!(f, "the slowest run took {times:.1} medians; something else used the device, read the median"),
            Warning::Few(runs) => write!(f, "{runs} runs; give it more --seconds"),
            Warning::Short(us) => write!(f, "{us:.1} us on the host's clock, which the call itself weighs in below 20; time a larger shape"),
            Warning::Cold(times) => write!(f, "the first half of the runs took {times:.2} times the second; the clock still rose, give it more --seconds"),
            Warning::Gaps(share) => {
                write!(f, "the kernels take {:.0} % of the forward, the rest is submission and waiting; a larger --batch hides it", 100.0 * share)
            }
            Warning::Submissions => write!(f, "this device has no timestamps, each step's time holds a submission and a wait; compare steps, not their sum"),
            Warning::NotProved(what) => write!(f, "{what}; run naevus check, and do not read this time"),
        }
    }
}

/// What is doubtful about these samples.
pub fn warnings(spread: &Spread, samples: &[f64], timer: Timer) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if spread.mad_ms > 0.1 * spread.median_ms {
        warnings.push(Warning::Noisy(spread.mad_ms / spread.median_ms));
    }
    if spread.max_ms > 3.0 * spread.median_ms {
        warnings.push(Warning::Outlier(spread.max_ms / spread.median_ms));
    }
    if spread.runs < 5 {
        warnings.push(Warning::Few(spread.runs));
    }
    let (first, second) = samples.split_at(samples.len() / 2);
    if first.len() >= 5 && median(first) > 1.1 * median(second) {
        warnings.push(Warning::Cold(median(first) / median(second)));
    }
    if timer == Timer::Wall && spread.median_ms < 0.02 {
        warnings.push(Warning::Short(spread.median_ms * 1e3));
    }
    warnings
}

/// Work of the largest bench case that is run: what takes a software adapter, or the CPU executor, over a second is left out.
fn most_flops(gpu: Option<&Arc<Gpu>>) -> u64 {
    match gpu {
        None => 100_000_000_000,
        Some(gpu) if gpu.limits().machine == Machine::Any => 20_000_000_000,
        Some(_) => u64::MAX,
    }
}

fn cost_of(case: &Case) -> Result<Cost> {
    Ok(case::record(case)?.0.total_cost())
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
        if cost_of(&case)?.flops > most_flops(gpu) {
            continue;
        }
        match gpu {
            None => rows.push(time_twin(op, &case, budget, twin_ok, twin_worst)?),
            Some(gpu) => {
                let floats = if op.f16 && gpu.settings.precision == Precision::F16 { DType::F16 } else { DType::F32 };
                for variant in op.variants.iter().filter(|v| v.runs_on(&gpu.limits())) {
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
    let mut warnings = warnings(&spread, &timing.samples_ms, timing.timer);
    if !proof.passed || !twin_ok {
        warnings.push(Warning::NotProved(if proof.passed { "its judge, the CPU twin, failed".to_string() } else { proof.what.clone() }));
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
        is_layer: false,
    })
}

fn time_twin(op: &'static Op, case: &Case, budget: Duration, proved: bool, worst: f64) -> Result<Row> {
    let inputs = case::generated_inputs(op, case);
    let (tape, y) = case::record(case)?;
    let samples = wall_clock(budget, || case::run_twin(case, &inputs).map(|_| ()))?;
    let spread = Spread::of(&samples);
    Ok(Row {
        name: format!("{} {}", op.name, case.name),
        variant: "twin".to_string(),
        precision: Precision::F32,
        shape: shape_text(&inputs, tape.shape(y).dims()),
        warnings: warnings(&spread, &samples, Timer::Wall),
        spread,
        timer: Timer::Wall,
        cost: tape.total_cost(),
        proved,
        max_rel_err: worst,
        is_layer: false,
    })
}

fn shape_text(inputs: &[Array], output: &[usize]) -> String {
    let inputs: Vec<String> = inputs.iter().map(|a| a.shape.to_string()).collect();
    format!("{} -> {output:?}", inputs.join(" * "))
}

/// Runs a copy and a product kernel, in the precision of the device: on hardware of a size that no cache holds and that occupies
/// all of it.
pub fn ceilings(gpu: Option<&Arc<Gpu>>, budget: Duration) -> Result<Ceilings> {
    let machine = gpu.map_or(Machine::Any, |gpu| gpu.limits().machine);
    let (values, side) = match gpu.map(|gpu| gpu.summary().kind) {
        // A multiple of every tile's sides, 128 and 160 among them.
        Some(AdapterKind::Discrete) => (64 << 20, 3840),
        Some(kind) if kind != AdapterKind::Software => (32 << 20, 1920),
        _ => (8 << 20, 1024),
    };
    let copy = Case::new("copy", vec![CaseInput::plain("x", &[values])], |t, i| t.activation(i[0], activation::Function::Identity));
    let [a, b] = ["a", "b"].map(|name| CaseInput::plain(name, &[1, side, side]));
    let product = Case::new("product", vec![a, b], |t, i| t.matmul(i[0], i[1]));
    let floats = if gpu.is_some_and(|gpu| gpu.settings.precision == Precision::F16) { DType::F16 } else { DType::F32 };
    // Each kernel that was written for this kind of machine, and its best run, not the median: a ceiling is what the device can do.
    let best = |op: &'static Op, case: &Case| -> Result<Row> {
        let Some(gpu) = gpu else { return time_twin(op, case, budget, true, 0.0) };
        let (mut tape, _) = case::record(case)?;
        if floats == DType::F16 {
            tape = stored_as_f16(tape);
        }
        let fit = |v: &&'static Variant| v.is_meant_for(machine) && tape.view(&tape.steps()[0], |view| (v.accepts)(view));
        let highest = op.variants.iter().filter(fit).map(|v| v.meant_for).max();
        let mut best: Option<Row> = None;
        for variant in op.variants.iter().filter(fit).filter(|v| Some(v.meant_for) == highest) {
            let Some(proof) = prove_case(gpu, op, case, variant, floats, None) else { continue };
            let row = time_variant(gpu, op, case, variant, budget, &proof, true)?;
            if row.proved && best.as_ref().is_none_or(|best| row.spread.min_ms < best.spread.min_ms) {
                best = Some(row);
            }
        }
        best.ok_or_else(|| Error::new(Kind::Shape, op.name, "no kernel takes the case and passed its proof on this device"))
    };
    let copy = best(&ops::activation::OP, &copy)?;
    let product = best(&ops::matmul::OP, &product)?;
    let copied = copy.cost.bytes as f64 / (copy.spread.min_ms * 1e-3);
    // A driver's own copy may be faster than a kernel.
    let by_driver = gpu.map_or(Ok(0.0), |gpu| gpu.copy_bytes_per_s(values as u64 * floats.bytes(), budget))?;
    Ok(Ceilings { copy_bytes_per_s: copied.max(by_driver), product_flop_per_s: product.cost.flops as f64 / (product.spread.min_ms * 1e-3) })
}

/// Largest relative error of a whole model against the CPU executor: hundreds of layers, in another order of summation, and each
/// result rounded to 11 bits where f16 is stored.
pub fn model_tolerance(precision: Precision) -> f64 {
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
    let samples = wall_clock(budget, || {
        session.run()?;
        session.finish()
    })?;
    let spread = Spread::of(&samples);
    let mut whole = Row {
        name: format!("{name}.forward"),
        variant: "plan".to_string(),
        precision,
        shape: tape.outputs().first().map(|(_, t)| tape.shape(*t).to_string()).unwrap_or_default(),
        warnings: warnings(&spread, &samples, Timer::Wall),
        spread,
        timer: Timer::Wall,
        cost: session.plan().tape.total_cost(),
        proved: error <= model_tolerance(precision),
        max_rel_err: error,
        is_layer: false,
    };
    if !whole.proved {
        whole.warnings.push(Warning::NotProved(format!("{error:.1e} of rms from the CPU executor, expected {:.0e}", model_tolerance(precision))));
    }
    if !layers {
        return Ok(vec![whole]);
    }
    let runs = step_times(session.as_mut(), budget)?;
    let sum = sum_row(name, &whole, &runs);
    let share = sum.spread.median_ms / whole.spread.median_ms;
    match (device, sum.timer) {
        (Device::Gpu(_), Timer::Gpu) if share < 0.8 => whole.warnings.push(Warning::Gaps(share)),
        (Device::Gpu(_), Timer::Wall) => whole.warnings.push(Warning::Submissions),
        _ => {}
    }
    let layers = layer_rows(session.plan(), name, &whole, &runs);
    Ok([whole, sum].into_iter().chain(layers).collect())
}

/// The steps' times in some runs: 5 to 50, until `budget` is spent.
fn step_times(session: &mut dyn Session, budget: Duration) -> Result<Vec<StepTimes>> {
    // The first run pays for the queries.
    session.run_timed()?;
    let begin = Instant::now();
    let mut runs = Vec::new();
    while runs.len() < 5 || (begin.elapsed() < budget && runs.len() < 50) {
        runs.push(session.run_timed()?);
    }
    Ok(runs)
}

/// All steps of a run together.
fn sum_row(name: &str, whole: &Row, runs: &[StepTimes]) -> Row {
    let samples: Vec<f64> = runs.iter().map(|run| run.ms.iter().sum()).collect();
    let (spread, timer) = (Spread::of(&samples), runs[0].timer);
    let warnings = warnings(&spread, &samples, timer);
    Row { name: format!("{name}.kernels"), variant: "sum".to_string(), spread, timer, warnings, ..whole.clone() }
}

/// The largest error of the twins that `tape` runs against PyTorch's goldens; infinite where one fails.
pub fn twins_error(tape: &Tape) -> f64 {
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
fn layer_rows(plan: &Plan, name: &str, whole: &Row, runs: &[StepTimes]) -> Vec<Row> {
    let row = |(s, step): (usize, &Step)| {
        let samples: Vec<f64> = runs.iter().map(|run| run.ms[s]).collect();
        Row {
            name: format!("{name}.{} {}", step.place, step.op.name),
            variant: plan.kernels[s].map_or("-", |kernel| kernel.name).to_string(),
            precision: whole.precision,
            shape: plan.tape.shape(step.output).to_string(),
            warnings: Vec::new(),
            spread: Spread::of(&samples),
            timer: runs[0].timer,
            cost: plan.tape.cost(step),
            proved: whole.proved,
            max_rel_err: whole.max_rel_err,
            is_layer: true,
        }
    };
    plan.steps().iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_robust() {
        let s = Spread::of(&[3.0, 1.0, 2.0, 100.0]);
        assert_eq!((s.median_ms, s.mad_ms, s.min_ms, s.max_ms, s.runs), (2.5, 1.0, 1.0, 100.0, 4));
    }

    fn names(samples: &[f64], timer: Timer) -> Vec<&'static str> {
        warnings(&Spread::of(samples), samples, timer).iter().map(Warning::name).collect()
    }

    #[test]
    fn doubtful_times_are_told_by_kind_with_advice() {
        let steady = [1.0, 1.01, 0.99, 1.0, 1.0, 1.0, 1.01, 0.99, 1.0, 1.0];
        assert!(names(&steady, Timer::Wall).is_empty());
        assert_eq!(names(&[1.0, 2.0, 3.0, 1.0, 2.0, 3.0], Timer::Gpu), ["noisy"]);
        assert_eq!(names(&[1.0, 1.0, 1.0, 1.0, 9.0], Timer::Gpu), ["outlier"]);
        assert_eq!(names(&[1.0; 3], Timer::Gpu), ["few"]);
        assert_eq!(names(&[0.01; 8], Timer::Wall), ["short"]);
        assert!(names(&[0.01; 8], Timer::Gpu).is_empty());
        assert_eq!(names(&[1.2, 1.2, 1.2, 1.2, 1.2, 1.0, 1.0, 1.0, 1.0, 1.0], Timer::Gpu), ["cold"]);
        for warning in [Warning::Noisy(0.2), Warning::Gaps(0.5), Warning::Submissions, Warning::NotProved("x".to_string())] {
            let text = warning.to_string();
            assert!(text.starts_with(&format!("{}: ", warning.name())) && text.contains([';', ',']), "{text}");
        }
    }

    #[test]
    fn the_roofline_is_the_nearer_ceiling() {
        let ceilings = Ceilings { copy_bytes_per_s: 1e9, product_flop_per_s: 1e12 };
        let row = |flops, bytes| Row {
            name: String::new(),
            variant: String::new(),
            shape: String::new(),
            precision: Precision::F32,
            spread: Spread::of(&[1.0]),
            timer: Timer::Gpu,
            cost: Cost { flops, bytes },
            proved: true,
            max_rel_err: 0.0,
            warnings: Vec::new(),
            is_layer: false,
        };
        let near = |(share, bound): (f64, Bound), expected: f64, of: Bound| (share - expected).abs() < 1e-9 && bound == of;
        assert!(near(row(500_000_000, 1000).roofline(&ceilings), 0.5, Bound::Product));
        assert!(near(row(1000, 250_000).roofline(&ceilings), 0.25, Bound::Copy));
    }
}
