//! LoRA files that fit, and all those that are refused: each with one line that names the file, what stands there and what was
//! expected. Their numbers are held against diffusers and peft in tests/parity.rs.

use std::path::{Path, PathBuf};

use naevus::models::lora_names::LoraPart;
use naevus::models::{Found, InpaintModel, Lora, ldm, lora, recognise};
use naevus::weights::{Store, Writer};
use serde_json::Value;
use tempfile::TempDir;

const Q: &str = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
const KOHYA_Q: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";

type Rows<'a> = Vec<(&'a str, &'a [usize], f32)>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

/// A UNet2DConditionModel of 4 and 8 channels whose weights are committed.
fn unet() -> PathBuf {
    golden("inpaint-tokens/unet")
}

fn write(path: &Path, rows: &Rows, metadata: &[(&str, &str)]) {
    let mut writer = Writer::new();
    for (name, shape, value) in rows {
        writer.f32(name, shape, vec![*value; shape.iter().product()]).unwrap();
    }
    metadata.iter().for_each(|(name, text)| writer.metadata(name, text));
    writer.write(path).unwrap();
}

/// A file of these tensors. The folder goes with the path.
fn file(rows: &Rows) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("style.safetensors");
    write(&path, rows, &[]);
    (dir, path)
}

/// Why a file is not opened.
fn refused(rows: &Rows) -> String {
    let (_dir, path) = file(rows);
    one_line(Lora::open(&path, 1.0).unwrap_err().to_string())
}

/// Why a file that is opened does not go into the model at `path`.
fn unfit(path: &Path, rows: &Rows) -> String {
    let (_dir, lora) = file(rows);
    let lora = Lora::open(&lora, 1.0).unwrap();
    one_line(recognise(path).unwrap().with_loras(&[lora]).load().err().expect("it does not fit").to_string())
}

fn one_line(text: String) -> String {
    assert!(!text.contains('\n') && text.len() < 2000, "{}", text.chars().take(300).collect::<String>());
    text
}

/// down and up of `module` in kohya's names, of a layer of 8 inputs and outputs.
fn pair<'a>(down: &'a str, up: &'a str) -> Rows<'a> {
    vec![(down, &[2, 8], 0.5), (up, &[8, 2], 0.5)]
}

