//! Which kernel runs a step: measured once and kept, never a broken one, and whatever is chosen, a row of a batch keeps its bits.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use assert_cmd::Command;
use naevus::base::{DType, rng};
use naevus::exec::gpu::{Gpu, adapters};
use naevus::exec::kept::{Identity, Keeper, Kept, PASSED};
use naevus::exec::{Device, Settings, Tune};
use naevus::models::unet_2d::UNet2DModel;
use naevus::ops;
use naevus::plan::{Options, Session, Tape};
use naevus::weights::{Store, Writer};
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn has_adapter() -> bool {
    if adapters().is_empty() {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped: no adapter");
        return false;
    }
    true
}

/// The first adapter, tuned into `cache`.
fn tuned(cache: &Path) -> Device {
    Device::open_with("0", &Settings { tune: Tune::On, cache: Some(cache.to_path_buf()), ..Settings::default() }).expect("the first adapter opens")
}

fn keeper(cache: &Path) -> Keeper {
    Keeper::new(cache, Identity::of(&adapters()[0]))
}

/// Every kernel proved, as far as these tests go: tests/ops.rs proves them.
fn all_proved(cache: &Path) {
    let keys = ops::ALL.iter().flat_map(|op| op.variants.iter().map(|v| format!("{} {}", op.name, v.name)));
    let proofs = keys.map(|key| (key, PASSED.to_string())).collect();
    keeper(cache).write(&Kept { proofs, ..Kept::default() }).unwrap();
}

/// Convolutions, products, attention, group norms and sums that several families of kernels take.
fn record(tape: &mut Tape, batch: usize) -> naevus::base::Result<()> {
    let model = UNet2DModel::load(&golden("models/unet-attention-classes"))?;
    let [h, w] = model.config.sample_size.unwrap_or([8, 8]);
    let sample = tape.input("sample", &[batch, h, w, model.config.in_channels], DType::F32);
    let timestep = tape.input("timestep", &[batch], DType::F32);
    let class = tape.input("class_labels", &[batch], DType::U32);
    let y = model.forward(tape, sample, timestep, Some(class))?;
    tape.output("sample", y);
    // Wider than the narrow model: what workgroup memory and trees are for.
    let wide = tape.input("wide", &[batch, 16, 16, 32], DType::F32);
    let weight = tape.input("weight", &[3, 3, 32, 32], DType::F32);
    let square = tape.input("square", &[32, 32], DType::F32);
    let y = tape.conv2d(wide, weight, None, &ops::conv2d::Conv2d::padded(1))?;
    let affine = tape.input("affine", &[32], DType::F32);
    let y = tape.group_norm(y, affine, affine, 4, 1e-5, true)?;
    let tokens = tape.reshape(y, &[batch, 256, 32])?;
    let tokens = tape.linear(tokens, square, None)?;
    let tokens = tape.attention(tokens, tokens, tokens, 2)?;
    let image = tape.reshape(tokens, &[batch, 16, 16, 32])?;
    let pooled = tape.global_average_pool(image)?;
    let rows = tape.reshape(tokens, &[batch, 256 * 32])?;
    let sum = tape.reduce(rows, 1, ops::reduce::Reduction::Sum)?;
    tape.output("tokens", tokens);
    tape.output("pooled", pooled);
    tape.output("sum", sum);
    Ok(())
}

/// Runs rows `rows` of a fixed batch and gives the bits of each row's results.
fn run(device: &Device, rows: std::ops::Range<usize>) -> (Vec<Vec<u32>>, Box<dyn Session>) {
    let mut tape = Tape::new();
    record(&mut tape, rows.len()).expect("it records");
    let inputs: Vec<(String, usize, DType)> = tape.inputs().map(|(name, info)| (name.to_string(), info.shape.numel(), info.dtype)).collect();
    let mut session = device.prepare(tape, &Options::default()).expect("the plan fits");
    for (name, len, dtype) in inputs {
        let of_batch = !["weight", "square", "affine"].contains(&name.as_str());
        let seed = rng::name_seed(&name);
        let values: Vec<f32> = match of_batch {
            true => rows.clone().flat_map(|k| rng::normal(seed, k as u64, 0, len / rows.len())).collect(),
            false => rng::normal(seed, 0, 0, len).into_iter().map(|v| v * 0.1).collect(),
        };
        match dtype {
            DType::U32 => session.write_indices(&name, &rows.clone().map(|k| k as u32 % 3).collect::<Vec<_>>()).unwrap(),
            _ => session.write(&name, &values).unwrap(),
        }
    }
    session.run().unwrap();
    let mut bits = vec![Vec::new(); rows.len()];
    for output in ["sample", "tokens", "pooled", "sum"] {
        let values = session.read(output).unwrap().data;
        for (row, values) in bits.iter_mut().zip(values.chunks_exact(values.len() / rows.len())) {
            row.extend(values.iter().map(|v| v.to_bits()));
        }
    }
    (bits, session)
}

