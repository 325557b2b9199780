//! Inpainting against diffusers: recorded trajectories of a tiny model, and of the real one where ../shared is; the laws of the
//! loop on every executor at hand.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use naevus::base::array::{psnr, relative_rms};
use naevus::base::{Array, Kind, Result, rng};
use naevus::diffusion::inpaint::{Batch, Format, Inpainter, Painted};
use naevus::diffusion::posterior::Posterior;
use naevus::diffusion::region::Region;
use naevus::diffusion::tiles::Tiles;
use naevus::diffusion::{Class, Schedule, Scheduler, Walk};
use naevus::exec::Device;
use naevus::exec::cpu::CpuSession;
use naevus::exec::gpu::{Gpu, adapters};
use naevus::models::InpaintModel;
use naevus::plan::{Limits, Options, Plan, Session, Tape};
use naevus::weights::{Store, read_all, write};

/// The CPU executor, and the first adapter where there is one. NAEVUS_REQUIRE_GPU=1 makes its absence a failure.
fn devices() -> Vec<Device> {
    if adapters().is_empty() {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped on a device: no adapter");
        return vec![Device::Cpu];
    }
    vec![Device::Cpu, Device::Gpu(Gpu::open(0).expect("the first adapter opens"))]
}

/// An inpainter on `device`.
fn inpainter(device: &Device, model: &InpaintModel, scheduler: &Scheduler, format: Format) -> Result<Inpainter> {
    Inpainter::new(model, scheduler, format, &mut |tape: Tape| device.prepare(tape, &Options::default()))
}

fn load(folder: &Path) -> (InpaintModel, Scheduler) {
    let model = InpaintModel::load(folder).unwrap();
    let scheduler = Scheduler::read(&model.index.scheduler_config).unwrap();
    (model, scheduler)
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/inpaint-tiny")
}

struct Recorded {
    store: Store,
    walk: Walk,
    guidance: f32,
}

impl Recorded {
    fn open(path: &Path) -> Recorded {
        let store = Store::open(path).unwrap();
        let number = |name: &str| store.metadata()[name].parse::<f64>().unwrap();
        let walk = Walk { steps: number("steps") as usize, eta: number("eta"), strength: number("strength") };
        Recorded { walk, guidance: number("guidance") as f32, store }
    }

    fn array(&self, name: &str) -> Array {
        self.store.array(name).unwrap().to_channels_last()
    }

    fn holes(&self) -> Vec<Region> {
        holes(&self.array("hole"))
    }
}

fn holes(hole: &Array) -> Vec<Region> {
    let [n, h, w, _] = hole.shape.nhwc().unwrap();
    (0..n).map(|i| Region::new(w, h, &hole.data[i * h * w..(i + 1) * h * w], |v| v > 0.5).unwrap()).collect()
}

/// Runs a recorded trajectory; the worst relative error of its latents and the PSNR of its output.
fn replay(device: &Device, model: &InpaintModel, scheduler: &Scheduler, recorded: &Recorded) -> (f64, f64) {
    let (image, noise) = (recorded.array("image"), recorded.array("noise"));
    let [n, h, w, _] = image.shape.nhwc().unwrap();
    let noises = ["posterior_noise", "masked_posterior_noise"];
    let posterior_noise = recorded.store.shape(noises[0]).map(|_| noises.map(|name| recorded.array(name)));
    let posterior = if posterior_noise.is_some() { Posterior::Sample } else { Posterior::Mode };
    let (guidance, stochastic) = (recorded.guidance, scheduler.is_stochastic(recorded.walk.eta));
    let format = Format { batch: n, height: h, width: w, guidance, stochastic, posterior, tiles: Tiles::Auto };
    let mut inpainter = inpainter(device, model, scheduler, format).unwrap();
    let schedule = Schedule::new(scheduler, &recorded.walk).unwrap();
    let timesteps: Vec<f32> = recorded.store.indices("timesteps").unwrap().into_iter().map(|t| t as f32).collect();
    assert_eq!(schedule.timesteps, timesteps);
    let variance_noise = |k: usize| Ok(recorded.array(&format!("variance_noise_{k}")));
    let class_labels = recorded.store.indices("class_labels").unwrap();
    let holes = recorded.holes();
    let posterior_noise = posterior_noise.as_ref().map(|[image, masked]| [image, masked]);
    let batch = Batch { image: &image, holes: &holes, class_labels: &class_labels, noise: &noise, variance_noise: &variance_noise, posterior_noise };
    let mut steps = vec![];
    let mut on_step = |k| {
        steps.push(k);
        ControlFlow::Continue(())
    };
    let painted = inpainter.paint(&batch, &schedule, true, &mut on_step).unwrap();
    assert_eq!(steps, (1..=schedule.rows.len()).collect::<Vec<_>>());
    assert_eq!(painted.holes, holes, "the recorded hole is a union of cells already");
    let error = |k: usize| relative_rms(&painted.latents[k].data, &recorded.array(&format!("latents_{k}")).data);
    let worst = (0..schedule.rows.len()).map(error).fold(0.0, f64::max);
    assert!(psnr(&painted.decoded.data, &recorded.array("decoded").data, 1.0) > 50.0);
    for (i, v) in painted.output.data.iter().enumerate() {
        let pixel = i / 3;
        assert!(holes[pixel / (h * w)].open[pixel % (h * w)] || v.to_bits() == image.data[i].to_bits(), "a known pixel changed");
    }
    (worst, psnr(&painted.output.data, &recorded.array("output").data, 1.0))
}

