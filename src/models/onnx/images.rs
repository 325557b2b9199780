//! Convolutions and pooling.

use super::call::{Call, MAX_MADE, short, tape_size};
use super::products::reduced;
use super::value::{Constant, Held, Value, fault};
use crate::base::{Array, Result};
use crate::ops::conv2d::Conv2d;
use crate::ops::pool2d::{Pool2d, PoolMode};
use crate::plan::Tensor;

/// Windows over an image: kernel, strides, dilations and pads (top, bottom, left, right).
struct Windows {
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    pads: [usize; 4],
}

/// x `[N, C, H, W]` or `[N, C, L]` as `[N, H, W, C]` on the tape; a sequence has one row.
fn image(call: &mut Call, x: &Held) -> Result<Tensor> {
    let last = x.channels_last(call.t)?;
    match *call.t.shape(last.tensor).dims() {
        [_, _, _, _] => Ok(last.tensor),
        [n, l, c] => call.t.reshape(last.tensor, &[n, 1, l, c]),
        _ => Err(fault(format!("input is {:?}, expected [N, C, H, W] or [N, C, L]", x.dims))),
    }
}

/// The image as a value of as many axes as `rank`.
fn value(call: &mut Call, tensor: Tensor, rank: usize) -> Result<Value> {
    if rank == 4 {
        return Ok(Value::Held(Held::image(call.t, tensor)));
    }
    let [n, _, l, c] = call.t.nhwc(tensor)?;
    let tensor = call.t.reshape(tensor, &[n, l, c])?;
    Ok(Value::Held(Held::of(call.t, tensor, &[0, 2, 1])))
}

/// A list of one number (of a sequence's only axis) or two.
fn pair(call: &Call, name: &str, spatial: usize, default: usize) -> Result<[usize; 2]> {
    let sizes = call.sizes(name, spatial, default)?;
    Ok(if spatial == 2 { [sizes[0], sizes[1]] } else { [default.min(1), sizes[0]] })
}

impl Windows {
    /// Reads the attributes for an image of `size` rows and columns.
    fn read(call: &Call, kernel: [usize; 2], size: [usize; 2], spatial: usize) -> Result<Windows> {
        let (stride, dilation) = (pair(call, "strides", spatial, 1)?, pair(call, "dilations", spatial, 1)?);
        if kernel.contains(&0) || stride.contains(&0) || dilation.contains(&0) {
            return Err(fault(format!("kernel {kernel:?}, strides {stride:?} and dilations {dilation:?}, expected 1 or more each")));
        }
        let window = |axis: usize| (kernel[axis] - 1).saturating_mul(dilation[axis]).saturating_add(1);
        // SAME: as many pixels as strides fit into the image.
        let same = |axis: usize| {
            let covered = (size[axis].div_ceil(stride[axis]).max(1) - 1).saturating_mul(stride[axis]).saturating_add(window(axis));
            covered.saturating_sub(size[axis])
        };
        let [rows, columns] = [same(0), same(1)];
        let pads = match call.text("auto_pad", "NOTSET")?.as_str() {
            "NOTSET" | "" => pads(call, spatial)?,
            "VALID" => [0; 4],
            "SAME_UPPER" => [rows / 2, rows.div_ceil(2), columns / 2, columns.div_ceil(2)],
            "SAME_LOWER" => [rows.div_ceil(2), rows / 2, columns.div_ceil(2), columns / 2],
            other => return Err(call.refused("auto_pad", short(other), "NOTSET, VALID, SAME_UPPER or SAME_LOWER")),
        };
        if pads.iter().any(|&pad| pad > 1 << 17) || window(0).max(window(1)) > 1 << 17 {
            return Err(fault(format!("pads {pads:?} and windows of {} x {}, expected {} at most", window(0), window(1), 1 << 17)));
        }
        Ok(Windows { kernel, stride, dilation, pads })
    }
}

