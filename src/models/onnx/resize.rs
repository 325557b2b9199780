//! Resize and Upsample: by the ops for whole factors and for PyTorch's bilinear, else by a matrix per axis.

use super::arrange::along;
use super::call::{Call, axis, made_size, short, tape_size};
use super::fold;
use super::value::{Held, Value, fault};
use crate::base::Result;

/// What the result's places are in the input.
struct Sampling {
    mode: String,
    places: String,
    nearest: String,
    /// Of the cubic's kernel.
    cubic: f64,
    /// The cubic's weights outside the image count as nothing, and the others for all.
    inside: bool,
}

pub(super) fn resize(call: &mut Call) -> Result<Value> {
    let x = call.held(0)?;
    let told = targets(call, &x)?;
    let sampling = sampling(call)?;
    tape_size(&told.iter().map(|t| t.1).collect::<Vec<_>>())?;
    let changed: Vec<usize> = (0..x.rank()).filter(|&a| told[a].1 != x.dims[a] || (told[a].0 - 1.0).abs() > 1e-6).collect();
    if changed.is_empty() {
        return Ok(Value::Held(x));
    }
    if x.rank() == 4
        && changed.iter().all(|&a| a >= 2)
        && let Some(y) = by_op(call, &x, &told, &sampling)?
    {
        return Ok(Value::Held(y));
    }
    let mut y = x;
    for axis in changed {
        let (scale, size) = told[axis];
        let rows = y.dims[axis];
        made_size(&[rows, size])?;
        let matrix = sampling.matrix(rows, size, scale)?;
        y = along(call, &y, axis, &[rows, size], matrix)?;
    }
    Ok(Value::Held(y))
}

