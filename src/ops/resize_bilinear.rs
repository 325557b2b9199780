//! An image at any size, each pixel the mean of the four nearest weighed by distance: torch.nn.functional.interpolate with
//! mode "bilinear" and no antialiasing.
//!
//! y[n, h, w, c] = (1 - a) ((1 - b) x[i, j] + b x[i, j + 1]) + a ((1 - b) x[i + 1, j] + b x[i + 1, j + 1]), where i + a is the
//! place of h in x's rows and j + b that of w in its columns; beyond the border the last pixel repeats.
//! Corners aligned: place = h (H - 1) / (OH - 1). Else the pixels' areas are: place = max((h + 1/2) H / OH - 1/2, 0).
//! Places are computed in whole numbers, so that every device finds the same pixels.   x: `[N, H, W, C]`; y: `[N, OH, OW, C]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Shape, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub in_h: u32,
        pub in_w: u32,
        pub out_h: u32,
        pub out_w: u32,
        pub channels: u32,
        /// The place of row h: (max(h step + add, sub) - sub) / div.
        pub step_h: u32,
        pub add_h: u32,
        pub sub_h: u32,
        pub div_h: u32,
        /// The same along the columns.
        pub step_w: u32,
        pub add_w: u32,
        pub sub_w: u32,
        pub div_w: u32,
    }
}

pub static OP: Op = Op {
    name: "resize_bilinear",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 2e-6, reason: "weights are quotients of whole numbers, which WGSL may round by 2.5 ulp; four products are added" },
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/resize_bilinear.wgsl")])],
};

/// Places along an axis of `from` pixels that becomes one of `to`: step, add, sub and div of [`Params`]. None: a product is
/// beyond 32 bits.
fn places(from: usize, to: usize, align_corners: bool) -> Option<[u32; 4]> {
    let [step, add, sub, div] = match align_corners {
        true => [from - 1, 0, 0, (to - 1).max(1)],
        false => [from.checked_mul(2)?, from, to, to.checked_mul(2)?],
    };
    let largest = step.checked_mul(to)?.checked_add(add)?;
    let words = [step, add, sub, div].map(u32::try_from);
    match words {
        [Ok(step), Ok(add), Ok(sub), Ok(div)] if u32::try_from(largest).is_ok() => Some([step, add, sub, div]),
        _ => None,
    }
}

/// The lower pixel of `i`'s place and the weight of the one after it.
fn place(i: usize, from: usize, [step, add, sub, div]: [u32; 4]) -> (usize, f32) {
    let at = (i as u32 * step + add).max(sub) - sub;
    ((at / div).min(from as u32 - 1) as usize, (at % div) as f32 / div as f32)
}

