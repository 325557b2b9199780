//! Plans: slots, limits, snapshots; and what must not depend on the plan: aliasing, batch and replay leave every bit as it is.

use std::path::{Path, PathBuf};

use naevus::base::{DType, Kind, rng};
use naevus::exec::gpu::adapters;
use naevus::exec::precision::Precision;
use naevus::exec::{Device, Settings, Tune};
use naevus::models::unet_2d::UNet2DModel;
use naevus::plan::{Limits, Options, Plan, Storage, Tape, TensorKind};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The CPU executor, and the first adapter where there is one.
fn devices() -> Vec<Device> {
    if adapters().is_empty() {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped on a GPU: no adapter");
        return vec![Device::Cpu];
    }
    vec![Device::Cpu, Device::open("0").expect("the first adapter opens")]
}

fn unet() -> UNet2DModel {
    UNet2DModel::load(&golden("models/unet-attention-classes")).expect("the tiny UNet loads")
}

fn unet_tape(model: &UNet2DModel, batch: usize) -> Tape {
    let mut t = Tape::new();
    let [h, w] = model.config.sample_size.unwrap_or([8, 8]);
    let sample = t.input("sample", &[batch, h, w, model.config.in_channels], DType::F32);
    let timestep = t.input("timestep", &[batch], DType::F32);
    let class = t.input("class_labels", &[batch], DType::U32);
    let y = model.forward(&mut t, sample, timestep, Some(class)).expect("the forward records");
    t.output("sample", y);
    t
}

/// Runs the UNet on rows `rows` of a fixed batch of random samples, twice; both runs must give the same bits.
fn run(device: &Device, model: &UNet2DModel, rows: std::ops::Range<usize>, alias: bool) -> Vec<u32> {
    run_with(device, model, rows, &Options { alias, ..Options::default() })
}

fn run_with(device: &Device, model: &UNet2DModel, rows: std::ops::Range<usize>, options: &Options) -> Vec<u32> {
    let tape = unet_tape(model, rows.len());
    let per = tape.inputs().next().expect("the sample is an input").1.shape.numel() / rows.len();
    let mut session = device.prepare(tape, options).expect("the plan fits");
    let row_values = |k: usize| rng::normal(7, k as u64, 0, per);
    let sample: Vec<f32> = rows.clone().flat_map(row_values).collect();
    session.write("sample", &sample).unwrap();
    session.write("timestep", &rows.clone().map(|k| 37.0 * k as f32 + 1.0).collect::<Vec<_>>()).unwrap();
    session.write_indices("class_labels", &rows.map(|k| k as u32 % 3).collect::<Vec<_>>()).unwrap();
    let mut once = || {
        session.run().unwrap();
        session.read("sample").unwrap().data.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
    };
    let first = once();
    assert_eq!(first, once(), "a replay gave other bits");
    first
}

#[test]
fn live_tensors_never_share_a_slot() {
    let model = unet();
    let plan = Plan::freeze(unet_tape(&model, 2), &Options::default()).unwrap();
    let in_slots: Vec<(usize, usize)> =
        (0..plan.storage.len()).filter_map(|i| if let Storage::Slot(slot) = plan.storage[i] { Some((i, slot)) } else { None }).collect();
    assert!(in_slots.len() > 50 && plan.slots.len() < in_slots.len() / 4, "{} tensors in {} slots", in_slots.len(), plan.slots.len());
    for (at, &(a, slot)) in in_slots.iter().enumerate() {
        for &(b, _) in in_slots[at + 1..].iter().filter(|(_, other)| *other == slot) {
            let ((from_a, to_a), (from_b, to_b)) = (plan.lifetimes[a], plan.lifetimes[b]);
            assert!(to_a < from_b || to_b < from_a, "tensors {a} and {b} live together in slot {slot}");
        }
    }
    // Written before read, and a slot holds its largest tenant.
    let mut written = vec![false; plan.storage.len()];
    for step in plan.steps() {
        for input in &step.inputs {
            let owner = plan.tape.owner(*input);
            let from_outside = !matches!(plan.tape.info(owner).kind, TensorKind::Activation);
            assert!(from_outside || written[owner.index()], "{}: reads a tensor that no step has written", step.place);
        }
        written[step.output.index()] = true;
        if let Storage::Slot(slot) = plan.storage[step.output.index()] {
            assert!(plan.slots[slot] >= plan.tape.info(step.output).bytes());
        }
    }
    let unshared = Plan::freeze(unet_tape(&model, 2), &Options { alias: false, ..Options::default() }).unwrap();
    assert!(plan.slot_bytes() * 3 < unshared.slot_bytes(), "{} against {} bytes", plan.slot_bytes(), unshared.slot_bytes());
}

