//! The noise of training, from a diffusers `scheduler_config.json` of DDIMScheduler: alphas_cumprod with torch's roundings.
//!
//! | symbol | here |
//! |---|---|
//! | beta_t | variance added at training timestep t |
//! | alpha_bar_t | `alphas_cumprod[t]` = prod_(s <= t) (1 - beta_s); the DDIM paper writes it alpha_t |
//!
//! Source of the fields: diffusers `DDIMScheduler`. Cosine: Nichol and Dhariwal 2021, eq. 17. Zero terminal SNR:
//! Lin et al. 2023 (arXiv 2305.08891), algorithm 1.

use std::path::Path;

use crate::base::{Error, Kind, Result};
use crate::ops::ddim_step::PredictionType;
use crate::weights::Config;

/// Longest training schedule that a configuration may ask for.
const MAX_TRAIN_TIMESTEPS: usize = 100_000;

/// How the timesteps of a short schedule are picked (Lin et al. 2023, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BetaSchedule {
    Linear,
    ScaledLinear,
    SquaredCosine,
}

/// What the predicted x_0 is held to before the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    Free,
    /// Clamped to `[-range, range]`.
    Clip {
        range: f32,
    },
    /// Dynamic thresholding (Saharia et al. 2022, section 2.3): s = the quantile `ratio` of |x_0| of each sample, clamped to
    /// `[1, max]`; then x_0 = clamp(x_0, -s, s) / s.
    Threshold {
        ratio: f32,
        max: f32,
    },
}

/// A DDIM scheduler: the noise table and how it is walked.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheduler {
    /// alpha_bar_t of every training timestep.
    pub alphas_cumprod: Vec<f32>,
    /// alpha_bar before timestep 0.
    pub final_alpha_cumprod: f32,
    pub prediction_type: PredictionType,
    pub spacing: Spacing,
    pub steps_offset: usize,
    pub limit: Limit,
}

impl Scheduler {
    /// Reads `scheduler_config.json`. Unknown fields and values are errors that name them.
    pub fn read(path: &Path) -> Result<Scheduler> {
        Self::from_config(&Config::read(path)?)
    }

    /// Takes every field of `config` and finishes it.
    pub fn from_config(config: &Config) -> Result<Scheduler> {
        config.require("_class_name", "DDIMScheduler")?;
        // A PNDM field that Stable Diffusion's DDIM configurations carry along; DDIM has no such steps.
        config.ignore(&["skip_prk_steps"]);
        let timesteps = config.integer("num_train_timesteps", 1000, 1..=MAX_TRAIN_TIMESTEPS)?;
        let betas = betas(config, timesteps)?;
        let rescale = config.flag("rescale_betas_zero_snr", false)?;
        let alphas_cumprod = alphas_cumprod(&if rescale { rescale_zero_terminal_snr(&betas) } else { betas });
        let predictions = [("epsilon", PredictionType::Epsilon), ("v_prediction", PredictionType::V), ("sample", PredictionType::Sample)];
        let prediction_type = config.choice("prediction_type", Some(PredictionType::Epsilon), &predictions)?;
        let spacings = [("leading", Spacing::Leading), ("trailing", Spacing::Trailing), ("linspace", Spacing::Linspace)];
        let scheduler = Scheduler {
            final_alpha_cumprod: if config.flag("set_alpha_to_one", true)? { 1.0 } else { alphas_cumprod[0] },
            spacing: config.choice("timestep_spacing", Some(Spacing::Leading), &spacings)?,
            steps_offset: config.integer("steps_offset", 0, 0..=timesteps - 1)?,
            limit: limit(config)?,
            alphas_cumprod,
            prediction_type,
        };
        config.finish()?;
        Ok(scheduler)
    }

    /// Length of the training schedule.
    pub fn num_train_timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }
}

fn limit(config: &Config) -> Result<Limit> {
    let ratio = config.number("dynamic_thresholding_ratio", 0.995, 0.0..=1.0)? as f32;
    let max = config.number("sample_max_value", 1.0, 1.0..=1e6)? as f32;
    let range = config.number("clip_sample_range", 1.0, 1e-6..=1e6)? as f32;
    let (threshold, clip) = (config.flag("thresholding", false)?, config.flag("clip_sample", true)?);
    Ok(match (threshold, clip) {
        (true, _) => Limit::Threshold { ratio, max },
        (false, true) => Limit::Clip { range },
        (false, false) => Limit::Free,
    })
}

fn betas(config: &Config, timesteps: usize) -> Result<Vec<f32>> {
    let (start, end) = (config.number("beta_start", 0.0001, 0.0..=1.0)?, config.number("beta_end", 0.02, 0.0..=1.0)?);
    let schedules = [("linear", BetaSchedule::Linear), ("scaled_linear", BetaSchedule::ScaledLinear), ("squaredcos_cap_v2", BetaSchedule::SquaredCosine)];
    let schedule = config.choice("beta_schedule", Some(BetaSchedule::Linear), &schedules)?;
    if let Some(trained) = config.nullable_numbers("trained_betas", 0.0..=1.0, MAX_TRAIN_TIMESTEPS)? {
        if trained.len() != timesteps {
            return Err(config.error("trained_betas", format!("{} values, expected num_train_timesteps = {timesteps}", trained.len())));
        }
        return Ok(trained.into_iter().map(|b| b as f32).collect());
    }
    Ok(match schedule {
        BetaSchedule::Linear => linspace(start, end, timesteps),
        BetaSchedule::ScaledLinear => linspace(start.sqrt(), end.sqrt(), timesteps).into_iter().map(|b| b * b).collect(),
        BetaSchedule::SquaredCosine => squared_cosine(timesteps),
    })
}

