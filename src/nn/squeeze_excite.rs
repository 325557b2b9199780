//! Channels weighed by what the whole image holds.
//! Source: Hu et al., "Squeeze-and-Excitation Networks" (2018).

use crate::base::Result;
use crate::nn::Conv2d;
use crate::ops::activation::Function;
use crate::plan::{Tape, Tensor};
use crate::weights::Scope;

/// y = x gate(expand(act(reduce(mean over the image of x)))); `reduce` and `expand` are 1x1 convolutions with a bias.
pub struct SqueezeExcite {
    name: String,
    reduce: Conv2d,
    act: Function,
    expand: Conv2d,
    gate: Function,
}

impl SqueezeExcite {
    /// `names`: of the two convolutions in the file, as `["fc1", "fc2"]`.
    pub fn load(scope: &Scope, names: [&str; 2], channels: usize, act: Function, gate: Function) -> SqueezeExcite {
        let reduce = Conv2d::as_stored(&scope.child(names[0]), channels, 1);
        let expand = Conv2d::as_stored(&scope.child(names[1]), reduce.outputs(), 1);
        if expand.outputs() != channels {
            scope.fault(&format!("{} gives {} channels, expected {channels}", names[1], expand.outputs()));
        }
        SqueezeExcite { name: scope.name().to_string(), reduce, act, expand, gate }
    }

    /// x: `[N, H, W, C]`, as is the result.
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let [n, _, _, c] = t.nhwc(x)?;
            let mean = t.global_average_pool(x)?;
            let h = t.reshape(mean, &[n, 1, 1, c])?;
            let h = self.reduce.forward(t, h)?;
            let h = t.activation(h, self.act)?;
            let h = self.expand.forward(t, h)?;
            let gate = t.activation(h, self.gate)?;
            t.mul(x, gate)
        })
    }
}
