//! DDIM: Song, Meng, Ermon, "Denoising Diffusion Implicit Models" (ICLR 2021, arXiv 2010.02502), as diffusers'
//! `DDIMScheduler` walks it.
//!
//! | symbol | here |
//! |---|---|
//! | t | timestep, 0..num_train_timesteps of training |
//! | k | step, index in the schedule, 0 is the noisiest |
//! | alpha_bar_t | alphas_cumprod at t (the paper writes alpha_t) |
//! | alpha_bar_prev | alphas_cumprod at t - num_train_timesteps / steps, or the scheduler's final value below 0 |
//! | x_t, x_0 | latents at t, predicted clean latents |
//! | epsilon | predicted noise |
//! | eta | 0: deterministic (DDIM), 1: ancestral (DDPM) |
//!
//! - eq. 4: q(x_t | x_0): x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise
//! - eq. 9: x_0 = (x_t - sqrt(1 - alpha_bar_t) epsilon) / sqrt(alpha_bar_t)
//! - eq. 12: x_prev = sqrt(alpha_bar_prev) x_0 + sqrt(1 - alpha_bar_prev - sigma^2) epsilon + sigma noise
//! - eq. 16: sigma = eta sqrt((1 - alpha_bar_prev) / (1 - alpha_bar_t)) sqrt(1 - alpha_bar_t / alpha_bar_prev)

use crate::base::{Error, Kind, Result};
use crate::diffusion::schedule::{Schedule, Walk};
use crate::diffusion::scheduler::{Limit, Scheduler};
use crate::diffusion::timesteps::spaced;
use crate::ops::ddim_step::{Coefficients, PredictionType};

/// One step's numbers before they are rounded to the columns of [`Coefficients`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    pub alpha: f64,
    pub alpha_prev: f64,
    pub sigma: f64,
    /// sqrt(1 - alpha_bar_prev - sigma^2), which points to x_t.
    pub direction: f64,
    /// alpha_bar at which the known region is imposed after the step: of the next timestep, 1 after the last.
    pub alpha_known: f64,
}

/// The schedule of `walk` in the numbers of the op `ddim_step`.
pub(crate) fn schedule(scheduler: &Scheduler, walk: &Walk) -> Result<Schedule> {
    let (timesteps, rows) = exact(scheduler, walk)?;
    let first = f64::from(scheduler.alphas_cumprod[timesteps[0]]);
    Ok(Schedule {
        timesteps: timesteps.iter().map(|&t| t as f32).collect(),
        input_scales: vec![1.0; rows.len()],
        rows: rows.iter().map(|row| bytemuck::cast_slice(&[row.rounded()]).to_vec()).collect(),
        takes_noise: rows.iter().map(|row| row.sigma != 0.0).collect(),
        start: if walk.strength < 1.0 { (first.sqrt() as f32, (1.0 - first).sqrt() as f32) } else { (0.0, 1.0) },
    })
}

impl Row {
    fn rounded(&self) -> Coefficients {
        Coefficients {
            sqrt_alpha: self.alpha.sqrt() as f32,
            sqrt_one_minus_alpha: (1.0 - self.alpha).sqrt() as f32,
            sqrt_alpha_prev: self.alpha_prev.sqrt() as f32,
            direction: self.direction as f32,
            sigma: self.sigma as f32,
            known_sqrt_alpha: self.alpha_known.sqrt() as f32,
            known_sqrt_one_minus_alpha: (1.0 - self.alpha_known).sqrt() as f32,
            threshold: 1.0,
        }
    }
}

/// Timesteps and rows of the steps that are taken, in f64.
pub fn exact(scheduler: &Scheduler, walk: &Walk) -> Result<(Vec<usize>, Vec<Row>)> {
    let all = spaced(scheduler, walk.steps)?;
    let taken = &all[walk.skipped()?..];
    let rows = (0..taken.len()).map(|k| row(scheduler, walk, taken[k], taken.get(k + 1).copied())).collect::<Result<_>>()?;
    Ok((taken.to_vec(), rows))
}

