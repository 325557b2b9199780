//! The components of a model as tapes, for `inspect` and `bench`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::base::{DType, Result};
use crate::models::resnet::ResNet;
use crate::models::taesd::Taesd;
use crate::models::unet_2d::{ClassInput, UNet2DModel};
use crate::plan::Tape;

/// One component's facts.
pub(crate) struct Component {
    pub(crate) name: &'static str,
    /// Row name of `bench`.
    pub(crate) key: &'static str,
    pub(crate) parameters: u64,
    pub(crate) detail: Value,
    /// One forward; empty for what is only a collection.
    pub(crate) tape: Tape,
}

/// The component's folder: `PATH/<name>` of a model folder, or PATH itself.
pub(crate) fn component_folder(path: &Path, name: &str) -> PathBuf {
    if path.join("model_index.json").is_file() { path.join(name) } else { path.to_path_buf() }
}

/// One forward of `batch` samples at the config's sample size.
pub(crate) fn unet(model: &UNet2DModel, batch: usize) -> Result<Component> {
    let c = &model.config;
    let multiple = c.size_multiple();
    let [h, w] = c.sample_size.unwrap_or([32usize.next_multiple_of(multiple); 2]);
    let mut tape = Tape::new();
    let sample = tape.input("sample", &[batch, h, w, c.in_channels], DType::F32);
    let timestep = tape.input("timestep", &[batch], DType::F32);
    let class = model.class_input().map(|class| match class {
        ClassInput::Labels(_) => tape.input("class_labels", &[batch], DType::U32),
        ClassInput::Timestep => tape.input("class_labels", &[batch], DType::F32),
        ClassInput::Vector(width) => tape.input("class_labels", &[batch, width], DType::F32),
    });
    let y = model.forward(&mut tape, sample, timestep, class)?;
    tape.output("sample", y);
    Ok(Component {
        name: "unet (UNet2DModel)",
        key: "unet",
        parameters: model.parameters,
        detail: json!({
            "sample": [batch, c.in_channels, h, w], "out_channels": c.out_channels, "block_out_channels": c.block_out_channels,
            "classes": match model.class_input() { Some(ClassInput::Labels(rows)) => json!(rows), _ => Value::Null },
        }),
        tape,
    })
}

/// Encoder and decoder of `batch` images of `size` pixels a side, rounded up to what the model halves.
pub(crate) fn taesd(model: &Taesd, batch: usize, size: usize) -> Result<Vec<Component>> {
    let factor = model.config.downscale;
    let size = size.next_multiple_of(factor);
    let detail = json!({ "variant": model.config.variant, "latent_channels": model.config.latent_channels, "downscale": factor, "image_size": size });
    let mut encoder = Tape::new();
    let x = encoder.input("sample", &[batch, size, size, 3], DType::F32);
    let y = model.encode(&mut encoder, x)?;
    encoder.output("latents", y);
    let mut decoder = Tape::new();
    let x = decoder.input("latents", &[batch, size / factor, size / factor, model.config.latent_channels], DType::F32);
    let y = model.decode(&mut decoder, x)?;
    decoder.output("sample", y);
    Ok(vec![
        Component { name: "vae encoder (TAESD)", key: "vae_encoder", parameters: model.parameters(), detail: detail.clone(), tape: encoder },
        Component { name: "vae decoder (TAESD)", key: "vae_decoder", parameters: model.parameters(), detail, tape: decoder },
    ])
}

/// Features and logits of `batch` images of the config's input size.
pub(crate) fn resnet(model: &ResNet, batch: usize) -> Result<Component> {
    let [h, w] = model.config.preprocess.input_size;
    let mut tape = Tape::new();
    let x = tape.input("pixel_values", &[batch, h, w, 3], DType::F32);
    let features = model.features(&mut tape, x)?;
    tape.output("features", features);
    if model.config.num_classes > 0 {
        let logits = model.logits(&mut tape, features)?;
        tape.output("logits", logits);
    }
    Ok(Component {
        name: "classifier (ResNet)",
        key: "classifier",
        parameters: model.parameters,
        detail: json!({
            "architecture": model.config.architecture, "num_features": model.num_features, "num_classes": model.config.num_classes,
            "label_names": model.config.label_names, "input_size": [h, w],
        }),
        tape,
    })
}