#[test]
fn tiny_model_follows_diffusers() {
    let (model, scheduler) = load(&tiny());
    for device in devices() {
        for file in ["io", "io-strength"] {
            let (latents, output) = replay(&device, &model, &scheduler, &Recorded::open(&tiny().join(format!("{file}.safetensors"))));
            assert!(latents < 1e-4 && output > 80.0, "{}: {file}: latents {latents:e}, output {output} dB", device.describe());
        }
    }
}

/// A `UNet2DConditionModel` whose classes are tokens: with the mask among its nine channels, and with four and what is known
/// noised again after each step.
#[test]
fn class_tokens_follow_diffusers() {
    for (name, parts) in [("inpaint-tokens", 3), ("inpaint-known", 1)] {
        let folder = tiny().with_file_name(name);
        let (model, scheduler) = load(&folder);
        assert_eq!((model.index.unet_input.len(), model.index.reimpose_known), (parts, parts == 1), "{name}");
        for device in devices() {
            let (latents, output) = replay(&device, &model, &scheduler, &Recorded::open(&folder.join("io.safetensors")));
            println!("{}: {name}: latents {latents:.1e}, output {output:.1} dB", device.describe());
            assert!(latents < 1e-4 && output > 80.0, "{}: {name}: latents {latents:e}, output {output} dB", device.describe());
        }
    }
}

/// Every other scheduler on the same model, with what is known noised again as that scheduler has it: from noise, and from the image.
#[test]
fn every_scheduler_follows_diffusers() {
    let folder = tiny().with_file_name("inpaint-known");
    let model = InpaintModel::load(&folder).unwrap();
    let store = Store::open(&folder.join("schedulers.safetensors")).unwrap();
    let array = |name: &str| store.array(name).unwrap().to_channels_last();
    let (image, noise, class_labels) = (array("image"), array("noise"), store.indices("class_labels").unwrap());
    let holes = holes(&array("hole"));
    let variance_noise = |k: usize| Ok(array(&format!("variance_noise_{k}")));
    let batch = Batch { image: &image, holes: &holes, class_labels: &class_labels, noise: &noise, variance_noise: &variance_noise, posterior_noise: None };
    for name in ["ddpm", "dpmpp-2m", "unipc", "euler", "lcm", "pndm"] {
        let scheduler = Scheduler::read_as(&model.index.scheduler_config, Class::parse("name", name).unwrap()).unwrap();
        let format = Format { guidance: 2.5, stochastic: scheduler.is_stochastic(0.0), ..tiny_format(2) };
        for device in devices() {
            let mut inpainter = inpainter(&device, &model, &scheduler, format).unwrap();
            for kind in [name.to_string(), format!("{name}-strength")] {
                let (steps, strength) = store.metadata()[&kind].split_once(' ').unwrap();
                let walk = Walk { steps: steps.parse().unwrap(), eta: 0.0, strength: strength.parse().unwrap() };
                let schedule = Schedule::new(&scheduler, &walk).unwrap();
                assert_eq!(schedule.timesteps, array(&format!("{kind}/timesteps")).data, "{kind}");
                let painted = inpainter.paint(&batch, &schedule, true, &mut |_| ControlFlow::Continue(())).unwrap();
                let error = |k: usize| relative_rms(&painted.latents[k].data, &array(&format!("{kind}/latents_{k}")).data);
                let worst = (0..schedule.rows.len()).map(error).fold(0.0, f64::max);
                println!("{}: {kind}: {} steps, latents {worst:.1e}", device.describe(), schedule.rows.len());
                assert!(worst < 1e-4, "{}: {kind}: {worst:e}", device.describe());
            }
        }
    }
}