fn row(scheduler: &Scheduler, walk: &Walk, timestep: usize, next: Option<usize>) -> Result<Row> {
    let alpha_bar = |t: usize| f64::from(scheduler.alphas_cumprod[t]);
    let previous = timestep.checked_sub(scheduler.num_train_timesteps() / walk.steps);
    let (alpha, alpha_prev) = (alpha_bar(timestep), previous.map_or(f64::from(scheduler.final_alpha_cumprod), alpha_bar));
    scheduler.check_signal(alpha)?;
    let variance = (1.0 - alpha_prev) / (1.0 - alpha) * (1.0 - alpha / alpha_prev);
    let sigma = walk.eta * variance.sqrt();
    // At eta = 1 rounding may leave a difference of -1e-17.
    let direction = (1.0 - alpha_prev - sigma * sigma).max(0.0).sqrt();
    let row = Row { alpha, alpha_prev, sigma, direction, alpha_known: next.map_or(1.0, alpha_bar) };
    if [row.sigma, row.direction].iter().all(|v| v.is_finite()) {
        return Ok(row);
    }
    Err(Error::new(Kind::Config, "scheduler", format!("the step from timestep {timestep} is not finite: alpha_bar {alpha} to {alpha_prev}")))
}

/// One step on the host in f64: the readable form of the `ddim_step` op, without guidance and known region.
/// Returns (x_0, x_prev). `items` samples stand one after another in `x`; dynamic thresholding looks at each alone.
pub fn step(scheduler: &Scheduler, row: &Row, model_output: &[f64], x: &[f64], variance_noise: Option<&[f64]>, items: usize) -> (Vec<f64>, Vec<f64>) {
    let (a, b) = (row.alpha.sqrt(), (1.0 - row.alpha).sqrt());
    let predict = |(&out, &x): (&f64, &f64)| match scheduler.prediction_type {
        PredictionType::Epsilon => ((x - b * out) / a, out),
        PredictionType::V => (a * x - b * out, a * out + b * x),
        PredictionType::Sample => (out, (x - a * out) / b),
    };
    let (mut x0, epsilon): (Vec<f64>, Vec<f64>) = model_output.iter().zip(x).map(predict).unzip();
    match scheduler.limit {
        Limit::Free => {}
        Limit::Clip { range } => x0.iter_mut().for_each(|v| *v = v.clamp(-f64::from(range), f64::from(range))),
        Limit::Threshold { ratio, max } => {
            let item = (x0.len() / items.max(1)).max(1);
            x0.chunks_mut(item).for_each(|sample| threshold(sample, f64::from(ratio), f64::from(max)));
        }
    }
    let noise = |i: usize| variance_noise.map_or(0.0, |noise| row.sigma * noise[i]);
    let prev = (0..x.len()).map(|i| row.alpha_prev.sqrt() * x0[i] + row.direction * epsilon[i] + noise(i)).collect();
    (x0, prev)
}

