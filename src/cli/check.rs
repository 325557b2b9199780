//! `naevus check`: on a GPU every kernel against its CPU twin; on the CPU every twin against PyTorch's goldens.

use std::path::PathBuf;

use serde_json::json;

use super::{Common, Outcome, speech};
use crate::base::files::write_whole;
use crate::base::{Error, Kind, Result};
use crate::exec::Device;
use crate::exec::check::{Proof, prove_op, prove_twin, prove_unchecked, storages};
use crate::ops;
use crate::plan::Variant;

#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    /// Only ops whose name holds this
    #[arg(long)]
    filter: Option<String>,
    /// Break this op's shaders on purpose, to see that the check finds it (exit code 1)
    #[arg(long, value_name = "OP")]
    sabotage: Option<String>,
    /// Write the proofs as JSON
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
}

pub(crate) fn run(common: &Common, args: &CheckArgs) -> Result<Outcome> {
    let device = common.open_device()?;
    let wanted = |name: &str| args.filter.as_deref().is_none_or(|part| name.contains(part));
    let ops: Vec<_> = ops::ALL.iter().filter(|op| wanted(op.name)).collect();
    if ops.is_empty() {
        let names: Vec<_> = ops::ALL.iter().map(|op| op.name).collect();
        return Err(Error::new(Kind::Usage, "--filter", format!("no op's name holds it; there are {}", names.join(", "))));
    }
    if let Some(name) = &args.sabotage {
        let place = || format!("--sabotage {name}");
        if !ops.iter().any(|op| op.name == name) {
            return Err(Error::new(Kind::Usage, place(), "no such op among the checked ones"));
        }
        if matches!(device, Device::Cpu) {
            return Err(Error::new(Kind::Usage, place(), "the CPU executor runs no shaders; choose a GPU with --device"));
        }
    }
    let mut proofs: Vec<Proof> = Vec::new();
    for op in ops {
        // The judge is judged first: a twin that does not agree with PyTorch proves nothing.
        let mut rows = prove_twin(op);
        if let Device::Gpu(gpu) = &device {
            for &floats in storages(gpu, op) {
                let sabotage = args.sabotage.as_deref() == Some(op.name);
                let proofs = prove_op(gpu, op, floats, sabotage);
                let passed = |v: &Variant| proofs.iter().filter(|p| p.variant == v.name).all(|p| p.passed);
                if gpu.drops_checks() && !sabotage {
                    rows.extend(prove_unchecked(gpu, op, floats, false, &passed));
                }
                rows.extend(proofs);
            }
        }
        if !common.json {
            print_rows(common, op.name, &rows)?;
        }
        proofs.extend(rows);
    }
    // A broken shader's verdict is not the kernel's.
    if let (Device::Gpu(gpu), None) = (&device, &args.sabotage)
        && let Err(e) = gpu.keep_proofs(&proofs)
    {
        common.say(format_args!("the proofs are not kept for other runs: {e}"));
    }
    let failed = proofs.iter().filter(|p| p.is_failure()).count();
    let report = json!({
        "naevus_version": env!("CARGO_PKG_VERSION"),
        "device": device.describe(),
        "passed": proofs.len() - failed,
        "failed": failed,
        "proofs": proofs.iter().map(as_json).collect::<Vec<_>>(),
    });
    if let Some(path) = &args.export {
        write_whole(path, (serde_json::to_string_pretty(&report).unwrap_or_default() + "\n").as_bytes())?;
    }
    if common.json {
        speech::print_json(&report)?;
    } else {
        speech::print_line(&format!("{} proofs passed, {failed} failed on {}", proofs.len() - failed, device.describe()))?;
    }
    Ok(if failed == 0 { Outcome::Done } else { Outcome::DoneWithFailures })
}

/// One line per variant, and one per failure; `-v` prints every case.
fn print_rows(common: &Common, op: &str, rows: &[Proof]) -> Result<()> {
    let mut variants: Vec<(&str, bool)> = Vec::new();
    rows.iter().for_each(|p| {
        if !variants.contains(&(p.variant, p.checked)) {
            variants.push((p.variant, p.checked));
        }
    });
    for (variant, checked) in variants {
        let of_variant: Vec<_> = rows.iter().filter(|p| p.variant == variant && p.checked == checked).collect();
        let passed = of_variant.iter().filter(|p| !p.is_failure()).count();
        let verdict = if passed == of_variant.len() { "ok    " } else { "FAILED" };
        let worst = of_variant.iter().map(|p| p.worst).fold(0.0, f64::max);
        let mode = match of_variant.iter().filter(|p| p.keeps_checks()).count() {
            _ if checked => String::new(),
            0 => ", without runtime checks".to_string(),
            other => format!(", keeps its runtime checks: {other} cases have other bits without them"),
        };
        speech::print_line(&format!("{verdict} {op:<20} {variant:<8} {passed:>3} of {:<3} cases, max error {worst:.1e} of rms{mode}", of_variant.len()))?;
        for proof in of_variant.iter().filter(|p| p.is_failure() || common.verbose) {
            speech::print_line(&format!("       {:<24} {}", proof.case, proof.what))?;
        }
    }
    Ok(())
}

fn as_json(p: &Proof) -> serde_json::Value {
    let worst = p.worst.is_finite().then_some(p.worst);
    json!({ "op": p.op, "variant": p.variant, "checked": p.checked, "case": p.case, "passed": p.passed, "max_rel_err": worst, "what": p.what })
}
