//! A real image as an inpainting model takes it: its central square at the model's size, and the hole.

use crate::base::{Error, Kind, Result};
use crate::diffusion::region::Region;
use crate::driver::dataset::Item;
use crate::driver::files;
use crate::driver::image::{Mask8, Rgb8, read_mask, read_rgb};
use crate::driver::resize;

/// Resized masks count as lesion from here: one half of 255.
const THRESHOLD: u8 = 128;

/// The pixels that the sample shows outside its hole, and the hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceImage {
    /// `size` by `size`.
    pub rgb: Rgb8,
    /// The lesion, dilated.
    pub hole: Region,
    /// Of the files.
    pub source_sha256: String,
    pub mask_sha256: String,
}

/// Reads an item's image and mask and brings both to `size` by `size` pixels: the central square, as the evaluation of
/// classifiers crops it too, by Pillow's bicubic and bilinear resizing. The hole is the mask at one half, dilated by `dilate_px`.
///
/// Fails, naming the file, when one of them can't be read, when they differ in size, and when no lesion is left.
pub fn load(item: &Item, size: usize, dilate_px: usize) -> Result<SourceImage> {
    let mask_path = item.mask.as_ref().ok_or_else(|| Error::new(Kind::Data, item.id.clone(), "has no mask, expected one to say where the lesion is"))?;
    let rgb = read_rgb(&item.image)?;
    let mask = read_mask(mask_path, (rgb.width, rgb.height))?;
    let square = rgb.width.min(rgb.height);
    let rgb = resize::bicubic(&central_rgb(&rgb, square), size, size);
    let mask = resize::bilinear_mask(&central_mask(&mask, square), size, size);
    let lesion = Region::new(size, size, &mask.data, |v| v >= THRESHOLD)?;
    if lesion.area() == 0 {
        let fact = format!("no lesion is left of the mask in the central square at {size}x{size} pixels");
        return Err(Error::new(Kind::Image, mask_path.display().to_string(), fact));
    }
    Ok(SourceImage { rgb, hole: lesion.dilate(dilate_px), source_sha256: files::sha256_of(&item.image)?, mask_sha256: files::sha256_of(mask_path)? })
}

fn central_rgb(image: &Rgb8, square: usize) -> Rgb8 {
    Rgb8 { width: square, height: square, data: central(&image.data, [image.width, image.height], square, 3) }
}

fn central_mask(mask: &Mask8, square: usize) -> Mask8 {
    Mask8 { width: square, height: square, data: central(&mask.data, [mask.width, mask.height], square, 1) }
}

/// The square in the middle of a `width` by `height` image; of two middles the upper left.
fn central(data: &[u8], [width, height]: [usize; 2], square: usize, channels: usize) -> Vec<u8> {
    let (left, top) = ((width - square) / 2, (height - square) / 2);
    (top..top + square).flat_map(|y| &data[(y * width + left) * channels..(y * width + left + square) * channels]).copied().collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::driver::png_file;
    use crate::weights::Store;
    use std::path::{Path, PathBuf};

    /// Writes an RGB PNG whose pixel (x, y) is `f(x, y)`.
    pub(crate) fn write_png(path: &Path, width: usize, height: usize, f: impl Fn(usize, usize) -> [u8; 3]) -> PathBuf {
        let rgb: Vec<u8> = (0..width * height).flat_map(|i| f(i % width, i / width)).collect();
        png_file::write(path, width, height, &rgb, &[]).unwrap();
        path.to_path_buf()
    }

    pub(crate) fn item(id: &str, class: &str, image: PathBuf, mask: Option<PathBuf>) -> Item {
        Item { id: id.to_string(), class: class.to_string(), group: None, image, mask }
    }

    fn white(is_lesion: bool) -> [u8; 3] {
        [u8::from(is_lesion) * 255; 3]
    }

    #[test]
    fn the_central_square_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let image = write_png(&dir.path().join("a.png"), 20, 8, |x, y| [x as u8, y as u8, 7]);
        let mask = write_png(&dir.path().join("a_mask.png"), 20, 8, |x, y| white((8..10).contains(&x) && y == 3));
        let source = load(&item("a", "df", image.clone(), Some(mask)), 8, 1).unwrap();
        assert_eq!(source.rgb.data[..6], [6, 0, 7, 7, 0, 7], "columns 6 to 13 of 20");
        assert_eq!(source.rgb.data.len(), 8 * 8 * 3);
        let want: Vec<bool> = (0..64).map(|i| (1..=4).contains(&(i % 8)) && (2..=4).contains(&(i / 8))).collect();
        assert_eq!(source.hole.open, want, "columns 2 and 3 of row 3, dilated by one");
        assert_eq!(source.source_sha256, files::sha256_of(&image).unwrap());
    }

    #[test]
    fn images_that_can_not_be_used_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let image = write_png(&path("a.png"), 20, 8, |_, _| [9; 3]);
        let small = write_png(&path("small.png"), 8, 8, |x, _| white(x < 4));
        let aside = write_png(&path("aside.png"), 20, 8, |x, _| white(x < 3));
        let empty = write_png(&path("empty.png"), 20, 8, |_, _| white(false));
        std::fs::write(path("zero.png"), b"").unwrap();
        for (item, place, want) in [
            (item("a", "df", image.clone(), None), "a", "has no mask"),
            (item("a", "df", image.clone(), Some(small)), "small.png", "the mask is 8x8, expected 20x8"),
            (item("a", "df", image.clone(), Some(aside)), "aside.png", "no lesion is left of the mask in the central square"),
            (item("a", "df", image.clone(), Some(empty.clone())), "empty.png", "the mask is empty"),
            (item("a", "df", path("zero.png"), Some(empty.clone())), "zero.png", ""),
            (item("a", "df", path("absent.png"), Some(empty)), "absent.png", ""),
        ] {
            let error = load(&item, 8, 0).unwrap_err();
            assert!(error.place().ends_with(place) && error.fact().contains(want), "{error}");
        }
    }

    /// What PyTorch's side made of the same files with Pillow: the hole exactly, pixels but for the JPEG decoder's roundings.
    #[test]
    fn reference_inputs_are_reproduced() {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
        let path = shared.join("reference/golden/inpaint-seed0.safetensors");
        if !path.exists() {
            println!("skipped: ../shared absent");
            return;
        }
        let store = Store::open(&path).unwrap();
        let image = store.array("image").unwrap().to_channels_last();
        let hole = store.array("hole").unwrap();
        let data = shared.join("data/ham10000");
        for (i, id) in store.metadata()["ids"].split(',').enumerate() {
            let item = item(id, "", data.join(format!("images/{id}.jpg")), Some(data.join(format!("masks/{id}_segmentation.png"))));
            let source = load(&item, 128, 4).unwrap();
            let cells = source.hole.max_pool(8).enlarge(8);
            assert_eq!(cells.values(), hole.rows(i, i + 1).data, "{id}: hole");
            let want = image.rows(i, i + 1).data;
            let differences = source.rgb.data.iter().zip(&want).map(|(&a, &b)| (f32::from(a) - b * 255.0).abs());
            let worst = differences.clone().fold(0.0, f32::max);
            let mean = differences.sum::<f32>() / source.rgb.data.len() as f32;
            println!("{id}: worst {worst} of 255, mean {mean}");
            assert!(worst <= 3.0 && mean < 0.5, "{id}: {worst} of 255, mean {mean}");
        }
    }
}