#[test]
fn aliasing_changes_no_bit() {
    let model = unet();
    for device in devices() {
        assert_eq!(run(&device, &model, 0..3, true), run(&device, &model, 0..3, false), "{}", device.describe());
    }
}

/// A module that is tapped keeps its step, so with all of them tapped few steps are joined. Stored as f16, what was joined is rounded less often.
#[test]
fn joining_changes_no_bit_and_helps_f16() {
    let model = unet();
    let taps: Vec<String> = unet_tape(&model, 2).taps().iter().map(|(path, _)| path.clone()).collect();
    let (few, many) = (Options::default(), Options { taps, ..Options::default() });
    let values = |device: &Device, options: &Options| run_with(device, &model, 0..2, options).into_iter().map(f32::from_bits).collect::<Vec<f32>>();
    let exact = values(&Device::Cpu, &few);
    for device in devices() {
        let [joined, plain] = [&few, &many].map(|options| device.plan(unet_tape(&model, 2), options).unwrap().steps().len());
        assert!(joined + 10 < plain, "{joined} and {plain} steps");
        assert!(run_with(&device, &model, 0..2, &few) == run_with(&device, &model, 0..2, &many), "{}", device.describe());
        if device.gpu().is_some_and(|gpu| gpu.summary().f16) {
            let half = Device::open_with("0", &Settings { precision: Precision::F16, tune: Tune::Off, ..Settings::default() }).unwrap();
            let error = |options| values(&half, options).iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
            let [joined, plain] = [error(&few), error(&many)];
            println!("f16: error {joined:.2e}, without joining {plain:.2e}");
            assert!(joined < 1.1 * plain, "f16: error {joined:.2e}, without joining {plain:.2e}");
        }
    }
}

#[test]
fn a_row_of_a_batch_equals_that_row_alone() {
    let model = unet();
    for device in devices() {
        let batch = run(&device, &model, 0..5, true);
        let per = batch.len() / 5;
        for k in 0..5 {
            assert_eq!(batch[k * per..(k + 1) * per], run(&device, &model, k..k + 1, true), "row {k} on {}", device.describe());
        }
    }
}

#[test]
fn limits_are_named_before_the_run() {
    let model = unet();
    let limits = |binding_bytes, buffer_bytes| Options { limits: Limits { binding_bytes, buffer_bytes, ..Limits::HOST }, ..Options::default() };
    let error = Plan::freeze(unet_tape(&model, 2), &limits(1000, 1 << 30)).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
    assert!(error.fact().contains("needs a binding of") && error.fact().contains("the device takes 1000"), "{error}");
    let error = Plan::freeze(unet_tape(&model, 2), &limits(1 << 30, 2000)).unwrap_err();
    assert!(error.fact().contains("needs a buffer of"), "{error}");
    let groups = Options { limits: Limits { workgroups_per_axis: 1, ..Limits::HOST }, ..Options::default() };
    assert!(Plan::freeze(unet_tape(&model, 2), &groups).unwrap_err().fact().contains("workgroups along one axis"));
}

#[test]
fn an_unknown_tap_names_the_nearest_module() {
    let model = unet();
    let taps = vec!["down_blocks.0.resnet.0".to_string()];
    let error = Plan::freeze(unet_tape(&model, 1), &Options { taps, ..Options::default() }).unwrap_err();
    assert!(error.fact().contains("`down_blocks.0.resnets.0`"), "{error}");
}

/// A change of the plan shows in review. `NAEVUS_BLESS=1 cargo test --test plan` writes the file anew.
#[test]
fn the_plan_is_the_committed_one() {
    let plan = Plan::freeze(unet_tape(&unet(), 2), &Options::default()).unwrap().to_string();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans/unet-attention-classes.txt");
    if std::env::var_os("NAEVUS_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &plan).unwrap();
    }
    let committed = std::fs::read_to_string(&path).expect("the committed plan is there");
    for (line, (now, before)) in plan.lines().zip(committed.lines()).enumerate() {
        assert_eq!(now, before, "line {}", line + 1);
    }
    assert_eq!(plan.lines().count(), committed.lines().count());
}