/// The family that runs each step.
fn families(session: &dyn Session) -> Vec<String> {
    let steps = session.plan().steps().iter().zip(&session.plan().kernels);
    steps.map(|(step, kernel)| format!("{} {}", step.op.name, kernel.expect("a kernel takes each step").family)).collect()
}

/// Every row of the batch, against that row alone on a device opened anew. Gives the families that ran, and the bits.
fn rows_keep_their_bits(cache: &Path, what: &str) -> (Vec<String>, Vec<Vec<u32>>) {
    let (batch, session) = run(&tuned(cache), 0..3);
    for (k, expected) in batch.iter().enumerate() {
        let (alone, session) = run(&tuned(cache), k..k + 1);
        assert!(alone[0] == *expected, "{what}: row {k} has other bits alone, by {:?}", families(session.as_ref()));
    }
    (families(session.as_ref()), batch)
}

#[test]
fn whatever_family_is_chosen_a_row_keeps_its_bits() {
    if !has_adapter() {
        return;
    }
    let dir = TempDir::new().unwrap();
    all_proved(dir.path());
    let mut results = BTreeSet::from([rows_keep_their_bits(dir.path(), "as measured").1]);
    let keeper = keeper(dir.path());
    let (measured, _) = keeper.read();
    assert!(measured.families.len() > 10 && measured.kernels.values().any(|timed| timed.ms.len() > 1), "{measured:?}");
    // Another choice than the measured one, wherever the op has that family.
    let by_subgroups = adapters()[0].limits.subgroups.then_some("wide_subgroups");
    for forced in ["direct", "tiled", "shared", "rows", "wide", "tree", "whole"].into_iter().chain(by_subgroups) {
        let mut kept = measured.clone();
        for (key, family) in &mut kept.families {
            let op = ops::ALL.iter().find(|op| key.starts_with(&format!("{} ", op.name))).expect("the key begins with an op");
            if op.variants.iter().any(|v| v.family == forced) {
                *family = forced.to_string();
            }
        }
        kept.kernels.clear();
        std::fs::remove_file(&keeper.path).unwrap();
        keeper.write(&kept).unwrap();
        let (used, bits) = rows_keep_their_bits(dir.path(), forced);
        results.insert(bits);
        assert!(used.iter().any(|family| family.ends_with(&format!(" {forced}"))), "{forced} was not taken: {used:?}");
        assert_eq!(keeper.read().0.families, kept.families, "a kept choice was replaced");
    }
    // Families round differently: a choice by the batch would have shown.
    assert!(results.len() > 2, "all choices gave the same bits");
}

/// The batch that comes first decides for those that follow.
#[test]
fn the_family_is_the_items_and_not_the_batchs() {
    if !has_adapter() {
        return;
    }
    let dir = TempDir::new().unwrap();
    all_proved(dir.path());
    let first = families(run(&tuned(dir.path()), 0..2).1.as_ref());
    let (before, _) = keeper(dir.path()).read();
    for batch in [1, 5] {
        assert_eq!(families(run(&tuned(dir.path()), 0..batch).1.as_ref()), first, "batch {batch}");
    }
    assert_eq!(keeper(dir.path()).read().0.families, before.families);
}

#[test]
fn nothing_is_measured_or_kept_without_being_asked() {
    if !has_adapter() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let gpu: Arc<Gpu> = Gpu::open_with(0, &Settings { tune: Tune::Off, cache: Some(dir.path().to_path_buf()), ..Settings::default() }).unwrap();
    run(&Device::Gpu(gpu), 0..1);
    assert_eq!(keeper(dir.path()).read(), (Kept::default(), None));
}

/// `naevus forward` of the tiny UNet on the first adapter with a cache folder of its own.
struct Program {
    dir: TempDir,
}

