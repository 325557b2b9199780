//! ONNX graphs: every operator against onnxruntime, published files where ../shared is, roles, and files that lie.

mod onnx_files;

use std::path::{Path, PathBuf};

use naevus::base::array::relative_rms;
use naevus::base::{Array, Result};
use naevus::exec::Device;
use naevus::exec::gpu::adapters;
use naevus::models::{Component, Inputs, Model, recognise};
use naevus::plan::{Layout, Options, Plan, Tape};
use naevus::weights::{Store, Writer};
use onnx_files::{Attribute, Graph, Node, Numbers, file};

const ALLOWED: f64 = 1e-4;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/onnx")
}

fn devices() -> Vec<Device> {
    if adapters().is_empty() {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
        return vec![Device::Cpu];
    }
    vec![Device::Cpu, Device::open("0").unwrap()]
}

/// One forward: outputs by name, in the file's order of axes.
fn run(device: &Device, model: &dyn Model, component: Component, given: &[(&str, Array)]) -> Result<Vec<(String, Array)>> {
    let mut tape = Tape::new();
    let (mut inputs, mut values) = (Vec::new(), Vec::new());
    for port in model.ports(component, 1) {
        let (_, array) = given.iter().find(|(name, _)| *name == port.name).unwrap_or_else(|| panic!("no value for {}", port.name));
        let array = if port.layout == Layout::Image { array.to_channels_last() } else { array.clone() };
        inputs.push((port.name.clone(), tape.input(&port.name, array.dims(), port.dtype)));
        values.push((port.name, array.data));
    }
    let outputs = model.record(&mut tape, component, &Inputs::new(inputs))?;
    outputs.iter().for_each(|output| tape.output(&output.name, output.tensor));
    let mut session = device.prepare(tape, &Options::default())?;
    for (name, values) in &values {
        session.write(name, values)?;
    }
    session.run()?;
    let read = |output: &naevus::models::Output| -> Result<(String, Array)> {
        let array = session.read(&output.name)?;
        Ok((output.name.clone(), if output.layout == Layout::Image { array.to_channels_first() } else { array }))
    };
    outputs.iter().map(read).collect()
}

fn inputs_of(io: &Store) -> Vec<(&str, Array)> {
    io.names().filter_map(|name| name.strip_prefix("in/").map(|port| (port, io.array(name).unwrap()))).collect()
}

fn sampled(values: &[f32]) -> Vec<f32> {
    if values.len() <= 64 { values.to_vec() } else { (0..64).map(|i| values[i * values.len() / 64]).collect() }
}

/// Values that are equal, infinities among them, or close.
fn close(ours: &[f32], told: &[f32]) -> bool {
    let finite = |values: &[f32]| values.iter().map(|v| if v.is_finite() { *v } else { 0.0 }).collect::<Vec<_>>();
    let same_ends = ours.len() == told.len() && ours.iter().zip(told).all(|(a, b)| a.is_finite() == b.is_finite() && (a.is_finite() || a == b));
    same_ends && relative_rms(&finite(ours), &finite(told)) <= ALLOWED
}

