//! Low-rank changes of a weight (LoRA): W + scale up down, made when W is read and never stored.
//! Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, equation 3; for convolutions and the
//! form with three factors (Tucker decomposition) LyCORIS, arXiv:2309.14859, section 3.

use rayon::prelude::*;

use crate::weights::view::View;

/// One change of a weight `[O, I]` or `[O, I, kh, kw]` of rank r:
/// `scale * up[O, r] * down[r, I, kh, kw]`, or with `mid[r, r', kh, kw]` between `up[O, r]` and `down[r', I]`.
/// Trailing axes of length 1 do not matter.
#[derive(Clone, Debug)]
pub struct LowRank {
    pub up: View,
    pub mid: Option<View>,
    pub down: View,
    /// alpha / r times the weight that the user gives it.
    pub scale: f32,
}

/// Sizes of the factors of one change.
struct Sizes {
    out: usize,
    rank: usize,
    /// Rank on the side of `down`; differs from `rank` only with `mid`.
    down_rank: usize,
    inputs: usize,
    /// Taps of the kernel, kh kw.
    taps: usize,
}

impl LowRank {
    /// Fails, with a fact, where the factors do not make a change of a weight of this shape.
    pub(crate) fn check(&self, weight: &[usize]) -> Result<(), String> {
        self.sizes(weight).map(|_| ())
    }

    fn sizes(&self, weight: &[usize]) -> Result<Sizes, String> {
        let wrong = || {
            let mid = self.mid.as_ref().map_or(String::new(), |mid| format!(" times {} {:?}", mid.own_name(), mid.shape()));
            let (up, down) = (&self.up, &self.down);
            format!("is {weight:?}, which {} {:?}{mid} times {} {:?} does not change", up.own_name(), up.shape(), down.own_name(), down.shape())
        };
        if !self.scale.is_finite() {
            return Err(format!("scale {} of {}, expected a finite number", self.scale, self.up.own_name()));
        }
        let ([out, inputs, kernel @ ..], [up_out, rank, up_ones @ ..], [down_rank, down_inputs, down_kernel @ ..]) =
            (weight, self.up.shape(), self.down.shape())
        else {
            return Err(wrong());
        };
        let is_ones = |axes: &[usize]| axes.iter().all(|&d| d == 1);
        let same_kernel = |axes: &[usize]| axes == kernel || (is_ones(axes) && is_ones(kernel));
        let factors_fit = match self.mid.as_ref().map(View::shape) {
            None => rank == down_rank && same_kernel(down_kernel),
            Some([a, b, mid_kernel @ ..]) => a == rank && b == down_rank && is_ones(down_kernel) && same_kernel(mid_kernel),
            Some(_) => false,
        };
        if !(factors_fit && out == up_out && inputs == down_inputs && is_ones(up_ones)) || [out, inputs, rank, down_rank].contains(&&0) {
            return Err(wrong());
        }
        Ok(Sizes { out: *out, rank: *rank, down_rank: *down_rank, inputs: *inputs, taps: kernel.iter().product() })
    }
}

/// Adds `delta` to the values of a weight of this shape; None where a factor holds no floats or the shapes do not fit.
pub(crate) fn add(delta: &LowRank, values: &mut [f32], weight: &[usize]) -> Option<()> {
    let sizes = delta.sizes(weight).ok()?;
    let (up, down) = (delta.up.floats()?, delta.down.floats()?);
    let down = match &delta.mid {
        Some(mid) => mid_times_down(&mid.floats()?, &down, &sizes),
        None => down,
    };
    let columns = sizes.inputs * sizes.taps;
    debug_assert_eq!(values.len(), sizes.out * columns);
    values.par_chunks_mut(columns).zip(up.par_chunks(sizes.rank)).for_each(|(row, up)| {
        let mut sum = vec![0f32; columns];
        for (factor, down) in up.iter().zip(down.chunks(columns)) {
            sum.iter_mut().zip(down).for_each(|(s, d)| *s += factor * d);
        }
        row.iter_mut().zip(&sum).for_each(|(v, s)| *v += delta.scale * s);
    });
    Some(())
}

/// mid[p, q, k] down[q, i] summed over q, as [p, i, k].
fn mid_times_down(mid: &[f32], down: &[f32], sizes: &Sizes) -> Vec<f32> {
    let Sizes { rank, down_rank, inputs, taps, .. } = *sizes;
    let mut out = vec![0f32; rank * inputs * taps];
    for (p, out) in out.chunks_mut(inputs * taps).enumerate() {
        for q in 0..down_rank {
            let mid = &mid[(p * down_rank + q) * taps..][..taps];
            for (i, out) in out.chunks_mut(taps).enumerate() {
                out.iter_mut().zip(mid).for_each(|(o, m)| *o += m * down[q * inputs + i]);
            }
        }
    }
    out
}
