//! Arithmetic on known numbers: shapes, indices, masks and tables that the graph computes from the input's shape.

use super::call::{Call, axis, made_size};
use super::value::{Constant, Value, fault};
use crate::base::Result;
use crate::ops::axes::{broadcast, broadcast_strides, strides};

/// Places in a tensor of a result of shape `dims` that walks through it from `start` on with `strides`, row-major.
pub(super) fn places(dims: &[usize], strides: &[usize], start: usize) -> Vec<usize> {
    let count: usize = dims.iter().product();
    let (mut result, mut index, mut at) = (Vec::with_capacity(count), vec![0; dims.len()], start);
    for _ in 0..count {
        result.push(at);
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < dims[axis] {
                break;
            }
            at -= strides[axis] * dims[axis];
            index[axis] = 0;
        }
    }
    result
}

/// The constant in the shape that it broadcasts to.
pub(super) fn expanded(constant: &Constant, dims: &[usize]) -> Result<Constant> {
    made_size(dims)?;
    Ok(constant.picked(dims, &places(dims, &broadcast_strides(&constant.dims, dims), 0)))
}

/// The constant with its axes in another order.
pub(super) fn transposed(constant: &Constant, axes: &[usize]) -> Constant {
    let own = strides(&constant.dims);
    let dims: Vec<usize> = axes.iter().map(|&a| constant.dims[a]).collect();
    constant.picked(&dims, &places(&dims, &axes.iter().map(|&a| own[a]).collect::<Vec<_>>(), 0))
}

/// Two constants in the shape that both broadcast to.
fn pair(a: &Constant, b: &Constant) -> Result<(Constant, Constant)> {
    let Some(dims) = broadcast(&a.dims, &b.dims) else {
        return Err(fault(format!("{:?} and {:?} do not broadcast, expected equal sizes or 1", a.dims, b.dims)));
    };
    if a.is_float() != b.is_float() {
        return Err(fault("floats and integers, expected the same element type"));
    }
    Ok((expanded(a, &dims)?, expanded(b, &dims)?))
}

/// An operator of two lists of numbers; None: it is none of these.
pub(super) fn binary(operator: &str, a: &Constant, b: &Constant) -> Result<Option<Constant>> {
    let (a, b) = pair(a, b)?;
    if let (Some(a_values), Some(b_values)) = (a.floats(), b.floats()) {
        let values = a_values.iter().zip(b_values.iter());
        if let Some(test) = float_test(operator) {
            return Ok(Some(Constant::of_integers(&a.dims, values.map(|(&a, &b)| test(a, b).into()).collect())));
        }
        return Ok(float_function(operator).map(|f| Constant::of_floats(&a.dims, values.map(|(&a, &b)| f(a, b)).collect())));
    }
    let (a_values, b_values) = (a.integers().unwrap_or_default(), b.integers().unwrap_or_default());
    let Some(f) = integer_function(operator) else { return Ok(None) };
    let values: Option<Vec<i64>> = a_values.iter().zip(b_values.iter()).map(|(&a, &b)| f(a, b)).collect();
    let values = values.ok_or_else(|| fault(format!("{operator} of integers overflows or divides by 0")))?;
    Ok(Some(Constant::of_integers(&a.dims, values)))
}

fn float_test(operator: &str) -> Option<fn(f32, f32) -> bool> {
    Some(match operator {
        "Equal" => |a, b| a == b,
        "Less" => |a, b| a < b,
        "LessOrEqual" => |a, b| a <= b,
        "Greater" => |a, b| a > b,
        "GreaterOrEqual" => |a, b| a >= b,
        _ => return None,
    })
}

fn float_function(operator: &str) -> Option<fn(f32, f32) -> f32> {
    Some(match operator {
        "Add" => |a, b| a + b,
        "Sub" => |a, b| a - b,
        "Mul" => |a, b| a * b,
        "Div" => |a, b| a / b,
        "Pow" => f32::powf,
        "Min" => f32::min,
        "Max" => f32::max,
        // The sign of the divisor, as in Python; ONNX has it for integers only without fmod.
        "Mod" => |a, b| a - b * (a / b).floor(),
        _ => return None,
    })
}

