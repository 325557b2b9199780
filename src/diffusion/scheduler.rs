//! A scheduler of diffusers from its `scheduler_config.json`: the noise of training, what the model predicts, how the timesteps are
//! picked, and which solver walks them.
//!
//! Source of the fields and of their defaults: the classes' constructors in diffusers' `schedulers` folder.

use std::path::Path;

use crate::base::{Error, Kind, Result};
use crate::diffusion::betas::{self, Defaults};
use crate::diffusion::ddpm::Variance;
use crate::diffusion::dpm_solver::DpmSolver;
use crate::diffusion::euler::Euler;
use crate::diffusion::lcm::Lcm;
use crate::diffusion::unipc::UniPc;
use crate::ops::ddim_step::PredictionType;
use crate::weights::Config;

/// How the timesteps of a short schedule are picked (Lin et al. 2023, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    Leading,
    Trailing,
    Linspace,
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
    /// `[1, max]`; then x_0 = clamp(x_0, -s, s) / s. DDIM alone has it here.
    Threshold {
        ratio: f32,
        max: f32,
    },
}

/// The classes of diffusers that are supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Ddim,
    Ddpm,
    DpmSolver,
    UniPc,
    Euler,
    Lcm,
    Pndm,
}

/// Each class, its name in commands and settings, and its `_class_name`.
const CLASSES: [(Class, &str, &str); 7] = [
    (Class::Ddim, "ddim", "DDIMScheduler"),
    (Class::Ddpm, "ddpm", "DDPMScheduler"),
    (Class::DpmSolver, "dpmpp-2m", "DPMSolverMultistepScheduler"),
    (Class::UniPc, "unipc", "UniPCMultistepScheduler"),
    (Class::Euler, "euler", "EulerDiscreteScheduler"),
    (Class::Lcm, "lcm", "LCMScheduler"),
    (Class::Pndm, "pndm", "PNDMScheduler"),
];

/// Fields of the other schedulers of diffusers: left aside where a configuration is read as another class than its own.
const FIELDS_OF_OTHERS: &[&str] = &[
    "algorithm_type",
    "clip_sample",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "invert_sigmas",
    "lambda_min_clipped",
    "lower_order_final",
    "noise_sampler_seed",
    "original_inference_steps",
    "predict_x0",
    "rescale_betas_zero_snr",
    "rho",
    "s_churn",
    "s_noise",
    "sample_max_value",
    "set_alpha_to_one",
    "sigma_max",
    "sigma_min",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "thresholding",
    "time_shift_type",
    "timestep_scaling",
    "timestep_type",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
    "shift_terminal",
];

impl Class {
    /// The class of a name such as `dpmpp-2m`. Fails with the list of them; `flag` names the place.
    pub fn parse(flag: &str, name: &str) -> Result<Class> {
        let found = CLASSES.iter().find(|(_, known, _)| *known == name).map(|row| row.0);
        let known = || CLASSES.map(|row| row.1).join(", ");
        found.ok_or_else(|| Error::new(Kind::Usage, flag, format!("{name}, expected one of {}", known())))
    }

    /// `dpmpp-2m`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// `DPMSolverMultistepScheduler`.
    pub fn diffusers_name(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> (Class, &'static str, &'static str) {
        CLASSES[self as usize]
    }

    fn defaults(self) -> Defaults {
        let defaults = |zero_snr| Defaults { start: 0.0001, end: 0.02, scaled: false, zero_snr };
        match self {
            Class::Ddim | Class::Ddpm => defaults(Some(None)),
            // Not 0, so that the first sigma is finite.
            Class::DpmSolver | Class::UniPc | Class::Euler => defaults(Some(Some(1.0 / 16_777_216.0))),
            Class::Lcm => Defaults { start: 0.00085, end: 0.012, scaled: true, ..defaults(Some(None)) },
            Class::Pndm => defaults(None),
        }
    }

    /// The default of `timestep_spacing`.
    fn spacing(self) -> Spacing {
        if matches!(self, Class::DpmSolver | Class::UniPc | Class::Euler) { Spacing::Linspace } else { Spacing::Leading }
    }
}

/// A class with the settings that it alone has.
#[derive(Clone, Debug, PartialEq)]
pub enum Solver {
    Ddim,
    Ddpm(Variance),
    DpmSolver(DpmSolver),
    UniPc(UniPc),
    Euler(Euler),
    Lcm(Lcm),
    Pndm,
}

/// A scheduler: the noise table and how it is walked.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheduler {
    pub class: Class,
    /// alpha_bar_t of every training timestep.
    pub alphas_cumprod: Vec<f32>,
    /// alpha_bar before timestep 0.
    pub final_alpha_cumprod: f32,
    pub prediction_type: PredictionType,
    pub spacing: Spacing,
    pub steps_offset: usize,
    pub limit: Limit,
    pub solver: Solver,
}

