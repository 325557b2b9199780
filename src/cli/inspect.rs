//! `naevus inspect`: what a weights file or model folder holds, from the files alone.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::component::{Part, parts};
use super::{Common, Outcome, conditioning, lora, speech};
use crate::base::{Error, Kind, Result};
use crate::exec::Device;
use crate::models::lora_names::LoraPart;
use crate::models::{Found, InpaintIndex, Lora, PipelineIndex, Tokenizer, recognise};
use crate::plan::Options;
use crate::weights::Store;

/// Folders of a diffusers model that hold a network, in the order in which they are shown.
const MODEL_FOLDERS: [&str; 5] = ["unet", "vae", "vqvae", "text_encoder", "text_encoder_2"];

/// What names of files with tensors end in.
const WEIGHT_ENDINGS: [&str; 6] = ["safetensors", "bin", "ckpt", "pt", "pth", "th"];

/// Values beside a state dict that are listed before they are counted; `--json` has them all.
const SKIPPED_SHOWN: usize = 12;

#[derive(clap::Args)]
pub(crate) struct InspectArgs {
    /// A model folder, a component's folder or a file of safetensors, PyTorch or ONNX
    path: PathBuf,
    /// Images per forward for the cost and memory columns
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    #[command(flatten)]
    lora: lora::LoraFlags,
}

pub(crate) fn run(common: &Common, args: &InspectArgs) -> Result<Outcome> {
    let batch = args.batch.clamp(1, 4096);
    let loras = args.lora.open()?;
    let found = recognise(&args.path)?.with_loras(&loras);
    let components = match &found {
        Found::Model { architecture, .. } => parts(found.load()?.as_ref(), architecture.name, batch)?,
        Found::Pipeline { folder, class } => pipeline(folder, class, &loras, batch)?,
        _ if !loras.is_empty() => return Err(found.load().err().unwrap_or_else(|| no_model(&args.path))),
        Found::Tokenizer { folder } => vec![conditioning::tokenizer(folder)?],
        Found::TextualInversion { path } => vec![conditioning::word(path)?],
        Found::ClassTokens { path } => vec![conditioning::class_tokens(path)?],
        Found::Lora { .. } | Found::Unknown { .. } => Vec::new(),
    };
    let files = weight_files(&args.path)?;
    let mut report = json!({ "path": args.path.display().to_string(), "architecture": found.name(), "files": [], "components": [] });
    if let Found::Lora { path } = &found {
        report["lora"] = Lora::open(path, 1.0)?.facts();
    }
    if !loras.is_empty() {
        report["loras"] = Value::Array(merged(&loras)?);
    }
    for (path, store) in &files {
        let value = match store {
            Ok(store) => file_report(path, store, args.tensors),
            Err(error) => json!({ "path": path.display().to_string(), "unreadable": error.fact() }),
        };
        push(&mut report["files"], value);
    }
    for component in &components {
        push(&mut report["components"], component_report(component, batch)?);
    }
    if common.json {
        speech::print_json(&report)?;
    } else {
        print_text(&report, args)?;
    }
    Ok(Outcome::Done)
}

fn no_model(path: &Path) -> Error {
    Error::new(Kind::Usage, path.display().to_string(), "is no model, and --lora is merged into one")
}

/// What was merged, with what `inspect` says of each file alone.
fn merged(loras: &[Lora]) -> Result<Vec<Value>> {
    let mut rows = lora::report(loras)?;
    rows.iter_mut().zip(loras).for_each(|(row, lora)| row["lora"] = lora.facts());
    Ok(rows)
}

fn push(list: &mut Value, value: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(value);
    }
}

