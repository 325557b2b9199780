//! `naevus bench`: proves, then times.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::component::{component_folder, load_component, part};
use super::{Common, Outcome, speech};
use crate::base::files::write_whole;
use crate::base::{Error, Kind, Result};
use crate::exec::Device;
use crate::exec::bench::{Ceilings, Row, bench_op, bench_tape, ceilings};
use crate::models::{Component, recognise};
use crate::ops;

#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    /// What to time
    #[arg(value_enum, default_value = "ops")]
    what: What,
    /// The model folder of unet, vae and classifier
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Images per forward of unet, vae and classifier
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Leave the layers of a model out
    #[arg(long)]
    no_layers: bool,
    /// Only rows whose name holds this
    #[arg(long)]
    filter: Option<String>,
    /// Seconds per row
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Write the rows as json, csv or md
    #[arg(long, num_args = 2, value_names = ["FORMAT", "FILE"])]
    export: Option<Vec<String>>,
    /// Compare with an earlier `--export json`
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Every op's bench shapes
    Ops,
    /// One forward of a diffusion UNet and its layers (--model)
    Unet,
    /// Encoder and decoder of an autoencoder (--model)
    Vae,
    /// One forward of a classifier (--model)
    Classifier,
}

pub(crate) fn run(common: &Common, args: &BenchArgs) -> Result<Outcome> {
    let format = export_format(args)?;
    if !(args.seconds > 0.0 && args.seconds <= 3600.0) {
        return Err(Error::new(Kind::Usage, format!("--seconds {}", args.seconds), "expected more than 0 and at most 3600"));
    }
    let old = args.compare.as_deref().map(read_old).transpose()?;
    let device = common.open_device()?;
    let budget = Duration::from_secs_f64(args.seconds);
    let ceilings = ceilings(device.gpu(), budget)?;
    let rows = match args.what {
        What::Ops => op_rows(common, args, &device, &ceilings, budget, old.as_ref())?,
        _ => {
            let rows: Vec<Row> = model_rows(args, &device, budget)?.into_iter().filter(|row| wanted(args, &row.name)).collect();
            if !common.json {
                rows.iter().try_for_each(|row| print_row(row, &ceilings, &device, old.as_ref()))?;
            }
            rows
        }
    };
    finish(common, args, format, &device, &ceilings, &rows)
}

fn wanted(args: &BenchArgs, name: &str) -> bool {
    args.filter.as_deref().is_none_or(|part| name.contains(part))
}

