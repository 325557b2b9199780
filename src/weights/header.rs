//! The header of a safetensors file: eight bytes of length, then JSON with dtype, shape and byte range of each tensor.
//! Source: <https://github.com/huggingface/safetensors#format>.
//!
//! The safetensors crate accepts and rejects the same files, but its errors do not name the tensor, and of two tensors
//! with one name it keeps the last. Nothing here allocates by what a header claims.

use std::ops::Range;

use safetensors::tensor::{Dtype, TensorInfo};

use crate::weights::json::{Object, shorten, why};

/// Largest header that the format allows, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One tensor of a file.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes of its values in the file.
    pub bytes: Range<usize>,
}

pub(crate) struct Header {
    /// In the order of the bytes.
    pub tensors: Vec<Tensor>,
    pub metadata: Vec<(String, String)>,
}

/// First bytes of formats that are often given in place of safetensors. PyTorch files are told before this.
const LOOKALIKES: [(&[u8], &str); 3] =
    [(b"GGUF", "a GGUF file"), (b"\x89HDF", "an HDF5 file"), (b"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded")];

/// Reads and checks the header of `file`. An error is a fact that lacks its place.
pub(crate) fn parse(file: &[u8]) -> Result<Header, String> {
    if let Some((_, what)) = LOOKALIKES.iter().find(|(magic, _)| file.starts_with(magic)) {
        return Err(format!("is {what}, expected safetensors"));
    }
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("{} bytes, expected a safetensors file of at least 8", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        // An ONNX ModelProto opens with field 1, its format version, and a text field.
        if matches!(file, [0x08, 1..=31, 0x12, ..]) {
            return Err("is an ONNX file, expected safetensors".to_string());
        }
        return Err(format!("header of {length} bytes, expected at most {MAX_HEADER_BYTES}: not a safetensors file"));
    }
    let text = rest.get(..length as usize).ok_or_else(|| format!("header of {length} bytes in a file of {}: truncated, or not safetensors", file.len()))?;
    let text = std::str::from_utf8(text).map_err(|_| "header is not UTF-8 text: not a safetensors file".to_string())?;
    let Object(pairs) = serde_json::from_str(text).map_err(|e| format!("header is not the JSON of a safetensors file: {}", why(&e)))?;
    let start = 8 + length as usize;
    let mut header = Header { tensors: Vec::with_capacity(pairs.len()), metadata: Vec::new() };
    for (name, value) in pairs {
        if name == "__metadata__" {
            header.metadata = metadata(value)?;
        } else {
            header.tensors.push(tensor(name, value, file.len() - start)?);
        }
    }
    contiguous(&mut header.tensors, file.len() - start)?;
    for tensor in &mut header.tensors {
        tensor.bytes = tensor.bytes.start + start..tensor.bytes.end + start;
    }
    Ok(header)
}

fn metadata(value: serde_json::Value) -> Result<Vec<(String, String)>, String> {
    let object = value.as_object().ok_or("__metadata__ is not an object of texts")?;
    let text = |(k, v): (&String, &serde_json::Value)| Some((k.clone(), v.as_str()?.to_string()));
    object.iter().map(|pair| text(pair).ok_or_else(|| format!("__metadata__: `{}` is not a text", shorten(pair.0)))).collect()
}

/// One entry, its range relative to the first data byte and inside of `data_bytes`.
fn tensor(name: String, value: serde_json::Value, data_bytes: usize) -> Result<Tensor, String> {
    let at = |fact: String| format!("tensor `{}`: {fact}", shorten(&name));
    let info: TensorInfo = serde_json::from_value(value).map_err(|e| at(format!("{}, expected dtype, shape and data_offsets", why(&e))))?;
    let (from, to) = info.data_offsets;
    if from > to || to > data_bytes {
        return Err(at(format!("bytes {from}..{to}, expected a range within the {data_bytes} bytes that the file holds (truncated?)")));
    }
    let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &d| n.checked_mul(d));
    let bytes = bits.filter(|b| b % 8 == 0).map(|b| b / 8);
    if bytes != Some(to - from) {
        let need = bytes.map_or("more bytes than fit in memory".to_string(), |b| format!("{b} bytes"));
        return Err(at(format!("{} bytes, but {} {:?} needs {need}", to - from, info.dtype, Shorter(&info.shape))));
    }
    Ok(Tensor { name, dtype: info.dtype, shape: info.shape, bytes: from..to })
}