/// What the folder's own index says, then each model in a folder below.
fn pipeline(folder: &Path, class: &str, loras: &[Lora], batch: usize) -> Result<Vec<Part>> {
    let mut all = Vec::new();
    if class == InpaintIndex::CLASS {
        let index = InpaintIndex::read(folder)?;
        let facts = json!({
            "image_size": index.image_size, "class_names": index.class_names, "null_class": index.null_class, "scaling_factor": index.scaling_factor,
            "dilate_px": index.dilate_px, "masked_fill": index.masked_fill, "reimpose_known": index.reimpose_known,
        });
        all.push(Part::facts("inpaint", facts));
    } else if PipelineIndex::is_class(class) {
        all.push(Part::facts("inpaint", conditioning::pipeline(folder)?));
    }
    let mut folders: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    folders.retain(|path| MODEL_FOLDERS.iter().any(|name| path.ends_with(name)) && path.is_dir());
    folders.sort_by_key(|path| MODEL_FOLDERS.iter().position(|name| path.ends_with(name)));
    for path in folders {
        let is_changed = LoraPart::FOLDERS.iter().any(|part| path.ends_with(part.name()));
        let found = recognise(&path)?.with_loras(if is_changed { loras } else { &[] });
        all.extend(parts(found.load()?.as_ref(), &found.name(), batch)?);
    }
    for path in ["tokenizer", "tokenizer_2"].map(|name| folder.join(name)).iter().filter(|path| Tokenizer::is_in(path)) {
        all.push(conditioning::tokenizer(path)?);
    }
    if let [inpaint, rest @ ..] = all.as_mut_slice()
        && inpaint.key == "inpaint"
    {
        let mut seen = Vec::new();
        inpaint.parameters = rest.iter().filter(|part| first_of_its_model(part, &mut seen)).map(|part| part.parameters).sum();
    }
    Ok(all)
}

/// Encoder and decoder are one model: its parameters count once.
fn first_of_its_model(part: &Part, seen: &mut Vec<String>) -> bool {
    let model = part.name.split_once(" (").map_or(part.name.as_str(), |(_, model)| model).to_string();
    let is_new = !seen.contains(&model);
    seen.push(model);
    is_new
}

/// A file at or below the path, with its tensors or the reason why they can't be read.
type WeightFile = (PathBuf, Result<Store>);

/// Every file of tensors at or below the path, two folders deep. A file that was asked for by its own name must be readable; a folder
/// may hold others of the same ending (`training_args.bin`), which are shown with the reason why they are not. An ONNX file has none:
/// its component tells what it holds.
fn weight_files(path: &Path) -> Result<Vec<WeightFile>> {
    if path.extension().is_some_and(|e| e == "onnx") {
        return Ok(Vec::new());
    }
    if path.is_file() {
        return Ok(vec![(path.to_path_buf(), Ok(Store::open(path)?))]);
    }
    let mut paths = Vec::new();
    collect(path, 2, &mut paths);
    paths.sort();
    let open = |path: PathBuf| {
        let store = Store::open(&path);
        if path.extension().is_some_and(|e| e == "safetensors") { Ok((path, Ok(store?))) } else { Ok((path, store)) }
    };
    paths.into_iter().map(open).collect()
}

fn collect(path: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    if path.is_file() {
        if path.extension().is_some_and(|e| WEIGHT_ENDINGS.iter().any(|ending| e == *ending)) {
            found.push(path.to_path_buf());
        }
    } else if let Ok(entries) = std::fs::read_dir(path)
        && depth > 0
    {
        entries.flatten().for_each(|entry| {
            let below = entry.path();
            let depth = if below.is_dir() { depth - 1 } else { depth };
            if below.is_file() || depth > 0 {
                collect(&below, depth, found);
            }
        });
    }
}

fn file_report(path: &Path, store: &Store, list: bool) -> Value {
    let entries = store.entries();
    let mut dtypes: Vec<String> = entries.iter().map(|e| e.dtype.clone()).collect();
    dtypes.sort();
    dtypes.dedup();
    let numbers: u64 = entries.iter().map(|e| e.shape.iter().map(|&d| d as u64).product::<u64>()).sum();
    let bytes = std::fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    let tensors: Vec<Value> = if list { entries.iter().map(|e| json!({ "name": e.name, "dtype": e.dtype, "shape": e.shape })).collect() } else { Vec::new() };
    let (path, metadata, skipped) = (path.display().to_string(), store.metadata(), store.skipped());
    json!({
        "path": path, "bytes": bytes, "tensors": entries.len(), "numbers": numbers, "dtypes": dtypes, "list": tensors, "metadata": metadata, "skipped": skipped,
    })
}

