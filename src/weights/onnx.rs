//! ONNX files: nodes, tensors, inputs and outputs of one graph, as they are stored. What the operators mean is not known here.
//!
//! The file is mapped and read by our own bounded reader of the wire format: only the fields that are needed, names copied, values
//! left in the map, no recursion (a graph inside a node's attribute is noted, never entered).
//! Source: onnx/onnx.proto of the ONNX standard.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use crate::base::{Error, Kind, Result};
use crate::weights::json::shorten;
use crate::weights::mapped::Mapped;
use crate::weights::onnx_tensor::{Files, OnnxTensor, OnnxType};
use crate::weights::protobuf::{Field, Message};

/// Opsets of the standard's operators that are read.
pub const OPSETS: RangeInclusive<i64> = 9..=21;

/// Nodes of a graph: a vision model has some thousands.
const MAX_NODES: usize = 1 << 14;

/// The value of a node's attribute.
#[derive(Clone, Debug)]
pub enum OnnxAttribute {
    Integer(i64),
    Float(f32),
    Text(String),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
    Tensor(OnnxTensor),
    /// A graph, texts, several tensors: nothing that an operator here takes.
    Other(&'static str),
}

/// One call of an operator.
#[derive(Clone, Debug)]
pub struct OnnxNode {
    pub name: String,
    pub operator: String,
    /// Empty for the standard's own.
    pub domain: String,
    /// An empty name is an optional input that is left out.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attributes: BTreeMap<String, OnnxAttribute>,
}

/// One axis of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnnxSize {
    Fixed(usize),
    /// A symbol, `batch_size`, or nothing.
    Free(String),
}

/// An input or output of the graph.
#[derive(Clone, Debug)]
pub struct OnnxPort {
    pub name: String,
    pub kind: OnnxType,
    /// None: the file does not say how many axes it has.
    pub sizes: Option<Vec<OnnxSize>>,
}

/// The graph of a file. Names of values are unique: each is an input, a tensor or the output of one node.
#[derive(Debug)]
pub struct OnnxGraph {
    /// The file, as errors show it.
    pub place: String,
    pub producer: String,
    /// Of the standard's own operators.
    pub opset: i64,
    /// In the file's order; a constant's node is one of `tensors` instead.
    pub nodes: Vec<OnnxNode>,
    pub tensors: BTreeMap<String, Arc<OnnxTensor>>,
    /// Without those that only give a tensor its name.
    pub inputs: Vec<OnnxPort>,
    pub outputs: Vec<OnnxPort>,
}

impl OnnxGraph {
    /// Reads a file. Fails, naming what was found, where it is no ONNX file or holds what cannot be run: segments, sparse
    /// tensors, local functions, names that stand there twice.
    pub fn open(path: &Path) -> Result<OnnxGraph> {
        let place = path.display().to_string();
        let map = Arc::new(Mapped::open(path, "an ONNX file")?);
        let mut files = Files { path, map: map.clone(), beside: Vec::new() };
        Self::parse(map.bytes(), &mut files, &place).map_err(|fact| Error::new(Kind::Format, place.clone(), fact))
    }

    fn parse(bytes: &[u8], files: &mut Files, place: &str) -> std::result::Result<OnnxGraph, String> {
        let (mut producer, mut version, mut graph, mut opset, mut ir_version) = (String::new(), String::new(), None, None, 0);
        let mut message = Message::new(bytes);
        let odd = |fact: String| format!("not an ONNX file: {fact}");
        while let Some((number, field)) = message.next().map_err(odd)? {
            match number {
                1 => ir_version = field.integer().map_err(odd)?,
                2 => producer = shorten(field.text().map_err(odd)?),
                3 => version = shorten(field.text().map_err(odd)?),
                7 => graph = Some(field.bytes().map_err(odd)?),
                8 => {
                    let (domain, number) = opset_import(field.bytes().map_err(odd)?)?;
                    if is_standard(domain) {
                        opset = Some(number);
                    }
                }
                25 => return Err("the file has functions of its own, expected the standard's operators alone".to_string()),
                _ => {}
            }
        }
        let Some(graph) = graph.filter(|_| ir_version > 0) else {
            return Err("not an ONNX file: no graph or no IR version".to_string());
        };
        let opset = opset.ok_or("no opset of the standard's operators, expected one")?;
        if !OPSETS.contains(&opset) {
            return Err(format!("opset {opset}, expected {} to {}", OPSETS.start(), OPSETS.end()));
        }
        let producer = format!("{} {}", producer.trim(), version.trim()).trim().to_string();
        let mut read =
            OnnxGraph { place: place.to_string(), producer, opset, nodes: Vec::new(), tensors: BTreeMap::new(), inputs: Vec::new(), outputs: Vec::new() };
        read.fill(graph, files)?;
        read.names_are_unique()?;
        Ok(read)
    }

