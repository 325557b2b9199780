//! One row per architecture and for each LoRA merged into one: a small random checkpoint made from its recipe (tools/golden/recipe.py) is recognised, loaded and
//! run on the CPU executor and on the first adapter, and held against PyTorch in float64. Prints the table; a row that
//! differs names its first diverging module. NAEVUS_ONLY=<part of a name> runs some rows,
//! NAEVUS_TABLE=<file> writes the page of docs/parity.md.

use std::path::{Path, PathBuf};

use naevus::base::array::relative_rms;
use naevus::base::{Array, DType, Error, Kind, Result};
use naevus::diffusion::tiles::Patchwork;
use naevus::exec::gpu::adapters;
use naevus::exec::precision::Precision;
use naevus::exec::tuner::{has_families, item_key};
use naevus::exec::{Device, Settings};
use naevus::models::{Component, Inputs, Lora, Model, Output, Port, recognise};
use naevus::ops::join::joined;
use naevus::plan::{Layout, Options, Session, Tape};
use naevus::weights::{Store, Writer};

/// Relative root mean square of the difference: f32 sums of up to 1e4 terms through up to 200 layers stay below 2e-5.
const ALLOWED: f64 = 1e-4;
/// The same where every tensor is stored as f16: each of up to 200 layers rounds by 5e-4 at most, which comes to 7e-3, and random weights
/// amplify what trained ones don't.
const ALLOWED_F16: f64 = 3e-2;
/// Where the nearest codes of a codebook are chosen: of close ones, a rounding takes the other.
const ALLOWED_CODES: f64 = 0.3;
/// What docs/parity.md says before its table.
const PREFACE: &str = "# Parity with PyTorch

One row per architecture and component: a small random checkpoint with the published topology, names and configuration, narrow in its widths,
recognised and loaded from its files alone and run on both executors, and on the GPU with every tensor stored as f16 as well. The last columns are the root mean square of the difference from the
original library's forward in float64 (diffusers, transformers, timm, torchvision, segmentation-models-pytorch, MONAI), relative to that of the
expected values; a row above 1e-4 (3e-2 where f16 is stored) fails the test and names the first module that differs. `modules` is how many of the library's modules
are compared by their paths. A row with `+` has LoRA files merged into that checkpoint, as diffusers and PEFT do it.

`tools/golden.py` makes the goldens; `NAEVUS_TABLE=docs/parity.md cargo test --test parity` writes this page.

";
/// Values of a tap that a golden keeps.
const SAMPLES: usize = 64;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models")
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// shift + scale u with u in [-1, 1): splitmix64 of the name's hash and the index, as recipe.py has it.
fn values(name: &str, count: usize, scale: f64, shift: f64) -> Vec<f32> {
    let seed = hash(name);
    let one = |i: u64| {
        let state = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let unit = ((state ^ (state >> 31)) >> 40) as f64 / f64::from(1 << 23) - 1.0;
        (shift + scale * unit) as f32
    };
    (0..count as u64).map(one).collect()
}

/// One row of weights.json: name, shape and values in the file.
fn tensor(row: &serde_json::Value) -> (String, Vec<usize>, Vec<f32>) {
    let name = row[0].as_str().unwrap();
    let mut shape: Vec<usize> = row[1].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    let hashed = row.get(4).map_or(name, |name| name.as_str().unwrap());
    let mut values = values(hashed, shape.iter().product(), row[2].as_f64().unwrap(), row[3].as_f64().unwrap());
    if row.get(5).is_some_and(|how| how == "transposed") {
        let [rows, columns] = shape[..] else { panic!("{name} is {shape:?}") };
        values = (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect();
        shape.reverse();
    }
    (name.to_string(), shape, values)
}

/// Writes the checkpoint of `folder` into `to`; gives the path to recognise: the folder, or the file where it has no config.json.
fn write_checkpoint(folder: &Path, to: &Path) -> PathBuf {
    let recipe: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(folder.join("weights.json")).unwrap()).unwrap();
    let mut writer = Writer::new();
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    for row in recipe["tensors"].as_array().unwrap() {
        let (name, shape, values) = tensor(row);
        match tensors.last_mut().filter(|above| above.0 == name) {
            Some(above) => {
                above.1[0] += shape[0];
                above.2.extend(values);
            }
            None => tensors.push((name, shape, values)),
        }
    }
    let file = to.join(recipe["file"].as_str().unwrap());
    let is_graph = folder.join("model.onnx").is_file();
    if is_graph {
        // Values of a graph beside it, one after the other.
        let raw: Vec<u8> = tensors.iter().flat_map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes())).collect();
        std::fs::write(&file, raw).unwrap();
    } else {
        for (name, shape, values) in tensors {
            writer.f32(&name, &shape, values).unwrap();
        }
        writer.write(&file).unwrap();
    }
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name();
        if name != "weights.json" && entry.path().is_file() && !name.to_string_lossy().ends_with(".safetensors") {
            std::fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
    match to.join("config.json").is_file() {
        true => to.to_path_buf(),
        false if is_graph => to.join("model.onnx"),
        false => file,
    }
}

