//! Which kernel runs each step on a GPU: never one that failed its self-test there, and, where the device is tuned, the one
//! that was the fastest on these shapes. Measured once per adapter, driver and naevus, then read from the adapter's file.
//!
//! What must hold whatever is chosen: row k of a batch has the bits of that row alone. Variants of one family add in one
//! order and give the same bits, which `check` compares on the device; other families round differently. So the *family* is
//! chosen by the item's parameters alone, without those that count the items of a batch, at whatever batch comes first, and
//! holds for every batch from then on. The *variant* in the family is chosen by all parameters: large tiles need a large batch.
//!
//! What follows for the user: a run repeats its bytes as long as the adapter's file stays. A deleted file is measured anew,
//! and near a tie another family may win: results then differ by rounding, as they do between two devices. Hence
//! choices are kept before anything runs with them, those of an earlier process win, a rival must be faster by more than the
//! noise, what could not be measured is kept as the heuristic's choice, and where nothing can be kept nothing is tuned.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::{DType, Error, Kind, Result};
use crate::exec::check::{Proof, prove_op, prove_twin, prove_unchecked};
use crate::exec::gpu::{Filling, Gpu, Trial, lock};
use crate::exec::kept::{Keeper, Kept, PASSED, Timed};
use crate::exec::{Checks, Tune};
use crate::plan::{Limits, Machine, Op, Plan, Step, StepView, Variant};

/// Time for the measurements of one plan. Steps that come later keep the heuristic's kernel.
const MOST: Duration = Duration::from_secs(60);

/// A rival of the heuristic's choice must take less than this share of its time.
const FASTER: f64 = 0.97;

/// Parameters that count items of a batch, by their names in the ops' parameter structs.
const OF_THE_BATCH: [&str; 4] = ["batch", "len", "bias_rows", "rows"];

/// Parameters of what was joined to a step with sums: it follows them, so the family does not depend on it.
const OF_WHAT_FOLLOWS: [&str; 5] = ["added_rows", "added_count", "function", "a", "b"];

/// The plan with the kernels that this device takes.
pub(super) fn choose_kernels(gpu: &Arc<Gpu>, plan: Plan) -> Result<Plan> {
    let tuned = gpu.is_tuned() && learn(gpu, &plan)?;
    let kept = lock(&gpu.kept).clone();
    let choice = Choice { kept: &kept, tuned, limits: gpu.limits() };
    let kernel = |step: &Step| plan.tape.view(step, |view| choice.kernel(step.op, view));
    let kernels = plan.steps().iter().map(|step| kernel(step).map_err(|e| e.within(&step.place))).collect::<Result<_>>();
    plan.with_kernels(kernels.map_err(|e: Error| e.remark(&gpu.summary().name))?, &gpu.limits())
}

impl Gpu {
    /// Whether kernels are measured on this device.
    pub(super) fn is_tuned(&self) -> bool {
        let wanted = match self.settings.tune {
            Tune::Auto => self.limits().machine >= Machine::Hardware,
            Tune::On => true,
            Tune::Off => false,
        };
        wanted && self.keeper.is_some()
    }

    /// Whether kernels may run without runtime checks here.
    pub fn drops_checks(&self) -> bool {
        match self.settings.checks {
            Checks::Auto => self.limits().machine != Machine::Any,
            Checks::Keep => false,
            Checks::Drop => true,
        }
    }

    /// Whether a kernel has runtime checks: unless it was proved with them, and then without them.
    pub(in crate::exec) fn is_checked(&self, op: &Op, variant: &Variant, stored: DType) -> bool {
        let floats = if op.f16 { stored } else { DType::F32 };
        let kept = lock(&self.kept);
        let passed = |checked| kept.proofs.get(&proof_key(op.name, variant.name, floats, checked)).is_some_and(|verdict| verdict == PASSED);
        !(self.drops_checks() && passed(true) && passed(false))
    }

    /// Keeps the verdicts of `naevus check`.
    pub fn keep_proofs(&self, proofs: &[Proof]) -> Result<()> {
        let mut kept = Kept::default();
        let of_kernels: Vec<Proof> = proofs.iter().filter(|p| p.variant != "twin").cloned().collect();
        note(&mut kept.proofs, &of_kernels);
        lock(&self.kept).add(&kept);
        let Some(keeper) = &self.keeper else { return Ok(()) };
        let _lock = keeper.lock()?;
        keeper.write(&kept).map(|_| ())
    }
}

/// The choice from what is known.
struct Choice<'a> {
    kept: &'a Kept,
    tuned: bool,
    limits: Limits,
}

