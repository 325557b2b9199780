//! ONNX graphs, opsets 9 to 21: their operators on our ops, so that a network runs that no other file here knows.
//!
//! A graph is recorded for the shapes of its inputs: whatever it computes from shapes is known then and is no step. Images stay
//! `[N, H, W, C]` from operator to operator, a transposition is a note on a value, and data moves where an operator needs it.

mod arrange;
mod call;
mod fold;
mod images;
mod norms;
mod operators;
mod pointwise;
mod products;
mod resize;
mod roles;
mod value;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};

use self::call::{Weights, short};
use self::roles::Roles;
use self::value::{Held, IMAGE, Value};
use crate::base::{DType, Error, Kind, Result};
use crate::models::model::{Architecture, Checkpoint, Component, Inputs, Model, Output, Port, timm_architecture};
use crate::models::preprocess::Preprocess;
use crate::plan::{Layout, Tape, Tensor};
use crate::weights::{Config, OnnxGraph, OnnxPort, OnnxSize, OnnxType};

/// Rows and columns of an image whose size the file leaves open, for `inspect` and `bench`.
const SIZE: usize = 224;

pub static ARCHITECTURE: Architecture = Architecture {
    name: "ONNX graph",
    is_config: |_| false,
    is_tensors: |_| false,
    is_path: |path| path.is_file() && path.extension().is_some_and(|e| e == "onnx"),
    load,
};

fn load(checkpoint: &Checkpoint) -> Result<Box<dyn Model>> {
    let mut model = OnnxModel::new(OnnxGraph::open(&checkpoint.path)?)?;
    let beside = checkpoint.path.with_file_name("config.json");
    let config = beside.is_file().then(|| Config::read(&beside)).transpose()?;
    if let (Some(roles), Some(config)) = (&mut model.roles, config.filter(|config| timm_architecture(config).is_some())) {
        roles.configured(&config, &model.graph)?;
    }
    Ok(Box::new(model))
}

/// A graph whose operators are all known.
pub struct OnnxModel {
    graph: OnnxGraph,
    /// Those that the outputs need, in order.
    nodes: Vec<usize>,
    weights: Weights,
    roles: Option<Roles>,
    parameters: u64,
    dropped: Vec<String>,
}

impl OnnxModel {
    /// Fails at operators, attributes and inputs that are not supported, with their names.
    pub fn new(graph: OnnxGraph) -> Result<OnnxModel> {
        let nodes = walk::needed(&graph)?;
        for input in &graph.inputs {
            let expected = |fact: String| Error::new(Kind::Config, graph.place.clone(), format!("input `{}` {fact}", short(&input.name)));
            if !input.kind.is_float() {
                return Err(expected(format!("is {:?}, expected floats", input.kind)));
            }
            let sizes = input.sizes.as_ref().ok_or_else(|| expected("has no shape, expected sizes or symbols".to_string()))?;
            if sizes.is_empty() || sizes.len() > 6 {
                return Err(expected(format!("has {} axes, expected one to six", sizes.len())));
            }
            let open_channels = sizes.len() == 4 && matches!(sizes[1], OnnxSize::Free(_));
            if open_channels {
                return Err(expected("leaves its channels open, expected a number".to_string()));
            }
        }
        let read: BTreeSet<&String> = nodes.iter().flat_map(|&i| graph.nodes[i].inputs.iter()).collect();
        let (read, dropped): (Vec<_>, Vec<_>) = graph.tensors.iter().partition(|(name, _)| read.contains(name));
        let parameters = read.iter().filter(|(_, tensor)| tensor.kind.is_float()).fold(0u64, |n, (_, tensor)| n.saturating_add(tensor.numel() as u64));
        let dropped = dropped.into_iter().map(|(name, _)| name.clone()).collect();
        let mut model = OnnxModel { nodes, weights: Weights::default(), roles: Roles::of(&graph), parameters, dropped, graph };
        if model.roles.as_ref().is_some_and(|roles| roles.is_segmenter) && !model.keeps_the_size() {
            model.roles = None;
        }
        Ok(model)
    }

    /// Whether the segmenter's output has the rows and columns of its input. Files use one symbol for different sizes, so a record tells.
    fn keeps_the_size(&self) -> bool {
        let mut t = Tape::new();
        let Some(port) = self.ports(Component::Segmenter, 1).into_iter().next() else { return false };
        let x = t.input(&port.name, &port.shape, port.dtype);
        let outputs = self.record(&mut t, Component::Segmenter, &Inputs::new([(port.name, x)]));
        let dims = outputs.ok().and_then(|outputs| outputs.first().map(|output| t.shape(output.tensor).dims().to_vec()));
        dims.is_some_and(|dims| matches!(dims[..], [_, h, w, _] if [h, w] == port.shape[1..3]))
    }

