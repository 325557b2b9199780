//! Tensors of an ONNX file: raw in the file, in a file beside it, or as typed lists.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::weights::mapped::Mapped;
use crate::weights::protobuf::Message;
use half::{bf16, f16};

/// An element type; strings, complex numbers and packed small types are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnnxType {
    F32,
    F64,
    F16,
    BF16,
    U8,
    I8,
    U16,
    I16,
    I32,
    I64,
    U32,
    U64,
    Bool,
}

impl OnnxType {
    /// By its number in TensorProto.DataType.
    pub fn of(number: i64) -> std::result::Result<OnnxType, String> {
        Ok(match number {
            1 => OnnxType::F32,
            2 => OnnxType::U8,
            3 => OnnxType::I8,
            4 => OnnxType::U16,
            5 => OnnxType::I16,
            6 => OnnxType::I32,
            7 => OnnxType::I64,
            9 => OnnxType::Bool,
            10 => OnnxType::F16,
            11 => OnnxType::F64,
            12 => OnnxType::U32,
            13 => OnnxType::U64,
            16 => OnnxType::BF16,
            other => return Err(format!("element type {other}, expected a float, an integer or bool (1 to 7, 9 to 13, 16)")),
        })
    }

    pub fn is_float(self) -> bool {
        matches!(self, OnnxType::F32 | OnnxType::F64 | OnnxType::F16 | OnnxType::BF16)
    }

    fn bytes(self) -> usize {
        match self {
            OnnxType::F64 | OnnxType::I64 | OnnxType::U64 => 8,
            OnnxType::F32 | OnnxType::I32 | OnnxType::U32 => 4,
            OnnxType::F16 | OnnxType::BF16 | OnnxType::I16 | OnnxType::U16 => 2,
            OnnxType::U8 | OnnxType::I8 | OnnxType::Bool => 1,
        }
    }
}

/// From here on a tensor's pages are given back once it was read.
const LARGE_BYTES: usize = 1 << 16;

/// Where the values are.
#[derive(Clone, Debug)]
enum Content {
    /// Little-endian, in a mapped file.
    Mapped(Arc<Mapped>, Range<usize>),
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

/// A tensor whose values are as many as its shape says. Reading them is the caller's choice: the file stays mapped until then.
#[derive(Clone, Debug)]
pub struct OnnxTensor {
    pub name: String,
    pub dims: Vec<usize>,
    pub kind: OnnxType,
    content: Content,
}

/// What a TensorProto says, before it is checked.
#[derive(Default)]
struct Told<'a> {
    name: &'a str,
    dims: Vec<i64>,
    kind: i64,
    raw: Option<&'a [u8]>,
    floats: Vec<f32>,
    integers: Vec<i64>,
    external: Vec<(&'a str, &'a str)>,
    is_external: bool,
}

impl<'a> Told<'a> {
    fn read(bytes: &'a [u8]) -> std::result::Result<Told<'a>, String> {
        let (mut told, mut message) = (Told::default(), Message::new(bytes));
        while let Some((number, field)) = message.next()? {
            match number {
                1 => field.integers(&mut told.dims)?,
                2 => told.kind = field.integer()?,
                3 => return Err("a tensor in segments, expected a whole one".to_string()),
                4 => field.floats(&mut told.floats)?,
                5 | 7 | 11 => field.integers(&mut told.integers)?,
                8 => told.name = field.text()?,
                9 => told.raw = Some(field.bytes()?),
                10 => field.doubles(&mut told.floats)?,
                13 => told.external.push(entry(field.bytes()?)?),
                14 => told.is_external = field.integer()? == 1,
                _ => {}
            }
        }
        Ok(told)
    }

    fn external(&self, key: &str) -> Option<&'a str> {
        self.external.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }
}

/// Key and value of a StringStringEntryProto.
fn entry(bytes: &[u8]) -> std::result::Result<(&str, &str), String> {
    let (mut pair, mut message) = (("", ""), Message::new(bytes));
    while let Some((number, field)) = message.next()? {
        match number {
            1 => pair.0 = field.text()?,
            2 => pair.1 = field.text()?,
            _ => {}
        }
    }
    Ok(pair)
}

/// The mapped file of a model, and those beside it that hold its larger tensors.
pub(super) struct Files<'a> {
    pub path: &'a Path,
    pub map: Arc<Mapped>,
    pub beside: Vec<(String, Arc<Mapped>)>,
}

impl Files<'_> {
    /// The file `location` beside the model.
    fn beside(&mut self, location: &str) -> std::result::Result<Arc<Mapped>, String> {
        let is_plain = !location.is_empty() && !location.contains(['/', '\\', ':', '\0']) && location != "." && location != "..";
        if !is_plain {
            return Err(format!("its values are in `{}`, expected the name of a file beside the model", super::json::shorten(location)));
        }
        if let Some((_, map)) = self.beside.iter().find(|(name, _)| name == location) {
            return Ok(map.clone());
        }
        let map = Arc::new(Mapped::open(&self.path.with_file_name(location), "the values of tensors").map_err(|e| e.to_string())?);
        self.beside.push((location.to_string(), map.clone()));
        Ok(map)
    }

    /// Map and range of a tensor's raw values; None where they are in typed lists.
    fn raw(&mut self, told: &Told) -> std::result::Result<Option<(Arc<Mapped>, Range<usize>)>, String> {
        if !told.is_external {
            let start = |raw: &[u8]| raw.as_ptr() as usize - self.map.bytes().as_ptr() as usize;
            return Ok(told.raw.map(|raw| (self.map.clone(), start(raw)..start(raw) + raw.len())));
        }
        let map = self.beside(told.external("location").unwrap_or_default())?;
        let number = |key: &str, default: usize| match told.external(key) {
            Some(text) => text.parse::<usize>().map_err(|_| format!("external {key} `{}`, expected a number", super::json::shorten(text))),
            None => Ok(default),
        };
        let offset = number("offset", 0)?;
        let length = number("length", map.bytes().len().saturating_sub(offset))?;
        match offset.checked_add(length) {
            Some(end) if end <= map.bytes().len() => Ok(Some((map, offset..end))),
            _ => Err(format!("its values are {length} bytes from {offset} on, expected a part of the file's {}", map.bytes().len())),
        }
    }
}

