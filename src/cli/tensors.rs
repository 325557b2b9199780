//! The input tensors of `forward`.

use std::path::Path;

use crate::base::{Array, Result};
use crate::weights::Store;

/// Tensors of an input file, read with the shapes that a component wants.
pub(crate) struct Inputs {
    store: Store,
}

impl Inputs {
    pub(crate) fn open(path: &Path) -> Result<Inputs> {
        Ok(Inputs { store: Store::open(path)? })
    }

    /// An f32 tensor in our axis order.
    pub(crate) fn tensor(&self, name: &str) -> Result<Array> {
        Ok(self.store.array(name)?.to_channels_last())
    }

    pub(crate) fn indices(&self, name: &str) -> Result<Vec<u32>> {
        self.store.indices(name)
    }
}