fn posterior_model() -> PathBuf {
    tiny().with_file_name("inpaint-posterior")
}

/// An `AutoencoderKL` whose posterior is sampled with the recorded noise.
#[test]
fn sampled_posteriors_follow_diffusers() {
    let folder = posterior_model();
    let (model, scheduler) = load(&folder);
    for device in devices() {
        let (latents, output) = replay(&device, &model, &scheduler, &Recorded::open(&folder.join("io.safetensors")));
        println!("{}: inpaint-posterior: latents {latents:.1e}, output {output:.1} dB", device.describe());
        assert!(latents < 1e-4 && output > 80.0, "{}: latents {latents:e}, output {output} dB", device.describe());
    }
}

/// The real model on real images, where the folder beside the project has them.
#[test]
fn reference_model_follows_its_recorded_trajectories() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference");
    if !reference.join("golden/inpaint-seed0.safetensors").exists() {
        println!("skipped: ../shared absent");
        return;
    }
    let (model, scheduler) = load(&reference.join("inpaint-ham128"));
    for device in devices() {
        for file in ["inpaint-seed0", "inpaint-seed1-eta", "inpaint-seed2-strength"] {
            let recorded = Recorded::open(&reference.join(format!("golden/{file}.safetensors")));
            let (latents, output) = replay(&device, &model, &scheduler, &recorded);
            println!("{}: {file}: latents {latents:.1e}, output {output:.1} dB", device.describe());
            assert!(latents < 1e-3 && output > 50.0, "{}: {file}: latents {latents:e}, output {output} dB", device.describe());
        }
    }
}

/// Inputs of a batch whose item i is a function of `keys[i]` alone.
fn painted(inpainter: &mut Inpainter, schedule: &Schedule, keys: &[u64]) -> Result<Painted> {
    let [n, h, w, c] = inpainter.latent_shape();
    let Format { height, width, posterior, .. } = *inpainter.format();
    let normals = |step: u64| {
        let data = keys.iter().flat_map(|&key| rng::normal(1, key, step, h * w * c)).collect();
        Array::new(&[n, h, w, c], data)
    };
    let [image_noise, masked_noise] = [normals(rng::POSTERIOR_NOISE)?, normals(rng::MASKED_POSTERIOR_NOISE)?];
    let image = keys.iter().flat_map(|&key| rng::uniform(2, key, 0, height * width * 3)).collect();
    let hole = |&key: &u64| Region { width, height, open: (0..width * height).map(|i| i % width > 12 && (i / width) as u64 > key).collect() };
    let batch = Batch {
        image: &Array::new(&[n, height, width, 3], image)?,
        holes: &keys.iter().map(hole).collect::<Vec<_>>(),
        class_labels: &keys.iter().map(|key| (key % 3) as u32).collect::<Vec<_>>(),
        noise: &normals(rng::INITIAL_NOISE)?,
        variance_noise: &|k| normals(k as u64),
        posterior_noise: (posterior == Posterior::Sample).then_some([&image_noise, &masked_noise]),
    };
    inpainter.paint(&batch, schedule, true, &mut |_| ControlFlow::Continue(()))
}

fn tiny_format(batch: usize) -> Format {
    Format { batch, height: 32, width: 32, guidance: 2.0, stochastic: true, posterior: Posterior::Mode, tiles: Tiles::Auto }
}

const WALK: Walk = Walk { steps: 4, eta: 0.5, strength: 1.0 };

/// Law: row k of a batch is that row alone, and a session that was used is as good as new.
#[test]
fn an_item_does_not_depend_on_its_batch() {
    let (model, scheduler) = load(&tiny());
    let schedule = Schedule::new(&scheduler, &WALK).unwrap();
    for device in devices() {
        let mut three = inpainter(&device, &model, &scheduler, tiny_format(3)).unwrap();
        let mut one = inpainter(&device, &model, &scheduler, tiny_format(1)).unwrap();
        let together = painted(&mut three, &schedule, &[4, 5, 6]).unwrap();
        assert_eq!(painted(&mut three, &schedule, &[4, 5, 6]).unwrap().output, together.output, "{}: two runs differ", device.describe());
        for (i, key) in [4, 5, 6].into_iter().enumerate() {
            let alone = painted(&mut one, &schedule, &[key]).unwrap();
            let error = relative_rms(&together.output.rows(i, i + 1).data, &alone.output.data);
            assert!(error < 1e-5, "{}: row {i}: {error:e}", device.describe());
        }
    }
}

