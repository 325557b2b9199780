//! The walk through a graph's nodes: which of them a forward needs, and their record on a tape.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use super::call::{Call, Weights, short, tape_size};
use super::operators::{OPERATORS, Run, find};
use super::value::{Constant, Held, IMAGE, Value};
use crate::base::{Error, Kind, Result};
use crate::plan::{Tape, TensorKind};
use crate::weights::onnx::is_standard;
use crate::weights::{OnnxGraph, OnnxNode};

/// Refusals that one error names.
const NAMED: usize = 8;

/// Numbers that a recording may make beside those of the file.
const MADE: usize = 1 << 26;

/// What an error says of a node before the fact.
fn at(node: &OnnxNode) -> String {
    format!("node `{}`: operator {}", short(&node.name), short(&node.operator))
}

/// Indices of the nodes that the outputs need, in the file's order. Fails where a node uses what no earlier one makes, where an
/// operator is unknown, and where it has an attribute that it should not: each with its name.
pub(super) fn needed(graph: &OnnxGraph) -> Result<Vec<usize>> {
    let wrong = |fact: String| Error::new(Kind::Config, graph.place.clone(), fact);
    let made: BTreeSet<&str> = graph.nodes.iter().flat_map(|node| node.outputs.iter().map(String::as_str)).collect();
    let mut wanted: BTreeSet<&str> = graph.outputs.iter().map(|output| output.name.as_str()).collect();
    let given: BTreeSet<&str> = graph.inputs.iter().map(|input| input.name.as_str()).chain(graph.tensors.keys().map(String::as_str)).collect();
    if let Some(output) = graph.outputs.iter().find(|output| !made.contains(output.name.as_str()) && !given.contains(output.name.as_str())) {
        return Err(wrong(format!("output `{}` is made by no node, expected one", short(&output.name))));
    }
    let mut indices = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        if node.outputs.iter().any(|name| !name.is_empty() && wanted.contains(name.as_str())) {
            indices.push(i);
            wanted.extend(node.inputs.iter().map(String::as_str));
        }
    }
    indices.reverse();
    let mut known = given;
    for &i in &indices {
        let node = &graph.nodes[i];
        if let Some(name) = node.inputs.iter().find(|name| !name.is_empty() && !known.contains(name.as_str())) {
            let fact = if made.contains(name.as_str()) { "is made by a later node or by itself" } else { "is made by no node" };
            return Err(wrong(format!("{}: input `{}` {fact}, expected an input, a tensor or the result of an earlier node", at(node), short(name))));
        }
        known.extend(node.outputs.iter().map(String::as_str).filter(|name| !name.is_empty()));
    }
    // Of each kind of refusal the first node.
    let mut refused: Vec<(String, &OnnxNode, usize)> = Vec::new();
    for node in indices.iter().map(|&i| &graph.nodes[i]) {
        let Some(fact) = unsupported(node) else { continue };
        match refused.iter().position(|(known, other, _)| *known == fact && other.operator == node.operator) {
            Some(at) => refused[at].2 += 1,
            None if refused.len() < NAMED => refused.push((fact, node, 1)),
            None => break,
        }
    }
    if refused.is_empty() {
        return Ok(indices);
    }
    let words = |(fact, node, count): &(String, &OnnxNode, usize)| {
        let more = if *count > 1 { format!(" ({count} nodes)") } else { String::new() };
        format!("node `{}`: operator {}{fact}{more}", short(&node.name), short(&node.operator))
    };
    Err(wrong(refused.iter().map(words).collect::<Vec<_>>().join("; ")))
}

