//! Floor 5: how far a feature vector is from a class, and which samples are kept by it. Pure functions on host arrays.
//! In every score a larger value is further out.

pub mod keep;
pub mod knn;
pub mod mahalanobis;

pub use keep::{keep, percentile};
pub use knn::Neighbours;
pub use mahalanobis::Gaussian;

use crate::base::{Array, Error, Kind, Result};

/// Which outlier score decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// [`Gaussian::score`].
    Mahalanobis,
    /// [`Neighbours::score`].
    Knn,
}

impl Method {
    pub const ALL: [Method; 2] = [Method::Mahalanobis, Method::Knn];

    pub fn name(self) -> &'static str {
        match self {
            Method::Mahalanobis => "mahalanobis",
            Method::Knn => "knn",
        }
    }

    pub fn parse(name: &str) -> Result<Method> {
        let found = Method::ALL.into_iter().find(|m| m.name() == name);
        found.ok_or_else(|| Error::new(Kind::Usage, "--method", format!("`{name}`, expected mahalanobis or knn")))
    }
}

/// Rows and columns of features `[n, d]`; fails on another rank, fewer than `least` rows, no columns or a value that is not finite.
fn matrix(place: &str, features: &Array, least: usize) -> Result<(usize, usize)> {
    let &[n, d] = features.dims() else {
        return Err(Error::new(Kind::Shape, place, format!("features are {}, expected [n, d]", features.shape)));
    };
    if n < least || d == 0 {
        return Err(Error::new(Kind::Data, place, format!("{n} reference features of {d} values, expected at least {least} of at least 1")));
    }
    match features.data.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(Error::new(Kind::Numeric, place, format!("value {} of feature {} is not finite", at % d, at / d))),
        None => Ok((n, d)),
    }
}

fn same_width(place: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::new(Kind::Shape, place, format!("a feature of {found} values, expected {expected}"))) }
}
