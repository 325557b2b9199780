//! LoRA files: read under any of their conventions and added to a model's weights while those are loaded,
//! W + weight * alpha / r * up down. Nothing of a file is left unused in silence.
//! Source: Hu et al., arXiv:2106.09685, equation 3; `diffusers/loaders/peft.py`, `peft/tuners/lora/layer.py`;
//! kohya-ss/sd-scripts `networks/lora.py` (alpha).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::base::{Error, Kind, Result};
use crate::models::lora_config::{self, Adapter};
use crate::models::lora_names::{self, Convention, LoraPart, Place, Role};
use crate::models::lora_targets::Targets;
use crate::weights::{Config, LowRank, Store, View};

/// Files of a folder, in the order of preference: PEFT's, diffusers'.
const FILES: [&str; 4] = ["adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"];
const SETTINGS: &str = "adapter_config.json";
const METADATA: &str = "lora_adapter_metadata";
/// What trainers say of the model that they changed.
const BASE_MODEL: [&str; 3] = ["modelspec.architecture", "ss_base_model_version", "ss_sd_model_name"];
/// Names that an error lists.
const LISTED: usize = 6;
/// Shapes that do not fit that it lists.
const LISTED_SHAPES: usize = 2;
/// Largest weight that a user may give, either way.
const MAX_WEIGHT: f64 = 1e4;

/// A LoRA and the weight that the user gives it.
#[derive(Clone, Debug)]
pub struct Lora {
    /// As the user gave it.
    pub path: PathBuf,
    pub weight: f64,
    place: String,
    changes: Vec<Change>,
    conventions: BTreeSet<Convention>,
    base_model: Option<String>,
}

/// The change of one module.
#[derive(Clone, Debug)]
struct Change {
    place: Place,
    down: View,
    up: View,
    rank: usize,
    /// None: the file does not tell, and it is the rank.
    alpha: Option<f64>,
    /// alpha / r, or alpha / sqrt(r).
    scale: f64,
}

/// Tensors of one module, while they are found.
#[derive(Default)]
struct Found {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<String>,
}

/// What PEFT's settings say, by part.
type Adapters = Vec<(Option<LoraPart>, Adapter)>;

impl Lora {
    /// Opens a file, or a folder of PEFT or diffusers. Fails at what is no plain LoRA, with its name; no values are read.
    pub fn open(path: &Path, weight: f64) -> Result<Lora> {
        if !(weight.is_finite() && weight.abs() <= MAX_WEIGHT) {
            return Err(Error::new(Kind::Usage, path.display().to_string(), format!("weight {weight}, expected -{MAX_WEIGHT} to {MAX_WEIGHT}")));
        }
        let (file, settings) = files(path)?;
        let store = Store::open(&file)?;
        let place = store.place().to_string();
        let (found, conventions) = modules(&store)?;
        let adapters = adapters(&store, settings.as_deref())?;
        let changes = found.into_iter().map(|(place, found)| change(&store, place, found, &adapters)).collect::<Result<Vec<_>>>()?;
        let base_model = BASE_MODEL.iter().find_map(|name| store.metadata().get(*name)).map(|text| text.chars().take(120).collect());
        Ok(Lora { path: path.to_path_buf(), weight, place, changes, conventions, base_model })
    }

    /// What `inspect` shows.
    pub fn facts(&self) -> Value {
        let mut parts: BTreeMap<&str, Vec<&Change>> = BTreeMap::new();
        for change in &self.changes {
            parts.entry(change.place.part.map_or("unet or other single model", LoraPart::name)).or_default().push(change);
        }
        let of = |changes: &[&Change]| {
            let ranks: BTreeSet<usize> = changes.iter().map(|change| change.rank).collect();
            let alphas: BTreeSet<String> = changes.iter().map(|change| change.alpha.map_or("as the rank".to_string(), |alpha| alpha.to_string())).collect();
            json!({ "modules": changes.len(), "ranks": ranks, "alphas": alphas })
        };
        let parts: serde_json::Map<String, Value> = parts.iter().map(|(part, changes)| (part.to_string(), of(changes))).collect();
        let names: Vec<&str> = self.conventions.iter().map(|convention| convention.words()).collect();
        json!({ "names": names, "parts": parts, "base_model": self.base_model })
    }

