//! Resizing with antialiasing, value for value as Pillow does it (`src/libImaging/Resample.c` describes the method):
//! a separable filter is stretched by the scale when it shrinks, its weights are normalised in f64, rounded to 22-bit fixed
//! point, and applied to rows and then to columns, each pass rounded to u8. Integer sums give the same bits on every machine.

use rayon::prelude::*;

use crate::base::{Error, Kind, Result};
use crate::driver::image::{Mask8, Rgb8};

/// Fraction bits of a weight.
const BITS: u32 = 22;

/// A kernel on output pixels' distance, by Pillow's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The pixel below the output pixel's centre.
    Nearest,
    /// 1 - |x|, support 1.
    Bilinear,
    /// Keys' cubic with a = -1/2 (Catmull-Rom), support 2.
    Bicubic,
    /// sinc(x) sinc(x/3), support 3.
    Lanczos,
}

impl Filter {
    /// `nearest`, `bilinear`, `bicubic` or `lanczos`, as timm's configurations say.
    pub fn parse(name: &str) -> Result<Filter> {
        match name {
            "nearest" => Ok(Filter::Nearest),
            "bilinear" => Ok(Filter::Bilinear),
            "bicubic" => Ok(Filter::Bicubic),
            "lanczos" => Ok(Filter::Lanczos),
            _ => Err(Error::new(Kind::Config, "interpolation", format!("`{name}`, expected nearest, bilinear, bicubic or lanczos"))),
        }
    }

    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { libm::sin(x * std::f64::consts::PI) / (x * std::f64::consts::PI) };
        match self {
            Filter::Nearest => 1.0,
            Filter::Bilinear => (1.0 - x).max(0.0),
            Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Filter::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

/// `image` at `width` x `height`, bicubic.
pub fn bicubic(image: &Rgb8, width: usize, height: usize) -> Rgb8 {
    rgb(image, width, height, Filter::Bicubic)
}

/// `image` at `width` x `height`, bilinear.
pub fn bilinear(image: &Rgb8, width: usize, height: usize) -> Rgb8 {
    rgb(image, width, height, Filter::Bilinear)
}

/// `mask` at `width` x `height`, bilinear: grey values, not thresholded.
pub fn bilinear_mask(mask: &Mask8, width: usize, height: usize) -> Mask8 {
    Mask8 { width, height, data: planes(&mask.data, [mask.width, mask.height], [width, height], 1, Filter::Bilinear) }
}

/// `image` at `width` x `height` with any filter.
pub fn rgb(image: &Rgb8, width: usize, height: usize, filter: Filter) -> Rgb8 {
    Rgb8 { width, height, data: planes(&image.data, [image.width, image.height], [width, height], 3, filter) }
}

/// Two passes, each left out when it changes no size. Their order matters where a value between them is clipped; Pillow 13
/// takes columns first where the height shrinks by more than twice what the width does (measured, 1,466 random sizes),
/// and rows first otherwise, as its earlier versions always do.
fn planes(data: &[u8], from: [usize; 2], to: [usize; 2], channels: usize, filter: Filter) -> Vec<u8> {
    if from.contains(&0) || to.contains(&0) {
        return vec![0; to[0] * to[1] * channels];
    }
    let shrinks = |axis: usize| from[axis] as i64 - to[axis] as i64;
    let columns_first = shrinks(1) > 0 && shrinks(1) > 2 * shrinks(0);
    let rows = |data: Vec<u8>| if to[0] == from[0] { data } else { horizontal(&data, from[0], to[0], channels, &taps(from[0], to[0], filter)) };
    let columns = |data: Vec<u8>, width: usize| {
        if to[1] == from[1] { data } else { vertical(&data, width * channels, to[1], &taps(from[1], to[1], filter)) }
    };
    if columns_first { rows(columns(data.to_vec(), from[0])) } else { columns(rows(data.to_vec()), to[0]) }
}

/// Weights of the input pixels `first..` that make one output pixel.
struct Taps {
    first: usize,
    weights: Vec<i64>,
}

fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    if filter == Filter::Nearest {
        // Pillow's sum (`ImagingScaleAffine`), not a product: 24 pixels to 9 have a centre on a whole number but for rounding.
        let centers = std::iter::successors(Some(scale * 0.5), |center| Some(center + scale));
        return centers.take(to).map(|center| Taps { first: (center as usize).min(from - 1), weights: vec![1 << BITS] }).collect();
    }
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let one = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        // Truncation towards zero is Pillow's; a negative value is clipped to 0 either way.
        let first = (center - support + 0.5).max(0.0) as usize;
        let last = ((center + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..last).map(|x| filter.weight((x as f64 - center + 0.5) / stretch)).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |w: &f64| (w / sum * f64::from(1u32 << BITS)).round() as i64;
        Taps { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(one).collect()
}

fn rounded(sum: i64) -> u8 {
    ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8
}

fn horizontal(data: &[u8], width: usize, to: usize, channels: usize, taps: &[Taps]) -> Vec<u8> {
    let mut out = vec![0; data.len() / width * to];
    out.par_chunks_mut(to * channels).zip(data.par_chunks(width * channels)).for_each(|(out, row)| {
        for (pixel, tap) in out.chunks_mut(channels).zip(taps) {
            for (c, value) in pixel.iter_mut().enumerate() {
                *value = rounded(tap.weights.iter().enumerate().map(|(k, w)| w * i64::from(row[(tap.first + k) * channels + c])).sum());
            }
        }
    });
    out
}

fn vertical(data: &[u8], row: usize, to: usize, taps: &[Taps]) -> Vec<u8> {
    let mut out = vec![0; row * to];
    out.par_chunks_mut(row).zip(taps).for_each(|(out, tap)| {
        let mut sums = vec![0i64; row];
        for (line, w) in data.chunks(row).skip(tap.first).zip(&tap.weights) {
            sums.iter_mut().zip(line).for_each(|(sum, v)| *sum += w * i64::from(*v));
        }
        out.iter_mut().zip(sums).for_each(|(value, sum)| *value = rounded(sum));
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::image::{read_mask, read_rgb};
    use crate::weights::Store;
    use std::path::Path;

    fn bytes(store: &Store, name: &str) -> Vec<u8> {
        store.array(name).unwrap().data.iter().map(|&v| v as u8).collect()
    }

    #[test]
    fn goldens_of_pillow_are_reproduced_exactly() {
        let store = Store::open(Path::new("tests/golden/resize.safetensors")).unwrap();
        let cases: Vec<String> = store.names().filter_map(|n| n.strip_suffix("/y").map(String::from)).collect();
        assert!(cases.len() >= 20, "{} cases", cases.len());
        for case in cases {
            let size = |name: &str| <[usize; 3]>::try_from(store.shape(&format!("{case}/{name}")).unwrap()).unwrap();
            let ([h, w, c], [to_h, to_w, _]) = (size("x"), size("y"));
            let (x, y) = (bytes(&store, &format!("{case}/x")), bytes(&store, &format!("{case}/y")));
            let got = match (c, case.contains("bicubic")) {
                (3, true) => bicubic(&Rgb8::new(w, h, x).unwrap(), to_w, to_h).data,
                (3, false) => bilinear(&Rgb8::new(w, h, x).unwrap(), to_w, to_h).data,
                (1, false) => bilinear_mask(&Mask8::new(w, h, x).unwrap(), to_w, to_h).data,
                _ => planes(&x, [w, h], [to_w, to_h], 1, Filter::Bicubic),
            };
            assert_eq!(got, y, "{case}");
        }
    }

    #[test]
    fn constants_stay_and_equal_sizes_copy() {
        for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            let flat = Rgb8::new(7, 5, vec![201; 105]).unwrap();
            for (w, h) in [(1, 1), (3, 9), (20, 2), (7, 5)] {
                let got = rgb(&flat, w, h, filter);
                assert_eq!((got.width, got.height, got.data), (w, h, vec![201; w * h * 3]), "{filter:?}");
            }
            let any = Rgb8::new(3, 2, (0..18).collect()).unwrap();
            assert_eq!(rgb(&any, 3, 2, filter), any);
        }
        assert!(Filter::parse("area").unwrap_err().to_string().contains("expected nearest"));
        assert_eq!(Filter::parse("lanczos").unwrap(), Filter::Lanczos);
    }

    #[test]
    fn nearest_takes_the_pixel_below_the_centre() {
        let row = Rgb8::new(4, 1, [10u8, 20, 30, 40].iter().flat_map(|&v| [v; 3]).collect()).unwrap();
        let got = rgb(&row, 2, 1, Filter::Nearest);
        assert_eq!([got.data[0], got.data[3]], [20, 40]);
    }

    /// Open cells of the hole: mask, dilated by `d` pixels, thresholded at half, and every 8x8 cell that holds any of it.
    fn cells(mask: &Mask8, d: usize) -> Vec<f32> {
        let (w, h) = (mask.width, mask.height);
        let mut out = vec![0.0; w * h];
        for y in 0..h {
            for x in 0..w {
                if mask.data[y * w + x] < 128 {
                    continue;
                }
                let cell = |v: usize, max: usize| (v.saturating_sub(d) / 8 * 8)..(((v + d).min(max - 1) / 8 + 1) * 8);
                for r in cell(y, h) {
                    out[r * w..][cell(x, w)].fill(1.0);
                }
            }
        }
        out
    }

    #[test]
    fn the_reference_models_images_and_holes_are_reproduced() {
        let shared = Path::new("../shared");
        if !shared.is_dir() {
            println!("skipped: ../shared absent");
            return;
        }
        let data = shared.join("data/ham10000");
        for file in ["inpaint-seed0", "inpaint-seed1-eta", "inpaint-seed2-strength"] {
            let store = Store::open(&shared.join(format!("reference/golden/{file}.safetensors"))).unwrap();
            let (images, holes) = (store.array("image").unwrap().to_channels_last(), store.array("hole").unwrap());
            for (i, id) in store.metadata()["ids"].split(',').enumerate() {
                let image = read_rgb(&data.join(format!("images/{id}.jpg"))).unwrap();
                let mask = read_mask(&data.join(format!("masks/{id}_segmentation.png")), (image.width, image.height)).unwrap();
                let got = bicubic(&image, 128, 128);
                let want = images.rows(i, i + 1).data;
                let differences = || got.data.iter().zip(&want).map(|(&a, &b)| (f32::from(a) - 255.0 * b).abs());
                let (worst, sum) = (differences().fold(0.0, f32::max), differences().sum::<f32>());
                let mean = sum / want.len() as f32;
                println!("{file} {id}: max {worst:.3}/255, mean {mean:.5}/255");
                // libjpeg and our decoder round differently: measured max 3, mean 0.27.
                assert!(worst <= 3.01 && mean <= 0.4, "{file} {id}: max {worst}/255, mean {mean}/255");
                assert!(cells(&bilinear_mask(&mask, 128, 128), 4) == holes.rows(i, i + 1).data, "{file} {id}: the hole differs");
            }
        }
    }
}
