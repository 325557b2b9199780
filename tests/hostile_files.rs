//! Files that are broken, lying or malicious: each is one error that names the file, and none makes the program panic,
//! allocate by a claim, or take long.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use naevus::base::{DType, Error, Result};
use naevus::models::{InpaintModel, Inputs, Taesd, UNet2DModel, recognise};
use naevus::plan::Tape;
use serde_json::{Value, json};

/// What a folder is loaded as.
type Load = fn(&Path) -> Result<()>;

/// A golden folder, how it is loaded, and the files in it that are attacked.
const TARGETS: [(&str, Load, &[&str], &[&str]); 5] = [
    ("unet-attention-classes", load_unet, &["diffusion_pytorch_model.safetensors"], &["config.json"]),
    ("inpaint-known/unet", load_model, &["diffusion_pytorch_model.safetensors"], &["config.json"]),
    ("taesd-pool", load_taesd, &["encoder.safetensors", "decoder.safetensors"], &["config.json"]),
    ("resnet18", load_model, &["model.safetensors"], &["config.json"]),
    ("inpaint-tiny", load_inpaint, &["unet/diffusion_pytorch_model.safetensors"], &["model_index.json", "unet/config.json", "vae/config.json"]),
];

/// Loads and records a forward pass: what a model accepts, it must also be able to record or refuse.
fn load_unet(folder: &Path) -> Result<()> {
    let model = UNet2DModel::load(folder)?;
    let mut t = Tape::new();
    let size = 16 * model.config.size_multiple();
    let sample = t.input("sample", &[2, size, size, model.config.in_channels], DType::F32);
    let timesteps = t.input("timesteps", &[1], DType::F32);
    let class = t.input("class", &[2], DType::U32);
    model.forward(&mut t, sample, timesteps, model.class_input().map(|_| class)).map(|_| ())
}

fn load_taesd(folder: &Path) -> Result<()> {
    let model = Taesd::load(folder)?;
    let mut t = Tape::new();
    let image = t.input("image", &[1, 64, 64, 3], DType::F32);
    let latents = model.encode(&mut t, image)?;
    model.decode(&mut t, latents).map(|_| ())
}

/// Any single model: loads it and records its components.
fn load_model(folder: &Path) -> Result<()> {
    let model = recognise(folder)?.load()?;
    for component in model.components() {
        let mut t = Tape::new();
        let inputs = model.ports(component, 1).into_iter().map(|port| (port.name.clone(), t.input(&port.name, &port.shape, port.dtype)));
        let inputs = Inputs::new(inputs.collect::<Vec<_>>());
        model.record(&mut t, component, &inputs)?;
    }
    Ok(())
}

fn load_inpaint(folder: &Path) -> Result<()> {
    InpaintModel::load(folder).map(|_| ())
}

/// A copy of a golden folder whose files can be replaced.
struct Copy(tempfile::TempDir);

impl Copy {
    fn of(name: &str) -> Copy {
        let copy = Copy(tempfile::tempdir().unwrap());
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name);
        copy_folder(&from, copy.0.path());
        copy
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else if !entry.file_name().to_string_lossy().starts_with("io") {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Loads; None when it was accepted. A panic, an error of several lines or one without a place fails the test.
fn attempt(what: &str, load: Load, folder: &Path) -> Option<Error> {
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| load(folder))).unwrap_or_else(|_| panic!("{what}: panicked"));
    assert!(start.elapsed() < Duration::from_secs(5), "{what}: took {:?}", start.elapsed());
    let error = result.err()?;
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 4000 && !error.fact().is_empty(), "{what}: {text}");
    Some(error)
}

