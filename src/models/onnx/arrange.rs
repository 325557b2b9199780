//! Moves of data: shapes, orders, ranges, joins. Of known numbers they stay known.

use super::call::{Call, MAX_MADE, axes, axis, list, made_size, short, tape_size};
use super::fold;
use super::value::{Constant, Held, Value, fault};
use crate::base::Result;
use crate::ops::axes::broadcast;
use crate::ops::pool2d::{Pool2d, PoolMode};
use crate::plan::{Tape, Tensor};

/// The same values in another shape.
fn reshaped(call: &mut Call, value: &Value, dims: &[usize]) -> Result<Value> {
    match value {
        Value::Constant(constant) => Ok(Value::Constant(constant.reshaped(dims))),
        Value::Held(held) => held.reshaped(call.t, dims).map(Value::Held),
    }
}

/// The shape that `told` asks for: 0 keeps an axis (unless `zero_is_zero`), one -1 takes the rest.
fn asked_shape(from: &[usize], told: &[i64], zero_is_zero: bool) -> Result<Vec<usize>> {
    let wrong = || fault(format!("{from:?} to the shape {}, expected as many values", list(told)));
    let mut dims = Vec::with_capacity(told.len());
    let mut open = None;
    for (i, &size) in told.iter().enumerate() {
        dims.push(match size {
            0 if !zero_is_zero => *from.get(i).ok_or_else(wrong)?,
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            size => usize::try_from(size).map_err(|_| wrong())?,
        });
    }
    let count: usize = from.iter().product();
    let known = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(wrong)?;
    if let Some(i) = open {
        dims[i] = count.checked_div(known).ok_or_else(wrong)?;
    }
    if dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) == Some(count) { Ok(dims) } else { Err(wrong()) }
}

pub(super) fn reshape(call: &mut Call) -> Result<Value> {
    let x = call.input(0)?.clone();
    let told = call.integers_at(1, "shape")?.ok_or_else(|| fault("shape (input 1) is left out, expected one"))?;
    let dims = asked_shape(x.dims(), &told, call.flag("allowzero", false)?)?;
    reshaped(call, &x, &dims)
}

pub(super) fn flatten(call: &mut Call) -> Result<Value> {
    let x = call.input(0)?.clone();
    let rank = x.dims().len();
    let told = call.integer("axis", 1)?;
    let at = if told == rank as i64 { rank } else { axis(told, rank)? };
    let dims = [x.dims()[..at].iter().product(), x.dims()[at..].iter().product()];
    reshaped(call, &x, &dims)
}

pub(super) fn squeeze(call: &mut Call) -> Result<Value> {
    let x = call.input(0)?.clone();
    let dims = x.dims().to_vec();
    let dropped = match call.list("axes", 1)? {
        Some(told) => axes(&told, dims.len())?,
        None => (0..dims.len()).filter(|&a| dims[a] == 1).collect(),
    };
    if let Some(&long) = dropped.iter().find(|&&a| dims[a] != 1) {
        return Err(fault(format!("axis {long} of {dims:?} has {} places, expected 1", dims[long])));
    }
    let kept: Vec<usize> = (0..dims.len()).filter(|a| !dropped.contains(a)).map(|a| dims[a]).collect();
    reshaped(call, &x, &kept)
}

pub(super) fn unsqueeze(call: &mut Call) -> Result<Value> {
    let x = call.input(0)?.clone();
    let told = call.list("axes", 1)?.ok_or_else(|| fault("axes are left out, expected a list"))?;
    let rank = x.dims().len() + told.len();
    let new = axes(&told, rank)?;
    let mut old = x.dims().iter().copied();
    let dims: Vec<usize> = (0..rank).map(|a| if new.contains(&a) { 1 } else { old.next().unwrap_or(1) }).collect();
    reshaped(call, &x, &dims)
}

pub(super) fn transpose(call: &mut Call) -> Result<Value> {
    let x = call.input(0)?.clone();
    let rank = x.dims().len();
    let order = match call.integers("perm")? {
        None => (0..rank).rev().collect(),
        Some(told) => {
            let order = told.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>>>()?;
            if axes(&told, rank)?.len() != rank {
                return Err(call.refused("perm", list(&told), &format!("each of {rank} axes once")));
            }
            order
        }
    };
    transposed(&x, &order)
}

fn transposed(x: &Value, order: &[usize]) -> Result<Value> {
    Ok(match x {
        Value::Constant(constant) => Value::Constant(fold::transposed(constant, order)),
        Value::Held(held) => Value::Held(held.transposed(order)),
    })
}