fn integer_function(operator: &str) -> Option<fn(i64, i64) -> Option<i64>> {
    Some(match operator {
        "Add" => i64::checked_add,
        "Sub" => i64::checked_sub,
        "Mul" => i64::checked_mul,
        "Div" => i64::checked_div,
        "Mod" => |a, b| a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
        "Pow" => |a, b| a.checked_pow(u32::try_from(b).ok()?),
        "Min" => |a, b| Some(a.min(b)),
        "Max" => |a, b| Some(a.max(b)),
        "Equal" => |a, b| Some((a == b).into()),
        "Less" => |a, b| Some((a < b).into()),
        "LessOrEqual" => |a, b| Some((a <= b).into()),
        "Greater" => |a, b| Some((a > b).into()),
        "GreaterOrEqual" => |a, b| Some((a >= b).into()),
        "And" => |a, b| Some((a != 0 && b != 0).into()),
        "Or" => |a, b| Some((a != 0 || b != 0).into()),
        "Xor" => |a, b| Some(((a != 0) != (b != 0)).into()),
        _ => return None,
    })
}

/// A function of one list of numbers; None: it is none of these.
pub(super) fn unary(operator: &str, x: &Constant) -> Option<Constant> {
    if let Some(values) = x.floats() {
        let f: fn(f32) -> f32 = match operator {
            "Neg" => |v| -v,
            "Abs" => f32::abs,
            "Sqrt" => f32::sqrt,
            "Exp" => f32::exp,
            "Log" => f32::ln,
            "Floor" => f32::floor,
            "Ceil" => f32::ceil,
            "Round" => f32::round_ties_even,
            "Reciprocal" => |v| 1.0 / v,
            "Sin" => f32::sin,
            "Cos" => f32::cos,
            "Tanh" => f32::tanh,
            "Relu" => |v| v.max(0.0),
            "Sigmoid" => |v| 1.0 / (1.0 + (-v).exp()),
            _ => return None,
        };
        return Some(Constant::of_floats(&x.dims, values.iter().map(|&v| f(v)).collect()));
    }
    let f: fn(i64) -> i64 = match operator {
        "Neg" => i64::wrapping_neg,
        "Abs" => i64::wrapping_abs,
        "Not" => |v| (v == 0).into(),
        "Relu" => |v| v.max(0),
        _ => return None,
    };
    Some(Constant::of_integers(&x.dims, x.integers()?.iter().map(|&v| f(v)).collect()))
}

/// Equal, Less and their kin, of known numbers alone.
pub(super) fn compare(call: &mut Call) -> Result<Value> {
    let (a, b) = (call.constant(0, "A")?, call.constant(1, "B")?);
    let result = binary(&call.node.operator, &a, &b)?;
    result.map(Value::Constant).ok_or_else(|| fault("these element types are not supported"))
}

/// Mod of known numbers.
pub(super) fn modulo(call: &mut Call) -> Result<Value> {
    if call.flag("fmod", false)? {
        return Err(call.refused("fmod", 1, "0"));
    }
    compare(call)
}

pub(super) fn shape(call: &mut Call) -> Result<Value> {
    let dims: Vec<i64> = call.input(0)?.dims().iter().map(|&d| d as i64).collect();
    let rank = dims.len() as i64;
    let bound = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
    let (start, end) = (bound(call.integer("start", 0)?), bound(call.integer("end", rank)?));
    let part = dims[start..end.max(start)].to_vec();
    Ok(Value::Constant(Constant::of_integers(&[part.len()], part)))
}

pub(super) fn size(call: &mut Call) -> Result<Value> {
    let count: usize = call.input(0)?.dims().iter().product();
    Ok(Value::Constant(Constant::of_integers(&[], vec![count as i64])))
}

