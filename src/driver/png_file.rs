//! Samples as PNG files that say that they are synthetic.

use std::path::Path;

use crate::base::{Error, Kind, Result};
use crate::driver::files;

/// The bytes of an 8-bit RGB PNG. `texts` become its text chunks; equal inputs give equal bytes.
pub fn encode(width: usize, height: usize, rgb: &[u8], texts: &[(&str, &str)]) -> Result<Vec<u8>> {
    let wrong = |fact: String| Error::new(Kind::Image, "png", fact);
    let (Ok(w), Ok(h)) = (u32::try_from(width), u32::try_from(height)) else {
        return Err(wrong(format!("{width} x {height} pixels are too many for a PNG")));
    };
    if width.checked_mul(height).and_then(|n| n.checked_mul(3)) != Some(rgb.len()) {
        return Err(wrong(format!("{} bytes, expected {width} x {height} x 3", rgb.len())));
    }
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, w, h);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in texts {
        // tEXt is Latin-1 and read by everyone; iTXt is UTF-8.
        let added = match text.is_ascii() {
            true => encoder.add_text_chunk(keyword.to_string(), text.to_string()),
            false => encoder.add_itxt_chunk(keyword.to_string(), text.to_string()),
        };
        added.map_err(|e| wrong(e.to_string()))?;
    }
    let mut writer = encoder.write_header().map_err(|e| wrong(e.to_string()))?;
    writer.write_image_data(rgb).and_then(|()| writer.finish()).map_err(|e| wrong(e.to_string()))?;
    Ok(bytes)
}

/// What every sample's file says of itself.
pub fn texts<'a>(sample_id: &'a str, settings_sha256: &'a str) -> [(&'a str, &'a str); 4] {
    [("Synthetic", "true"), ("Sample", sample_id), ("Settings-SHA256", settings_sha256), ("Software", concat!("naevus ", env!("CARGO_PKG_VERSION")))]
}

/// The text of `keyword` in a PNG file; None where the file has none.
pub fn read_text(path: &Path, keyword: &str) -> Result<Option<String>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
    let wrong = |e: png::DecodingError| Error::new(Kind::Image, path.display().to_string(), e.to_string());
    let reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().map_err(wrong)?;
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter().find(|t| t.keyword == keyword).map(|t| t.text.clone());
    let utf8 = info.utf8_text.iter().find(|t| t.keyword == keyword).and_then(|t| t.get_text().ok());
    Ok(latin.or(utf8))
}

/// Writes a sample's image and returns the SHA-256 of the file.
pub fn write(path: &Path, width: usize, height: usize, rgb: &[u8], texts: &[(&str, &str)]) -> Result<String> {
    let bytes = encode(width, height, rgb, texts).map_err(|e| e.within(&path.display().to_string()))?;
    files::write_whole(path, &bytes)?;
    Ok(files::sha256(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_and_texts_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let rgb: Vec<u8> = (0..5 * 4 * 3).map(|v| (v * 37 % 256) as u8).collect();
        let sum = write(&path, 5, 4, &rgb, &texts("df_s0_000003", "ab12")).unwrap();
        assert_eq!(sum, files::sha256_of(&path).unwrap());
        let image = image::open(&path).unwrap().to_rgb8();
        assert_eq!((image.dimensions(), image.into_raw()), ((5, 4), rgb));
        for (keyword, want) in [("Synthetic", "true"), ("Sample", "df_s0_000003"), ("Settings-SHA256", "ab12")] {
            assert_eq!(read_text(&path, keyword).unwrap().as_deref(), Some(want));
        }
        assert_eq!(read_text(&path, "Other").unwrap(), None);
    }

    #[test]
    fn other_alphabets_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        write(&path, 1, 1, &[1, 2, 3], &[("Sample", "Mélanome_s0_000000")]).unwrap();
        assert_eq!(read_text(&path, "Sample").unwrap().as_deref(), Some("Mélanome_s0_000000"));
    }

    #[test]
    fn a_wrong_count_of_bytes_is_an_error() {
        assert_eq!(encode(2, 2, &[0; 11], &[]).unwrap_err().to_string(), "png: 11 bytes, expected 2 x 2 x 3");
        assert_eq!(encode(2, 2, &[7; 12], &[]).unwrap(), encode(2, 2, &[7; 12], &[]).unwrap());
    }
}
