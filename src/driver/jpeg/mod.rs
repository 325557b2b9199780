//! JPEG files decoded to the bytes that Pillow gives: the classifiers and the diffusion models were trained on what libjpeg made
//! of a file, and other decoders round otherwise, up to 5 counts of 255 apart. Written from ITU T.81 and from libjpeg's arithmetic: the
//! accurate integer IDCT ([`idct`]), triangle upsampling of chroma and colour conversion in 16-bit fixed point ([`pixels`]).
//!
//! Why our own: zune-jpeg, which the `image` crate decodes with, is not exact (0.5.16-rc3 neither); libjpeg-turbo-rs 0.9 is, but
//! writes blocks through unchecked pointers even without its vector code and promises no memory safety on strangers' files.
//! Here is no unsafe code. What is decoded: baseline, extended and progressive Huffman files of 8 bits, grey or of three
//! components. Anything else (arithmetic coding, lossless, 12 bits, CMYK) is left to the `image` crate.
//!
//! Damaged data is refused, where libjpeg warns and fills with grey: half an image is no source.

mod bits;
mod headers;
mod idct;
mod pixels;
mod scan;
#[cfg(test)]
mod tests;

use image::DynamicImage;

/// Why decoding stops before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// A kind of JPEG that is not decoded here.
    Unknown,
    /// The bytes are not what they say they are.
    Damaged(&'static str),
}

type Step<T> = Result<T, Stop>;

/// Decodes a whole file: grey or RGB. `None` for a kind of JPEG that is not known here; the fact where the data are damaged.
/// Memory is bounded by the number of bytes, whatever size they claim.
pub fn decode(bytes: &[u8]) -> Result<Option<DynamicImage>, &'static str> {
    match headers::read(bytes).map(|frame| pixels::image(&frame)) {
        Ok(image) => Ok(Some(image)),
        Err(Stop::Unknown) => Ok(None),
        Err(Stop::Damaged(fact)) => Err(fact),
    }
}
