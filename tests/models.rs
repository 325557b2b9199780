//! Models against PyTorch in float64: small random checkpoints with the result of every module, and the real reference
//! weights where ../shared is.

use std::path::{Path, PathBuf};

use naevus::base::array::relative_rms;
use naevus::base::{Array, DType, Result};
use naevus::exec::cpu::CpuSession;
use naevus::models::{ClassInput, Component, Found, InpaintIndex, InpaintModel, Inputs, Model, Taesd, UNet2DConditionModel, UNet2DModel, recognise};
use naevus::plan::{Options, Plan, Session, Tape, Tensor};
use naevus::weights::{Store, read_all, write};

/// Relative root mean square of the difference: f32 sums of up to 1e4 terms through up to 60 layers come to 2e-6.
const ALLOWED: f64 = 1e-5;

/// Every folder under tests/golden/models that holds one model.
const UNETS: [&str; 6] =
    ["unet-attention-classes", "unet-fourier-scale-shift", "unet-timestep-class", "unet-identity-class", "unet-rescaled-mid", "unet-old-names"];
const RESNETS: [&str; 2] = ["resnet18", "resnet50"];
const TAESDS: [&str; 2] = ["taesd", "taesd-pool"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

/// The folder beside the repository with the real models; prints the agreed line and gives None where it is not.
fn reference() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference");
    if !path.is_dir() {
        println!("skipped: ../shared absent");
        return None;
    }
    Some(path)
}

/// A file of inputs, taps and results. Arrays come in our axis order.
struct Io(Store);

impl Io {
    fn open(path: &Path) -> Io {
        Io(Store::open(path).unwrap())
    }

    fn array(&self, name: &str) -> Array {
        self.0.array(name).unwrap().to_channels_last()
    }

    /// Names of the modules that were recorded under `prefix`.
    fn taps(&self, prefix: &str) -> Vec<String> {
        self.0.names().filter_map(|name| name.strip_prefix(prefix)).map(str::to_string).collect()
    }
}

/// A tape whose inputs remember their values.
#[derive(Default)]
struct Bench {
    tape: Tape,
    values: Vec<(String, Vec<f32>)>,
}

impl Bench {
    fn input(&mut self, name: &str, array: &Array) -> Tensor {
        self.values.push((name.to_string(), array.data.clone()));
        self.tape.input(name, array.dims(), DType::F32)
    }

    fn indices(&mut self, name: &str, values: &[u32]) -> Tensor {
        self.values.push((name.to_string(), values.iter().map(|&v| f32::from_bits(v)).collect()));
        self.tape.input(name, &[values.len()], DType::U32)
    }

    /// Runs the tape on the CPU with the given taps kept.
    fn run(self, taps: &[String]) -> CpuSession {
        let plan = Plan::freeze(self.tape, &Options { taps: taps.to_vec(), ..Options::default() }).unwrap();
        let mut session = CpuSession::new(plan);
        for (name, values) in &self.values {
            session.write(name, values).unwrap();
        }
        session.run().unwrap();
        session
    }
}

/// Holds the taps in call order, then the result, against `io`. The error names the first that diverges.
fn parity(what: &str, mut bench: Bench, y: Tensor, io: &Io, prefix: &str, result: &str) -> std::result::Result<(), String> {
    let taps = io.taps(prefix);
    let mut order: Vec<String> = Vec::new();
    for (path, _) in bench.tape.taps() {
        if taps.contains(path) && !order.contains(path) {
            order.push(path.clone());
        }
    }
    if let Some(lost) = taps.iter().find(|tap| !order.contains(tap)) {
        return Err(format!("{what}: the model never ran {lost}"));
    }
    bench.tape.output("result", y);
    let mut session = bench.run(&order);
    for path in &order {
        let (ours, told) = (session.read(path).unwrap(), io.array(&format!("{prefix}{path}")));
        let error = relative_rms(&ours.data, &told.data);
        if !(error <= ALLOWED) {
            return Err(format!("{what}: first diverges at {path}: {:?}, expected {:?}, relative rms {error:.1e}", ours.shape, told.shape));
        }
    }
    let (ours, told) = (session.read("result").unwrap(), io.array(result));
    let error = relative_rms(&ours.data, &told.data);
    if ours.shape != told.shape || !(error <= ALLOWED) {
        return Err(format!("{what}: {result} is {:?}, expected {:?}, relative rms {error:.1e}, though no module differs", ours.shape, told.shape));
    }
    println!("{what}: {} modules, {result} within {error:.1e}", order.len());
    Ok(())
}

