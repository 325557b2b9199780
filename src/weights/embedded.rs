//! Safetensors that the program carries inside itself: small f32 and i32 tensors.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use crate::base::{Array, Error, Kind, Result, Shape};

/// Every tensor of `bytes`, in the file's axis order. i32 tensors keep their bits in the f32 values.
pub fn embedded(place: &str, bytes: &[u8]) -> Result<BTreeMap<String, Array>> {
    let wrong = |fact: String| Error::new(Kind::Format, place, fact);
    let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(e.to_string()))?;
    let mut arrays = BTreeMap::new();
    for (name, view) in file.tensors() {
        if !matches!(view.dtype(), Dtype::F32 | Dtype::I32) {
            return Err(wrong(format!("{name} is {:?}, expected F32 or I32", view.dtype())));
        }
        let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        arrays.insert(name, Array { shape: Shape::new(view.shape()), data });
    }
    Ok(arrays)
}
