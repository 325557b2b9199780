//! `naevus bench` from outside, and the times of a plan's steps.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use naevus::exec::Device;
use naevus::exec::gpu::adapters;
use naevus::models::{Component, Inputs, recognise};
use naevus::plan::{Options, Session, Tape, Timer};
use serde_json::Value;

fn unet() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/inpaint")
}

/// Every device of this machine: the CPU executor and the first adapter.
fn devices() -> Vec<Device> {
    let gpu = (!adapters().is_empty()).then(|| Device::open("0").unwrap());
    assert!(gpu.is_some() || std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
    [Device::Cpu].into_iter().chain(gpu).collect()
}

fn naevus(args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("naevus").expect("the binary is built").env("NAEVUS_CACHE", "").args(args).output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn feed(session: &mut dyn Session) {
    let inputs: Vec<(String, usize)> = session.plan().tape.inputs().map(|(name, info)| (name.to_string(), info.shape.numel())).collect();
    inputs.into_iter().for_each(|(name, len)| session.write(&name, &vec![0.0; len]).unwrap());
}

/// Timing runs the same steps: the outputs keep their bits, and every step has a time of the device's best clock.
#[test]
fn every_step_is_timed_on_the_devices_clock() {
    let model = recognise(&unet().join("unet")).unwrap().load().unwrap();
    let mut tape = Tape::new();
    let ports = model.ports(Component::Unet, 1).into_iter().filter(|port| !port.optional);
    let inputs = Inputs::new(ports.map(|port| (port.name.clone(), tape.input(&port.name, &port.shape, port.dtype))).collect::<Vec<_>>());
    for output in model.record(&mut tape, Component::Unet, &inputs).unwrap() {
        tape.output(&output.name, output.tensor);
    }
    for device in devices() {
        let mut session = device.prepare(tape.clone(), &Options::default()).unwrap();
        feed(session.as_mut());
        session.run().unwrap();
        let expected = session.read("sample").unwrap();
        let start = std::time::Instant::now();
        let times = session.run_timed().unwrap();
        let wall_ms = start.elapsed().as_secs_f64() * 1e3;
        assert_eq!(session.read("sample").unwrap(), expected);
        let timer = if device.gpu().is_some_and(|gpu| gpu.summary().timestamps) { Timer::Gpu } else { Timer::Wall };
        assert_eq!((times.ms.len(), times.timer), (session.plan().steps().len(), timer));
        let sum: f64 = times.ms.iter().sum();
        // A pass is inside the call; most of a model's steps take longer than a tick.
        assert!(sum > 0.0 && sum <= wall_ms, "{sum} ms of steps in a call of {wall_ms} ms");
        assert!(times.ms.iter().filter(|&&ms| ms > 0.0).count() * 2 > times.ms.len(), "{:?}", times.ms);
    }
}

/// Whole images have a row for the batch and one for its steps; what they cost is what the parts cost.
#[test]
fn whole_images_are_timed() {
    let model = unet();
    for device in if adapters().is_empty() { vec!["cpu"] } else { vec!["cpu", "gpu"] } {
        let args = ["bench", "synthesize", "--model", model.to_str().unwrap(), "--steps", "3", "--seconds", "0.01", "--device", device, "--json"];
        let (code, stdout, stderr) = naevus(&args);
        assert_eq!(code, 0, "{stderr}");
        let rows = rows(&stdout);
        let [batch, step] = &rows[..] else { panic!("{stdout}") };
        assert_eq!((&batch["name"], &step["name"]), (&Value::from("synthesize.batch"), &Value::from("synthesize.step")));
        let number = |row: &Value, field: &str| row[field].as_f64().unwrap();
        assert!(batch["proved"] == true && step["proved"] == true && number(batch, "flops") > 3.0 * number(step, "flops"));
        assert!(number(batch, "median_ms") > number(step, "median_ms"), "{stdout}");
    }
    let (code, _, stderr) = naevus(&["bench", "synthesize", "--device", "cpu"]);
    assert!(code == 2 && stderr.contains("--model"), "{stderr}");
}

fn rows(text: &str) -> Vec<Value> {
    let report: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    report["rows"].as_array().expect("rows").clone()
}

#[test]
fn a_model_has_rows_for_the_whole_the_sum_and_every_layer() {
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("old.json");
    let (model, old) = (unet(), old.to_str().unwrap());
    let model = model.to_str().unwrap();
    for device in if adapters().is_empty() { vec!["cpu"] } else { vec!["cpu", "gpu"] } {
        let args = ["bench", "unet", "--model", model, "--seconds", "0.05", "--device", device];
        let (code, stdout, stderr) = naevus(&[&args[..], &["--json", "--export", "json", old]].concat());
        assert_eq!(code, 0, "{stderr}");
        let rows = rows(&stdout);
        assert_eq!((&rows[0]["name"], &rows[1]["name"]), (&Value::from("unet.forward"), &Value::from("unet.kernels")));
        let median = |row: &Value| row["median_ms"].as_f64().unwrap();
        let layers: f64 = rows[2..].iter().map(median).sum();
        let sum = median(&rows[1]);
        // Medians of parts against the median of their sum, over at least five runs of a busy machine.
        assert!(rows.len() > 20 && (layers / sum - 1.0).abs() < 0.5, "{layers} ms of layers, {sum} ms in all");
        assert!(rows.iter().all(|row| row["proved"] == true && row["runs"].as_u64().unwrap() >= 1 && row["flops"].is_u64()));
        assert!(rows[2..].iter().any(|row| row["name"].as_str().unwrap().ends_with(" conv2d")));

        let (code, stdout, stderr) = naevus(&[&args[..], &["--compare", old]].concat());
        assert_eq!(code, 0, "{stderr}");
        for part in ["unet.forward plan", "unet.kernels sum", "% of the roofline, bound by", "compared: ", "share calls", "layer, kernel, output"] {
            assert!(stdout.contains(part), "no `{part}` in {stdout}");
        }
    }
}
