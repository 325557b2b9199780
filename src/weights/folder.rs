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
    let wanted = format!("expected {} or one of them with .index.json", FILE_NAMES.join(", "));
    Err(Error::new(Kind::Io, folder.display().to_string(), format!("no weights in this folder, {wanted}{}", other_weights(folder))))
}

/// Files of a folder that hold weights under another name or in another format, for an error.
fn other_weights(folder: &Path) -> String {
    let is_like_weights = |name: &String| [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".msgpack"].iter().any(|end| name.ends_with(end));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| shorten(&entry.file_name().to_string_lossy())).filter(is_like_weights).take(4).collect();
    names.sort();
    if names.is_empty() { String::new() } else { format!("; it holds {}", names.join(", ")) }
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