fn component_report(c: &Part, batch: usize) -> Result<Value> {
    let mut value = json!({ "name": c.name, "parameters": c.parameters, "config": c.facts, "missing": [], "unused": [], "dropped": c.dropped });
    if !c.tape.steps().is_empty() {
        let plan = Device::Cpu.plan(c.tape.clone(), &Options::default())?;
        value["batch"] = json!(batch);
        value["flops_per_forward"] = json!(plan.tape.total_cost().flops);
        value["peak_memory_bytes"] = json!(plan.peak_bytes());
        value["weight_bytes"] = json!(plan.weight_bytes());
        value["steps"] = json!(plan.steps().len());
    }
    Ok(value)
}

fn print_text(report: &Value, args: &InspectArgs) -> Result<()> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    speech::print_line(&format!("{}: {}", text(&report["path"]), text(&report["architecture"])))?;
    print_lora(&report["lora"])?;
    for lora in list(&report["loras"]) {
        speech::print_line(&format!("  merged: {}, weight {}", text(&lora["path"]), lora["weight"]))?;
        print_lora(&lora["lora"])?;
    }
    for c in list(&report["components"]) {
        let parameters = c["parameters"].as_u64().unwrap_or(0);
        match parameters {
            0 => speech::print_line(&format!("  {}", text(&c["name"])))?,
            _ => speech::print_line(&format!("  {}: {:.2} M parameters, nothing missing, nothing unused", text(&c["name"]), parameters as f64 / 1e6))?,
        }
        for (field, value) in c["config"].as_object().into_iter().flatten() {
            speech::print_line(&format!("      {field}: {value}"))?;
        }
        let dropped = list(&c["dropped"]);
        if let Some(first) = dropped.first() {
            speech::print_line(&format!("      {} tensors that it does not need: {}, ... (--json has all)", dropped.len(), text(first)))?;
        }
        if let (Some(flops), Some(peak)) = (c["flops_per_forward"].as_u64(), c["peak_memory_bytes"].as_u64()) {
            speech::print_line(&format!("      one forward at batch {}: {:.2} GFLOP, peak memory {}", args.batch, flops as f64 / 1e9, speech::bytes(peak)))?;
        }
    }
    list(&report["files"]).iter().try_for_each(print_file)
}

/// What [`Lora::facts`] tells; nothing for null.
fn print_lora(lora: &Value) -> Result<()> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
    let joined = |v: &Value| v.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(", ");
    if lora["names"].is_array() {
        speech::print_line(&format!("      names: {}", joined(&lora["names"])))?;
    }
    for (part, facts) in lora["parts"].as_object().into_iter().flatten() {
        let (modules, ranks, alphas) = (&facts["modules"], joined(&facts["ranks"]), joined(&facts["alphas"]));
        speech::print_line(&format!("      {part}: {modules} modules, rank {ranks}, alpha {alphas}"))?;
    }
    match lora["base_model"].as_str() {
        Some(base) => speech::print_line(&format!("      trained on: {base}")),
        None => Ok(()),
    }
}

fn print_file(file: &Value) -> Result<()> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let path = text(&file["path"]);
    if let Some(fact) = file["unreadable"].as_str() {
        return speech::print_line(&format!("  {path}: not read: {fact}"));
    }
    let dtypes = list(&file["dtypes"]).iter().map(text).collect::<Vec<_>>().join(" ");
    speech::print_line(&format!("  {path}: {} tensors, {dtypes}, {}", file["tensors"], speech::bytes(file["bytes"].as_u64().unwrap_or(0))))?;
    let skipped = list(&file["skipped"]);
    for what in skipped.iter().take(SKIPPED_SHOWN) {
        speech::print_line(&format!("      left alone: {}", text(what)))?;
    }
    if skipped.len() > SKIPPED_SHOWN {
        speech::print_line(&format!("      left alone: {} more", skipped.len() - SKIPPED_SHOWN))?;
    }
    for t in list(&file["list"]) {
        speech::print_line(&format!("      {} {} {}", text(&t["name"]), text(&t["dtype"]), t["shape"]))?;
    }
    Ok(())
}