/// torch.linspace in f32: from either end towards the middle, each value with one rounding (fused multiply-add).
fn linspace(start: f64, end: f64, count: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / (count - 1) as f32;
    let at = |i: usize| {
        if i < count / 2 { step.mul_add(i as f32, start) } else { step.mul_add(-((count - 1 - i) as f32), end) }
    };
    (0..count).map(at).collect()
}

/// beta_t = min(1 - f((t+1)/T) / f(t/T), 0.999) with f(u) = cos^2((u + 0.008) / 1.008 * pi/2), in f64.
fn squared_cosine(timesteps: usize) -> Vec<f32> {
    let f = |u: f64| libm::cos((u + 0.008) / 1.008 * std::f64::consts::PI / 2.0).powi(2);
    let total = timesteps as f64;
    (0..timesteps).map(|t| (1.0 - f((t + 1) as f64 / total) / f(t as f64 / total)).min(0.999) as f32).collect()
}

/// prod_(s <= t) (1 - beta_s): the factors are f32, the running product f64, as torch.cumprod has it.
fn alphas_cumprod(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0f64;
    let mut next = |&beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(&mut next).collect()
}

/// Shifts and scales sqrt(alpha_bar) so that it ends in zero and keeps its first value; returns the betas of that.
fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let bars: Vec<f32> = roots.iter().map(|r| (r - last) * scale).map(|r| r * r).collect();
    let ratio = |t: usize| if t == 0 { bars[0] } else { bars[t] / bars[t - 1] };
    (0..bars.len()).map(|t| 1.0 - ratio(t)).collect()
}

/// Fails where `value` is not finite or not in `low..=high`; `flag` names it.
pub(crate) fn check_range(flag: &str, value: f64, low: f64, high: f64) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, flag, format!("{value}, expected {low} to {high}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<Scheduler> {
        Scheduler::from_config(&Config::parse(&format!("{{\"_class_name\": \"DDIMScheduler\"{fields}}}"), "scheduler_config.json").unwrap())
    }

    #[test]
    fn defaults_are_diffusers_own() {
        let s = parse("").unwrap();
        assert_eq!((s.num_train_timesteps(), s.final_alpha_cumprod, s.steps_offset), (1000, 1.0, 0));
        assert_eq!((s.prediction_type, s.spacing, s.limit), (PredictionType::Epsilon, Spacing::Leading, Limit::Clip { range: 1.0 }));
    }

    #[test]
    fn thresholding_comes_before_clipping() {
        let s = parse(r#", "thresholding": true, "clip_sample": true, "sample_max_value": 2.0"#).unwrap();
        assert_eq!(s.limit, Limit::Threshold { ratio: 0.995, max: 2.0 });
        assert_eq!(parse(r#", "clip_sample": false"#).unwrap().limit, Limit::Free);
    }

    #[test]
    fn unknown_fields_and_values_are_named() {
        let rows = [
            (r#", "lambda_min_clipped": 1"#, "unknown or unsupported field `lambda_min_clipped`"),
            (r#", "beta_schedule": "sigmoid""#, "beta_schedule: \"sigmoid\", expected one of"),
            (r#", "prediction_type": "flow""#, "prediction_type: \"flow\""),
            (r#", "timestep_spacing": "karras""#, "timestep_spacing: \"karras\""),
            (r#", "trained_betas": [0.1, 0.2]"#, "trained_betas: 2 values, expected num_train_timesteps = 1000"),
            (r#", "beta_end": 1.5"#, "beta_end: 1.5, expected a number from 0 to 1"),
            (r#", "num_train_timesteps": 0"#, "num_train_timesteps: 0"),
            (r#", "steps_offset": 1000"#, "steps_offset: 1000"),
            (r#", "clip_sample": 1"#, "clip_sample: 1, expected true or false"),
        ];
        for (fields, want) in rows {
            let error = parse(fields).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
            assert_eq!(error.kind(), Kind::Config);
        }
        let other = Config::parse(r#"{"_class_name": "PNDMScheduler"}"#, "s").unwrap();
        assert!(Scheduler::from_config(&other).unwrap_err().to_string().contains("expected \"DDIMScheduler\""));
        parse(r#", "skip_prk_steps": true, "_diffusers_version": "0.8.0", "trained_betas": null"#).unwrap();
    }

    #[test]
    fn zero_terminal_snr_ends_in_zero_and_keeps_its_first_value() {
        let (plain, rescaled) = (parse("").unwrap(), parse(r#", "rescale_betas_zero_snr": true"#).unwrap());
        assert_eq!(rescaled.alphas_cumprod[999], 0.0);
        assert!((rescaled.alphas_cumprod[0] / plain.alphas_cumprod[0] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn linspace_meets_both_ends() {
        let v = linspace(0.1, 0.7, 7);
        assert_eq!((v[0], v[6]), (0.1, 0.7));
        assert!((v[3] - 0.4).abs() < 1e-7);
        assert_eq!(linspace(0.5, 0.7, 1), [0.5]);
    }

    #[test]
    fn ranges_refuse_nan() {
        assert!(check_range("--eta", f64::NAN, 0.0, 1.0).is_err());
        assert_eq!(check_range("--eta", 2.0, 0.0, 1.0).unwrap_err().to_string(), "--eta: 2, expected 0 to 1");
    }
}