fn op_rows(common: &Common, args: &BenchArgs, device: &Device, ceilings: &Ceilings, budget: Duration, old: Option<&Old>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for op in ops::ALL {
        for row in bench_op(device.gpu(), op, budget, &|case| wanted(args, &format!("{} {case}", op.name)))? {
            if !common.json {
                print_row(&row, ceilings, device, old)?;
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Proves a model's plan, on a GPU against the CPU executor, then times it.
fn model_rows(args: &BenchArgs, device: &Device, budget: Duration) -> Result<Vec<Row>> {
    let missing = || Error::new(Kind::Usage, "--model", "this benchmark needs a model folder");
    let model = args.model.as_deref().ok_or_else(missing)?;
    if args.batch == 0 {
        return Err(Error::new(Kind::Usage, "--batch 0", "expected at least 1"));
    }
    let wanted: &[Component] = match args.what {
        What::Ops => &[],
        What::Unet => &[Component::Unet],
        What::Vae => &[Component::VaeEncoder, Component::VaeDecoder],
        What::Classifier => &[Component::Classifier],
    };
    let mut components = Vec::new();
    for &component in wanted {
        let architecture = recognise(&component_folder(model, component))?.name();
        components.push(part(load_component(model, component, &[])?.as_ref(), component, &architecture, args.batch)?);
    }
    let mut rows = Vec::new();
    for component in components {
        rows.extend(bench_tape(device, &component.tape, &component.key, budget, !args.no_layers)?);
    }
    Ok(rows)
}

fn finish(common: &Common, args: &BenchArgs, format: Option<Format>, device: &Device, ceilings: &Ceilings, rows: &[Row]) -> Result<Outcome> {
    if rows.is_empty() {
        return Err(Error::new(Kind::Usage, "--filter", "no row's name holds it"));
    }
    let report = report(device, ceilings, rows);
    if let (Some(format), Some(path)) = (format, args.export.as_ref().map(|e| Path::new(&e[1]))) {
        let text = match format {
            Format::Json => serde_json::to_string_pretty(&report).unwrap_or_default() + "\n",
            Format::Csv => csv(rows),
            Format::Md => markdown(device, ceilings, rows),
        };
        write_whole(path, text.as_bytes())?;
    }
    if common.json {
        speech::print_json(&report)?;
    }
    Ok(if rows.iter().all(|r| r.proved) { Outcome::Done } else { Outcome::DoneWithFailures })
}

#[derive(Clone, Copy)]
enum Format {
    Json,
    Csv,
    Md,
}

fn export_format(args: &BenchArgs) -> Result<Option<Format>> {
    match args.export.as_ref().map(|e| e[0].as_str()) {
        None => Ok(None),
        Some("json") => Ok(Some(Format::Json)),
        Some("csv") => Ok(Some(Format::Csv)),
        Some("md") => Ok(Some(Format::Md)),
        Some(other) => Err(Error::new(Kind::Usage, format!("--export {other}"), "expected json, csv or md, then a file")),
    }
}

/// Median and spread of each row of an earlier export, by name and variant, and its device.
struct Old {
    device: String,
    rows: Vec<(String, String, f64, f64)>,
}

fn read_old(path: &Path) -> Result<Old> {
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

fn print_row(row: &Row, ceilings: &Ceilings, device: &Device, old: Option<&Old>) -> Result<()> {
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
        speech::print_line(&format!(
            "  {} ({:.0} % of the measured product peak)    {:.2} GB/s ({:.0} % of the measured copy peak)",
            speech::rate(row.flop_per_s()),
            100.0 * row.flop_per_s() / ceilings.product_flop_per_s,
            row.bytes_per_s() / 1e9,
            100.0 * row.bytes_per_s() / ceilings.copy_bytes_per_s
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

/// Faster or slower only where the difference is larger than both runs' noise.
fn verdict(row: &Row, old: &Old, device: &Device) -> String {
    let Some((_, _, median, mad)) = old.rows.iter().find(|(name, variant, ..)| *name == row.name && *variant == row.variant) else {
        return "compared: not in the old file".to_string();
    };
    let ratio = row.spread.median_ms / median;
    let noise = 3.0 * (row.spread.mad_ms + mad);
    let word = if (row.spread.median_ms - median).abs() <= noise {
        "no change beyond the noise"
    } else if ratio < 1.0 {
        "faster"
    } else {
        "slower"
    };
    let other = if old.device == device.describe() { String::new() } else { format!(" (old device: {})", old.device) };
    format!("compared: {word}, {ratio:.3} of the old time, noise {}{other}", speech::milliseconds(noise))
}

fn report(device: &Device, ceilings: &Ceilings, rows: &[Row]) -> Value {
    let driver = device.gpu().map_or(String::new(), |gpu| gpu.summary().driver.clone());
    json!({
        "naevus_version": env!("CARGO_PKG_VERSION"),
        "device": { "name": device.describe(), "backend": device.backend(), "driver": driver, "threads": rayon::current_num_threads() },
        "ceilings": { "copy_gb_s": ceilings.copy_bytes_per_s / 1e9, "product_tflop_s": ceilings.product_flop_per_s / 1e12 },
        "rows": rows.iter().map(|r| json!({
            "name": r.name, "variant": r.variant, "shape": r.shape, "precision": r.precision.to_string(),
            "median_ms": r.spread.median_ms, "mad_ms": r.spread.mad_ms, "min_ms": r.spread.min_ms, "max_ms": r.spread.max_ms, "runs": r.spread.runs,
            "timer": r.timer, "flops": r.cost.flops, "bytes": r.cost.bytes,
            "tflop_s": r.flop_per_s() / 1e12, "gb_s": r.bytes_per_s() / 1e9,
            "proved": r.proved, "max_rel_err": r.max_rel_err.is_finite().then_some(r.max_rel_err), "warnings": r.warnings,
        })).collect::<Vec<_>>(),
    })
}

fn csv(rows: &[Row]) -> String {
    let mut text = "name,variant,shape,median_ms,mad_ms,min_ms,max_ms,runs,timer,flops,bytes,tflop_s,gb_s,proved,max_rel_err\n".to_string();
    for r in rows {
        let s = &r.spread;
        text += &format!(
            "{},{},\"{}\",{},{},{},{},{},{},{},{},{},{},{},{}\n",
            r.name,
            r.variant,
            r.shape,
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

fn markdown(device: &Device, ceilings: &Ceilings, rows: &[Row]) -> String {
    let mut text = format!(
        "Device: {}. Measured peaks: copy {:.1} GB/s, product {}.\n\n",
        device.describe(),
        ceilings.copy_bytes_per_s / 1e9,
        speech::rate(ceilings.product_flop_per_s)
    );
    text += "| kernel | variant | median | MAD | runs | rate | GB/s | proved |\n|---|---|---|---|---|---|---|---|\n";
    for r in rows {
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {:.2} | {} |\n",
            r.name,
            r.variant,
            speech::milliseconds(r.spread.median_ms),
            speech::milliseconds(r.spread.mad_ms),
            r.spread.runs,
            speech::rate(r.flop_per_s()),
            r.bytes_per_s() / 1e9,
            if r.proved { "yes" } else { "NO" }
        );
    }
    text
}
