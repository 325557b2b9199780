//! The ops' goldens: cases computed by PyTorch in float64 (tools/golden.py), carried inside the program so that
//! `naevus check` can prove the twins on a user's machine.

use std::collections::BTreeMap;

use crate::base::{Array, Error, Kind, Result};
use crate::plan::{Case, Op};
use crate::weights::embedded::embedded;

macro_rules! goldens {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../tests/golden/ops/", $name, ".safetensors")))),+]
    };
}

/// Op name and golden file. A test holds this list against `ops::ALL`.
pub static FILES: &[(&str, &[u8])] = goldens![
    "activation",
    "attention",
    "binary",
    "channel_affine",
    "concat",
    "conv2d",
    "convert",
    "count_nonfinite",
    "ddim_step",
    "divide",
    "embedding",
    "gated",
    "group_moments",
    "group_norm",
    "group_norm_apply",
    "image_to_tensor",
    "layer_norm",
    "matmul",
    "modulate",
    "nearest_row",
    "permute",
    "pool2d",
    "reduce",
    "repeat",
    "resize_bilinear",
    "slice",
    "softmax",
    "solver_step",
    "tensor_to_image",
    "threshold_quantile",
    "timestep_embedding",
    "upsample_nearest",
];

/// The goldens of one op, in PyTorch's axis order: `<case>/<input>` and `<case>/y`.
pub struct Goldens(BTreeMap<String, Array>);

impl Goldens {
    pub fn of(op: &Op) -> Result<Goldens> {
        let place = format!("golden {}", op.name);
        let found = FILES.iter().find(|(name, _)| *name == op.name);
        let (_, bytes) = found.ok_or_else(|| Error::new(Kind::Numeric, place.clone(), "the program carries no golden of this op"))?;
        Ok(Goldens(embedded(&place, bytes)?))
    }

    /// Case names in the file.
    pub fn cases(&self) -> Vec<&str> {
        self.0.keys().filter_map(|name| name.strip_suffix("/y")).collect()
    }

    /// The case's inputs in our axis order.
    pub fn inputs(&self, case: &Case) -> Result<Vec<Array>> {
        let one = |input: &crate::plan::CaseInput| {
            let array = self.get(case, input.name)?;
            if array.dims() != input.shape {
                let fact = format!("golden is {}, the case says {:?}", array.shape, input.shape);
                return Err(Error::new(Kind::Shape, format!("{}/{}", case.name, input.name), fact));
            }
            Ok(match input.layout.order() {
                Some(order) => array.permute(order),
                None => array.clone(),
            })
        };
        case.inputs.iter().map(one).collect()
    }

    /// The expected result in PyTorch's axis order.
    pub fn expected(&self, case: &Case) -> Result<&Array> {
        self.get(case, "y")
    }

    fn get(&self, case: &Case, name: &str) -> Result<&Array> {
        let key = format!("{}/{name}", case.name);
        self.0.get(&key).ok_or_else(|| Error::new(Kind::Numeric, key, "the golden file does not hold it; run tools/golden.py"))
    }
}