fn assert_parity(what: &str, bench: Bench, y: Tensor, io: &Io, prefix: &str, result: &str) {
    if let Err(difference) = parity(what, bench, y, io, prefix, result) {
        panic!("{difference}");
    }
}

/// The class tensor of a golden, as the model wants it.
fn class_of(model: &UNet2DModel, io: &Io, bench: &mut Bench) -> Option<Tensor> {
    Some(match model.class_input()? {
        ClassInput::Labels(_) => bench.indices("class", &io.0.indices("in/class_labels").unwrap()),
        ClassInput::Timestep | ClassInput::Vector(_) => bench.input("class", &io.array("in/class_labels")),
    })
}

/// A UNet on its golden's inputs, held against the golden.
fn unet_parity(folder: &Path, golden: &Path) -> std::result::Result<(), String> {
    let model = UNet2DModel::load(folder).unwrap();
    let io = Io::open(&golden.join("io.safetensors"));
    let mut bench = Bench::default();
    let sample = bench.input("sample", &io.array("in/sample"));
    let timesteps = bench.input("timesteps", &io.array("in/timestep"));
    let class = class_of(&model, &io, &mut bench);
    let y = model.forward(&mut bench.tape, sample, timesteps, class).unwrap();
    parity(&golden.file_name().unwrap().to_string_lossy(), bench, y, &io, "tap/", "out/sample")
}

#[test]
fn unets_follow_diffusers_module_by_module() {
    for name in UNETS {
        assert_eq!(unet_parity(&golden(name), &golden(name)), Ok(()));
    }
}

/// The harness itself: one weight in a hundred thousand is off, and the module that holds it is named.
#[test]
fn a_wrong_weight_is_found_in_its_module() {
    let from = golden("unet-rescaled-mid");
    for (weight, module) in [("mid_block.resnets.1.conv1.bias", "mid_block.resnets.1"), ("up_blocks.1.resnets.0.norm1.weight", "up_blocks.1.resnets.0")] {
        let to = tempfile::tempdir().unwrap();
        std::fs::copy(from.join("config.json"), to.path().join("config.json")).unwrap();
        let mut arrays = read_all(&from.join("diffusion_pytorch_model.safetensors")).unwrap();
        arrays.get_mut(weight).unwrap().data[3] += 0.01;
        write(&to.path().join("diffusion_pytorch_model.safetensors"), arrays.iter().map(|(name, array)| (name.as_str(), array))).unwrap();
        let difference = unet_parity(to.path(), &from).unwrap_err();
        assert!(difference.starts_with(&format!("unet-rescaled-mid: first diverges at {module}: ")), "{difference}");
    }
}

#[test]
fn taesds_follow_pytorch_module_by_module() {
    for name in TAESDS {
        let model = Taesd::load(&golden(name)).unwrap();
        let io = Io::open(&golden(name).join("io.safetensors"));
        let mut bench = Bench::default();
        let image = bench.input("image", &io.array("in/sample"));
        let latents = bench.input("latents", &io.array("out/latents"));
        let encoded = model.encode(&mut bench.tape, image).unwrap();
        let decoded = model.decode(&mut bench.tape, latents).unwrap();
        bench.tape.output("encoded", encoded);
        assert_parity(name, bench, decoded, &io, "tap/", "out/sample");
    }
}

