//! One step of DDIM with classifier-free guidance and a known region: Song, Meng and Ermon, "Denoising Diffusion Implicit
//! Models" (2021), equations 12 and 16, as diffusers' `DDIMScheduler.step` computes them; guidance after Ho and Salimans,
//! "Classifier-Free Diffusion Guidance" (2022), equation 6; the known region after Lugmayr et al., "RePaint" (2022), equation 8.
//!
//! With x = x_t, a = sqrt(alpha_bar_t), b = sqrt(1 - alpha_bar_t), out = uncond + guidance_scale (cond - uncond):
//!
//! | prediction | x_0               | epsilon           |
//! |------------|-------------------|-------------------|
//! | epsilon    | (x - b out) / a   | out               |
//! | v          | a x - b out       | a out + b x       |
//! | sample     | out               | (x - a out) / b   |
//!
//! x_0 is then held to +-clip, or to +-s and divided by s (dynamic thresholding, [`super::threshold_quantile`]); epsilon keeps
//! the value of the table, as without diffusers' `use_clipped_model_output`.
//!
//! prev = sqrt(alpha_bar_prev) x_0 + direction epsilon + sigma variance_noise;
//! y = hole prev + (1 - hole) (known_sqrt_alpha z0 + known_sqrt_one_minus_alpha noise).   x, y: `[N, H, W, C]`.
//!
//! Every number that changes from step to step stands in one row of a table, so that a plan is replayed as it is.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        /// Elements of one sample.
        pub item: u32,
        pub channels: u32,
        /// Rows of the coefficients: 1, or one for each sample.
        pub rows: u32,
        pub guided: u32,
        pub prediction: u32,
        pub clip: u32,
        pub threshold: u32,
        pub variance: u32,
        pub reimpose: u32,
        pub guidance_scale: f32,
        pub clip_range: f32,
    }
}

params! {
    /// One row of the coefficient table, in the order of its columns: `bytemuck::cast_slice` turns rows into the table.
    pub struct Coefficients {
        /// sqrt(alpha_bar_t), with alpha_bar = diffusers' `alphas_cumprod`.
        pub sqrt_alpha: f32,
        /// sqrt(1 - alpha_bar_t).
        pub sqrt_one_minus_alpha: f32,
        /// sqrt(alpha_bar_prev), of the timestep that the step arrives at.
        pub sqrt_alpha_prev: f32,
        /// sqrt(1 - alpha_bar_prev - sigma^2).
        pub direction: f32,
        /// eta sqrt((1 - alpha_bar_prev) / (1 - alpha_bar_t)) sqrt(1 - alpha_bar_t / alpha_bar_prev).
        pub sigma: f32,
        /// The known region at the timestep that the step arrives at is known_sqrt_alpha z0 + known_sqrt_one_minus_alpha noise;
        /// 1 and 0 after the last step.
        pub known_sqrt_alpha: f32,
        pub known_sqrt_one_minus_alpha: f32,
        /// s of dynamic thresholding; read only where the step asks for thresholding.
        pub threshold: f32,
    }
}

impl Coefficients {
    /// Columns of the table.
    pub const COLUMNS: usize = Self::SIZE / 4;
    /// The column that [`super::threshold_quantile`] fills.
    pub const THRESHOLD: usize = std::mem::offset_of!(Coefficients, threshold) / 4;
}

/// What the model predicts; its discriminant is its code in the shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise: diffusers' `epsilon`.
    Epsilon = 0,
    /// a epsilon - b x_0: diffusers' `v_prediction`.
    V = 1,
    /// x_0: diffusers' `sample`.
    Sample = 2,
}

/// What stays the same in all steps of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DdimStep {
    pub prediction: PredictionType,
    /// Guidance scale; the model's output then holds `[2 N, H, W, C]`, the unconditional half first.
    pub guidance_scale: Option<f32>,
    /// Bound of |x_0| (`clip_sample_range`); without effect where `threshold` is set, as in diffusers.
    pub clip: Option<f32>,
    /// Dynamic thresholding by the row's `threshold`.
    pub threshold: bool,
}

/// The region that is kept, for steps that impose it again.
#[derive(Clone, Copy, Debug)]
pub struct KnownRegion {
    /// `[N, H, W, 1]`: 1 = repaint, 0 = known.
    pub hole: Tensor,
    /// `[N, H, W, C]`: latents of the known image.
    pub z0: Tensor,
    /// `[N, H, W, C]`: its noise, the same in all steps.
    pub noise: Tensor,
}