    /// The tape's shape of an input for `batch` items.
    fn port(&self, input: &OnnxPort, batch: usize) -> Port {
        let sizes = input.sizes.as_deref().unwrap_or_default();
        let size = |(axis, size): (usize, &OnnxSize)| match size {
            OnnxSize::Fixed(size) => *size,
            OnnxSize::Free(_) if axis == 0 => batch,
            OnnxSize::Free(_) if sizes.len() == 4 => SIZE,
            OnnxSize::Free(_) => 1,
        };
        let dims: Vec<usize> = sizes.iter().enumerate().map(size).collect();
        match dims[..] {
            [n, c, h, w] => Port::image(&input.name, [n, h, w, c]),
            _ => Port::plain(&input.name, &dims),
        }
    }

    /// The graph's inputs on the tape, with the sizes that the file asks for.
    fn held<'a>(&'a self, t: &Tape, given: &dyn Fn(&str) -> Result<Tensor>) -> Result<Vec<(&'a str, Held)>> {
        let mut symbols: BTreeMap<&str, usize> = BTreeMap::new();
        let mut all = Vec::with_capacity(self.graph.inputs.len());
        for input in &self.graph.inputs {
            let sizes = input.sizes.as_deref().unwrap_or_default();
            let tensor = given(&input.name)?;
            let rank = t.shape(tensor).rank();
            let order: Vec<usize> = if sizes.len() == 4 { IMAGE.to_vec() } else { (0..sizes.len()).collect() };
            let wrong = |dims: &[usize]| Error::new(Kind::Shape, input.name.clone(), format!("is {dims:?}, expected {}", asked(sizes)));
            if rank != sizes.len() || t.dtype(tensor) != DType::F32 {
                return Err(wrong(t.shape(tensor).dims()));
            }
            let held = Held::of(t, tensor, &order);
            for (size, &found) in sizes.iter().zip(&held.dims) {
                let fits = match size {
                    OnnxSize::Fixed(size) => *size == found,
                    OnnxSize::Free(symbol) if symbol.is_empty() => true,
                    OnnxSize::Free(symbol) => *symbols.entry(symbol).or_insert(found) == found,
                };
                if !fits || found == 0 {
                    return Err(wrong(&held.dims));
                }
            }
            call::tape_size(&held.dims)?;
            all.push((input.name.as_str(), held));
        }
        Ok(all)
    }

    /// The values `wanted`, each with its layout.
    fn outputs(&self, t: &mut Tape, inputs: Vec<(&str, Held)>, wanted: &[&str]) -> Result<Vec<(Tensor, Layout)>> {
        let values = walk::record(&self.graph, &self.nodes, &self.weights, t, inputs, wanted)?;
        let mut outputs = Vec::with_capacity(values.len());
        for value in values {
            let held = match value {
                Value::Held(held) => held,
                Value::Constant(constant) => {
                    let weight = crate::plan::Weight::new("constant", constant.array()?);
                    let tensor = t.weight(&weight);
                    Held::plain(t, tensor)
                }
            };
            let (held, layout) = if held.order == IMAGE { (held, Layout::Image) } else { (held.in_order(t)?, Layout::Plain) };
            outputs.push((arrange::copied(t, held.tensor)?, layout));
        }
        Ok(outputs)
    }

    /// One input's graph that is fixed to one item, for each of `batch` items; else the graph once.
    fn batched(&self, t: &mut Tape, x: Tensor, wanted: &[&str]) -> Result<Vec<(Tensor, Layout)>> {
        let input = &self.graph.inputs[0];
        let batch = t.shape(x).dims().first().copied().unwrap_or(0);
        let is_one = matches!(input.sizes.as_deref(), Some([OnnxSize::Fixed(1), ..]));
        if !is_one || batch < 2 {
            let held = self.held(t, &|_| Ok(x))?;
            return self.outputs(t, held, wanted);
        }
        let mut items = Vec::with_capacity(batch);
        for i in 0..batch {
            let item = t.slice(x, 0, i, 1)?;
            let held = self.held(t, &|_| Ok(item))?;
            items.push(self.outputs(t, held, wanted)?);
        }
        let join = |t: &mut Tape, k: usize| -> Result<(Tensor, Layout)> {
            let parts: Vec<Tensor> = items.iter().map(|item| item[k].0).collect();
            Ok((t.concat_axis(&parts, 0)?, items[0][k].1))
        };
        (0..wanted.len()).map(|k| join(t, k)).collect()
    }

    /// `pixel_values` to the outputs of the role.
    fn as_role(&self, t: &mut Tape, roles: &Roles, inputs: &Inputs) -> Result<Vec<Output>> {
        let x = inputs.get("pixel_values")?;
        let names = roles.outputs();
        let wanted: Vec<&str> = names.iter().map(|(_, value)| value.as_str()).collect();
        let mut outputs = Vec::new();
        for ((name, _), (tensor, layout)) in names.iter().zip(self.batched(t, x, &wanted)?) {
            let dims = t.shape(tensor).dims().to_vec();
            outputs.push(match layout {
                // Tokens or pooled images: one row per item.
                Layout::Plain if dims.len() != 2 && !roles.is_segmenter => {
                    let tensor = t.reshape(tensor, &[dims[0], dims[1..].iter().product()])?;
                    Output::plain(name, tensor)
                }
                Layout::Image if !roles.is_segmenter => {
                    let plain = t.permute(tensor, &[0, 3, 1, 2])?;
                    Output::plain(name, t.reshape(plain, &[dims[0], dims[1..].iter().product()])?)
                }
                Layout::Plain if roles.is_segmenter && dims.len() == 4 => Output::image(name, t.permute(tensor, &[0, 2, 3, 1])?),
                layout => Output { name: name.to_string(), tensor, layout },
            });
        }
        Ok(outputs)
    }
}

