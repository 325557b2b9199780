//! Floor 0: what every floor speaks of. Shapes, host arrays, errors, counter-based noise, the comparer.

pub mod array;
pub mod compare;
pub mod error;
pub mod files;
pub mod rng;
pub mod shape;
pub mod stored;

pub use array::Array;
pub use compare::{Comparison, Tolerance, compare};
pub use error::{Error, Kind, Result};
pub use shape::{DType, Shape};
pub use stored::{Halves, Stored};
