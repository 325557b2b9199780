//! Inpainting against diffusers: recorded trajectories of a tiny model, and of the real one where ../shared is; the laws of the
//! loop on every executor at hand.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use naevus::base::array::{psnr, relative_rms};
use naevus::base::{Array, Kind, Result, rng};
use naevus::diffusion::inpaint::{Batch, Format, Inpainter, Painted};
use naevus::diffusion::region::Region;
use naevus::diffusion::{Class, Schedule, Scheduler, Walk};
use naevus::exec::Device;
use naevus::exec::gpu::{Gpu, adapters};
use naevus::models::InpaintModel;
use naevus::plan::{Options, Tape};
use naevus::weights::Store;

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
    let format = Format { batch: n, height: h, width: w, guidance: recorded.guidance, stochastic: scheduler.is_stochastic(recorded.walk.eta) };
    let mut inpainter = inpainter(device, model, scheduler, format).unwrap();
    let schedule = Schedule::new(scheduler, &recorded.walk).unwrap();
    let timesteps: Vec<f32> = recorded.store.indices("timesteps").unwrap().into_iter().map(|t| t as f32).collect();
    assert_eq!(schedule.timesteps, timesteps);
    let variance_noise = |k: usize| Ok(recorded.array(&format!("variance_noise_{k}")));
    let class_labels = recorded.store.indices("class_labels").unwrap();
    let holes = recorded.holes();
    let batch = Batch { image: &image, holes: &holes, class_labels: &class_labels, noise: &noise, variance_noise: &variance_noise };
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
    let batch = Batch { image: &image, holes: &holes, class_labels: &class_labels, noise: &noise, variance_noise: &variance_noise };
    for name in ["ddpm", "dpmpp-2m", "unipc", "euler", "lcm", "pndm"] {
        let scheduler = Scheduler::read_as(&model.index.scheduler_config, Class::parse("name", name).unwrap()).unwrap();
        let format = Format { batch: 2, height: 32, width: 32, guidance: 2.5, stochastic: scheduler.is_stochastic(0.0) };
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
    let Format { height, width, .. } = *inpainter.format();
    let normals = |step: u64| {
        let data = keys.iter().flat_map(|&key| rng::normal(1, key, step, h * w * c)).collect();
        Array::new(&[n, h, w, c], data)
    };
    let image = keys.iter().flat_map(|&key| rng::uniform(2, key, 0, height * width * 3)).collect();
    let hole = |&key: &u64| Region { width, height, open: (0..width * height).map(|i| i % width > 12 && (i / width) as u64 > key).collect() };
    let batch = Batch {
        image: &Array::new(&[n, height, width, 3], image)?,
        holes: &keys.iter().map(hole).collect::<Vec<_>>(),
        class_labels: &keys.iter().map(|key| (key % 3) as u32).collect::<Vec<_>>(),
        noise: &normals(rng::INITIAL_NOISE)?,
        variance_noise: &|k| normals(k as u64),
    };
    inpainter.paint(&batch, schedule, true, &mut |_| ControlFlow::Continue(()))
}

fn tiny_format(batch: usize) -> Format {
    Format { batch, height: 32, width: 32, guidance: 2.0, stochastic: true }
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
    let batch = Batch { image: &image, holes: &holes, class_labels: &[0], noise: &noise, variance_noise: &|_| Ok(Array::zeros(&[0])) };
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
        let batch = Batch { image, holes: &holes, class_labels: &[0], noise: &noise, variance_noise: &variance_noise };
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
        let batch = Batch { image: &image, holes: &holes, class_labels: &labels, noise: &noise, variance_noise: &|_| Ok(Array::zeros(&[1, 4, 4, 4])) };
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