    fn fill(&mut self, bytes: &[u8], files: &mut Files) -> std::result::Result<(), String> {
        let mut message = Message::new(bytes);
        while let Some((number, field)) = message.next()? {
            match number {
                1 => {
                    let node = node(field.bytes()?, files)?;
                    if node.operator == "Constant" && is_standard(&node.domain) {
                        let (name, tensor) = constant(node)?;
                        self.add_tensor(name, tensor)?;
                    } else if self.nodes.len() < MAX_NODES {
                        self.nodes.push(node);
                    } else {
                        return Err(format!("more than {MAX_NODES} nodes, expected fewer"));
                    }
                }
                5 => {
                    let tensor = OnnxTensor::parse(field.bytes()?, files)?;
                    self.add_tensor(tensor.name.clone(), tensor)?;
                }
                11 => self.inputs.extend(port(field.bytes()?)?),
                12 => self.outputs.extend(port(field.bytes()?)?),
                15 => return Err("a sparse tensor, expected dense ones".to_string()),
                _ => {}
            }
        }
        // Before IR version 4 every tensor was an input too.
        self.inputs.retain(|input| !self.tensors.contains_key(&input.name));
        if self.outputs.is_empty() || self.nodes.is_empty() {
            return Err(format!("a graph of {} nodes and {} outputs, expected one at least of each", self.nodes.len(), self.outputs.len()));
        }
        Ok(())
    }

    fn add_tensor(&mut self, name: String, tensor: OnnxTensor) -> std::result::Result<(), String> {
        match self.tensors.insert(name.clone(), Arc::new(tensor)) {
            Some(_) => Err(format!("the tensor `{}` stands there twice", shorten(&name))),
            None => Ok(()),
        }
    }

    fn names_are_unique(&self) -> std::result::Result<(), String> {
        let mut seen: BTreeSet<&str> = self.tensors.keys().map(String::as_str).collect();
        let made = self.nodes.iter().flat_map(|node| node.outputs.iter()).filter(|name| !name.is_empty());
        for name in self.inputs.iter().map(|input| &input.name).chain(made) {
            if !seen.insert(name) {
                return Err(format!("the value `{}` is made twice, expected once", shorten(name)));
            }
        }
        Ok(())
    }
}