impl Choice<'_> {
    /// `None` where no variant takes the shapes; an error where those that do failed their self-test.
    fn kernel(&self, op: &'static Op, view: &StepView) -> Result<Option<&'static Variant>> {
        let fit = |v: &Variant| match self.kept.proofs.get(&proof_key(op.name, v.name, floats(op, view), true)) {
            Some(verdict) => verdict == PASSED && v.runs_on(&self.limits),
            None => !v.needs_matrices() && !v.needs_subgroups(),
        };
        if self.tuned
            && let Some(variant) = self.measured(op, view, fit)
        {
            return Ok(Some(variant));
        }
        let heuristic = op.choose_of(view, self.limits.machine, fit);
        let variant = heuristic.or_else(|| op.variants.iter().rev().find(|v| (v.accepts)(view) && fit(v)));
        match op.variants.iter().find(|v| (v.accepts)(view) && v.runs_on(&self.limits)) {
            Some(failed) if variant.is_none() => {
                let what = &self.kept.proofs[&proof_key(op.name, failed.name, floats(op, view), true)];
                let fact = format!("no {} kernel passed its self-test ({}: {what}), see naevus check; --device cpu needs none", op.name, failed.name);
                Err(Error::new(Kind::Device, "", fact))
            }
            _ => Ok(variant),
        }
    }

    fn measured(&self, op: &'static Op, view: &StepView, fit: impl Fn(&Variant) -> bool) -> Option<&'static Variant> {
        let family = match has_families(op) {
            true => self.kept.families.get(&item_key(op, view))?.as_str(),
            false => op.variants.first()?.family,
        };
        let member = |v: &&&'static Variant| v.family == family && (v.accepts)(view) && fit(v);
        let timed = self.kept.kernels.get(&kernel_key(op, view));
        let members = || op.variants.iter().filter(|v| member(&v));
        let measured = members().find(|v| timed.is_some_and(|t| t.variant == v.name));
        measured.or_else(|| members().rfind(|v| v.is_meant_for(self.limits.machine))).or_else(|| members().next_back())
    }
}

/// Whether the op's variants add in different orders.
pub fn has_families(op: &Op) -> bool {
    op.variants.iter().any(|v| v.family != op.variants[0].family)
}

/// Op, variant, how its floats are stored, and whether it ran with runtime checks.
fn proof_key(op: &str, variant: &str, floats: DType, checked: bool) -> String {
    format!("{op} {variant}{}{}", if floats == DType::F16 { " f16" } else { "" }, if checked { "" } else { " unchecked" })
}

/// How the floats of a step are stored. Ops that stay f32, and `convert`, are proved once.
fn floats(op: &Op, view: &StepView) -> DType {
    if op.f16 { view.floats() } else { DType::F32 }
}

/// The op and its parameters but for those that count the batch.
pub fn item_key(op: &Op, view: &StepView) -> String {
    let joins = op.params.iter().any(|field| field.name == "added_count");
    words(op, view, |name| !(OF_THE_BATCH.contains(&name) || joins && OF_WHAT_FOLLOWS.contains(&name)))
}

fn kernel_key(op: &Op, view: &StepView) -> String {
    words(op, view, |_| true)
}

/// Four-byte scalars: numbers below 2^24 as such, others (floats, mostly) by their bits.
fn words(op: &Op, view: &StepView, wanted: impl Fn(&str) -> bool) -> String {
    let mut text = format!("{}{}", op.name, if floats(op, view) == DType::F16 { " f16" } else { "" });
    for field in op.params.iter().filter(|field| wanted(field.name)) {
        for (at, word) in view.params[field.offset..].chunks_exact(4).take(width(op, field.offset)).enumerate() {
            let name = if at == 0 { format!(" {}=", field.name) } else { ",".to_string() };
            let bits = bytemuck::pod_read_unaligned::<u32>(word);
            text += &if bits < 1 << 24 { format!("{name}{bits}") } else { format!("{name}{bits:#x}") };
        }
    }
    text
}

/// Words of the field at `offset`: up to the next one.
fn width(op: &Op, offset: usize) -> usize {
    let next = op.params.iter().map(|field| field.offset).filter(|&other| other > offset).min();
    (next.unwrap_or(op.params_size) - offset) / 4
}

/// Adds a verdict for each kernel of `proofs`: passed where all of its cases did.
fn note(verdicts: &mut BTreeMap<String, String>, proofs: &[Proof]) {
    for proof in proofs {
        let verdict = verdicts.entry(proof_key(proof.op, proof.variant, proof.floats, proof.checked)).or_insert_with(|| PASSED.to_string());
        if !proof.passed && verdict == PASSED {
            *verdict = format!("{}: {}", proof.case, proof.what);
        }
    }
}

/// Proves and times what `plan` needs and nobody has measured. False where it cannot be kept: then the heuristic chooses.
fn learn(gpu: &Arc<Gpu>, plan: &Plan) -> Result<bool> {
    let Some(keeper) = &gpu.keeper else { return Ok(false) };
    let known = |kept: &Kept| is_known(kept, plan, &gpu.limits(), gpu.drops_checks());
    if known(&lock(&gpu.kept)) {
        return Ok(true);
    }
    let in_vain = |e: Error| {
        (gpu.settings.say)(&format!("kernels are not tuned, because the choice cannot be kept: {e}"));
        Ok(false)
    };
    // Held to the end: a second process waits, then reads these results instead of disturbing the clock.
    let _lock = match keeper.lock() {
        Ok(lock) => lock,
        Err(e) => return in_vain(e),
    };
    let mut kept = keeper.read().0;
    kept.add(&lock(&gpu.kept));
    if !known(&kept) {
        // An empty addition shows, before the work, whether the file can be written.
        if let Err(e) = keeper.write(&Kept::default()) {
            return in_vain(e);
        }
        prove(gpu, keeper, plan, &mut kept)?;
        // Kernels are timed as they will run.
        lock(&gpu.kept).proofs.extend(kept.proofs.clone());
        time(gpu, plan, &mut kept)?;
        kept = keeper.write(&kept)?;
    }
    *lock(&gpu.kept) = kept;
    Ok(true)
}

fn is_known(kept: &Kept, plan: &Plan, limits: &Limits, dropped: bool) -> bool {
    unproved(kept, plan, dropped).is_empty() && untimed(kept, plan, limits).is_empty()
}

/// Ops of the plan, with their floats, that have a variant that was not proved yet. Ops are proved whole, so that families can
/// be compared.
fn unproved(kept: &Kept, plan: &Plan, dropped: bool) -> Vec<(&'static Op, DType)> {
    let mut seen = BTreeSet::new();
    let ops = plan.steps().iter().map(|step| (step.op, plan.tape.view(step, |view| floats(step.op, view))));
    let new = ops.filter(|(op, floats)| seen.insert((op.name, *floats == DType::F16)));
    let missing = |op: &Op, floats, checked| op.variants.iter().any(|v| !kept.proofs.contains_key(&proof_key(op.name, v.name, floats, checked)));
    new.filter(|(op, floats)| missing(op, *floats, true) || (dropped && missing(op, *floats, false))).collect()
}

/// Steps of which nobody knows yet what to run, one of each shape.
fn untimed<'a>(kept: &Kept, plan: &'a Plan, limits: &Limits) -> Vec<&'a Step> {
    let mut seen = BTreeSet::new();
    let is_new = |step: &&Step| {
        plan.tape.view(step, |view| {
            let family = kept.families.contains_key(&item_key(step.op, view)) || !has_families(step.op);
            let key = kernel_key(step.op, view);
            let variant = kept.kernels.contains_key(&key) || rivals(kept, step.op, view, limits).len() < 2;
            !(family && variant) && seen.insert(key)
        })
    };
    plan.steps().iter().filter(is_new).collect()
}