pub(super) fn concat(call: &mut Call) -> Result<Value> {
    let parts = (0..call.inputs.len()).map(|i| call.input(i).cloned()).collect::<Result<Vec<_>>>()?;
    let Some(first) = parts.iter().find(|part| matches!(part, Value::Held(_))).or(parts.first()) else {
        return Err(fault("no inputs, expected one at least"));
    };
    let along = axis(call.integer("axis", 1)?, first.dims().len())?;
    let known: Vec<Constant> = parts.iter().filter_map(|part| if let Value::Constant(c) = part { Some(c.clone()) } else { None }).collect();
    let Value::Held(first) = first.clone() else {
        return fold::joined(&known, along).map(Value::Constant);
    };
    let mut tensors = Vec::with_capacity(parts.len());
    for part in &parts {
        if part.dims().len() != first.rank() {
            return Err(fault(format!("{:?} beside {:?}, expected as many axes", part.dims(), first.dims)));
        }
        match part {
            Value::Constant(constant) if constant.numel() == 0 => {}
            Value::Constant(constant) => tensors.push(call.promoted_in(constant, &first.order)?.tensor),
            Value::Held(held) => tensors.push(held.ordered(call.t, &first.order)?.tensor),
        }
    }
    let tensor = call.t.concat_axis(&tensors, first.position(along))?;
    Ok(Value::Held(Held::of(call.t, tensor, &first.order)))
}

/// `length` places of an axis from `start` on.
fn range(call: &mut Call, value: &Value, axis: usize, start: usize, length: usize) -> Result<Value> {
    match value {
        Value::Constant(constant) => fold::picked_along(constant, axis, &(start..start + length).collect::<Vec<_>>()).map(Value::Constant),
        Value::Held(held) => {
            let tensor = call.t.slice(held.tensor, held.position(axis), start, length)?;
            Ok(Value::Held(Held::of(call.t, tensor, &held.order)))
        }
    }
}

pub(super) fn split(call: &mut Call) -> Result<Vec<Value>> {
    let x = call.input(0)?.clone();
    let along = axis(call.integer("axis", 0)?, x.dims().len())?;
    let (size, parts) = (x.dims()[along], call.node.outputs.len());
    let told = call.list("split", 1)?;
    let sizes = match &told {
        Some(told) => fold::sizes(told)?,
        None => {
            if parts == 0 || call.integer("num_outputs", parts as i64)? != parts as i64 {
                return Err(call.refused("num_outputs", call.integer("num_outputs", 0)?, &format!("{parts} as the node has outputs")));
            }
            let each = size.div_ceil(parts);
            (0..parts).map(|i| size.saturating_sub(i * each).min(each)).collect()
        }
    };
    let total = sizes.iter().try_fold(0usize, |n, &d| n.checked_add(d));
    if total != Some(size) || sizes.len() != parts {
        return Err(fault(format!("an axis of {size} into {} parts of {total:?} in all, expected {parts} of {size} in all", sizes.len())));
    }
    let mut start = 0;
    let mut results = Vec::with_capacity(parts);
    for length in sizes {
        results.push(range(call, &x, along, start, length)?);
        start += length;
    }
    Ok(results)
}

/// Starts, ends, axes and steps: attributes before opset 10, inputs since.
pub(super) fn slice(call: &mut Call) -> Result<Value> {
    let mut x = call.input(0)?.clone();
    let absent = |name: &str| fault(format!("{name} are left out, expected a list"));
    let starts = call.list("starts", 1)?.ok_or_else(|| absent("starts"))?;
    let ends = call.list("ends", 2)?.ok_or_else(|| absent("ends"))?;
    let told = call.list("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = call.integers_at(4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), told.len(), steps.len()].iter().any(|&n| n != starts.len()) {
        return Err(fault(format!("{} starts, {} ends, {} axes and {} steps, expected as many of each", starts.len(), ends.len(), told.len(), steps.len())));
    }
    axes(&told, x.dims().len())?;
    for (((start, end), along), step) in starts.into_iter().zip(ends).zip(told).zip(steps) {
        let along = axis(along, x.dims().len())?;
        x = one_slice(call, &x, along, [start, end, step])?;
    }
    Ok(x)
}