impl Scheduler {
    /// Reads `scheduler_config.json`. Unknown fields and values are errors that name them.
    pub fn read(path: &Path) -> Result<Scheduler> {
        Self::from_config(&Config::read(path)?, None)
    }

    /// Reads `scheduler_config.json` as `class`, whatever its own class is.
    pub fn read_as(path: &Path, class: Class) -> Result<Scheduler> {
        Self::from_config(&Config::read(path)?, Some(class))
    }

    /// Takes every field of `config` and finishes it. With a `class` that is not the configuration's own, what both know is kept
    /// (betas, prediction type, spacing ...), what only others know is left aside, and the rest has the class's defaults: diffusers'
    /// `from_config`.
    pub fn from_config(config: &Config, class: Option<Class>) -> Result<Scheduler> {
        let own = CLASSES.map(|(class, _, name)| (name, class));
        let class = match class {
            Some(class) if config.text("_class_name", None)? != class.diffusers_name() => {
                config.ignore(FIELDS_OF_OTHERS);
                class
            }
            _ => config.choice("_class_name", None, &own)?,
        };
        let alphas_cumprod = betas::read(config, &class.defaults())?;
        let spacings = [("leading", Spacing::Leading), ("trailing", Spacing::Trailing), ("linspace", Spacing::Linspace)];
        let scheduler = Scheduler {
            class,
            final_alpha_cumprod: final_alpha_cumprod(config, class, alphas_cumprod[0])?,
            prediction_type: prediction_type(config, class)?,
            spacing: config.choice("timestep_spacing", Some(class.spacing()), &spacings)?,
            steps_offset: config.integer("steps_offset", 0, 0..=alphas_cumprod.len() - 1)?,
            limit: limit(config, class)?,
            solver: solver(config, class)?,
            alphas_cumprod,
        };
        config.finish()?;
        Ok(scheduler)
    }

    /// Length of the training schedule.
    pub fn num_train_timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// Fails where alpha_bar leaves no signal from which x_0 could be told.
    pub(crate) fn check_signal(&self, alpha: f64) -> Result<()> {
        if alpha == 0.0 && self.prediction_type == PredictionType::Epsilon {
            let fact = "zero terminal SNR leaves no signal at the first timestep, expected v_prediction or sample with it";
            return Err(Error::new(Kind::Config, "prediction_type", fact));
        }
        Ok(())
    }
}

fn prediction_type(config: &Config, class: Class) -> Result<PredictionType> {
    let all = [("epsilon", PredictionType::Epsilon), ("v_prediction", PredictionType::V), ("sample", PredictionType::Sample)];
    config.choice("prediction_type", Some(PredictionType::Epsilon), if class == Class::Pndm { &all[..2] } else { &all })
}

fn final_alpha_cumprod(config: &Config, class: Class, first: f32) -> Result<f32> {
    let to_one = match class {
        Class::Ddim | Class::Lcm => config.flag("set_alpha_to_one", true)?,
        Class::Pndm => config.flag("set_alpha_to_one", false)?,
        _ => true,
    };
    Ok(if to_one { 1.0 } else { first })
}

fn solver(config: &Config, class: Class) -> Result<Solver> {
    match class {
        // A PNDM field that Stable Diffusion's DDIM configurations carry along; DDIM has no such steps.
        Class::Ddim => config.ignore(&["skip_prk_steps"]),
        // Absent it is false for diffusers' class, but its inpainting pipeline sets it.
        Class::Pndm if !config.flag("skip_prk_steps", true)? => {
            return Err(config.error("skip_prk_steps", "false, expected true: the Runge-Kutta steps are not built"));
        }
        _ => {}
    }
    Ok(match class {
        Class::Ddim => Solver::Ddim,
        Class::Ddpm => Solver::Ddpm(Variance::from_config(config)?),
        Class::DpmSolver => Solver::DpmSolver(DpmSolver::from_config(config)?),
        Class::UniPc => Solver::UniPc(UniPc::from_config(config)?),
        Class::Euler => Solver::Euler(Euler::from_config(config)?),
        Class::Lcm => Solver::Lcm(Lcm::from_config(config)?),
        Class::Pndm => Solver::Pndm,
    })
}

