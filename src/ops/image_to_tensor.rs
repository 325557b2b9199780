//! Packed 8-bit pixels to channels, scaled: torchvision's `ToTensor` and `Normalize`.
//!
//! y[n, h, w, c] = byte_c / 255 * scale[c] + shift[c].   pixels: `[N, H, W]` u32, r | g << 8 | b << 16 | a << 24;
//! y: `[N, H, W, 3]`. Alpha is dropped.

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
    name: "image_to_tensor",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 1e-6, reason: "a quotient of 2.5 ulp in WGSL, a product and a sum" },
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/image_to_tensor.wgsl")])],
};

impl Tape {
    /// `pixels` `[N, H, W]` (u32, packed RGBA) as `[N, H, W, 3]`: value in [0, 1] times `scale` plus `shift`, per channel.
    pub fn image_to_tensor(&mut self, pixels: Tensor, scale: [f32; 3], shift: [f32; 3]) -> Result<Tensor> {
        let &[n, h, w] = self.shape(pixels).dims() else {
            return Err(self.mismatch(format!("image_to_tensor of {}, expected pixels [N, H, W]", self.shape(pixels))));
        };
        if self.dtype(pixels) != DType::U32 {
            return Err(self.mismatch(format!("image_to_tensor of {:?} pixels, expected U32", self.dtype(pixels))));
        }
        let ([scale_r, scale_g, scale_b], [shift_r, shift_g, shift_b]) = (scale, shift);
        let params = Params { len: (n * h * w * 3) as u32, scale_r, scale_g, scale_b, shift_r, shift_g, shift_b };
        Ok(self.push(&OP, &params, &[pixels], &[n, h, w, 3], DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let scale = [p.scale_r, p.scale_g, p.scale_b];
    let shift = [p.shift_r, p.shift_g, p.shift_b];
    let pixels = call.indices(0);
    call.output.par_chunks_mut(3 * 4096).zip(pixels.par_chunks(4096)).for_each(|(y, pixels)| {
        for (y, pixel) in y.chunks_exact_mut(3).zip(pixels) {
            let bytes = pixel.to_le_bytes();
            for c in 0..3 {
                y[c] = f32::from(bytes[c]) / 255.0 * scale[c] + shift[c];
            }
        }
    });
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 3 * s.output.numel() as u64, bytes: s.bytes() }
}

fn case(name: &'static str, shape: [usize; 3], scale: [f32; 3], shift: [f32; 3]) -> Case {
    let pixels = CaseInput::new("pixels", &shape, Layout::Plain, Fill::Index(u32::MAX));
    Case::new(name, vec![pixels], move |t, i| t.image_to_tensor(i[0], scale, shift))
}

/// `Normalize` with ImageNet's means (0.485, 0.456, 0.406) and deviations (0.229, 0.224, 0.225).
const IMAGENET: ([f32; 3], [f32; 3]) = ([4.366_812, 4.464_286, 4.444_444_5], [-2.117_904, -2.035_714_4, -1.804_444_4]);

fn cases() -> Vec<Case> {
    vec![
        case("unit", [2, 5, 7], [1.0; 3], [0.0; 3]),
        case("signed", [1, 9, 3], [2.0; 3], [-1.0; 3]),
        case("imagenet", [2, 3, 11], IMAGENET.0, IMAGENET.1),
        case("large", [3, 487, 491], [2.0, 1.0, 0.5], [-1.0, 0.0, 0.25]).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("8x128x128", [8, 128, 128], [2.0; 3], [-1.0; 3]), case("1x512x512", [1, 512, 512], [2.0; 3], [-1.0; 3])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let flat = t.input("flat", &[4, 4], DType::U32);
        assert_eq!(t.image_to_tensor(flat, [1.0; 3], [0.0; 3]).unwrap_err().fact(), "image_to_tensor of [4, 4], expected pixels [N, H, W]");
        let floats = t.input("floats", &[1, 4, 4], DType::F32);
        assert!(t.image_to_tensor(floats, [1.0; 3], [0.0; 3]).unwrap_err().fact().contains("F32 pixels"));
        let pixels = t.input("pixels", &[1, 4, 5], DType::U32);
        let y = t.image_to_tensor(pixels, [1.0; 3], [0.0; 3]).unwrap();
        assert_eq!(t.shape(y).dims(), [1, 4, 5, 3]);
    }
}
