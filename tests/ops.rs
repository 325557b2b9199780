//! Every kernel on a device. Without an adapter the tests say that they are skipped; NAEVUS_REQUIRE_GPU=1 makes that a failure.

use std::sync::Arc;

use naevus::base::{DType, Result};
use naevus::exec::check::{prove_case, prove_op, prove_twin, storages};
use naevus::exec::gpu::{AdapterKind, Gpu, KernelRun, adapters};
use naevus::ops;
use naevus::ops::activation::Function;
use naevus::ops::binary::Operator;
use naevus::ops::reduce::Reduction;
use naevus::plan::{Op, Tape, Tensor, Variant};

fn gpu() -> Option<Arc<Gpu>> {
    if adapters().is_empty() {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped: no adapter");
        return None;
    }
    Some(Gpu::open(0).expect("the first adapter opens"))
}

/// Cooperative matrices multiply f16 alone, where the device has them; tests/matrices.rs proves their kernels everywhere.
fn is_run(gpu: &Gpu, variant: &Variant, floats: DType) -> bool {
    variant.runs_on(&gpu.limits()) && (!variant.needs_matrices() || floats == DType::F16)
}

#[test]
fn every_kernel_agrees_with_its_twin() {
    let Some(gpu) = gpu() else { return };
    // Software devices that are used for proofs have subgroups: lavapipe of 8, SwiftShader of 4.
    assert!(gpu.limits().subgroups || gpu.summary().kind != AdapterKind::Software, "no subgroups on {}", gpu.summary().name);
    let (mut proved, mut by_subgroups) = (0, 0);
    for op in ops::ALL {
        for &floats in storages(&gpu, op) {
            let proofs = prove_op(&gpu, op, floats, false);
            for variant in op.variants.iter().filter(|v| is_run(&gpu, v, floats)) {
                assert!(proofs.iter().any(|p| p.variant == variant.name), "{} {} {floats:?}: no case", op.name, variant.name);
            }
            for proof in &proofs {
                assert!(proof.passed, "{} {} {floats:?} {}: {}", proof.op, proof.variant, proof.case, proof.what);
            }
            println!("{} {floats:?}: worst {:.1e}", op.name, proofs.iter().map(|p| p.worst).fold(0.0, f64::max));
            proved += proofs.len();
            by_subgroups += op.variants.iter().filter(|v| v.needs_subgroups() && proofs.iter().any(|p| p.variant == v.name)).count();
        }
    }
    assert!(by_subgroups >= 5 || !gpu.limits().subgroups, "only {by_subgroups} kernels by subgroups");
    println!("{proved} proofs; {by_subgroups} kernels by subgroups {:?}", gpu.summary().subgroup);
    assert!(proved > 100, "only {proved} proofs");
}

#[test]
fn every_twin_agrees_with_pytorch() {
    for op in ops::ALL {
        let proofs = prove_twin(op);
        assert!(!proofs.is_empty(), "{}: no golden case", op.name);
        for proof in proofs {
            assert!(proof.passed, "{} {}: {}", proof.op, proof.case, proof.what);
        }
    }
}

/// Law: threads divide the work of a twin and not its sums. A pool of five has more threads than some cases have tasks, where products are shared.
#[test]
fn twins_do_not_depend_on_the_threads() {
    let mut compared = 0;
    for op in ops::ALL {
        for case in (op.cases)() {
            let inputs = ops::case::generated_inputs(op, &case);
            let with = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                pool.install(|| ops::case::run_twin(&case, &inputs)).expect("the twin runs").0
            };
            let bits = |array: &naevus::base::Array| array.data.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let alone = bits(&with(1));
            for threads in [2, 5] {
                assert!(alone == bits(&with(threads)), "{} {}: {threads} threads give other bits than one", op.name, case.name);
            }
            compared += 1;
        }
    }
    assert!(compared > 200, "only {compared} cases");
}

