//! Parameters that a file holds in 16 bits stay so on the host, and every result has the bits that it has with the same values as f32.

use std::io::Write;
use std::path::Path;

use half::{bf16, f16};
use naevus::base::{DType, Result, rng};
use naevus::exec::Device;
use naevus::exec::gpu::{Gpu, adapters};
use naevus::ops::conv2d::Conv2d;
use naevus::plan::{Layout, Options, Tape, Weight};
use naevus::weights::{LowRank, Scope, Store, Writer};

/// Name and shape. The last is small, and widened when it is read.
const TENSORS: [(&str, &[usize]); 3] = [("conv.weight", &[64, 48, 3, 3]), ("linear.weight", &[320, 64]), ("linear.bias", &[320])];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    F32,
    F16,
    Bf16,
}

impl Stored {
    fn bytes(self, value: f32) -> Vec<u8> {
        match self {
            Stored::F32 => value.to_le_bytes().to_vec(),
            Stored::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            Stored::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        }
    }

    /// What is left of `value`.
    fn kept(self, value: f32) -> f32 {
        match self {
            Stored::F32 => value,
            Stored::F16 => f16::from_f32(value).to_f32(),
            Stored::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Stored::F32 => "F32",
            Stored::F16 => "F16",
            Stored::Bf16 => "BF16",
        }
    }
}

/// A safetensors file of the tensors, of values that `rounded` leaves, stored as `stored`.
fn write(path: &Path, rounded: Stored, stored: Stored) {
    let (mut entries, mut bytes) = (Vec::new(), Vec::new());
    for (name, shape) in TENSORS {
        let from = bytes.len();
        let values = rng::normal(rng::name_seed(name), 0, 0, shape.iter().product());
        values.iter().for_each(|&v| bytes.extend(stored.bytes(rounded.kept(0.1 * v))));
        entries.push(format!("\"{name}\":{{\"dtype\":\"{}\",\"shape\":{shape:?},\"data_offsets\":[{from},{}]}}", stored.name(), bytes.len()));
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.write_all(&bytes).unwrap();
}

fn load(scope: &Scope) -> Vec<Weight> {
    let layouts = [Layout::ConvWeight, Layout::LinearWeight, Layout::Plain];
    let weights = TENSORS.iter().zip(layouts).map(|((name, shape), layout)| scope.weight(name, shape, layout)).collect();
    scope.finish().unwrap();
    weights
}

fn result(device: &Device, weights: &[Weight]) -> Result<Vec<u32>> {
    let mut tape = Tape::new();
    let x = tape.input("x", &[1, 9, 8, 48], DType::F32);
    let [conv, linear, bias] = [0, 1, 2].map(|at| tape.weight(&weights[at]));
    let y = tape.conv2d(x, conv, None, &Conv2d::padded(1))?;
    let y = tape.linear(y, linear, Some(bias))?;
    tape.output("y", y);
    let mut session = device.prepare(tape, &Options::default())?;
    session.write("x", &rng::normal(1, 0, 0, 9 * 8 * 48))?;
    // Twice: the second run finds the buffers of the first.
    session.run()?;
    session.run()?;
    Ok(session.read("y")?.data.iter().map(|v| v.to_bits()).collect())
}

fn devices() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    match adapters().is_empty() {
        true => assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set"),
        false => devices.push(Device::Gpu(Gpu::open(0).unwrap())),
    }
    devices
}

#[test]
fn results_have_the_bits_of_f32() {
    let dir = tempfile::tempdir().unwrap();
    for stored in [Stored::F16, Stored::Bf16] {
        let [narrow, wide] = [stored, Stored::F32].map(|as_stored| {
            let path = dir.path().join(format!("{stored:?}-{as_stored:?}.safetensors"));
            write(&path, stored, as_stored);
            load(&Scope::open(&path, "model").unwrap())
        });
        let bytes = |weights: &[Weight]| weights.iter().map(|w| w.array.bytes()).collect::<Vec<_>>();
        let lengths: Vec<usize> = TENSORS.iter().map(|(_, shape)| shape.iter().product()).collect();
        assert_eq!(bytes(&narrow), [2 * lengths[0], 2 * lengths[1], 4 * lengths[2]], "{stored:?}");
        assert_eq!(bytes(&wide), lengths.iter().map(|len| 4 * len).collect::<Vec<_>>());
        for device in devices() {
            let (got, want) = (result(&device, &narrow).unwrap(), result(&device, &wide).unwrap());
            assert!(got == want && got.iter().any(|bits| *bits != 0), "{stored:?}: other bits on {}", device.describe());
        }
    }
}

/// What a LoRA changes has values that 16 bits do not hold: it is f32.
#[test]
fn changed_parameters_are_f32() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lora) = (dir.path().join("model.safetensors"), dir.path().join("lora.safetensors"));
    write(&path, Stored::F16, Stored::F16);
    let mut writer = Writer::new();
    writer.f32("up", &[320, 1], vec![1.0; 320]).unwrap();
    writer.f32("down", &[1, 64], vec![1e-4; 64]).unwrap();
    writer.write(&lora).unwrap();
    let (mut store, lora) = (Store::open(&path).unwrap(), Store::open(&lora).unwrap());
    let plain = load(&Scope::new(store.clone(), "model"));
    store.add_low_rank("linear.weight", LowRank { up: lora.view("up").unwrap(), mid: None, down: lora.view("down").unwrap(), scale: 1.0 }).unwrap();
    let changed = load(&Scope::new(store, "model"));
    assert_eq!([&plain[1], &changed[1]].map(|w| w.array.bytes() / w.array.len()), [2, 4]);
    assert_eq!(changed[1].array.values()[7], plain[1].array.values()[7] + 1e-4);
}

/// A value that is not finite is told with its place, as in f32.
#[test]
fn what_is_not_finite_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write(&path, Stored::F16, Stored::F16);
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header + 2 * 1000..][..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let scope = Scope::open(&path, "model").unwrap();
    scope.weight("conv.weight", TENSORS[0].1, Layout::ConvWeight);
    let error = scope.finish().unwrap_err().to_string();
    assert!(error.contains("conv.weight holds inf at element 1000, expected finite values"), "{error}");
}
