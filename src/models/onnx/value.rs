//! Values of a graph while it is recorded: numbers that are known, and tensors of the tape with the order of their axes.
//!
//! ONNX images are `[N, C, H, W]`, ours `[N, H, W, C]`. A held tensor says which of ONNX's axes each of its own is, so that a
//! transposition is only a note, and data moves where an operator needs another order.

use std::sync::Arc;

use crate::base::{Array, Error, Kind, Result};
use crate::plan::{Tape, Tensor};
use crate::weights::OnnxTensor;

/// Axes of an image in the order in which the tape has them.
pub(super) const IMAGE: [usize; 4] = [0, 2, 3, 1];

/// A value of the graph.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Constant(Constant),
    Held(Held),
}

impl Value {
    /// ONNX's shape.
    pub(super) fn dims(&self) -> &[usize] {
        match self {
            Value::Constant(constant) => &constant.dims,
            Value::Held(held) => &held.dims,
        }
    }
}

#[derive(Clone, Debug)]
enum Numbers {
    Floats(Arc<Vec<f32>>),
    /// Integers of any width, and bools as 0 and 1.
    Integers(Arc<Vec<i64>>),
    /// Under this name in the file, not yet read.
    Stored(Arc<str>, Arc<OnnxTensor>),
}

/// Known numbers, row-major.
#[derive(Clone, Debug)]
pub(super) struct Constant {
    pub(super) dims: Vec<usize>,
    numbers: Numbers,
}

impl Constant {
    pub(super) fn stored(name: &str, tensor: &Arc<OnnxTensor>) -> Constant {
        Constant { dims: tensor.dims.clone(), numbers: Numbers::Stored(name.into(), tensor.clone()) }
    }

    /// `values` are as many as `dims` says.
    pub(super) fn of_floats(dims: &[usize], values: Vec<f32>) -> Constant {
        debug_assert_eq!(values.len(), dims.iter().product::<usize>());
        Constant { dims: dims.to_vec(), numbers: Numbers::Floats(Arc::new(values)) }
    }

    /// `values` are as many as `dims` says.
    pub(super) fn of_integers(dims: &[usize], values: Vec<i64>) -> Constant {
        debug_assert_eq!(values.len(), dims.iter().product::<usize>());
        Constant { dims: dims.to_vec(), numbers: Numbers::Integers(Arc::new(values)) }
    }

    /// The tensor's name in the file, when it is one of the file's.
    pub(super) fn name(&self) -> Option<&str> {
        match &self.numbers {
            Numbers::Stored(name, _) => Some(name),
            _ => None,
        }
    }

    pub(super) fn is_float(&self) -> bool {
        match &self.numbers {
            Numbers::Floats(_) => true,
            Numbers::Integers(_) => false,
            Numbers::Stored(_, tensor) => tensor.kind.is_float(),
        }
    }

    pub(super) fn numel(&self) -> usize {
        self.dims.iter().product()
    }

    /// The values of floats; None for integers.
    pub(super) fn floats(&self) -> Option<Arc<Vec<f32>>> {
        match &self.numbers {
            Numbers::Floats(values) => Some(values.clone()),
            Numbers::Integers(_) => None,
            Numbers::Stored(_, tensor) => tensor.floats().map(Arc::new),
        }
    }

    /// The values of integers and bools; None for floats.
    pub(super) fn integers(&self) -> Option<Arc<Vec<i64>>> {
        match &self.numbers {
            Numbers::Floats(_) => None,
            Numbers::Integers(values) => Some(values.clone()),
            Numbers::Stored(_, tensor) => tensor.integers().map(Arc::new),
        }
    }

    /// Any values as f32.
    pub(super) fn as_floats(&self) -> Arc<Vec<f32>> {
        let from_integers = || Arc::new(self.integers().iter().flat_map(|values| values.iter().map(|&v| v as f32)).collect());
        self.floats().unwrap_or_else(from_integers)
    }

    /// The one value of a scalar, or of a list of one.
    pub(super) fn scalar(&self) -> Option<f32> {
        (self.numel() == 1).then(|| self.as_floats().first().copied()).flatten()
    }

    pub(super) fn array(&self) -> Result<Array> {
        Array::new(&self.dims, Arc::unwrap_or_clone(self.as_floats()))
    }

    /// The same values, as many, in another shape.
    pub(super) fn reshaped(&self, dims: &[usize]) -> Constant {
        match (self.floats(), self.integers()) {
            (Some(values), _) => Constant { dims: dims.to_vec(), numbers: Numbers::Floats(values) },
            (_, values) => Constant { dims: dims.to_vec(), numbers: Numbers::Integers(values.unwrap_or_default()) },
        }
    }