/// ONNX has the pads of all axes before, then of all behind.
fn pads(call: &Call, spatial: usize) -> Result<[usize; 4]> {
    let told = call.sizes("pads", 2 * spatial, 0)?;
    Ok(if spatial == 2 { [told[0], told[2], told[1], told[3]] } else { [0, 0, told[0], told[1]] })
}

/// The input of a window operator: as an image, its sizes, and how many of its axes are spatial.
fn windowed(call: &mut Call) -> Result<(Held, Tensor, [usize; 4], usize)> {
    let x = call.held(0)?;
    let tensor = image(call, &x)?;
    let dims = call.t.nhwc(tensor)?;
    if dims.contains(&0) {
        return Err(fault(format!("input is {:?}, expected sizes of 1 or more", x.dims)));
    }
    let spatial = x.rank() - 2;
    Ok((x, tensor, dims, spatial))
}

/// A convolution's weight `[O, I, KH, KW]` as a constant of four axes.
fn kernel(call: &Call, rank: usize) -> Result<(Constant, [usize; 4])> {
    let weight = call.constant(1, "W")?;
    if !weight.is_float() {
        return Err(fault("W (input 1) are integers, expected floats"));
    }
    match weight.dims[..] {
        [o, i, kh, kw] if rank == 4 => Ok((weight, [o, i, kh, kw])),
        [o, i, k] if rank == 3 => Ok((weight, [o, i, 1, k])),
        _ => Err(fault(format!("W (input 1) is {:?}, expected {rank} axes", weight.dims))),
    }
}

fn bias(call: &mut Call, outputs: usize) -> Result<Option<Tensor>> {
    let Some(value) = call.optional(2) else { return Ok(None) };
    if value.dims() != [outputs] {
        return Err(fault(format!("B (input 2) is {:?}, expected [{outputs}]", value.dims())));
    }
    Ok(Some(call.held(2)?.tensor))
}

/// The kernel's size must be the weight's where it is told.
fn kernel_told(call: &Call, spatial: usize, kernel: [usize; 2]) -> Result<()> {
    if call.has("kernel_shape") && pair(call, "kernel_shape", spatial, 1)? != kernel {
        return Err(call.refused("kernel_shape", format!("{:?}", call.integers("kernel_shape")?.unwrap_or_default()), &format!("{kernel:?} as W has")));
    }
    Ok(())
}

pub(super) fn conv(call: &mut Call) -> Result<Value> {
    let (x, tensor, [_, h, w, _], spatial) = windowed(call)?;
    let (weight, [o, i, kh, kw]) = kernel(call, x.rank())?;
    kernel_told(call, spatial, [kh, kw])?;
    let windows = Windows::read(call, [kh, kw], [h, w], spatial)?;
    let groups = call.groups()?;
    let bias = bias(call, o)?;
    let weight = call.weight(&weight, "convolution", |array| Ok(Array::new(&[o, i, kh, kw], array.data)?.permute(&[2, 3, 1, 0])))?;
    let Windows { stride, dilation, pads: padding, .. } = windows;
    let y = call.t.conv2d(tensor, weight, bias, &Conv2d { stride, padding, dilation, groups })?;
    value(call, y, x.rank())
}

/// What one axis of a transposed convolution is as a convolution and a shuffle: see [`conv_transpose`].
struct Across {
    /// Taps per phase.
    taps: usize,
    /// Zeros behind the input.
    behind: usize,
    /// Pixels of the shuffled result that are cut off at the front, and those that are kept.
    front: usize,
    kept: usize,
}

