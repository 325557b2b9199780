//! Functions of one value, of two with broadcasting, of a value and a mask.

use super::call::{Call, short};
use super::fold;
use super::value::{Constant, Held, Value, fault, raised};
use crate::base::Result;
use crate::ops::activation::Function;
use crate::ops::axes::broadcast;
use crate::ops::binary::Operator;

/// Beyond every difference of two normal numbers' reciprocal: x STEEP is past 1 wherever x is above 0.
const STEEP: f32 = 3.0e38;

/// A function of one value: known numbers stay known where they can.
pub(super) fn unary(call: &mut Call) -> Result<Value> {
    let functions = functions(call)?;
    let operator = call.node.operator.as_str();
    if let Value::Constant(x) = call.input(0)?
        && let Some(folded) = fold::unary(operator, x)
    {
        return Ok(Value::Constant(folded));
    }
    let x = call.held(0)?;
    chained(call, &x, &functions).map(Value::Held)
}

/// What the operator is in our functions, applied one after the other.
fn functions(call: &Call) -> Result<Vec<Function>> {
    let affine = |scale, shift| Function::Affine { scale, shift };
    let one = match call.node.operator.as_str() {
        "Relu" => Function::Relu,
        "Sigmoid" => Function::Sigmoid,
        "Tanh" => Function::Tanh,
        "Exp" => Function::Exp,
        "Log" => Function::Log,
        "Sqrt" => Function::Sqrt,
        "Erf" => Function::Erf,
        "Abs" => Function::Abs,
        "Reciprocal" => Function::Reciprocal,
        "Sin" => Function::Sin,
        "Cos" => Function::Cos,
        "Floor" => Function::Floor,
        "Softplus" => Function::Softplus,
        "Softsign" => Function::Softsign,
        "Mish" => Function::Mish,
        "HardSwish" => Function::HardSwish,
        "Neg" => affine(-1.0, 0.0),
        "LeakyRelu" => Function::LeakyRelu { slope: call.float("alpha", 0.01)? },
        "Elu" => Function::Elu { alpha: call.float("alpha", 1.0)? },
        "Gelu" => match call.text("approximate", "none")?.as_str() {
            "none" => Function::Gelu,
            "tanh" => Function::GeluTanh,
            other => return Err(call.refused("approximate", short(other), "none or tanh")),
        },
        "HardSigmoid" => return hard_sigmoid(call),
        "Ceil" => return Ok(vec![affine(-1.0, 0.0), Function::Floor, affine(-1.0, 0.0)]),
        "Not" => affine(-1.0, 1.0),
        "Celu" => {
            let alpha = call.float("alpha", 1.0)?;
            return Ok(vec![affine(1.0 / alpha, 0.0), Function::Elu { alpha: 1.0 }, affine(alpha, 0.0)]);
        }
        "Selu" => {
            let (alpha, gamma) = (call.float("alpha", 1.673_263_2)?, call.float("gamma", 1.050_701)?);
            return Ok(vec![Function::Elu { alpha }, affine(gamma, 0.0)]);
        }
        other => return Err(fault(format!("{other} of values that are computed from the input's, expected known numbers"))),
    };
    Ok(vec![one])
}

/// max(0, min(1, alpha x + beta)).
fn hard_sigmoid(call: &Call) -> Result<Vec<Function>> {
    let (alpha, beta) = (call.float("alpha", 0.2)?, call.float("beta", 0.5)?);
    if (alpha * 6.0 - 1.0).abs() < 1e-6 && beta == 0.5 {
        return Ok(vec![Function::HardSigmoid]);
    }
    Ok(vec![Function::Affine { scale: alpha, shift: beta }, Function::Clamp { low: 0.0, high: 1.0 }])
}

fn chained(call: &mut Call, x: &Held, functions: &[Function]) -> Result<Held> {
    let mut tensor = x.tensor;
    for &function in functions {
        tensor = call.t.activation(tensor, function)?;
    }
    Ok(x.with(tensor))
}

fn operator(name: &str) -> Option<Operator> {
    Some(match name {
        "Add" | "Sum" => Operator::Add,
        "Sub" => Operator::Sub,
        "Mul" | "And" => Operator::Mul,
        "Div" => Operator::Div,
        "Min" => Operator::Min,
        "Max" | "Or" => Operator::Max,
        "Pow" => Operator::Pow,
        _ => return None,
    })
}

/// A function of two values, or of any number of them one after the other.
pub(super) fn binary(call: &mut Call) -> Result<Value> {
    let name = call.node.operator.clone();
    let mut result = call.input(0)?.clone();
    for i in 1..call.inputs.len() {
        let next = call.input(i)?.clone();
        result = two(call, &name, result, next)?;
    }
    Ok(result)
}

/// The mean of any number of values.
pub(super) fn mean(call: &mut Call) -> Result<Value> {
    let (mut sum, count) = (call.input(0)?.clone(), call.inputs.len());
    for i in 1..count {
        let next = call.input(i)?.clone();
        sum = two(call, "Add", sum, next)?;
    }
    let one = Constant::of_floats(&[], vec![1.0 / count as f32]);
    two(call, "Mul", sum, Value::Constant(one))
}