    /// The values at `places`, in the shape `dims`.
    pub(super) fn picked(&self, dims: &[usize], places: &[usize]) -> Constant {
        match (self.floats(), self.integers()) {
            (Some(values), _) => Constant::of_floats(dims, places.iter().map(|&at| values[at]).collect()),
            (_, values) => {
                let values = values.unwrap_or_default();
                Constant::of_integers(dims, places.iter().map(|&at| values[at]).collect())
            }
        }
    }
}

/// A tensor of the tape. Its axis i is ONNX's axis `order[i]`.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) tensor: Tensor,
    /// ONNX's shape.
    pub(super) dims: Vec<usize>,
    pub(super) order: Vec<usize>,
}

impl Held {
    /// A tensor whose axes are ONNX's.
    pub(super) fn plain(t: &Tape, tensor: Tensor) -> Held {
        let dims = t.shape(tensor).dims().to_vec();
        Held { tensor, order: (0..dims.len()).collect(), dims }
    }

    /// A tensor whose axis i is ONNX's axis `order[i]`.
    pub(super) fn of(t: &Tape, tensor: Tensor, order: &[usize]) -> Held {
        let mut dims = vec![0; order.len()];
        order.iter().zip(t.shape(tensor).dims()).for_each(|(&axis, &size)| dims[axis] = size);
        Held { tensor, dims, order: order.to_vec() }
    }

    /// `[N, H, W, C]` on the tape.
    pub(super) fn image(t: &Tape, tensor: Tensor) -> Held {
        Held::of(t, tensor, &IMAGE)
    }

    /// Another tensor of the same shape and order.
    pub(super) fn with(&self, tensor: Tensor) -> Held {
        Held { tensor, ..self.clone() }
    }

    pub(super) fn rank(&self) -> usize {
        self.dims.len()
    }

    /// The tape's axis that is ONNX's `axis`.
    pub(super) fn position(&self, axis: usize) -> usize {
        self.order.iter().position(|&a| a == axis).unwrap_or(axis)
    }

    /// The same value with its axes in `order`. Where only axes of one move, no data does.
    pub(super) fn ordered(&self, t: &mut Tape, order: &[usize]) -> Result<Held> {
        if self.order == order {
            return Ok(self.clone());
        }
        let long = |order: &[usize]| order.iter().copied().filter(|&axis| self.dims[axis] != 1).collect::<Vec<_>>();
        let tensor = if long(&self.order) == long(order) {
            let dims: Vec<usize> = order.iter().map(|&axis| self.dims[axis]).collect();
            t.reshape(self.tensor, &dims)?
        } else {
            let moves: Vec<usize> = order.iter().map(|&axis| self.position(axis)).collect();
            t.permute(self.tensor, &moves)?
        };
        Ok(Held { tensor, dims: self.dims.clone(), order: order.to_vec() })
    }

    /// The same value with ONNX's own order.
    pub(super) fn in_order(&self, t: &mut Tape) -> Result<Held> {
        self.ordered(t, &(0..self.rank()).collect::<Vec<_>>())
    }

    /// The same value with `axis` innermost.
    pub(super) fn with_last(&self, t: &mut Tape, axis: usize) -> Result<Held> {
        let mut order: Vec<usize> = self.order.iter().copied().filter(|&a| a != axis).collect();
        order.push(axis);
        self.ordered(t, &order)
    }

    /// An image or tokens with the channels, ONNX's axis 1, innermost and the others in ONNX's order.
    pub(super) fn channels_last(&self, t: &mut Tape) -> Result<Held> {
        let mut order: Vec<usize> = (0..self.rank()).filter(|&a| a != 1).collect();
        order.push(1);
        self.ordered(t, &order)
    }

    /// ONNX's Transpose: axis i of the result is axis `axes[i]`. No data moves.
    pub(super) fn transposed(&self, axes: &[usize]) -> Held {
        let dims = axes.iter().map(|&axis| self.dims[axis]).collect();
        let order = self.order.iter().map(|&old| axes.iter().position(|&axis| axis == old).unwrap_or(old)).collect();
        Held { tensor: self.tensor, dims, order }
    }

    /// ONNX's Reshape to as many values. No data moves where the axes that are joined or cut lie side by side on the tape.
    pub(super) fn reshaped(&self, t: &mut Tape, dims: &[usize]) -> Result<Held> {
        if self.dims == dims {
            return Ok(self.clone());
        }
        let Some(order) = reshaped_order(&self.dims, &self.order, dims) else {
            let plain = self.in_order(t)?;
            let tensor = t.reshape(plain.tensor, dims)?;
            return Ok(Held::plain(t, tensor));
        };
        let shape: Vec<usize> = order.iter().map(|&axis| dims[axis]).collect();
        let tensor = t.reshape(self.tensor, &shape)?;
        Ok(Held { tensor, dims: dims.to_vec(), order })
    }