/// The same law for a scheduler that draws noise and one that remembers: what it remembers is each row's own.
#[test]
fn an_item_does_not_depend_on_its_batch_with_other_schedulers() {
    let model = InpaintModel::load(&tiny().with_file_name("inpaint-known")).unwrap();
    for class in [Class::Lcm, Class::UniPc, Class::Euler] {
        let scheduler = Scheduler::read_as(&model.index.scheduler_config, class).unwrap();
        let schedule = Schedule::new(&scheduler, &Walk { eta: 0.0, ..WALK }).unwrap();
        let format = |batch| Format { stochastic: scheduler.is_stochastic(0.0), ..tiny_format(batch) };
        let mut three = inpainter(&Device::Cpu, &model, &scheduler, format(3)).unwrap();
        let mut one = inpainter(&Device::Cpu, &model, &scheduler, format(1)).unwrap();
        let together = painted(&mut three, &schedule, &[4, 5, 6]).unwrap();
        assert_eq!(painted(&mut three, &schedule, &[4, 5, 6]).unwrap().output, together.output, "{}: two runs differ", class.name());
        for (i, key) in [4, 5, 6].into_iter().enumerate() {
            let alone = painted(&mut one, &schedule, &[key]).unwrap();
            assert_eq!(together.output.rows(i, i + 1).data, alone.output.data, "{}: row {i}", class.name());
        }
    }
}

/// The same law where the posterior is sampled; the sample is not the mode, and other noise gives another sample.
#[test]
fn a_sampled_posterior_does_not_depend_on_its_batch() {
    let (model, scheduler) = load(&posterior_model());
    let schedule = Schedule::new(&scheduler, &Walk { strength: 0.5, ..WALK }).unwrap();
    let format = |batch, posterior| Format { posterior, ..tiny_format(batch) };
    for device in devices() {
        let mut three = inpainter(&device, &model, &scheduler, format(3, Posterior::Sample)).unwrap();
        let mut one = inpainter(&device, &model, &scheduler, format(1, Posterior::Sample)).unwrap();
        let mut mode = inpainter(&device, &model, &scheduler, format(1, Posterior::Mode)).unwrap();
        let together = painted(&mut three, &schedule, &[4, 5, 6]).unwrap();
        for (i, key) in [4, 5, 6].into_iter().enumerate() {
            let alone = painted(&mut one, &schedule, &[key]).unwrap();
            let error = relative_rms(&together.output.rows(i, i + 1).data, &alone.output.data);
            assert!(error < 1e-5, "{}: row {i}: {error:e}", device.describe());
            let mean = painted(&mut mode, &schedule, &[key]).unwrap();
            assert!(relative_rms(&mean.latents[0].data, &alone.latents[0].data) > 1e-2, "{}: row {i} is the mode", device.describe());
        }
    }
}

#[test]
fn a_posterior_that_cannot_be_sampled_is_refused() {
    let (model, scheduler) = load(&tiny());
    let error = inpainter(&Device::Cpu, &model, &scheduler, Format { posterior: Posterior::Sample, ..tiny_format(1) }).err().unwrap();
    let want = "--posterior: sample, but this model's encoder gives latents and no Gaussian of them, expected mode";
    assert_eq!((error.to_string().as_str(), error.kind()), (want, Kind::Usage));
}