fn limit(config: &Config, class: Class) -> Result<Limit> {
    if matches!(class, Class::Euler | Class::Pndm) {
        return Ok(Limit::Free);
    }
    let ratio = config.number("dynamic_thresholding_ratio", 0.995, 0.0..=1.0)? as f32;
    let max = config.number("sample_max_value", 1.0, 1.0..=1e6)? as f32;
    let threshold = config.flag("thresholding", false)?;
    if threshold && class != Class::Ddim {
        let fact = format!("true, expected false: dynamic thresholding is built for DDIMScheduler, not for {}", class.diffusers_name());
        return Err(config.error("thresholding", fact));
    }
    if matches!(class, Class::DpmSolver | Class::UniPc) {
        return Ok(Limit::Free);
    }
    let range = config.number("clip_sample_range", 1.0, 1e-6..=1e6)? as f32;
    let clip = config.flag("clip_sample", class != Class::Lcm)?;
    Ok(match (threshold, clip) {
        (true, _) => Limit::Threshold { ratio, max },
        (false, true) => Limit::Clip { range },
        (false, false) => Limit::Free,
    })
}

/// Fails where one of the flags `fields` is set, which nothing here does.
pub(crate) fn refuse(config: &Config, fields: &[&str]) -> Result<()> {
    fields.iter().try_for_each(|field| if flag(config, field)? { Err(config.error(field, "true, expected false: this is not built")) } else { Ok(()) })
}