pub(super) fn range(call: &mut Call) -> Result<Value> {
    let [start, limit, delta] = [call.constant(0, "start")?, call.constant(1, "limit")?, call.constant(2, "delta")?];
    let one = |c: &Constant| c.integers().filter(|v| v.len() == 1).map(|v| v[0]);
    let (count, value): (f64, Box<dyn Fn(usize) -> (i64, f32)>) = match (one(&start), one(&limit), one(&delta)) {
        (Some(start), Some(limit), Some(delta)) => {
            let count = ((limit as f64 - start as f64) / delta as f64).ceil();
            (count, Box::new(move |i| (start.saturating_add(delta.saturating_mul(i as i64)), 0.0)))
        }
        _ => {
            let scalar = |c: &Constant| c.scalar().ok_or_else(|| fault("start, limit and delta, expected three scalars"));
            let [start, limit, delta] = [scalar(&start)?, scalar(&limit)?, scalar(&delta)?];
            (((limit - start) / delta).ceil().into(), Box::new(move |i| (0, start + delta * i as f32)))
        }
    };
    if count.is_nan() || count > super::call::MAX_MADE as f64 {
        return Err(fault(format!("a range of {count} numbers, expected {} at most", super::call::MAX_MADE)));
    }
    let count = count.max(0.0) as usize;
    let values = (0..count).map(value);
    Ok(Value::Constant(match start.is_float() {
        true => Constant::of_floats(&[count], values.map(|v| v.1).collect()),
        false => Constant::of_integers(&[count], values.map(|v| v.0).collect()),
    }))
}

pub(super) fn constant_of_shape(call: &mut Call) -> Result<Value> {
    let dims = sizes(&call.integers_at(0, "shape")?.unwrap_or_default())?;
    let count = made_size(&dims)?;
    let value = match call.node.attributes.get("value") {
        None => Constant::of_floats(&[1], vec![0.0]),
        Some(crate::weights::OnnxAttribute::Tensor(tensor)) => Constant::stored("", &std::sync::Arc::new(tensor.clone())),
        Some(_) => return Err(call.refused("value", "no tensor", "one of one value")),
    };
    if value.numel() != 1 {
        return Err(call.refused("value", format!("of {} values", value.numel()), "one of one value"));
    }
    Ok(Value::Constant(value.picked(&dims, &vec![0; count])))
}

/// Sizes of a shape that are 0 or more.
pub(super) fn sizes(values: &[i64]) -> Result<Vec<usize>> {
    let sizes: Option<Vec<usize>> = values.iter().map(|&v| usize::try_from(v).ok()).collect();
    sizes.ok_or_else(|| fault(format!("a shape {}, expected sizes of 0 or more", super::call::list(values))))
}

/// The part of a matrix on and above (or below) a diagonal.
pub(super) fn trilu(call: &mut Call) -> Result<Value> {
    let x = call.constant(0, "input")?;
    let k = call.integers_at(1, "k")?.and_then(|v| v.first().copied()).unwrap_or(0);
    let upper = call.flag("upper", true)?;
    let &[.., rows, columns] = x.dims.as_slice() else {
        return Err(fault(format!("input is {:?}, expected two axes at least", x.dims)));
    };
    let kept = |at: usize| {
        let (row, column) = ((at / columns % rows.max(1)) as i64, (at % columns) as i64);
        if upper { column - row >= k } else { column - row <= k }
    };
    Ok(Value::Constant(match x.floats() {
        Some(v) => Constant::of_floats(&x.dims, v.iter().enumerate().map(|(i, &v)| if kept(i) { v } else { 0.0 }).collect()),
        None => Constant::of_integers(&x.dims, x.integers().unwrap_or_default().iter().enumerate().map(|(i, &v)| if kept(i) { v } else { 0 }).collect()),
    }))
}