/// Each branch of tools/golden/onnx_operators.py is one form of an operator.
#[test]
fn every_operator_is_onnxruntimes() {
    let mut faults = Vec::new();
    for opset in [9, 13, 18, 21] {
        let name = format!("operators-opset{opset}");
        let io = Store::open(&goldens().join(format!("{name}.safetensors"))).unwrap();
        let model = recognise(&goldens().join(format!("{name}.onnx"))).unwrap().load().unwrap();
        for device in devices() {
            let outputs = run(&device, model.as_ref(), Component::Onnx, &inputs_of(&io)).unwrap();
            let mut worst = 0.0f64;
            for (output, array) in &outputs {
                let told = io.array(&format!("out/{output}")).unwrap();
                let shape: Vec<usize> = io.integers(&format!("shape/{output}")).unwrap().iter().map(|&d| d as usize).collect();
                let ours = sampled(&array.data);
                if array.dims() != shape || !close(&ours, &told.data) {
                    let error = relative_rms(&ours, &told.data);
                    faults.push(format!("{name} {output} on {}: {:?}, expected {shape:?}, relative rms {error:.1e}", device.backend(), array.dims()));
                } else if told.data.iter().all(|v| v.is_finite()) {
                    worst = worst.max(relative_rms(&ours, &told.data));
                }
            }
            assert_eq!(outputs.len(), io.names().filter(|name| name.starts_with("out/")).count());
            println!("{name} on {}: {} outputs, worst relative rms {worst:.1e}", device.backend(), outputs.len());
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn vaelight_is_onnxruntimes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/external/vaelight");
    if !folder.is_dir() {
        println!("skipped: ../shared absent");
        return;
    }
    for (name, path) in [("vaelight-encoder", "VAEencoder.onnx"), ("vaelight-preview", "VAEpreview.onnx")] {
        let io = Store::open(&goldens().join(format!("{name}.safetensors"))).unwrap();
        let found = recognise(&folder.join(path)).unwrap();
        assert_eq!(found.name(), "ONNX graph");
        let model = found.load().unwrap();
        for device in devices() {
            for (output, array) in run(&device, model.as_ref(), Component::Onnx, &inputs_of(&io)).unwrap() {
                let told = io.array(&format!("out/{output}")).unwrap();
                let error = relative_rms(&array.data, &told.data);
                println!("{name} {output} on {}: {:?}, relative rms {error:.1e}", device.backend(), array.dims());
                assert!(array.dims() == told.dims() && error <= ALLOWED, "{name} {output} on {}: {error:.1e}", device.backend());
            }
        }
    }
}

/// x `[batch, 3, 4, 4]` -> pool -> flatten -> Gemm -> Softmax: features before the product, logits before the softmax.
fn classifier(batch: &[&str]) -> Graph {
    let mut graph = Graph::new(13);
    graph.input("x", &[batch[0], "3", "4", "4"]).output("p", &[batch[0], "2"]);
    graph.tensor("w", &[2, 3], Numbers::F32(vec![1.0, 2.0, 3.0, -1.0, 0.5, 0.25])).tensor("b", &[2], Numbers::F32(vec![0.5, -0.5]));
    graph.node(Node::new("GlobalAveragePool", &["x"], &["g"])).node(Node::new("Flatten", &["g"], &["f"]));
    graph.node(Node::new("Gemm", &["f", "w", "b"], &["l"]).with("transB", Attribute::Integer(1)));
    graph.node(Node::new("Softmax", &["l"], &["p"]).with("axis", Attribute::Integer(1)));
    graph
}

#[test]
fn a_graph_serves_as_a_classifier() {
    let (dir, _) = file(&classifier(&["batch"]).bytes());
    let model = recognise(&dir.path().join("model.onnx")).unwrap().load().unwrap();
    assert_eq!(model.components(), [Component::Onnx, Component::Classifier]);
    assert_eq!(model.preprocess().unwrap().input_size, [4, 4]);
    assert_eq!(model.parameters(), 8);
    let pixels = Array::new(&[2, 3, 4, 4], (0..96).map(|i| i as f32).collect()).unwrap();
    let outputs = run(&Device::Cpu, model.as_ref(), Component::Classifier, &[("pixel_values", pixels.clone())]).unwrap();
    let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["features", "logits"]);
    assert_eq!((outputs[0].1.dims(), outputs[0].1.data[0]), (&[2, 3][..], 7.5));
    assert_eq!(outputs[1].1.data[0], 7.5 + 2.0 * 23.5 + 3.0 * 39.5 + 0.5);
    // timm's configuration beside the file says how pixels are prepared.
    let config =
        r#"{"architecture": "resnet18", "label_names": ["a", "b"], "pretrained_cfg": {"input_size": [3, 8, 8], "mean": [0.5, 0.5, 0.5], "crop_pct": 0.9}}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let told = recognise(&dir.path().join("model.onnx")).unwrap().load().unwrap();
    let preprocess = told.preprocess().unwrap();
    assert_eq!((preprocess.input_size, preprocess.mean, preprocess.assumed), ([4, 4], [0.5; 3], false));
    assert_eq!(told.class_names().unwrap(), ["a", "b"]);
    // The same of a graph that is fixed to one image: two of them are two records.
    let (dir, _) = file(&classifier(&["1"]).bytes());
    let fixed = recognise(&dir.path().join("model.onnx")).unwrap().load().unwrap();
    let twice = run(&Device::Cpu, fixed.as_ref(), Component::Classifier, &[("pixel_values", pixels)]).unwrap();
    assert_eq!((twice[1].1.dims(), &twice[1].1.data), (outputs[1].1.dims(), &outputs[1].1.data));
}

#[test]
fn a_graph_serves_as_a_segmenter() {
    let mut graph = Graph::new(13);
    graph.input("x", &["n", "3", "h", "w"]).output("y", &["n", "2", "h", "w"]).tensor("w", &[2, 3, 1, 1], Numbers::F32(vec![1.0; 6]));
    graph.node(Node::new("Conv", &["x", "w"], &["y"]));
    let (dir, _) = file(&graph.bytes());
    let model = recognise(&dir.path().join("model.onnx")).unwrap().load().unwrap();
    assert_eq!(model.components(), [Component::Onnx, Component::Segmenter]);
    let outputs = run(&Device::Cpu, model.as_ref(), Component::Segmenter, &[("pixel_values", Array::new(&[1, 3, 2, 2], vec![0.5; 12]).unwrap())]).unwrap();
    assert_eq!((outputs[0].0.as_str(), outputs[0].1.dims(), outputs[0].1.data[0]), ("logits", &[1, 2, 2, 2][..], 1.5));
    // The same words of a graph that halves its image.
    let mut half = Graph::new(13);
    half.input("x", &["n", "3", "h", "w"]).output("y", &["n", "2", "h", "w"]).tensor("w", &[2, 3, 1, 1], Numbers::F32(vec![1.0; 6]));
    half.node(Node::new("Conv", &["x", "w"], &["y"]).with("strides", Attribute::Integers(vec![2, 2])));
    let (dir, _) = file(&half.bytes());
    assert_eq!(recognise(&dir.path().join("model.onnx")).unwrap().load().unwrap().components(), [Component::Onnx]);
}

/// Every element type, raw and as a list, is the same number.
#[test]
fn element_types_are_floats_and_integers() {
    let half = vec![0x3e00u16, 0x4000];
    let brain = vec![0x3fc0u16, 0x4000];
    let floats = [
        Numbers::F32(vec![1.5, 2.0]),
        Numbers::RawF32(vec![1.5, 2.0]),
        Numbers::F64(vec![1.5, 2.0]),
        Numbers::RawF64(vec![1.5, 2.0]),
        Numbers::F16(half.clone()),
        Numbers::RawF16(half),
        Numbers::BF16(brain),
    ];
    for numbers in floats {
        let mut graph = Graph::new(13);
        graph.input("x", &["2"]).output("y", &["2"]).tensor("c", &[2], numbers.clone()).node(Node::new("Add", &["x", "c"], &["y"]));
        let (dir, _) = file(&graph.bytes());
        let model = recognise(&dir.path().join("model.onnx")).unwrap().load().unwrap();
        let outputs = run(&Device::Cpu, model.as_ref(), Component::Onnx, &[("x", Array::new(&[2], vec![1.0, 1.0]).unwrap())]).unwrap();
        assert_eq!(outputs[0].1.data, [2.5, 3.0], "{numbers:?}");
    }
    for numbers in [Numbers::I64(vec![1, 2]), Numbers::RawI64(vec![1, 2]), Numbers::I32(vec![1, 2]), Numbers::U8(vec![1, 2]), Numbers::I8(vec![1, 2])] {
        let mut graph = Graph::new(13);
        graph.input("x", &["2"]).output("y", &["2"]).tensor("c", &[2], numbers.clone());
        graph.node(Node::new("Cast", &["c"], &["f"]).with("to", Attribute::Integer(1))).node(Node::new("Mul", &["x", "f"], &["y"]));
        let (dir, _) = file(&graph.bytes());
        let model = recognise(&dir.path().join("model.onnx")).unwrap().load().unwrap();
        let outputs = run(&Device::Cpu, model.as_ref(), Component::Onnx, &[("x", Array::new(&[2], vec![3.0, 3.0]).unwrap())]).unwrap();
        assert_eq!(outputs[0].1.data, [3.0, 6.0], "{numbers:?}");
    }
}

fn naevus(args: &[&str]) -> (i32, String, String) {
    let output = assert_cmd::Command::cargo_bin("naevus").expect("the binary is built").args(args).output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn the_program_inspects_and_runs_a_graph() {
    let (dir, path) = file(&classifier(&["batch"]).bytes());
    let model = path.to_str().unwrap();
    let (code, stdout, stderr) = naevus(&["inspect", model]);
    assert_eq!(code, 0, "{stderr}");
    for part in ["ONNX graph", "producer: \"naevus\"", "opset: 13", "x [batch, 3, 4, 4]", "p [batch, 2]", "\"Gemm\":1", "classifier (ONNX graph)"] {
        assert!(stdout.contains(part), "{part} is not in {stdout}");
    }
    let (inputs, out) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let mut writer = Writer::new();
    writer.f32("x", &[1, 3, 4, 4], vec![0.25; 48]).unwrap();
    writer.write(&inputs).unwrap();
    let paths = [inputs.to_str().unwrap(), out.to_str().unwrap()];
    let (code, _, stderr) = naevus(&["forward", "--device", "cpu", "--model", model, "--component", "onnx", "--inputs", paths[0], "--out", paths[1]]);
    assert_eq!(code, 0, "{stderr}");
    let told = Store::open(&out).unwrap().array("p").unwrap();
    let scores = [0.25f32 * 6.0 + 0.5, -0.25 * 0.25 - 0.5].map(f32::exp);
    assert!((told.data[0] - scores[0] / (scores[0] + scores[1])).abs() < 1e-6 && told.dims() == [1, 2], "{told:?}");
}

/// What `inspect` does with a file: load, record, plan.
fn attempt(path: &Path) -> Result<()> {
    let model = recognise(path)?.load()?;
    for component in model.components() {
        let ports = model.ports(component, 1);
        if ports.iter().any(|port| port.shape.iter().fold(1usize, |n, &d| n.saturating_mul(d)) > 1 << 24) {
            continue;
        }
        let mut t = Tape::new();
        let inputs: Vec<_> = ports.iter().map(|port| (port.name.clone(), t.input(&port.name, &port.shape, port.dtype))).collect();
        let outputs = model.record(&mut t, component, &Inputs::new(inputs))?;
        outputs.iter().for_each(|output| t.output(&output.name, output.tensor));
        Plan::freeze(t, &Options::default())?;
    }
    Ok(())
}

fn refusal(bytes: &[u8]) -> String {
    let (_dir, path) = file(bytes);
    let text = attempt(&path).expect_err("a refusal").to_string();
    assert!(!text.contains('\n') && text.len() < 16_384, "{text}");
    text
}

fn holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text}\nexpected: {part}");
    }
}

