//! Stable Diffusion's pipelines against diffusers: what prompts become, recorded trajectories, the same from the command line, and
//! what is refused there.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use naevus::base::Array;
use naevus::base::array::{psnr, relative_rms};
use naevus::diffusion::inpaint::{Batch, Format, Inpainter};
use naevus::diffusion::posterior::Posterior;
use naevus::diffusion::region::Region;
use naevus::diffusion::tiles::Tiles;
use naevus::diffusion::{Schedule, Scheduler, Walk};
use naevus::driver::conditioning::read_prompts;
use naevus::exec::Device;
use naevus::exec::gpu::adapters;
use naevus::models::Classes;
use naevus::models::pipeline::{self, Pipeline};
use naevus::models::textual_inversion::Inversion;
use naevus::plan::{Options, Tape};
use naevus::weights::{Store, Writer};
use tempfile::TempDir;

/// The CPU executor, and the first adapter where there is one. NAEVUS_REQUIRE_GPU=1 makes its absence a failure.
fn devices() -> Vec<Device> {
    if adapters().is_empty() {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped on a device: no adapter");
        return vec![Device::Cpu];
    }
    vec![Device::Cpu, Device::open("0").unwrap()]
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

/// The classes of a golden, with the learned word of `file`.
fn classes(folder: &Path, file: &str, negative_prompt: Option<&String>) -> Classes {
    Classes {
        prompts: read_prompts(&folder.join("prompts.json")).unwrap().into_iter().collect(),
        negative_prompt: negative_prompt.cloned(),
        textual_inversions: vec![Inversion { token: Some("<mole>".to_string()), path: folder.join(file) }],
        class_tokens: None,
    }
}

fn load(device: &Device, folder: &Path, classes: &Classes) -> Pipeline {
    pipeline::load((folder, &[]), classes, None, &mut |tape: Tape| device.prepare(tape, &Options::default())).unwrap()
}

/// A copy of a golden's folder in which files of `changes` stand in the place of others.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The pipeline whose denoiser sees no mask.
fn known(dir: &Path) {
    copy(&golden("pipeline-sd"), dir);
    std::fs::remove_dir_all(dir.join("unet")).unwrap();
    copy(&golden("pipeline-sd/known/unet"), &dir.join("unet"));
    change(&dir.join("model_index.json"), "StableDiffusionInpaintPipeline", "StableDiffusionPipeline");
}

fn change(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{}: {from}", file.display());
    std::fs::write(file, text.replace(from, to)).unwrap();
}

/// The worst relative error of what conditions the denoiser and of the latents, and the PSNR of the output.
fn replay(device: &Device, folder: &Path, io: &Path, word: &str) -> (f64, f64, f64) {
    let store = Store::open(io).unwrap();
    let array = |name: &str| store.array(name).unwrap().to_channels_last();
    let number = |name: &str| store.metadata()[name].parse::<f64>().unwrap();
    let model = load(device, folder, &classes(folder, word, store.metadata().get("negative_prompt"))).model;
    let mut conditioned = 0.0f64;
    for name in ["encoder_hidden_states", "text_embeds"].into_iter().filter(|name| store.shape(name).is_some()) {
        let rows = model.conditions().iter().find(|condition| condition.port == name).and_then(|condition| condition.rows.as_ref()).unwrap();
        let told = store.array(name).unwrap();
        assert_eq!(rows.dims(), told.dims(), "{name}");
        conditioned = conditioned.max(relative_rms(&rows.array.values(), &told.data));
    }
    let scheduler = Scheduler::read(&model.index.scheduler_config).unwrap();
    let walk = Walk { steps: number("steps") as usize, eta: number("eta"), strength: number("strength") };
    let schedule = Schedule::new(&scheduler, &walk).unwrap();
    assert_eq!(schedule.timesteps, store.indices("timesteps").unwrap().iter().map(|&t| t as f32).collect::<Vec<_>>());
    let image = array("image");
    let [batch, height, width, _] = image.shape.nhwc().unwrap();
    let format = Format { batch, height, width, guidance: number("guidance") as f32, stochastic: false, posterior: Posterior::Mode, tiles: Tiles::Off };
    let mut inpainter = Inpainter::new(&model, &scheduler, format, &mut |tape: Tape| device.prepare(tape, &Options::default())).unwrap();
    let holes: Vec<Region> = array("hole").data.chunks(height * width).map(|hole| Region::new(width, height, hole, |v| v > 0.5).unwrap()).collect();
    let labels = store.indices("class_labels").unwrap();
    let none = |_| Array::new(&[0], vec![]);
    let batch = Batch { image: &image, holes: &holes, class_labels: &labels, noise: &array("noise"), variance_noise: &none, posterior_noise: None };
    let painted = inpainter.paint(&batch, &schedule, true, &mut |_| ControlFlow::Continue(())).unwrap();
    let error = |k: usize| relative_rms(&painted.latents[k].data, &array(&format!("latents_{k}")).data);
    let latents = (0..schedule.rows.len()).map(error).fold(0.0, f64::max);
    (conditioned, latents, psnr(&painted.output.data, &array("output").data, 1.0))
}

#[test]
fn pipelines_follow_diffusers() {
    let dir = TempDir::new().unwrap();
    known(dir.path());
    let (sd, xl) = (golden("pipeline-sd"), golden("pipeline-sdxl"));
    let rows = [
        (&sd, sd.join("io.safetensors"), "mole.safetensors"),
        (&sd, sd.join("io-negative.safetensors"), "mole.pt"),
        (&dir.path().to_path_buf(), sd.join("known/io.safetensors"), "mole.safetensors"),
        (&xl, xl.join("io.safetensors"), "mole.safetensors"),
        (&xl, xl.join("io-negative.safetensors"), "mole.safetensors"),
    ];
    for device in devices() {
        for (folder, io, word) in &rows {
            let (conditioned, latents, output) = replay(&device, folder, io, word);
            let line = format!("{}: {}: conditioning {conditioned:.1e}, latents {latents:.1e}, output {output:.1} dB", device.describe(), io.display());
            println!("{line}");
            assert!(conditioned < 1e-4 && latents < 1e-4 && output > 80.0, "{line}");
        }
    }
}

#[test]
fn what_is_not_used_or_cut_off_is_told() {
    let folder = golden("pipeline-sd");
    let long = "a very long text of a good many words that are more than there is room for in this text encoder".to_string();
    let mut classes = classes(&folder, "mole.pt", Some(&long));
    classes.prompts.retain(|(name, _)| name == "vasc");
    let loaded = load(&Device::Cpu, &folder, &classes);
    let has = |parts: &[&str]| loaded.notes.iter().any(|note| parts.iter().all(|part| note.contains(part)));
    assert!(has(&["safety_checker is not used"]) && has(&["`<mole>` stands in no prompt"]), "{:?}", loaded.notes);
    assert!(has(&["negative prompt: ", "are cut off: the text encoder takes 16"]), "{:?}", loaded.notes);
    assert_eq!(loaded.model.index.class_names, ["vasc"]);
}

fn naevus(args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("naevus").expect("the binary is built").args(args).output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Exit code 2, and one line that holds every part.
fn refused(args: &[&str], parts: &[&str]) {
    let (code, _, stderr) = naevus(args);
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("naevus: ")).collect();
    assert_eq!((code, errors.len()), (2, 1), "{args:?}: {stderr}");
    for part in parts {
        assert!(errors[0].contains(part), "{args:?}: `{}` does not hold `{part}`", errors[0]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

/// `forward --component inpaint` on a pipeline, with files of the folder and further flags.
fn forward(folder: &Path, out: &Path, extra: &[&str]) -> Vec<String> {
    let io = folder.join("io.safetensors");
    let steps = ["--steps", "4", "--guidance", "2.5"];
    let args = ["forward", "--device", "cpu", "--component", "inpaint", "--model", text(folder), "--inputs", text(&io), "--out", text(out)];
    args.iter().chain(&steps).chain(extra).map(|arg| arg.to_string()).collect()
}

fn call(args: &[String]) -> (i32, String, String) {
    naevus(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn forward_speaks_prompts() {
    let (dir, folder) = (TempDir::new().unwrap(), golden("pipeline-sdxl"));
    let (out, prompts, word) = (dir.path().join("o.safetensors"), folder.join("prompts.json"), format!("{}=<mole>", text(&folder.join("mole.safetensors"))));
    let (code, _, stderr) = call(&forward(&folder, &out, &["--prompts", text(&prompts), "--textual-inversion", &word]));
    assert_eq!(code, 0, "{stderr}");
    let (ours, told) = (Store::open(&out).unwrap(), Store::open(&folder.join("io.safetensors")).unwrap());
    for name in ["latents_3", "output"] {
        assert!(relative_rms(&ours.array(name).unwrap().data, &told.array(name).unwrap().data) < 1e-4, "{name}");
    }
    // The prompt of one class in the place of the file's.
    let (code, _, stderr) = call(&forward(&folder, &out, &["--prompts", text(&prompts), "--textual-inversion", &word, "--prompt", "vasc=a wart"]));
    assert_eq!(code, 0, "{stderr}");
    assert!(relative_rms(&Store::open(&out).unwrap().array("latents_3").unwrap().data, &told.array("latents_3").unwrap().data) > 1e-4);
}

#[test]
fn wrong_conditioning_is_refused_in_one_line() {
    let (dir, folder) = (TempDir::new().unwrap(), golden("pipeline-sd"));
    let (out, prompts) = (dir.path().join("o.safetensors"), folder.join("prompts.json"));
    let write = |name: &str, tensors: &[(&str, &[usize])]| {
        let mut writer = Writer::new();
        for (name, shape) in tensors {
            writer.f32(name, shape, vec![0.5; shape.iter().product()]).unwrap();
        }
        writer.write(&dir.path().join(name)).unwrap();
        dir.path().join(name)
    };
    let wide = write("wide.safetensors", &[("<wart>", &[2, 12])]);
    let two = write("two.safetensors", &[("clip_l", &[1, 8]), ("clip_g", &[1, 12])]);
    let tokens = write("tokens.safetensors", &[("df", &[3, 8]), ("vasc", &[3, 8]), ("null", &[3, 8])]);
    let narrow = write("narrow.safetensors", &[("df", &[3, 7]), ("null", &[3, 7])]);
    let of = |extra: &[&str], parts: &[&str]| {
        let args = forward(&folder, &out, extra);
        refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), parts);
    };
    of(&[], &["--prompts: a StableDiffusionInpaintPipeline knows no classes, expected --prompts FILE"]);
    of(&["--prompts", text(&prompts), "--textual-inversion", text(&wide)], &["wide.safetensors", "12", "expected 8 as the text encoder has"]);
    of(&["--prompts", text(&prompts), "--textual-inversion", text(&two)], &["two.safetensors", "learned for 2 text encoders, expected 1"]);
    of(&["--prompts", text(&prompts), "--textual-inversion", "nothing.pt"], &["nothing.pt"]);
    of(&["--prompts", text(&prompts), "--class-tokens", text(&tokens)], &["--class-tokens", "expected it alone"]);
    of(&["--class-tokens", text(&narrow)], &["encoder_hidden_states", "[2, 3, 7]", "8"]);
    of(&["--prompt", "a wart"], &["--prompt: \"a wart\", expected CLASS=TEXT"]);
    let other = dir.path().join("other");
    copy(&folder, &other);
    change(&other.join("model_index.json"), "StableDiffusionInpaintPipeline", "FluxPipeline");
    let args = forward(&other, &out, &["--prompts", text(&prompts)]);
    refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), &["_class_name: \"FluxPipeline\", expected one of StableDiffusionInpaintPipeline"]);
    assert!(!out.exists(), "nothing is written when nothing was computed");
    let (code, _, stderr) = call(&forward(&folder, &out, &["--class-tokens", text(&tokens)]));
    assert!(code == 0 && out.exists(), "{stderr}");
    refused(&forward(&golden("inpaint-tiny"), &out, &["--prompt", "df=a"]).iter().map(String::as_str).collect::<Vec<_>>(), &["--prompts"]);
}

/// Adds `values` to the tensor `name` of a file.
fn add(file: &Path, name: &str, values: &[f32]) {
    let mut writer = Writer::new();
    {
        let store = Store::open(file).unwrap();
        for key in store.names() {
            let array = store.array(key).unwrap();
            let delta = |i: usize| if key == name { values[i] } else { 0.0 };
            let sums = array.data.iter().enumerate().map(|(i, v)| v + delta(i)).collect();
            writer.f32(key, array.dims(), sums).unwrap();
        }
        assert_eq!(store.shape(name).map(|shape| shape.iter().product()), Some(values.len()), "{name}");
    }
    writer.write(file).unwrap();
}

#[test]
fn a_lora_changes_denoiser_and_text_encoder_of_a_pipeline() {
    let (dir, folder) = (TempDir::new().unwrap(), golden("pipeline-sd"));
    let path = |name: &str| dir.path().join(name);
    let (lora, merged) = (path("style.safetensors"), path("merged"));
    let parts = [
        (
            "unet",
            "diffusion_pytorch_model",
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v",
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
        ),
        ("text_encoder", "model", "lora_te_text_model_encoder_layers_0_mlp_fc1", "text_model.encoder.layers.0.mlp.fc1"),
    ];
    copy(&folder, &merged);
    let mut writer = Writer::new();
    for (component, file, flat, module) in parts {
        let (down, up): (Vec<f32>, Vec<f32>) =
            ((0..8).map(|i| 0.3 - 0.1 * i as f32).collect(), (0..if component == "unet" { 8 } else { 16 }).map(|o| 0.2 * o as f32 - 1.0).collect());
        writer.f32(&format!("{flat}.lora_down.weight"), &[1, 8], down.clone()).unwrap();
        writer.f32(&format!("{flat}.lora_up.weight"), &[up.len(), 1], up.clone()).unwrap();
        writer.f32(&format!("{flat}.alpha"), &[], vec![0.5]).unwrap();
        // Weight 2 of alpha 0.5 by rank 1.
        let delta: Vec<f32> = up.iter().flat_map(|u| down.iter().map(move |d| u * d)).collect();
        add(&merged.join(component).join(file).with_extension("safetensors"), &format!("{module}.weight"), &delta);
    }
    writer.write(&lora).unwrap();
    let latents = |folder: &Path, extra: &[&str]| {
        let (out, prompts, word) = (path("o.safetensors"), folder.join("prompts.json"), folder.join("mole.safetensors"));
        let (code, _, stderr) = call(&forward(folder, &out, &[&["--prompts", text(&prompts), "--textual-inversion", text(&word)], extra].concat()));
        assert_eq!(code, 0, "{stderr}");
        Store::open(&out).unwrap().array("latents_3").unwrap().data
    };
    let (plain, by_hand) = (latents(&folder, &[]), latents(&merged, &[]));
    let loaded = latents(&folder, &["--lora", &format!("{}=2", text(&lora))]);
    assert!(relative_rms(&loaded, &by_hand) < 1e-6, "{:e}", relative_rms(&loaded, &by_hand));
    assert!(relative_rms(&plain, &by_hand) > 1e-3, "{:e}", relative_rms(&plain, &by_hand));
}

/// Images of two classes with a square mask each.
fn data_set(folder: &Path) {
    std::fs::create_dir_all(folder.join("masks")).unwrap();
    for (i, class) in ["df", "vasc"].iter().enumerate() {
        std::fs::create_dir_all(folder.join(class)).unwrap();
        let rgb = image::RgbImage::from_fn(48, 48, |x, y| image::Rgb([200 - x as u8, 150 + (i * 9) as u8, 120 + y as u8]));
        rgb.save(folder.join(class).join(format!("image_{i}.png"))).unwrap();
        let mask = image::GrayImage::from_fn(48, 48, |x, y| image::Luma([if (12..30).contains(&x) && (15..33).contains(&y) { 255 } else { 0 }]));
        mask.save(folder.join("masks").join(format!("image_{i}_mask.png"))).unwrap();
    }
}

fn records(out: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(out.join("manifest.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

#[test]
fn the_job_runs_by_prompts_and_repeats() {
    let (dir, folder) = (TempDir::new().unwrap(), golden("pipeline-sd"));
    let path = |name: &str| dir.path().join(name);
    data_set(&path("data"));
    std::fs::copy(folder.join("mole.pt"), path("mole.pt")).unwrap();
    let (prompts, word) = (folder.join("prompts.json"), path("mole.pt"));
    let (data, out, again) = (path("data"), path("out"), path("again"));
    let base = ["synthesize", "--device", "cpu", "--model", text(&folder), "--dataset", text(&data), "--steps", "3", "--per-class", "2"];
    let prompted = ["--prompts", text(&prompts), "--textual-inversion", text(&word), "--negative-prompt", "blurry", "--out", text(&out)];
    let args = [&base[..], &prompted[..]].concat();
    let (code, stdout, stderr) = naevus(&args);
    assert!(code == 0 && stdout.contains("4 samples written"), "{stdout}{stderr}");
    assert!(stderr.contains("note: ") && stderr.contains("safety_checker is not used"), "{stderr}");
    for record in records(&out) {
        let is_df = record["class"] == "df";
        assert_eq!(record["prompt"].as_str().unwrap().contains("<mole>"), is_df, "{record}");
        assert_eq!((record["negative_prompt"].as_str(), record["class_index"].as_u64()), (Some("blurry"), Some(u64::from(!is_df))), "{record}");
        assert_eq!(record["embeddings"][0]["sha256"].as_str().unwrap().len(), 64, "{record}");
        assert_eq!((record["width"].as_u64(), record["outside_mask_max_abs_diff"].as_u64()), (Some(16), Some(0)), "{record}");
    }
    let run_toml = out.join("run.toml");
    let (code, _, stderr) = naevus(&["synthesize", "--config", text(&run_toml), "--out", text(&again), "--batch", "3"]);
    assert_eq!(code, 0, "{stderr}");
    let sums =
        |out: &Path| records(out).iter().map(|r| (r["sample_id"].to_string(), r["output_sha256"].to_string())).collect::<std::collections::BTreeMap<_, _>>();
    assert_eq!(sums(&out), sums(&again));

    refused(&[&args[..], &["--classes", "df,bcc"]].concat(), &["prompts.json: no prompt for class `bcc`, there are prompts for df, vasc"]);
    refused(&[&args[..], &["--prompt", "df=another"]].concat(), &["run.toml: prompts", "another"]);
    refused(&["synthesize", "--config", text(&run_toml), "--negative-prompt", "x"], &["--config", "--negative-prompt"]);
    std::fs::copy(folder.join("mole.safetensors"), &word).unwrap();
    refused(&["synthesize", "--config", text(&run_toml), "--out", text(&again)], &["mole.pt: is another than when the run was made"]);
}

#[test]
fn inspect_tells_pipelines_tokenizers_and_words() {
    let rows: [(&str, &[&str]); 6] = [
        ("pipeline-sdxl", &["StableDiffusionXLInpaintPipeline", "DDIMScheduler", "tokenizer_2 (CLIP tokenizer)", "force_zeros_for_empty_prompt: true"]),
        ("pipeline-sd", &["\"safety_checker\"", "tokenizer (CLIP tokenizer)", "in_channels: 9"]),
        ("pipeline-sd/tokenizer", &["CLIP tokenizer", "model_max_length: 16"]),
        ("pipeline-sd/text_encoder", &["transformers CLIPTextModel", "hidden_size: 8"]),
        ("pipeline-sd/mole.pt", &["textual inversion", "token: \"<mole>\"", "vectors: 2", "width: [8]"]),
        ("pipeline-sdxl/mole.safetensors", &["textual inversion", "width: [8,12]"]),
    ];
    for (name, parts) in rows {
        let (code, stdout, stderr) = naevus(&["inspect", text(&golden(name))]);
        assert_eq!(code, 0, "{name}: {stderr}");
        for part in parts {
            assert!(stdout.contains(part), "{name}: no `{part}` in {stdout}");
        }
    }
}