#[test]
fn noise_of_the_posterior_is_checked() {
    let (model, scheduler) = load(&posterior_model());
    let schedule = Schedule::new(&scheduler, &WALK).unwrap();
    let (image, noise, wide) = (Array::zeros(&[1, 32, 32, 3]), Array::zeros(&[1, 4, 4, 4]), Array::zeros(&[1, 4, 5, 4]));
    let nan = Array::new(&[1, 4, 4, 4], vec![f32::NAN; 64]).unwrap();
    let holes = [Region { width: 32, height: 32, open: vec![true; 1024] }];
    let run = |posterior: Posterior, posterior_noise: Option<[&Array; 2]>| {
        let mut inpainter = inpainter(&Device::Cpu, &model, &scheduler, Format { posterior, ..tiny_format(1) }).unwrap();
        let batch = Batch { image: &image, holes: &holes, class_labels: &[0], noise: &noise, variance_noise: &|_| Ok(noise.clone()), posterior_noise };
        inpainter.paint(&batch, &schedule, false, &mut |_| ControlFlow::Continue(())).map(|_| ())
    };
    run(Posterior::Sample, Some([&noise, &noise])).unwrap();
    for (posterior, given, want) in [
        (Posterior::Sample, None, "posterior_noise: none, expected what --posterior sample takes"),
        (Posterior::Mode, Some([&noise, &noise]), "posterior_noise: given, expected what --posterior mode takes"),
        (Posterior::Sample, Some([&noise, &wide]), "posterior_noise: [1, 4, 4, 5], expected [1, 4, 4, 4]"),
        (Posterior::Sample, Some([&nan, &noise]), "posterior_noise: holds NaN, expected finite values"),
    ] {
        assert_eq!(run(posterior, given).unwrap_err().to_string(), want);
    }
}