/// Dynamic thresholding of one sample; the quantile interpolates linearly between order statistics, as torch.quantile does.
fn threshold(sample: &mut [f64], ratio: f64, max: f64) {
    let mut sizes: Vec<f64> = sample.iter().map(|v| v.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let Some(last) = sizes.len().checked_sub(1) else { return };
    let position = ratio * last as f64;
    let below = position.floor() as usize;
    let quantile = sizes[below] + position.fract() * (sizes[(below + 1).min(last)] - sizes[below]);
    let s = quantile.clamp(1.0, max);
    sample.iter_mut().for_each(|v| *v = v.clamp(-s, s) / s);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng;
    use crate::weights::Config;
    use serde_json::Value;

    fn scheduler(fields: &str) -> Scheduler {
        let text = format!("{{\"_class_name\": \"DDIMScheduler\", \"clip_sample\": false{fields}}}");
        Scheduler::from_config(&Config::parse(&text, "scheduler_config.json").unwrap(), None).unwrap()
    }

    fn walk(steps: usize) -> Walk {
        Walk { steps, eta: 0.0, strength: 1.0 }
    }

    fn numbers(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    /// Every trajectory that diffusers recorded: tables and each step within 1e-6 relative.
    #[test]
    fn trajectories_of_diffusers() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/schedulers/ddim.json")).unwrap();
        let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert!(cases.len() >= 20);
        for case in &cases {
            let name = case["name"].as_str().unwrap();
            let scheduler = Scheduler::from_config(&Config::parse(&case["config"].to_string(), name).unwrap(), None).unwrap();
            for (t, want) in case["alphas_cumprod"].as_object().unwrap() {
                let (got, want) = (f64::from(scheduler.alphas_cumprod[t.parse::<usize>().unwrap()]), want.as_f64().unwrap());
                assert!((got - want).abs() <= 1e-6 * want, "{name}: alphas_cumprod[{t}] {got}, expected {want}");
            }
            let final_alpha = case["final_alpha_cumprod"].as_f64().unwrap();
            assert!((f64::from(scheduler.final_alpha_cumprod) - final_alpha).abs() <= 1e-6 * final_alpha, "{name}");
            let walk = Walk { steps: case["num_inference_steps"].as_u64().unwrap() as usize, eta: case["eta"].as_f64().unwrap(), strength: 1.0 };
            let (timesteps, rows) = exact(&scheduler, &walk).unwrap();
            let want: Vec<usize> = numbers(&case["timesteps"]).iter().map(|&t| t as usize).collect();
            assert_eq!(timesteps, want, "{name}");
            check_trajectory(name, case, &scheduler, &rows);
        }
    }

    fn check_trajectory(name: &str, case: &Value, scheduler: &Scheduler, rows: &[Row]) {
        let items = case["shape"][0].as_u64().unwrap() as usize;
        let mut x = numbers(&case["init_noise"]);
        for (k, row) in rows.iter().enumerate() {
            let noise = numbers(&case["variance_noise"][k]);
            let (x0, prev) = step(scheduler, row, &numbers(&case["model_output"][k]), &x, Some(&noise), items);
            for (what, got, want) in [("pred_original_sample", &x0, &case["pred_original_sample"][k]), ("prev_sample", &prev, &case["prev_sample"][k])] {
                let want = numbers(want);
                let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs() / w.abs().max(1.0)).fold(0.0, f64::max);
                assert!(got.len() == want.len() && worst <= 1e-6, "{name} step {k}: {what} differs by {worst:e}");
            }
            x = numbers(&case["prev_sample"][k]);
        }
    }

    /// Law: where the model tells the true noise, every walk without variance noise ends at x_0.
    #[test]
    fn true_epsilon_returns_x0() {
        for fields in ["", r#", "beta_schedule": "scaled_linear""#, r#", "timestep_spacing": "trailing""#, r#", "prediction_type": "v_prediction""#] {
            let scheduler = scheduler(fields);
            let x0: Vec<f64> = rng::normal(1, 2, 3, 8).into_iter().map(f64::from).collect();
            let noise: Vec<f64> = rng::normal(4, 5, 6, 8).into_iter().map(f64::from).collect();
            let (_, rows) = exact(&scheduler, &walk(10)).unwrap();
            let mix = |a: f64, sign: f64| -> Vec<f64> { (0..8).map(|i| a.sqrt() * x0[i] + sign * (1.0 - a).sqrt() * noise[i]).collect() };
            let mut x = mix(rows[0].alpha, 1.0);
            for row in &rows {
                let output: Vec<f64> = match scheduler.prediction_type {
                    PredictionType::V => (0..8).map(|i| row.alpha.sqrt() * noise[i] - (1.0 - row.alpha).sqrt() * x0[i]).collect(),
                    _ => noise.clone(),
                };
                x = step(&scheduler, row, &output, &x, None, 1).1;
            }
            assert!(x.iter().zip(&x0).all(|(a, b)| (a - b).abs() < 1e-9), "{fields}: {x:?} {x0:?}");
        }
    }

    #[test]
    fn strength_takes_the_last_steps() {
        let scheduler = scheduler(r#", "steps_offset": 1"#);
        let whole = Schedule::new(&scheduler, &walk(15)).unwrap();
        let part = Schedule::new(&scheduler, &Walk { strength: 0.6, ..walk(15) }).unwrap();
        assert_eq!(part.timesteps, whole.timesteps[6..]);
        assert_eq!(part.rows, whole.rows[6..]);
        assert_eq!(whole.start, (0.0, 1.0));
        assert_eq!(part.start, (part.rows[0][0], part.rows[0][1]), "sqrt_alpha and sqrt_one_minus_alpha");
        let error = Schedule::new(&scheduler, &Walk { strength: 0.01, ..walk(15) }).unwrap_err();
        assert!(error.to_string().starts_with("--strength: 0.01 of 15 steps is less than one step"), "{error}");
    }

    /// The known region is imposed at the next timestep of the schedule, which for uneven spacings is not t - T/n.
    #[test]
    fn known_region_follows_the_schedule() {
        let scheduler = scheduler(r#", "timestep_spacing": "linspace", "set_alpha_to_one": false"#);
        let schedule = Schedule::new(&scheduler, &walk(6)).unwrap();
        let row = |k: usize| bytemuck::cast_slice::<f32, Coefficients>(&schedule.rows[k])[0];
        for k in 0..5 {
            let want = f64::from(scheduler.alphas_cumprod[schedule.timesteps[k + 1] as usize]).sqrt() as f32;
            assert_eq!(row(k).known_sqrt_alpha, want);
        }
        assert_eq!((row(5).known_sqrt_alpha, row(5).known_sqrt_one_minus_alpha), (1.0, 0.0));
        assert_ne!(row(5).sqrt_alpha_prev, 1.0, "set_alpha_to_one is false");
    }

    #[test]
    fn impossible_walks_are_named() {
        let plain = scheduler("");
        let zero_snr = scheduler(r#", "rescale_betas_zero_snr": true, "timestep_spacing": "trailing""#);
        let rows = [
            (Schedule::new(&plain, &walk(0)), "--steps: 0, expected 1 to 1000"),
            (Schedule::new(&plain, &walk(1001)), "--steps: 1001"),
            (Schedule::new(&plain, &Walk { eta: 1.5, ..walk(5) }), "--eta: 1.5, expected 0 to 1"),
            (Schedule::new(&plain, &Walk { eta: f64::NAN, ..walk(5) }), "--eta: NaN"),
            (Schedule::new(&plain, &Walk { strength: 0.0, ..walk(5) }), "--strength: 0"),
            (Schedule::new(&scheduler(r#", "steps_offset": 1"#), &walk(1000)), "--steps: 1000 steps reach timestep 1000"),
            (Schedule::new(&zero_snr, &walk(5)), "prediction_type: zero terminal SNR"),
        ];
        for (result, want) in rows {
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }

    /// All counts give that many distinct timesteps, also those where diffusers' trailing range has one too many.
    #[test]
    fn every_count_has_its_timesteps() {
        for spacing in ["leading", "trailing", "linspace"] {
            let scheduler = scheduler(&format!(", \"timestep_spacing\": \"{spacing}\""));
            for steps in 1..=1000 {
                let t = spaced(&scheduler, steps).unwrap();
                assert_eq!(t.len(), steps);
                assert!(t.windows(2).all(|w| w[0] > w[1]), "{spacing} {steps}: {t:?}");
            }
        }
    }
}