/// A tape of one forward, the values of its inputs, and its outputs.
struct Recorded {
    tape: Tape,
    values: Vec<(String, Vec<f32>)>,
    outputs: Vec<Output>,
}

fn record(model: &dyn Model, component: Component, io: &Store) -> Result<Recorded> {
    let mut tape = Tape::new();
    let (mut inputs, mut values) = (Vec::new(), Vec::new());
    for port in model.ports(component, 1) {
        let name = format!("in/{}", port.name);
        if io.shape(&name).is_none() {
            if port.optional {
                continue;
            }
            return Err(Error::new(Kind::Usage, name, "the golden has no such input"));
        }
        let array = match port.dtype {
            DType::U32 => Array::new(io.shape(&name).unwrap(), io.indices(&name)?.into_iter().map(f32::from_bits).collect())?,
            _ => read(io, &name, &port)?,
        };
        let dims = if array.dims().is_empty() { vec![1] } else { array.dims().to_vec() };
        inputs.push((port.name.clone(), tape.input(&port.name, &dims, port.dtype)));
        values.push((port.name, array.data));
    }
    let unread = io.names().filter_map(|name| name.strip_prefix("in/")).find(|name| !inputs.iter().any(|(have, _)| have == name));
    if let Some(name) = unread {
        return Err(Error::new(Kind::Usage, name, "the golden has this input, the model takes none of that name"));
    }
    let outputs = model.record(&mut tape, component, &Inputs::new(inputs))?;
    outputs.iter().for_each(|output| tape.output(&output.name, output.tensor));
    Ok(Recorded { tape, values, outputs })
}

fn read(io: &Store, name: &str, port: &Port) -> Result<Array> {
    let array = io.array(name)?;
    Ok(if port.layout == Layout::Image { array.to_channels_last() } else { array })
}

fn run(device: &Device, recorded: &Recorded, taps: &[String]) -> Result<Box<dyn Session>> {
    let mut session = device.prepare(recorded.tape.clone(), &Options { taps: taps.to_vec(), ..Options::default() })?;
    for (name, values) in &recorded.values {
        session.write(name, values)?;
    }
    session.run()?;
    Ok(session)
}

/// The worst relative rms of the outputs. Every output of the golden must be there, whole and of its shape.
fn outputs_differ(recorded: &Recorded, session: &mut dyn Session, io: &Store) -> std::result::Result<f64, String> {
    let mut worst = 0.0f64;
    for told in io.names().filter_map(|name| name.strip_prefix("out/")) {
        let Some(output) = recorded.outputs.iter().find(|output| output.name == told) else {
            let names: Vec<&str> = recorded.outputs.iter().map(|o| o.name.as_str()).collect();
            return Err(format!("output {told} is not there, only {}", names.join(", ")));
        };
        let array = session.read(told).map_err(|e| e.to_string())?;
        let array = if output.layout == Layout::Image { array.to_channels_first() } else { array };
        let expected = io.array(&format!("out/{told}")).map_err(|e| e.to_string())?;
        if array.dims() != expected.dims() {
            return Err(format!("output {told} is {:?}, expected {:?}", array.dims(), expected.dims()));
        }
        let error = relative_rms(&array.data, &expected.data);
        worst = if error.is_nan() { f64::NAN } else { worst.max(error) };
    }
    Ok(worst)
}