#[test]
fn resnets_follow_torchvision_module_by_module() {
    for name in RESNETS {
        let model = classifier(&golden(name));
        let io = Io::open(&golden(name).join("io.safetensors"));
        for result in ["features", "logits"] {
            let (bench, y) = classified(model.as_ref(), &io.array("in/pixel_values"), result);
            assert_parity(name, bench, y, &io, if result == "features" { "tap/" } else { "no taps/" }, &format!("out/{result}"));
        }
    }
}

fn classifier(path: &Path) -> Box<dyn Model> {
    recognise(path).unwrap().load().unwrap()
}

/// A forward of `pixels` with one of its results.
fn classified(model: &dyn Model, pixels: &Array, result: &str) -> (Bench, Tensor) {
    let mut bench = Bench::default();
    let x = bench.input("pixel_values", pixels);
    let outputs = model.record(&mut bench.tape, Component::Classifier, &Inputs::new([("pixel_values".to_string(), x)])).unwrap();
    let y = outputs.iter().find(|output| output.name == result).unwrap().tensor;
    (bench, y)
}

/// The first prediction of a trajectory: unet_input in its order, at the first timestep, for class and null class.
fn assert_first_prediction(folder: &Path, file: &Path) {
    let model = InpaintModel::load(folder).unwrap();
    let io = Io::open(file);
    let what = file.file_name().unwrap().to_string_lossy();
    let timestep = io.0.integers("timesteps").unwrap()[0] as f32;
    let labels = io.0.indices("class_labels").unwrap();
    let parts = [io.array("noise"), io.array("hole_latent"), io.array("masked_latents")];
    for (result, labels) in [("eps_cond_0", labels.clone()), ("eps_uncond_0", vec![model.index.null_class as u32; labels.len()])] {
        let mut bench = Bench::default();
        let [latents, hole, masked] = ["latents", "hole", "masked"].map(|n| n.to_string());
        let latents = bench.input(&latents, &parts[0]);
        let hole = bench.input(&hole, &parts[1]);
        let masked = bench.input(&masked, &parts[2]);
        let timesteps = bench.input("timesteps", &Array::new(&[1], vec![timestep]).unwrap());
        let class = bench.indices("class", &labels);
        let x = bench.tape.concat(latents, hole).unwrap();
        let x = bench.tape.concat(x, masked).unwrap();
        let y = model.predict(&mut bench.tape, x, timesteps, class).unwrap();
        assert_parity(&format!("{what} {result}"), bench, y, &io, "no taps/", result);
    }
    assert_vae(&model, &io, &what);
}

/// The encoder on the image, the decoder on the last latents.
fn assert_vae(model: &InpaintModel, io: &Io, what: &str) {
    let last = (0..).map_while(|k| io.0.shape(&format!("latents_{k}")).map(|_| k)).last().unwrap();
    let mut bench = Bench::default();
    let image = bench.input("image", &io.array("image"));
    let latents = bench.input("latents", &io.array(&format!("latents_{last}")));
    let z0 = model.encode(&mut bench.tape, image).unwrap();
    let decoded = model.decode(&mut bench.tape, latents).unwrap();
    bench.tape.output("z0", z0);
    bench.tape.output("decoded", decoded);
    let mut session = bench.run(&[]);
    let error = relative_rms(&session.read("z0").unwrap().data, &io.array("z0").data);
    assert!(error <= ALLOWED, "{what}: encoder: relative rms {error:.1e}");
    let clamped: Vec<f32> = session.read("decoded").unwrap().data.iter().map(|v| v.clamp(0.0, 1.0)).collect();
    let decoder = relative_rms(&clamped, &io.array("decoded").data);
    assert!(decoder <= ALLOWED, "{what}: decoder: relative rms {decoder:.1e}");
    println!("{what}: encoder within {error:.1e}, decoder within {decoder:.1e}");
}

#[test]
fn a_small_inpainting_model_predicts_what_diffusers_does() {
    assert_first_prediction(&golden("inpaint-tiny"), &golden("inpaint-tiny").join("io.safetensors"));
}