/// Sum, product, maximum and minimum of integers along axes: what shapes are computed with.
pub(super) fn reduce(operator: &str, x: &Constant, axes: &[usize], keep: bool) -> Result<Constant> {
    let join: fn(i64, i64) -> Option<i64> = match operator {
        "ReduceSum" => i64::checked_add,
        "ReduceProd" => i64::checked_mul,
        "ReduceMax" => |a, b| Some(a.max(b)),
        "ReduceMin" => |a, b| Some(a.min(b)),
        _ => return Err(fault("integers, expected floats")),
    };
    let values = x.integers().unwrap_or_default();
    let mut kept = x.dims.clone();
    axes.iter().for_each(|&a| kept[a] = 1);
    let along = broadcast_strides(&kept, &x.dims);
    let mut result: Vec<Option<i64>> = vec![None; kept.iter().product()];
    for (value, at) in values.iter().zip(places(&x.dims, &along, 0)) {
        let joined = result[at].map_or(Some(*value), |so_far| join(so_far, *value));
        result[at] = Some(joined.ok_or_else(|| fault(format!("{operator} of integers overflows")))?);
    }
    let empty = i64::from(operator == "ReduceProd");
    let dims: Vec<usize> = if keep { kept } else { (0..x.dims.len()).filter(|a| !axes.contains(a)).map(|a| x.dims[a]).collect() };
    Ok(Constant::of_integers(&dims, result.into_iter().map(|v| v.unwrap_or(empty)).collect()))
}

/// Indices along an axis of `size`; negative ones count from the end.
pub(super) fn indices(values: &[i64], size: usize) -> Result<Vec<usize>> {
    values.iter().map(|&v| axis(v, size).map_err(|_| fault(format!("index {v}, expected one of {size} places")))).collect()
}

/// The numbers as floats, integers (cut towards zero) or bools.
pub(super) fn cast(x: &Constant, to_float: bool, to_bool: bool) -> Constant {
    let truth = |v: bool| i64::from(v);
    match (x.floats(), to_float) {
        (Some(values), true) => Constant::of_floats(&x.dims, values.to_vec()),
        (Some(values), false) => Constant::of_integers(&x.dims, values.iter().map(|&v| if to_bool { truth(v != 0.0) } else { v as i64 }).collect()),
        (None, true) => Constant::of_floats(&x.dims, x.as_floats().to_vec()),
        (None, false) => {
            let values = x.integers().unwrap_or_default();
            Constant::of_integers(&x.dims, values.iter().map(|&v| if to_bool { truth(v != 0) } else { v }).collect())
        }
    }
}

/// Where of known numbers.
pub(super) fn choose(mask: &Constant, a: &Constant, b: &Constant) -> Result<Constant> {
    let dims = broadcast(&mask.dims, &a.dims).and_then(|dims| broadcast(&dims, &b.dims));
    let Some(dims) = dims else {
        return Err(fault(format!("{:?}, {:?} and {:?} do not broadcast, expected equal sizes or 1", mask.dims, a.dims, b.dims)));
    };
    if a.is_float() != b.is_float() {
        return Err(fault("floats and integers, expected the same element type"));
    }
    let (mask, a, b) = (expanded(mask, &dims)?, expanded(a, &dims)?, expanded(b, &dims)?);
    let mask: Vec<bool> = mask.as_floats().iter().map(|&v| v != 0.0).collect();
    Ok(match (a.floats(), b.floats()) {
        (Some(a), Some(b)) => Constant::of_floats(&dims, mask.iter().zip(a.iter().zip(b.iter())).map(|(&m, (&a, &b))| if m { a } else { b }).collect()),
        _ => {
            let (a, b) = (a.integers().unwrap_or_default(), b.integers().unwrap_or_default());
            Constant::of_integers(&dims, mask.iter().zip(a.iter().zip(b.iter())).map(|(&m, (&a, &b))| if m { a } else { b }).collect())
        }
    })
}