    /// The same value with axes of one before the others, `rank` in all.
    pub(super) fn of_rank(&self, t: &mut Tape, rank: usize) -> Result<Held> {
        let extra = rank.saturating_sub(self.rank());
        if extra == 0 {
            return Ok(self.clone());
        }
        let order = raised(&self.order, extra);
        let dims = [vec![1; extra], self.dims.clone()].concat();
        let shape: Vec<usize> = order.iter().map(|&axis| dims[axis]).collect();
        Ok(Held { tensor: t.reshape(self.tensor, &shape)?, dims, order })
    }
}

/// An order of axes behind `extra` new ones.
pub(super) fn raised(order: &[usize], extra: usize) -> Vec<usize> {
    (0..extra).chain(order.iter().map(|axis| axis + extra)).collect()
}

/// The order in which the tape has the axes of `to`, when `from`, held in `order`, is only renamed. None: data must move.
fn reshaped_order(from: &[usize], order: &[usize], to: &[usize]) -> Option<Vec<usize>> {
    let groups = groups(from, to)?;
    let held: Vec<usize> = order.iter().copied().filter(|&axis| from[axis] != 1).collect();
    let (mut at, mut result) = (0, Vec::new());
    while at < held.len() {
        let (old, new) = groups.iter().find(|(old, _)| old.first() == Some(&held[at]))?;
        if held.get(at..at + old.len())? != old.as_slice() {
            return None;
        }
        result.extend(new);
        at += old.len();
    }
    // An axis of one stands behind the axis before it.
    for axis in (0..to.len()).filter(|&axis| to[axis] == 1) {
        let place = if axis == 0 { 0 } else { result.iter().position(|&a| a == axis - 1)? + 1 };
        result.insert(place, axis);
    }
    Some(result)
}

/// The longest list of axes (longer than one) of both shapes that hold the same values: `[2, 3, 4]` and `[6, 2, 2]` are
/// (0, 1; 0) and (2; 1, 2).
fn groups(from: &[usize], to: &[usize]) -> Option<Vec<(Vec<usize>, Vec<usize>)>> {
    let long = |dims: &[usize]| (0..dims.len()).filter(|&axis| dims[axis] != 1).collect::<Vec<_>>();
    let (old, new) = (long(from), long(to));
    let (mut i, mut j, mut groups) = (0, 0, Vec::new());
    while i < old.len() && j < new.len() {
        let (first, second) = (i, j);
        let (mut a, mut b) = (from[old[i]], to[new[j]]);
        while a != b {
            if a < b {
                i += 1;
                a = a.checked_mul(from[*old.get(i)?])?;
            } else {
                j += 1;
                b = b.checked_mul(to[*new.get(j)?])?;
            }
        }
        i += 1;
        j += 1;
        groups.push((old[first..i].to_vec(), new[second..j].to_vec()));
    }
    (i == old.len() && j == new.len()).then_some(groups)
}

/// An error without a place: the walk adds the node.
pub(super) fn fault(fact: impl Into<String>) -> Error {
    Error::new(Kind::Config, "", fact)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DType;

    #[test]
    fn joining_and_cutting_axes_that_lie_side_by_side_is_free() {
        let image = [2, 6, 4, 5];
        assert_eq!(reshaped_order(&image, &IMAGE, &[2, 6, 20]), Some(vec![0, 2, 1]));
        assert_eq!(reshaped_order(&image, &IMAGE, &[2, 2, 3, 4, 5]), Some(vec![0, 3, 4, 1, 2]));
        assert_eq!(reshaped_order(&image, &IMAGE, &[2, 120]), None);
        assert_eq!(reshaped_order(&[2, 6, 1, 1], &IMAGE, &[2, 6]), Some(vec![0, 1]));
        assert_eq!(reshaped_order(&[2, 6], &[0, 1], &[2, 6, 1, 1]), Some(vec![0, 1, 2, 3]));
        assert_eq!(reshaped_order(&[4, 3], &[0, 1], &[3, 4]), Some(vec![0, 1]));
    }

    #[test]
    fn a_transposition_is_a_note() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 4, 5, 6], DType::F32);
        let held = Held::image(&t, x);
        assert_eq!(held.dims, [2, 6, 4, 5]);
        let last = held.transposed(&[0, 2, 3, 1]);
        assert_eq!((last.dims.as_slice(), last.order.as_slice(), last.tensor), (&[2, 4, 5, 6][..], &[0, 1, 2, 3][..], x));
        let y = held.in_order(&mut t).unwrap();
        assert_eq!((t.shape(y.tensor).dims(), t.steps().len()), (&[2, 6, 4, 5][..], 1));
        let back = y.ordered(&mut t, &IMAGE).unwrap();
        assert_eq!(t.shape(back.tensor).dims(), [2, 4, 5, 6]);
        let pooled = t.input("pooled", &[2, 1, 1, 6], DType::F32);
        let flat = Held::image(&t, pooled).reshaped(&mut t, &[2, 6]).unwrap();
        assert_eq!((flat.order.as_slice(), t.steps().len()), (&[0, 1][..], 2));
    }
}