#[test]
fn cut_and_changed_files_are_errors_or_other_graphs() {
    let whole = std::fs::read(goldens().join("shapes-opset21.onnx")).unwrap();
    let (_dir, path) = file(&whole);
    attempt(&path).unwrap();
    let mut held = 0;
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        held += usize::from(attempt(&path).is_err());
    }
    // A file that ends between two fields of its last message is a shorter message.
    assert!(held > whole.len() - 16, "{held} of {} were refused", whole.len());
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= [1, 0x80, 0xff, 0x12][at % 4];
        std::fs::write(&path, &bytes).unwrap();
        if let Err(error) = attempt(&path) {
            assert!(!error.to_string().contains('\n') && !error.fact().is_empty(), "{error}");
        }
    }
}

/// x `[1, 3, 4, 4]` through one node.
fn single(node: Node) -> Graph {
    let mut graph = Graph::new(13);
    graph.input("x", &["1", "3", "4", "4"]).output("y", &["1", "3", "4", "4"]).node(node.named("the_node"));
    graph
}

#[test]
fn what_is_not_supported_is_named() {
    let text = refusal(&single(Node::new("Loop", &["x"], &["y"])).bytes());
    holds(&text, &["node `the_node`: operator Loop is not supported, expected one of the "]);
    let text = refusal(&single(Node::new("Reluu", &["x"], &["y"])).bytes());
    holds(&text, &["operator Reluu is not supported", "Relu among them"]);
    let text = refusal(&single(Node::new("Gelu", &["x"], &["y"]).of("com.microsoft")).bytes());
    holds(&text, &["node `the_node`: operator Gelu of the domain com.microsoft is not supported"]);
    let text = refusal(&single(Node::new("Relu", &["x"], &["y"]).with("slope", Attribute::Float(0.1))).bytes());
    holds(&text, &["node `the_node`: operator Relu attribute slope is not supported, expected none"]);
    let pool = |name: &str, value: Attribute| Node::new("MaxPool", &["x"], &["y"]).with("kernel_shape", Attribute::Integers(vec![2, 2])).with(name, value);
    let text = refusal(&single(pool("auto_pad", Attribute::Text("SAME".into()))).bytes());
    holds(&text, &["node `the_node`: operator MaxPool attribute auto_pad is SAME, expected NOTSET, VALID, SAME_UPPER or SAME_LOWER"]);
    let text = refusal(&single(pool("dilations", Attribute::Integers(vec![2, 2]))).bytes());
    holds(&text, &["operator MaxPool attribute dilations is [2, 2], expected 1 each"]);
    let text = refusal(&single(pool("strides", Attribute::Integers(vec![-1, 2]))).bytes());
    holds(&text, &["operator MaxPool attribute strides is [-1, 2], expected 2 numbers from 0 to 65536"]);
    let text = refusal(&single(pool("pads", Attribute::Float(1.0))).bytes());
    holds(&text, &["operator MaxPool attribute pads is no list of integers, expected one"]);
    let text = refusal(&single(Node::new("Cast", &["x"], &["y"]).with("to", Attribute::Integer(8))).bytes());
    holds(&text, &["operator Cast attribute to is 8, expected a float, an integer or bool"]);
    let text = refusal(&single(Node::new("Reshape", &["x", "x"], &["y"])).bytes());
    holds(&text, &["operator Reshape shape (input 1) is computed from the input's values, expected numbers known beforehand"]);
}