/// Places along one axis, in the order of `indices`.
pub(super) fn picked_along(x: &Constant, axis: usize, indices: &[usize]) -> Result<Constant> {
    let mut dims = x.dims.clone();
    dims[axis] = indices.len();
    made_size(&dims)?;
    let (outer, inner): (usize, usize) = (x.dims[..axis].iter().product(), x.dims[axis + 1..].iter().product());
    let from = |o: usize| indices.iter().flat_map(move |&i| (o * x.dims[axis] + i) * inner..(o * x.dims[axis] + i + 1) * inner);
    Ok(x.picked(&dims, &(0..outer).flat_map(from).collect::<Vec<_>>()))
}

/// Known numbers one after the other along an axis.
pub(super) fn joined(parts: &[Constant], axis: usize) -> Result<Constant> {
    let Some(first) = parts.first() else { return Err(fault("nothing to join, expected one input at least")) };
    let mut dims = first.dims.clone();
    dims[axis] = 0;
    for part in parts {
        let fits = part.dims.len() == dims.len() && (0..dims.len()).all(|a| a == axis || part.dims[a] == dims[a]) && part.is_float() == first.is_float();
        if !fits {
            return Err(fault(format!("{:?} beside {:?} along axis {axis}, expected equal sizes elsewhere and one element type", part.dims, first.dims)));
        }
        dims[axis] = dims[axis].saturating_add(part.dims[axis]);
    }
    let outer = made_size(&dims[..axis])?;
    let inner: usize = dims[axis + 1..].iter().product();
    if first.is_float() {
        let values: Vec<_> = parts.iter().map(|part| (part.as_floats(), part.dims[axis] * inner)).collect();
        let data = (0..outer).flat_map(|o| values.iter().flat_map(move |(v, n)| v[o * n..(o + 1) * n].iter().copied())).collect();
        return Ok(Constant::of_floats(&dims, data));
    }
    let values: Vec<_> = parts.iter().map(|part| (part.integers().unwrap_or_default(), part.dims[axis] * inner)).collect();
    let data = (0..outer).flat_map(|o| values.iter().flat_map(move |(v, n)| v[o * n..(o + 1) * n].iter().copied())).collect();
    Ok(Constant::of_integers(&dims, data))
}

/// Known numbers with parts of them replaced, as assignments to slices are exported.
pub(super) fn scatter_nd(call: &mut Call) -> Result<Value> {
    let reduction = call.text("reduction", "none")?;
    if reduction != "none" {
        return Err(call.refused("reduction", reduction, "none"));
    }
    let [data, indices, updates] = [call.constant(0, "data")?, call.constant(1, "indices")?, call.constant(2, "updates")?];
    let wrong = || fault(format!("{:?} at {:?} of {:?}, expected updates of the shape that the indices leave", updates.dims, indices.dims, data.dims));
    let (Some(places), Some((&depth, outer))) = (indices.integers(), indices.dims.split_last()) else { return Err(wrong()) };
    let rest = data.dims.get(depth..).ok_or_else(wrong)?;
    let fits = updates.dims.iter().eq(outer.iter().chain(rest)) && updates.is_float() == data.is_float();
    if !fits {
        return Err(wrong());
    }
    let inner: usize = rest.iter().product();
    // Where each number of the result comes from: of the data, or behind it of the updates.
    let mut from: Vec<usize> = (0..made_size(&data.dims)?).collect();
    let own = strides(&data.dims);
    for (i, place) in (0..outer.iter().product::<usize>()).map(|i| (i, &places[i * depth..(i + 1) * depth])) {
        let mut at = 0;
        for (k, &index) in place.iter().enumerate() {
            at += axis(index, data.dims[k])? * own[k];
        }
        (0..inner).for_each(|j| from[at + j] = data.numel() + i * inner + j);
    }
    let (data, updates) = (data.reshaped(&[data.numel()]), updates.reshaped(&[updates.numel()]));
    let dims = call.input(0)?.dims().to_vec();
    Ok(Value::Constant(joined(&[data, updates], 0)?.picked(&dims, &from)))
}
