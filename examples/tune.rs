// tune <op> <case substring> <wgsl file> : time an alternative source of the "tiled" variant
use naevus::exec::gpu;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let g = gpu::Gpu::open(0).unwrap();
    let op = naevus::ops::ALL.iter().find(|o| o.name == a[1]).unwrap();
    for case in (op.bench)() {
        if !case.name.contains(&a[2]) {
            continue;
        }
        let inputs = naevus::ops::case::generated_inputs(op, &case);
        let (tape, _) = naevus::ops::case::record(&case).unwrap();
        let (twin, _) = naevus::ops::case::run_twin(&case, &inputs).unwrap();
        let v = op.variants.last().unwrap();
        let lib = include_str!("../shaders/lib/elem_f32.wgsl");
        for f in &a[3..] {
            let src = format!("{lib}\n{}", std::fs::read_to_string(f).unwrap());
            let run = gpu::KernelRun::new(&g, &tape, v, &naevus::ops::case::bound(&tape, &inputs), Some(&src)).unwrap();
            let c = naevus::base::compare(&run.output().unwrap(), &twin.data, op.tolerance);
            let mut t = run.time(std::time::Duration::from_millis(1000)).unwrap();
            t.samples_ms.sort_by(f64::total_cmp);
            let ms = t.samples_ms[t.samples_ms.len() / 2];
            println!(
                "{f} {} {}: {:.3} ms (min {:.3}) {:.2} GFLOP/s {} {}",
                op.name,
                case.name,
                ms,
                t.samples_ms[0],
                tape.total_cost().flops as f64 / ms / 1e6,
                c.passed,
                c.what
            );
        }
    }
}