/// One autoencoder under its authors' names and under diffusers': both paint the same.
#[test]
fn an_autoencoder_tiny_is_the_taesd_that_it_holds() {
    let (dir, taesd) = (tempfile::tempdir().unwrap(), tiny().with_file_name("taesd"));
    for (name, class) in [("own", "TAESD"), ("diffusers", "AutoencoderTiny")] {
        copy(&tiny(), &dir.path().join(name));
        let index = std::fs::read_to_string(tiny().join("model_index.json")).unwrap();
        let library = if class == "TAESD" { "taesd" } else { "diffusers" };
        let mut index: serde_json::Value = serde_json::from_str(&index).unwrap();
        index["vae"] = serde_json::json!([library, class]);
        std::fs::write(dir.path().join(name).join("model_index.json"), index.to_string()).unwrap();
        std::fs::remove_dir_all(dir.path().join(name).join("vae")).unwrap();
    }
    copy(&taesd, &dir.path().join("own/vae"));
    let mut tensors = Vec::new();
    for (part, first) in [("encoder", 0), ("decoder", 1)] {
        for (name, array) in read_all(&taesd.join(format!("{part}.safetensors"))).unwrap() {
            let (index, rest) = name.split_once('.').unwrap();
            // The clamp is a layer there, and none here.
            tensors.push((format!("{part}.layers.{}.{rest}", index.parse::<usize>().unwrap() - first), array));
        }
    }
    let vae = dir.path().join("diffusers/vae");
    std::fs::create_dir(&vae).unwrap();
    write(&vae.join("diffusion_pytorch_model.safetensors"), tensors.iter().map(|(name, array)| (name.as_str(), array))).unwrap();
    let config = r#"{"_class_name": "AutoencoderTiny", "encoder_block_out_channels": [8, 8, 8, 8], "decoder_block_out_channels": [8, 8, 8, 8]}"#;
    std::fs::write(vae.join("config.json"), config).unwrap();
    let outputs = ["own", "diffusers"].map(|name| {
        let (model, scheduler) = load(&dir.path().join(name));
        let schedule = Schedule::new(&scheduler, &WALK).unwrap();
        let mut inpainter = inpainter(&Device::Cpu, &model, &scheduler, tiny_format(1)).unwrap();
        painted(&mut inpainter, &schedule, &[4]).unwrap().output
    });
    let error = relative_rms(&outputs[1].data, &outputs[0].data);
    assert!(error < 1e-5, "{error:e}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::write(target, std::fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

/// A device that takes smaller bindings than the whole image needs.
#[test]
fn what_exceeds_a_limit_is_cut_and_told() {
    let (model, scheduler) = load(&posterior_model());
    let schedule = Schedule::new(&scheduler, &Walk { eta: 0.0, ..WALK }).unwrap();
    // 4 channels of 64 x 64 pixels are 64 KiB an image; of 32 x 32 they are 16.
    let with = |batch: usize, binding_bytes: u64, tiles: Tiles| {
        let limits = Limits { binding_bytes, ..Limits::HOST };
        let mut prepare = |tape: Tape| Ok(Box::new(CpuSession::new(Plan::freeze(tape, &Options { limits, ..Options::default() })?)) as Box<dyn Session>);
        let format = Format { batch, height: 64, width: 64, guidance: 1.0, stochastic: false, tiles, posterior: Posterior::Sample };
        Inpainter::new(&model, &scheduler, format, &mut prepare)
    };
    let whole = with(2, u64::MAX, Tiles::Auto).unwrap();
    assert!(whole.notes().is_empty());
    let image_by_image = with(2, 70_000, Tiles::Off).unwrap();
    assert!(image_by_image.notes()[0].starts_with("encode image by image, because the whole does not fit: "), "{:?}", image_by_image.notes());
    let cut = with(2, 40_000, Tiles::Auto).unwrap();
    for (note, part) in cut.notes().iter().zip(["encode", "decode"]) {
        let want = format!("{part} in 9 tiles of 32 x 32 pixels that overlap by 8, because the whole does not fit: ");
        assert!(note.starts_with(&want) && note.contains(" bytes, the device takes 40000; "), "{note}");
    }
    assert_eq!(cut.notes().len(), 2);
    let off = with(1, 40_000, Tiles::Off).err().unwrap();
    assert!(off.kind() == Kind::Limit && off.to_string().contains("needs a binding of 49152 bytes, the device takes 40000"), "{off}");
    let small = with(1, 4_000, Tiles::Auto).err().unwrap();
    assert!(small.kind() == Kind::Limit && small.to_string().contains("needs a binding of 49152 bytes"), "{small}");
    let asked = with(1, u64::MAX, Tiles::Pixels(32)).unwrap();
    assert_eq!(asked.notes(), ["encode in 9 tiles of 32 x 32 pixels that overlap by 8", "decode in 9 tiles of 32 x 32 pixels that overlap by 8"]);
    assert!(with(1, u64::MAX, Tiles::Pixels(64)).unwrap().notes().is_empty(), "a tile holds the whole image");
    let odd = with(1, u64::MAX, Tiles::Pixels(40)).err().unwrap();
    assert_eq!(odd.to_string(), "--tiles: 40, expected a multiple of 32 pixels: 4 latents of this model");
    // Cut because it must be or because it is asked for, alone or in a batch: the same tiles, the same image.
    let paint = |mut inpainter: Inpainter, keys: &[u64]| painted(&mut inpainter, &schedule, keys).unwrap().output;
    let (cut, asked, image_by_image, whole) = (paint(cut, &[7, 8]), paint(asked, &[8]), paint(image_by_image, &[7, 8]), paint(whole, &[7, 8]));
    assert!(relative_rms(&cut.rows(1, 2).data, &asked.data) < 1e-5);
    assert!(relative_rms(&image_by_image.data, &whole.data) < 1e-5);
    assert!(relative_rms(&cut.data, &whole.data) > 1e-4, "tiles change nothing");
}

/// Guidance 1 asks for the class alone; it must agree with the guided form at a scale just beside it.
#[test]
fn guidance_one_is_the_conditional_model() {
    let (model, scheduler) = load(&tiny());
    let schedule = Schedule::new(&scheduler, &WALK).unwrap();
    let run = |guidance: f32| {
        let mut inpainter = inpainter(&Device::Cpu, &model, &scheduler, Format { guidance, ..tiny_format(2) }).unwrap();
        painted(&mut inpainter, &schedule, &[4, 5]).unwrap().output
    };
    let (one, beside, two) = (run(1.0), run(1.000_001), run(2.0));
    assert!(relative_rms(&beside.data, &one.data) < 1e-4);
    assert!(relative_rms(&two.data, &one.data) > 1e-4, "guidance has no effect");
}

#[test]
fn a_run_can_be_stopped() {
    let (model, scheduler) = load(&tiny());
    let schedule = Schedule::new(&scheduler, &Walk { eta: 0.0, ..WALK }).unwrap();
    let mut inpainter = inpainter(&Device::Cpu, &model, &scheduler, Format { stochastic: false, ..tiny_format(1) }).unwrap();
    let (image, noise) = (Array::zeros(&[1, 32, 32, 3]), Array::zeros(&[1, 4, 4, 4]));
    let holes = [Region { width: 32, height: 32, open: vec![true; 1024] }];
    let batch = Batch { image: &image, holes: &holes, class_labels: &[0], noise: &noise, variance_noise: &|_| Ok(Array::zeros(&[0])), posterior_noise: None };
    let mut seen = 0;
    let mut on_step = |k| {
        seen = k;
        if k == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = inpainter.paint(&batch, &schedule, false, &mut on_step).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str(), seen), (Kind::Interrupted, "stopped after step 2 of 4", 2));
}

/// Finite inputs that overflow inside: the error says which layer gave up first, and when.
#[test]
fn values_that_are_not_finite_name_their_layer() {
    let (model, scheduler) = load(&tiny());
    let schedule = Schedule::new(&scheduler, &WALK).unwrap();
    let mut inpainter = inpainter(&Device::Cpu, &model, &scheduler, tiny_format(1)).unwrap();
    let holes = [Region { width: 32, height: 32, open: (0..1024).map(|i| i > 512).collect() }];
    let image = Array::new(&[1, 32, 32, 3], vec![0.5; 3072]).unwrap();
    let mut run = |image: &Array, noise: f32, variance: f32| {
        let noise = Array::new(&[1, 4, 4, 4], vec![noise; 64]).unwrap();
        let variance_noise = |k: usize| Array::new(&[1, 4, 4, 4], vec![if k == 2 { variance } else { 0.0 }; 64]);
        let batch = Batch { image, holes: &holes, class_labels: &[0], noise: &noise, variance_noise: &variance_noise, posterior_noise: None };
        inpainter.paint(&batch, &schedule, false, &mut |_| ControlFlow::Continue(())).map(|painted| painted.output)
    };
    let good = run(&image, 0.0, 0.0).unwrap();
    for (result, want) in [
        (run(&image, 3e38, 0.0), "unet.conv_in (conv2d): values that are not finite in step 0, timestep 751"),
        (run(&image, 0.0, f32::NAN), "ddim_step (ddim_step): values that are not finite in step 2, timestep 251"),
        (run(&image, f32::INFINITY, 0.0), "noise: holds inf, expected finite values"),
        (run(&Array::new(&[1, 32, 32, 3], vec![f32::NAN; 3072]).unwrap(), 0.0, 0.0), "image: holds NaN, expected finite values"),
    ] {
        let error = result.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), (want, Kind::Numeric));
    }
    assert_eq!(run(&image, 0.0, 0.0).unwrap(), good, "a failed batch spoils the next");
}

