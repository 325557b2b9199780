//! Which file of a folder holds the weights, and the index of a checkpoint in several files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::base::{Error, Kind, Result};
use crate::weights::json::{Object, shorten, why};

/// Names that a folder's weights have, in the order of preference; each may also be split, with `<name>.index.json`.
/// Weights in half precision are taken where there are no others.
const FILE_NAMES: [&str; 9] = [
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
    "model.pth",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.bin",
    "pytorch_model.fp16.bin",
];
/// Ends of the names of files that a store opens, and of weights in other formats.
const ENDINGS: [&str; 6] = [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".th"];
const ELSEWHERE: [&str; 3] = [".onnx", ".msgpack", ".h5"];
/// Files with such ends that hold no weights.
const OF_TRAINING: [&str; 4] = ["training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt"];
/// Largest index of a split checkpoint, in bytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The checkpoint file of a folder.
pub(crate) fn weights_in(folder: &Path) -> Result<PathBuf> {
    for name in FILE_NAMES {
        // diffusers puts the variant of a split checkpoint behind `index`: model.safetensors.index.fp16.json.
        let variant = name.replace(".fp16", "") + ".index.fp16.json";
        let names = [name.to_string(), format!("{name}.index.json"), variant];
        let count = if name.contains(".fp16") { 3 } else { 2 };
        if let Some(path) = names[..count].iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
            return Ok(path);
        }
    }
    let others = others(folder);
    let readable: Vec<&String> = others.iter().filter(|name| ENDINGS.iter().any(|end| name.ends_with(end)) && !OF_TRAINING.contains(&name.as_str())).collect();
    if let [one] = readable.as_slice() {
        return Ok(folder.join(one));
    }
    let wanted = format!("expected {}, one of them with .index.json, or one file of another name", FILE_NAMES.join(", "));
    let names: Vec<String> = others.iter().take(4).map(|name| shorten(name)).collect();
    let held = if names.is_empty() { String::new() } else { format!("; it holds {}", names.join(", ")) };
    Err(Error::new(Kind::Io, folder.display().to_string(), format!("no weights in this folder, {wanted}{held}")))
}

/// Files of a folder that hold weights under another name or in another format, sorted.
fn others(folder: &Path) -> Vec<String> {
    let is_like_weights = |name: &String| ENDINGS.iter().chain(&ELSEWHERE).any(|end| name.ends_with(end));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(is_like_weights).collect();
    names.sort();
    names
}

/// The `weight_map` of an index: tensor name to file name.
pub(crate) fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let place = index.display().to_string();
    let bad = |fact: String| Error::new(Kind::Format, place.clone(), fact);
    let size = std::fs::metadata(index).map_err(|e| Error::io(index, &e))?.len();
    if size > MAX_INDEX_BYTES {
        return Err(bad(format!("{size} bytes, expected an index of at most {MAX_INDEX_BYTES}")));
    }
    let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, &e))?;
    let Object(pairs) = serde_json::from_str(&text).map_err(|e| bad(format!("not an index of weight files: {}", why(&e))))?;
    let map = pairs.into_iter().find(|(name, _)| name == "weight_map").map(|(_, value)| value);
    let map = map.as_ref().and_then(|v| v.as_object()).ok_or_else(|| bad("no `weight_map`, expected an object of tensor and file names".to_string()))?;
    let mut out = BTreeMap::new();
    for (name, file) in map {
        // A file beside the index: a path could lead anywhere.
        let plain = |f: &&str| [".safetensors", ".bin"].iter().any(|end| f.ends_with(end)) && !f.contains(['/', '\\', ':', '\0']);
        let file = file.as_str().filter(plain).ok_or_else(|| {
            bad(format!("weight_map: `{}` is in {}, expected the name of a .safetensors or .bin file", shorten(name), shorten(&file.to_string())))
        })?;
        out.insert(name.clone(), file.to_string());
    }
    Ok(out)
}
