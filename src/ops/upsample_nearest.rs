//! Enlargement of an image by an integer factor; each pixel becomes a square of equal pixels.
//!
//! y[n, h, w, c] = x[n, h / f, w / f, c].   x: `[N, H, W, C]`; y: `[N, f H, f W, C]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Shape, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub in_h: u32,
        pub in_w: u32,
        pub channels: u32,
        pub factor: u32,
    }
}

pub static OP: Op = Op {
    name: "upsample_nearest",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance::EXACT,
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/upsample_nearest.wgsl")])],
};

impl Tape {
    /// `x` `[N, H, W, C]` enlarged `factor` times along H and W, by repetition.
    pub fn upsample_nearest(&mut self, x: Tensor, factor: usize) -> Result<Tensor> {
        let [n, h, w, c] = self.nhwc(x)?;
        let (Some(out_h), Some(out_w)) = (h.checked_mul(factor), w.checked_mul(factor)) else {
            return Err(self.mismatch(format!("upsample_nearest of [{n}, {c}, {h}, {w}] by {factor}: too large")));
        };
        if factor == 0 {
            return Err(self.mismatch("upsample_nearest by 0, expected a factor of at least 1".to_string()));
        }
        let shape = [n, out_h, out_w, c];
        let len = Shape::new(&shape).numel();
        let params = Params { len: len as u32, in_h: h as u32, in_w: w as u32, channels: c as u32, factor: factor as u32 };
        Ok(self.push(&OP, &params, &[x], &shape, DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let (in_w, channels, factor) = (p.in_w as usize, p.channels as usize, p.factor as usize);
    let x = call.inputs[0];
    call.output.par_chunks_mut((in_w * factor * channels).max(1)).enumerate().for_each(|(row, y)| {
        let x = &x[row / factor * in_w * channels..][..in_w * channels];
        for (y, x) in y.chunks_exact_mut(factor * channels).zip(x.chunks_exact(channels)) {
            y.chunks_exact_mut(channels).for_each(|y| y.copy_from_slice(x));
        }
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 0, bytes: s.bytes() }
}

fn case(name: &'static str, x: [usize; 4], factor: usize) -> Case {
    Case::new(name, vec![CaseInput::image("x", &x)], move |t, i| t.upsample_nearest(i[0], factor))
}

fn cases() -> Vec<Case> {
    vec![
        case("twice", [2, 5, 3, 7], 2),
        case("three_times", [1, 3, 4, 5], 3),
        case("once", [2, 3, 3, 1], 1),
        case("large", [2, 67, 61, 67], 2).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("unet_192x8x8", [8, 192, 8, 8], 2), case("sd_640x32x32", [2, 640, 32, 32], 2)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 3, 4, 5], DType::F32);
        assert!(t.upsample_nearest(x, 0).unwrap_err().fact().contains("by 0"));
        assert!(t.upsample_nearest(x, usize::MAX).unwrap_err().fact().contains("too large"));
        let tokens = t.input("tokens", &[2, 3, 4], DType::F32);
        assert!(t.upsample_nearest(tokens, 2).unwrap_err().fact().contains("expected four axes"));
        let y = t.upsample_nearest(x, 2).unwrap();
        assert_eq!(t.shape(y).dims(), [2, 6, 8, 5]);
    }
}