/// `[batch, 3, height, width]`.
fn asked(sizes: &[OnnxSize]) -> String {
    let one = |size: &OnnxSize| match size {
        OnnxSize::Fixed(size) => size.to_string(),
        OnnxSize::Free(symbol) if symbol.is_empty() => "any".to_string(),
        OnnxSize::Free(symbol) => symbol.clone(),
    };
    format!("[{}]", sizes.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn port_fact(port: &OnnxPort) -> Json {
    let kind = if port.kind == OnnxType::F32 { String::new() } else { format!(" {:?}", port.kind) };
    json!(format!("{} {}{kind}", short(&port.name), port.sizes.as_deref().map_or("of any shape".to_string(), asked)))
}

impl Model for OnnxModel {
    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn dropped(&self) -> &[String] {
        &self.dropped
    }

    fn facts(&self) -> Vec<(&'static str, Json)> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        self.nodes.iter().for_each(|&i| *counts.entry(&self.graph.nodes[i].operator).or_default() += 1);
        let ports = |ports: &[OnnxPort]| ports.iter().map(port_fact).collect::<Vec<_>>();
        vec![
            ("producer", json!(self.graph.producer)),
            ("opset", json!(self.graph.opset)),
            ("inputs", json!(ports(&self.graph.inputs))),
            ("outputs", json!(ports(&self.graph.outputs))),
            ("nodes", json!(self.nodes.len())),
            ("operators", json!(counts)),
        ]
    }

    fn components(&self) -> Vec<Component> {
        let role = self.roles.as_ref().map(|roles| if roles.is_segmenter { Component::Segmenter } else { Component::Classifier });
        [Some(Component::Onnx), role].into_iter().flatten().collect()
    }

    fn ports(&self, component: Component, batch: usize) -> Vec<Port> {
        let mut ports: Vec<Port> = self.graph.inputs.iter().map(|input| self.port(input, batch)).collect();
        if component != Component::Onnx {
            ports.truncate(1);
            ports.iter_mut().for_each(|port| port.name = "pixel_values".to_string());
        }
        ports
    }

    fn record(&self, t: &mut Tape, component: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        if let Some(roles) = self.roles.as_ref().filter(|_| component != Component::Onnx) {
            return self.as_role(t, roles, inputs);
        }
        let names: Vec<&str> = self.graph.outputs.iter().map(|output| output.name.as_str()).collect();
        let values = match self.graph.inputs.as_slice() {
            [input] => self.batched(t, inputs.get(&input.name)?, &names)?,
            _ => {
                let held = self.held(t, &|name| inputs.get(name))?;
                self.outputs(t, held, &names)?
            }
        };
        let output = |(name, (tensor, layout)): (&&str, (Tensor, Layout))| Output { name: name.to_string(), tensor, layout };
        Ok(names.iter().zip(values).map(output).collect())
    }

    fn preprocess(&self) -> Option<&Preprocess> {
        self.roles.as_ref().map(|roles| &roles.preprocess)
    }

    fn class_names(&self) -> Option<&[String]> {
        self.roles.as_ref().and_then(|roles| roles.label_names.as_deref())
    }
}