#[test]
fn graphs_that_do_not_fit_together_are_refused() {
    let text = refusal(&single(Node::new("Add", &["x", "y"], &["y"])).bytes());
    holds(&text, &["node `the_node`: operator Add: input `y` is made by a later node or by itself"]);
    let mut circle = single(Node::new("Relu", &["b"], &["a"]));
    circle.node(Node::new("Relu", &["a"], &["b"])).node(Node::new("Add", &["x", "a"], &["y"]));
    holds(&refusal(&circle.bytes()), &["operator Relu: input `b` is made by a later node"]);
    holds(&refusal(&single(Node::new("Add", &["x", "nothing"], &["y"])).bytes()), &["operator Add: input `nothing` is made by no node"]);
    holds(&refusal(&single(Node::new("Relu", &["x"], &["z"])).bytes()), &["output `y` is made by no node"]);
    holds(&refusal(&single(Node::new("Relu", &["x"], &["x"])).bytes()), &["the value `x` is made twice, expected once"]);
    let mut twice = single(Node::new("Relu", &["x"], &["y"]));
    twice.tensor("c", &[1], Numbers::F32(vec![1.0])).tensor("c", &[1], Numbers::F32(vec![1.0]));
    holds(&refusal(&twice.bytes()), &["the tensor `c` stands there twice"]);
    let mut conv = single(Node::new("Conv", &["x", "w"], &["y"]));
    conv.tensor("w", &[2, 5, 1, 1], Numbers::F32(vec![0.0; 10]));
    holds(&refusal(&conv.bytes()), &["node `the_node`: operator Conv", "conv2d of 3 channels in 1 groups: weight is [2, 5, 1, 1]"]);
    let mut add = single(Node::new("Add", &["x", "c"], &["y"]));
    add.tensor("c", &[5], Numbers::F32(vec![0.0; 5]));
    holds(&refusal(&add.bytes()), &["operator Add", "[1, 3, 4, 4] and [5] do not broadcast"]);
    holds(&refusal(&single(Node::new("Conv", &["x"], &["y"])).bytes()), &["operator Conv input 1 is left out, expected a value"]);
    for (opset, known) in [(8, false), (9, true), (21, true), (22, false)] {
        let mut graph = Graph::new(opset);
        graph.input("x", &["1"]).output("y", &["1"]).node(Node::new("Relu", &["x"], &["y"]));
        let (_dir, path) = file(&graph.bytes());
        assert_eq!(attempt(&path).is_ok(), known, "opset {opset}");
        if !known {
            holds(&refusal(&graph.bytes()), &[&format!("opset {opset}, expected 9 to 21")]);
        }
    }
    let mut graph = Graph::new(13);
    graph.integer_input("ids", &["1"]).output("y", &["1"]).node(Node::new("Identity", &["ids"], &["y"]));
    holds(&refusal(&graph.bytes()), &["input `ids` is I64, expected floats"]);
    for bytes in [&b""[..], b"\x08", b"not a graph", &[0xff; 64]] {
        assert!(refusal(bytes).contains("ONNX"), "{bytes:?}");
    }
}

