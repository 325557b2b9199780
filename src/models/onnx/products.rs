//! Products of matrices, softmax, and values joined along axes.

use super::arrange::expanded;
use super::call::{Call, axes, axis, tape_size};
use super::fold;
use super::pointwise::two;
use super::value::{Constant, Held, Value, fault};
use crate::base::{Array, Result};
use crate::ops::activation::Function;
use crate::ops::axes::broadcast;
use crate::ops::reduce::Reduction;
use crate::plan::Tensor;

/// alpha A B + beta C, either matrix transposed.
pub(super) fn gemm(call: &mut Call) -> Result<Value> {
    let (alpha, beta) = (call.float("alpha", 1.0)?, call.float("beta", 1.0)?);
    let (a_across, b_across) = (call.flag("transA", false)?, call.flag("transB", false)?);
    let (a, b) = (matrix(call, 0)?, matrix(call, 1)?);
    let a = if a_across { a.transposed(&[1, 0]) } else { a };
    let a = a.in_order(call.t)?;
    // alpha is a factor of the product, so C enters on its own unless it is 1.
    let weight = match call.input(1)?.clone() {
        Value::Constant(constant) => {
            let form = if b_across { "[in, out]" } else { "plain" };
            let turned = |array: Array| Ok(if b_across { array.permute(&[1, 0]) } else { array });
            call.weight(&constant, form, turned)?
        }
        Value::Held(_) => {
            let b = if b_across { b.transposed(&[1, 0]) } else { b };
            b.in_order(call.t)?.tensor
        }
    };
    let outputs = call.t.shape(weight).last();
    let bias = match call.optional(2) {
        Some(Value::Constant(c)) if alpha == 1.0 && beta == 1.0 && c.dims == [outputs] && c.is_float() => Some(c.clone()),
        _ => None,
    };
    let inside = bias.is_some();
    let bias = bias.map(|c| call.weight(&c, "plain", Ok)).transpose()?;
    let tensor = call.t.linear(a.tensor, weight, bias)?;
    let mut y = Value::Held(Held::plain(call.t, tensor));
    if alpha != 1.0 {
        y = two(call, "Mul", y, Value::Constant(Constant::of_floats(&[], vec![alpha])))?;
    }
    match call.optional(2).cloned() {
        Some(c) if !inside && beta != 0.0 => {
            let c = if beta == 1.0 { c } else { two(call, "Mul", c, Value::Constant(Constant::of_floats(&[], vec![beta])))? };
            two(call, "Add", y, c)
        }
        _ => Ok(y),
    }
}

/// Input `i` with two axes.
fn matrix(call: &mut Call, i: usize) -> Result<Held> {
    match call.input(i)? {
        Value::Held(held) if held.rank() == 2 => Ok(held.clone()),
        Value::Constant(constant) if constant.dims.len() == 2 => call.held(i),
        other => Err(fault(format!("input {i} is {:?}, expected two axes", other.dims()))),
    }
}

/// numpy's matmul.
pub(super) fn matmul(call: &mut Call) -> Result<Value> {
    let (a, b) = (call.input(0)?.clone(), call.input(1)?.clone());
    let (a_dims, b_dims) = (a.dims().to_vec(), b.dims().to_vec());
    if a_dims.is_empty() || b_dims.is_empty() {
        return Err(fault(format!("{a_dims:?} by {b_dims:?}, expected one axis at least")));
    }
    let a = if a_dims.len() == 1 { with_shape(call, 0, &[1, a_dims[0]])? } else { call.held(0)?.in_order(call.t)? };
    let b = if b_dims.len() == 1 { with_shape(call, 1, &[b_dims[0], 1])? } else { call.held(1)?.in_order(call.t)? };
    let product = product(call, &a, &b)?;
    // The axis of a vector is none of the result's.
    let mut dims = product.dims.clone();
    if b_dims.len() == 1 {
        dims.pop();
    }
    if a_dims.len() == 1 {
        dims.remove(dims.len() - if b_dims.len() == 1 { 1 } else { 2 });
    }
    product.reshaped(call.t, &dims).map(Value::Held)
}

fn with_shape(call: &mut Call, i: usize, dims: &[usize]) -> Result<Held> {
    let held = call.held(i)?;
    held.reshaped(call.t, dims)?.in_order(call.t)
}

/// a `[..., M, K]` by b `[..., K, N]`, both in ONNX's order; the axes before them broadcast.
fn product(call: &mut Call, a: &Held, b: &Held) -> Result<Held> {
    if b.rank() == 2 {
        let tensor = call.t.linear(a.tensor, b.tensor, None)?;
        return Ok(Held::plain(call.t, tensor));
    }
    let split = |held: &Held| (held.dims[..held.rank() - 2].to_vec(), [held.dims[held.rank() - 2], held.dims[held.rank() - 1]]);
    let ((a_outer, [m, k]), (b_outer, [k_b, n])) = (split(a), split(b));
    let Some(outer) = broadcast(&a_outer, &b_outer) else {
        return Err(fault(format!("{:?} by {:?}: the axes before the last two do not broadcast, expected equal sizes or 1", a.dims, b.dims)));
    };
    let batch = tape_size(&outer)?;
    tape_size(&[&outer[..], &[m, n]].concat())?;
    let flat = |call: &mut Call, held: &Held, last: [usize; 2]| -> Result<Tensor> {
        let whole = [&outer[..], &last[..]].concat();
        let Value::Held(held) = expanded(call, &Value::Held(held.clone()), &whole)? else { return Err(fault("no tensor")) };
        let held = held.in_order(call.t)?;
        call.t.reshape(held.tensor, &[batch, last[0], last[1]])
    };
    let (left, right) = (flat(call, a, [m, k])?, flat(call, b, [k_b, n])?);
    let tensor = call.t.matmul(left, right)?;
    let tensor = call.t.reshape(tensor, &[&outer[..], &[m, n]].concat())?;
    Ok(Held::plain(call.t, tensor))
}

