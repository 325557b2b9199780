//! How a classifier's pixels are prepared: the `pretrained_cfg` of a timm configuration.

/// Resize, crop and normalisation of an evaluation transform.
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
}
