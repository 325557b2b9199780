//! `naevus devices`.

use serde_json::json;

use super::{Common, Outcome, speech};
use crate::base::Result;
use crate::exec::gpu::{AdapterSummary, adapters};
use crate::exec::{Device, choose};

pub(crate) fn run(common: &Common) -> Result<Outcome> {
    let adapters = adapters();
    let auto = choose("auto", &adapters)?;
    let why = match auto {
        Some(_) => "the first discrete GPU, else the first integrated one",
        None => "no discrete or integrated GPU; software adapters are slower than the CPU executor",
    };
    if common.json {
        let rows: Vec<_> = adapters.iter().map(as_json).collect();
        let auto = auto.map_or(json!("cpu"), |i| json!(i));
        speech::print_json(&json!({ "adapters": rows, "auto": auto, "auto_reason": why, "cpu_threads": rayon::current_num_threads() }))?;
        return Ok(Outcome::Done);
    }
    for a in &adapters {
        speech::print_line(&format!("{} {} ({}, {}, {})", a.index, a.name, a.kind, a.backend, a.driver))?;
        let subgroup = a.subgroup.map_or("no subgroups".to_string(), |(low, high)| format!("subgroups {low}..{high}"));
        let coop = if a.cooperative_matrix.is_empty() { "no cooperative matrices".to_string() } else { a.cooperative_matrix.join(", ") };
        let f16 = if a.f16 { "f16" } else { "no f16" };
        let timer = if a.timestamps { "timestamps" } else { "no timestamps" };
        speech::print_line(&format!("    {f16}; {subgroup}; {coop}; {timer}"))?;
        speech::print_line(&format!(
            "    binding {}, buffer {}, workgroup memory {}, {} invocations, {} storage buffers, {} workgroups per axis",
            speech::bytes(a.limits.binding_bytes),
            speech::bytes(a.limits.buffer_bytes),
            speech::bytes(u64::from(a.workgroup_memory_bytes)),
            a.invocations_per_workgroup,
            a.storage_buffers,
            a.limits.workgroups_per_axis,
        ))?;
    }
    speech::print_line(&format!("cpu {}", Device::Cpu.describe()))?;
    let taken = auto.map_or("cpu".to_string(), |i| format!("{i}"));
    speech::print_line(&format!("auto takes {taken}: {why}"))?;
    Ok(Outcome::Done)
}

fn as_json(a: &AdapterSummary) -> serde_json::Value {
    json!({
        "index": a.index,
        "name": a.name,
        "backend": a.backend,
        "driver": a.driver,
        "type": a.kind.to_string(),
        "f16": a.f16,
        "subgroup_sizes": a.subgroup.map(|(low, high)| [low, high]),
        "cooperative_matrix": a.cooperative_matrix,
        "timestamps": a.timestamps,
        "max_storage_buffer_binding_bytes": a.limits.binding_bytes,
        "max_buffer_bytes": a.limits.buffer_bytes,
        "max_workgroups_per_axis": a.limits.workgroups_per_axis,
        "workgroup_memory_bytes": a.workgroup_memory_bytes,
        "max_invocations_per_workgroup": a.invocations_per_workgroup,
        "max_storage_buffers": a.storage_buffers,
    })
}