fn header_len(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

#[test]
fn untouched_copies_load() {
    for (name, load, _, _) in TARGETS {
        let error = attempt(name, load, Copy::of(name).0.path());
        assert!(error.is_none(), "{name}: {error:?}");
    }
}

#[test]
fn truncated_and_padded_weights_are_refused_with_their_name() {
    for (name, load, weights, _) in TARGETS {
        for file in weights {
            let copy = Copy::of(name);
            let whole = std::fs::read(copy.path(file)).unwrap();
            let header = header_len(&whole);
            let mut variants: Vec<Vec<u8>> = [0, 1, 7, 8, 9, 8 + header / 2, 8 + header, 8 + header + 1, whole.len() - 1].map(|n| whole[..n].to_vec()).into();
            variants.push([whole.as_slice(), &[0]].concat());
            variants.push(b"PK\x03\x04 a zip".to_vec());
            variants.push(vec![0xff; 4096]);
            for length in [u64::MAX, 1 << 63, 99_999_999, header as u64 - 1, header as u64 + 1] {
                variants.push([&length.to_le_bytes(), &whole[8..]].concat());
            }
            for bytes in variants {
                std::fs::write(copy.path(file), &bytes).unwrap();
                let what = format!("{name}/{file} with {} bytes", bytes.len());
                let error = attempt(&what, load, copy.0.path()).unwrap_or_else(|| panic!("{what} was accepted"));
                assert!(error.to_string().contains(Path::new(file).file_name().unwrap().to_str().unwrap()), "{what}: {error}");
            }
        }
    }
}

#[test]
fn flipped_header_bytes_never_load_as_the_same_model() {
    for (name, load, weights, _) in TARGETS {
        let copy = Copy::of(name);
        let file = weights[0];
        let whole = std::fs::read(copy.path(file)).unwrap();
        let header = header_len(&whole);
        let text = String::from_utf8(whole[8..8 + header].to_vec()).unwrap();
        // Metadata and blanks may change without consequence.
        let (from, to) = (8 + text.find("}").unwrap() + 1, 8 + text.trim_end().len());
        for at in (from..to).step_by(((to - from) / 150).max(1)) {
            for flip in [0x01, 0x20, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                std::fs::write(copy.path(file), &bytes).unwrap();
                let what = format!("{name}/{file} with byte {at} changed by {flip:#x}");
                assert!(attempt(&what, load, copy.0.path()).is_some(), "{what} was accepted");
            }
        }
    }
}

/// Rewrites the JSON header of a safetensors file.
fn with_header(bytes: &[u8], change: impl Fn(&mut serde_json::Map<String, Value>)) -> Vec<u8> {
    let header = header_len(bytes);
    let mut json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    change(json.as_object_mut().unwrap());
    let text = json.to_string();
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes[8 + header..]].concat()
}

#[test]
fn lying_headers_are_refused() {
    let lies: [(&str, Value); 9] = [
        ("shape", json!([u64::MAX, u64::MAX])),
        ("shape", json!([1u64 << 40])),
        ("shape", json!([0])),
        ("shape", json!(vec![1; 100_000])),
        ("data_offsets", json!([0, u64::MAX])),
        ("data_offsets", json!([u64::MAX, 0])),
        ("data_offsets", json!([-1, 4])),
        ("dtype", json!("F8_E4M3")),
        ("dtype", json!(["F32"])),
    ];
    for (name, load, weights, _) in TARGETS {
        let copy = Copy::of(name);
        let whole = std::fs::read(copy.path(weights[0])).unwrap();
        for (field, lie) in &lies {
            let bytes = with_header(&whole, |tensors| {
                let tensor = tensors.iter_mut().find(|(name, _)| name.ends_with("weight")).unwrap().1;
                tensor[*field] = lie.clone();
            });
            std::fs::write(copy.path(weights[0]), &bytes).unwrap();
            let what = format!("{name}: {field} {}", lie.to_string().chars().take(60).collect::<String>());
            assert!(attempt(&what, load, copy.0.path()).is_some(), "{what} was accepted");
        }
    }
}

#[test]
fn renamed_and_extra_tensors_are_listed() {
    let copy = Copy::of("unet-attention-classes");
    let path = copy.path("diffusion_pytorch_model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let bytes = with_header(&whole, |tensors| {
        let value = tensors.remove("conv_in.weight").unwrap();
        tensors.insert("conv_in.wieght".to_string(), value);
    });
    std::fs::write(&path, bytes).unwrap();
    let text = attempt("renamed", load_unet, copy.0.path()).unwrap().to_string();
    assert!(text.starts_with("unet: missing conv_in.weight (nearest conv_in.wieght); unused conv_in.wieght ("), "{text}");
    assert!(text.ends_with("diffusion_pytorch_model.safetensors)"), "{text}");
}

