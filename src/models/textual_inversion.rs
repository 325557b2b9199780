//! Textual inversion: words that a fine-tune learned, as rows for a text encoder's table of tokens.
//! Gal et al., "An Image is Worth One Word" (2022). Files of diffusers (one tensor, named as the word), of AUTOMATIC1111's
//! web UI (`string_to_param`, `emb_params`) and those for Stable Diffusion XL's two encoders (`clip_l`, `clip_g`).

use std::path::{Path, PathBuf};

use crate::base::{Array, Error, Kind, Result};
use crate::models::clip_text::ClipText;
use crate::models::tokenizer::Tokenizer;
use crate::weights::Store;

/// Names that diffusers gives such a file in a folder.
const FILE_NAMES: [&str; 2] = ["learned_embeds.safetensors", "learned_embeds.bin"];
/// Tensors that do not name the word.
const NAMELESS: [&str; 2] = ["string_to_param.*", "emb_params"];
/// Numbers of the word in the tokenizer it was learned with.
const MARKS: &str = "string_to_token.";
const TWO: [&str; 2] = ["clip_l", "clip_g"];
/// Widths of the text encoders of Stable Diffusion 1, 2 and XL.
const CLIP_WIDTHS: [usize; 3] = [768, 1024, 1280];
/// Vectors of one word.
const MOST_VECTORS: usize = 1024;

/// A file of one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inversion {
    /// The word in prompts; None: the file's own, or the file's name where it has none.
    pub token: Option<String>,
    pub path: PathBuf,
}

impl Inversion {
    /// `PATH`, or `PATH=TOKEN` where there is no file of that whole name.
    pub fn parse(text: &str) -> Inversion {
        match text.rsplit_once('=') {
            Some((path, token)) if !path.is_empty() && !token.is_empty() && !Path::new(text).exists() => {
                Inversion { token: Some(token.to_string()), path: path.into() }
            }
            _ => Inversion { token: None, path: text.into() },
        }
    }
}

/// A learned word.
#[derive(Clone, Debug)]
pub struct Learned {
    place: String,
    pub token: String,
    /// `[n, D]` for each text encoder: one, or Stable Diffusion XL's two.
    tables: Vec<Array>,
}

impl Learned {
    /// Reads a file, or the folder of one.
    pub fn read(inversion: &Inversion) -> Result<Learned> {
        let path = &inversion.path;
        let file = file_in(path).unwrap_or(path.clone());
        Self::from_store(&Store::open(&file)?, &file, inversion.token.clone())
    }

    /// Whether a file of tensors is one of a learned word: as a web UI names it, or one table that is named as a word or of the width
    /// of a CLIP.
    pub fn is_store(store: &Store) -> bool {
        let names: Vec<&str> = store.names().filter(|name| !name.starts_with(MARKS)).collect();
        let is_word = |name: &str, width: &usize| name.starts_with('<') || (!name.contains('.') && CLIP_WIDTHS.contains(width));
        let is_table = |name: &str| {
            let shape = store.shape(name).unwrap_or_default();
            (1..=2).contains(&shape.len())
                && shape[..shape.len() - 1].iter().all(|n| *n <= MOST_VECTORS)
                && shape.last().is_some_and(|width| is_word(name, width))
        };
        match names.as_slice() {
            [name] => NAMELESS.contains(name) || (!TWO.contains(name) && is_table(name)),
            _ => names.len() == 2 && TWO.iter().all(|name| names.contains(name)),
        }
    }

    /// The file's word is its tensor's name, the text `name` beside the tensor, or the file's own name.
    fn from_store(store: &Store, file: &Path, token: Option<String>) -> Result<Learned> {
        let place = store.place().to_string();
        let names: Vec<&str> = store.names().filter(|name| !name.starts_with(MARKS)).collect();
        let told = || store.metadata().get("name").filter(|name| !name.is_empty()).cloned();
        let stem = || told().unwrap_or_else(|| file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default());
        let (own, tensors): (String, Vec<&str>) = match names.as_slice() {
            [name] if NAMELESS.contains(name) => (stem(), vec![*name]),
            [name] if !TWO.contains(name) => (name.to_string(), vec![*name]),
            _ if names.len() == 2 && TWO.iter().all(|name| names.contains(name)) => (stem(), TWO.to_vec()),
            _ => {
                let found: Vec<String> = names.iter().take(8).map(|name| name.chars().take(40).collect()).collect();
                let fact = format!("holds {} tensors ({}), expected one learned word, or clip_l and clip_g", names.len(), found.join(", "));
                return Err(Error::new(Kind::Weights, place, fact));
            }
        };
        let tables = tensors.into_iter().map(|name| table(store, name)).collect::<Result<Vec<_>>>()?;
        if tables.iter().any(|table| table.dims()[0] != tables[0].dims()[0]) {
            return Err(Error::new(Kind::Weights, place, "clip_l and clip_g are of different lengths, expected one number of vectors"));
        }
        Ok(Learned { place, token: token.unwrap_or(own), tables })
    }

    /// The file, as errors show it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Vectors of the word, and their widths for each text encoder.
    pub fn sizes(&self) -> (usize, Vec<usize>) {
        (self.tables.first().map_or(0, |table| table.dims()[0]), self.tables.iter().map(|table| table.dims()[1]).collect())
    }