    /// Adds the changes to the parts of one model; gives what does not fit, in words.
    fn add_to(&self, parts: &mut [(LoraPart, &mut Store)], targets: &[Targets]) -> Vec<String> {
        let mut troubles = Troubles::default();
        let mut seen = BTreeSet::new();
        // A name without a part is the UNet's, or else the model's that is being loaded.
        let unet = parts.iter().position(|(part, _)| *part == LoraPart::Unet).unwrap_or(0);
        for change in &self.changes {
            let own = change.down.own_name();
            let at = change.place.part.map_or(Some(unet), |wanted| parts.iter().position(|(part, _)| *part == wanted));
            let Some(at) = at else {
                troubles.absent.entry(change.place.part).or_default().push(own.to_string());
                continue;
            };
            let Some(module) = targets[at].find(&change.place) else {
                troubles.unused.entry(parts[at].0).or_default().push(own.to_string());
                continue;
            };
            if !seen.insert((at, module)) {
                troubles.others.push(format!("{own} changes {module}, as another of its tensors does"));
                continue;
            }
            let scale = (self.weight * change.scale) as f32;
            let delta = LowRank { up: change.up.clone(), mid: None, down: change.down.clone(), scale };
            if let Err(error) = parts[at].1.add_low_rank(&format!("{module}.weight"), delta) {
                // The model's file stands at the end of the whole error.
                let remark = format!(" ({})", parts[at].1.place());
                let fact = error.fact();
                troubles.others.push(format!("{} {}", error.place(), fact.strip_suffix(&remark).unwrap_or(fact)));
            }
        }
        troubles.words()
    }
}

/// What of a LoRA does not fit a model.
#[derive(Default)]
struct Troubles {
    absent: BTreeMap<Option<LoraPart>, Vec<String>>,
    unused: BTreeMap<LoraPart, Vec<String>>,
    others: Vec<String>,
}

impl Troubles {
    fn words(&self) -> Vec<String> {
        let absent = |(part, names): (&Option<LoraPart>, &Vec<String>)| {
            let part = part.map_or("part", LoraPart::name);
            format!("{} for a {part}, which the model does not have", list(names))
        };
        let unused = |(part, names): (&LoraPart, &Vec<String>)| format!("unused {}: the {} has no such modules", list(names), part.name());
        let mut words: Vec<String> = self.absent.iter().map(absent).chain(self.unused.iter().map(unused)).collect();
        words.extend(self.others.iter().take(LISTED_SHAPES).cloned());
        if self.others.len() > LISTED_SHAPES {
            words.push(format!("and {} more", self.others.len() - LISTED_SHAPES));
        }
        words
    }
}

/// Adds LoRAs to the parts of one model, the part that is being loaded first. What a LoRA has for a part or module that is not
/// there is one error that lists it.
pub fn merge(loras: &[Lora], parts: &mut [(LoraPart, &mut Store)]) -> Result<()> {
    if loras.is_empty() {
        return Ok(());
    }
    let targets: Vec<Targets> = parts.iter().map(|(part, store)| Targets::of(store, *part)).collect();
    for lora in loras {
        let troubles = lora.add_to(parts, &targets);
        if !troubles.is_empty() {
            let model = parts.first().map_or(String::new(), |(_, store)| store.place().to_string());
            return Err(Error::new(Kind::Weights, &lora.place, troubles.join("; ")).remark(&model));
        }
    }
    Ok(())
}

/// Whether the tensors are a LoRA's, or one of its relatives'.
pub fn is_lora(store: &Store) -> bool {
    store.names().any(lora_names::is_telling)
}

/// Whether a folder is one that holds a LoRA and no model.
pub fn is_folder(path: &Path) -> bool {
    path.is_dir() && FILES.iter().chain([&SETTINGS]).any(|name| path.join(name).is_file())
}

/// The file of tensors, and PEFT's settings where they stand beside it.
fn files(path: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let file = match path.is_dir() {
        false => path.to_path_buf(),
        true => FILES.iter().map(|name| path.join(name)).find(|file| file.is_file()).ok_or_else(|| {
            let fact = format!("no LoRA in this folder, expected {}", FILES.join(", "));
            Error::new(Kind::Io, path.display().to_string(), fact)
        })?,
    };
    let is_peft = file.file_name().is_some_and(|name| FILES[..2].iter().any(|told| name == *told));
    let settings = file.with_file_name(SETTINGS);
    Ok((file, Some(settings).filter(|settings| is_peft && settings.is_file())))
}

fn error(store: &Store, fact: impl Into<String>) -> Error {
    Error::new(Kind::Weights, store.place(), fact)
}