/// Claims cost nothing: each of these is refused at once.
#[test]
fn huge_claims_are_refused() {
    let shape = |values: Vec<i64>| Numbers::I64(values);
    let far = 1i64 << 40;
    let mut claims = Vec::new();
    let with = |operator: &str, values: Vec<i64>| {
        let mut graph = single(Node::new(operator, &["x", "c"], &["y"]));
        graph.tensor("c", &[values.len() as i64], shape(values));
        graph
    };
    claims.push(with("Expand", vec![far, 3, 4, 4]));
    claims.push(with("Tile", vec![far, far, 1, 1]));
    claims.push(with("Pad", vec![far, 0, 0, 0, 0, 0, 0, 0]));
    claims.push(with("Reshape", vec![far, far, far, -1]));
    let mut filled = single(Node::new("ConstantOfShape", &["c"], &["f"]));
    filled.tensor("c", &[2], shape(vec![far, far])).node(Node::new("Add", &["x", "f"], &["y"]));
    claims.push(filled);
    let mut range = single(Node::new("Range", &["a", "b", "s"], &["f"]));
    range.tensor("a", &[], shape(vec![0])).tensor("b", &[], shape(vec![i64::MAX])).tensor("s", &[], shape(vec![1])).node(Node::new("Add", &["x", "f"], &["y"]));
    claims.push(range);
    let mut resize = single(Node::new("Resize", &["x", "", "", "c"], &["y"]));
    resize.tensor("c", &[4], shape(vec![1, 3, far, far]));
    claims.push(resize);
    let mut strides = single(Node::new("ConvTranspose", &["x", "w"], &["y"]).with("strides", Attribute::Integers(vec![60_000, 60_000])));
    strides.tensor("w", &[3, 1, 1, 1], Numbers::F32(vec![1.0; 3]));
    claims.push(strides);
    let mut tensor = single(Node::new("Add", &["x", "c"], &["y"]));
    tensor.tensor("c", &[far, far], Numbers::F32(vec![1.0]));
    claims.push(tensor);
    // A doubling that is done again and again.
    let mut doubled = Graph::new(13);
    doubled.input("x", &["1"]).output("y", &["1"]).tensor("n0", &[1], Numbers::F32(vec![1.0]));
    (0..60).for_each(|i| {
        doubled.node(Node::new("Concat", &[&format!("n{i}"), &format!("n{i}")], &[&format!("n{}", i + 1)]).with("axis", Attribute::Integer(0)));
    });
    doubled.node(Node::new("Add", &["x", "n60"], &["y"]));
    claims.push(doubled);
    for graph in claims {
        let start = std::time::Instant::now();
        let text = refusal(&graph.bytes());
        assert!(start.elapsed().as_secs() < 5, "took {:?}: {text}", start.elapsed());
        assert!(text.contains("expected"), "{text}");
    }
}

