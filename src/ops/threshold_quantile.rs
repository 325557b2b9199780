//! The scale of dynamic thresholding: Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language
//! Understanding" (2022), section 2.3, as diffusers' `_threshold_sample` computes it.
//!
//! s[n] = clamp(quantile(|x_0| of sample n, ratio), 1, largest), the quantile between order statistics by linear interpolation
//! (`torch.quantile`); x_0 as in [`super::ddim_step`].   y: `[N, K]`, the coefficient row with s in its `threshold` column.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::ddim_step::{Coefficients, DDIM, DdimStep, PredictionType, guided, predict};
use crate::ops::{ELEM, TREE_U32};
use crate::params;
use crate::plan::card::grid_1d;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Machine, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub batch: u32,
        /// Elements of one sample.
        pub item: u32,
        /// Rows of the coefficients: 1, or one for each sample.
        pub rows: u32,
        pub guided: u32,
        pub prediction: u32,
        /// Number (from 0) of the order statistic below the quantile.
        pub below: u32,
        /// Share of the order statistic above it.
        pub weight: f32,
        /// Largest s.
        pub limit: f32,
        pub guidance_scale: f32,
    }
}

pub static OP: Op = Op {
    name: "threshold_quantile",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 1e-5, reason: "x_0 as in ddim_step; the quantile itself is one of its values or between two" },
    f16: false,
    statistics: &[],
    variants: &[Variant {
        name: "direct",
        family: "direct",
        source: &[ELEM, TREE_U32, DDIM, include_str!("../../shaders/threshold_quantile.wgsl")],
        workgroup: 256,
        meant_for: Machine::Any,
        constants: |_| vec![],
        accepts: |_| true,
        grid: |s| grid_1d(s.output[0], 1),
    }],
};