/// Scale and size of each axis.
fn targets(call: &Call, x: &Held) -> Result<Vec<(f64, usize)>> {
    let rank = x.rank();
    let named = match call.integers("axes")? {
        Some(told) => told.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    let policy = call.text("keep_aspect_ratio_policy", "stretch")?;
    if policy != "stretch" {
        return Err(call.refused("keep_aspect_ratio_policy", short(&policy), "stretch"));
    }
    let (scales_at, sizes_at) = if call.node.operator == "Upsample" || call.opset < 11 { (1, 9) } else { (2, 3) };
    let mut result: Vec<(f64, usize)> = x.dims.iter().map(|&d| (1.0, d)).collect();
    let scales = match call.floats("scales")? {
        Some(scales) => scales,
        None if call.optional(scales_at).is_some() => call.constant(scales_at, "scales")?.as_floats().to_vec(),
        None => Vec::new(),
    };
    if scales.is_empty() {
        let sizes = fold::sizes(&call.integers_at(sizes_at, "sizes")?.ok_or_else(|| fault("neither scales nor sizes, expected one of them"))?)?;
        if sizes.len() != named.len() {
            return Err(fault(format!("{} sizes for {} axes, expected one each", sizes.len(), named.len())));
        }
        for (&axis, &size) in named.iter().zip(&sizes) {
            result[axis] = (size as f64 / x.dims[axis] as f64, size);
        }
    } else {
        if scales.len() != named.len() || scales.iter().any(|&s| !(s > 0.0 && s < 65_536.0)) {
            return Err(fault(format!("{} scales for {} axes, expected one each from 0 to 65536", scales.len(), named.len())));
        }
        for (&axis, &scale) in named.iter().zip(&scales) {
            result[axis] = (scale.into(), (x.dims[axis] as f64 * f64::from(scale)).floor() as usize);
        }
    }
    if result.iter().any(|target| target.1 == 0) || x.dims.contains(&0) {
        return Err(fault(format!("{:?} to sizes with a 0, expected 1 or more", x.dims)));
    }
    Ok(result)
}

fn sampling(call: &Call) -> Result<Sampling> {
    let old = call.node.operator == "Upsample" || call.opset < 11;
    let mode = call.text("mode", "nearest")?;
    if !["nearest", "linear", "bilinear", "cubic"].contains(&mode.as_str()) {
        return Err(call.refused("mode", short(&mode), "nearest, linear or cubic"));
    }
    // Before opset 11 places are those of the corners.
    let places = if old { "asymmetric".to_string() } else { call.text("coordinate_transformation_mode", "half_pixel")? };
    if !["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"].contains(&places.as_str()) {
        return Err(call.refused("coordinate_transformation_mode", short(&places), "half_pixel, pytorch_half_pixel, align_corners or asymmetric"));
    }
    let nearest = if old { "floor".to_string() } else { call.text("nearest_mode", "round_prefer_floor")? };
    if !["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"].contains(&nearest.as_str()) {
        return Err(call.refused("nearest_mode", short(&nearest), "round_prefer_floor, round_prefer_ceil, floor or ceil"));
    }
    if call.flag("antialias", false)? && mode != "nearest" {
        return Err(call.refused("antialias", 1, "0"));
    }
    let cubic = call.float("cubic_coeff_a", -0.75)?.into();
    Ok(Sampling { mode, places, nearest, cubic, inside: call.flag("exclude_outside", false)? })
}

/// Rows and columns by an op of its own; None: no op does what is asked.
fn by_op(call: &mut Call, x: &Held, told: &[(f64, usize)], sampling: &Sampling) -> Result<Option<Held>> {
    let [(_, h), (_, w)] = [told[2], told[3]];
    let exact = (2..4).all(|a| (told[a].0 - told[a].1 as f64 / x.dims[a] as f64).abs() < 1e-9);
    if !exact {
        return Ok(None);
    }
    if sampling.mode == "nearest" {
        let factor = h / x.dims[2];
        let whole = factor > 0 && h == factor * x.dims[2] && w == factor * x.dims[3];
        if !whole || !sampling.repeats(factor) {
            return Ok(None);
        }
        let image = x.channels_last(call.t)?;
        let y = call.t.upsample_nearest(image.tensor, factor)?;
        return Ok(Some(Held::image(call.t, y)));
    }
    let corners = match sampling.places.as_str() {
        "align_corners" => true,
        "half_pixel" | "half_pixel_symmetric" => false,
        "pytorch_half_pixel" if h > 1 && w > 1 => false,
        _ => return Ok(None),
    };
    if sampling.mode == "cubic" {
        return Ok(None);
    }
    let image = x.channels_last(call.t)?;
    let y = call.t.resize_bilinear(image.tensor, [h, w], corners)?;
    Ok(Some(Held::image(call.t, y)))
}

impl Sampling {
    /// Whether enlarging by a whole factor repeats each place so many times.
    fn repeats(&self, factor: usize) -> bool {
        (0..2 * factor).all(|i| self.nearest_place(self.place(i, 2, 2 * factor, factor as f64), 2) == i / factor)
    }

    /// The place of `i` of `to` among `from`.
    fn place(&self, i: usize, from: usize, to: usize, scale: f64) -> f64 {
        let at = i as f64;
        match self.places.as_str() {
            "asymmetric" => at / scale,
            "align_corners" => {
                if to == 1 {
                    0.0
                } else {
                    at * (from as f64 - 1.0) / (to as f64 - 1.0)
                }
            }
            "pytorch_half_pixel" if to == 1 => 0.0,
            "half_pixel_symmetric" => {
                let adjusted = to as f64 / (scale * from as f64);
                from as f64 / 2.0 * (1.0 - adjusted) + (at + 0.5) / scale - 0.5
            }
            _ => (at + 0.5) / scale - 0.5,
        }
    }

    fn nearest_place(&self, place: f64, from: usize) -> usize {
        let rounded = match self.nearest.as_str() {
            "floor" => place.floor(),
            "ceil" => place.ceil(),
            "round_prefer_ceil" => (place + 0.5).floor(),
            _ => (place - 0.5).ceil(),
        };
        rounded.clamp(0.0, from as f64 - 1.0) as usize
    }

    /// `[from, to]`: what each place of the result takes of the input's.
    fn matrix(&self, from: usize, to: usize, scale: f64) -> Result<Vec<f32>> {
        let mut matrix = vec![0.0f32; from * to];
        for i in 0..to {
            let place = self.place(i, from, to, scale);
            let mut take = |at: i64, weight: f64| matrix[at.clamp(0, from as i64 - 1) as usize * to + i] += weight as f32;
            let (low, part) = (place.floor() as i64, place - place.floor());
            match self.mode.as_str() {
                "nearest" => take(self.nearest_place(place, from) as i64, 1.0),
                "cubic" => {
                    let taps = (-1..=2).map(|k| (low + k, self.cubic_weight((part - k as f64).abs())));
                    let taps: Vec<_> = taps.filter(|(at, _)| !self.inside || (0..from as i64).contains(at)).collect();
                    let sum: f64 = if self.inside { taps.iter().map(|tap| tap.1).sum() } else { 1.0 };
                    taps.into_iter().for_each(|(at, weight)| take(at, weight / sum));
                }
                _ => {
                    take(low, 1.0 - part);
                    take(low + 1, part);
                }
            }
        }
        Ok(matrix)
    }

    /// Keys' cubic convolution kernel.
    fn cubic_weight(&self, d: f64) -> f64 {
        let a = self.cubic;
        match d {
            d if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
            d if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
            _ => 0.0,
        }
    }
}