/// Modules that both sides ran, in our order.
fn shared_modules(tape: &Tape, io: &Store) -> Vec<String> {
    let mut shared: Vec<String> = Vec::new();
    for (path, _) in tape.taps() {
        if io.shape(&format!("tap/{path}")).is_some() && !shared.contains(path) {
            shared.push(path.clone());
        }
    }
    shared
}

/// The first module whose samples differ, in words.
fn first_difference(device: &Device, recorded: &Recorded, io: &Store) -> Result<Option<String>> {
    let shared = shared_modules(&recorded.tape, io);
    let mut session = run(device, recorded, &shared)?;
    for path in &shared {
        let (ours, told) = (session.read(path)?, io.array(&format!("tap/{path}"))?);
        let shape: Vec<usize> = io.integers(&format!("shape/{path}"))?.iter().map(|&d| d as usize).collect();
        // PyTorch's module may speak either order: [N, C, H, W], or channels last as some transformers do.
        let errors: Vec<f64> = [ours.to_channels_first(), ours.clone()]
            .iter()
            .filter(|array| array.data.len() == shape.iter().product::<usize>())
            .map(|array| relative_rms(&sampled(&array.data), &told.data))
            .collect();
        if !errors.iter().any(|&error| error <= allowed(device, &recorded.tape)) {
            return Ok(Some(format!("first diverges at {path}: ours {:?} (channels last), PyTorch's {shape:?}, relative rms {errors:?}", ours.dims())));
        }
    }
    Ok(None)
}

fn allowed(device: &Device, tape: &Tape) -> f64 {
    match device.precision() {
        Precision::F32 => ALLOWED,
        Precision::F16 if tape.steps().iter().any(|step| step.op.name == "nearest_row") => ALLOWED_CODES,
        Precision::F16 => ALLOWED_F16,
    }
}

fn sampled(values: &[f32]) -> Vec<f32> {
    if values.len() <= SAMPLES { values.to_vec() } else { (0..SAMPLES).map(|i| values[i * values.len() / SAMPLES]).collect() }
}

/// The items' parameters in plans of as many images, of twice as many, and of one: the choice of a family of kernels and what steps are joined depend on
/// them, and must not depend on the batch. `None` where the model takes one batch only, and for graphs, whose batch may be any axis.
fn choice_depends_on_the_batch(model: &dyn Model, component: Component, recorded: &Recorded) -> Option<String> {
    if component == Component::Onnx {
        return None;
    }
    let items = recorded.tape.inputs().map(|(_, info)| info.shape.dims().first().copied().unwrap_or(1)).max()?;
    let one = joined(recorded.tape.clone(), &[]);
    [2 * items, 1].into_iter().find_map(|other| {
        let mut tape = Tape::new();
        let resized = |tape: &mut Tape, (name, info): (&str, &naevus::plan::TensorInfo)| {
            let mut dims = info.shape.dims().to_vec();
            dims.first_mut().filter(|n| **n == items).into_iter().for_each(|n| *n = other);
            (name.to_string(), tape.input(name, &dims, info.dtype))
        };
        let inputs: Vec<_> = recorded.tape.inputs().map(|input| resized(&mut tape, input)).collect();
        let outputs = model.record(&mut tape, component, &Inputs::new(inputs)).ok()?;
        outputs.iter().for_each(|output| tape.output(&output.name, output.tensor));
        let tape = joined(tape, &[]);
        let key = |tape: &Tape, step: &naevus::plan::Step| match has_families(step.op) {
            true => tape.view(step, |view| item_key(step.op, view)),
            false => step.op.name.to_string(),
        };
        let mut pairs = one.steps().iter().zip(tape.steps());
        let differs = pairs.find(|(a, b)| key(&one, a) != key(&tape, b));
        differs.map(|(a, b)| format!("{}: the choice depends on the batch: {} and {}", a.place, key(&one, a), key(&tape, b)))
    })
}

/// A row's name and its file: inputs, outputs, samples.
struct Golden {
    name: String,
    io: PathBuf,
}