/// Whether a domain is that of the standard's own operators.
pub fn is_standard(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

fn opset_import(bytes: &[u8]) -> std::result::Result<(&str, i64), String> {
    let (mut found, mut message) = (("", 0), Message::new(bytes));
    while let Some((number, field)) = message.next()? {
        match number {
            1 => found.0 = field.text()?,
            2 => found.1 = field.integer()?,
            _ => {}
        }
    }
    Ok(found)
}

fn node(bytes: &[u8], files: &mut Files) -> std::result::Result<OnnxNode, String> {
    let mut node =
        OnnxNode { name: String::new(), operator: String::new(), domain: String::new(), inputs: Vec::new(), outputs: Vec::new(), attributes: BTreeMap::new() };
    let mut message = Message::new(bytes);
    let mut attributes = Vec::new();
    while let Some((number, field)) = message.next()? {
        match number {
            1 => node.inputs.push(field.text()?.to_string()),
            2 => node.outputs.push(field.text()?.to_string()),
            3 => node.name = field.text()?.to_string(),
            4 => node.operator = field.text()?.to_string(),
            5 => attributes.push(field.bytes()?),
            7 => node.domain = field.text()?.to_string(),
            _ => {}
        }
    }
    if node.name.is_empty() {
        node.name = node.outputs.first().cloned().unwrap_or_default();
    }
    for bytes in attributes {
        let at = |fact: String| format!("node `{}` ({}): {fact}", shorten(&node.name), shorten(&node.operator));
        let (name, value) = attribute(bytes, files).map_err(at)?;
        if node.attributes.insert(name.clone(), value).is_some() {
            return Err(at(format!("attribute `{}` stands there twice", shorten(&name))));
        }
    }
    Ok(node)
}

/// The lists of an AttributeProto, of which its type says one.
fn attribute(bytes: &[u8], files: &mut Files) -> std::result::Result<(String, OnnxAttribute), String> {
    let (mut name, mut kind, mut other) = (String::new(), 0, "nothing");
    let (mut integers, mut floats, mut integer, mut float) = (Vec::new(), Vec::new(), 0, 0.0);
    let (mut text, mut tensor): (Option<&[u8]>, Option<Field>) = (None, None);
    let mut message = Message::new(bytes);
    while let Some((number, field)) = message.next()? {
        match number {
            1 => name = field.text()?.to_string(),
            2 => float = field.float()?,
            3 => integer = field.integer()?,
            4 => text = Some(field.bytes()?),
            5 => tensor = Some(field),
            6 | 11 => other = "a graph",
            7 => field.floats(&mut floats)?,
            8 => field.integers(&mut integers)?,
            9 => other = "texts",
            10 => other = "tensors",
            20 => kind = field.integer()?,
            21 => other = "a reference",
            22 => other = "a sparse tensor",
            _ => {}
        }
    }
    let text = || String::from_utf8(text.unwrap_or_default().to_vec()).map_err(|_| format!("attribute `{}` is not UTF-8", shorten(&name)));
    let value = match (kind, tensor) {
        (1, _) => OnnxAttribute::Float(float),
        (2, _) => OnnxAttribute::Integer(integer),
        (3, _) => OnnxAttribute::Text(text()?),
        (4, Some(tensor)) => OnnxAttribute::Tensor(OnnxTensor::parse(tensor.bytes()?, files)?),
        (6, _) => OnnxAttribute::Floats(floats),
        (7, _) => OnnxAttribute::Integers(integers),
        _ => OnnxAttribute::Other(other),
    };
    Ok((name, value))
}

/// The tensor of a `Constant` node, under its output's name.
fn constant(node: OnnxNode) -> std::result::Result<(String, OnnxTensor), String> {
    let bad = |fact: &str| format!("node `{}` (Constant): {fact}", shorten(&node.name));
    let [output] = node.outputs.as_slice() else {
        return Err(bad("expected one output"));
    };
    let mut attributes = node.attributes.into_iter();
    let tensor = match (attributes.next(), attributes.next()) {
        (Some((_, OnnxAttribute::Tensor(tensor))), None) => tensor,
        (Some((_, OnnxAttribute::Float(value))), None) => OnnxTensor::of_floats(Vec::new(), vec![value]),
        (Some((_, OnnxAttribute::Integer(value))), None) => OnnxTensor::of_integers(Vec::new(), vec![value]),
        (Some((_, OnnxAttribute::Floats(values))), None) => OnnxTensor::of_floats(vec![values.len()], values),
        (Some((_, OnnxAttribute::Integers(values))), None) => OnnxTensor::of_integers(vec![values.len()], values),
        (Some((name, _)), None) => return Err(bad(&format!("attribute `{}`, expected a tensor or numbers", shorten(&name)))),
        _ => return Err(bad("expected one attribute, the value")),
    };
    Ok((output.clone(), tensor))
}

/// A ValueInfoProto; None where it has no name.
fn port(bytes: &[u8]) -> std::result::Result<Option<OnnxPort>, String> {
    let (mut name, mut kind, mut sizes) = (String::new(), None, None);
    let mut message = Message::new(bytes);
    while let Some((number, field)) = message.next()? {
        match number {
            1 => name = field.text()?.to_string(),
            2 => {
                let mut message = Message::new(field.bytes()?);
                while let Some((number, field)) = message.next()? {
                    if number == 1 {
                        (kind, sizes) = tensor_type(field.bytes()?)?;
                    }
                }
            }
            _ => {}
        }
    }
    let kind = kind.ok_or_else(|| format!("`{}` of the graph is no tensor, expected one", shorten(&name)))?;
    let kind = OnnxType::of(kind).map_err(|fact| format!("`{}` of the graph: {fact}", shorten(&name)))?;
    Ok((!name.is_empty()).then_some(OnnxPort { name, kind, sizes }))
}

/// Element type and shape of a TypeProto.Tensor.
fn tensor_type(bytes: &[u8]) -> std::result::Result<(Option<i64>, Option<Vec<OnnxSize>>), String> {
    let (mut kind, mut sizes) = (None, None);
    let mut message = Message::new(bytes);
    while let Some((number, field)) = message.next()? {
        match number {
            1 => kind = Some(field.integer()?),
            2 => {
                let mut list = Vec::new();
                let mut shape = Message::new(field.bytes()?);
                while let Some((number, field)) = shape.next()? {
                    if number == 1 {
                        list.push(size(field.bytes()?)?);
                    }
                }
                sizes = Some(list);
            }
            _ => {}
        }
    }
    Ok((kind, sizes))
}

fn size(bytes: &[u8]) -> std::result::Result<OnnxSize, String> {
    let mut size = OnnxSize::Free(String::new());
    let mut message = Message::new(bytes);
    while let Some((number, field)) = message.next()? {
        match number {
            // Old exporters write 0 for a size that they do not know.
            1 => match field.integer()? {
                n if n > 0 => size = OnnxSize::Fixed(n as usize),
                0 => {}
                n => return Err(format!("an axis of size {n}, expected 1 or more")),
            },
            2 => size = OnnxSize::Free(shorten(field.text()?)),
            _ => {}
        }
    }
    Ok(size)
}
