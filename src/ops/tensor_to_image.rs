//! Channels to packed 8-bit pixels, as diffusers makes its images.
//!
//! byte_c = floor(255 clamp(x[n, h, w, c] * scale[c] + shift[c], 0, 1) + 1/2).   x: `[N, H, W, 3]`;
//! y: `[N, H, W]` u32, r | g << 8 | b << 16 | 255 << 24.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub scale_r: f32,
        pub scale_g: f32,
        pub scale_b: f32,
        pub shift_r: f32,
        pub shift_g: f32,
        pub shift_b: f32,
    }
}

pub static OP: Op = Op {
    name: "tensor_to_image",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 8e-3, reason: "of the bytes, whose rms is at least 128: a value that rounding moves over a half is off by one level" },
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/tensor_to_image.wgsl")])],
};

impl Tape {
    /// `x` `[N, H, W, 3]`, times `scale` plus `shift` per channel and held to [0, 1], as `[N, H, W]` u32 (packed, opaque RGBA).
    pub fn tensor_to_image(&mut self, x: Tensor, scale: [f32; 3], shift: [f32; 3]) -> Result<Tensor> {
        let [n, h, w, c] = self.nhwc(x)?;
        if c != 3 {
            return Err(self.mismatch(format!("tensor_to_image of {c} channels, expected 3")));
        }
        let ([scale_r, scale_g, scale_b], [shift_r, shift_g, shift_b]) = (scale, shift);
        let params = Params { len: (n * h * w) as u32, scale_r, scale_g, scale_b, shift_r, shift_g, shift_b };
        Ok(self.push(&OP, &params, &[x], &[n, h, w], DType::U32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let scale = [p.scale_r, p.scale_g, p.scale_b];
    let shift = [p.shift_r, p.shift_g, p.shift_b];
    let x = call.inputs[0];
    let output: &mut [u32] = bytemuck::cast_slice_mut(call.output);
    output.par_chunks_mut(4096).zip(x.par_chunks(3 * 4096)).for_each(|(y, x)| {
        for (y, x) in y.iter_mut().zip(x.chunks_exact(3)) {
            let level = |c: usize| ((x[c] * scale[c] + shift[c]).clamp(0.0, 1.0) * 255.0 + 0.5).floor() as u8;
            *y = u32::from_le_bytes([level(0), level(1), level(2), 255]);
        }
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 6 * s.inputs[0].numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, n: usize, h: usize, w: usize, scale: [f32; 3], shift: [f32; 3]) -> Case {
    // Wider than the image's range: both ends are clamped.
    let x = CaseInput::new("x", &[n, 3, h, w], Layout::Image, Fill::Uniform { low: -1.3, high: 1.3 });
    Case::new(name, vec![x], move |t, i| t.tensor_to_image(i[0], scale, shift))
}

fn cases() -> Vec<Case> {
    vec![
        case("signed", 2, 5, 7, [0.5; 3], [0.5; 3]),
        case("unit", 1, 9, 11, [1.0; 3], [0.0; 3]),
        case("per_channel", 2, 3, 13, [0.5, 1.0, -0.25], [0.5, 0.0, 0.625]),
        case("large", 3, 487, 491, [0.5; 3], [0.5; 3]).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("8x128x128", 8, 128, 128, [0.5; 3], [0.5; 3]), case("1x512x512", 1, 512, 512, [0.5; 3], [0.5; 3])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[1, 4, 5, 4], DType::F32);
        assert_eq!(t.tensor_to_image(x, [1.0; 3], [0.0; 3]).unwrap_err().fact(), "tensor_to_image of 4 channels, expected 3");
        let x = t.input("x3", &[1, 4, 5, 3], DType::F32);
        let y = t.tensor_to_image(x, [1.0; 3], [0.0; 3]).unwrap();
        assert_eq!((t.shape(y).dims(), t.dtype(y)), (&[1, 4, 5][..], DType::U32));
    }

    #[test]
    fn every_level_survives_both_ways() {
        let pixels: Vec<u32> = (0..256u32).map(|v| v | (255 - v) << 8 | (v ^ 0x55) << 16 | 255 << 24).collect();
        let mut t = Tape::new();
        let input = t.input("pixels", &[1, 16, 16], DType::U32);
        let x = t.image_to_tensor(input, [2.0; 3], [-1.0; 3]).unwrap();
        let y = t.tensor_to_image(x, [0.5; 3], [0.5; 3]).unwrap();
        let pixels_in: Vec<f32> = pixels.iter().map(|&v| f32::from_bits(v)).collect();
        let values = crate::ops::case::run_tape(&t, &[&pixels_in], y).unwrap();
        assert_eq!(values.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), pixels);
    }
}