/// numpy's `start:end:step` of one axis.
fn one_slice(call: &mut Call, x: &Value, axis: usize, [start, end, step]: [i64; 3]) -> Result<Value> {
    let size = x.dims()[axis] as i64;
    let counted = |v: i64| if v < 0 { v.saturating_add(size) } else { v };
    if step == 0 || size == 0 {
        return Err(fault(format!("step {step} of an axis of {size}, expected a step and places")));
    }
    if step < 0 {
        let (first, last) = (counted(start).clamp(-1, size - 1), counted(end).clamp(-1, size - 1));
        let last = if end < -size { -1 } else { last };
        let count = if first > last { ((first - last - 1) / step.saturating_neg() + 1) as usize } else { 0 };
        let indices: Vec<usize> = (0..count).map(|i| (first + step.saturating_mul(i as i64)) as usize).collect();
        return picked(call, x, axis, &indices);
    }
    let (first, last) = (counted(start).clamp(0, size), counted(end).clamp(0, size));
    let length = (last - first).max(0) as usize;
    if let Value::Constant(constant) = x {
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        let indices: Vec<usize> = (first as usize..first as usize + length).step_by(step).collect();
        return fold::picked_along(constant, axis, &indices).map(Value::Constant);
    }
    if length == 0 {
        return Err(fault(format!("no place of axis {axis} of {:?}, expected one at least", x.dims())));
    }
    let part = range(call, x, axis, first as usize, length)?;
    match part {
        Value::Held(held) if step > 1 => strided(call, &held, axis, usize::try_from(step).unwrap_or(usize::MAX)).map(Value::Held),
        part => Ok(part),
    }
}

/// Every `step`th place of an axis: a pooling with windows of one place.
fn strided(call: &mut Call, held: &Held, axis: usize, step: usize) -> Result<Held> {
    let at = held.position(axis);
    let mut dims = call.t.shape(held.tensor).dims().to_vec();
    let (outer, inner): (usize, usize) = (dims[..at].iter().product(), dims[at + 1..].iter().product());
    let rows = call.t.reshape(held.tensor, &[outer, dims[at], 1, inner])?;
    let step = step.min(dims[at]);
    let pooled = call.t.pool2d(rows, &Pool2d { mode: PoolMode::Max, kernel: [1, 1], stride: [step, 1], padding: [0; 4], count_padding: false })?;
    dims[at] = dims[at].div_ceil(step);
    let tensor = call.t.reshape(pooled, &dims)?;
    Ok(Held::of(call.t, tensor, &held.order))
}

/// Ranges that are copied one by one; beyond this many a product with zeros and ones does it.
const MAX_RANGES: usize = 8;

/// The places `indices` of an axis, in this order.
pub(super) fn picked(call: &mut Call, x: &Value, axis: usize, indices: &[usize]) -> Result<Value> {
    let held = match x {
        Value::Constant(constant) => return fold::picked_along(constant, axis, indices).map(Value::Constant),
        Value::Held(held) => held,
    };
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &i in indices {
        match ranges.last_mut() {
            Some((start, length)) if *start + *length == i => *length += 1,
            _ => ranges.push((i, 1)),
        }
    }
    if ranges.is_empty() {
        return Err(fault(format!("no place of axis {axis} of {:?}, expected one at least", held.dims)));
    }
    if ranges.len() <= MAX_RANGES {
        let at = held.position(axis);
        let parts = ranges.iter().map(|&(start, length)| call.t.slice(held.tensor, at, start, length)).collect::<Result<Vec<Tensor>>>()?;
        let tensor = call.t.concat_axis(&parts, at)?;
        return Ok(Value::Held(Held::of(call.t, tensor, &held.order)));
    }
    let rows = held.dims[axis];
    made_size(&[rows, indices.len()])?;
    let mut matrix = vec![0.0; rows * indices.len()];
    indices.iter().enumerate().for_each(|(column, &row)| matrix[row * indices.len() + column] = 1.0);
    along(call, held, axis, &[rows, indices.len()], matrix).map(Value::Held)
}

/// The product of one axis with a matrix `[in, out]`.
pub(super) fn along(call: &mut Call, held: &Held, axis: usize, dims: &[usize; 2], matrix: Vec<f32>) -> Result<Held> {
    let held = held.with_last(call.t, axis)?;
    let weight = call.made(dims, matrix)?;
    let tensor = call.t.linear(held.tensor, weight, None)?;
    Ok(Held::of(call.t, tensor, &held.order))
}

