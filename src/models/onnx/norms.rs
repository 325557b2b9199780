//! Normalisations in evaluation.

use super::call::{Call, axis, made_size};
use super::value::{Value, fault};
use crate::base::Result;
use crate::ops::binary::Operator;
use crate::plan::Tensor;

/// Input `i`, a vector of `count` numbers, on the tape.
fn vector(call: &mut Call, i: usize, count: usize) -> Result<Tensor> {
    let dims = call.input(i)?.dims().to_vec();
    if dims != [count] {
        return Err(fault(format!("input {i} is {dims:?}, expected [{count}]")));
    }
    Ok(call.held(i)?.tensor)
}

/// A vector that the file has, as numbers.
fn numbers(call: &Call, i: usize, name: &str, count: usize) -> Result<Vec<f32>> {
    let constant = call.constant(i, name)?;
    if constant.dims != [count] || !constant.is_float() {
        return Err(fault(format!("{name} (input {i}) is {:?}, expected {count} floats", constant.dims)));
    }
    Ok(constant.as_floats().to_vec())
}

/// x scale / sqrt(var + eps) + (B - mean scale / sqrt(var + eps)) per channel, in f64 up to the two vectors.
pub(super) fn batch_norm(call: &mut Call) -> Result<Value> {
    if call.flag("training_mode", false)? {
        return Err(call.refused("training_mode", 1, "0"));
    }
    let x = call.held(0)?;
    if x.rank() < 2 {
        return Err(fault(format!("input is {:?}, expected [N, C, ...]", x.dims)));
    }
    let (channels, eps) = (x.dims[1], f64::from(call.float("epsilon", 1e-5)?));
    let [scale, bias] = [numbers(call, 1, "scale", channels)?, numbers(call, 2, "B", channels)?];
    let [mean, var] = [numbers(call, 3, "mean", channels)?, numbers(call, 4, "var", channels)?];
    let gain: Vec<f64> = scale.iter().zip(&var).map(|(&s, &v)| f64::from(s) / (f64::from(v) + eps).sqrt()).collect();
    let shift = bias.iter().zip(&mean).zip(&gain).map(|((&b, &m), g)| (f64::from(b) - f64::from(m) * g) as f32).collect();
    let x = x.channels_last(call.t)?;
    let scale = call.made(&[channels], gain.iter().map(|&g| g as f32).collect())?;
    let shift = call.made(&[channels], shift)?;
    let tensor = call.t.channel_affine(x.tensor, scale, shift, false)?;
    Ok(Value::Held(x.with(tensor)))
}

/// Mean and variance of each item's channel.
pub(super) fn instance_norm(call: &mut Call) -> Result<Value> {
    let x = call.held(0)?;
    if x.rank() < 3 {
        return Err(fault(format!("input is {:?}, expected [N, C, ...]", x.dims)));
    }
    let (channels, eps) = (x.dims[1], call.float("epsilon", 1e-5)?);
    let (scale, bias) = (vector(call, 1, channels)?, vector(call, 2, channels)?);
    let is_plain = x.order.is_sorted();
    if !is_plain {
        let x = x.channels_last(call.t)?;
        let tensor = call.t.group_norm(x.tensor, scale, bias, channels, eps, false)?;
        return Ok(Value::Held(x.with(tensor)));
    }
    // Channels first: each is a row.
    let length: usize = x.dims[2..].iter().product();
    let rows = call.t.reshape(x.tensor, &[x.dims[0] * channels, length])?;
    let y = row_norm(call, rows, length, eps)?;
    let y = call.t.reshape(y, &[x.dims[0], channels, length])?;
    let (scale, bias) = (call.t.reshape(scale, &[channels, 1])?, call.t.reshape(bias, &[channels, 1])?);
    let y = call.t.mul(y, scale)?;
    let y = call.t.add(y, bias)?;
    let tensor = call.t.reshape(y, &x.dims)?;
    Ok(Value::Held(x.with(tensor)))
}

/// Layer norm of rows with neither weight nor bias.
fn row_norm(call: &mut Call, rows: Tensor, length: usize, eps: f32) -> Result<Tensor> {
    made_size(&[length])?;
    let (ones, zeros) = (call.made(&[length], vec![1.0; length])?, call.made(&[length], vec![0.0; length])?);
    call.t.layer_norm(rows, ones, zeros, eps)
}