#[test]
fn wrong_batches_are_named() {
    let (model, scheduler) = load(&tiny());
    let schedule = Schedule::new(&scheduler, &WALK).unwrap();
    for (height, width, batch) in [(30, 32, 1), (0, 32, 1), (32, 32, 0)] {
        let error = inpainter(&Device::Cpu, &model, &scheduler, Format { height, width, ..tiny_format(batch) }).err().unwrap();
        assert!(error.to_string().starts_with("image: a batch of"), "{error}");
    }
    let mut inpainter = inpainter(&Device::Cpu, &model, &scheduler, tiny_format(1)).unwrap();
    let good = (vec![1usize, 32, 32, 3], vec![1usize, 4, 4, 4], 32, vec![0u32]);
    let mut run = |(image, noise, hole, labels): (Vec<usize>, Vec<usize>, usize, Vec<u32>)| {
        let holes = [Region { width: hole, height: 32, open: vec![true; hole * 32] }];
        let (image, noise) = (Array::zeros(&image), Array::zeros(&noise));
        let batch = Batch {
            image: &image,
            holes: &holes,
            class_labels: &labels,
            noise: &noise,
            variance_noise: &|_| Ok(Array::zeros(&[1, 4, 4, 4])),
            posterior_noise: None,
        };
        inpainter.paint(&batch, &schedule, false, &mut |_| ControlFlow::Continue(())).map(|_| ())
    };
    run(good.clone()).unwrap();
    for (wrong, want) in [
        ((vec![1, 32, 40, 3], good.1.clone(), 32, good.3.clone()), "image: [1, 3, 32, 40], expected [1, 3, 32, 32]"),
        ((good.0.clone(), vec![1, 4, 4, 3], 32, good.3.clone()), "noise: [1, 3, 4, 4], expected [1, 4, 4, 4]"),
        ((good.0.clone(), good.1.clone(), 40, good.3.clone()), "hole: 40 x 32, expected 32 x 32"),
        ((good.0.clone(), good.1.clone(), 32, vec![9]), "class_labels: 9, expected 0 to 2"),
        ((good.0.clone(), good.1.clone(), 32, vec![0, 1]), "hole: 1 holes and 2 class labels, expected 1 of each"),
    ] {
        assert_eq!(run(wrong).unwrap_err().to_string(), want);
    }
}
