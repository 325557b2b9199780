//! Images and lesion masks from files: JPEG, PNG, TIFF, BMP and WebP, told by their content and not by their name.
//! A file that can't be used is an error of [`Kind::Image`] that names the file and the fact.

use std::io::{Cursor, Read};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use super::jpeg;
use crate::base::{Error, Kind, Result};

/// Largest width and height, in pixels.
pub const MAX_SIDE: u32 = 32_768;
/// Largest file, and largest decoded image, in bytes.
pub const MAX_BYTES: u64 = 1 << 30;

/// An RGB image: `height` rows of `width` pixels, three bytes each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb8 {
    pub width: usize,
    pub height: usize,
    /// `[height, width, 3]`, row-major.
    pub data: Vec<u8>,
}

/// One byte a pixel. As read from a file it is a mask of 0 and 255, where 255 is the lesion; resized it has values between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask8 {
    pub width: usize,
    pub height: usize,
    /// `[height, width]`, row-major.
    pub data: Vec<u8>,
}

impl Rgb8 {
    /// Fails when `data` is not `3 * width * height` bytes or the image is empty.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Rgb8> {
        filled("RGB image", width, height, 3, data.len())?;
        Ok(Rgb8 { width, height, data })
    }
}

impl Mask8 {
    /// Fails when `data` is not `width * height` bytes or the mask has no pixels.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Mask8> {
        filled("mask", width, height, 1, data.len())?;
        Ok(Mask8 { width, height, data })
    }

    /// Pixels that are not zero.
    pub fn area(&self) -> usize {
        self.data.iter().filter(|&&v| v != 0).count()
    }
}

fn filled(place: &str, width: usize, height: usize, channels: usize, bytes: usize) -> Result<()> {
    let expected = width.checked_mul(height).and_then(|n| n.checked_mul(channels));
    if expected != Some(bytes) || bytes == 0 {
        return Err(Error::new(Kind::Shape, place, format!("{bytes} bytes, expected {channels} for each of {width}x{height} pixels")));
    }
    Ok(())
}

/// Reads an image upright (EXIF orientation applied) as 8-bit RGB. Grey is repeated, 16 bits are rounded to 8, and an alpha
/// channel is dropped, as PIL's `convert("RGB")` does: the colours below it are the picture.
pub fn read_rgb(path: &Path) -> Result<Rgb8> {
    let rgb = decode(path)?.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Ok(Rgb8 { width, height, data: rgb.into_raw() })
}

/// Reads a lesion mask of an image of `expected` = (width, height) pixels: 255 where any colour channel is not zero.
/// Fails on another size, and on a mask without a lesion or without skin.
pub fn read_mask(path: &Path, expected: (usize, usize)) -> Result<Mask8> {
    let decoded = decode(path)?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let wrong = |fact: String| Error::new(Kind::Image, path.display().to_string(), fact);
    if (width, height) != expected {
        return Err(wrong(format!("the mask is {width}x{height}, expected {}x{} as its image is", expected.0, expected.1)));
    }
    let data = lesion(decoded);
    let area = data.iter().filter(|&&v| v != 0).count();
    if area == 0 {
        return Err(wrong(format!("the mask is empty: all {width}x{height} pixels are 0, expected a lesion that is not")));
    }
    if area == data.len() {
        return Err(wrong(format!("the mask is full: none of {width}x{height} pixels is 0, expected skin around the lesion")));
    }
    Ok(Mask8 { width, height, data })
}

/// Compares samples before any conversion: a 16-bit 1 is not zero, though it is as 8 bits.
fn lesion(decoded: DynamicImage) -> Vec<u8> {
    fn any<T: PartialEq + Default>(samples: &[T], channels: usize, colours: usize) -> Vec<u8> {
        let zero = T::default();
        samples.chunks_exact(channels).map(|p| if p[..colours].iter().any(|v| *v != zero) { 255 } else { 0 }).collect()
    }
    match &decoded {
        DynamicImage::ImageLuma8(b) => any(b.as_raw(), 1, 1),
        DynamicImage::ImageLumaA8(b) => any(b.as_raw(), 2, 1),
        DynamicImage::ImageRgb8(b) => any(b.as_raw(), 3, 3),
        DynamicImage::ImageRgba8(b) => any(b.as_raw(), 4, 3),
        DynamicImage::ImageLuma16(b) => any(b.as_raw(), 1, 1),
        DynamicImage::ImageLumaA16(b) => any(b.as_raw(), 2, 1),
        DynamicImage::ImageRgb16(b) => any(b.as_raw(), 3, 3),
        DynamicImage::ImageRgba16(b) => any(b.as_raw(), 4, 3),
        DynamicImage::ImageRgb32F(b) => any(b.as_raw(), 3, 3),
        DynamicImage::ImageRgba32F(b) => any(b.as_raw(), 4, 3),
        _ => any(decoded.to_rgb16().as_raw(), 3, 3),
    }
}