#[test]
fn values_beside_the_file_stay_beside_it() {
    let graph = |location: &str, offset: usize, length: usize| {
        let mut graph = Graph::new(13);
        graph.input("x", &["2"]).output("y", &["2"]).node(Node::new("Add", &["x", "c"], &["y"]));
        graph.tensor("c", &[2], Numbers::External(location.to_string(), offset, length));
        graph.bytes()
    };
    let (dir, path) = file(&graph("values.bin", 4, 8));
    holds(&attempt(&path).unwrap_err().to_string(), &["tensor `c`", "values.bin"]);
    let values: Vec<u8> = [9.0f32, 1.5, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(dir.path().join("values.bin"), values).unwrap();
    let model = recognise(&path).unwrap().load().unwrap();
    let outputs = run(&Device::Cpu, model.as_ref(), Component::Onnx, &[("x", Array::new(&[2], vec![0.0, 0.0]).unwrap())]).unwrap();
    assert_eq!(outputs[0].1.data, [1.5, 2.0]);
    for (offset, length) in [(8, 8), (usize::MAX, 8), (0, 4), (4, usize::MAX)] {
        std::fs::write(&path, graph("values.bin", offset, length)).unwrap();
        holds(&attempt(&path).unwrap_err().to_string(), &["tensor `c`", "expected"]);
    }
    for location in ["../values.bin", "/etc/hostname", "a/b", "..", "", "C:\\values.bin", "a\0b"] {
        let text = refusal(&graph(location, 0, 8));
        holds(&text, &["tensor `c`", "expected the name of a file beside the model"]);
    }
}
