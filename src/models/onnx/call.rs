//! One call of an operator while the graph is recorded: its inputs, its attributes, and the weights it makes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::value::{Constant, Held, Value, fault};
use crate::base::{Array, Error, Result};
use crate::plan::{Tape, Tensor, Weight};
use crate::weights::{OnnxAttribute, OnnxNode};

/// Values of a constant that the recording makes, at most: shapes are small, masks and position tables moderate.
pub(super) const MAX_MADE: usize = 1 << 22;

/// Values of a tensor of the tape, at most: four GiB.
pub(super) const MAX_VALUES: usize = 1 << 30;

/// The file's tensors in the forms in which steps bind them. Kept by the model: recordings share them.
#[derive(Default)]
pub(super) struct Weights(RefCell<BTreeMap<(String, String), Weight>>);

pub(super) struct Call<'a> {
    pub(super) node: &'a OnnxNode,
    pub(super) t: &'a mut Tape,
    pub(super) opset: i64,
    pub(super) inputs: Vec<Option<Value>>,
    pub(super) weights: &'a Weights,
    /// Numbers that the recording may still make.
    pub(super) budget: &'a Cell<usize>,
}

impl Call<'_> {
    /// Input `i`, or None where it is left out.
    pub(super) fn optional(&self, i: usize) -> Option<&Value> {
        self.inputs.get(i).and_then(Option::as_ref)
    }

    pub(super) fn input(&self, i: usize) -> Result<&Value> {
        self.optional(i).ok_or_else(|| fault(format!("input {i} is left out, expected a value")))
    }

    /// Input `i` as known numbers.
    pub(super) fn constant(&self, i: usize, name: &str) -> Result<Constant> {
        match self.input(i)? {
            Value::Constant(constant) => Ok(constant.clone()),
            Value::Held(_) => Err(fault(format!("{name} (input {i}) is computed from the input's values, expected numbers known beforehand"))),
        }
    }

    /// Input `i` as known integers; None where it is left out.
    pub(super) fn integers_at(&self, i: usize, name: &str) -> Result<Option<Vec<i64>>> {
        if self.optional(i).is_none() {
            return Ok(None);
        }
        let integers = self.constant(i, name)?.integers();
        integers.map(|values| Some(values.to_vec())).ok_or_else(|| fault(format!("{name} (input {i}) are floats, expected integers")))
    }

    /// Input `i` on the tape: numbers that are known become a weight.
    pub(super) fn held(&mut self, i: usize) -> Result<Held> {
        match self.input(i)?.clone() {
            Value::Held(held) => Ok(held),
            Value::Constant(constant) => self.promoted(&constant),
        }
    }

    /// Known floats as a tensor of the tape, in ONNX's order.
    pub(super) fn promoted(&mut self, constant: &Constant) -> Result<Held> {
        if !constant.is_float() {
            return Err(fault("integers where floats are computed with, expected floats"));
        }
        let tensor = self.weight(constant, "plain", Ok)?;
        Ok(Held::plain(self.t, tensor))
    }

    /// Known floats as a tensor with its axes in `order`, which may have more of them: new ones of one come first.
    pub(super) fn promoted_in(&mut self, constant: &Constant, order: &[usize]) -> Result<Held> {
        if !constant.is_float() {
            return Err(fault("integers where floats are computed with, expected floats"));
        }
        let dims = [vec![1; order.len() - constant.dims.len()], constant.dims.clone()].concat();
        let form = if order.is_sorted() && dims == constant.dims { "plain".to_string() } else { format!("in the order {order:?}") };
        let tensor = self.weight(constant, &form, |array| Ok(Array::new(&dims, array.data)?.permute(order)))?;
        Ok(Held::of(self.t, tensor, order))
    }

    /// The weight that `make` makes of the constant. A tensor of the file has each `form` once.
    pub(super) fn weight(&mut self, constant: &Constant, form: &str, make: impl FnOnce(Array) -> Result<Array>) -> Result<Tensor> {
        let Some(name) = constant.name() else {
            spend(self.budget, constant.numel())?;
            let weight = Weight::new(&self.node.name, make(constant.array()?)?);
            return Ok(self.t.weight(&weight));
        };
        let key = (name.to_string(), form.to_string());
        let known = self.weights.0.borrow().get(&key).cloned();
        let weight = match known {
            Some(weight) => weight,
            None => {
                spend(self.budget, constant.numel())?;
                let weight = Weight::new(name, make(constant.array()?)?);
                self.weights.0.borrow_mut().insert(key, weight.clone());
                weight
            }
        };
        Ok(self.t.weight(&weight))
    }

    /// A vector that is no tensor of the file.
    pub(super) fn made(&mut self, dims: &[usize], values: Vec<f32>) -> Result<Tensor> {
        spend(self.budget, values.len())?;
        let weight = Weight::new(&self.node.name, Array::new(dims, values)?);
        Ok(self.t.weight(&weight))
    }

    fn attribute(&self, name: &str) -> Option<&OnnxAttribute> {
        self.node.attributes.get(name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.attribute(name).is_some()
    }

    pub(super) fn integer(&self, name: &str, default: i64) -> Result<i64> {
        match self.attribute(name) {
            None => Ok(default),
            Some(OnnxAttribute::Integer(value)) => Ok(*value),
            Some(_) => Err(fault(format!("attribute {name} is no integer, expected one"))),
        }
    }

    /// 0 or 1.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.integer(name, default.into())? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.refused(name, other, "0 or 1")),
        }
    }

    pub(super) fn float(&self, name: &str, default: f32) -> Result<f32> {
        match self.attribute(name) {
            None => Ok(default),
            Some(OnnxAttribute::Float(value)) if value.is_finite() => Ok(*value),
            Some(_) => Err(fault(format!("attribute {name} is no finite float, expected one"))),
        }
    }

    pub(super) fn text(&self, name: &str, default: &str) -> Result<String> {
        match self.attribute(name) {
            None => Ok(default.to_string()),
            Some(OnnxAttribute::Text(value)) => Ok(short(value)),
            Some(_) => Err(fault(format!("attribute {name} is no text, expected one"))),
        }
    }

    pub(super) fn integers(&self, name: &str) -> Result<Option<Vec<i64>>> {
        match self.attribute(name) {
            None => Ok(None),
            Some(OnnxAttribute::Integers(values)) => Ok(Some(values.clone())),
            Some(_) => Err(fault(format!("attribute {name} is no list of integers, expected one"))),
        }
    }

    pub(super) fn floats(&self, name: &str) -> Result<Option<Vec<f32>>> {
        match self.attribute(name) {
            None => Ok(None),
            Some(OnnxAttribute::Floats(values)) => Ok(Some(values.clone())),
            Some(_) => Err(fault(format!("attribute {name} is no list of floats, expected one"))),
        }
    }

    /// `count` sizes of 0 to 65,536; `default` each where the attribute is left out.
    pub(super) fn sizes(&self, name: &str, count: usize, default: usize) -> Result<Vec<usize>> {
        let Some(values) = self.integers(name)? else { return Ok(vec![default; count]) };
        let sizes: Option<Vec<usize>> = values.iter().map(|&v| usize::try_from(v).ok().filter(|&v| v <= 65_536)).collect();
        sizes.filter(|sizes| sizes.len() == count).ok_or_else(|| self.refused(name, list(&values), &format!("{count} numbers from 0 to 65536")))
    }

    /// One size of 1 to 65,536, which must be told.
    pub(super) fn size(&self, name: &str) -> Result<usize> {
        let told = self.integer(name, 0)?;
        usize::try_from(told).ok().filter(|v| (1..=65_536).contains(v)).ok_or_else(|| self.refused(name, told, "1 to 65536"))
    }

    /// The groups of a convolution.
    pub(super) fn groups(&self) -> Result<usize> {
        if self.has("group") { self.size("group") } else { Ok(1) }
    }

    /// An attribute's value that can't be had.
    pub(super) fn refused(&self, name: &str, value: impl std::fmt::Display, expected: &str) -> Error {
        fault(format!("attribute {name} is {value}, expected {expected}"))
    }

    /// The list that older opsets have as the attribute `name` and newer ones as input `i`.
    pub(super) fn list(&self, name: &str, i: usize) -> Result<Option<Vec<i64>>> {
        match self.integers(name)? {
            Some(values) => Ok(Some(values)),
            None => self.integers_at(i, name),
        }
    }
}