/// The variants between which a step may still choose: proved, of its shapes, and of the item's family where that is known. A device
/// may have less than when they were proved: another compiler of shaders on Windows leaves out subgroups.
fn rivals(kept: &Kept, op: &'static Op, view: &StepView, limits: &Limits) -> Vec<&'static Variant> {
    let family = kept.families.get(&item_key(op, view));
    let passed = |v: &Variant| kept.proofs.get(&proof_key(op.name, v.name, floats(op, view), true)).is_some_and(|verdict| verdict == PASSED);
    let fit = |v: &Variant| v.runs_on(limits) && passed(v);
    op.variants.iter().filter(|v| (v.accepts)(view) && family.is_none_or(|family| v.family == family) && fit(v)).collect()
}

fn prove(gpu: &Arc<Gpu>, keeper: &Keeper, plan: &Plan, kept: &mut Kept) -> Result<()> {
    let ops = unproved(kept, plan, gpu.drops_checks());
    if !ops.is_empty() {
        (gpu.settings.say)(&format!("proving the kernels of {} ops on {}, once", ops.len(), gpu.summary().name));
    }
    for (op, floats) in ops {
        let twin = prove_twin(op);
        let wrong = twin.iter().find(|p| !p.passed);
        let mut proofs = prove_op(gpu, op, floats, false);
        // A twin that does not agree with PyTorch proves nothing.
        if let Some(wrong) = wrong {
            proofs.iter_mut().for_each(|p| (p.passed, p.what) = (false, format!("its judge failed: {} {}", wrong.case, wrong.what)));
        }
        op.variants.iter().for_each(|v| _ = kept.proofs.insert(proof_key(op.name, v.name, floats, true), "no case".to_string()));
        let mut verdicts = BTreeMap::new();
        note(&mut verdicts, &proofs);
        kept.proofs.extend(verdicts);
        if gpu.drops_checks() {
            prove_without_checks(gpu, keeper, op, floats, kept)?;
        }
    }
    Ok(())
}

/// The second proof, of kernels that passed the first. A device that does not come back from it finds the verdict written down, and runs
/// with checks from then on.
fn prove_without_checks(gpu: &Arc<Gpu>, keeper: &Keeper, op: &'static Op, floats: DType, kept: &mut Kept) -> Result<()> {
    let passed: BTreeSet<&str> = op.variants.iter().map(|v| v.name).filter(|name| kept.proofs[&proof_key(op.name, name, floats, true)] == PASSED).collect();
    let verdict = |v: &Variant| if passed.contains(v.name) { "did not come back" } else { "failed with checks" };
    let unknown = op.variants.iter().map(|v| (proof_key(op.name, v.name, floats, false), verdict(v).to_string())).collect();
    kept.add(&Kept { proofs: unknown, ..Kept::default() });
    keeper.write(kept)?;
    let proofs = prove_unchecked(gpu, op, floats, false, &|v| passed.contains(v.name));
    gpu.health()?;
    let mut verdicts = BTreeMap::new();
    note(&mut verdicts, &proofs);
    kept.proofs.extend(verdicts);
    Ok(())
}

/// Times the steps' rivals and keeps the fastest; the first is the heuristic's choice.
fn time(gpu: &Arc<Gpu>, plan: &Plan, kept: &mut Kept) -> Result<()> {
    let limits = gpu.limits();
    let steps = untimed(kept, plan, &limits);
    let several = steps.iter().filter(|step| plan.tape.view(step, |view| rivals(kept, step.op, view, &limits).len() > 1)).count();
    if several > 0 {
        (gpu.settings.say)(&format!("tuning {several} kernels for {}, once", gpu.summary().name));
    }
    let until = Instant::now() + MOST;
    let filling = Filling::new(gpu)?;
    for step in steps {
        let choice = Choice { kept, tuned: true, limits };
        // Nothing fits: `choose_kernels` says so, with the step's place.
        let Ok(Some(first)) = plan.tape.view(step, |view| choice.kernel(step.op, view)) else { continue };
        let [item, key] = plan.tape.view(step, |view| [item_key(step.op, view), kernel_key(step.op, view)]);
        let mut variants = plan.tape.view(step, |view| rivals(kept, step.op, view, &limits));
        variants.retain(|v| v.name != first.name);
        variants.insert(0, first);
        let times = match variants.len() > 1 && Instant::now() < until {
            true => Trial::new(gpu, &plan.tape, step, &variants, &filling).and_then(|trial| trial.run(until)),
            false => Ok(Vec::new()),
        };
        let timed = match times {
            Ok(times) => fastest(&variants, &times),
            // No memory for a second copy of the step's tensors: not a reason to fail.
            Err(e) if e.kind() == Kind::Limit => fastest(&variants, &[]),
            Err(e) => return Err(e.within(&step.place)),
        };
        if has_families(step.op) {
            let winner = variants.iter().find(|v| v.name == timed.variant).map_or(first.family, |v| v.family);
            kept.families.entry(item).or_insert_with(|| winner.to_string());
        }
        kept.kernels.insert(key, timed);
    }
    Ok(())
}

/// The first variant, unless another was measured to be faster by more than the noise.
fn fastest(variants: &[&'static Variant], times: &[Option<f64>]) -> Timed {
    let measured: Vec<(&str, f64)> = variants.iter().zip(times).filter_map(|(v, time)| time.map(|ms| (v.name, ms))).collect();
    let best = measured.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
    let variant = match (measured.first(), best) {
        (Some(first), Some(best)) if best.1 < FASTER * first.1 => best.0,
        _ => variants[0].name,
    };
    Timed { variant: variant.to_string(), ms: measured.into_iter().map(|(name, ms)| (name.to_string(), (ms * 1e6).round() / 1e6)).collect() }
}