/// Tensors by module. Fails at the first kind of tensor that is none of a LoRA's, and counts its like.
fn modules(store: &Store) -> Result<(BTreeMap<Place, Found>, BTreeSet<Convention>)> {
    if let Some(kind) = store.names().find_map(lora_names::other_kind) {
        let names: Vec<&str> = store.names().filter(|name| lora_names::other_kind(name) == Some(kind)).collect();
        return Err(error(store, format!("{} is {kind}, expected plain LoRA: no other kind of change is supported", list(&names))));
    }
    let strangers: Vec<&str> = store.names().filter(|name| lora_names::parse(name).is_none()).collect();
    if !strangers.is_empty() {
        return Err(error(
            store,
            format!("{} is no part of a LoRA, expected lora_A and lora_B, lora.down and lora.up, or lora_down and lora_up", list(&strangers)),
        ));
    }
    let (mut found, mut conventions): (BTreeMap<Place, Found>, _) = (BTreeMap::new(), BTreeSet::new());
    for (text, name) in store.names().filter_map(|text| Some((text, lora_names::parse(text)?))) {
        let module = found.entry(name.place).or_default();
        let slot = match name.role {
            Role::Down => &mut module.down,
            Role::Up => &mut module.up,
            Role::Alpha => &mut module.alpha,
        };
        if let Some(other) = slot.replace(text.to_string()) {
            return Err(error(store, format!("{} and {} are of one module, expected one LoRA in a file", list(&[other]), list(&[text]))));
        }
        if name.role != Role::Alpha {
            conventions.insert(name.convention);
        }
    }
    if found.is_empty() {
        return Err(error(store, "holds no tensors, expected a LoRA"));
    }
    Ok((found, conventions))
}

/// What PEFT says of the tensors: in its own file, or in the metadata.
fn adapters(store: &Store, settings: Option<&Path>) -> Result<Adapters> {
    if let Some(path) = settings {
        return Ok(vec![(None, Adapter::from_config(&Config::read(path)?)?)]);
    }
    if let Some(text) = store.metadata().get(METADATA) {
        return lora_config::from_metadata(text, store.place());
    }
    let wrapped = store.names().find(|name| name.starts_with(lora_names::WRAPPED));
    match wrapped {
        None => Ok(Vec::new()),
        Some(name) => Err(error(store, format!("{} is of PEFT, expected adapter_config.json beside adapter_model: it says lora_alpha", list(&[name])))),
    }
}

fn change(store: &Store, place: Place, found: Found, adapters: &Adapters) -> Result<Change> {
    let known = [&found.down, &found.up, &found.alpha].into_iter().flatten().next().cloned().unwrap_or_default();
    let (Some(down), Some(up)) = (found.down, found.up) else {
        return Err(error(store, format!("{} stands alone, expected both factors of its module", list(&[known]))));
    };
    let (down, up) = (factor(store, &down)?, factor(store, &up)?);
    let rank = down.shape().first().copied().unwrap_or(0);
    if rank == 0 {
        return Err(error(store, format!("{} is {:?}, expected a rank of 1 or more", down.own_name(), down.shape())));
    }
    let adapter = adapters.iter().find(|(part, _)| part.is_none() || *part == place.part).map(|(_, adapter)| adapter);
    let (alpha, scale) = match (found.alpha, adapter) {
        (Some(name), Some(_)) => return Err(error(store, format!("{} stands beside settings of PEFT, expected one of both", list(&[name])))),
        (Some(name), None) => alpha(store, &name).map(|alpha| (Some(alpha), alpha / rank as f64))?,
        (None, Some(adapter)) if place.flat && adapter.has_patterns() => {
            return Err(error(store, format!("{} has no dots, and rank_pattern or alpha_pattern are of paths with dots", list(&[place.module]))));
        }
        (None, Some(adapter)) => adapter.scale(&place.module, rank).map(|(alpha, scale)| (Some(alpha), scale)).map_err(|fact| error(store, fact))?,
        (None, None) => (None, 1.0),
    };
    Ok(Change { place, down, up, rank, alpha, scale })
}

fn factor(store: &Store, name: &str) -> Result<View> {
    let view = store.view(name)?;
    let dtype = view.dtype_name();
    if !["F16", "BF16", "F32", "F64"].contains(&dtype.as_str()) {
        return Err(error(store, format!("{} has dtype {dtype}, expected F16, BF16, F32 or F64", list(&[name]))));
    }
    Ok(view)
}

fn alpha(store: &Store, name: &str) -> Result<f64> {
    let shape = store.shape(name).unwrap_or(&[]);
    if shape.iter().any(|&d| d != 1) {
        return Err(error(store, format!("{} is {shape:?}, expected one number", list(&[name]))));
    }
    let value = store.array(name)?.data.first().copied().unwrap_or(f32::NAN);
    if value.is_finite() { Ok(f64::from(value)) } else { Err(error(store, format!("{} is {value}, expected a finite number", list(&[name])))) }
}

/// Names in an error: the first of them, each in part.
fn list(names: &[impl AsRef<str>]) -> String {
    let shown: Vec<String> = names.iter().take(LISTED).map(|name| name.as_ref().chars().take(160).collect()).collect();
    let more = if names.len() > LISTED { format!(" and {} more", names.len() - LISTED) } else { String::new() };
    shown.join(", ") + &more
}