pub(super) fn gather(call: &mut Call) -> Result<Value> {
    let x = call.input(0)?.clone();
    let along = axis(call.integer("axis", 0)?, x.dims().len())?;
    let told = call.constant(1, "indices")?;
    let Some(values) = told.integers() else { return Err(fault("indices (input 1) are floats, expected integers")) };
    let indices = fold::indices(&values, x.dims()[along])?;
    let dims = [&x.dims()[..along], &told.dims, &x.dims()[along + 1..]].concat();
    let picked = picked(call, &x, along, &indices)?;
    reshaped(call, &picked, &dims)
}

pub(super) fn expand(call: &mut Call) -> Result<Value> {
    let told = fold::sizes(&call.integers_at(1, "shape")?.unwrap_or_default())?;
    let x = call.input(0)?.clone();
    let Some(dims) = broadcast(x.dims(), &told) else {
        return Err(fault(format!("{:?} to {told:?} do not broadcast, expected equal sizes or 1", x.dims())));
    };
    expanded(call, &x, &dims)
}

/// The value repeated along its axes of one, and along new ones before them.
pub(super) fn expanded(call: &mut Call, x: &Value, dims: &[usize]) -> Result<Value> {
    let held = match x {
        Value::Constant(constant) => return fold::expanded(constant, dims).map(Value::Constant),
        Value::Held(held) => held,
    };
    tape_size(dims)?;
    let held = held.of_rank(call.t, dims.len())?;
    let ones: Vec<usize> = held.order.iter().map(|&a| if held.dims[a] == 1 { dims[a] } else { 1 }).collect();
    if ones.iter().all(|&n| n == 1) {
        return Ok(Value::Held(held));
    }
    let factor = call.made(&ones, vec![1.0; made_size(&ones)?])?;
    let tensor = call.t.mul(held.tensor, factor)?;
    Ok(Value::Held(Held::of(call.t, tensor, &held.order)))
}

pub(super) fn tile(call: &mut Call) -> Result<Value> {
    let x = call.input(0)?.clone();
    let times = fold::sizes(&call.integers_at(1, "repeats")?.unwrap_or_default())?;
    let dims = x.dims().to_vec();
    if times.len() != dims.len() {
        return Err(fault(format!("{} repeats of {} axes, expected one each", times.len(), dims.len())));
    }
    let result: Option<Vec<usize>> = dims.iter().zip(&times).map(|(d, n)| d.checked_mul(*n)).collect();
    let result = result.unwrap_or_else(|| vec![usize::MAX; 2]);
    tape_size(&result)?;
    // An axis of its own before each that repeats.
    let mut apart = Vec::new();
    let mut repeated = Vec::new();
    for (&size, &n) in dims.iter().zip(&times) {
        if n != 1 {
            apart.push(1);
            repeated.push(n);
        }
        apart.push(size);
        repeated.push(size);
    }
    let x = reshaped(call, &x, &apart)?;
    let x = expanded(call, &x, &repeated)?;
    reshaped(call, &x, &result)
}