/// Takes `count` numbers from what may still be made.
pub(super) fn spend(budget: &Cell<usize>, count: usize) -> Result<()> {
    let left = budget.get().checked_sub(count);
    budget.set(left.ok_or_else(|| fault("makes more numbers of known ones than a graph of this size may, expected fewer"))?);
    Ok(())
}

/// An axis of `rank` axes; negative ones count from the end.
pub(super) fn axis(value: i64, rank: usize) -> Result<usize> {
    let counted = if value < 0 { value.checked_add(rank as i64) } else { Some(value) };
    let found = counted.and_then(|v| usize::try_from(v).ok()).filter(|&v| v < rank);
    found.ok_or_else(|| fault(format!("axis {value}, expected one of {rank} axes")))
}

/// Several axes, each once.
pub(super) fn axes(values: &[i64], rank: usize) -> Result<Vec<usize>> {
    let mut axes = values.iter().map(|&v| axis(v, rank)).collect::<Result<Vec<_>>>()?;
    axes.sort_unstable();
    match axes.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(fault(format!("axis {} twice, expected each once", pair[0]))),
        None => Ok(axes),
    }
}

/// A name or value as an error shows it: at most 80 characters.
pub(super) fn short(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_string() } else { text.chars().take(77).chain("...".chars()).collect() }
}

/// Numbers as an error shows them: eight at most.
pub(super) fn list(values: &[i64]) -> String {
    if values.len() <= 8 { format!("{values:?}") } else { format!("{} numbers from {:?} on", values.len(), &values[..4]) }
}

/// The product of sizes, at most [`MAX_VALUES`].
pub(super) fn tape_size(dims: &[usize]) -> Result<usize> {
    let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_VALUES);
    count.ok_or_else(|| fault(format!("a tensor of {} axes and more than {MAX_VALUES} values, expected fewer", dims.len())))
}

/// The product of sizes, at most [`MAX_MADE`].
pub(super) fn made_size(dims: &[usize]) -> Result<usize> {
    let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_MADE);
    count.ok_or_else(|| fault(format!("a constant of {} axes and more than {MAX_MADE} values, expected fewer", dims.len())))
}
