//! `naevus bench`: proves, then times.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bench_report::{Old, csv, layer_table, markdown, print_row, read_old, report};
use super::bench_synthesize;
use super::component::{component_folder, load_component, part};
use super::{Common, Outcome, speech};
use crate::base::files::write_whole;
use crate::base::{Error, Kind, Result};
use crate::exec::Device;
use crate::exec::bench::{Ceilings, Row, bench_op, bench_tape, ceilings};
use crate::models::{Component, recognise};
use crate::ops;

pub(super) const EXAMPLES: &str = "\
Examples:
  naevus bench ops --filter conv2d --export md bench.md     kernels, each proved first
  naevus bench unet --model M --batch 2 --precision f16     a forward, the sum of its kernels, and every layer
  naevus bench unet --model M --no-layers --export json old.json
  naevus bench unet --model M --no-layers --compare old.json
  naevus bench synthesize --model M --batch 8 --steps 20    whole images
  naevus bench ops --device cpu --seconds 0.2               the CPU executor";

#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    /// What to time
    #[arg(value_enum, default_value = "ops")]
    what: What,
    /// The model folder, but for ops
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Images at once, but for ops
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Denoising steps of synthesize
    #[arg(long, default_value_t = 20)]
    steps: usize,
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
    /// A batch of images from pixels to pixels (--model, --steps)
    Synthesize,
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
                rows.iter().filter(|row| !row.is_layer).try_for_each(|row| print_row(row, &ceilings, &device, old.as_ref()))?;
                layer_table(&rows, &ceilings, old.as_ref()).iter().try_for_each(|line| speech::print_line(line))?;
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
        What::Synthesize => return bench_synthesize::rows(device, model, args.batch, args.steps, budget),
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