impl OnnxTensor {
    /// Reads a TensorProto; the fact of an error names the tensor.
    pub(super) fn parse(bytes: &[u8], files: &mut Files) -> std::result::Result<OnnxTensor, String> {
        let told = Told::read(bytes)?;
        let named = |fact: String| format!("tensor `{}`: {fact}", super::json::shorten(told.name));
        let kind = OnnxType::of(told.kind).map_err(named)?;
        let dims: Option<Vec<usize>> = told.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let count = dims.as_ref().and_then(|dims| dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)));
        let (Some(dims), Some(count)) = (dims, count) else {
            return Err(named(format!("shape {:?}, expected sizes of 0 or more that can be counted", told.dims)));
        };
        let name = told.name.to_string();
        if let Some((map, range)) = files.raw(&told).map_err(named)? {
            if count.checked_mul(kind.bytes()) != Some(range.len()) {
                return Err(named(format!("{} bytes, expected {} for {dims:?} of {kind:?}", range.len(), count.saturating_mul(kind.bytes()))));
            }
            return Ok(OnnxTensor { name, dims, kind, content: Content::Mapped(map, range) });
        }
        let stored = |v: i64| if kind == OnnxType::F16 { f16::from_bits(v as u16).to_f32() } else { bf16::from_bits(v as u16).to_f32() };
        let content = match kind {
            OnnxType::F32 | OnnxType::F64 => Content::Floats(told.floats.clone()),
            OnnxType::F16 | OnnxType::BF16 => Content::Floats(told.integers.iter().map(|&v| stored(v)).collect()),
            _ => Content::Integers(told.integers.clone()),
        };
        let found = match &content {
            Content::Floats(values) => values.len(),
            Content::Integers(values) => values.len(),
            Content::Mapped(..) => 0,
        };
        if found != count {
            return Err(named(format!("{found} values, expected {count} for {dims:?}")));
        }
        Ok(OnnxTensor { name, dims, kind, content })
    }

    /// A constant that a node gives as plain numbers.
    pub(super) fn of_floats(dims: Vec<usize>, values: Vec<f32>) -> OnnxTensor {
        OnnxTensor { name: String::new(), dims, kind: OnnxType::F32, content: Content::Floats(values) }
    }

    /// A constant that a node gives as plain numbers.
    pub(super) fn of_integers(dims: Vec<usize>, values: Vec<i64>) -> OnnxTensor {
        OnnxTensor { name: String::new(), dims, kind: OnnxType::I64, content: Content::Integers(values) }
    }

    pub fn numel(&self) -> usize {
        self.dims.iter().product()
    }

    /// The values of a floating point tensor as f32; None for integers.
    pub fn floats(&self) -> Option<Vec<f32>> {
        match &self.content {
            Content::Floats(values) => Some(values.clone()),
            Content::Integers(_) => None,
            Content::Mapped(map, range) => {
                let bytes = &map.bytes()[range.clone()];
                let values = match self.kind {
                    OnnxType::F32 => each(bytes, f32::from_le_bytes),
                    OnnxType::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
                    OnnxType::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
                    OnnxType::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
                    _ => return None,
                };
                if range.len() >= LARGE_BYTES {
                    map.forget(range.clone());
                }
                Some(values)
            }
        }
    }

    /// The values of an integer or bool tensor; None for floats. A u64 beyond i64 keeps its bits.
    pub fn integers(&self) -> Option<Vec<i64>> {
        let bytes = match &self.content {
            Content::Integers(values) => return Some(values.clone()),
            Content::Floats(_) => return None,
            Content::Mapped(map, range) => &map.bytes()[range.clone()],
        };
        Some(match self.kind {
            OnnxType::I64 => each(bytes, i64::from_le_bytes),
            OnnxType::U64 => each(bytes, |b| u64::from_le_bytes(b) as i64),
            OnnxType::I32 => each(bytes, |b| i32::from_le_bytes(b).into()),
            OnnxType::U32 => each(bytes, |b| u32::from_le_bytes(b).into()),
            OnnxType::I16 => each(bytes, |b| i16::from_le_bytes(b).into()),
            OnnxType::U16 => each(bytes, |b| u16::from_le_bytes(b).into()),
            OnnxType::I8 => each(bytes, |b| i8::from_le_bytes(b).into()),
            OnnxType::U8 => each(bytes, |[b]| b.into()),
            OnnxType::Bool => each(bytes, |[b]| i64::from(b != 0)),
            _ => return None,
        })
    }
}

fn each<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|b| f(*b)).collect()
}
