//! The program from outside: exit codes, one-line errors, and the main job on a tiny model.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use naevus::base::Array;
use naevus::base::array::relative_rms;
use naevus::exec::gpu::adapters;
use naevus::weights::{Store, Writer, write};
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn naevus(args: &[&str]) -> (i32, String, String) {
    // Nothing of a test is kept on the machine.
    let output = Command::cargo_bin("naevus").expect("the binary is built").env("NAEVUS_CACHE", "").args(args).output().expect("it runs");
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

#[test]
fn check_passes_on_the_cpu_and_finds_a_broken_shader_on_a_gpu() {
    let (code, stdout, stderr) = naevus(&["check", "--device", "cpu"]);
    assert!(code == 0 && stdout.contains(" 0 failed on CPU executor") && stderr.starts_with("device: CPU executor"), "{stdout}{stderr}");
    refused(&["check", "--device", "cpu", "--sabotage", "matmul"], &["--sabotage matmul", "runs no shaders"]);
    if adapters().is_empty() {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped: no adapter");
        return;
    }
    let (code, _, _) = naevus(&["check", "--device", "0", "--filter", "matmul"]);
    assert_eq!(code, 0);
    let (code, stdout, _) = naevus(&["check", "--device", "0", "--filter", "matmul", "--sabotage", "matmul"]);
    assert!(code == 1 && stdout.contains("FAILED matmul"), "{stdout}");
}

#[test]
fn devices_speaks_json() {
    let (code, stdout, _) = naevus(&["devices", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&stdout).expect("JSON on stdout");
    assert!(code == 0 && value["adapters"].is_array() && value["auto_reason"].is_string(), "{stdout}");
}

#[test]
fn what_cannot_start_is_refused_in_one_line() {
    let dir = TempDir::new().unwrap();
    let unet = golden("models/unet-attention-classes");
    refused(&["check", "--device", "no such adapter"], &["--device no such adapter", "expected auto, cpu, gpu"][..1]);
    refused(&["check", "--device", "cpu", "--precision", "f16"], &["--precision f16", "f32"]);
    refused(&["inspect", text(&dir.path().join("nothing"))], &["nothing"]);
    let empty = dir.path().join("empty.safetensors");
    std::fs::write(&empty, b"").unwrap();
    refused(&["inspect", text(&empty)], &["empty.safetensors"]);
    let whole = std::fs::read(unet.join("diffusion_pytorch_model.safetensors")).unwrap();
    let cut = dir.path().join("cut.safetensors");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    refused(&["inspect", text(&cut)], &["cut.safetensors"]);
    let out = dir.path().join("o.safetensors");
    let inputs = golden("models/taesd/io.safetensors");
    let forward = |component: &str, extra: &[&str]| {
        let mut args = vec!["forward", "--device", "cpu", "--model", text(&unet), "--component", component, "--inputs", text(&inputs), "--out", text(&out)];
        args.extend(extra);
        args.into_iter().map(str::to_string).collect::<Vec<_>>()
    };
    let call = |args: Vec<String>, parts: &[&str]| refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), parts);
    call(forward("unet", &[]), &["sample: the model needs this input", "the file has in/sample"]);
    call(forward("unet", &["--steps", "3"]), &["--steps", "inpaint"]);
    assert!(!out.exists(), "nothing is written when nothing was computed");
}