/// Equal, Less and their kin: of known numbers a list of bools, else zeros and ones on the tape.
pub(super) fn compare(call: &mut Call) -> Result<Value> {
    let (a, b) = (call.input(0)?.clone(), call.input(1)?.clone());
    if let (Value::Constant(_), Value::Constant(_)) = (&a, &b) {
        return fold::compare(call);
    }
    let name = call.node.operator.clone();
    let above = |call: &mut Call, a: &Value, b: &Value| -> Result<Held> {
        let Value::Held(difference) = two(call, "Sub", a.clone(), b.clone())? else {
            return Err(fault("known numbers, expected a tensor"));
        };
        let steps = [Function::Affine { scale: STEEP, shift: 0.0 }, Function::Clamp { low: 0.0, high: 1.0 }];
        chained(call, &difference, &steps)
    };
    let not = [Function::Affine { scale: -1.0, shift: 1.0 }];
    Ok(Value::Held(match name.as_str() {
        "Greater" => above(call, &a, &b)?,
        "Less" => above(call, &b, &a)?,
        "GreaterOrEqual" => {
            let less = above(call, &b, &a)?;
            chained(call, &less, &not)?
        }
        "LessOrEqual" => {
            let more = above(call, &a, &b)?;
            chained(call, &more, &not)?
        }
        _ => return Err(fault(format!("{name} of values that are computed from the input's, expected known numbers"))),
    }))
}

/// `name` of two values: known numbers stay known, a single number becomes a constant of the step.
pub(super) fn two(call: &mut Call, name: &str, a: Value, b: Value) -> Result<Value> {
    if let (Value::Constant(a), Value::Constant(b)) = (&a, &b)
        && let Some(folded) = fold::binary(name, a, b)?
    {
        return Ok(Value::Constant(folded));
    }
    let Some(operator) = operator(name) else {
        return Err(fault(format!("{name} of values that are computed from the input's, expected known numbers")));
    };
    let single = |value: &Value, other: &Value| match (value, other) {
        (Value::Constant(c), Value::Held(held)) if c.dims.len() <= held.rank() && c.is_float() => c.scalar().map(|v| (v, held.clone())),
        _ => None,
    };
    let affine = |scale, shift| Function::Affine { scale, shift };
    let step = match (single(&b, &a), single(&a, &b)) {
        (Some((v, x)), _) if name == "Add" => Some((x, affine(1.0, v))),
        (Some((v, x)), _) if name == "Sub" => Some((x, affine(1.0, -v))),
        (Some((v, x)), _) if name == "Mul" => Some((x, affine(v, 0.0))),
        (Some((0.5, x)), _) if name == "Pow" => Some((x, Function::Sqrt)),
        (_, Some((v, x))) if name == "Add" => Some((x, affine(1.0, v))),
        (_, Some((v, x))) if name == "Sub" => Some((x, affine(-1.0, v))),
        (_, Some((v, x))) if name == "Mul" => Some((x, affine(v, 0.0))),
        _ => None,
    };
    if let Some((x, function)) = step {
        return chained(call, &x, &[function]).map(Value::Held);
    }
    let (a, b) = side_by_side(call, &a, &b)?;
    let tensor = call.t.binary(a.tensor, b.tensor, operator)?;
    Ok(Value::Held(Held::of(call.t, tensor, &a.order)))
}

/// Two values with one number and one order of axes.
fn side_by_side(call: &mut Call, a: &Value, b: &Value) -> Result<(Held, Held)> {
    let rank = a.dims().len().max(b.dims().len());
    let size = |dims: &[usize]| dims.iter().fold(1usize, |n, &d| n.saturating_mul(d));
    if broadcast(a.dims(), b.dims()).is_none_or(|dims| size(&dims) > super::call::MAX_VALUES) {
        return Err(fault(format!("{:?} and {:?} do not broadcast, expected equal sizes or 1", a.dims(), b.dims())));
    }
    // The larger tensor stays where it is.
    let order = match (a, b) {
        (Value::Held(a), Value::Held(b)) => if size(&a.dims) >= size(&b.dims) { a } else { b }.order.clone(),
        (Value::Held(held), _) | (_, Value::Held(held)) => held.order.clone(),
        _ => (0..rank).collect(),
    };
    let order = raised(&order, rank - order.len());
    Ok((in_order(call, a, &order)?, in_order(call, b, &order)?))
}

/// A value with as many axes as `order`, held in it.
fn in_order(call: &mut Call, value: &Value, order: &[usize]) -> Result<Held> {
    match value {
        Value::Held(held) => {
            let held = held.of_rank(call.t, order.len())?;
            held.ordered(call.t, order)
        }
        Value::Constant(constant) => call.promoted_in(constant, order),
    }
}