/// Values that a field never expects, or expects and can't have.
fn poisons() -> Vec<Value> {
    let deep = (0..60).fold(json!(1), |inner, _| json!([inner]));
    vec![
        json!(null),
        json!(-1),
        json!(0),
        json!(1),
        json!(3),
        json!(1e30),
        json!(u64::MAX),
        json!(65_536),
        json!(1_000_000_000),
        json!(0.5),
        json!("x"),
        json!(""),
        json!("x".repeat(100_000)),
        json!(true),
        json!([]),
        json!([1]),
        json!([65_536, 65_536]),
        json!(vec![8; 16]),
        json!(vec![1; 10_000]),
        json!({}),
        json!({"a": {"b": 1}}),
        json!(["UpBlock2D"]),
        json!("\u{0}\n\u{202e}"),
        deep,
    ]
}

#[test]
fn no_value_of_any_field_breaks_the_program() {
    for (name, load, _, configs) in TARGETS {
        for file in configs {
            let copy = Copy::of(name);
            let text = std::fs::read_to_string(copy.path(file)).unwrap();
            let original: Value = serde_json::from_str(&text).unwrap();
            let mut refused = 0;
            for field in original.as_object().unwrap().keys() {
                for poison in poisons() {
                    let mut config = original.clone();
                    config[field] = poison.clone();
                    std::fs::write(copy.path(file), config.to_string()).unwrap();
                    let what = format!("{name}/{file}: {field} = {}", poison.to_string().chars().take(40).collect::<String>());
                    refused += usize::from(attempt(&what, load, copy.0.path()).is_some());
                }
                let mut config = original.clone();
                config.as_object_mut().unwrap().remove(field);
                std::fs::write(copy.path(file), config.to_string()).unwrap();
                attempt(&format!("{name}/{file} without {field}"), load, copy.0.path());
            }
            assert!(refused > poisons().len(), "{name}/{file}: only {refused} refused");
            let mut config = original.clone();
            config["surprise"] = json!(1);
            std::fs::write(copy.path(file), config.to_string()).unwrap();
            let error = attempt("surprise", load, copy.0.path()).unwrap_or_else(|| panic!("{name}/{file}: an unknown field was accepted"));
            assert!(error.fact().contains("`surprise`"), "{error}");
        }
    }
}