/// One component of one golden on every device: a row of the table.
fn row(golden: &Golden, model: &dyn Model, architecture: &str, component: Component, devices: &[Device]) -> std::result::Result<String, String> {
    let io = Store::open(&golden.io).map_err(|e| e.to_string())?;
    let recorded = record(model, component, &io).map_err(|e| e.to_string())?;
    if let Some(what) = choice_depends_on_the_batch(model, component, &recorded) {
        return Err(what);
    }
    let modules = shared_modules(&recorded.tape, &io).len();
    if modules == 0 && io.names().any(|name| name.starts_with("tap/")) {
        return Err("no module of the golden's is one of ours: a difference could not be located".to_string());
    }
    let mut line = format!("| {} | {architecture} | {} | {} | {modules} |", golden.name, component.name(), model.parameters());
    for device in devices {
        let mut session = run(device, &recorded, &[]).map_err(|e| e.to_string())?;
        let difference = outputs_differ(&recorded, session.as_mut(), &io);
        drop(session);
        match difference {
            Ok(error) if error <= allowed(device, &recorded.tape) => line += &format!(" {error:.1e} |"),
            other => {
                let what = other.map_or_else(|e| e, |error| format!("outputs differ by {error:.1e}"));
                let module = first_difference(device, &recorded, &io).map_err(|e| e.to_string())?;
                return Err(format!(
                    "{} on {} in {}: {what}; {}",
                    component.name(),
                    device.backend(),
                    device.precision(),
                    module.unwrap_or("no sampled module differs".to_string())
                ));
            }
        }
    }
    Ok(line)
}

/// Every row of one folder, or what is wrong.
fn rows(folder: &Path, devices: &[Device]) -> std::result::Result<Vec<String>, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let checkpoint = write_checkpoint(folder, dir.path());
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut lines = cases(&checkpoint, &[], devices, |component| Golden { name: name.clone(), io: folder.join(format!("{}.safetensors", component.name())) })?;
    for (case, loras) in loras(folder)? {
        let golden = |component: Component| Golden { name: format!("{name} + {case}"), io: folder.join(format!("{}.{case}.safetensors", component.name())) };
        let found = cases(&checkpoint, &loras, devices, golden)?;
        if found.is_empty() {
            return Err(format!("{case}: no component's file"));
        }
        lines.extend(found);
    }
    Ok(lines)
}

/// Every component that has a file of the golden, with LoRAs merged.
fn cases(checkpoint: &Path, loras: &[Lora], devices: &[Device], golden: impl Fn(Component) -> Golden) -> std::result::Result<Vec<String>, String> {
    let found = recognise(checkpoint).map_err(|e| e.to_string())?.with_loras(loras);
    let model = found.load().map_err(|e| e.to_string())?;
    let told = Component::ALL.into_iter().map(|component| (component, golden(component))).filter(|(_, golden)| golden.io.is_file());
    told.map(|(component, golden)| {
        if !model.components().contains(&component) {
            return Err(format!("{} has no {}", found.name(), component.name()));
        }
        row(&golden, model.as_ref(), &found.name(), component, devices).map_err(|what| format!("{}: {what}", golden.name))
    })
    .collect()
}

/// Cases of `loras.json` and their LoRAs; none where the golden has no such file.
fn loras(folder: &Path) -> std::result::Result<Vec<(String, Vec<Lora>)>, String> {
    let Ok(text) = std::fs::read_to_string(folder.join("loras.json")) else { return Ok(Vec::new()) };
    let cases: std::collections::BTreeMap<String, Vec<(String, f64)>> = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let open = |(name, weight): (String, f64)| Lora::open(&folder.join("loras").join(name), weight).map_err(|e| e.to_string());
    cases.into_iter().map(|(case, loras)| Ok((case, loras.into_iter().map(open).collect::<std::result::Result<_, _>>()?))).collect()
}

fn devices() -> Vec<Device> {
    if adapters().is_empty() {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped on a GPU: no adapter");
        return vec![Device::Cpu];
    }
    let half = Device::open_with("0", &Settings { precision: Precision::F16, ..Settings::default() });
    if let Err(e) = &half {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "NAEVUS_REQUIRE_GPU is set: {e}");
        println!("skipped with f16: {e}");
    }
    [Device::Cpu, Device::open("0").unwrap()].into_iter().chain(half).collect()
}