/// Why a node cannot be recorded, as far as its operator's and attributes' names tell.
fn unsupported(node: &OnnxNode) -> Option<String> {
    let standard = is_standard(&node.domain);
    let Some(operator) = find(&node.operator).filter(|_| standard) else {
        let domain = if standard { String::new() } else { format!(" of the domain {}", short(&node.domain)) };
        return Some(format!("{domain} is not supported, expected one of the {} that are{}", OPERATORS.len(), near(&node.operator)));
    };
    let name = node.attributes.keys().find(|name| !operator.attributes.contains(&name.as_str()))?;
    let expected = if operator.attributes.is_empty() { "none".to_string() } else { operator.attributes.join(", ") };
    Some(format!(" attribute {} is not supported, expected {expected}", short(name)))
}

/// The operator whose name is alike.
fn near(name: &str) -> String {
    let all = OPERATORS.iter().map(|row| (crate::base::error::edit_distance(row.name, &short(name)), row.name));
    all.min().filter(|&(distance, _)| distance <= 2).map_or(String::new(), |(_, name)| format!(", {name} among them"))
}

/// Records the nodes `indices` on `t` and gives the values `wanted` by name.
pub(super) fn record(graph: &OnnxGraph, indices: &[usize], weights: &Weights, t: &mut Tape, inputs: Vec<(&str, Held)>, wanted: &[&str]) -> Result<Vec<Value>> {
    let stored: usize = graph.tensors.values().fold(0, |n, tensor| n.saturating_add(tensor.numel()));
    let budget = Cell::new(MADE.saturating_add(stored.saturating_mul(8)));
    let mut values: BTreeMap<&str, Value> = inputs.into_iter().map(|(name, held)| (name, Value::Held(held))).collect();
    values.extend(graph.tensors.iter().map(|(name, tensor)| (name.as_str(), Value::Constant(Constant::stored(name, tensor)))));
    for &i in indices {
        let node = &graph.nodes[i];
        let place = |e: Error| Error::new(e.kind(), graph.place.clone(), format!("{} {}", at(node), e.fact()));
        for (name, value) in node.outputs.iter().zip(one(graph, node, weights, t, &values, &budget).map_err(place)?) {
            tap(t, node, &value);
            values.insert(name, value);
        }
    }
    let found = |name: &&str| {
        let absent = || Error::new(Kind::Config, graph.place.clone(), format!("`{}` is a result that its operator does not give here", short(name)));
        values.get(*name).cloned().ok_or_else(absent)
    };
    wanted.iter().map(found).collect()
}

/// The results of one node.
fn one(graph: &OnnxGraph, node: &OnnxNode, weights: &Weights, t: &mut Tape, values: &BTreeMap<&str, Value>, budget: &Cell<usize>) -> Result<Vec<Value>> {
    let absent = |name: &str| super::value::fault(format!("input `{}` is a result that its operator does not give here", short(name)));
    let input = |name: &String| match name.as_str() {
        "" => Ok(None),
        name => values.get(name).cloned().map(Some).ok_or_else(|| absent(name)),
    };
    let inputs = node.inputs.iter().map(input).collect::<Result<Vec<_>>>()?;
    let operator = find(&node.operator).ok_or_else(|| super::value::fault("is not supported"))?;
    let results = t.within(&short(&node.name), |t| {
        let mut call = Call { node, t, opset: graph.opset, inputs, weights, budget };
        match operator.run {
            Run::One(run) => run(&mut call).map(|value| vec![value]),
            Run::Many(run) => run(&mut call),
        }
    })?;
    for result in &results {
        match result {
            Value::Held(held) => tape_size(&held.dims).map(|_| ())?,
            Value::Constant(constant) if constant.name().is_none() => super::call::spend(budget, constant.numel())?,
            Value::Constant(_) => {}
        }
    }
    Ok(results)
}

/// A result in ONNX's order, or an image, can be read by its node's name.
fn tap(t: &mut Tape, node: &OnnxNode, value: &Value) {
    if let Value::Held(held) = value
        && (held.order == IMAGE || held.order.is_sorted())
        && matches!(t.info(t.owner(held.tensor)).kind, TensorKind::Activation)
    {
        t.tap(&node.name, held.tensor);
    }
}
