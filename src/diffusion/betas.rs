//! The noise of training: alphas_cumprod from the fields that every scheduler of diffusers has, with torch's roundings.
//!
//! | symbol | here |
//! |---|---|
//! | beta_t | variance added at training timestep t |
//! | alpha_bar_t | `alphas_cumprod[t]` = prod_(s <= t) (1 - beta_s); the DDIM paper writes it alpha_t |
//!
//! Cosine: Nichol and Dhariwal 2021, eq. 17. Zero terminal SNR: Lin et al. 2023 (arXiv 2305.08891), algorithm 1.

use crate::base::Result;
use crate::weights::Config;

/// Longest training schedule that a configuration may ask for.
const MAX_TRAIN_TIMESTEPS: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BetaSchedule {
    Linear,
    ScaledLinear,
    SquaredCosine,
}

/// What a scheduler class does where the configuration says nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    pub start: f64,
    pub end: f64,
    pub scaled: bool,
    /// Whether the class has `rescale_betas_zero_snr`, and what it takes for alpha_bar of the last timestep then; None: 0.
    pub zero_snr: Option<Option<f32>>,
}

/// alpha_bar_t of every training timestep.
pub(crate) fn read(config: &Config, defaults: &Defaults) -> Result<Vec<f32>> {
    let timesteps = config.integer("num_train_timesteps", 1000, 1..=MAX_TRAIN_TIMESTEPS)?;
    let betas = betas(config, timesteps, defaults)?;
    if !config.has("rescale_betas_zero_snr") || !config.flag("rescale_betas_zero_snr", false)? {
        return Ok(alphas_cumprod(&betas));
    }
    let Some(last) = defaults.zero_snr else { return Err(config.error("rescale_betas_zero_snr", "true, which this scheduler does not know")) };
    let mut alphas = alphas_cumprod(&rescale_zero_terminal_snr(&betas));
    if let (Some(value), Some(alpha)) = (last, alphas.last_mut()) {
        *alpha = value;
    }
    Ok(alphas)
}

fn betas(config: &Config, timesteps: usize, defaults: &Defaults) -> Result<Vec<f32>> {
    let (start, end) = (config.number("beta_start", defaults.start, 0.0..=1.0)?, config.number("beta_end", defaults.end, 0.0..=1.0)?);
    let schedules = [("linear", BetaSchedule::Linear), ("scaled_linear", BetaSchedule::ScaledLinear), ("squaredcos_cap_v2", BetaSchedule::SquaredCosine)];
    let schedule = config.choice("beta_schedule", Some(if defaults.scaled { BetaSchedule::ScaledLinear } else { BetaSchedule::Linear }), &schedules)?;
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
pub(crate) fn linspace(start: f64, end: f64, count: usize) -> Vec<f32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linspace_meets_both_ends() {
        let v = linspace(0.1, 0.7, 7);
        assert_eq!((v[0], v[6]), (0.1, 0.7));
        assert!((v[3] - 0.4).abs() < 1e-7);
        assert_eq!(linspace(0.5, 0.7, 1), [0.5]);
    }
}
