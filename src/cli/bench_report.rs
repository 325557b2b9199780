//! What `naevus bench` prints and writes: rows, the table of a model's layers, exports, and the comparison with an earlier one.

use std::path::Path;

use serde_json::{Value, json};

use super::speech;
use crate::base::{Error, Kind, Result};
use crate::exec::Device;
use crate::exec::bench::{Bound, Ceilings, Row};

/// Median and spread of each row of an earlier export, by name and variant, and its device.
pub(super) struct Old {
    device: String,
    rows: Vec<(String, String, f64, f64)>,
}

pub(super) fn read_old(path: &Path) -> Result<Old> {
    let wrong = |fact: &str| Error::new(Kind::Format, path.display().to_string(), format!("{fact}, expected the output of bench --export json"));
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| wrong(&e.to_string()))?;
    let device = value["device"]["name"].as_str().ok_or_else(|| wrong("no device.name"))?.to_string();
    let rows = value["rows"].as_array().ok_or_else(|| wrong("no rows"))?;
    let row = |row: &Value| {
        let text = |field: &str| row[field].as_str().map(str::to_string);
        Some((text("name")?, text("variant")?, row["median_ms"].as_f64()?, row["mad_ms"].as_f64()?))
    };
    let rows = rows.iter().map(|r| row(r).ok_or_else(|| wrong("a row without name, variant or times"))).collect::<Result<_>>()?;
    Ok(Old { device, rows })
}

pub(super) fn print_row(row: &Row, ceilings: &Ceilings, device: &Device, old: Option<&Old>) -> Result<()> {
    let proved = if row.proved { format!("proved (max {:.1e} of rms)", row.max_rel_err) } else { "NOT PROVED".to_string() };
    speech::print_line(&format!("{} {}  {}    {proved}    {}", row.name, row.variant, row.shape, device.describe()))?;
    let s = &row.spread;
    speech::print_line(&format!(
        "  Time (median +- MAD, {} clock):  {} +- {}    Range: {} ... {}    {} runs",
        row.timer,
        speech::milliseconds(s.median_ms),
        speech::milliseconds(s.mad_ms),
        speech::milliseconds(s.min_ms),
        speech::milliseconds(s.max_ms),
        s.runs
    ))?;
    if row.proved {
        let (share, bound) = row.roofline(ceilings);
        speech::print_line(&format!(
            "  {} ({:.0} % of the measured product peak)    {:.2} GB/s ({:.0} % of the measured copy peak)    {:.0} % of the roofline, bound by {}",
            speech::rate(row.flop_per_s()),
            100.0 * row.flop_per_s() / ceilings.product_flop_per_s,
            row.bytes_per_s() / 1e9,
            100.0 * row.bytes_per_s() / ceilings.copy_bytes_per_s,
            100.0 * share,
            bound_word(bound),
        ))?;
    }
    for warning in &row.warnings {
        speech::print_line(&format!("  warning: {warning}"))?;
    }
    if let Some(old) = old {
        speech::print_line(&format!("  {}", verdict(row, old, device)))?;
    }
    Ok(())
}

fn bound_word(bound: Bound) -> &'static str {
    match bound {
        Bound::Product => "arithmetic",
        Bound::Copy => "memory",
    }
}

/// The layers of each model among `rows`: by kernel, the heaviest first, then one by one in the order of the forward.
pub(super) fn layer_table(rows: &[Row], ceilings: &Ceilings, old: Option<&Old>) -> Vec<String> {
    let layers: Vec<&Row> = rows.iter().filter(|row| row.is_layer).collect();
    let Some(first) = layers.first() else { return Vec::new() };
    let total: f64 = layers.iter().map(|row| row.spread.median_ms).sum();
    let mut kernels: Vec<Group> = Vec::new();
    for row in &layers {
        let name = format!("{} {}", row.name.rsplit(' ').next().unwrap_or_default(), row.variant);
        let at = kernels.iter().position(|group| group.name == name).unwrap_or_else(|| {
            kernels.push(Group { name, ..Group::default() });
            kernels.len() - 1
        });
        kernels[at].add(row);
    }
    kernels.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    let clock = format!("{} clock, medians of {} runs", first.timer, first.spread.runs);
    let mut lines = vec![
        String::new(),
        format!("{:<34} {:>6} {:>5} {:>10}  {:>14} {:>6}  {:>11} {:>6}", "kernel", "share", "calls", "time", "rate", "peak", "GB/s", "peak"),
    ];
    lines.extend(kernels.iter().map(|group| {
        let [flop_per_s, bytes_per_s] = [group.flops, group.bytes].map(|n| n as f64 / (group.ms * 1e-3));
        let rates = rates(flop_per_s, bytes_per_s, ceilings);
        format!("{:<34} {:>5.1}% {:>5} {:>10}  {rates}", group.name, 100.0 * group.ms / total, group.calls, speech::milliseconds(group.ms))
    }));
    lines.push(String::new());
    lines.push(format!(
        "{:>6} {:>10} {:>10}  {:>14} {:>6}  {:>11} {:>6}  layer, kernel, output ({clock})",
        "share", "time", "+- MAD", "rate", "peak", "GB/s", "peak"
    ));
    lines.extend(layers.iter().map(|row| {
        let rates = rates(row.flop_per_s(), row.bytes_per_s(), ceilings);
        let [time, mad] = [row.spread.median_ms, row.spread.mad_ms].map(speech::milliseconds);
        let changed = old.and_then(|old| old.change(row)).map_or(String::new(), |change| format!("  {change}"));
        let share = 100.0 * row.spread.median_ms / total;
        format!("{share:>5.1}% {time:>10} {mad:>10}  {rates}  {} {}  {}{changed}", row.name, row.variant, row.shape)
    }));
    lines
}