#[test]
fn tiles_are_told_and_refused_where_there_are_none() {
    let dir = TempDir::new().unwrap();
    let (model, inputs, out) = (golden("models/inpaint-posterior"), dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let latents = Array::new(&[1, 4, 8, 4], (0..128).map(|i| (i % 7) as f32 / 3.0 - 1.0).collect()).unwrap();
    write(&inputs, [("latents", &latents)]).unwrap();
    let forward = |component: &'static str, extra: &[&'static str]| {
        let mut args = vec!["forward", "--device", "cpu", "--model", text(&model), "--component", component, "--inputs", text(&inputs), "--out", text(&out)];
        args.extend(extra);
        args.into_iter().map(str::to_string).collect::<Vec<_>>()
    };
    let run = |args: Vec<String>| naevus(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let mut images = Vec::new();
    for (extra, told) in [(&[][..], None), (&["--tiles", "32"][..], Some("note: vae-decoder in 6 tiles of 32 x 32 pixels that overlap by 8"))] {
        let (code, _, stderr) = run(forward("vae-decoder", extra));
        assert!(code == 0 && stderr.lines().find(|line| line.starts_with("note: ")) == told, "{extra:?}: {stderr}");
        images.push(Store::open(&out).unwrap().array("sample").unwrap());
    }
    assert_eq!((images[0].dims(), images[1].dims()), (&[1, 3, 64, 32][..], &[1, 3, 64, 32][..]));
    assert_ne!(images[0], images[1]);
    let call = |args: Vec<String>, parts: &[&str]| refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), parts);
    call(forward("vae-decoder", &["--tiles", "40"]), &["--tiles: 40, expected a multiple of 32 pixels"]);
    call(forward("vae-decoder", &["--tiles", "on"]), &["--tiles: on, expected auto, off or pixels"]);
    call(forward("vae-decoder", &["--tiles", "32", "--tap", "decoder.conv_in"]), &["--tap", "expected --tiles auto or off"]);
    call(forward("unet", &["--tiles", "32"]), &["--tiles: unet has none, expected vae-encoder, vae-decoder or inpaint"]);
    call(forward("vae-decoder", &["--posterior", "sample"]), &["--posterior: these flags belong to --component inpaint"]);
    call(forward("inpaint", &["--posterior", "mean"]), &["--posterior: mean, expected mode or sample"]);
}

/// A data set of plain colour images with a square mask each.
fn data_set(folder: &Path, images: usize) {
    for class in ["images", "masks"] {
        std::fs::create_dir_all(folder.join(class)).unwrap();
    }
    let mut table = "image_id,lesion_id,dx\n".to_string();
    for i in 0..images {
        let id = format!("image_{i}");
        let rgb = image::RgbImage::from_fn(48, 48, |x, y| image::Rgb([200 - x as u8, 150 + (i * 9) as u8, 120 + y as u8]));
        rgb.save(folder.join("images").join(format!("{id}.png"))).unwrap();
        let mask = image::GrayImage::from_fn(48, 48, |x, y| image::Luma([if (12..30).contains(&x) && (15..33).contains(&y) { 255 } else { 0 }]));
        mask.save(folder.join("masks").join(format!("{id}_segmentation.png"))).unwrap();
        table += &format!("{id},lesion_{i},{}\n", if i % 2 == 0 { "df" } else { "nv" });
    }
    std::fs::write(folder.join("labels.csv"), table).unwrap();
}

fn synthesize<'a>(model: &'a str, data: &'a str, out: &'a str) -> Vec<&'a str> {
    vec!["synthesize", "--device", "cpu", "--model", model, "--dataset", data, "--out", out, "--steps", "3"]
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

