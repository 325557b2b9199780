//! The affine map of the last axis: torch.nn.Linear.

use crate::base::Result;
use crate::plan::{Layout, Tape, Tensor, Weight};
use crate::weights::Scope;

/// y = x weight + bias over the last axis.
pub struct Linear {
    name: String,
    /// `[I, O]`.
    pub weight: Weight,
    /// `[O]`.
    pub bias: Option<Weight>,
}

impl Linear {
    /// With a bias.
    pub fn load(scope: &Scope, inputs: usize, outputs: usize) -> Linear {
        let bias = scope.weight("bias", &[outputs], Layout::Plain);
        Linear { bias: Some(bias), ..Self::without_bias(scope, inputs, outputs) }
    }

    pub fn without_bias(scope: &Scope, inputs: usize, outputs: usize) -> Linear {
        let weight = scope.weight("weight", &[outputs, inputs], Layout::LinearWeight);
        Linear { name: scope.name().to_string(), weight, bias: None }
    }

    /// x: `[..., I]`; result `[..., O]`.
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let weight = t.weight(&self.weight);
            let bias = self.bias.as_ref().map(|bias| t.weight(bias));
            t.linear(x, weight, bias)
        })
    }
}
