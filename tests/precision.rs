//! Tensors stored as f16 on the first adapter: images stay those of f32, and a model that f16 does not hold goes on in f32.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use naevus::base::array::psnr;
use naevus::base::{Array, rng};
use naevus::diffusion::inpaint::{Batch, Format, Inpainter};
use naevus::diffusion::posterior::Posterior;
use naevus::diffusion::region::Region;
use naevus::diffusion::tiles::Tiles;
use naevus::diffusion::{Schedule, Scheduler, Walk};
use naevus::exec::gpu::adapters;
use naevus::exec::precision::Precision;
use naevus::exec::{Device, Settings};
use naevus::models::InpaintModel;
use naevus::plan::{Options, Tape};
use naevus::weights::{Store, Writer, read_all};

/// An adapter in f32 and in f16; prints why there is none. NAEVUS_REQUIRE_GPU=1 makes its absence a failure.
fn both() -> Option<[Device; 2]> {
    let required = std::env::var("NAEVUS_REQUIRE_GPU").is_ok();
    if adapters().is_empty() {
        assert!(!required, "no adapter, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped on a device: no adapter");
        return None;
    }
    match Device::open_with("0", &Settings { precision: Precision::F16, ..Settings::default() }) {
        Ok(half) => Some([Device::open("0").unwrap(), half]),
        Err(e) => {
            assert!(!required, "NAEVUS_REQUIRE_GPU is set: {e}");
            println!("skipped with f16: {e}");
            None
        }
    }
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Two soft pictures with a square hole each, from noise alone; `class_labels` 0 and 1.
fn output(device: &Device, folder: &Path, size: usize, steps: usize) -> Array {
    let model = InpaintModel::load(folder).unwrap();
    let scheduler = Scheduler::read(&model.index.scheduler_config).unwrap();
    let schedule = Schedule::new(&scheduler, &Walk { steps, eta: 0.0, strength: 1.0 }).unwrap();
    let (posterior, tiles) = (Posterior::Mode, Tiles::Auto);
    let format = Format { batch: 2, height: size, width: size, guidance: 3.0, stochastic: scheduler.is_stochastic(0.0), posterior, tiles };
    let mut inpainter = Inpainter::new(&model, &scheduler, format, &mut |tape: Tape| device.prepare(tape, &Options::default())).unwrap();
    let [n, h, w, c] = inpainter.latent_shape();
    let noise = Array::new(&[n, h, w, c], (0..2).flat_map(|key| rng::normal(5, key, 0, h * w * c)).collect()).unwrap();
    let pixel = |i: usize| 0.55 + 0.25 * ((i / 3 % size) as f32 * 0.09).sin() - 0.1 * (i % 3) as f32;
    let image = Array::new(&[2, size, size, 3], (0..2 * size * size * 3).map(pixel).collect()).unwrap();
    let middle = size / 4..3 * size / 4;
    let open: Vec<bool> = (0..size * size).map(|i| middle.contains(&(i % size)) && middle.contains(&(i / size))).collect();
    let holes = vec![Region { width: size, height: size, open }; 2];
    let variance_noise = |_| Ok(noise.clone());
    let batch = Batch { image: &image, holes: &holes, class_labels: &[0, 1], noise: &noise, variance_noise: &variance_noise, posterior_noise: None };
    inpainter.paint(&batch, &schedule, false, &mut |_| ControlFlow::Continue(())).unwrap().output
}

/// Of every model at hand: the tiny one, the one that ships, and the reference where it is.
#[test]
fn images_stay_those_of_f32() {
    let Some([full, half]) = both() else { return };
    let mut rows = vec![(project("tests/golden/models/inpaint-tiny"), 32), (project("weights/inpaint"), 128)];
    let reference = project("../shared/reference/inpaint-ham128");
    if reference.is_dir() {
        rows.push((reference, 128));
    } else {
        println!("skipped: ../shared absent");
    }
    for (folder, size) in rows {
        let decibels = psnr(&output(&half, &folder, size, 4).data, &output(&full, &folder, size, 4).data, 1.0);
        println!("{}: {decibels:.1} dB", folder.file_name().unwrap().display());
        assert!((40.0..140.0).contains(&decibels), "{}: {decibels} dB of f16 from f32, expected 40 or more, and a difference", folder.display());
    }
}

/// A copy of the tiny model whose UNet's `name` is `scale` times as large.
fn louder(to: &Path, name: &str, scale: f32) {
    copy(&project("tests/golden/models/inpaint-tiny"), to);
    let weights = to.join("unet/diffusion_pytorch_model.safetensors");
    let mut writer = Writer::new();
    for (found, array) in read_all(&weights).unwrap() {
        let values: Vec<f32> = array.data.iter().map(|v| if found == name { v * scale } else { *v }).collect();
        writer.f32(&found, array.dims(), values).unwrap();
    }
    writer.write(&weights).unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Exit code and stderr.
fn naevus(args: &[&str]) -> (i32, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_naevus")).args(args).env("NAEVUS_CACHE", "").output().unwrap();
    (run.status.code().unwrap(), String::from_utf8(run.stderr).unwrap())
}

/// Values that f32 holds and f16 does not: the layer is named, and the answer is that of f32, bit for bit.
#[test]
fn an_overflow_goes_on_in_f32_and_names_the_layer() {
    if both().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_string();
    for (case, (name, scale)) in [("conv_in.weight", 3e4), ("down_blocks.0.resnets.0.conv1.bias", 1e7)].into_iter().enumerate() {
        let model = dir.path().join(format!("model-{case}"));
        louder(&model, name, scale);
        let io = text(&project("tests/golden/models/inpaint-tiny/io.safetensors"));
        let run = |precision: &str| {
            let out = text(&dir.path().join(format!("{case}-{precision}.safetensors")));
            let args = ["--component", "inpaint", "--steps", "3", "--model", &text(&model), "--inputs", &io, "--out", &out];
            let (code, stderr) = naevus(&[&["forward", "--device", "gpu", "--precision", precision], &args[..]].concat());
            assert_eq!(code, 0, "{stderr}");
            let store = Store::open(Path::new(&out)).unwrap();
            (store.array("output").unwrap(), store.metadata()["precision"].clone(), stderr)
        };
        let (expected, _, _) = run("f32");
        let (found, precision, stderr) = run("f16");
        assert!(expected.data.iter().all(|v| v.is_finite()));
        let layer = name.rsplit_once('.').unwrap().0;
        let note = stderr.lines().find(|line| line.starts_with("note: ")).unwrap_or_default();
        assert!(note.contains(layer) && note.contains("f16 does not hold them, going on in f32"), "{layer}: {stderr}");
        assert_eq!((found, precision.as_str()), (expected, "f32"), "{name}");
    }
}