/// The transposed convolution with stride s writes u = s q + a (phase a < s) from y[u] = sum over taps m of x[q - m] w[a + s m]:
/// a convolution of ceil(K / s) taps whose channels hold the phases, and a shuffle of the phases into pixels.
pub(super) fn conv_transpose(call: &mut Call) -> Result<Value> {
    let (x, tensor, [n, h, w, c], spatial) = windowed(call)?;
    let (weight, [i, per_group, kh, kw]) = kernel(call, x.rank())?;
    kernel_told(call, spatial, [kh, kw])?;
    let windows = Windows::read(call, [kh, kw], [h, w], spatial)?;
    let groups = call.groups()?;
    if i != c || !c.is_multiple_of(groups) {
        return Err(fault(format!("W (input 1) is {:?}, expected {c} channels first that {groups} groups divide", weight.dims)));
    }
    let outputs = per_group * groups;
    let across = across(call, &windows, [h, w], spatial)?;
    let [rows, columns] = &across;
    let [sh, sw] = windows.stride;
    tape_size(&[n, h + rows.behind, w + columns.behind, sh, sw, outputs])?;
    let bias = match bias(call, outputs)? {
        None => None,
        Some(bias) => Some((bias, call.made(&[outputs], vec![1.0; outputs])?)),
    };
    let form = format!("transposed convolution {:?} by {:?} in {groups}", windows.stride, windows.dilation);
    let taps = [rows.taps, columns.taps];
    let phases = call.weight(&weight, &form, |array| phases(&array.data, [c, per_group, kh, kw], &windows, taps, groups))?;
    let padding = [rows.taps - 1, rows.behind, columns.taps - 1, columns.behind];
    let y = call.t.conv2d(tensor, phases, None, &Conv2d { stride: [1, 1], padding, dilation: [1, 1], groups })?;
    let [_, qh, qw, _] = call.t.nhwc(y)?;
    // [N, Q, R, G, a, b, O/G] to [N, Q, a, R, b, G, O/G].
    let y = call.t.reshape(y, &[n, qh, qw, groups, sh, sw, per_group])?;
    let y = call.t.permute(y, &[0, 1, 4, 2, 5, 3, 6])?;
    let y = call.t.reshape(y, &[n, qh * sh, qw * sw, outputs])?;
    let y = call.t.slice(y, 1, rows.front, rows.kept)?;
    let y = call.t.slice(y, 2, columns.front, columns.kept)?;
    let y = match bias {
        Some((bias, ones)) => call.t.channel_affine(y, ones, bias, false)?,
        None => y,
    };
    value(call, y, x.rank())
}

fn across(call: &Call, windows: &Windows, size: [usize; 2], spatial: usize) -> Result<[Across; 2]> {
    let extra = pair(call, "output_padding", spatial, 0)?;
    let told = match call.integers("output_shape")? {
        Some(_) => Some(pair(call, "output_shape", spatial, 1)?),
        None => None,
    };
    let auto = call.text("auto_pad", "NOTSET")?;
    let one = |axis: usize| {
        let stride = windows.stride[axis];
        let window = (windows.kernel[axis] - 1) * windows.dilation[axis] + 1;
        let whole = (size[axis] - 1) * stride + window + extra[axis];
        let [mut front, mut end] = [windows.pads[2 * axis], windows.pads[2 * axis + 1]];
        // An output's size that is told, or SAME's, says the pads.
        let wanted = told.map(|told| told[axis]).or(auto.starts_with("SAME").then_some(size[axis] * stride));
        if let Some(wanted) = wanted {
            let total = whole.saturating_sub(wanted);
            front = if auto == "SAME_UPPER" { total / 2 } else { total.div_ceil(2) };
            end = total - front;
        }
        let kept = whole.checked_sub(front + end).filter(|&kept| kept > 0);
        let kept = kept.ok_or_else(|| fault(format!("pads {front} and {end} of {whole} pixels, expected some that remain")))?;
        let taps = window.div_ceil(stride);
        let behind = (front + kept).div_ceil(stride).saturating_sub(size[axis]);
        Ok(Across { taps, behind, front, kept })
    };
    Ok([one(0)?, one(1)?])
}