/// Scale and bias per group before opset 21, per channel since.
pub(super) fn group_norm(call: &mut Call) -> Result<Value> {
    let x = call.held(0)?;
    if x.rank() < 2 {
        return Err(fault(format!("input is {:?}, expected [N, C, ...]", x.dims)));
    }
    let (channels, groups, eps) = (x.dims[1], call.size("num_groups")?, call.float("epsilon", 1e-5)?);
    if !channels.is_multiple_of(groups) {
        return Err(call.refused("num_groups", groups, &format!("a divisor of {channels} channels")));
    }
    let spread = |values: Vec<f32>| values.into_iter().flat_map(|v| std::iter::repeat_n(v, channels / groups)).collect::<Vec<_>>();
    let (scale, bias) = if call.opset >= 21 {
        (vector(call, 1, channels)?, vector(call, 2, channels)?)
    } else {
        let (scale, bias) = (spread(numbers(call, 1, "scale", groups)?), spread(numbers(call, 2, "bias", groups)?));
        (call.made(&[channels], scale)?, call.made(&[channels], bias)?)
    };
    let x = x.channels_last(call.t)?;
    let tensor = call.t.group_norm(x.tensor, scale, bias, groups, eps, false)?;
    Ok(Value::Held(x.with(tensor)))
}

/// Over all axes from `axis` on.
pub(super) fn layer_norm(call: &mut Call) -> Result<Value> {
    if call.integer("stash_type", 1)? != 1 {
        return Err(call.refused("stash_type", call.integer("stash_type", 1)?, "1, floats of 32 bits"));
    }
    let x = call.held(0)?;
    let first = axis(call.integer("axis", -1)?, x.rank())?;
    let eps = call.float("epsilon", 1e-5)?;
    let normed = x.dims[first..].to_vec();
    let length = made_size(&normed)?;
    let x = if first + 1 == x.rank() { x.with_last(call.t, first)? } else { x.in_order(call.t)? };
    let flat = |call: &mut Call, i: usize| -> Result<Tensor> {
        let held = call.held(i)?;
        let size: usize = held.dims.iter().product();
        if size != length || !normed.ends_with(&held.dims[held.rank() - normed.len().min(held.rank())..]) {
            return Err(fault(format!("input {i} is {:?}, expected {normed:?}", held.dims)));
        }
        let held = held.in_order(call.t)?;
        call.t.reshape(held.tensor, &[length])
    };
    let scale = flat(call, 1)?;
    let bias = if call.optional(2).is_some() { flat(call, 2)? } else { call.made(&[length], vec![0.0; length])? };
    let shape = call.t.shape(x.tensor).dims().to_vec();
    let rows = if first + 1 == x.rank() { x.tensor } else { call.t.reshape(x.tensor, &[shape.iter().product::<usize>() / length.max(1), length])? };
    let y = call.t.layer_norm(rows, scale, bias, eps)?;
    let tensor = call.t.reshape(y, &shape)?;
    Ok(Value::Held(x.with(tensor)))
}

/// x / (bias + alpha / size sum of x^2 over `size` neighbouring channels)^beta; the sum is a product with a band of ones.
pub(super) fn local_response_norm(call: &mut Call) -> Result<Value> {
    let x = call.held(0)?;
    if x.rank() < 3 {
        return Err(fault(format!("input is {:?}, expected [N, C, ...]", x.dims)));
    }
    let (size, channels) = (call.size("size")?, x.dims[1]);
    let (alpha, beta, bias) = (call.float("alpha", 1e-4)?, call.float("beta", 0.75)?, call.float("bias", 1.0)?);
    let x = x.channels_last(call.t)?;
    let mut band = vec![0.0; made_size(&[channels, channels])?];
    let (before, behind) = ((size - 1) / 2, size / 2);
    for c in 0..channels {
        for from in c.saturating_sub(before)..=c.saturating_add(behind).min(channels - 1) {
            band[from * channels + c] = alpha / size as f32;
        }
    }
    let band = call.made(&[channels, channels], band)?;
    let square = call.t.mul(x.tensor, x.tensor)?;
    let sum = call.t.linear(square, band, None)?;
    let sum = call.t.affine(sum, 1.0, bias)?;
    let exponent = call.made(&[1], vec![beta])?;
    let power = call.t.binary(sum, exponent, Operator::Pow)?;
    let tensor = call.t.div(x.tensor, power)?;
    Ok(Value::Held(x.with(tensor)))
}

/// x / |x| of an axis: L1 or L2.
pub(super) fn lp_norm(call: &mut Call) -> Result<Value> {
    let x = call.held(0)?;
    let along = axis(call.integer("axis", -1)?, x.rank())?;
    let operator = match call.integer("p", 2)? {
        1 => "ReduceL1",
        2 => "ReduceL2",
        other => return Err(call.refused("p", other, "1 or 2")),
    };
    let norm = super::products::reduced(call, &x, &[along], true, operator)?;
    super::pointwise::two(call, "Div", Value::Held(x), Value::Held(norm))
}
