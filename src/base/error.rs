//! One opaque error: a kind, a place and a fact. `Display` is one line, `place: fact`.

use std::fmt;

pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, coarsely; the caller chooses an exit code by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command line or a settings file asks for something impossible.
    Usage,
    /// The operating system refused a file or folder.
    Io,
    /// A file's bytes are not what its format says.
    Format,
    /// A weight is missing, misshapen or unused.
    Weights,
    /// A model's configuration holds a field or value that is not supported.
    Config,
    /// Shapes do not fit an operator.
    Shape,
    /// A device limit would be exceeded.
    Limit,
    /// No such adapter, or the adapter failed.
    Device,
    /// An image or mask can't be used.
    Image,
    /// The data set lacks what the job needs.
    Data,
    /// A computed value is not finite or not equal to its reference.
    Numeric,
    /// The user stopped the run.
    Interrupted,
}

/// `place: fact`, one line. The place is a weight name, a file, a config field or a flag.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    place: String,
    fact: String,
}

impl Error {
    pub fn new(kind: Kind, place: impl Into<String>, fact: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, place: place.into(), fact: fact.into() }))
    }

    /// An operating system error at `path`.
    pub fn io(path: &std::path::Path, error: &std::io::Error) -> Self {
        Error::new(Kind::Io, path.display().to_string(), error.to_string())
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    pub fn place(&self) -> &str {
        &self.0.place
    }

    pub fn fact(&self) -> &str {
        &self.0.fact
    }

    /// The same error seen from one level further out: `outer.place` or `outer: place`.
    pub fn within(mut self, outer: &str) -> Self {
        if self.0.place.is_empty() {
            self.0.place = outer.to_string();
        } else {
            self.0.place = format!("{outer}: {}", self.0.place);
        }
        self
    }

    /// The same error with a remark in parentheses at the end of its fact.
    pub fn remark(mut self, remark: &str) -> Self {
        self.0.fact = format!("{} ({remark})", self.0.fact);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_line = |s: &str| s.replace(['\n', '\r'], " ");
        if self.0.place.is_empty() { write!(f, "{}", one_line(&self.0.fact)) } else { write!(f, "{}: {}", one_line(&self.0.place), one_line(&self.0.fact)) }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {}

/// Levenshtein distance in characters: finds the nearest existing name for an error.
pub fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line() {
        let e = Error::new(Kind::Shape, "conv1", "a\nb").within("unet").remark("file.safetensors");
        assert_eq!(e.to_string(), "unet: conv1: a b (file.safetensors)");
        assert_eq!(e.kind(), Kind::Shape);
    }
}
