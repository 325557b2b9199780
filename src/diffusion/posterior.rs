//! The latents of an image where its encoder gives a Gaussian of them: `AutoencoderKL`'s.
//! Source: diffusers `DiagonalGaussianDistribution`; Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), eq. 10.

use serde::{Deserialize, Serialize};

use crate::base::{Array, Error, Kind, Result};

/// What `--posterior` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Posterior {
    /// The mean; the latents of encoders that give nothing else.
    #[default]
    Mode,
    /// mean + deviation noise, with noise of its own for each sample.
    Sample,
}

impl Posterior {
    /// `mode` or `sample`.
    pub fn parse(name: &str) -> Result<Posterior> {
        match name {
            "mode" => Ok(Posterior::Mode),
            "sample" => Ok(Posterior::Sample),
            _ => Err(Error::new(Kind::Usage, "--posterior", format!("{name}, expected mode or sample"))),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Posterior::Mode => "mode",
            Posterior::Sample => "sample",
        }
    }
}

/// mean + e^(logvar / 2) noise, all of one shape.
pub fn sample(mean: &Array, logvar: &Array, noise: &Array) -> Result<Array> {
    if mean.shape != logvar.shape || mean.shape != noise.shape {
        return Err(Error::new(Kind::Shape, "posterior", format!("mean {}, logvar {}, noise {}, expected one shape", mean.shape, logvar.shape, noise.shape)));
    }
    let one = |((mean, logvar), noise): ((&f32, &f32), &f32)| mean + (0.5 * logvar).exp() * noise;
    Ok(Array { shape: mean.shape.clone(), data: mean.data.iter().zip(&logvar.data).zip(&noise.data).map(one).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng;

    #[test]
    fn names_are_read_as_they_are_written() {
        for posterior in [Posterior::Mode, Posterior::Sample] {
            assert_eq!(Posterior::parse(posterior.name()).unwrap(), posterior);
        }
        assert_eq!(Posterior::parse("mean").unwrap_err().to_string(), "--posterior: mean, expected mode or sample");
    }

    #[test]
    fn samples_have_the_gaussians_moments() {
        // The third value's variance is that of the lower clamp: it stays at its mean.
        let n = 100_000;
        let [mean, logvar] = [[-1.5f32, 0.25, 3.0], [0.0, -2.0, -30.0]];
        let repeat = |values: [f32; 3]| Array::new(&[n, 3], values.iter().copied().cycle().take(3 * n).collect()).unwrap();
        let noise = Array::new(&[n, 3], rng::normal(3, 4, rng::POSTERIOR_NOISE, 3 * n)).unwrap();
        let latents = sample(&repeat(mean), &repeat(logvar), &noise).unwrap();
        for c in 0..3 {
            let values: Vec<f64> = latents.data.iter().skip(c).step_by(3).map(|&v| f64::from(v)).collect();
            let deviation = (f64::from(logvar[c]) / 2.0).exp();
            let found = values.iter().sum::<f64>() / n as f64;
            let variance = values.iter().map(|v| (v - found).powi(2)).sum::<f64>() / n as f64;
            // Standard errors are deviation / sqrt(n) and deviation / sqrt(2 n); five of each.
            let error = 5.0 * deviation / (n as f64).sqrt() + 1e-6;
            assert!((found - f64::from(mean[c])).abs() < error && (variance.sqrt() - deviation).abs() < error, "{c}: {found}, {variance}");
        }
    }

    #[test]
    fn shapes_must_agree() {
        let [a, b] = [[1, 2], [2, 1]].map(|shape| Array::zeros(&shape));
        assert!(sample(&a, &a, &b).is_err() && sample(&a, &b, &a).is_err());
        assert_eq!(sample(&a, &a, &Array::new(&[1, 2], vec![1.0, -2.0]).unwrap()).unwrap().data, [1.0, -2.0]);
    }
}
