//! Normalisations with a learned scale and shift: torch.nn.GroupNorm and LayerNorm.

use crate::base::Result;
use crate::ops::activation::Function;
use crate::plan::{Layout, Tape, Tensor, Weight};
use crate::weights::Scope;

/// Over space and the channels of a group.
pub struct GroupNorm {
    name: String,
    /// `[C]`.
    pub weight: Weight,
    /// `[C]`.
    pub bias: Weight,
    pub groups: usize,
    pub eps: f32,
}

impl GroupNorm {
    pub fn load(scope: &Scope, channels: usize, groups: usize, eps: f32) -> GroupNorm {
        if groups == 0 || !channels.is_multiple_of(groups) {
            scope.fault(&format!("{groups} groups do not divide {channels} channels"));
        }
        let weight = scope.weight("weight", &[channels], Layout::Plain);
        let bias = scope.weight("bias", &[channels], Layout::Plain);
        GroupNorm { name: scope.name().to_string(), weight, bias, groups, eps }
    }

    /// x: `[N, ..., C]`.
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| self.record(t, x, false))
    }

    /// act(norm(x)). SiLU is part of the norm's step, which then has no tap: there is no tensor between the two.
    pub fn activated(&self, t: &mut Tape, x: Tensor, act: Function) -> Result<Tensor> {
        if act == Function::Silu {
            return t.within(&self.name, |t| self.record(t, x, true));
        }
        let h = self.forward(t, x)?;
        t.activation(h, act)
    }

    fn record(&self, t: &mut Tape, x: Tensor, silu: bool) -> Result<Tensor> {
        let (weight, bias) = (t.weight(&self.weight), t.weight(&self.bias));
        t.group_norm(x, weight, bias, self.groups, self.eps, silu)
    }
}

/// Over the last axis.
pub struct LayerNorm {
    name: String,
    /// `[C]`.
    pub weight: Weight,
    /// `[C]`.
    pub bias: Weight,
    pub eps: f32,
}

impl LayerNorm {
    pub fn load(scope: &Scope, channels: usize, eps: f32) -> LayerNorm {
        let weight = scope.weight("weight", &[channels], Layout::Plain);
        let bias = scope.weight("bias", &[channels], Layout::Plain);
        LayerNorm { name: scope.name().to_string(), weight, bias, eps }
    }

    /// x: `[..., C]`.
    pub fn forward(&self, t: &mut Tape, x: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let (weight, bias) = (t.weight(&self.weight), t.weight(&self.bias));
            t.layer_norm(x, weight, bias, self.eps)
        })
    }
}