#[test]
fn every_architecture_is_pytorchs() {
    let only = std::env::var("NAEVUS_ONLY").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(goldens()).unwrap().flatten().map(|entry| entry.path()).collect();
    folders.retain(|path| path.join("weights.json").is_file() && path.to_string_lossy().contains(&only));
    folders.sort();
    assert!(!folders.is_empty(), "no golden's name holds {only:?}");
    let devices = devices();
    let names: Vec<String> = devices.iter().map(|device| format!("{}, {}", device.describe(), device.precision())).collect();
    let mut table =
        format!("| golden | architecture | component | parameters | modules | {} |\n|---|---|---|---|---|{}", names.join(" | "), "---|".repeat(names.len()));
    let mut failures = Vec::new();
    for folder in &folders {
        match rows(folder, &devices) {
            Ok(lines) if lines.is_empty() => failures.push(format!("{}: no component's file", folder.display())),
            Ok(lines) => table.extend(lines.iter().map(|line| format!("\n{line}"))),
            Err(what) => failures.push(format!("{}: {what}", folder.file_name().unwrap().to_string_lossy())),
        }
    }
    println!("{table}");
    assert!(failures.is_empty(), "{} of {} differ:\n{}", failures.len(), folders.len(), failures.join("\n"));
    if let Ok(path) = std::env::var("NAEVUS_TABLE") {
        std::fs::write(path, format!("{PREFACE}{table}\n")).unwrap();
    }
}

/// The recipe in both languages: the first values of a tensor, from recipe.py.
#[test]
fn recipes_are_the_same_in_both_languages() {
    assert_eq!(values("conv1.weight", 4, 0.5, 1.0), RECIPE);
}

/// `[float(v) for v in recipe.values("conv1.weight", (4,), 0.5, 1.0)]`
const RECIPE: [f32; 4] = [1.045_074_9, 1.245_161_8, 0.522_921_7, 1.236_197_7];

/// Tiles of 8 latents, as tools/golden/autoencoder.py has them.
#[test]
fn tiles_are_diffusers() {
    let folder = goldens().join("kl-vae-odd");
    let dir = tempfile::tempdir().unwrap();
    let model = recognise(&write_checkpoint(&folder, dir.path())).unwrap().load().unwrap();
    let io = Store::open(&folder.join("tiled.safetensors")).unwrap();
    // The golden's image twice: both at once, and one after the other.
    let twice = |name: &str| {
        let Array { shape, data } = io.array(name).unwrap().to_channels_last();
        Array::new(&[&[2], &shape.dims()[1..]].concat(), data.repeat(2)).unwrap()
    };
    let downscale = model.autoencoder().unwrap().downscale;
    let rows: [(Component, &str, usize, &[&str]); 2] =
        [(Component::VaeEncoder, "sample", downscale, &["latent_dist_mean", "latent_dist_logvar"]), (Component::VaeDecoder, "latents", 1, &["sample"])];
    for device in devices() {
        let limit = allowed(&device, &Tape::new());
        for (component, name, per_cell, outputs) in rows {
            let input = twice(&format!("in/{name}"));
            let [n, h, w, c] = input.shape.nhwc().unwrap();
            let mut record = |images: usize, [h, w]: [usize; 2]| {
                let mut tape = Tape::new();
                let x = tape.input(name, &[images, h * per_cell, w * per_cell, c], DType::F32);
                let outputs = model.record(&mut tape, component, &Inputs::new([(name.to_string(), x)]))?;
                outputs.iter().for_each(|output| tape.output(&output.name, output.tensor));
                Ok(tape)
            };
            for at_once in [n, 1] {
                let size = [h / per_cell, w / per_cell];
                let mut patchwork = Patchwork::cut(n, at_once, size, Some(8), &mut record, &mut |tape| device.prepare(tape, &Options::default())).unwrap();
                assert_eq!(patchwork.sessions().count(), 4);
                for (name, array) in outputs.iter().zip(patchwork.run(component.name(), &[(name, &input)], outputs).unwrap()) {
                    let error = relative_rms(&array.data, &twice(&format!("out/{name}")).data);
                    println!("{name} on {}, {at_once} at once: {error:.1e}", device.backend());
                    assert!(error <= limit, "{name} on {}, {at_once} at once: {error:.1e}", device.backend());
                }
            }
        }
    }
}