    /// Adds the word to encoder `at` of `of`. A word of several vectors is `<tok>`, `<tok>_1` and so on, of which
    /// a prompt needs the first alone.
    pub fn add(&self, tokenizer: &mut Tokenizer, encoder: &mut ClipText, at: usize, of: usize) -> Result<()> {
        if self.tables.len() != of {
            let fact = format!("is learned for {} text encoders, expected {of} as the pipeline has", self.tables.len());
            return Err(Error::new(Kind::Weights, self.place.clone(), fact));
        }
        let [vectors, width] = [0, 1].map(|axis| self.tables[at].dims()[axis]);
        let mut rows = Vec::new();
        for i in 0..vectors {
            let name = if i == 0 { self.token.clone() } else { format!("{}_{i}", self.token) };
            let number = tokenizer.add(&name).map_err(|e| e.within(&self.place))?;
            rows.push((number, &self.tables[at].data[i * width..(i + 1) * width]));
        }
        encoder.set_tokens(&rows).map_err(|e| e.within(&self.place))
    }
}

/// The file of a learned word in a folder.
pub fn file_in(folder: &Path) -> Option<PathBuf> {
    FILE_NAMES.iter().map(|name| folder.join(name)).find(|file| folder.is_dir() && file.is_file())
}

/// `[n, D]`, of `[n, D]` or `[D]`, with finite values.
fn table(store: &Store, name: &str) -> Result<Array> {
    let wrong = |fact: String| Error::new(Kind::Weights, format!("{}: {name}", store.place()), fact);
    let shape = store.shape(name).unwrap_or_default().to_vec();
    let dims = match *shape.as_slice() {
        [width] if width > 0 => [1, width],
        [n @ 1..=MOST_VECTORS, width] if width > 0 => [n, width],
        _ => return Err(wrong(format!("{shape:?}, expected [vectors, width] with at most {MOST_VECTORS} vectors"))),
    };
    let array = store.array(name)?;
    match array.data.iter().find(|v| !v.is_finite()) {
        Some(v) => Err(wrong(format!("holds {v}, expected finite values"))),
        None => Array::new(&dims, array.data),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Writer;

    fn file(name: &str, tensors: &[(&str, &[usize], f32)]) -> (tempfile::TempDir, Inversion) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        let mut writer = Writer::new();
        for (name, shape, value) in tensors {
            writer.f32(name, shape, vec![*value; shape.iter().product()]).unwrap();
        }
        writer.write(&path).unwrap();
        (dir, Inversion { token: None, path })
    }

    #[test]
    fn the_word_is_the_tensors_name_or_the_files() {
        let (_dir, inversion) = file("a.safetensors", &[("<mole>", &[2, 3], 1.0)]);
        let learned = Learned::read(&inversion).unwrap();
        assert_eq!((learned.token.as_str(), learned.tables[0].dims()), ("<mole>", &[2usize, 3][..]));
        let named = Inversion { token: Some("nevus".to_string()), ..inversion };
        assert_eq!(Learned::read(&named).unwrap().token, "nevus");
        let (_dir, inversion) = file("wart.safetensors", &[("emb_params", &[3], 1.0)]);
        let learned = Learned::read(&inversion).unwrap();
        assert_eq!((learned.token.as_str(), learned.tables[0].dims()), ("wart", &[1usize, 3][..]));
        let (_dir, inversion) = file("x.safetensors", &[("clip_g", &[2, 5], 1.0), ("clip_l", &[2, 3], 1.0)]);
        let learned = Learned::read(&inversion).unwrap();
        assert_eq!((learned.token.as_str(), learned.tables[0].dims()[1], learned.tables[1].dims()[1]), ("x", 3, 5));
        let (dir, _inversion) = file("learned_embeds.safetensors", &[("<mole>", &[3], 1.0)]);
        assert_eq!(Learned::read(&Inversion { token: None, path: dir.path().into() }).unwrap().token, "<mole>");
    }

    #[test]
    fn a_word_is_told_from_other_tensors() {
        let rows: [(&str, &[usize], bool); 7] = [
            ("<mole>", &[2, 8], true),
            ("mole", &[768], true),
            ("mole", &[2, 1024], true),
            ("emb_params", &[2, 8], true),
            ("input_ids", &[1, 77], false),
            ("conv_in.weight", &[4, 768], false),
            ("sample", &[1, 4, 768], false),
        ];
        for (name, shape, want) in rows {
            let (_dir, inversion) = file("x.safetensors", &[(name, shape, 1.0)]);
            assert_eq!(Learned::is_store(&Store::open(&inversion.path).unwrap()), want, "{name} {shape:?}");
        }
    }

    #[test]
    fn what_is_no_word_is_named() {
        let rows: [(&[(&str, &[usize], f32)], &str); 5] = [
            (&[("a", &[2], 0.0), ("b", &[2], 0.0)], "holds 2 tensors (a, b), expected one learned word"),
            (&[("clip_l", &[2], 0.0)], "holds 1 tensors (clip_l)"),
            (&[("clip_l", &[1, 2], 0.0), ("clip_g", &[2, 2], 0.0)], "of different lengths"),
            (&[("a", &[1, 2, 3], 0.0)], "[1, 2, 3], expected [vectors, width]"),
            (&[("a", &[1, 2], f32::NAN)], "holds NaN, expected finite values"),
        ];
        for (tensors, want) in rows {
            let (_dir, inversion) = file("x.safetensors", tensors);
            let error = Learned::read(&inversion).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn a_flag_is_a_path_with_or_without_a_word() {
        assert_eq!(Inversion::parse("a.pt=<mole>"), Inversion { token: Some("<mole>".to_string()), path: "a.pt".into() });
        assert_eq!(Inversion::parse("a.pt"), Inversion { token: None, path: "a.pt".into() });
    }
}
