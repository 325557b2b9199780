use naevus::exec::{check, gpu};
fn main() {
    let i: usize = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    for a in gpu::adapters() {
        println!("{} {} {} {}", a.index, a.name, a.kind, a.driver);
    }
    let g = gpu::Gpu::open(i).unwrap();
    println!("{:?}", g.summary());
    for op in naevus::ops::ALL {
        for p in check::prove_op(&g, op) {
            println!("{} {} {} {} {}", if p.passed { "ok  " } else { "FAIL" }, p.op, p.variant, p.case, p.what);
        }
    }
    for op in naevus::ops::ALL {
        for case in (op.bench)() {
            for v in op.variants {
                let inputs = naevus::ops::case::generated_inputs(op, &case);
                let (tape, _) = naevus::ops::case::record(&case).unwrap();
                if !tape.view(&tape.steps()[0], |w| (v.accepts)(w)) {
                    continue;
                }
                let run = gpu::KernelRun::new(&g, &tape, v, &naevus::ops::case::bound(&tape, &inputs), None).unwrap();
                let mut t = run.time(std::time::Duration::from_millis(500)).unwrap();
                t.samples_ms.sort_by(f64::total_cmp);
                let ms = t.samples_ms[t.samples_ms.len() / 2];
                let s = std::time::Instant::now();
                let mut n = 0;
                while n < 3 || s.elapsed().as_millis() < 300 {
                    naevus::ops::case::run_twin(&case, &inputs).unwrap();
                    n += 1;
                }
                let cpu = s.elapsed().as_secs_f64() * 1e3 / n as f64;
                let c = tape.total_cost();
                println!(
                    "{} {} {}: {:.3} ms {} {:.1} GFLOP/s  | twin {:.3} ms {:.1} GFLOP/s",
                    op.name,
                    v.name,
                    case.name,
                    ms,
                    t.timer,
                    c.flops as f64 / ms / 1e6,
                    cpu,
                    c.flops as f64 / cpu / 1e6
                );
            }
        }
    }
}
