//! How an image becomes a classifier's input: what a `pretrained_cfg` says, as plain numbers and names.
//! `driver::transform` carries it out.

use serde_json::{Value, json};

use crate::base::Result;
use crate::weights::Config;

/// Mean and standard deviation of ImageNet's pixels in [0, 1], per channel.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// How pixels are prepared.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocess {
    /// Rows, columns.
    pub input_size: [usize; 2],
    /// nearest, bilinear, bicubic, lanczos.
    pub interpolation: String,
    /// The input is this part of the resized image.
    pub crop_pct: f64,
    /// center, squash, border.
    pub crop_mode: String,
    /// Per channel, of pixels in [0, 1]: (x - mean) / std.
    pub mean: [f32; 3],
    pub std: [f32; 3],
    /// The checkpoint says nothing of it: these are the values that its family was published with.
    pub assumed: bool,
}

impl Preprocess {
    /// What torchvision's ImageNet weights were evaluated with: the shorter side to `size` / 0.875, the centre, bilinear.
    pub fn assumed(size: usize) -> Preprocess {
        Preprocess {
            input_size: [size, size],
            interpolation: "bilinear".to_string(),
            crop_pct: 0.875,
            crop_mode: "center".to_string(),
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
            assumed: true,
        }
    }

    /// Pixels in [-1, 1], as Inception's weights want them.
    pub fn symmetric(self) -> Preprocess {
        Preprocess { mean: [0.5; 3], std: [0.5; 3], ..self }
    }

    /// What `inspect` shows beside the size.
    pub fn facts(&self) -> Value {
        json!({
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "mean": self.mean.map(shortest),
            "std": self.std.map(shortest),
            "from": if self.assumed { "assumed" } else { "config.json" },
        })
    }

    /// Reads the fields of a `pretrained_cfg`; absent ones take timm's defaults (bicubic, 0.875, ImageNet's mean and std).
    pub fn read(c: &Config) -> Result<Preprocess> {
        let size = c.integers("input_size", Some(&[3, 224, 224]), 1..=65_536, 3)?;
        let &[3, height, width] = size.as_slice() else {
            return Err(c.error("input_size", format!("{size:?}, expected [3, height, width]")));
        };
        let names = |names: &[&'static str]| names.iter().map(|n| (*n, *n)).collect::<Vec<_>>();
        let filters = names(&["bicubic", "bilinear", "nearest", "lanczos"]);
        Ok(Preprocess {
            input_size: [height, width],
            interpolation: c.choice("interpolation", Some("bicubic"), &filters)?.to_string(),
            crop_pct: c.number("crop_pct", 0.875, 0.01..=1.0)?,
            crop_mode: c.choice("crop_mode", Some("center"), &names(&["center", "squash", "border"]))?.to_string(),
            mean: c.numbers("mean", Some(IMAGENET_MEAN.map(f64::from)), -1e3..=1e3)?.map(|v| v as f32),
            std: c.numbers("std", Some(IMAGENET_STD.map(f64::from)), 1e-6..=1e6)?.map(|v| v as f32),
            assumed: !["input_size", "mean", "std", "interpolation"].iter().any(|field| c.has(field)),
        })
    }
}

/// The f64 whose shortest decimal is that of `v`: 0.485, where the exact value is 0.48500001430511475.
fn shortest(v: f32) -> f64 {
    v.to_string().parse().unwrap_or(f64::from(v))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_they_were_written() {
        let facts = Preprocess::assumed(224).facts();
        assert_eq!((facts["mean"].to_string().as_str(), facts["std"].to_string().as_str()), ("[0.485,0.456,0.406]", "[0.229,0.224,0.225]"));
        assert_eq!(facts["from"], "assumed");
    }
}