/// The value of the one step that `record` writes on `inputs`, by every variant on the device and by the twin.
fn on_both(gpu: &Arc<Gpu>, inputs: &[&[f32]], record: impl Fn(&mut Tape, &[Tensor]) -> Result<Tensor>) -> (Vec<Vec<f32>>, Vec<f32>) {
    let mut tape = Tape::new();
    let tensors: Vec<Tensor> = inputs.iter().enumerate().map(|(i, v)| tape.input(&i.to_string(), &[v.len()], DType::F32)).collect();
    let y = record(&mut tape, &tensors).expect("it records");
    let step = &tape.steps()[0];
    let accepted = step.op.variants.iter().filter(|v| v.runs_on(&gpu.limits()) && tape.view(step, |view| (v.accepts)(view)));
    let actual = accepted.map(|variant| KernelRun::new(gpu, &tape, variant, inputs, None).and_then(|run| run.output()).expect("it runs"));
    (actual.collect(), ops::case::run_tape(&tape, inputs, y).expect("the twin runs"))
}

/// Both are NaN, or equal to within 4e-6 of it; infinities have their sign.
fn agree(a: f32, b: f32) -> bool {
    a.is_nan() && b.is_nan() || a == b || (a - b).abs() <= 4e-6 * b.abs()
}

/// NaN, infinities and zeros come out of a kernel as they come out of the twin.
#[test]
fn odd_values_are_as_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -3.0, -2.5, -1.0, -0.5, 0.25, 1.0, 2.0, 3.0, 77.0, -77.0];
    let a: Vec<f32> = odd.iter().flat_map(|&a| [a; 14]).collect();
    let b: Vec<f32> = odd.iter().cycle().take(14 * 14).copied().collect();
    for operator in [Operator::Add, Operator::Sub, Operator::Mul, Operator::Min, Operator::Max, Operator::Pow] {
        let (actual, expected) = on_both(&gpu, &[&a, &b], |t, i| t.binary(i[0], i[1], operator));
        assert_eq!(actual.len(), 2);
        for (i, (y, expected)) in actual.iter().flat_map(|y| y.iter().zip(&expected)).enumerate() {
            let (a, b) = (a[i % a.len()], b[i % b.len()]);
            assert!(agree(*y, *expected), "{operator:?} of {a} and {b}: {y}, expected {expected}");
        }
    }
    let x: Vec<f32> = odd.iter().copied().chain([-104.5, 88.5, 89.5, 1e-3, 3.4e38]).collect();
    for function in [Function::Exp, Function::Log, Function::Relu6, Function::HardSigmoid, Function::Relu, Function::Abs, Function::Floor] {
        let (actual, expected) = on_both(&gpu, &[&x], |t, i| t.activation(i[0], function));
        for (x, (y, expected)) in x.iter().zip(actual[0].iter().zip(&expected)) {
            assert!(agree(*y, *expected), "{function:?} of {x}: {y}, expected {expected}");
        }
    }
    for reduction in [Reduction::Max, Reduction::Min] {
        for at in [0, 1, 63, 64, 200] {
            let mut row = vec![-1.0; 201];
            row[at] = f32::NAN;
            let (actual, expected) = on_both(&gpu, &[&row], |t, i| t.reduce(i[0], 0, reduction));
            assert_eq!(actual.len(), 2);
            assert!(expected[0].is_nan() && actual.iter().all(|y| y[0].is_nan()), "{reduction:?} with NaN at {at}: {actual:?}");
        }
    }
}

/// The harness must be able to fail: each float kernel, wrong by a tenth of a percent, is found.
#[test]
fn broken_kernels_are_found() {
    let Some(gpu) = gpu() else { return };
    for name in ["activation", "binary", "conv2d", "matmul", "attention", "channel_affine", "gated", "group_norm", "layer_norm", "reduce", "softmax"] {
        let op = ops::ALL.iter().find(|op| op.name == name).expect("the op exists");
        for &floats in storages(&gpu, op) {
            let proofs = prove_op(&gpu, op, floats, true);
            for variant in op.variants.iter().filter(|v| is_run(&gpu, v, floats)) {
                let of_variant: Vec<_> = proofs.iter().filter(|p| p.variant == variant.name).collect();
                assert!(of_variant.iter().any(|p| !p.passed), "{name} {} {floats:?}: broken, and nothing failed", variant.name);
            }
        }
    }
}