/// Pads: an attribute before opset 11, an input since; the numbers of all axes before, then of all behind.
pub(super) fn pad(call: &mut Call) -> Result<Value> {
    let mut x = call.input(0)?.clone();
    let rank = x.dims().len();
    let told = call.list("pads", 1)?.ok_or_else(|| fault("pads are left out, expected a list"))?;
    let given = call.integers_at(3, "axes")?;
    let along = match &given {
        Some(told) => told.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    if told.len() != 2 * along.len() {
        return Err(fault(format!("{} pads for {} axes, expected two each", told.len(), along.len())));
    }
    let mode = call.text("mode", "constant")?;
    let value = match call.optional(2) {
        Some(_) => call.constant(2, "constant_value")?.scalar().ok_or_else(|| fault("constant_value (input 2) is no single number, expected one"))?,
        None => call.float("value", 0.0)?,
    };
    for (i, &axis) in along.iter().enumerate() {
        let [before, after] = [told[i], told[i + along.len()]];
        if [before, after] == [0, 0] {
            continue;
        }
        x = padded(call, &x, axis, [before, after], &mode, value)?;
    }
    Ok(x)
}

/// One axis longer, or shorter where a pad is negative.
fn padded(call: &mut Call, x: &Value, axis: usize, pads: [i64; 2], mode: &str, value: f32) -> Result<Value> {
    let size = x.dims()[axis] as i64;
    let [before, after] = pads;
    let cut = |pad: i64| pad.min(0).saturating_neg();
    let length = size.saturating_sub(cut(before)).saturating_sub(cut(after));
    if length <= 0 || before.max(after) > MAX_MADE as i64 {
        return Err(fault(format!("pads {pads:?} of an axis of {size}, expected places that remain and {MAX_MADE} new ones at most")));
    }
    let x = range(call, x, axis, cut(before) as usize, length as usize)?;
    let [before, after] = [before.max(0), after.max(0)];
    let place = |i: i64| match mode {
        "edge" => Some(i.clamp(0, length - 1)),
        "reflect" if before < length && after < length => Some(if i < 0 {
            -i
        } else if i >= length {
            2 * (length - 1) - i
        } else {
            i
        }),
        "wrap" => Some(i.rem_euclid(length)),
        _ => None,
    };
    if mode != "constant" {
        let indices: Option<Vec<usize>> = (-before..length + after).map(|i| place(i).map(|i| i as usize)).collect();
        let indices = indices.ok_or_else(|| {
            call.refused("mode", format!("{} with pads {pads:?} of {size}", short(mode)), "constant, edge, reflect (pads below the size) or wrap")
        })?;
        return picked(call, &x, axis, &indices);
    }
    let side = |pad: i64| -> Result<Option<Constant>> {
        let mut dims = x.dims().to_vec();
        dims[axis] = pad as usize;
        let count = made_size(&dims)?;
        let made = if is_integer(&x) { Constant::of_integers(&dims, vec![value as i64; count]) } else { Constant::of_floats(&dims, vec![value; count]) };
        Ok((pad > 0).then_some(made))
    };
    let (before, after) = (side(before)?, side(after)?);
    match x {
        Value::Constant(x) => fold::joined(&before.into_iter().chain([x]).chain(after).collect::<Vec<_>>(), axis).map(Value::Constant),
        Value::Held(held) => {
            let mut parts = Vec::new();
            if let Some(before) = before {
                parts.push(call.promoted_in(&before, &held.order)?.tensor);
            }
            parts.push(held.tensor);
            if let Some(after) = after {
                parts.push(call.promoted_in(&after, &held.order)?.tensor);
            }
            let tensor = call.t.concat_axis(&parts, held.position(axis))?;
            Ok(Value::Held(Held::of(call.t, tensor, &held.order)))
        }
    }
}

fn is_integer(value: &Value) -> bool {
    matches!(value, Value::Constant(constant) if !constant.is_float())
}

/// Channels into squares of pixels.
pub(super) fn depth_to_space(call: &mut Call) -> Result<Value> {
    let (x, block) = (call.input(0)?.clone(), call.size("blocksize")?);
    let &[n, c, h, w] = x.dims() else { return Err(fault(format!("{:?}, expected four axes", x.dims()))) };
    if !c.is_multiple_of(block * block) {
        return Err(call.refused("blocksize", block, &format!("one whose square divides {c} channels")));
    }
    let own = c / (block * block);
    let (apart, order): (_, [usize; 6]) = match call.text("mode", "DCR")?.as_str() {
        "DCR" => ([n, block, block, own, h, w], [0, 3, 4, 1, 5, 2]),
        "CRD" => ([n, own, block, block, h, w], [0, 1, 4, 2, 5, 3]),
        other => return Err(call.refused("mode", short(other), "DCR or CRD")),
    };
    let x = reshaped(call, &x, &apart)?;
    let x = transposed(&x, &order)?;
    reshaped(call, &x, &[n, own, h * block, w * block])
}

/// Squares of pixels into channels.
pub(super) fn space_to_depth(call: &mut Call) -> Result<Value> {
    let (x, block) = (call.input(0)?.clone(), call.size("blocksize")?);
    let &[n, c, h, w] = x.dims() else { return Err(fault(format!("{:?}, expected four axes", x.dims()))) };
    if !h.is_multiple_of(block) || !w.is_multiple_of(block) {
        return Err(call.refused("blocksize", block, &format!("one that divides {h} and {w}")));
    }
    let x = reshaped(call, &x, &[n, c, h / block, block, w / block, block])?;
    let x = transposed(&x, &[0, 3, 5, 1, 2, 4])?;
    reshaped(call, &x, &[n, c * block * block, h / block, w / block])
}

/// A tensor of the tape that a step makes: an input or a weight is copied.
pub(super) fn copied(t: &mut Tape, tensor: Tensor) -> Result<Tensor> {
    match t.info(t.owner(tensor)).kind {
        crate::plan::TensorKind::Activation => Ok(tensor),
        _ => t.affine(tensor, 1.0, 0.0),
    }
}