/// Softmax and LogSoftmax along an axis; before opset 13 over everything from the axis on.
pub(super) fn softmax(call: &mut Call) -> Result<Value> {
    let x = call.held(0)?;
    let since_13 = call.opset >= 13;
    let along = axis(call.integer("axis", if since_13 { -1 } else { 1 })?, x.rank())?;
    let is_log = call.node.operator == "LogSoftmax";
    if since_13 || along + 1 == x.rank() {
        let x = x.with_last(call.t, along)?;
        let tensor = softmax_of_last(call, x.tensor, is_log)?;
        return Ok(Value::Held(x.with(tensor)));
    }
    let plain = x.in_order(call.t)?;
    let rows = call.t.reshape(plain.tensor, &[x.dims[..along].iter().product(), x.dims[along..].iter().product()])?;
    let tensor = softmax_of_last(call, rows, is_log)?;
    let tensor = call.t.reshape(tensor, &x.dims)?;
    Ok(Value::Held(plain.with(tensor)))
}

/// The logarithm is x - max - log(sum(exp(x - max))), which does not underflow.
fn softmax_of_last(call: &mut Call, x: Tensor, is_log: bool) -> Result<Tensor> {
    if !is_log {
        return call.t.softmax(x);
    }
    let mut row = call.t.shape(x).dims().to_vec();
    let last = row.len() - 1;
    row[last] = 1;
    let max = call.t.reduce(x, last, Reduction::Max)?;
    let max = call.t.reshape(max, &row)?;
    let x = call.t.sub(x, max)?;
    let exp = call.t.activation(x, Function::Exp)?;
    let sum = call.t.reduce(exp, last, Reduction::Sum)?;
    let sum = call.t.reshape(sum, &row)?;
    let log = call.t.activation(sum, Function::Log)?;
    call.t.sub(x, log)
}

/// ReduceMean and its kin: axes are an attribute before opset 18 (ReduceSum 13), an input since.
pub(super) fn reduce(call: &mut Call) -> Result<Value> {
    let x = call.input(0)?.clone();
    let rank = x.dims().len();
    let told = call.list("axes", 1)?;
    let keep = call.flag("keepdims", true)?;
    let named = told.as_deref().filter(|told| !told.is_empty());
    let along = match named {
        Some(told) => axes(told, rank)?,
        None if call.flag("noop_with_empty_axes", false)? => return Ok(x),
        None => (0..rank).collect(),
    };
    let operator = call.node.operator.clone();
    if let Value::Constant(constant) = &x
        && !constant.is_float()
    {
        return fold::reduce(&operator, constant, &along, keep).map(Value::Constant);
    }
    let x = call.held(0)?;
    reduced(call, &x, &along, keep, &operator).map(Value::Held)
}

/// One value per place of the other axes.
pub(super) fn reduced(call: &mut Call, x: &Held, along: &[usize], keep: bool, operator: &str) -> Result<Held> {
    let (before, reduction) = match operator {
        "ReduceMean" => (None, Reduction::Mean),
        "ReduceSum" => (None, Reduction::Sum),
        "ReduceMax" => (None, Reduction::Max),
        "ReduceMin" => (None, Reduction::Min),
        "ReduceProd" => (None, Reduction::Prod),
        "ReduceL2" => (None, Reduction::L2),
        "ReduceL1" => (Some("Abs"), Reduction::Sum),
        "ReduceSumSquare" => (Some("Square"), Reduction::Sum),
        other => return Err(fault(format!("{other} is not supported"))),
    };
    let x = match before {
        Some("Abs") => x.with(call.t.activation(x.tensor, Function::Abs)?),
        Some(_) => x.with(call.t.mul(x.tensor, x.tensor)?),
        None => x.clone(),
    };
    // Axes that are joined lie side by side: one of them stays for all.
    let rest: Vec<usize> = x.order.iter().copied().filter(|a| !along.contains(a)).collect();
    let joined: Vec<usize> = x.order.iter().copied().filter(|a| along.contains(a)).collect();
    let first = x.order.iter().position(|a| along.contains(a)).unwrap_or(x.rank());
    let side_by_side = x.order.iter().skip(first).take(joined.len()).eq(joined.iter());
    let (x, at) = if side_by_side { (x, first) } else { (x.ordered(call.t, &[rest.clone(), joined.clone()].concat())?, rest.len()) };
    if joined.is_empty() {
        return Ok(x);
    }
    let mut shape = call.t.shape(x.tensor).dims().to_vec();
    let length = shape[at..at + joined.len()].iter().product();
    shape.splice(at..at + joined.len(), [length]);
    let flat = call.t.reshape(x.tensor, &shape)?;
    let tensor = call.t.reduce(flat, at, reduction)?;
    if keep {
        let mut dims = x.dims.clone();
        along.iter().for_each(|&a| dims[a] = 1);
        let shape: Vec<usize> = x.order.iter().map(|&a| dims[a]).collect();
        let tensor = call.t.reshape(tensor, &shape)?;
        return Ok(Held { tensor, dims, order: x.order });
    }
    // The axes that remain are counted anew.
    let order = rest.iter().map(|&a| a - along.iter().filter(|&&gone| gone < a).count()).collect::<Vec<_>>();
    Ok(Held::of(call.t, tensor, &order))
}