/// WGSL fragment: columns, codes and the table of predictions.
pub(crate) const DDIM: &str = include_str!("../../shaders/lib/ddim.wgsl");

pub static OP: Op = Op {
    name: "ddim_step",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 1e-5, reason: "guidance by 7.5 and the quotients by a or b >= 0.2 enlarge about ten roundings and 2.5 ulp of a quotient" },
    f16: false,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, DDIM, include_str!("../../shaders/ddim_step.wgsl")])],
};

impl Tape {
    /// x_(t-1) `[N, H, W, C]` from the model's output at `latents` x_t `[N, H, W, C]`.
    /// `row`: `[1, K]` for all samples or `[N, K]`, K = [`Coefficients::COLUMNS`]. `variance_noise` `[N, H, W, C]` is needed where
    /// the row's sigma is not 0; without it that term is left out. Without `known` nothing is imposed again.
    pub fn ddim_step(
        &mut self,
        model_output: Tensor,
        latents: Tensor,
        row: Tensor,
        known: Option<&KnownRegion>,
        variance_noise: Option<Tensor>,
        step: &DdimStep,
    ) -> Result<Tensor> {
        let [n, h, w, c] = self.ddim_shapes(model_output, latents, row, step)?;
        let noises = known.map_or(vec![], |k| vec![("z0", k.z0), ("noise", k.noise)]).into_iter().chain(variance_noise.map(|v| ("variance_noise", v)));
        for (name, tensor) in noises {
            if self.shape(tensor).dims() != [n, h, w, c] {
                return Err(self.mismatch(format!("ddim_step: {name} is {}, expected {}", self.shape(tensor), self.shape(latents))));
            }
        }
        if let Some(KnownRegion { hole, .. }) = known
            && self.shape(*hole).dims() != [n, h, w, 1]
        {
            return Err(self.mismatch(format!("ddim_step: hole is {}, expected {:?}", self.shape(*hole), [n, h, w, 1])));
        }
        let params = Params {
            len: (n * h * w * c) as u32,
            item: (h * w * c) as u32,
            channels: c as u32,
            rows: self.shape(row)[0] as u32,
            guided: u32::from(step.guidance_scale.is_some()),
            prediction: step.prediction as u32,
            clip: u32::from(step.clip.is_some()),
            threshold: u32::from(step.threshold),
            variance: u32::from(variance_noise.is_some()),
            reimpose: u32::from(known.is_some()),
            guidance_scale: step.guidance_scale.unwrap_or(1.0),
            clip_range: step.clip.unwrap_or(0.0),
        };
        // The latents stand in for tensors that the flags leave unread: a binding must hold something.
        let [hole, z0, noise] = known.map_or([latents; 3], |k| [k.hole, k.z0, k.noise]);
        let inputs = [model_output, latents, hole, z0, noise, variance_noise.unwrap_or(latents), row];
        Ok(self.push(&OP, &params, &inputs, &[n, h, w, c], DType::F32))
    }

    /// Checks the tensors that x_0 is predicted from; the shape of the latents.
    pub(crate) fn ddim_shapes(&self, model_output: Tensor, latents: Tensor, row: Tensor, step: &DdimStep) -> Result<[usize; 4]> {
        let [n, h, w, c] = self.nhwc(latents)?;
        if self.shape(latents).numel() == 0 {
            return Err(self.mismatch(format!("ddim_step of empty latents {}", self.shape(latents))));
        }
        let outputs = [n * if step.guidance_scale.is_some() { 2 } else { 1 }, h, w, c];
        if self.shape(model_output).dims() != outputs {
            return Err(self.mismatch(format!("ddim_step: the model's output is {}, expected {outputs:?}", self.shape(model_output))));
        }
        let rows = self.shape(row).dims();
        if rows != [1, Coefficients::COLUMNS] && rows != [n, Coefficients::COLUMNS] {
            return Err(self.mismatch(format!("ddim_step: coefficients are {rows:?}, expected [1 or {n}, {}]", Coefficients::COLUMNS)));
        }
        Ok([n, h, w, c])
    }
}

/// out = uncond + guidance_scale (cond - uncond), or the output itself.
pub(crate) fn guided(model_output: &[f32], i: usize, len: usize, guided: bool, guidance_scale: f32) -> f32 {
    let out = model_output[i];
    if guided { out + guidance_scale * (model_output[i + len] - out) } else { out }
}

