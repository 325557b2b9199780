//! The classifier's view of an image, as timm's evaluation transform makes it (`timm.data.create_transform`):
//! resize to floor(size / crop_pct), crop the centre, (x / 255 - mean) / std.

use crate::base::{Array, Error, Kind, Result};
use crate::driver::image::Rgb8;
use crate::driver::resize::{self, Filter};
use crate::models::Preprocess;

/// How an image comes to the classifier's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CropMode {
    /// The image fills the resized frame, aspect kept; what stands over is cut off.
    Center,
    /// Each side is resized on its own.
    Squash,
    /// The whole image, aspect kept; what is left of the frame is filled with the mean.
    Border,
}

impl CropMode {
    /// `center`, `squash` or `border`, as timm's configurations say.
    pub fn parse(name: &str) -> Result<CropMode> {
        match name {
            "center" => Ok(CropMode::Center),
            "squash" => Ok(CropMode::Squash),
            "border" => Ok(CropMode::Border),
            _ => Err(Error::new(Kind::Config, "crop_mode", format!("`{name}`, expected center, squash or border"))),
        }
    }
}

/// A `pretrained_cfg`'s preprocessing.
#[derive(Clone, Debug, PartialEq)]
pub struct Transform {
    /// Rows, columns of the result.
    pub size: [usize; 2],
    pub filter: Filter,
    pub crop_pct: f64,
    pub crop_mode: CropMode,
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl Transform {
    /// Takes the names that a `pretrained_cfg` holds. Fails on names and numbers that timm does not know.
    pub fn new(size: [usize; 2], interpolation: &str, crop_pct: f64, crop_mode: &str, mean: [f32; 3], std: [f32; 3]) -> Result<Transform> {
        let wrong = |field: &str, fact: String| Err(Error::new(Kind::Config, field, fact));
        if size.iter().any(|s| !(1..=4096).contains(s)) {
            return wrong("input_size", format!("{size:?}, expected sides of 1 to 4096"));
        }
        if !(0.01..=1.0).contains(&crop_pct) {
            return wrong("crop_pct", format!("{crop_pct}, expected 0.01 to 1"));
        }
        if let Some(v) = std.iter().find(|v| !(**v > 0.0)) {
            return wrong("std", format!("{v}, expected a positive number"));
        }
        Ok(Transform { size, filter: Filter::parse(interpolation)?, crop_pct, crop_mode: CropMode::parse(crop_mode)?, mean, std })
    }

    /// What a classifier's own configuration says.
    pub fn of(p: &Preprocess) -> Result<Transform> {
        Transform::new(p.input_size, &p.interpolation, p.crop_pct, &p.crop_mode, p.mean, p.std)
    }

    /// Normalised pixels `[H, W, 3]`.
    pub fn apply(&self, image: &Rgb8) -> Result<Array> {
        let pixels = self.pixels(image);
        let normal = |(i, &v): (usize, &u8)| (f32::from(v) / 255.0 - self.mean[i % 3]) / self.std[i % 3];
        Array::new(&[self.size[0], self.size[1], 3], pixels.data.iter().enumerate().map(normal).collect())
    }

    /// The resized and cropped image before normalisation.
    pub fn pixels(&self, image: &Rgb8) -> Rgb8 {
        let frame = self.size.map(|s| (s as f64 / self.crop_pct).floor() as usize);
        let [h, w] = self.resized(frame, [image.height, image.width]);
        let fill = match self.crop_mode {
            CropMode::Border => self.mean.map(|m| (255.0 * f64::from(m)).round_ties_even().clamp(0.0, 255.0) as u8),
            _ => [0; 3],
        };
        crop_or_pad(&resize::rgb(image, w, h, self.filter), self.size, fill)
    }

    /// Rows and columns that an image of `from` rows and columns is resized to.
    fn resized(&self, frame: [usize; 2], from: [usize; 2]) -> [usize; 2] {
        let ratios = [from[0] as f64 / frame[0] as f64, from[1] as f64 / frame[1] as f64];
        let keep = |ratio: f64| from.map(|v| (v as f64 / ratio).round_ties_even().max(1.0) as usize);
        match self.crop_mode {
            CropMode::Squash => frame,
            CropMode::Border => keep(ratios[0].max(ratios[1])),
            // torchvision's shorter-side resize truncates the longer side.
            CropMode::Center if frame[0] == frame[1] => {
                let (short, side) = (from[0].min(from[1]), frame[0]);
                from.map(|v| if v == short { side } else { (side as f64 * v as f64 / short as f64) as usize })
            }
            CropMode::Center => keep(ratios[0].min(ratios[1])),
        }
    }
}

/// The centre of `image`; where it is smaller, `fill` around it. Odd rests are shared as timm and torchvision do:
/// a border is thinner at the top and left, half a cropped pixel goes to the even side.
fn crop_or_pad(image: &Rgb8, size: [usize; 2], fill: [u8; 3]) -> Rgb8 {
    let from = [image.height, image.width];
    let start: [i64; 2] = std::array::from_fn(|axis| {
        let over = from[axis] as i64 - size[axis] as i64;
        if over < 0 { -(-over / 2) } else { (over as f64 / 2.0).round_ties_even() as i64 }
    });
    let mut data = Vec::with_capacity(size[0] * size[1] * 3);
    let inside = |v: usize, axis: usize| usize::try_from(v as i64 + start[axis]).ok().filter(|&v| v < from[axis]);
    for y in 0..size[0] {
        for x in 0..size[1] {
            match (inside(y, 0), inside(x, 1)) {
                (Some(y), Some(x)) => data.extend_from_slice(&image.data[(y * image.width + x) * 3..][..3]),
                _ => data.extend(fill),
            }
        }
    }
    Rgb8 { width: size[1], height: size[0], data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::image::read_rgb;
    use crate::weights::{Config, Store};
    use std::path::Path;

    fn pattern([width, height]: [usize; 2]) -> Rgb8 {
        let pixel = |i: usize| {
            let (x, y) = (i % width, i / width);
            [(x * 7 + y * 3) as u8, (x * y) as u8, ((x * 5) ^ (y * 11)) as u8]
        };
        Rgb8::new(width, height, (0..width * height).flat_map(pixel).collect()).unwrap()
    }

    /// Sizes, crops and pixels that timm 1.0 with Pillow 13 gives: image [w, h], input size [h, w], crop_pct, mode, filter,
    /// the sum of each value times its place in the image (modulo 251) plus 1, the first and the last pixel.
    const TIMM: [([usize; 2], [usize; 2], f64, &str, &str, u64, [u8; 3], [u8; 3]); 10] = [
        ([30, 20], [8, 8], 0.875, "center", "bicubic", 2357776, [39, 3, 21], [199, 91, 209]),
        ([20, 31], [8, 8], 0.9, "center", "bilinear", 2421507, [25, 6, 66], [198, 177, 106]),
        ([30, 20], [8, 8], 0.875, "squash", "bicubic", 2242902, [11, 1, 9], [221, 143, 168]),
        ([30, 20], [8, 8], 0.875, "border", "bicubic", 2299483, [64, 128, 191], [64, 128, 191]),
        ([18, 33], [8, 8], 1.0, "border", "bilinear", 2256365, [64, 128, 191], [64, 128, 191]),
        ([30, 20], [8, 12], 0.9, "center", "bicubic", 3755580, [7, 1, 9], [232, 170, 92]),
        ([20, 30], [9, 12], 0.8, "center", "bicubic", 4733359, [45, 24, 95], [181, 82, 130]),
        ([30, 20], [12, 8], 0.95, "squash", "bilinear", 3972931, [13, 1, 9], [197, 123, 89]),
        ([29, 17], [10, 7], 0.7, "border", "bicubic", 2773702, [64, 128, 191], [64, 128, 191]),
        ([6, 5], [11, 11], 0.875, "center", "bicubic", 680857, [3, 0, 1], [46, 20, 54]),
    ];

    #[test]
    fn timms_pixels_are_reproduced_exactly() {
        for (image, size, crop_pct, mode, filter, sum, first, last) in TIMM {
            let transform = Transform::new(size, filter, crop_pct, mode, [0.25, 0.5, 0.75], [0.5, 0.25, 1.0]).unwrap();
            let got = transform.pixels(&pattern(image));
            assert_eq!([got.height, got.width], size);
            let what = format!("{image:?} {mode} {filter}");
            assert_eq!((&got.data[..3], &got.data[got.data.len() - 3..]), (&first[..], &last[..]), "{what}");
            assert_eq!(got.data.iter().enumerate().map(|(i, &v)| u64::from(v) * (i as u64 % 251 + 1)).sum::<u64>(), sum, "{what}");
        }
    }

    /// The transform that `image/8x9/0.9/center/bicubic` tells, and the image's name.
    fn parse(case: &str) -> (&str, Transform) {
        let parts: Vec<&str> = case.split('/').collect();
        let [image, size, crop_pct, mode, filter] = parts[..] else { panic!("{case}") };
        let (rows, columns) = size.split_once('x').unwrap();
        let size = [rows, columns].map(|side| side.parse().unwrap());
        (image, Transform::new(size, filter, crop_pct.parse().unwrap(), mode, [0.25, 0.5, 0.75], [0.5, 0.25, 1.0]).unwrap())
    }

    /// The largest difference from `want` `[3, H, W]`, normalised as ours is, in 255ths of a pixel's range.
    fn apart(transform: &Transform, image: &Rgb8, want: &Array) -> f32 {
        let got = transform.apply(image).unwrap();
        let [height, width] = transform.size;
        assert_eq!(want.dims(), [3, height, width]);
        let at = |i: usize| want.data[i % 3 * height * width + i / 3];
        got.data.iter().enumerate().map(|(i, v)| (v - at(i)).abs() * transform.std[i % 3] * 255.0).fold(0.0, f32::max)
    }

    /// tools/golden/preprocess.py: every filter, mode and share; torchvision's preset is the one that is assumed of weights alone.
    #[test]
    fn timms_and_torchvisions_inputs_are_reproduced() {
        let store = Store::open(Path::new("tests/golden/preprocess.safetensors")).unwrap();
        let mut cases = 0;
        for name in store.names() {
            let Some((_, case)) = name.split_once('/').filter(|(kind, _)| ["timm", "torchvision"].contains(kind)) else { continue };
            let (image, transform) = parse(case);
            let x = store.array(&format!("image/{image}")).unwrap();
            let image = Rgb8::new(x.dims()[1], x.dims()[0], x.data.iter().map(|&v| v as u8).collect()).unwrap();
            let apart = apart(&transform, &image, &store.array(name).unwrap());
            assert!(apart < 1e-3, "{name}: {apart}/255");
            cases += 1;
        }
        assert!(cases >= 80, "{cases} cases");
    }

    /// Real images: NAEVUS_PIXELS is a folder that tools/golden/preprocess.py wrote, each image as it was and as PNG. There is no
    /// difference in either: JPEG files decode to Pillow's bytes.
    #[test]
    fn timms_inputs_of_real_images_are_reproduced() {
        let Some(folder) = std::env::var_os("NAEVUS_PIXELS").map(std::path::PathBuf::from) else {
            println!("skipped: NAEVUS_PIXELS is not set");
            return;
        };
        let store = Store::open(&folder.join("pixels.safetensors")).unwrap();
        let mut worst = std::collections::BTreeMap::new();
        for name in store.names() {
            let (_, case) = name.split_once('/').unwrap();
            let (image, transform) = parse(case);
            let want = store.array(name).unwrap();
            let told = case.split_once('/').unwrap().1.to_string();
            let stem = Path::new(image).file_stem().unwrap().to_string_lossy().into_owned();
            let [png, jpeg] = [format!("{stem}.png"), image.to_string()].map(|file| apart(&transform, &read_rgb(&folder.join(file)).unwrap(), &want));
            let entry: &mut [f32; 2] = worst.entry(told).or_default();
            *entry = [entry[0].max(png), entry[1].max(jpeg)];
        }
        for (told, [png, jpeg]) in &worst {
            println!("{told}: worst {png:.4}/255 from PNG, {jpeg:.3}/255 as it is");
        }
        assert!(!worst.is_empty() && worst.values().flatten().all(|count| *count < 1e-3), "{worst:?}");
    }

    #[test]
    fn pixels_are_normalised() {
        let transform = Transform::new([1, 1], "bilinear", 1.0, "center", [0.5, 0.25, 0.0], [0.5, 0.25, 2.0]).unwrap();
        let got = transform.apply(&Rgb8::new(1, 1, vec![255, 0, 51]).unwrap()).unwrap();
        assert_eq!(got, Array::new(&[1, 1, 3], vec![1.0, -1.0, 0.1]).unwrap());
    }

    #[test]
    fn what_timm_does_not_know_is_refused() {
        let make = |size, filter, pct, mode, std| Transform::new([size, 8], filter, pct, mode, [0.5; 3], [std; 3]).map_err(|e| e.to_string());
        assert!(make(8, "bicubic", 1.0, "center", 1.0).is_ok());
        assert!(make(8, "area", 1.0, "center", 1.0).unwrap_err().contains("expected nearest, bilinear"));
        assert!(make(8, "bicubic", 1.0, "middle", 1.0).unwrap_err().contains("expected center, squash or border"));
        assert!(make(8, "bicubic", 0.0, "center", 1.0).is_err() && make(8, "bicubic", f64::NAN, "center", 1.0).is_err());
        assert!(make(8, "bicubic", 1.0, "center", 0.0).is_err() && make(0, "bicubic", 1.0, "center", 1.0).is_err());
    }

    /// From JPEG files: decoder and transform are Pillow's and timm's.
    #[test]
    fn the_reference_classifiers_pixels_are_reproduced() {
        let shared = Path::new("../shared");
        if !shared.is_dir() {
            println!("skipped: ../shared absent");
            return;
        }
        let config = Config::read(&shared.join("reference/resnet18-ham128/config.json")).unwrap();
        let c = config.object("pretrained_cfg").unwrap().unwrap();
        let floats = |name: &str| c.numbers(name, None, -10.0..=10.0).unwrap().map(|v| v as f32);
        let (mode, filter) = (c.text("crop_mode", None).unwrap(), c.text("interpolation", None).unwrap());
        let transform = Transform::new([128, 128], &filter, c.number("crop_pct", None, 0.0..=1.0).unwrap(), &mode, floats("mean"), floats("std")).unwrap();
        let store = Store::open(&shared.join("reference/golden/resnet18.safetensors")).unwrap();
        let want = store.array("pixel_values").unwrap().to_channels_last();
        for (i, id) in store.metadata()["ids"].split(',').enumerate() {
            let got = transform.apply(&read_rgb(&shared.join(format!("data/ham10000/images/{id}.jpg"))).unwrap()).unwrap();
            let apart = |(k, (a, b)): (usize, (&f32, &f32))| (a - b).abs() * transform.std[k % 3] * 255.0;
            let differences: Vec<f32> = got.data.iter().zip(&want.rows(i, i + 1).data).enumerate().map(apart).collect();
            let worst = differences.iter().copied().fold(0.0, f32::max);
            println!("{id}: max {worst:.5}/255");
            assert!(worst <= 1e-3, "{id}: max {worst}/255");
        }
    }
}
