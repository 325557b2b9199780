//! Every kernel on a device. Without an adapter the tests say that they are skipped; NAEVUS_REQUIRE_GPU=1 makes that a failure.

use std::sync::Arc;

use naevus::exec::check::{prove_op, prove_twin};
use naevus::exec::gpu::{Gpu, adapters};
use naevus::ops;

fn gpu() -> Option<Arc<Gpu>> {
    if adapters().is_empty() {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped: no adapter");
        return None;
    }
    Some(Gpu::open(0).expect("the first adapter opens"))
}

#[test]
fn every_kernel_agrees_with_its_twin() {
    let Some(gpu) = gpu() else { return };
    let mut proved = 0;
    for op in ops::ALL {
        let proofs = prove_op(&gpu, op, false);
        for variant in op.variants {
            assert!(proofs.iter().any(|p| p.variant == variant.name), "{} {}: no case", op.name, variant.name);
        }
        for proof in &proofs {
            assert!(proof.passed, "{} {} {}: {}", proof.op, proof.variant, proof.case, proof.what);
        }
        proved += proofs.len();
    }
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

/// The harness must be able to fail: each float kernel, wrong by a tenth of a percent, is found.
#[test]
fn broken_kernels_are_found() {
    let Some(gpu) = gpu() else { return };
    for name in ["activation", "conv2d", "matmul", "attention", "group_norm"] {
        let op = ops::ALL.iter().find(|op| op.name == name).expect("the op exists");
        let proofs = prove_op(&gpu, op, true);
        for variant in op.variants {
            let of_variant: Vec<_> = proofs.iter().filter(|p| p.variant == variant.name).collect();
            assert!(of_variant.iter().any(|p| !p.passed), "{name} {}: broken, and nothing failed", variant.name);
        }
    }
}