/// x for x >= 0, slope x below: max(x, 0) - slope max(-x, 0).
pub(super) fn prelu(call: &mut Call) -> Result<Value> {
    let x = call.held(0)?;
    let slope = call.input(1)?.clone();
    if let Value::Constant(constant) = &slope
        && let Some(slope) = constant.scalar()
    {
        return chained(call, &x, &[Function::LeakyRelu { slope }]).map(Value::Held);
    }
    let above = chained(call, &x, &[Function::Relu])?;
    let below = chained(call, &x, &[Function::Affine { scale: -1.0, shift: 0.0 }, Function::Relu])?;
    let below = two(call, "Mul", Value::Held(below), slope)?;
    two(call, "Sub", Value::Held(above), below)
}

/// x between two numbers: attributes before opset 11, inputs since.
pub(super) fn clip(call: &mut Call) -> Result<Value> {
    let bound = |i: usize, name: &str| -> Result<Option<f32>> {
        if call.has(name) {
            return call.float(name, 0.0).map(Some);
        }
        match call.optional(i) {
            None => Ok(None),
            Some(_) => call.constant(i, name)?.scalar().map(Some).ok_or_else(|| fault(format!("{name} (input {i}) is no single number, expected one"))),
        }
    };
    let (low, high) = (bound(1, "min")?, bound(2, "max")?);
    if let Value::Constant(x) = call.input(0)?
        && let Some(values) = x.integers()
    {
        let (low, high) = (low.map_or(i64::MIN, |v| v as i64), high.map_or(i64::MAX, |v| v as i64));
        return Ok(Value::Constant(Constant::of_integers(&x.dims.clone(), values.iter().map(|&v| v.max(low).min(high)).collect())));
    }
    let x = call.held(0)?;
    let function = match (low, high) {
        (Some(0.0), None) => Function::Relu,
        _ => Function::Clamp { low: low.unwrap_or(f32::MIN), high: high.unwrap_or(f32::MAX) },
    };
    chained(call, &x, &[function]).map(Value::Held)
}

/// Another element type. All floats are f32 here; tensors of the tape stay floats.
pub(super) fn cast(call: &mut Call) -> Result<Value> {
    let to = call.integer("to", 0)?;
    let is_float = matches!(to, 1 | 10 | 11 | 16);
    let is_integer = matches!(to, 2..=7 | 9 | 12 | 13);
    if !is_float && !is_integer {
        return Err(call.refused("to", to, "a float, an integer or bool (1 to 7, 9 to 13, 16)"));
    }
    match call.input(0)? {
        Value::Held(held) if is_float => Ok(Value::Held(held.clone())),
        Value::Held(_) => Err(call.refused("to", to, "a float (1, 10, 11, 16) for values that are computed from the input's")),
        Value::Constant(x) => Ok(Value::Constant(fold::cast(x, is_float, to == 9))),
    }
}

/// The first value where the condition holds, else the second.
pub(super) fn choose(call: &mut Call) -> Result<Value> {
    let (condition, a, b) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let Value::Constant(mask) = &condition else {
        let (a, b) = (Value::Held(call.held(1)?), Value::Held(call.held(2)?));
        let Value::Held(held) = &condition else { return Err(fault("no condition")) };
        let other = chained(call, held, &[Function::Affine { scale: -1.0, shift: 1.0 }])?;
        let (a, b) = (two(call, "Mul", a, condition)?, two(call, "Mul", b, Value::Held(other))?);
        return two(call, "Add", a, b);
    };
    if let (Value::Constant(a), Value::Constant(b)) = (&a, &b) {
        return fold::choose(mask, a, b).map(Value::Constant);
    }
    // A known side enters as numbers that are 0 where the other one is taken: it may hold infinities.
    let first = masked(call, mask, &a, true)?;
    let second = masked(call, mask, &b, false)?;
    two(call, "Add", first, second)
}

/// The value where the mask is `kept`, 0 elsewhere.
fn masked(call: &mut Call, mask: &Constant, value: &Value, kept: bool) -> Result<Value> {
    let zero = Constant::of_floats(&[], vec![0.0]);
    match value {
        Value::Constant(value) => {
            let (a, b) = if kept { (value, &zero) } else { (&zero, value) };
            fold::choose(mask, a, b).map(Value::Constant)
        }
        Value::Held(_) => {
            let one = Constant::of_floats(&[], vec![1.0]);
            let (a, b) = if kept { (&one, &zero) } else { (&zero, &one) };
            let factor = fold::choose(mask, a, b)?;
            two(call, "Mul", value.clone(), Value::Constant(factor))
        }
    }
}

/// The first input, unchanged. Dropout does nothing here.
pub(super) fn identity(call: &mut Call) -> Result<Value> {
    if call.node.operator == "Dropout" && call.optional(2).is_some() && call.constant(2, "training_mode")?.scalar() != Some(0.0) {
        return Err(fault("training_mode (input 2) is on, expected a graph for evaluation"));
    }
    call.input(0).cloned()
}