#[test]
fn other_kinds_of_changes_are_refused_by_name() {
    let rows = [
        ("dora_scale", "DoRA"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("on_input", "(IA)3"),
        ("oft_blocks", "OFT"),
        ("diff", "a full difference of weights"),
        ("diff_b", "a difference of biases"),
        ("w_norm", "a change of a norm"),
        ("lora_mid.weight", "LoRA of three factors (Tucker)"),
    ];
    for (step, kind) in rows {
        let names = [format!("{KOHYA_Q}.lora_down.weight"), format!("{KOHYA_Q}.lora_up.weight"), format!("{KOHYA_Q}.{step}")];
        let mut tensors = pair(&names[0], &names[1]);
        tensors.push((&names[2], &[8], 1.0));
        let text = refused(&tensors);
        let want = format!("style.safetensors: {KOHYA_Q}.{step} is {kind}, expected plain LoRA: no other kind of change is supported");
        assert!(text.ends_with(&want), "{text}");
    }
    let names: Vec<String> = (0..9).map(|i| format!("unet.m{i}.lora_magnitude_vector")).collect();
    let text = refused(&names.iter().map(|name| (name.as_str(), &[8usize][..], 1.0)).collect());
    assert!(text.contains("unet.m5.lora_magnitude_vector and 3 more is DoRA"), "{text}");
}

#[test]
fn files_that_are_no_whole_lora_are_refused() {
    let q = |end: &str| format!("unet.{Q}.{end}");
    let (down, up, alpha) = (q("lora.down.weight"), q("lora.up.weight"), q("alpha"));
    let both = || pair(&down, &up);
    let with = |name, shape, value| [both(), vec![(name, shape, value)]].concat();
    let (down_a, down_b) = (q("lora_A.a.weight"), q("lora_A.b.weight"));
    let rows: Vec<(Rows, &str)> = vec![
        (vec![(&down, &[2, 8], 0.5)], "attn1.to_q.lora.down.weight stands alone, expected both factors of its module"),
        (vec![(&alpha, &[], 2.0)], "attn1.to_q.alpha stands alone, expected both factors"),
        (with(&alpha, &[2], 1.0), "attn1.to_q.alpha is [2], expected one number"),
        (with(&alpha, &[], f32::NAN), "attn1.to_q.alpha is NaN, expected a finite number"),
        (with("unet.conv_in.weight", &[2], 1.0), "unet.conv_in.weight is no part of a LoRA, expected lora_A and lora_B"),
        (vec![(&down_a, &[2, 8], 0.5), (&down_b, &[2, 8], 0.5)], "are of one module, expected one LoRA in a file"),
        (vec![(&down, &[0, 8], 0.5), (&up, &[8, 0], 0.5)], "lora.down.weight is [0, 8], expected a rank of 1 or more"),
        (vec![], "holds no tensors, expected a LoRA"),
        (pair("base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight"), "is of PEFT, expected adapter_config.json beside adapter_model"),
    ];
    for (tensors, want) in rows {
        let text = refused(&tensors);
        assert!(text.contains("style.safetensors: ") && text.contains(want), "{text}");
    }
    let (_dir, path) = file(&both());
    assert!(Lora::open(&path, f64::NAN).unwrap_err().to_string().ends_with("style.safetensors: weight NaN, expected -10000 to 10000"));
    let mut writer = Writer::new();
    writer.i32(&down, &[2, 8], vec![1; 16]).unwrap();
    writer.f32(&up, &[8, 2], vec![1.0; 16]).unwrap();
    writer.write(&path).unwrap();
    assert!(Lora::open(&path, 1.0).unwrap_err().to_string().contains("lora.down.weight has dtype I32, expected F16, BF16, F32 or F64"));
}

#[test]
fn peft_settings_are_held_against_the_tensors() {
    let dir = TempDir::new().unwrap();
    let tensors = pair("base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight");
    write(&dir.path().join("adapter_model.safetensors"), &tensors, &[]);
    let settings = |text: &str| std::fs::write(dir.path().join("adapter_config.json"), text).unwrap();
    let open = || Lora::open(dir.path(), 1.0).map(|_| ()).map_err(|e| one_line(e.to_string()));
    settings(r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#);
    assert_eq!(open(), Ok(()));
    // The file by its own name has the same settings.
    assert_eq!(Lora::open(&dir.path().join("adapter_model.safetensors"), 1.0).unwrap().facts()["parts"]["unet or other single model"]["alphas"][0], "4");
    for (text, want) in [
        (r#"{"r": 2, "use_dora": true}"#, "adapter_config.json: use_dora: true, expected false: DoRA is not supported"),
        (r#"{"r": 4}"#, "x has rank 2, but r is 4 in "),
        (r#"{"peft_type": "IA3"}"#, "adapter_config.json: peft_type: \"IA3\", expected \"LORA\""),
    ] {
        settings(text);
        let error = open().unwrap_err();
        assert!(error.contains(want), "{error}");
    }
    let path = dir.path().join("style.safetensors");
    let alpha = [pair("unet.x.lora_A.weight", "unet.x.lora_B.weight"), vec![("unet.x.alpha", &[][..], 2.0)]].concat();
    write(&path, &alpha, &[("lora_adapter_metadata", r#"{"unet.r": 2}"#)]);
    let text = Lora::open(&path, 1.0).unwrap_err().to_string();
    assert!(text.contains("unet.x.alpha stands beside settings of PEFT, expected one of both"), "{text}");
    std::fs::remove_file(dir.path().join("adapter_model.safetensors")).unwrap();
    let text = Lora::open(dir.path(), 1.0).unwrap_err().to_string();
    assert!(text.contains("no LoRA in this folder, expected adapter_model.safetensors"), "{text}");
}

#[test]
fn what_the_model_does_not_have_is_one_error() {
    let down = |module: &str| format!("{module}.lora_down.weight");
    let up = |module: &str| format!("{module}.lora_up.weight");
    let modules = [KOHYA_Q, "lora_unet_down_blocks_7_conv", "lora_unet_input_blocks_99_1_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_te2_x"];
    let names: Vec<(String, String)> = modules.iter().map(|module| (down(module), up(module))).collect();
    let rows: Rows = names.iter().flat_map(|(down, up)| pair(down, up)).collect();
    let text = unfit(&unet(), &rows);
    for want in [
        "style.safetensors: lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight for a text_encoder, which the model does not have; ",
        "lora_te2_x.lora_down.weight for a text_encoder_2, which the model does not have; ",
        "unused lora_unet_down_blocks_7_conv.lora_down.weight, lora_unet_input_blocks_99_1_proj_in.lora_down.weight: the unet has no such modules (",
    ] {
        assert!(text.contains(want), "{text}");
    }
    // A whole model gives the same answer.
    let (_dir, path) = file(&rows);
    let whole = InpaintModel::load_with(&golden("inpaint-tokens"), None, &[Lora::open(&path, 1.0).unwrap()]).err().unwrap().to_string();
    assert!(whole.contains("lora_te2_x.lora_down.weight for a text_encoder_2, which the model does not have"), "{whole}");
}

#[test]
fn shapes_and_models_that_do_not_fit_are_named() {
    let (down, up) = (format!("{KOHYA_Q}.lora_down.weight"), format!("{KOHYA_Q}.lora_up.weight"));
    let text = unfit(&unet(), &vec![(&down, &[2, 6], 0.5), (&up, &[8, 2], 0.5)]);
    let want = format!("{Q}.weight is [8, 8], which {up} [8, 2] times {down} [2, 6] does not change");
    assert!(text.contains(&want), "{text}");
    let dotted = [format!("unet.{Q}.lora_A.weight"), format!("unet.{Q}.lora_B.weight")];
    let text = unfit(&unet(), &[pair(&down, &up), pair(&dotted[0], &dotted[1])].concat());
    assert!(text.contains(&format!("changes {Q}, as another of its tensors does")), "{text}");
    let text = unfit(&golden("inpaint-tokens/vae"), &pair(&down, &up));
    assert!(text.ends_with("vae: a TAESD autoencoder takes no LoRA, expected a UNet or a text encoder"), "{text}");
}

#[test]
fn a_lora_is_recognised_and_is_no_model() {
    let names = [format!("{KOHYA_Q}.lora_down.weight"), format!("{KOHYA_Q}.lora_up.weight")];
    let (_dir, path) = file(&pair(&names[0], &names[1]));
    let found = recognise(&path).unwrap();
    assert!(matches!(found, Found::Lora { .. }) && found.name() == "LoRA");
    let text = found.load().err().unwrap().to_string();
    assert!(text.ends_with("is a LoRA, expected a model: a LoRA is given beside one, with --lora"), "{text}");
    assert!(matches!(recognise(&golden("lora-sd1/loras/rslora")).unwrap(), Found::Lora { .. }));
    assert!(matches!(recognise(&unet()).unwrap(), Found::Model { .. }));
}

/// Zeros in the names and shapes of a golden's file, as a file at `path`.
fn zeros(golden: &Path, path: &Path) {
    let recipe: Value = serde_json::from_str(&std::fs::read_to_string(golden.join("weights.json")).unwrap()).unwrap();
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    for row in recipe["tensors"].as_array().unwrap() {
        let (name, mut shape) = (row[0].as_str().unwrap(), serde_json::from_value::<Vec<usize>>(row[1].clone()).unwrap());
        if row.get(5).is_some() {
            shape.reverse();
        }
        match tensors.last_mut().filter(|above| above.0 == name) {
            Some(above) => above.1[0] += shape[0],
            None => tensors.push((name.to_string(), shape)),
        }
    }
    let mut writer = Writer::new();
    tensors.iter().for_each(|(name, shape)| writer.f32(name, shape, vec![0.0; shape.iter().product()]).unwrap());
    writer.write(path).unwrap();
}

/// One file holds three models, in the latent diffusion code's names; one LoRA changes all of them, in kohya's.
#[test]
fn a_single_file_takes_all_parts_of_a_lora() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("xl.safetensors");
    zeros(&golden("ldm-sdxl"), &path);
    let modules: [(&str, LoraPart, &str, [usize; 2]); 4] = [
        ("lora_unet_input_blocks_5_1_proj_in", LoraPart::Unet, "down_blocks.1.attentions.1.proj_in.weight", [64, 64]),
        ("lora_te1_text_model_encoder_layers_1_mlp_fc1", LoraPart::TextEncoder, "text_model.encoder.layers.1.mlp.fc1.weight", [256, 64]),
        ("lora_te2_text_model_encoder_layers_0_self_attn_k_proj", LoraPart::TextEncoder2, "text_model.encoder.layers.0.self_attn.k_proj.weight", [128, 128]),
        ("lora_te2_text_projection", LoraPart::TextEncoder2, "text_projection.weight", [128, 128]),
    ];
    let lora_path = dir.path().join("style.safetensors");
    let mut writer = Writer::new();
    for (module, _, _, [out, inputs]) in modules {
        writer.f32(&format!("{module}.lora_down.weight"), &[2, inputs], vec![0.5; 2 * inputs]).unwrap();
        writer.f32(&format!("{module}.lora_up.weight"), &[out, 2], vec![1.0; 2 * out]).unwrap();
        writer.f32(&format!("{module}.alpha"), &[], vec![1.0]).unwrap();
    }
    writer.write(&lora_path).unwrap();
    let loras = [Lora::open(&lora_path, 0.5).unwrap(), Lora::open(&lora_path, -2.0).unwrap()];
    recognise(&path).unwrap().with_loras(&loras).load().unwrap();

    let parts = ldm::parts(&Store::open(&path).unwrap()).unwrap();
    let mut stores = [parts.unet, parts.text_encoder, parts.text_encoder_2].map(|part| part.unwrap().store);
    let [unet, first, second] = &mut stores;
    lora::merge(&loras, &mut [(LoraPart::Unet, unet), (LoraPart::TextEncoder, first), (LoraPart::TextEncoder2, second)]).unwrap();
    for (_, part, name, shape) in modules {
        let store = &stores[LoraPart::FOLDERS.iter().position(|found| *found == part).unwrap()];
        let array = store.array(name).unwrap();
        // up down is 2 * 0.5, alpha / r is 1 / 2.
        assert!(array.dims() == shape && array.data.iter().all(|&v| v == (0.5 - 2.0) * 0.5), "{name}: {}", array.data[0]);
    }
    assert!(stores[2].array("text_model.encoder.layers.0.self_attn.q_proj.weight").unwrap().data.iter().all(|&v| v == 0.0));
    let without = lora::merge(&loras[..1], &mut [(LoraPart::Unet, &mut stores[0])]).unwrap_err().to_string();
    assert!(without.contains("for a text_encoder, which the model does not have"), "{without}");
}

/// The parts of a diffusers folder are loaded one by one, and each knows of the others.
#[test]
fn folders_of_one_model_answer_for_their_parts() {
    let dir = TempDir::new().unwrap();
    let rows = |names: &[String]| names.iter().map(|name| (name.clone(), if name.ends_with("down.weight") { [2, 24] } else { [24, 2] })).collect::<Vec<_>>();
    let names = |part: &str| ["lora_down.weight", "lora_up.weight"].map(|end| format!("{part}text_model_encoder_layers_0_self_attn_q_proj.{end}"));
    for folder in ["text_encoder", "text_encoder_2"] {
        let folder = dir.path().join(folder);
        std::fs::create_dir(&folder).unwrap();
        zeros(&golden("lora-clip-text"), &folder.join("model.safetensors"));
        std::fs::copy(golden("lora-clip-text/config.json"), folder.join("config.json")).unwrap();
    }
    let path = dir.path().join("style.safetensors");
    let open = |part: &str| {
        let mut writer = Writer::new();
        rows(&names(part)).iter().for_each(|(name, shape)| writer.f32(name, shape, vec![1.0; 48]).unwrap());
        writer.write(&path).unwrap();
        Lora::open(&path, 1.0).unwrap()
    };
    let load = |folder: &str, lora: &Lora| {
        recognise(&dir.path().join(folder)).unwrap().with_loras(std::slice::from_ref(lora)).load().map(|_| ()).map_err(|e| e.to_string())
    };
    // Alone, a text encoder is the first, whatever its folder is called.
    assert!(load("text_encoder_2", &open("lora_te2_")).unwrap_err().contains("for a text_encoder_2, which the model does not have"));
    std::fs::write(dir.path().join("model_index.json"), r#"{"_class_name": "StableDiffusionXLPipeline"}"#).unwrap();
    for folder in ["text_encoder", "text_encoder_2"] {
        for part in ["lora_te1_", "lora_te2_"] {
            assert_eq!(load(folder, &open(part)), Ok(()), "{folder} {part}");
        }
        assert!(load(folder, &open("lora_unet_")).unwrap_err().contains("for a unet, which the model does not have"));
    }
}

/// PEFT's folder and a model that it fits.
struct Attacked {
    dir: TempDir,
}

impl Attacked {
    fn new() -> Attacked {
        let (dir, from) = (TempDir::new().unwrap(), golden("lora-sd1"));
        std::fs::create_dir_all(dir.path().join("lora")).unwrap();
        zeros(&from, &dir.path().join("diffusion_pytorch_model.safetensors"));
        std::fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            std::fs::copy(from.join("loras/rslora").join(file), dir.path().join("lora").join(file)).unwrap();
        }
        Attacked { dir }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join("lora").join(file)
    }

    /// Opens the LoRA and merges it. A panic or an error of several lines fails the test.
    fn load(&self) -> Result<(), String> {
        let merged = Lora::open(&self.dir.path().join("lora"), 1.0).and_then(|lora| recognise(self.dir.path())?.with_loras(&[lora]).load());
        merged.map(|_| ()).map_err(|e| one_line(e.to_string()))
    }
}

#[test]
fn broken_files_are_one_error() {
    let attacked = Attacked::new();
    assert_eq!(attacked.load(), Ok(()));
    let path = attacked.path("adapter_model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let from = 8 + whole[8..].iter().position(|&byte| byte == b'}').unwrap() + 1;
    for length in [0, 7, 8, 8 + header / 2, 8 + header, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(attacked.load().unwrap_err().contains("adapter_model.safetensors"), "{length} bytes");
    }
    for at in (from..8 + header - 8).step_by(header / 120) {
        for flip in [0x01, 0x20, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            std::fs::write(&path, &bytes).unwrap();
            assert!(attacked.load().is_err(), "byte {at} changed by {flip:#x} was accepted");
        }
    }
}

#[test]
fn no_value_of_a_setting_breaks_the_program() {
    let attacked = Attacked::new();
    let path = attacked.path("adapter_config.json");
    let settings: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let poisons = [
        serde_json::json!(null),
        serde_json::json!(-1),
        serde_json::json!(1e300),
        serde_json::json!(u64::MAX),
        serde_json::json!("x".repeat(100_000)),
        serde_json::json!(true),
        serde_json::json!([1]),
        serde_json::json!({"(": {"b": 1}}),
        serde_json::json!({"to_q": 1}),
    ];
    let mut refused = 0;
    for field in settings.as_object().unwrap().keys() {
        for poison in &poisons {
            let mut changed = settings.clone();
            changed[field] = poison.clone();
            std::fs::write(&path, changed.to_string()).unwrap();
            refused += usize::from(attacked.load().is_err());
        }
    }
    assert!(refused > 100, "only {refused} refused");
    let mut changed = settings.clone();
    changed["surprise"] = serde_json::json!(1);
    std::fs::write(&path, changed.to_string()).unwrap();
    assert!(attacked.load().unwrap_err().contains("`surprise`"));
}
