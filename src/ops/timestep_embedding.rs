//! Sinusoidal embedding of timesteps: Vaswani et al., "Attention Is All You Need" (2017), section 3.5, as diffusers'
//! `get_timestep_embedding` and `GaussianFourierProjection` compute it from given frequencies.
//!
//! a = t[n] f, or log(t[n]) f;  y[n] = (sin a, cos a, 0 ...) or (cos a, sin a, 0 ...).   t: `[N]`; f: `[F]`; y: `[N, width]`.
//! a is rounded to f32, as in PyTorch: at a = 1000 that half ulp alone moves the sine by 3e-5.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub width: u32,
        /// F.
        pub frequencies: u32,
        pub sin_first: u32,
        pub log: u32,
    }
}

/// WGSL fragment: sine, cosine and logarithm to f32's accuracy.
pub(crate) const SINCOS: &str = include_str!("../../shaders/lib/sincos.wgsl");

pub static OP: Op = Op {
    name: "timestep_embedding",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance {
        relative: 1e-5,
        reason: "an ulp of log(80) times a frequency of 10 moves the angle by 5e-6; without log only the sine's own 2e-7 remains, \
                 with angles rounded to f32 on both sides",
    },
    f16: false,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, SINCOS, include_str!("../../shaders/timestep_embedding.wgsl")])],
};

impl Tape {
    /// Embedding `[N, width]` of `timesteps` `[N]` with `frequencies` `[F]`, 2 F <= width; |timestep * frequency| < 2^24.
    /// `sin_first` puts the sines before the cosines; `log` takes the logarithm of the timesteps, which must be positive.
    pub fn timestep_embedding(&mut self, timesteps: Tensor, frequencies: Tensor, sin_first: bool, width: usize, log: bool) -> Result<Tensor> {
        let (&[n], &[f]) = (self.shape(timesteps).dims(), self.shape(frequencies).dims()) else {
            let fact = format!("timestep_embedding of {} with {}, expected [N] and [F]", self.shape(timesteps), self.shape(frequencies));
            return Err(self.mismatch(fact));
        };
        if f > width / 2 {
            return Err(self.mismatch(format!("timestep_embedding with {f} frequencies does not fit a width of {width}")));
        }
        let params = Params { len: (n * width) as u32, width: width as u32, frequencies: f as u32, sin_first: u32::from(sin_first), log: u32::from(log) };
        Ok(self.push(&OP, &params, &[timesteps, frequencies], &[n, width], DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let frequencies = p.frequencies as usize;
    let [timesteps, f] = *call.inputs else { return };
    call.output.par_chunks_mut((p.width as usize).max(1)).zip(timesteps).for_each(|(y, &t)| {
        let t = if p.log != 0 { libm::log(f64::from(t)) as f32 } else { t };
        y.fill(0.0);
        for (i, &f) in f.iter().enumerate() {
            let angle = f64::from(t * f);
            let (sin, cos) = (libm::sin(angle) as f32, libm::cos(angle) as f32);
            (y[i], y[frequencies + i]) = if p.sin_first != 0 { (sin, cos) } else { (cos, sin) };
        }
    });
}

fn cost(s: &StepView) -> Cost {
    // The range reduction and the polynomials are about 30 operations.
    Cost { flops: 30 * s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, n: usize, f: usize, width: usize, sin_first: bool, timesteps: Fill, frequencies: Fill) -> Case {
    recorded(name, n, f, width, sin_first, false, timesteps, frequencies)
}

fn recorded(name: &'static str, n: usize, f: usize, width: usize, sin_first: bool, log: bool, timesteps: Fill, frequencies: Fill) -> Case {
    let inputs = vec![CaseInput::new("timesteps", &[n], Layout::Plain, timesteps), CaseInput::new("frequencies", &[f], Layout::Plain, frequencies)];
    Case::new(name, inputs, move |t, i| t.timestep_embedding(i[0], i[1], sin_first, width, log))
}

fn cases() -> Vec<Case> {
    let steps = Fill::Uniform { low: 0.0, high: 1000.0 };
    let unit = Fill::Uniform { low: 0.0, high: 1.0 };
    let sigmas = Fill::Uniform { low: 0.002, high: 80.0 };
    vec![
        case("cos_first", 3, 32, 64, false, steps, unit),
        case("sin_first", 3, 17, 34, true, steps, unit),
        case("odd_width", 2, 9, 19, false, steps, unit),
        case("wide_padding", 2, 5, 16, true, steps, unit),
        case("far", 5, 23, 46, true, Fill::Uniform { low: -1000.0, high: 1000.0 }, Fill::Uniform { low: -100.0, high: 100.0 }),
        case("near_zero", 5, 7, 14, true, Fill::Uniform { low: -1.0, high: 1.0 }, Fill::Uniform { low: -1e-3, high: 1e-3 }),
        recorded("log", 4, 16, 32, true, true, sigmas, Fill::Affine { scale: 4.0, shift: 0.0 }),
        recorded("log_cos_first", 4, 5, 11, false, true, sigmas, Fill::Affine { scale: 4.0, shift: 0.0 }),
        case("large", 1999, 389, 779, false, Fill::Affine { scale: 3000.0, shift: 0.0 }, Fill::Affine { scale: 10.0, shift: 0.0 }).without_golden(),
        recorded("large_log", 301, 96, 192, true, true, Fill::Uniform { low: 1e-6, high: 2.0 }, Fill::Uniform { low: -10.0, high: 10.0 }).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    let steps = Fill::Uniform { low: 0.0, high: 1000.0 };
    vec![case("unet_8x96", 8, 48, 96, false, steps, Fill::Uniform { low: 0.0, high: 1.0 })]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let steps = t.input("steps", &[2], DType::F32);
        let f = t.input("f", &[8], DType::F32);
        let flat = t.input("flat", &[2, 1], DType::F32);
        assert_eq!(t.timestep_embedding(steps, f, true, 15, false).unwrap_err().fact(), "timestep_embedding with 8 frequencies does not fit a width of 15");
        assert!(t.timestep_embedding(flat, f, true, 16, false).unwrap_err().fact().contains("expected [N] and [F]"));
        let y = t.timestep_embedding(steps, f, true, 17, false).unwrap();
        assert_eq!(t.shape(y).dims(), [2, 17]);
    }

    #[test]
    fn the_shaders_turn_constant_is_one_over_two_pi() {
        let word = |name: &str| {
            let line = SINCOS.lines().find(|l| l.starts_with(&format!("const {name}: u32"))).unwrap();
            let hex = line.split("0x").nth(1).unwrap().split('u').next().unwrap();
            u64::from_str_radix(hex, 16).unwrap()
        };
        let fraction = word("INV_TWO_PI_HI") << 32 | word("INV_TWO_PI_LO");
        let expected = 1.0 / std::f64::consts::TAU;
        assert!((fraction as f64 / 2f64.powi(64) - expected).abs() < 1e-16 && fraction > 1 << 61);
    }
}