impl Tape {
    /// Coefficients `[N, K]` for [`Tape::ddim_step`] with `threshold`: `row` with each sample's s.
    /// `ratio` is diffusers' `dynamic_thresholding_ratio`, in [0, 1]; `largest` its `sample_max_value`, at least 1.
    pub fn threshold_quantile(&mut self, model_output: Tensor, latents: Tensor, row: Tensor, step: &DdimStep, ratio: f64, largest: f32) -> Result<Tensor> {
        let [n, h, w, c] = self.ddim_shapes(model_output, latents, row, step)?;
        if !(0.0..=1.0).contains(&ratio) || !(largest >= 1.0) {
            return Err(self.mismatch(format!("threshold_quantile: ratio {ratio} and largest {largest}, expected 0..=1 and at least 1")));
        }
        let item = h * w * c;
        let position = ratio * (item - 1) as f64;
        let params = Params {
            batch: n as u32,
            item: item as u32,
            rows: self.shape(row)[0] as u32,
            guided: u32::from(step.guidance_scale.is_some()),
            prediction: step.prediction as u32,
            below: position.floor() as u32,
            weight: position.fract() as f32,
            limit: largest,
            guidance_scale: step.guidance_scale.unwrap_or(1.0),
        };
        Ok(self.push(&OP, &params, &[model_output, latents, row], &[n, Coefficients::COLUMNS], DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let (batch, item, below) = (p.batch as usize, p.item as usize, p.below as usize);
    let [model_output, latents, rows] = *call.inputs else { return };
    let rows: &[Coefficients] = bytemuck::cast_slice(rows);
    call.output.par_chunks_mut(Coefficients::COLUMNS).enumerate().for_each(|(n, y)| {
        let row = &rows[if p.rows > 1 { n } else { 0 }];
        let magnitude = |i: usize| predict(p.prediction, guided(model_output, i, batch * item, p.guided != 0, p.guidance_scale), latents[i], row).0.abs();
        let mut sorted: Vec<f32> = (n * item..(n + 1) * item).map(magnitude).collect();
        sorted.sort_unstable_by(f32::total_cmp);
        let (lower, upper) = (sorted[below], sorted[(below + 1).min(item - 1)]);
        let s = (lower + p.weight * (upper - lower)).max(1.0).min(p.limit);
        y.copy_from_slice(bytemuck::cast_slice(&[Coefficients { threshold: s, ..*row }]));
    });
}

fn cost(s: &StepView) -> Cost {
    // 32 passes over x_0, each about 8 operations.
    Cost { flops: 256 * s.inputs[1].numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: [usize; 4], rows: usize, step: DdimStep, ratio: f64, largest: f32) -> Case {
    let [n, c, h, w] = shape;
    let outputs = n * if step.guidance_scale.is_some() { 2 } else { 1 };
    let inputs = vec![
        // Wide enough for quantiles above 1, where s is not clamped.
        CaseInput::new("model_output", &[outputs, c, h, w], Layout::Image, Fill::Affine { scale: 3.0, shift: 0.5 }),
        CaseInput::image("latents", &shape),
        CaseInput::new("row", &[rows, Coefficients::COLUMNS], Layout::Plain, Fill::Uniform { low: 0.2, high: 1.0 }),
    ];
    Case::new(name, inputs, move |t, i| t.threshold_quantile(i[0], i[1], i[2], &step, ratio, largest))
}

fn cases() -> Vec<Case> {
    let epsilon = DdimStep { prediction: PredictionType::Epsilon, guidance_scale: None, clip: None, threshold: true };
    let v = DdimStep { prediction: PredictionType::V, ..epsilon };
    let sample = DdimStep { prediction: PredictionType::Sample, ..epsilon };
    vec![
        case("epsilon", [2, 3, 5, 7], 1, epsilon, 0.995, 100.0),
        case("v_prediction", [2, 3, 5, 7], 2, v, 0.9, 100.0),
        case("sample", [3, 4, 3, 3], 1, sample, 0.5, 100.0),
        case("guided", [2, 3, 5, 5], 2, DdimStep { guidance_scale: Some(3.0), ..epsilon }, 0.8, 100.0),
        case("largest", [2, 3, 5, 5], 1, sample, 0.995, 1.5),
        case("at_least_one", [2, 3, 5, 5], 1, sample, 0.01, 1.5),
        case("maximum", [1, 1, 3, 5], 1, sample, 1.0, 100.0),
        case("one_value", [2, 1, 1, 1], 1, sample, 0.995, 100.0),
        case("pixel_space", [2, 3, 67, 71], 1, DdimStep { guidance_scale: Some(3.0), ..v }, 0.995, 100.0).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    let step = DdimStep { prediction: PredictionType::Epsilon, guidance_scale: Some(7.5), clip: None, threshold: true };
    vec![case("pixels_4x3x64x64", [4, 3, 64, 64], 1, step, 0.995, 1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::run_tape;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 4, 5, 3], DType::F32);
        let row = t.input("row", &[1, Coefficients::COLUMNS], DType::F32);
        let step = DdimStep { prediction: PredictionType::Epsilon, guidance_scale: None, clip: None, threshold: true };
        assert!(t.threshold_quantile(x, x, row, &step, 1.5, 1.0).unwrap_err().fact().contains("ratio 1.5"));
        assert!(t.threshold_quantile(x, x, row, &step, f64::NAN, 1.0).is_err());
        assert!(t.threshold_quantile(x, x, row, &step, 0.9, 0.5).is_err());
        assert!(t.threshold_quantile(x, row, row, &step, 0.9, 1.0).is_err());
        let y = t.threshold_quantile(x, x, row, &step, 0.9, 1.0).unwrap();
        assert_eq!(t.shape(y).dims(), [2, Coefficients::COLUMNS]);
    }

    /// Thresholded by its own maximum, x_0 is x_0 / max: it ends at 1.
    #[test]
    fn ddim_step_divides_by_the_quantile() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 1, 3, 1], DType::F32);
        let row = t.input("row", &[1, Coefficients::COLUMNS], DType::F32);
        let step = DdimStep { prediction: PredictionType::Sample, guidance_scale: None, clip: None, threshold: true };
        let rows = t.threshold_quantile(x, x, row, &step, 1.0, 100.0).unwrap();
        let y = t.ddim_step(x, x, rows, None, None, &step).unwrap();
        // sqrt_alpha_prev = 1, direction = 0: y is the thresholded x_0.
        let row = [0.5, 0.5, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0];
        let y = run_tape(&t, &[&[2.0, -4.0, 1.0, 0.5, 0.25, -0.75], &row], y).unwrap();
        assert_eq!(y, [0.5, -1.0, 0.25, 0.5, 0.25, -0.75]);
    }
}