/// A flag that may be `null`, which is false.
pub(crate) fn flag(config: &Config, field: &str) -> Result<bool> {
    if config.value(field).is_none() { Ok(false) } else { config.flag(field, false) }
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
        Scheduler::from_config(&Config::parse(&format!("{{\"_class_name\": \"DDIMScheduler\"{fields}}}"), "scheduler_config.json").unwrap(), None)
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
        parse(r#", "skip_prk_steps": true, "_diffusers_version": "0.8.0", "trained_betas": null"#).unwrap();
    }

    fn of(class: &str, fields: &str, read_as: Option<Class>) -> Result<Scheduler> {
        Scheduler::from_config(&Config::parse(&format!("{{\"_class_name\": \"{class}\"{fields}}}"), "s").unwrap(), read_as)
    }

    #[test]
    fn every_class_is_read_and_names_what_it_lacks() {
        for (class, name, diffusers_name) in CLASSES {
            let scheduler = of(diffusers_name, "", None).unwrap();
            assert_eq!((scheduler.class, class.name(), class.diffusers_name(), Class::parse("f", name).unwrap()), (class, name, diffusers_name, class));
            let error = of(diffusers_name, r#", "eta": 1"#, None).unwrap_err().to_string();
            assert!(error.starts_with("s: unknown or unsupported field `eta`"), "{error}");
        }
        let rows = [
            ("HeunDiscreteScheduler", "", "s: _class_name: \"HeunDiscreteScheduler\", expected one of \"DDIMScheduler\", \"DDPMScheduler\""),
            ("DDPMScheduler", r#", "variance_type": "learned_range""#, "s: variance_type: \"learned_range\", expected one of \"fixed_small\""),
            (
                "DDPMScheduler",
                r#", "thresholding": true"#,
                "s: thresholding: true, expected false: dynamic thresholding is built for DDIMScheduler, not for DDPM",
            ),
            ("DDPMScheduler", r#", "beta_schedule": "sigmoid""#, "s: beta_schedule: \"sigmoid\""),
            (
                "DPMSolverMultistepScheduler",
                r#", "algorithm_type": "sde-dpmsolver++""#,
                "s: algorithm_type: \"sde-dpmsolver++\", expected one of \"dpmsolver++\"",
            ),
            ("DPMSolverMultistepScheduler", r#", "solver_order": 4"#, "s: solver_order: 4"),
            ("DPMSolverMultistepScheduler", r#", "use_lu_lambdas": true"#, "s: use_lu_lambdas: true, expected false: this is not built"),
            ("DPMSolverMultistepScheduler", r#", "prediction_type": "flow_prediction""#, "s: prediction_type: \"flow_prediction\""),
            ("DPMSolverMultistepScheduler", r#", "use_karras_sigmas": true, "use_exponential_sigmas": true"#, "s: use_exponential_sigmas: true beside"),
            ("DPMSolverMultistepScheduler", r#", "variance_type": "learned""#, "s: variance_type: \"learned\""),
            ("UniPCMultistepScheduler", r#", "solver_type": "bh3""#, "s: solver_type: \"bh3\""),
            ("UniPCMultistepScheduler", r#", "disable_corrector": [-1]"#, "s: disable_corrector: expected a list of steps"),
            ("UniPCMultistepScheduler", r#", "use_flow_sigmas": true"#, "s: use_flow_sigmas: true"),
            ("EulerDiscreteScheduler", r#", "timestep_type": "continuous""#, "s: timestep_type: \"continuous\", expected \"discrete\""),
            ("EulerDiscreteScheduler", r#", "use_beta_sigmas": true"#, "s: use_beta_sigmas: true"),
            ("EulerDiscreteScheduler", r#", "final_sigmas_type": "none""#, "s: final_sigmas_type: \"none\""),
            ("PNDMScheduler", r#", "skip_prk_steps": false"#, "s: skip_prk_steps: false, expected true"),
            ("PNDMScheduler", r#", "prediction_type": "sample""#, "s: prediction_type: \"sample\", expected one of \"epsilon\", \"v_prediction\""),
            ("PNDMScheduler", r#", "rescale_betas_zero_snr": true"#, "s: rescale_betas_zero_snr: true"),
        ];
        for (class, fields, want) in rows {
            let error = of(class, fields, None).unwrap_err();
            assert!(error.to_string().starts_with(want) && error.kind() == Kind::Config, "{error}");
        }
        let error = Class::parse("--scheduler", "heun").unwrap_err();
        assert_eq!(error.to_string(), "--scheduler: heun, expected one of ddim, ddpm, dpmpp-2m, unipc, euler, lcm, pndm");
    }

    /// The defaults file of diffusers writes an infinity that JSON does not have.
    #[test]
    fn the_infinity_of_a_dpm_solver_is_read() {
        let s = of("DPMSolverMultistepScheduler", r#", "lambda_min_clipped": -Infinity, "trained_betas": null"#, None).unwrap();
        assert!(matches!(s.solver, Solver::DpmSolver(DpmSolver { lambda_min: f64::NEG_INFINITY, order: 2, .. })));
    }

    #[test]
    fn another_class_keeps_the_betas_and_the_prediction() {
        let fields = r#", "beta_start": 0.001, "prediction_type": "v_prediction", "steps_offset": 1, "clip_sample": false, "set_alpha_to_one": false,
            "rescale_betas_zero_snr": true"#;
        let own = of("DDIMScheduler", fields, None).unwrap();
        let euler = of("DDIMScheduler", fields, Some(Class::Euler)).unwrap();
        assert_eq!((euler.prediction_type, euler.steps_offset, euler.limit), (PredictionType::V, 1, Limit::Free));
        assert_eq!((own.spacing, euler.spacing), (Spacing::Leading, Spacing::Linspace));
        assert_eq!(own.alphas_cumprod[..999], euler.alphas_cumprod[..999]);
        assert_eq!((own.alphas_cumprod[999], euler.alphas_cumprod[999]), (0.0, 2f32.powi(-24)));
        assert_eq!(of("DDIMScheduler", fields, Some(Class::Ddim)).unwrap(), own);
        // A class that is not supported can still be read as one that is.
        assert!(of("HeunDiscreteScheduler", "", Some(Class::Euler)).is_ok());
        let strict = of("DDIMScheduler", r#", "clip_sampel": true"#, Some(Class::Euler)).unwrap_err();
        assert!(strict.to_string().contains("`clip_sampel`"), "{strict}");
    }

    #[test]
    fn zero_terminal_snr_ends_in_zero_and_keeps_its_first_value() {
        let (plain, rescaled) = (parse("").unwrap(), parse(r#", "rescale_betas_zero_snr": true"#).unwrap());
        assert_eq!(rescaled.alphas_cumprod[999], 0.0);
        assert!((rescaled.alphas_cumprod[0] / plain.alphas_cumprod[0] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn ranges_refuse_nan() {
        assert!(check_range("--eta", f64::NAN, 0.0, 1.0).is_err());
        assert_eq!(check_range("--eta", 2.0, 0.0, 1.0).unwrap_err().to_string(), "--eta: 2, expected 0 to 1");
    }
}