#[test]
fn the_reference_inpainting_model_predicts_what_diffusers_does() {
    let Some(reference) = reference() else { return };
    for file in ["inpaint-seed0.safetensors", "inpaint-seed1-eta.safetensors"] {
        assert_first_prediction(&reference.join("inpaint-ham128"), &reference.join("golden").join(file));
    }
}

#[test]
fn the_reference_classifier_gives_pytorchs_features_and_logits() {
    let Some(reference) = reference() else { return };
    let model = classifier(&reference.join("resnet18-ham128"));
    let io = Io::open(&reference.join("golden/resnet18.safetensors"));
    for result in ["features", "logits"] {
        let (bench, y) = classified(model.as_ref(), &io.array("pixel_values"), result);
        assert_parity("resnet18-ham128", bench, y, &io, "no taps/", result);
    }
    assert_eq!((model.parameters(), model.class_names().unwrap().len()), (11_180_103, 7));
}

#[test]
fn parameters_are_those_of_the_files() {
    let numel = |path: &Path, is_parameter: &dyn Fn(&str) -> bool| -> u64 {
        let entries = Store::open(path).unwrap().entries();
        entries.iter().filter(|e| is_parameter(&e.name)).map(|e| e.shape.iter().product::<usize>() as u64).sum()
    };
    for name in UNETS {
        assert_eq!(UNet2DModel::load(&golden(name)).unwrap().parameters, numel(&golden(name), &|_| true), "{name}");
    }
    for name in RESNETS {
        let is_parameter = |n: &str| !n.contains("running_") && !n.contains("num_batches_tracked");
        assert_eq!(classifier(&golden(name)).parameters(), numel(&golden(name), &is_parameter), "{name}");
    }
    for name in TAESDS {
        let parts = ["encoder", "decoder"].map(|part| numel(&golden(name).join(format!("{part}.safetensors")), &|_| true));
        assert_eq!(Taesd::load(&golden(name)).unwrap().parameters(), parts[0] + parts[1], "{name}");
    }
}

#[test]
fn one_timestep_serves_a_batch() -> Result<()> {
    let name = "unet-fourier-scale-shift";
    let model = UNet2DModel::load(&golden(name))?;
    let io = Io::open(&golden(name).join("io.safetensors"));
    let run = |timesteps: &[f32]| -> Result<Array> {
        let mut bench = Bench::default();
        let sample = bench.input("sample", &io.array("in/sample"));
        let timesteps = bench.input("timesteps", &Array::new(&[timesteps.len()], timesteps.to_vec())?);
        let y = model.forward(&mut bench.tape, sample, timesteps, None)?;
        bench.tape.output("y", y);
        bench.run(&[]).read("y")
    };
    assert_eq!(run(&[3.5])?, run(&[3.5, 3.5])?);
    assert_ne!(run(&[3.5])?, run(&[3.5, 4.5])?);
    Ok(())
}

#[test]
fn inputs_that_do_not_fit_are_errors_with_expected_shapes() {
    let model = UNet2DModel::load(&golden("unet-attention-classes")).unwrap();
    let mut t = Tape::new();
    let sample = t.input("sample", &[2, 8, 8, 13], DType::F32);
    let odd = t.input("odd", &[2, 7, 8, 13], DType::F32);
    let timesteps = t.input("timesteps", &[2], DType::F32);
    let three = t.input("three", &[3], DType::F32);
    let class = t.input("class", &[2], DType::U32);
    let rows = [
        (model.forward(&mut t, odd, timesteps, Some(class)), "sample is [2, 13, 7, 8], expected [N, 13, H, W] with H and W multiples of 2"),
        (model.forward(&mut t, sample, three, Some(class)), "timesteps are [3], expected [2] or [1]"),
        (model.forward(&mut t, sample, timesteps, None), "class is none, expected U32 [2]"),
        (model.forward(&mut t, sample, timesteps, Some(timesteps)), "class is F32 [2], expected U32 [2]"),
    ];
    for (result, want) in rows {
        assert_eq!(result.unwrap_err().fact(), want);
    }
    let taesd = Taesd::load(&golden("taesd")).unwrap();
    let image = t.input("image", &[1, 12, 16, 3], DType::F32);
    assert!(taesd.encode(&mut t, image).unwrap_err().fact().contains("multiples of 8"));
    assert!(taesd.decode(&mut t, image).unwrap_err().fact().contains("expected [N, 4, H, W]"));
    let resnet = classifier(&golden("resnet18"));
    assert!(
        resnet
            .record(&mut t, Component::Classifier, &Inputs::new([("pixel_values".to_string(), sample)]))
            .unwrap_err()
            .fact()
            .contains("expected [N, 3, H, W]")
    );
}