/// Layers of one kernel.
#[derive(Default)]
struct Group {
    name: String,
    calls: usize,
    ms: f64,
    flops: u64,
    bytes: u64,
}

impl Group {
    fn add(&mut self, row: &Row) {
        self.calls += 1;
        self.ms += row.spread.median_ms;
        self.flops += row.cost.flops;
        self.bytes += row.cost.bytes;
    }
}

/// Both rates with their shares of the ceilings.
fn rates(flop_per_s: f64, bytes_per_s: f64, ceilings: &Ceilings) -> String {
    let [product, copy] = [flop_per_s / ceilings.product_flop_per_s, bytes_per_s / ceilings.copy_bytes_per_s].map(|share| 100.0 * share);
    format!("{:>14} {product:>5.0}%  {:>11.2} {copy:>5.0}%", speech::rate(flop_per_s), bytes_per_s / 1e9)
}

impl Old {
    /// The old row of this name and variant.
    fn row(&self, row: &Row) -> Option<(f64, f64)> {
        self.rows.iter().find(|(name, variant, ..)| *name == row.name && *variant == row.variant).map(|&(.., median, mad)| (median, mad))
    }

    /// Faster or slower, only where the difference is larger than both runs' noise.
    fn change(&self, row: &Row) -> Option<String> {
        let (median, mad) = self.row(row)?;
        let ratio = row.spread.median_ms / median;
        let beyond = (row.spread.median_ms - median).abs() > 3.0 * (row.spread.mad_ms + mad);
        beyond.then(|| format!("{}, {ratio:.3} of the old time", if ratio < 1.0 { "faster" } else { "slower" }))
    }
}

fn verdict(row: &Row, old: &Old, device: &Device) -> String {
    let Some((median, mad)) = old.row(row) else { return "compared: not in the old file".to_string() };
    let noise = speech::milliseconds(3.0 * (row.spread.mad_ms + mad));
    let unchanged = || format!("no change beyond the noise, {:.3} of the old time", row.spread.median_ms / median);
    let other = if old.device == device.describe() { String::new() } else { format!(" (old device: {})", old.device) };
    format!("compared: {}, noise {noise}{other}", old.change(row).unwrap_or_else(unchanged))
}

pub(super) fn report(device: &Device, ceilings: &Ceilings, rows: &[Row]) -> Value {
    let driver = device.gpu().map_or(String::new(), |gpu| gpu.summary().driver.clone());
    json!({
        "naevus_version": env!("CARGO_PKG_VERSION"),
        "device": { "name": device.describe(), "backend": device.backend(), "driver": driver, "threads": rayon::current_num_threads() },
        "ceilings": { "copy_gb_s": ceilings.copy_bytes_per_s / 1e9, "product_tflop_s": ceilings.product_flop_per_s / 1e12, "precision": device.precision().to_string() },
        "rows": rows.iter().map(|r| json!({
            "name": r.name, "variant": r.variant, "shape": r.shape, "precision": r.precision.to_string(),
            "median_ms": r.spread.median_ms, "mad_ms": r.spread.mad_ms, "min_ms": r.spread.min_ms, "max_ms": r.spread.max_ms, "runs": r.spread.runs,
            "timer": r.timer.to_string(), "flops": r.cost.flops, "bytes": r.cost.bytes,
            "tflop_s": r.flop_per_s() / 1e12, "gb_s": r.bytes_per_s() / 1e9,
            "proved": r.proved, "max_rel_err": r.max_rel_err.is_finite().then_some(r.max_rel_err), "warnings": r.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

pub(super) fn csv(rows: &[Row]) -> String {
    let mut text = "name,variant,shape,precision,median_ms,mad_ms,min_ms,max_ms,runs,timer,flops,bytes,tflop_s,gb_s,proved,max_rel_err\n".to_string();
    for r in rows {
        let s = &r.spread;
        text += &format!(
            "{},{},\"{}\",{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
            r.name,
            r.variant,
            r.shape,
            r.precision,
            s.median_ms,
            s.mad_ms,
            s.min_ms,
            s.max_ms,
            s.runs,
            r.timer,
            r.cost.flops,
            r.cost.bytes,
            r.flop_per_s() / 1e12,
            r.bytes_per_s() / 1e9,
            r.proved,
            r.max_rel_err
        );
    }
    text
}

pub(super) fn markdown(device: &Device, ceilings: &Ceilings, rows: &[Row]) -> String {
    let mut text = format!(
        "Device: {}, {}. Measured peaks: copy {:.1} GB/s, product {}.\n\n",
        device.describe(),
        device.precision(),
        ceilings.copy_bytes_per_s / 1e9,
        speech::rate(ceilings.product_flop_per_s)
    );
    text += "| kernel | variant | median | MAD | runs | clock | rate | GB/s | of the roofline | proved |\n|---|---|---|---|---|---|---|---|---|---|\n";
    for r in rows {
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {:.2} | {:.0} % | {} |\n",
            r.name,
            r.variant,
            speech::milliseconds(r.spread.median_ms),
            speech::milliseconds(r.spread.mad_ms),
            r.spread.runs,
            r.timer,
            speech::rate(r.flop_per_s()),
            r.bytes_per_s() / 1e9,
            100.0 * r.roofline(ceilings).0,
            if r.proved { "yes" } else { "NO" }
        );
    }
    text
}