/// Sorts by offset; the ranges must follow each other without gap or overlap and end where the file ends.
fn contiguous(tensors: &mut [Tensor], data_bytes: usize) -> Result<(), String> {
    tensors.sort_by_key(|t| (t.bytes.start, t.bytes.end));
    let mut end = 0;
    let mut previous = "";
    for tensor in tensors.iter() {
        let name = shorten(&tensor.name);
        if tensor.bytes.start < end {
            return Err(format!("tensor `{name}`: bytes {:?} overlap those of `{}`", tensor.bytes, shorten(previous)));
        }
        if tensor.bytes.start > end {
            return Err(format!("tensor `{name}`: starts at byte {}, expected {end}: bytes that belong to no tensor", tensor.bytes.start));
        }
        end = tensor.bytes.end;
        previous = &tensor.name;
    }
    if end != data_bytes {
        return Err(format!("{data_bytes} bytes of values, expected {end}: the last tensor ends before the file"));
    }
    Ok(())
}

/// A shape of which an error shows at most eight axes.
struct Shorter<'a>(&'a [usize]);

impl std::fmt::Debug for Shorter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.len() <= 8 { write!(f, "{:?}", self.0) } else { write!(f, "[{} axes]", self.0.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn reads_what_the_crate_writes() {
        let data = [1u8, 0, 2, 0, 3, 0];
        let view = safetensors::tensor::TensorView::new(Dtype::F16, vec![3], &data).unwrap();
        let bytes = safetensors::serialize([("a", view)], None).unwrap();
        let header = parse(&bytes).unwrap();
        assert_eq!((header.tensors[0].name.as_str(), header.tensors[0].shape.as_slice()), ("a", &[3usize][..]));
        assert_eq!(&bytes[header.tensors[0].bytes.clone()], &data);
    }

    #[test]
    fn agrees_with_the_crate_on_hostile_headers() {
        let rows: &[(&str, usize, &str)] = &[
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 7, "within the 7 bytes"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 9, "ends before the file"),
            (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8, "F32 [3] needs 12 bytes"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "bytes 8..0"),
            (r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8, "expected dtype, shape"),
            (r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#, 8, "unknown variant"),
            (r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#, 8, "more bytes than fit"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12, "belong to no tensor"),
            (r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#, 6, "overlap those of `a`"),
            (r#"{"a":{"dtype":"F32","shape":[1]}}"#, 4, "data_offsets"),
            (r#"{"__metadata__":{"a":1}}"#, 0, "not a text"),
            (r#"[1]"#, 0, "expected a JSON object"),
            (r#"{"a""#, 0, "JSON"),
        ];
        for (header, data, want) in rows {
            let bytes = file(header, *data);
            let fact = parse(&bytes).err().unwrap_or_else(|| panic!("{header} was accepted"));
            assert!(fact.contains(want), "{header}: {fact}");
            assert!(safetensors::SafeTensors::deserialize(&bytes).is_err(), "the crate accepts {header}");
        }
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        assert!(parse(&file(twice, 1)).err().unwrap().contains("twice"));
    }

    #[test]
    fn says_what_the_file_is_instead() {
        let fact = |bytes: &[u8]| parse(bytes).err().unwrap();
        assert!(fact(b"").contains("0 bytes"));
        assert!(fact(b"GGUF\x03\x00\x00\x00").contains("GGUF"));
        assert!(fact(b"version https://git-lfs.github.com/spec/v1").contains("LFS"));
        assert!(fact(b"\x08\x06\x12\x07pytorch\x1a\x03").contains("ONNX"));
        assert!(fact(&[0xff; 64]).contains("not a safetensors file"));
        assert!(fact(&file("{}", 0)[..9]).contains("truncated"));
        assert!(fact(&file("\u{0}\u{1}", 0)).contains("JSON"));
    }
}