/// Faults of reductions by subgroups and by slices, which only rows of several of them show.
#[test]
fn reductions_that_forget_a_part_are_found() {
    let Some(gpu) = gpu() else { return };
    // The op, the variant, its case, what is replaced, and by what.
    let mutants = [
        ("group_norm", "wide_subgroups", "unet_block", "sum += partial[i];", ""),
        ("group_norm", "wide_subgroups", "unet_block", "i < own.subgroups", "i < own.subgroups / 2u"),
        ("group_norm", "wide_subgroups", "unet_block", "subgroupAdd(value)", "value"),
        ("layer_norm", "wide_subgroups", "widest", "sum += partial[i];", ""),
        ("softmax", "wide_subgroups", "far_apart", "max(largest, partial[i])", "largest"),
        ("softmax", "wide_subgroups", "far_apart", "subgroupMax(value)", "value"),
        ("layer_norm", "wide", "sd_320", "partial[first + i]", "partial[i]"),
        ("layer_norm", "wide", "ragged_100", "select(vec4<f32>(), v - mean, c < p.channels / 4u)", "v - mean"),
        ("layer_norm", "wide", "ragged_100", "own.lane / LANES", "own.lane / LANES / 2u"),
        ("softmax", "wide", "ragged_100", "select(vec4<f32>(), exp(v - shift), c < p.channels / 4u)", "exp(v - shift)"),
        ("softmax", "wide", "keys_320", "v4 = piece(base, c + 4u * LANES);", ""),
    ];
    for (op, variant, case, from, to) in mutants {
        let op = ops::ALL.iter().find(|o| o.name == op).expect("the op exists");
        let variant = op.variants.iter().find(|v| v.name == variant).expect("the kernel is there");
        if !variant.runs_on(&gpu.limits()) {
            continue;
        }
        let source = variant.wgsl(DType::F32);
        assert!(source.contains(from), "{} {}: {from} is not there", op.name, variant.name);
        let case = (op.cases)().into_iter().find(|c| c.name == case).expect("the case is there");
        let prove = |source: &str| prove_case(&gpu, op, &case, variant, DType::F32, Some(source)).expect("it takes the case");
        assert!(prove(&source).passed, "{} {} {}", op.name, variant.name, case.name);
        let proof = prove(&source.replace(from, to));
        assert!(!proof.passed && !proof.what.contains("refused"), "{} {}: {from} became {to}, and {}: {}", op.name, variant.name, case.name, proof.what);
    }
}

/// Kernels that round differently and claim to be of one family are found.
#[test]
fn a_family_that_is_none_is_found() {
    let Some(gpu) = gpu() else { return };
    let op = &ops::attention::OP;
    let claim = |v: &Variant| Variant { family: "one", ..*v };
    let variants: &'static [Variant] = Vec::leak(op.variants.iter().map(claim).collect());
    let proofs = prove_op(&gpu, Box::leak(Box::new(Op { variants, ..*op })), DType::F32, false);
    let found = proofs.iter().find(|p| !p.passed).expect("the kernels of attention add in different orders");
    assert!(found.what.contains("other bits than direct, of the same family"), "{}", found.what);
}

#[test]
fn a_vector_that_is_not_finite_is_near_to_nothing() {
    let Some(gpu) = gpu() else { return };
    let (x, table) = ([0.9, f32::INFINITY, f32::NAN, -7.0], [1.0, -1.0, 1.0]);
    let (actual, expected) = on_both(&gpu, &[&x, &table], |t, i| {
        let x = t.reshape(i[0], &[4, 1])?;
        let table = t.reshape(i[1], &[3, 1])?;
        t.nearest_row(x, table)
    });
    for y in actual.into_iter().chain([expected]) {
        assert!(y[0] == 1.0 && y[1].is_nan() && y[2].is_nan() && y[3] == -1.0, "{y:?}");
    }
}