/// (x_0, epsilon) by the table at the file's head.
pub(crate) fn predict(prediction: u32, out: f32, x: f32, row: &Coefficients) -> (f32, f32) {
    let (a, b) = (row.sqrt_alpha, row.sqrt_one_minus_alpha);
    match prediction {
        1 => (a * x - b * out, a * out + b * x),
        2 => (out, (x - a * out) / b),
        _ => ((x - b * out) / a, out),
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let (item, channels) = (p.item as usize, p.channels as usize);
    let [model_output, latents, hole, z0, noise, variance_noise, rows] = *call.inputs else { return };
    let rows: &[Coefficients] = bytemuck::cast_slice(rows);
    call.output.par_chunks_mut(channels).enumerate().for_each(|(pixel, y)| {
        let row = &rows[if p.rows > 1 { pixel * channels / item } else { 0 }];
        for (c, y) in y.iter_mut().enumerate() {
            let i = pixel * channels + c;
            let out = guided(model_output, i, p.len as usize, p.guided != 0, p.guidance_scale);
            let (mut x0, epsilon) = predict(p.prediction, out, latents[i], row);
            if p.threshold != 0 {
                x0 = x0.max(-row.threshold).min(row.threshold) / row.threshold;
            } else if p.clip != 0 {
                x0 = x0.max(-p.clip_range).min(p.clip_range);
            }
            *y = row.sqrt_alpha_prev * x0 + row.direction * epsilon;
            if p.variance != 0 {
                *y += row.sigma * variance_noise[i];
            }
            if p.reimpose != 0 {
                let known = row.known_sqrt_alpha * z0[i] + row.known_sqrt_one_minus_alpha * noise[i];
                *y = hole[pixel] * *y + (1.0 - hole[pixel]) * known;
            }
        }
    });
}

fn cost(s: &StepView) -> Cost {
    let p: Params = s.params();
    let per_value = 8 + 3 * p.guided + 2 * p.clip + 2 * p.variance + 7 * p.reimpose;
    Cost { flops: u64::from(per_value) * s.output.numel() as u64, bytes: s.bytes() }
}

/// A step without any option.
const PLAIN: DdimStep = DdimStep { prediction: PredictionType::Epsilon, guidance_scale: None, clip: None, threshold: false };

/// Inputs in the order of the bindings, whether or not the step reads them. `rows` is 1 or N.
fn case(name: &'static str, shape: [usize; 4], rows: usize, known: bool, variance: bool, step: DdimStep) -> Case {
    let [n, c, h, w] = shape;
    let outputs = n * if step.guidance_scale.is_some() { 2 } else { 1 };
    let inputs = vec![
        CaseInput::image("model_output", &[outputs, c, h, w]),
        CaseInput::image("latents", &shape),
        CaseInput::new("hole", &[n, 1, h, w], Layout::Image, Fill::Binary),
        CaseInput::image("z0", &shape),
        CaseInput::image("noise", &shape),
        CaseInput::image("variance_noise", &shape),
        CaseInput::new("row", &[rows, Coefficients::COLUMNS], Layout::Plain, Fill::Uniform { low: 0.2, high: 1.0 }),
    ];
    Case::new(name, inputs, move |t, i| {
        let region = KnownRegion { hole: i[2], z0: i[3], noise: i[4] };
        t.ddim_step(i[0], i[1], i[6], known.then_some(&region), variance.then_some(i[5]), &step)
    })
}

fn cases() -> Vec<Case> {
    let small = [2, 3, 5, 7];
    let guided = DdimStep { guidance_scale: Some(7.5), ..PLAIN };
    let v = DdimStep { prediction: PredictionType::V, ..PLAIN };
    let sample = DdimStep { prediction: PredictionType::Sample, ..PLAIN };
    vec![
        case("epsilon", small, 1, false, false, PLAIN),
        case("v_prediction", small, 1, false, false, v),
        case("sample", small, 1, false, false, sample),
        case("guided", small, 1, false, false, guided),
        case("clip", small, 1, false, false, DdimStep { clip: Some(0.75), ..PLAIN }),
        case("threshold", small, 2, false, false, DdimStep { threshold: true, clip: Some(0.1), ..v }),
        case("variance", small, 1, false, true, PLAIN),
        case("reimpose", small, 1, true, false, PLAIN),
        case("row_of_each", [3, 4, 3, 3], 3, true, true, v),
        case("everything", [2, 4, 5, 3], 1, true, true, DdimStep { clip: Some(1.0), ..guided }),
        case("everything_guided_v", [3, 1, 5, 3], 3, true, true, DdimStep { guidance_scale: Some(2.0), threshold: true, ..v }),
        case("large", [3, 4, 431, 433], 1, true, true, DdimStep { clip: Some(1.0), ..guided }).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    let guided = DdimStep { guidance_scale: Some(7.5), ..PLAIN };
    vec![case("ham_8x32x16x16", [8, 32, 16, 16], 1, true, false, guided), case("sd_2x4x64x64", [2, 4, 64, 64], 1, true, false, guided)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::run_tape;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 4, 5, 3], DType::F32);
        let both = t.input("both", &[4, 4, 5, 3], DType::F32);
        let hole = t.input("hole", &[2, 4, 5, 1], DType::F32);
        let row = t.input("row", &[1, Coefficients::COLUMNS], DType::F32);
        let rows = t.input("rows", &[3, Coefficients::COLUMNS], DType::F32);
        let guided = DdimStep { guidance_scale: Some(2.0), ..PLAIN };
        assert!(t.ddim_step(both, x, row, Some(&KnownRegion { hole, z0: x, noise: x }), Some(x), &guided).is_ok());
        let e = t.ddim_step(x, x, row, None, None, &guided).unwrap_err();
        assert_eq!(e.fact(), "ddim_step: the model's output is [2, 4, 5, 3], expected [4, 4, 5, 3]");
        let e = t.ddim_step(x, x, rows, None, None, &PLAIN).unwrap_err();
        assert_eq!(e.fact(), "ddim_step: coefficients are [3, 8], expected [1 or 2, 8]");
        let e = t.ddim_step(x, x, row, Some(&KnownRegion { hole: x, z0: x, noise: x }), None, &PLAIN).unwrap_err();
        assert!(e.fact().starts_with("ddim_step: hole is [2, 4, 5, 3]"));
        assert!(t.ddim_step(x, x, row, Some(&KnownRegion { hole, z0: both, noise: x }), None, &PLAIN).unwrap_err().fact().contains("z0"));
        assert!(t.ddim_step(x, x, row, None, Some(both), &PLAIN).unwrap_err().fact().contains("variance_noise"));
    }

    #[test]
    fn the_shaders_columns_are_the_coefficients() {
        for field in Coefficients::FIELDS {
            let line = format!("const {}: u32 = {}u;", field.name.to_uppercase(), field.offset / 4);
            assert!(DDIM.contains(&line), "{line}");
        }
        assert!(DDIM.contains(&format!("const COLUMNS: u32 = {}u;", Coefficients::COLUMNS)));
    }

    /// A model that predicts the true noise is led to x_0 exactly at alpha_bar_prev = 1, and the known region is z0 bit for bit.
    #[test]
    fn true_noise_leads_to_x0_and_the_known_region_is_exact() {
        let (alpha, len) = (0.3f32, 2 * 3 * 4);
        let values = |job| crate::base::rng::normal(1, job, 0, len);
        let (x0, noise, z0, known_noise) = (values(0), values(1), values(2), values(3));
        let (a, b) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let latents: Vec<f32> = x0.iter().zip(&noise).map(|(x, e)| a * x + b * e).collect();
        let hole: Vec<f32> = (0..len / 2).map(|i| (i % 2) as f32).collect();
        let row = Coefficients {
            sqrt_alpha: a,
            sqrt_one_minus_alpha: b,
            sqrt_alpha_prev: 1.0,
            direction: 0.0,
            sigma: 0.0,
            known_sqrt_alpha: 1.0,
            known_sqrt_one_minus_alpha: 0.0,
            threshold: 0.0,
        };
        let mut t = Tape::new();
        let shape = [1, 3, 4, 2];
        let [e, x, z, k] = ["e", "x", "z", "k"].map(|name| t.input(name, &shape, DType::F32));
        let h = t.input("hole", &[1, 3, 4, 1], DType::F32);
        let r = t.input("row", &[1, Coefficients::COLUMNS], DType::F32);
        let y = t.ddim_step(e, x, r, Some(&KnownRegion { hole: h, z0: z, noise: k }), None, &PLAIN).unwrap();
        let y = run_tape(&t, &[&noise, &latents, &z0, &known_noise, &hole, bytemuck::cast_slice(&[row])], y).unwrap();
        for i in 0..len {
            if hole[i / 2] == 0.0 {
                assert_eq!(y[i], z0[i]);
            } else {
                assert!((y[i] - x0[i]).abs() < 1e-6, "{} is not {}", y[i], x0[i]);
            }
        }
    }
}