#[test]
fn folders_are_recognised() {
    let rows = [
        ("inpaint-tiny", "model folder of a ClassConditionalInpaint"),
        ("unet-old-names", "diffusers UNet2DModel"),
        ("unet-rescaled-mid/diffusion_pytorch_model.safetensors", "diffusers UNet2DModel"),
        ("taesd", "TAESD autoencoder"),
        ("resnet50", "ResNet classifier"),
        ("inpaint-tiny/io.safetensors", "tensors of an unknown architecture"),
        // A configuration beside it says what it should be; its names then say that it is not.
        ("taesd/io.safetensors", "TAESD autoencoder"),
    ];
    for (name, architecture) in rows {
        assert_eq!(recognise(&golden(name)).unwrap().name(), architecture, "{name}");
    }
    assert!(recognise(&golden("taesd/io.safetensors")).unwrap().load().is_err());
    assert!(matches!(recognise(&golden("inpaint-tiny")).unwrap(), Found::Pipeline { .. }));
    assert_eq!(InpaintIndex::read(&golden("inpaint-tiny")).unwrap().input_channels(4), 9);
}

/// A conditioned UNet names the input that does not fit, and takes any number of tokens.
#[test]
fn inputs_of_a_conditioned_unet_are_named() {
    let model = UNet2DConditionModel::load(&golden("inpaint-known/unet")).unwrap();
    let good = [("sample", vec![2, 8, 8, 4]), ("timestep", vec![1]), ("encoder_hidden_states", vec![2, 9, 6]), ("class_labels", vec![2])];
    let record = |changed: &str, shape: Option<&[usize]>, label_type: DType| {
        let mut t = Tape::new();
        let mut inputs = Vec::new();
        for (name, dims) in &good {
            let dtype = if *name == "class_labels" { label_type } else { DType::F32 };
            match shape {
                None if *name == changed => continue,
                Some(shape) if *name == changed => inputs.push((name.to_string(), t.input(name, shape, dtype))),
                _ => inputs.push((name.to_string(), t.input(name, dims, dtype))),
            }
        }
        model.record(&mut t, Component::Unet, &Inputs::new(inputs)).map(|outputs| t.shape(outputs[0].tensor).dims().to_vec())
    };
    assert_eq!(record("", None, DType::U32).unwrap(), [2, 8, 8, 4]);
    let rows: [(&str, Option<&[usize]>, DType, &str); 6] = [
        ("sample", Some(&[2, 8, 8, 9]), DType::U32, "sample is [2, 9, 8, 8], expected [N, 4, H, W] with H and W multiples of 2"),
        ("timestep", Some(&[3]), DType::U32, "timesteps are [3], expected [2] or [1]"),
        ("encoder_hidden_states", Some(&[2, 9, 5]), DType::U32, "encoder_hidden_states is F32 [2, 9, 5], expected F32 [2, 9, 6]"),
        ("encoder_hidden_states", None, DType::U32, "encoder_hidden_states: the model needs this input"),
        ("class_labels", Some(&[1]), DType::U32, "class_labels is U32 [1], expected U32 [2]"),
        ("", None, DType::F32, "class_labels is F32 [2], expected U32 [2]"),
    ];
    for (name, shape, label_type, want) in rows {
        let error = record(name, shape, label_type).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}