#[test]
fn the_job_runs_resumes_and_repeats() {
    let dir = TempDir::new().unwrap();
    let (data, out, again) = (dir.path().join("data"), dir.path().join("out"), dir.path().join("again"));
    data_set(&data, 6);
    std::fs::write(data.join("images/image_0.png"), b"").unwrap();
    let model = golden("models/inpaint-tiny");
    let classes = class_names(&model);
    let class = classes.iter().find(|c| ["df", "nv"].contains(&c.as_str())).expect("the tiny model knows df or nv").clone();
    let mut args = synthesize(text(&model), text(&data), text(&out));
    args.extend(["--classes", &class, "--per-class", "4"]);

    let (code, _, stderr) = naevus(&[args.clone(), vec!["--limit", "1", "--batch", "1"]].concat());
    assert!(code <= 1, "{stderr}");
    let (code, stdout, stderr) = naevus(&args);
    let skipped = stderr.contains("skipped source image_0");
    assert!(stdout.contains("3 samples written") && stdout.contains("1 there already"), "{stdout}{stderr}");
    assert_eq!(code, i32::from(skipped), "{stderr}");
    let manifest = lines(&out.join("manifest.jsonl"));
    assert_eq!(manifest.len(), 4);
    for line in &manifest {
        assert_eq!(line["outside_mask_max_abs_diff"], 0, "{line}");
        let png = std::fs::read(out.join("images").join(&class).join(format!("{}.png", line["sample_id"].as_str().unwrap()))).unwrap();
        assert!(png.windows(9).any(|w| w == b"Synthetic"), "the file says that it is synthetic");
    }

    // run.toml makes the same bytes in another folder, in another batch size.
    let run_toml = out.join("run.toml");
    let (_, _, stderr) = naevus(&["synthesize", "--config", text(&run_toml), "--out", text(&again), "--batch", "3"]);
    let sums = |folder: &Path| {
        lines(&folder.join("manifest.jsonl"))
            .iter()
            .map(|l| (l["sample_id"].to_string(), l["output_sha256"].to_string()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    assert_eq!(sums(&out), sums(&again), "{stderr}");

    // Other settings do not mix into the folder.
    args.extend(["--seed", "9"]);
    refused(&args, &["run.toml: seed", "0", "9"]);
}

/// The least memory that one image takes, as the refusals tell, makes batches of one and the same bytes.
#[test]
fn a_memory_limit_makes_batches_smaller() {
    let dir = TempDir::new().unwrap();
    let (data, whole, out) = (dir.path().join("data"), dir.path().join("whole"), dir.path().join("out"));
    data_set(&data, 4);
    let model = golden("models/inpaint-tiny");
    let classes = class_names(&model);
    let class = classes.iter().find(|c| ["df", "nv"].contains(&c.as_str())).expect("the tiny model knows df or nv").clone();
    let call = |out: &Path, extra: &[&str]| {
        let mut args = synthesize(text(&model), text(&data), text(out));
        args.extend(["--classes", &class, "--per-class", "4", "--json"]);
        args.extend(extra);
        naevus(&args)
    };
    let json = |stdout: &str| serde_json::from_str::<serde_json::Value>(stdout).expect("JSON");
    let (code, stdout, stderr) = call(&whole, &[]);
    assert_eq!((code, &json(&stdout)["batch"]), (0, &4.into()), "{stderr}");
    assert!(stderr.contains("batch: 4 images at once (all 4 samples; their plans take "), "{stderr}");

    let mut limit = 1000u64;
    let mut refusals = 0;
    let (stdout, stderr) = loop {
        let text = limit.to_string();
        let (code, stdout, stderr) = call(&out, &["--memory-limit", &text]);
        if code == 0 {
            break (stdout, stderr);
        }
        assert!(code == 2 && refusals < 4, "{stderr}");
        let words: Vec<&str> = stderr.lines().last().unwrap().split(' ').collect();
        let after = |word: &str| words[words.iter().position(|w| *w == word).expect(word) + 1].parse::<u64>().expect("bytes");
        limit = after("needs") + after("beside");
        refusals += 1;
    };
    assert!(refusals > 0);
    assert_eq!(json(&stdout)["batch"], 1, "{stderr}");
    assert!(json(&stdout)["batch_because"].as_str().unwrap().starts_with("4 do not fit; their plans take "), "{stdout}");
    let sums = |folder: &Path| lines(&folder.join("manifest.jsonl")).iter().map(|l| l["output_sha256"].to_string()).collect::<Vec<_>>();
    assert_eq!((sums(&whole).len(), sums(&whole)), (4, sums(&out)));

    // What was asked for is not made smaller.
    let text = limit.to_string();
    let (code, _, stderr) = call(&dir.path().join("none"), &["--memory-limit", &text, "--batch", "4"]);
    assert!(code == 2 && stderr.contains("memory: the plan needs "), "{stderr}");
}

/// Another solver than the model's: what `forward` gives is diffusers' walk; `synthesize` writes down which it was.
#[test]
fn the_scheduler_is_a_choice() {
    let dir = TempDir::new().unwrap();
    let (model, recorded) = (golden("models/inpaint-known"), golden("models/inpaint-known/schedulers.safetensors"));
    let latents = dir.path().join("latents.safetensors");
    let forward = |scheduler: &'static str| {
        let paths = ["--model", text(&model), "--inputs", text(&recorded), "--out", text(&latents)];
        let flags = ["forward", "--device", "cpu", "--component", "inpaint", "--steps", "6", "--guidance", "2.5", "--scheduler", scheduler];
        [flags.as_slice(), &paths].concat().into_iter().map(str::to_string).collect::<Vec<_>>()
    };
    let want = Store::open(&recorded).unwrap();
    for scheduler in ["lcm", "euler", "dpmpp-2m"] {
        let (code, _, stderr) = naevus(&forward(scheduler).iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(code, 0, "{stderr}");
        let (got, want) = (Store::open(&latents).unwrap().array("latents_5").unwrap(), want.array(&format!("{scheduler}/latents_5")).unwrap());
        assert!(relative_rms(&got.data, &want.data) < 1e-4, "{scheduler}");
    }
    refused(&forward("heun").iter().map(String::as_str).collect::<Vec<_>>(), &["--scheduler: heun, expected one of ddim, ddpm, dpmpp-2m, unipc"]);

    let (data, out, again) = (dir.path().join("data"), dir.path().join("out"), dir.path().join("again"));
    data_set(&data, 4);
    let tiny = golden("models/inpaint-tiny");
    let mut args = synthesize(text(&tiny), text(&data), text(&out));
    args.extend(["--classes", "df", "--per-class", "2", "--scheduler", "lcm"]);
    refused(&[args.clone(), vec!["--eta", "0.5"]].concat(), &["--eta: 0.5, expected 0: ddim alone has it, this is lcm"]);
    let (code, _, stderr) = naevus(&args);
    assert_eq!(code, 0, "{stderr}");
    let lcm = lines(&out.join("manifest.jsonl"));
    assert!(lcm.len() == 2 && lcm.iter().all(|line| line["scheduler"] == "lcm"));
    assert!(std::fs::read_to_string(out.join("run.toml")).unwrap().contains("scheduler = \"lcm\""));
    let (code, _, stderr) = naevus(&["synthesize", "--config", text(&out.join("run.toml")), "--out", text(&again), "--batch", "1"]);
    assert_eq!(code, 0, "{stderr}");
    let repeated = lines(&again.join("manifest.jsonl"));
    assert!(lcm.iter().all(|line| repeated.iter().any(|other| other["output_sha256"] == line["output_sha256"])), "a row of a batch is that row alone");
    args.truncate(args.len() - 1);
    refused(&[args, vec!["ddpm"]].concat(), &["run.toml: scheduler: lcm, but this run has ddpm"]);
}

/// A LoRA in a run: it changes the samples, stands in run.toml and in the manifest, and is held to its bytes.
#[test]
fn a_lora_is_part_of_the_settings() {
    let dir = TempDir::new().unwrap();
    let (data, lora) = (dir.path().join("data"), dir.path().join("style.safetensors"));
    data_set(&data, 6);
    let model = golden("models/inpaint-tokens");
    let module = "lora_unet_up_blocks_1_resnets_1_conv2";
    let write = |value: f32| {
        let mut writer = Writer::new();
        writer.f32(&format!("{module}.lora_down.weight"), &[1, 4, 3, 3], vec![value; 36]).unwrap();
        writer.f32(&format!("{module}.lora_up.weight"), &[4, 1, 1, 1], vec![value; 4]).unwrap();
        writer.write(&lora).unwrap();
    };
    write(0.5);
    let (code, stdout, _) = naevus(&["inspect", text(&lora)]);
    assert!(code == 0 && stdout.contains(": LoRA\n") && stdout.contains("unet: 1 modules, rank 1, alpha as the rank"), "{stdout}");
    let (_, stdout, _) = naevus(&["inspect", text(&model), "--lora", &format!("{}=0.5", text(&lora))]);
    assert!(stdout.contains("style.safetensors, weight 0.5") && stdout.contains("names: kohya's names"), "{stdout}");

    let given = format!("{}=-0.25", text(&lora));
    let run = |out: &str, extra: &[&str]| {
        let out = dir.path().join(out);
        let mut args = synthesize(text(&model), text(&data), text(&out));
        args.extend(["--classes", "df", "--per-class", "1"]);
        args.extend(extra);
        let (code, _, stderr) = naevus(&args);
        assert_eq!(code, 0, "{stderr}");
        lines(&out.join("manifest.jsonl")).remove(0)
    };
    let (plain, changed) = (run("plain", &[]), run("changed", &["--lora", &given]));
    assert_ne!(plain["output_sha256"], changed["output_sha256"]);
    assert_eq!((&plain["loras"], &changed["loras"][0]["weight"]), (&serde_json::Value::Null, &serde_json::json!(-0.25)));
    let (run_toml, again) = (dir.path().join("changed/run.toml"), dir.path().join("again"));
    let settings = std::fs::read_to_string(&run_toml).unwrap();
    assert!(settings.contains("[[sampling.loras]]") && settings.contains("weight = -0.25"), "{settings}");
    let repeat = ["synthesize", "--config", text(&run_toml), "--out", text(&again)];
    let (code, _, stderr) = naevus(&repeat);
    assert!(code == 0 && lines(&again.join("manifest.jsonl"))[0]["output_sha256"] == changed["output_sha256"], "{stderr}");
    write(0.25);
    refused(&repeat, &["--config: loras", "style.safetensors is another than when the run was made"]);
    refused(&["inspect", text(&model), "--lora", "nowhere.safetensors"], &["nowhere.safetensors"]);
    refused(&["inspect", text(&model), "--lora", "nowhere=high"], &["--lora nowhere=high", "expected a number"]);
    refused(&["inspect", text(&lora), "--lora", text(&lora)], &["is a LoRA, expected a model"]);
}

fn class_names(model: &Path) -> Vec<String> {
    let index: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(model.join("model_index.json")).unwrap()).unwrap();
    index["class_names"].as_array().unwrap().iter().map(|c| c.as_str().unwrap().to_string()).collect()
}

#[test]
fn a_job_that_cannot_start_says_why() {
    let dir = TempDir::new().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("out"));
    data_set(&data, 4);
    let model = golden("models/inpaint-tiny");
    let base = synthesize(text(&model), text(&data), text(&out));
    let with = |extra: &[&'static str]| [base.clone(), extra.to_vec()].concat();
    refused(&with(&["--classes", "zebra", "--per-class", "1"]), &["--classes", "`zebra`"]);
    refused(&with(&["--per-class", "1", "--batch", "0"]), &["--batch 0"]);
    refused(&with(&["--per-class", "1", "--strength", "1.5"]), &["strength"]);
    refused(&with(&["--per-class", "1", "--shard", "3/2"]), &["--shard", "3/2"]);
    refused(&with(&["--per-class", "1", "--sources", "none"]), &["--sources", "same-class"]);
    refused(&with(&["--per-class", "1", "--posterior", "mean"]), &["--posterior: mean, expected mode or sample"]);
    refused(&with(&["--per-class", "1", "--sources", "any", "--posterior", "sample"]), &["--posterior: sample, but this model's encoder gives latents"]);
    refused(&with(&["--per-class", "1", "--tiles", "0"]), &["--tiles: 0, expected auto, off or pixels"]);
    let file = dir.path().join("file");
    std::fs::write(&file, b"x").unwrap();
    let blocked = file.join("below");
    let mut args = synthesize(text(&model), text(&data), text(&blocked));
    args.extend(["--classes", "df", "--per-class", "1"]);
    refused(&args, &["below"]);
}