impl Program {
    fn new() -> Program {
        let dir = TempDir::new().unwrap();
        let unet = UNet2DModel::load(&golden("models/unet-attention-classes")).unwrap();
        let [h, w] = unet.config.sample_size.unwrap_or([8, 8]);
        let mut io = Writer::new();
        let c = unet.config.in_channels;
        io.f32("sample", &[1, c, h, w], rng::normal(1, 0, 0, c * h * w)).unwrap();
        io.f32("timestep", &[1], vec![7.0]).unwrap();
        io.i32("class_labels", &[1], vec![1]).unwrap();
        io.write(&dir.path().join("in.safetensors")).unwrap();
        Program { dir }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Exit code, stderr and the output's bits.
    fn run(&self, out: &str, flags: &[&str]) -> (i32, String, Vec<u32>) {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let model = golden("models/unet-attention-classes").display().to_string();
        let (inputs, out) = (path("in.safetensors"), path(out));
        let args = ["forward", "--device", "0", "--component", "unet", "--model", &model, "--inputs", &inputs, "--out", &out, "--print-plan"];
        let output = Command::cargo_bin("naevus").unwrap().env("NAEVUS_CACHE", self.cache()).args(args).args(flags).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let bits = |store: Store| store.array("sample").unwrap().data.iter().map(|v| v.to_bits()).collect();
        (output.status.code().unwrap_or(-1), stderr, Store::open(Path::new(&out)).map(bits).unwrap_or_default())
    }

    fn edit(&self, edit: impl Fn(&mut Kept)) {
        let keeper = keeper(&self.cache());
        let (mut kept, note) = keeper.read();
        assert_eq!(note, None);
        edit(&mut kept);
        std::fs::remove_file(&keeper.path).unwrap();
        keeper.write(&kept).unwrap();
    }
}

/// The lines that name each step's kernel.
fn kernels(stderr: &str) -> Vec<&str> {
    stderr.lines().filter(|line| line.contains(" of family ")).collect()
}

#[test]
fn the_choice_is_kept_and_a_damaged_file_is_made_anew() {
    if !has_adapter() {
        return;
    }
    let program = Program::new();
    let (code, first, bits) = program.run("a", &["--tune"]);
    assert!(code == 0 && first.contains("proving the kernels of ") && first.contains(" for ") && first.contains(", once"), "{first}");
    assert!(kernels(&first).len() > 50, "{first}");
    let (code, second, again) = program.run("b", &["--tune"]);
    assert!(code == 0 && !second.contains(", once"), "{second}");
    assert_eq!(kernels(&first), kernels(&second));
    assert!(bits == again && !bits.is_empty(), "other bits by the same kernels");
    let file = keeper(&program.cache()).path;
    std::fs::write(&file, "[kept").unwrap();
    let (code, third, _) = program.run("c", &["--tune"]);
    let notes = third.lines().filter(|line| line.contains("no list of kernels") && line.ends_with("it is made anew")).count();
    assert!(code == 0 && notes == 1 && third.contains(", once"), "{third}");
    assert!(keeper(&program.cache()).read().1.is_none());
    let refused = Command::cargo_bin("naevus").unwrap().env("NAEVUS_CACHE", "").args(["check", "--device", "0", "--tune"]).output().unwrap();
    assert!(refused.status.code() == Some(2) && String::from_utf8_lossy(&refused.stderr).contains("naevus: --tune: there is no folder"));
}

#[test]
fn a_kernel_that_failed_its_self_test_is_never_chosen() {
    if !has_adapter() {
        return;
    }
    let program = Program::new();
    // The heuristic first, as it is without a file.
    let (code, plain, _) = program.run("a", &["--no-tune"]);
    let tiled = |stderr: &str| kernels(stderr).iter().filter(|line| line.contains(" conv2d ") && line.contains(" tiled ")).count();
    assert!(code == 0 && tiled(&plain) > 0 && !plain.contains(", once"), "{plain}");
    assert_eq!(program.run("b", &["--tune"]).0, 0);
    program.edit(|kept| {
        kept.proofs.insert("conv2d tiled".to_string(), "large: off by one".to_string());
        kept.families.iter_mut().for_each(|(_, family)| *family = "tiled".to_string());
    });
    for flags in [["--no-tune"], ["--tune"]] {
        let (code, without, _) = program.run("c", &flags);
        assert!(code == 0 && tiled(&without) == 0, "{flags:?}: {without}");
        assert!(kernels(&without).iter().any(|line| line.contains(" matmul ") && line.contains(" tiled ")), "{without}");
    }
    program.edit(|kept| {
        for variant in naevus::ops::conv2d::OP.variants {
            kept.proofs.insert(format!("conv2d {}", variant.name), "large: off by one".to_string());
        }
    });
    let (code, stderr, _) = program.run("d", &["--no-tune"]);
    assert!(code == 2 && stderr.contains("no conv2d kernel passed its self-test (direct: large: off by one)"), "{stderr}");
    // `check` proves anew and keeps its verdict.
    let check = |args: &[&str]| {
        let output = Command::cargo_bin("naevus")
            .unwrap()
            .env("NAEVUS_CACHE", program.cache())
            .args(["check", "--device", "0", "--filter", "conv2d"])
            .args(args)
            .output();
        output.unwrap().status.code()
    };
    assert_eq!(check(&["--sabotage", "conv2d"]), Some(1));
    assert_eq!(program.run("d", &["--no-tune"]).0, 2, "a broken shader's verdict was kept");
    assert_eq!(check(&[]), Some(0));
    let (code, stderr, _) = program.run("d", &["--no-tune"]);
    assert!(code == 0 && tiled(&stderr) == tiled(&plain), "{stderr}");
}

/// Two processes that find no file choose alike: the second waits for the first one's measurements.
#[test]
fn two_processes_at_once_choose_alike() {
    if !has_adapter() {
        return;
    }
    let program = Program::new();
    let (a, b) = std::thread::scope(|scope| {
        let other = scope.spawn(|| program.run("b", &["--tune"]));
        (program.run("a", &["--tune"]), other.join().unwrap())
    });
    assert_eq!((a.0, b.0), (0, 0), "{}{}", a.1, b.1);
    assert_eq!(kernels(&a.1), kernels(&b.1));
    assert!(a.2 == b.2, "other bits by the same kernels");
    assert_eq!([&a.1, &b.1].iter().filter(|stderr| stderr.contains(", once")).count(), 1, "both measured");
    assert!(keeper(&program.cache()).read().1.is_none());
}
