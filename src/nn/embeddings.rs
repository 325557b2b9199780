//! Embeddings of class labels and timesteps, as diffusers has them (`diffusers/models/embeddings.py`).

use std::f64::consts::PI;

use crate::base::{Array, Result, Shape};
use crate::nn::Linear;
use crate::ops::activation::Function;
use crate::plan::{Layout, Tape, Tensor, Weight};
use crate::weights::Scope;

/// Longest period of a positional embedding, in timesteps.
const MAX_PERIOD: f64 = 10_000.0;

/// Rows of a table: torch.nn.Embedding.
pub struct Embedding {
    name: String,
    /// `[V, D]`.
    pub weight: Weight,
}

impl Embedding {
    pub fn load(scope: &Scope, rows: usize, width: usize) -> Embedding {
        Embedding { name: scope.name().to_string(), weight: scope.weight("weight", &[rows, width], Layout::Plain) }
    }

    /// index: u32 `[N]`, below V; result `[N, D]`.
    pub fn forward(&self, t: &mut Tape, index: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let weight = t.weight(&self.weight);
            t.embedding(weight, index)
        })
    }
}

/// Timesteps as sines and cosines of their multiples.
pub struct TimestepProjection {
    name: String,
    /// `[F]`, radians per timestep (or per unit of its logarithm).
    frequencies: Weight,
    sin_first: bool,
    /// Width of the result: 2 F, or one zero more.
    pub width: usize,
    log: bool,
}

impl TimestepProjection {
    /// diffusers `Timesteps`: f_i = 10000^(-i / (F - freq_shift)), F = width / 2. The formula divides by F - freq_shift:
    /// None when that is zero, or F.
    /// Source: Ho et al., "Denoising Diffusion Probabilistic Models" (2020), whose code has freq_shift 1.
    pub fn positional(name: &str, width: usize, flip_sin_to_cos: bool, freq_shift: f64) -> Option<TimestepProjection> {
        let half = width / 2;
        let divisor = half as f64 - freq_shift;
        if divisor == 0.0 || half == 0 {
            return None;
        }
        let values: Vec<f32> = (0..half).map(|i| (-MAX_PERIOD.ln() * i as f64 / divisor).exp() as f32).collect();
        let frequencies = Weight::new(&format!("{name}.frequencies"), Array { shape: Shape::new(&[half]), data: values });
        Some(TimestepProjection { name: name.to_string(), frequencies, sin_first: !flip_sin_to_cos, width, log: false })
    }

    /// diffusers `GaussianFourierProjection`: sin and cos of 2 pi t weight, or of 2 pi log(t) weight; `weight` `[F]` from the
    /// checkpoint.
    /// Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2021), appendix C.
    pub fn fourier(scope: &Scope, frequencies: usize, log: bool, flip_sin_to_cos: bool) -> TimestepProjection {
        let weight = scope.weight("weight", &[frequencies], Layout::Plain);
        let data = weight.array.values().iter().map(|&w| (2.0 * PI * f64::from(w)) as f32).collect();
        let scaled = Weight::new(&weight.name, Array { shape: weight.array.shape.clone(), data });
        TimestepProjection { name: scope.name().to_string(), frequencies: scaled, sin_first: !flip_sin_to_cos, width: 2 * frequencies, log }
    }

    /// timesteps: f32 `[N]`; result `[N, width]`.
    pub fn forward(&self, t: &mut Tape, timesteps: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let frequencies = t.weight(&self.frequencies);
            t.timestep_embedding(timesteps, frequencies, self.sin_first, self.width, self.log)
        })
    }
}

/// post_act(linear_2(act(linear_1(x + cond_proj(condition))))).
pub struct TimestepEmbedding {
    name: String,
    /// Of a distilled guidance scale.
    cond_proj: Option<Linear>,
    linear_1: Linear,
    act: Function,
    linear_2: Linear,
    post_act: Option<Function>,
}

impl TimestepEmbedding {
    /// With SiLU between the two, and nothing else.
    pub fn load(scope: &Scope, inputs: usize, width: usize) -> TimestepEmbedding {
        let linear_1 = Linear::load(&scope.child("linear_1"), inputs, width);
        let linear_2 = Linear::load(&scope.child("linear_2"), width, width);
        TimestepEmbedding { name: scope.name().to_string(), cond_proj: None, linear_1, act: Function::Silu, linear_2, post_act: None }
    }

    /// The same with other activations.
    pub fn with_acts(self, act: Function, post_act: Option<Function>) -> TimestepEmbedding {
        TimestepEmbedding { act, post_act, ..self }
    }

    /// The same with `cond_proj`, which takes `width` numbers to this embedding's `inputs`.
    pub fn with_condition(self, scope: &Scope, width: usize, inputs: usize) -> TimestepEmbedding {
        TimestepEmbedding { cond_proj: Some(Linear::without_bias(&scope.child("cond_proj"), width, inputs)), ..self }
    }

    /// x: `[N, I]`; result `[N, width]`.
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        self.conditioned(t, x, None)
    }

    /// x: `[N, I]`; condition: `[N, width of the condition]`, or nothing added; result `[N, width]`.
    pub fn conditioned(&self, t: &mut Tape, x: Tensor, condition: Option<Tensor>) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let x = match (&self.cond_proj, condition) {
                (Some(projection), Some(condition)) => {
                    let condition = projection.forward(t, condition)?;
                    t.add(x, condition)?
                }
                _ => x,
            };
            let h = self.linear_1.forward(t, x)?;
            let h = t.scope("act", |t| t.activation(h, self.act))?;
            let h = self.linear_2.forward(t, h)?;
            match self.post_act {
                Some(act) => t.activation(h, act),
                None => Ok(h),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positional_frequencies_fall_from_one_to_a_period_of_ten_thousand() {
        let p = TimestepProjection::positional("time_proj", 8, true, 1.0).unwrap();
        let f = &p.frequencies.array.values();
        assert_eq!((f.len(), f[0]), (4, 1.0));
        assert!((f[3] - 1e-4).abs() < 1e-10, "{f:?}");
        assert!(TimestepProjection::positional("time_proj", 2, true, 1.0).is_none());
    }
}