/// The weight `[I, O/G, KH, KW]` as `[TH, TW, I/G, G SH SW O/G]`; taps that the kernel does not have are zeros.
fn phases(weight: &[f32], [c, per_group, kh, kw]: [usize; 4], windows: &Windows, [th, tw]: [usize; 2], groups: usize) -> Result<Array> {
    let [sh, sw] = windows.stride;
    let [dh, dw] = windows.dilation;
    let inputs = c / groups;
    let columns = groups * sh * sw * per_group;
    let most = MAX_MADE.max(weight.len().saturating_mul(4));
    if [th, tw, inputs, columns].iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_none_or(|n| n > most) {
        return Err(fault(format!("strides {:?} of a kernel of {kh} x {kw}, expected strides that are not much larger than the kernel", windows.stride)));
    }
    let mut data = vec![0.0; th * tw * inputs * columns];
    for (at, &v) in weight.iter().enumerate() {
        let (x, y) = (at % kw * dw, at / kw % kh * dh);
        let (o, i) = (at / (kw * kh) % per_group, at / (kw * kh * per_group));
        // Correlation runs the taps backwards.
        let (tap_y, tap_x) = (th - 1 - y / sh, tw - 1 - x / sw);
        let column = ((i / inputs * sh + y % sh) * sw + x % sw) * per_group + o;
        data[((tap_y * tw + tap_x) * inputs + i % inputs) * columns + column] = v;
    }
    Array::new(&[th, tw, inputs, columns], data)
}

pub(super) fn pool(call: &mut Call) -> Result<Value> {
    let (x, tensor, [_, h, w, _], spatial) = windowed(call)?;
    if !call.has("kernel_shape") {
        return Err(fault("attribute kernel_shape is left out, expected one"));
    }
    let kernel = pair(call, "kernel_shape", spatial, 1)?;
    let windows = Windows::read(call, kernel, [h, w], spatial)?;
    if windows.dilation != [1, 1] {
        return Err(call.refused("dilations", format!("{:?}", windows.dilation), "1 each"));
    }
    if call.integer("storage_order", 0)? != 0 {
        return Err(call.refused("storage_order", call.integer("storage_order", 0)?, "0"));
    }
    let is_max = call.node.operator == "MaxPool";
    let count_padding = !is_max && call.flag("count_include_pad", false)?;
    let mut padding = windows.pads;
    if call.flag("ceil_mode", false)? && covered(&mut padding, &windows, [h, w]) && count_padding {
        return Err(call.refused("ceil_mode", 1, "0 where the last window passes the border and pads count"));
    }
    let mode = if is_max { PoolMode::Max } else { PoolMode::Average };
    let y = call.t.pool2d(tensor, &Pool2d { mode, kernel, stride: windows.stride, padding, count_padding })?;
    value(call, y, x.rank())
}

/// Pads the end so that a last window that passes the border counts; whether there is one. It must begin inside.
fn covered(padding: &mut [usize; 4], windows: &Windows, size: [usize; 2]) -> bool {
    let mut grew = false;
    for axis in 0..2 {
        let (stride, [front, end]) = (windows.stride[axis], [padding[2 * axis], padding[2 * axis + 1]]);
        let Some(room) = (size[axis] + front + end).checked_sub(windows.kernel[axis]) else { continue };
        let mut count = room.div_ceil(stride) + 1;
        if (count - 1) * stride >= size[axis] + front {
            count -= 1;
        }
        let wanted = (count - 1) * stride + windows.kernel[axis];
        let more = wanted.saturating_sub(size[axis] + front + end);
        padding[2 * axis + 1] += more;
        grew |= more > 0;
    }
    grew
}

/// The mean or the maximum over everything but items and channels.
pub(super) fn global_pool(call: &mut Call) -> Result<Value> {
    let x = call.held(0)?;
    if x.rank() < 3 {
        return Err(fault(format!("input is {:?}, expected [N, C, ...]", x.dims)));
    }
    let operator = if call.node.operator == "GlobalMaxPool" { "ReduceMax" } else { "ReduceMean" };
    reduced(call, &x, &(2..x.rank()).collect::<Vec<_>>(), true, operator).map(Value::Held)
}