impl Tape {
    /// `x` `[N, H, W, C]` at `size` rows and columns, which may be more or fewer than it has.
    pub fn resize_bilinear(&mut self, x: Tensor, size: [usize; 2], align_corners: bool) -> Result<Tensor> {
        let [n, h, w, c] = self.nhwc(x)?;
        let [out_h, out_w] = size;
        if [h, w, out_h, out_w].contains(&0) {
            return Err(self.mismatch(format!("resize_bilinear of [{n}, {c}, {h}, {w}] to {out_h} x {out_w}, expected one pixel at least")));
        }
        let (Some(rows), Some(columns)) = (places(h, out_h, align_corners), places(w, out_w, align_corners)) else {
            return Err(self.mismatch(format!("resize_bilinear of [{n}, {c}, {h}, {w}] to {out_h} x {out_w}: too large")));
        };
        let shape = [n, out_h, out_w, c];
        let [[step_h, add_h, sub_h, div_h], [step_w, add_w, sub_w, div_w]] = [rows, columns];
        let [len, in_h, in_w, out_h, out_w, channels] = [Shape::new(&shape).numel(), h, w, out_h, out_w, c].map(|v| v as u32);
        let params = Params { len, in_h, in_w, out_h, out_w, channels, step_h, add_h, sub_h, div_h, step_w, add_w, sub_w, div_w };
        Ok(self.push(&OP, &params, &[x], &shape, DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let [in_h, in_w, out_h, out_w, channels] = [p.in_h, p.in_w, p.out_h, p.out_w, p.channels].map(|v| v as usize);
    let x = call.inputs[0];
    let columns: Vec<(usize, f32)> = (0..out_w).map(|w| place(w, in_w, [p.step_w, p.add_w, p.sub_w, p.div_w])).collect();
    call.output.par_chunks_mut((out_w * channels).max(1)).enumerate().for_each(|(row, y)| {
        let (top, a) = place(row % out_h, in_h, [p.step_h, p.add_h, p.sub_h, p.div_h]);
        let line = |h: usize| &x[(row / out_h * in_h + h.min(in_h - 1)) * in_w * channels..][..in_w * channels];
        let (upper, lower) = (line(top), line(top + 1));
        for (y, &(left, b)) in y.chunks_exact_mut(channels.max(1)).zip(&columns) {
            let (left, right) = (left * channels, (left + 1).min(in_w - 1) * channels);
            for (c, y) in y.iter_mut().enumerate() {
                let one = |line: &[f32]| line[left + c] * (1.0 - b) + line[right + c] * b;
                *y = one(upper) * (1.0 - a) + one(lower) * a;
            }
        }
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 9 * s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, x: [usize; 4], size: [usize; 2], align_corners: bool) -> Case {
    Case::new(name, vec![CaseInput::image("x", &x)], move |t, i| t.resize_bilinear(i[0], size, align_corners))
}

fn cases() -> Vec<Case> {
    vec![
        case("eight_times", [1, 2, 3, 4], [24, 32], false),
        case("odd_ratio", [2, 3, 5, 7], [13, 11], false),
        case("smaller", [1, 3, 13, 9], [5, 4], false),
        case("same", [2, 3, 4, 5], [4, 5], false),
        case("of_one_pixel", [2, 7, 1, 1], [6, 9], false),
        case("to_one_pixel", [1, 3, 6, 9], [1, 1], false),
        case("one_axis", [1, 2, 6, 5], [6, 17], false),
        case("corners", [2, 3, 5, 7], [13, 11], true),
        case("corners_smaller", [1, 3, 13, 9], [5, 4], true),
        case("corners_to_one_pixel", [1, 3, 6, 9], [1, 1], true),
        case("corners_of_one_pixel", [2, 7, 1, 1], [6, 9], true),
        case("large", [2, 21, 65, 63], [331, 317], false).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("deeplab_21x65x65", [1, 21, 65, 65], [520, 520], false)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::run_tape;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 3, 4, 5], DType::F32);
        assert!(t.resize_bilinear(x, [0, 4], false).unwrap_err().fact().contains("to 0 x 4, expected one pixel at least"));
        assert!(t.resize_bilinear(x, [usize::MAX, 1], false).unwrap_err().fact().contains("too large"));
        assert!(t.resize_bilinear(x, [1 << 31, 1], true).unwrap_err().fact().contains("too large"));
        let tokens = t.input("tokens", &[2, 3, 4], DType::F32);
        assert!(t.resize_bilinear(tokens, [2, 2], false).unwrap_err().fact().contains("expected four axes"));
        let y = t.resize_bilinear(x, [7, 2], true).unwrap();
        assert_eq!(t.shape(y).dims(), [2, 7, 2, 5]);
    }

    /// A ramp stays a ramp: at any place it has the place's own value, to the rounding of one product.
    #[test]
    fn a_ramp_stays_a_ramp() {
        for (from, to, align) in [(5usize, 12usize, false), (12, 5, false), (3, 301, true), (641, 97, true)] {
            let mut t = Tape::new();
            let x = t.input("x", &[1, 1, from, 1], DType::F32);
            let y = t.resize_bilinear(x, [1, to], align).unwrap();
            let ramp: Vec<f32> = (0..from).map(|v| v as f32).collect();
            let got = run_tape(&t, &[&ramp], y).unwrap();
            for (i, got) in got.iter().enumerate() {
                let place = if align { i as f64 * (from - 1) as f64 / (to - 1) as f64 } else { (i as f64 + 0.5) * from as f64 / to as f64 - 0.5 };
                let want = place.clamp(0.0, (from - 1) as f64);
                assert!((f64::from(*got) - want).abs() <= 1e-6 * from as f64, "{from} to {to}, {align}: {i} is {got}, expected {want}");
            }
        }
    }
}
