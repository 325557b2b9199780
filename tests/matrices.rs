//! Kernels by cooperative matrices on devices that have none: their own WGSL, with the matrices' calls replaced by functions that
//! do the same one value at a time, on every case of their ops. What stays unproved here is the units and the driver: `naevus
//! check` proves these on the device.

use std::collections::BTreeSet;
use std::sync::Arc;

use naevus::base::DType;
use naevus::exec::check::{Proof, prove_case};
use naevus::exec::gpu::{Gpu, adapters};
use naevus::ops;
use naevus::plan::{Case, Machine, Op, Variant};

/// Work of a case that emulation gets through in a second or two.
const MOST_FLOPS: u64 = 60_000_000;

/// Cases whose emulated kernels lavapipe compiles for minutes: wide heads, and most of the functions that may follow a sum.
const TOO_LONG: [&str; 6] = ["head_80", "head_160", "joined_item", "joined_all", "joined_blocks", "joined_few_in"];

fn flops(case: &Case) -> u64 {
    ops::case::record(case).expect("a case records").0.total_cost().flops
}

fn gpu() -> Option<Arc<Gpu>> {
    if adapters().first().is_none_or(|adapter| !adapter.f16) {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter with f16, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped: no adapter with f16");
        return None;
    }
    Some(Gpu::open(0).expect("the first adapter opens"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// `coopLoadT<Left>(&left[at], stride)` becomes `coopLoadT_Left_left(at, stride)`, and so on; with functions for all of these.
fn emulated(source: &str, of_8: bool) -> String {
    let types = if of_8 { "shaders/lib/matrices_of_8.wgsl" } else { "shaders/lib/matrices.wgsl" };
    assert!(source.contains(&read(types)), "{types} is not there");
    let mut rest = source.replace(&read(types), "").replace("enable wgpu_cooperative_matrix;", "");
    rest = rest.replace("coopMultiplyAdd(", "coopMultiplyAdd_emulated(");
    let mut used = BTreeSet::new();
    let mut text = String::new();
    while let Some(start) = rest.find("coopLoad").into_iter().chain(rest.find("coopStoreT(")).min() {
        text += &rest[..start];
        let call = rest[start..].to_string();
        let (before, after) = call.split_once('&').expect("a call takes a pointer");
        let (array, after) = after.split_once('[').expect("into an array");
        let (at, after) = after.split_once("], ").expect("and a stride");
        let (function, arguments) = before.split_once('(').expect("a call has arguments");
        let name = function.replace(['<', '>'], " ").trim().replace(' ', "_");
        let matrix = name.split_once('_').map_or("Sums", |(_, matrix)| matrix);
        used.insert((matrix.to_string(), array.to_string()));
        text += &format!("{name}_{array}({arguments}{at}, ");
        rest = after.to_string();
    }
    text += &rest;
    let library = read(if of_8 { "tests/emulated/matrices_8.wgsl" } else { "tests/emulated/matrices.wgsl" });
    let mut parts = library.split("//:");
    let types = parts.next().expect("the types come first").replace("RIGHT", &used.iter().find(|u| u.0 == "Right").expect("there is a right side").1);
    for part in parts {
        let (matrix, functions) = part.split_once('\n').expect("a part has a name");
        used.iter().filter(|u| u.0 == matrix).for_each(|u| text += &functions.replace("ARRAY", &u.1));
    }
    text + &types
}

/// With checks, and where the units are not.
fn anywhere(variant: &Variant) -> &'static Variant {
    Box::leak(Box::new(Variant { meant_for: Machine::Any, ..*variant }))
}

fn proofs(gpu: &Arc<Gpu>, op: &'static Op, variant: &Variant, change: impl Fn(String) -> String, cases: &[&str]) -> Vec<Proof> {
    let wanted = |case: &Case| if cases.is_empty() { flops(case) <= MOST_FLOPS && !TOO_LONG.contains(&case.name) } else { cases.contains(&case.name) };
    let proof = |case: &Case| {
        let (tape, _) = ops::case::record(case).expect("a case records");
        let constants = tape.view(&tape.steps()[0], |view| (variant.constants)(view));
        let source = change(emulated(&variant.wgsl_with(DType::F16, &constants), variant.meant_for == Machine::Matrices8));
        prove_case(gpu, op, case, anywhere(variant), DType::F16, Some(&source))
    };
    (op.cases)().iter().filter(|case| wanted(case)).filter_map(proof).collect()
}

fn by_matrices() -> impl Iterator<Item = (&'static Op, &'static Variant)> {
    ops::ALL.iter().flat_map(|op| op.variants.iter().filter(|v| v.needs_matrices()).map(|v| (*op, v)))
}

#[test]
fn the_emulated_kernels_agree_with_their_twins() {
    let Some(gpu) = gpu() else { return };
    let mut found = 0;
    for (op, variant) in by_matrices() {
        let proofs = proofs(&gpu, op, variant, |source| source, &[]);
        assert!(!proofs.is_empty(), "{} {}: {} cases", op.name, variant.name, proofs.len());
        for proof in &proofs {
            assert!(proof.passed, "{} {} {}: {}", op.name, variant.name, proof.case, proof.what);
        }
        println!("{} {}: {} cases, worst {:.1e}", op.name, variant.name, proofs.len(), proofs.iter().map(|p| p.worst).fold(0.0, f64::max));
        found += 1;
    }
    assert!(found >= 9, "{found} kernels by cooperative matrices");
}

/// Each fault is found by a case that is there for it.
#[test]
fn broken_ones_are_found() {
    let Some(gpu) = gpu() else { return };
    let mutants = [
        ("matmul", "matrices_128", "wide_tiles", "first_k += TILE_K", "first_k += 16u"),
        ("matmul", "matrices_160", "wide_tiles", "c9 = coopMultiplyAdd_emulated(l3, r9, c9);", ""),
        ("matmul", "matrices_128", "wide_tiles", "right[(k + 24u) * RIGHT_STRIDE + n4] = b3;", ""),
        ("conv2d", "matrices_160", "wide_tiles", "kw += 1u", "kw += 2u"),
        ("conv2d", "matrices_128", "wide", "iw >= p.in_w ||", ""),
        ("conv2d", "matrices_split", "split", "first_c += TILE_K", "first_c += 64u"),
        ("matmul", "matrices_split", "split", "left_value(1u, 16u)", "left_value(1u, 24u)"),
        ("matmul", "matrices_8", "wide_tiles", "c31 = coopMultiplyAdd_emulated(l3, r1, c31);", ""),
        ("conv2d", "matrices_8", "wide_tiles", "k < TILE_K; k += 8u", "k < TILE_K - 16u; k += 8u"),
        ("attention", "matrices", "rising", "o1 = scaled(o1, own, factor);", ""),
        ("attention", "matrices", "rising", "total *= factor;", ""),
        ("attention", "matrices", "many_keys", "< vec4<u32>(p.keys)", "< vec4<u32>(p.keys + 40u)"),
    ];
    for (op, variant, case, from, to) in mutants {
        let (op, variant) = by_matrices().find(|(o, v)| o.name == op && v.name == variant).expect("the kernel is there");
        let proofs = proofs(&gpu, op, variant, |source| if source.contains(from) { source.replace(from, to) } else { panic!("{from} is not there") }, &[case]);
        let [proof] = &proofs[..] else { panic!("{} {} does not take {case}", op.name, variant.name) };
        assert!(!proof.passed && !proof.what.contains("refused"), "{} {}: {from} became {to}, and {case}: {}", op.name, variant.name, proof.what);
    }
}