fn decode(path: &Path) -> Result<DynamicImage> {
    let wrong = |fact: String| Error::new(Kind::Image, path.display().to_string(), fact);
    let bytes = read_file(path)?;
    let cannot = |e: image::ImageError| wrong(format!("cannot be decoded: {e}"));
    let mut reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().map_err(|e| Error::io(path, &e))?;
    let format = reader.format().ok_or_else(|| wrong("not an image, expected JPEG, PNG, TIFF, BMP or WebP".to_string()))?;
    if format == image::ImageFormat::Jpeg && !jpeg_ends(&bytes) {
        return Err(wrong("truncated: the JPEG data has no end-of-image marker".to_string()));
    }
    reader.limits(limits());
    let mut decoder = reader.into_decoder().map_err(cannot)?;
    let (width, height) = decoder.dimensions();
    if width > MAX_SIDE || height > MAX_SIDE || decoder.total_bytes() > MAX_BYTES {
        return Err(wrong(format!("{width}x{height} pixels, expected at most {MAX_SIDE} a side and {MAX_BYTES} bytes")));
    }
    if width == 0 || height == 0 {
        return Err(wrong(format!("{width}x{height} pixels, expected at least one")));
    }
    // A broken EXIF block says nothing about orientation; the pixels are still good.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let ours = if format == image::ImageFormat::Jpeg { jpeg::decode(&bytes).map_err(|fact| wrong(format!("cannot be decoded: {fact}")))? } else { None };
    let mut decoded = match ours {
        Some(image) if (image.width(), image.height()) == (width, height) => image,
        Some(image) => return Err(wrong(format!("{}x{} pixels in one header, {width}x{height} in another", image.width(), image.height()))),
        None => DynamicImage::from_decoder(decoder).map_err(cannot)?,
    };
    decoded.apply_orientation(orientation);
    Ok(decoded)
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    limits
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let wrong = |fact: String| Error::new(Kind::Image, path.display().to_string(), fact);
    let broken = |e: std::io::Error| wrong(e.to_string());
    let meta = std::fs::metadata(path).map_err(broken)?;
    if !meta.is_file() {
        return Err(wrong("not a file, expected an image file".to_string()));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(broken)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(broken)?;
    match bytes.len() as u64 {
        0 => Err(wrong("0 bytes, expected an image".to_string())),
        n if n > MAX_BYTES => Err(wrong(format!("more than {MAX_BYTES} bytes, expected an image file of at most that size"))),
        _ => Ok(bytes),
    }
}

/// Whether an end-of-image marker (FF D9) follows the first scan. The decoder fills what is missing with grey without a word.
/// Segments before the scan are skipped by their length: one may hold a whole thumbnail.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some([0xff, marker, rest @ ..]) = bytes.get(at..) {
        match (marker, rest) {
            (0xff, _) => at += 1,
            (0x01 | 0xd0..=0xd8, _) => at += 2,
            (0xda, rest) => return rest.windows(2).any(|w| w == [0xff, 0xd9]),
            (_, [high, low, ..]) => at += 2 + usize::from(u16::from_be_bytes([*high, *low])).max(2),
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, ImageBuffer, ImageEncoder, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba};
    use std::path::PathBuf;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 20) as u8, (y * 20) as u8, 7]))
    }

    fn saved(dir: &tempfile::TempDir, name: &str, image: &DynamicImage, format: ImageFormat) -> PathBuf {
        let path = dir.path().join(name);
        image.save_with_format(&path, format).unwrap();
        path
    }

    #[test]
    fn every_format_is_read_whatever_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let want = gradient(9, 6);
        for format in [ImageFormat::Png, ImageFormat::Tiff, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Jpeg] {
            let path = saved(&dir, "misnamed.jpg", &want.clone().into(), format);
            let got = read_rgb(&path).unwrap();
            assert_eq!((got.width, got.height), (9, 6), "{format:?}");
            let worst = got.data.iter().zip(want.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= if format == ImageFormat::Jpeg { 40 } else { 0 }, "{format:?}: {worst}");
        }
    }

    #[test]
    fn other_pixel_types_become_rgb() {
        let dir = tempfile::tempdir().unwrap();
        let grey = ImageBuffer::from_pixel(2, 2, Luma([9u8]));
        let deep = ImageBuffer::from_pixel(2, 2, Rgb([65535u16, 257 * 10, 0]));
        let clear = ImageBuffer::from_pixel(2, 2, Rgba([1u8, 2, 3, 0]));
        let rows = [(DynamicImage::from(grey), [9u8, 9, 9]), (deep.into(), [255, 10, 0]), (clear.into(), [1, 2, 3])];
        for (image, want) in rows {
            let got = read_rgb(&saved(&dir, "a.png", &image, ImageFormat::Png)).unwrap();
            assert_eq!(got.data[..3], want);
        }
    }

    /// A TIFF-format EXIF block with one entry, Orientation.
    fn exif(orientation: u8) -> Vec<u8> {
        let mut block = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        block.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        block
    }

    #[test]
    fn exif_orientation_is_applied() {
        let dir = tempfile::tempdir().unwrap();
        let source = gradient(4, 2);
        let path = dir.path().join("a.png");
        // 6: the stored rows are the columns of the upright image, right to left.
        for (orientation, size, first) in [(1, (4, 2), source.get_pixel(0, 0)), (6, (2, 4), source.get_pixel(0, 1)), (3, (4, 2), source.get_pixel(3, 1))] {
            let mut file = std::fs::File::create(&path).unwrap();
            let mut encoder = image::codecs::png::PngEncoder::new(&mut file);
            encoder.set_exif_metadata(exif(orientation)).unwrap();
            encoder.write_image(source.as_raw(), 4, 2, image::ExtendedColorType::Rgb8).unwrap();
            let got = read_rgb(&path).unwrap();
            assert_eq!((got.width, got.height), size, "orientation {orientation}");
            assert_eq!(got.data[..3], first.0, "orientation {orientation}");
        }
    }

    #[test]
    fn unusable_files_are_errors_that_name_them() {
        let dir = tempfile::tempdir().unwrap();
        let good: DynamicImage = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * y) as u8, (x * 7 + y * 13) as u8, (x ^ y) as u8])).into();
        let mut rows: Vec<(String, Vec<u8>, &str)> = vec![
            ("empty.png".into(), vec![], "0 bytes"),
            ("text.jpg".into(), b"hello, this is no image at all".to_vec(), "not an image"),
            ("noise.png".into(), (0..200u32).map(|i| (i * 37 % 251) as u8).collect(), "not an image"),
        ];
        for format in [ImageFormat::Png, ImageFormat::Tiff, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Jpeg] {
            let bytes = std::fs::read(saved(&dir, "whole", &good, format)).unwrap();
            for part in [12, bytes.len() / 3, bytes.len() * 9 / 10] {
                rows.push((format!("{format:?}-{part}"), bytes[..part].to_vec(), ""));
            }
        }
        for (name, bytes, want) in rows {
            let path = dir.path().join(&name);
            std::fs::write(&path, bytes).unwrap();
            let error = read_rgb(&path).expect_err(&name);
            assert_eq!(error.kind(), Kind::Image, "{error}");
            assert!(error.place().ends_with(&name) && error.fact().contains(want), "{error}");
        }
        for path in [dir.path().to_path_buf(), dir.path().join("absent.png")] {
            assert_eq!(read_rgb(&path).unwrap_err().kind(), Kind::Image);
        }
    }

    #[test]
    fn flipped_bytes_never_panic() {
        let dir = tempfile::tempdir().unwrap();
        for format in [ImageFormat::Png, ImageFormat::Tiff, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Jpeg] {
            let bytes = std::fs::read(saved(&dir, "whole", &gradient(12, 12).into(), format)).unwrap();
            let path = dir.path().join("flipped");
            for at in (0..bytes.len()).step_by(bytes.len() / 60 + 1) {
                for value in [0x00, 0x7f, 0xff] {
                    let mut broken = bytes.clone();
                    broken[at] = value;
                    std::fs::write(&path, broken).unwrap();
                    let _ = read_rgb(&path);
                }
            }
        }
    }

    #[test]
    fn bombs_are_refused_before_they_are_decoded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bomb.png");
        let tiny = std::fs::read(saved(&dir, "tiny.png", &GrayImage::new(1, 1).into(), ImageFormat::Png)).unwrap();
        for (width, height) in [(2_000_000u32, 1u32), (1, 40_000), (30_000, 30_000)] {
            let mut bytes = tiny.clone();
            bytes[16..20].copy_from_slice(&width.to_be_bytes());
            bytes[20..24].copy_from_slice(&height.to_be_bytes());
            // Colour type RGBA, and the header's checksum.
            bytes[25] = 6;
            let crc = crc32(&bytes[12..29]);
            bytes[29..33].copy_from_slice(&crc.to_be_bytes());
            std::fs::write(&path, &bytes).unwrap();
            let error = read_rgb(&path).unwrap_err();
            assert!(error.kind() == Kind::Image && (error.fact().contains("at most") || error.fact().contains("limit")), "{error}");
        }
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &b| (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 }))
    }

    #[test]
    fn whatever_is_not_zero_is_lesion() {
        let dir = tempfile::tempdir().unwrap();
        let left = |x: u32| x < 2;
        let images: Vec<DynamicImage> = vec![
            GrayImage::from_fn(4, 3, |x, _| Luma([u8::from(left(x))])).into(),
            ImageBuffer::from_fn(4, 3, |x, _| Luma([u16::from(left(x))])).into(),
            RgbImage::from_fn(4, 3, |x, _| Rgb([0, 0, u8::from(left(x))])).into(),
            ImageBuffer::from_fn(4, 3, |x, _| LumaA([if left(x) { 200u8 } else { 0 }, 255])).into(),
        ];
        for image in images {
            let mask = read_mask(&saved(&dir, "m.png", &image, ImageFormat::Png), (4, 3)).unwrap();
            assert_eq!(mask.data[..4], [255, 255, 0, 0], "{:?}", image.color());
            assert_eq!(mask.area(), 6);
        }
    }

    #[test]
    fn one_bit_and_palette_masks_are_read() {
        let dir = tempfile::tempdir().unwrap();
        for (colour, palette) in [(png::ColorType::Grayscale, None), (png::ColorType::Indexed, Some(vec![0u8, 0, 0, 128, 0, 0]))] {
            let path = dir.path().join("m.png");
            let mut encoder = png::Encoder::new(std::fs::File::create(&path).unwrap(), 8, 2);
            encoder.set_color(colour);
            encoder.set_depth(png::BitDepth::One);
            if let Some(palette) = palette {
                encoder.set_palette(palette);
            }
            encoder.write_header().unwrap().write_image_data(&[0b1110_0000, 0]).unwrap();
            let mask = read_mask(&path, (8, 2)).unwrap();
            assert_eq!(mask.data[..8], [255, 255, 255, 0, 0, 0, 0, 0], "{colour:?}");
            assert_eq!(mask.area(), 3);
        }
    }

    #[test]
    fn masks_of_no_use_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let part: DynamicImage = GrayImage::from_fn(4, 3, |x, _| Luma([x as u8])).into();
        let rows: [(DynamicImage, (usize, usize), &str); 4] = [
            (part.clone(), (3, 4), "the mask is 4x3, expected 3x4"),
            (part, (8, 6), "the mask is 4x3, expected 8x6"),
            (GrayImage::new(4, 3).into(), (4, 3), "the mask is empty"),
            (GrayImage::from_pixel(4, 3, Luma([1])).into(), (4, 3), "the mask is full"),
        ];
        for (image, expected, want) in rows {
            let error = read_mask(&saved(&dir, "mask.png", &image, ImageFormat::Png), expected).unwrap_err();
            assert!(error.kind() == Kind::Image && error.to_string().contains("mask.png: ") && error.fact().contains(want), "{error}");
        }
    }

    #[test]
    fn a_thumbnail_does_not_hide_a_truncated_jpeg() {
        let thumbnail = [0xff, 0xd8, 0xff, 0xda, 0, 2, 1, 0xff, 0xd9];
        let mut bytes = vec![0xff, 0xd8, 0xff, 0xe1, 0, 2 + thumbnail.len() as u8];
        bytes.extend(thumbnail);
        bytes.extend([0xff, 0xda, 0, 2, 5, 5]);
        assert!(!jpeg_ends(&bytes));
        bytes.extend([0xff, 0xd9]);
        assert!(jpeg_ends(&bytes));
        assert!(!jpeg_ends(&[0xff, 0xd8]) && !jpeg_ends(&[]) && !jpeg_ends(&[0xff, 0xd8, 0xff, 0xe1]));
    }

    #[test]
    fn sizes_are_checked() {
        assert!(Rgb8::new(2, 1, vec![0; 6]).is_ok() && Mask8::new(2, 1, vec![0; 2]).is_ok());
        assert!(Rgb8::new(2, 1, vec![0; 5]).is_err() && Mask8::new(0, 1, vec![]).is_err() && Rgb8::new(usize::MAX, 2, vec![]).is_err());
    }
}
