//! The components of a model as tapes, for `forward`, `inspect` and `bench`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::base::{Error, Kind, Result};
use crate::models::{Component, Inputs, Lora, Model, recognise};
use crate::plan::Tape;

/// One component's facts.
pub(crate) struct Part {
    /// `unet (diffusers UNet2DModel)`.
    pub(crate) name: String,
    /// Row name of `bench`.
    pub(crate) key: String,
    pub(crate) parameters: u64,
    pub(crate) dropped: Vec<String>,
    pub(crate) facts: Value,
    /// One forward; empty for what is only a collection.
    pub(crate) tape: Tape,
}

impl Part {
    /// What is no network.
    pub(crate) fn facts(name: &str, facts: Value) -> Part {
        Part { name: name.to_string(), key: name.to_string(), parameters: 0, dropped: Vec::new(), facts, tape: Tape::new() }
    }
}

/// The component's folder: `PATH/<name>` of a model folder, or PATH itself.
pub(crate) fn component_folder(path: &Path, component: Component) -> PathBuf {
    match component.folder() {
        Some(folder) if path.join("model_index.json").is_file() => path.join(folder),
        _ => path.to_path_buf(),
    }
}

/// Loads the model at `path` that has `component`, with LoRAs merged.
pub(crate) fn load_component(path: &Path, component: Component, loras: &[Lora]) -> Result<Box<dyn Model>> {
    let folder = component_folder(path, component);
    let found = recognise(&folder)?.with_loras(loras);
    let model = found.load()?;
    let components = model.components();
    if components.contains(&component) {
        return Ok(model);
    }
    let names: Vec<&str> = components.iter().map(|c| c.name()).collect();
    let fact = format!("{} has no {}, expected {}", found.name(), component.name(), names.join(" or "));
    Err(Error::new(Kind::Usage, folder.display().to_string(), fact))
}

/// One forward of `batch` items for each of the model's components.
pub(crate) fn parts(model: &dyn Model, architecture: &str, batch: usize) -> Result<Vec<Part>> {
    model.components().into_iter().map(|component| part(model, component, architecture, batch)).collect()
}

/// One forward of `batch` items at the size that the configuration tells.
pub(crate) fn part(model: &dyn Model, component: Component, architecture: &str, batch: usize) -> Result<Part> {
    let mut tape = Tape::new();
    let inputs = model.ports(component, batch).into_iter().filter(|port| !port.optional).map(|port| {
        let tensor = tape.input(&port.name, &port.shape, port.dtype);
        (port.name, tensor)
    });
    let inputs = Inputs::new(inputs.collect::<Vec<_>>());
    for output in model.record(&mut tape, component, &inputs)? {
        tape.output(&output.name, output.tensor);
    }
    Ok(Part {
        name: format!("{} ({architecture})", component.name()),
        key: component.name().replace('-', "_"),
        parameters: model.parameters(),
        dropped: model.dropped().to_vec(),
        facts: Value::Object(model.facts().into_iter().map(|(name, value)| (name.to_string(), value)).collect::<Map<_, _>>()),
        tape,
    })
}
