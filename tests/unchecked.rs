//! Kernels run without wgpu's runtime checks only where they were proved with them and then without them, to the same bits.

use std::collections::BTreeMap;
use std::path::Path;

use naevus::base::{Array, DType, rng};
use naevus::exec::check::prove_unchecked;
use naevus::exec::gpu::adapters;
use naevus::exec::kept::{Identity, Keeper, Kept, PASSED};
use naevus::exec::{Checks, Device, Settings, Tune};
use naevus::ops;
use naevus::ops::conv2d::Conv2d;
use naevus::plan::{Options, Tape, Variant};

fn has_adapter() -> bool {
    let found = !adapters().is_empty();
    assert!(found || std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
    if !found {
        println!("skipped: no adapter");
    }
    found
}

fn open(cache: Option<&Path>, checks: Checks, tune: Tune) -> Device {
    Device::open_with("0", &Settings { checks, tune, cache: cache.map(Path::to_path_buf), ..Settings::default() }).unwrap()
}

fn keeper(cache: &Path) -> Keeper {
    Keeper::new(cache, Identity::of(&adapters()[0]))
}

/// A convolution and a group norm of odd sizes: tiles hang over every edge.
fn output(device: &Device) -> Array {
    let shapes: [(&str, &[usize]); 4] = [("x", &[2, 9, 7, 12]), ("w", &[3, 3, 12, 20]), ("scale", &[20]), ("shift", &[20])];
    let mut tape = Tape::new();
    let [x, w, scale, shift] = shapes.map(|(name, shape)| tape.input(name, shape, DType::F32));
    let y = tape.conv2d(x, w, None, &Conv2d::padded(1)).unwrap();
    let y = tape.group_norm(y, scale, shift, 4, 1e-5, false).unwrap();
    tape.output("y", y);
    let mut session = device.prepare(tape, &Options::default()).unwrap();
    for (name, shape) in shapes {
        session.write(name, &rng::normal(rng::name_seed(name), 0, 0, shape.iter().product())).unwrap();
    }
    session.run().unwrap();
    session.read("y").unwrap()
}

fn unchecked(device: &Device) -> Vec<String> {
    device.gpu().unwrap().unchecked_kernels()
}

/// Kernels by cooperative matrices take f16 alone, on few devices, and not every device has subgroups.
fn is_everywhere(variant: &Variant) -> bool {
    !variant.needs_matrices() && !variant.needs_subgroups()
}

/// Tuned into a folder of its own: kernels are proved twice, kept, and run without checks to the same bits, in the next start too.
#[test]
fn what_was_proved_twice_runs_unchecked_to_the_same_bits() {
    if !has_adapter() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let first = open(Some(dir.path()), Checks::Drop, Tune::On);
    let dropped = output(&first);
    let kernels = unchecked(&first);
    assert!(["conv2d ", "group_norm "].iter().all(|op| kernels.iter().any(|kernel| kernel.starts_with(op))), "{kernels:?}");
    let proofs = keeper(dir.path()).read().0.proofs;
    let of_conv: Vec<&String> =
        ops::conv2d::OP.variants.iter().filter(|v| is_everywhere(v)).map(|v| &proofs[&format!("conv2d {} unchecked", v.name)]).collect();
    assert!(of_conv.iter().all(|verdict| *verdict == PASSED), "{of_conv:?}");

    // The same choice of kernels with their checks.
    let checked = open(Some(dir.path()), Checks::Keep, Tune::On);
    assert_eq!(output(&checked), dropped);
    assert!(unchecked(&checked).is_empty());
    let again = open(Some(dir.path()), Checks::Drop, Tune::On);
    assert_eq!(output(&again), dropped);
    assert!(!unchecked(&again).is_empty());
}

/// Without a proof, with half of it, or with one that failed, a kernel keeps its checks.
#[test]
fn what_was_not_proved_twice_stays_checked() {
    if !has_adapter() {
        return;
    }
    let expected = output(&open(None, Checks::Keep, Tune::Off));
    let bare = open(None, Checks::Drop, Tune::Off);
    assert_eq!((output(&bare), unchecked(&bare)), (expected.clone(), Vec::new()));
    let is_software = bare.gpu().unwrap().summary().kind == naevus::exec::gpu::AdapterKind::Software;
    assert_eq!(open(None, Checks::Auto, Tune::Off).gpu().unwrap().drops_checks(), !is_software);

    let keys = |suffix: &'static str, verdict: &'static str| {
        let all = ops::ALL.iter().flat_map(|op| op.variants.iter().map(move |v| format!("{} {}{suffix}", op.name, v.name)));
        all.map(|key| (key, verdict.to_string())).collect::<BTreeMap<_, _>>()
    };
    for (with_checks, without, runs) in
        [(PASSED, None, false), (PASSED, Some("did not come back"), false), ("wrong", Some(PASSED), false), (PASSED, Some(PASSED), true)]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut proofs = keys("", with_checks);
        proofs.extend(without.map(|verdict| keys(" unchecked", verdict)).unwrap_or_default());
        keeper(dir.path()).write(&Kept { proofs, ..Kept::default() }).unwrap();
        let device = open(Some(dir.path()), Checks::Drop, Tune::Off);
        if with_checks == PASSED {
            assert_eq!(output(&device), expected);
        } else {
            // Nothing that failed runs at all.
            let mut tape = Tape::new();
            let x = tape.input("x", &[4], DType::F32);
            let y = tape.add(x, x).unwrap();
            tape.output("y", y);
            assert!(device.prepare(tape, &Options::default()).is_err());
        }
        assert_eq!(!unchecked(&device).is_empty(), runs, "{with_checks} and {without:?}");
    }
}

/// The second proof is a proof: a shader that is a tenth of a percent wrong does not pass it.
#[test]
fn a_broken_shader_is_found_without_checks_too() {
    if !has_adapter() {
        return;
    }
    let device = open(None, Checks::Drop, Tune::Off);
    let gpu = device.gpu().unwrap();
    for op in [&ops::group_norm::OP, &ops::matmul::OP] {
        let good = prove_unchecked(gpu, op, DType::F32, false, &|_| true);
        assert!(!good.is_empty() && good.iter().all(|p| p.passed && !p.checked), "{good:?}");
        for variant in op.variants.iter().filter(|v| is_everywhere(v)) {
            let broken = prove_unchecked(gpu, op, DType::F32, true, &|v| v.name == variant.name);
            assert!(broken.iter().any(|p| !p.passed), "{} {}", op.name, variant.name);
        }
    }
    // Only what is fit is run.
    assert!(prove_unchecked(gpu, &ops::matmul::OP, DType::F32, false, &|_| false).is_empty());
}