/// Sets fields of a JSON file.
fn set(path: &Path, fields: &[(&str, Value)]) {
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (field, value) in fields {
        config[*field] = value.clone();
    }
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn an_index_that_contradicts_its_parts_is_refused() {
    let rows: [(&str, &str, Value, &str); 14] = [
        ("model_index.json", "class_names", json!(["bcc", "df"]), "null_class: 3, expected 2: the label after the classes"),
        ("model_index.json", "class_names", json!(["bcc", "df", "bcc"]), "class_names: `bcc` stands there twice"),
        ("model_index.json", "class_names", json!(["bcc", "", "df"]), "class_names: expected one name or more, none of them empty"),
        ("model_index.json", "null_class", json!(0), "null_class: 0, expected 3: the label after the classes"),
        ("model_index.json", "unet_input", json!(["latents", "hole"]), "unet_input: 5 channels with 4 per latent, expected 9"),
        ("model_index.json", "unet_input", json!(["latents", "hole", "latents"]), "unet_input: [Latents, Hole, Latents], expected `latents`"),
        ("model_index.json", "image_size", json!(40), "image_size: 40, expected a multiple of 16"),
        ("model_index.json", "hole_to_latent", json!("bilinear"), "hole_to_latent: \"bilinear\", expected one of \"max_pool\""),
        ("model_index.json", "scheduler", json!(["diffusers", "PNDM"]), "scheduler: [\"diffusers\", \"PNDM\"], expected ["),
        ("unet/config.json", "num_class_embeds", json!(null), "unused class_embedding.weight"),
        ("unet/config.json", "out_channels", json!(8), "conv_out.weight is [4, 4, 3, 3], expected [8, 4, 3, 3]"),
        ("vae/config.json", "downscale", json!(16), "vae/config.json: encoder: downscale 8 in the weights, expected 16"),
        ("vae/config.json", "pool_branch_in_middle_blocks", json!(false), "encoder: pool_branch_in_middle_blocks true in the weights, expected false"),
        ("vae/config.json", "files", json!({"encoder": "../secret", "decoder": "decoder.safetensors"}), "expected a file name within the folder"),
    ];
    for (file, field, value, want) in rows {
        let copy = Copy::of("inpaint-tiny");
        set(&copy.path(file), &[(field, value)]);
        let error = attempt(field, load_inpaint, copy.0.path()).unwrap_or_else(|| panic!("{file}: {field} was accepted")).to_string();
        assert!(error.contains(want), "{file}: {field}: {error}");
    }
    let copy = Copy::of("inpaint-tiny");
    std::fs::remove_file(copy.path("scheduler/scheduler_config.json")).unwrap();
    assert!(attempt("no scheduler", load_inpaint, copy.0.path()).unwrap().fact().contains("expected the scheduler's settings"));
}

#[test]
fn an_autoencoder_of_another_structure_is_refused() {
    let copy = Copy::of("taesd-pool");
    set(&copy.path("config.json"), &[("files", json!({"encoder": "decoder.safetensors", "decoder": "encoder.safetensors"}))]);
    let text = attempt("swapped", load_taesd, copy.0.path()).unwrap().to_string();
    assert!(text.contains("vae.encoder: layer 0: an encoder begins with a convolution"), "{text}");
    let rows: [(&str, &str, &str, &str); 4] = [
        ("encoder.safetensors", "5.conv.0.weight", "5.conv.0.wieght", "layer 5: has no weights"),
        ("encoder.safetensors", "11.pool.0.weight", "11.pool.2.weight", "unused 11.pool.1.bias"),
        ("decoder.safetensors", "7.weight", "7.weights", "layer 6: has no weights"),
        ("decoder.safetensors", "3.conv.4.bias", "999999999999.weight", "missing 3.conv.4.bias"),
    ];
    for (file, from, to, want) in rows {
        let copy = Copy::of("taesd-pool");
        let bytes = with_header(&std::fs::read(copy.path(file)).unwrap(), |tensors| {
            let value = tensors.remove(from).unwrap();
            tensors.insert(to.to_string(), value);
        });
        std::fs::write(copy.path(file), bytes).unwrap();
        let text = attempt(from, load_taesd, copy.0.path()).unwrap_or_else(|| panic!("{file} without {from} was accepted")).to_string();
        assert!(text.contains(want), "{file} without {from}: {text}");
    }
}

#[test]
fn texts_that_are_no_config_are_refused() {
    for (name, load, _, configs) in TARGETS {
        let copy = Copy::of(name);
        for text in [
            &b""[..],
            b"{",
            b"[]",
            b"null",
            b"{\"a\":1,\"a\":2}",
            b"\xff\xfe{}",
            &b"[".repeat(1 << 20),
            &b"{\"a\":".repeat(1 << 16),
            &[b"\"", "x".repeat(20_000).as_bytes(), b"\""].concat(),
        ] {
            std::fs::write(copy.path(configs[0]), text).unwrap();
            let what = format!("{name}: {} bytes of text", text.len());
            let error = attempt(&what, load, copy.0.path()).unwrap_or_else(|| panic!("{what} was accepted"));
            assert!(error.place().contains(configs[0]), "{what}: {error}");
            attempt(&what, |folder| recognise(folder).map(|_| ()), copy.0.path());
        }
        std::fs::remove_file(copy.path(configs[0])).unwrap();
        std::fs::create_dir(copy.path(configs[0])).unwrap();
        assert!(attempt("a folder in place of a file", load, copy.0.path()).is_some());
    }
}
