//! The CPU executor: the plan's steps through the ops' twins, on rayon's threads.

use rayon::prelude::*;

use crate::base::{Error, Kind, Result, Shape, Stored};
use crate::plan::{Plan, Session, StepTimes, Storage, Tensor, TensorKind, Timer, TwinCall};

/// A plan with its buffers in host memory.
pub struct CpuSession {
    plan: Plan,
    slots: Vec<Vec<f32>>,
    /// Per tensor; empty for weights (read in place), for tensors that live in a slot and for reshaped ones.
    own: Vec<Vec<f32>>,
    /// For a step's 16-bit weights as f32, one for each input. They stay between steps.
    widened: Vec<Vec<f32>>,
}

/// Values of a 16-bit weight that one task widens.
const TASK: usize = 1 << 16;

impl CpuSession {
    /// Allocates the plan's buffers.
    pub fn new(plan: Plan) -> Self {
        let slots = plan.slots.iter().map(|&bytes| vec![0.0; (bytes / 4) as usize]).collect();
        let own_len = |i: usize| {
            let info = &plan.tape.tensors[i];
            let has_none = matches!(info.kind, TensorKind::Weight(_) | TensorKind::Reshaped(_));
            if plan.storage[i] == Storage::Own && !has_none { info.shape.numel() } else { 0 }
        };
        let own = (0..plan.storage.len()).map(|i| vec![0.0; own_len(i)]).collect();
        CpuSession { plan, slots, own, widened: Vec::new() }
    }

    fn values(&self, tensor: Tensor) -> &[f32] {
        let i = self.plan.tape.owner(tensor).index();
        let len = self.plan.tape.shape(tensor).numel();
        match (&self.plan.tape.tensors[i].kind, self.plan.storage[i]) {
            (TensorKind::Weight(weight), _) => weight.array.as_f32().unwrap_or_default(),
            (_, Storage::Slot(slot)) => &self.slots[slot][..len],
            _ => &self.own[i],
        }
    }

    /// The weight behind `tensor` where its values have 16 bits.
    fn narrow(&self, tensor: Tensor) -> Option<&Stored> {
        match &self.plan.tape.info(self.plan.tape.owner(tensor)).kind {
            TensorKind::Weight(weight) if weight.array.as_f32().is_none() => Some(&weight.array),
            _ => None,
        }
    }

    fn run_step(&mut self, s: usize) {
        let output = self.plan.tape.steps[s].output;
        let place = self.plan.storage[output.index()];
        let mut buffer = match place {
            Storage::Slot(slot) => std::mem::take(&mut self.slots[slot]),
            _ => std::mem::take(&mut self.own[output.index()]),
        };
        let step = &self.plan.tape.steps[s];
        let mut widened = std::mem::take(&mut self.widened);
        // An input that stands for an absent one is widened once.
        let first = |t: &Tensor| step.inputs.iter().position(|other| other == t).unwrap_or_default();
        let narrow = step.inputs.iter().enumerate().filter(|(at, t)| first(t) == *at).filter_map(|(at, &t)| Some((at, self.narrow(t)?)));
        for (at, weight) in narrow {
            widened.resize_with(widened.len().max(at + 1), Vec::new);
            let into = &mut widened[at];
            if into.len() < weight.len() {
                *into = vec![0.0; weight.len()];
            }
            into[..weight.len()].par_chunks_mut(TASK).enumerate().for_each(|(task, into)| weight.widen(task * TASK, into));
        }
        let input = |t: &Tensor| self.narrow(*t).map_or_else(|| self.values(*t), |weight| &widened[first(t)][..weight.len()]);
        let inputs: Vec<&[f32]> = step.inputs.iter().map(input).collect();
        let shapes: Vec<&Shape> = step.inputs.iter().map(|&t| self.plan.tape.shape(t)).collect();
        let output_shape = self.plan.tape.shape(output);
        let len = output_shape.numel();
        let mut call = TwinCall { params: &step.params, inputs: &inputs, shapes: &shapes, output: &mut buffer[..len], output_shape };
        (step.op.twin)(&mut call);
        self.widened = widened;
        match place {
            Storage::Slot(slot) => self.slots[slot] = buffer,
            _ => self.own[output.index()] = buffer,
        }
    }
}

impl Session for CpuSession {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn write_tensor(&mut self, tensor: Tensor, values: &[f32]) -> Result<()> {
        let own = &mut self.own[tensor.index()];
        if own.len() != values.len() {
            let place = self.plan.tape.info(tensor).place.clone();
            return Err(Error::new(Kind::Shape, place, format!("{} values, expected {}", values.len(), own.len())));
        }
        own.copy_from_slice(values);
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        for s in 0..self.plan.tape.steps.len() {
            self.run_step(s);
        }
        for c in 0..self.plan.tape.carries.len() {
            let (from, to) = self.plan.tape.carries[c];
            let values = self.values(from).to_vec();
            self.own[to.index()].copy_from_slice(&values);
        }
        Ok(())
    }

    fn run_timed(&mut self) -> Result<StepTimes> {
        let timed = |session: &mut Self, s| {
            let start = std::time::Instant::now();
            session.run_step(s);
            start.elapsed().as_secs_f64() * 1e3
        };
        Ok(StepTimes { ms: (0..self.plan.tape.steps.len()).map(|s| timed(self, s)).collect(), timer: Timer::Wall })
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn read_tensor(&mut self, tensor: Tensor) -> Result<Vec<f32>> {
        if !self.plan.readable(tensor) {
            return Err(Error::new(Kind::Usage, self.plan.tape.info(tensor).place.clone(), "this tensor is not kept by the plan; tap it"));
        }
        Ok(self.narrow(tensor).map_or_else(|| self.values(tensor).to_vec(), |weight| weight.values().into_owned()))
    }

    fn first_nonfinite(&mut self) -> Result<Option<String>> {
        for s in 0..self.plan.tape.steps.len() {
            self.run_step(s);
            let step = &self.plan.tape.steps[s];
            let (output, place, op) = (step.output, step.place.clone(), step.op.name);
            let is_float = self.plan.tape.dtype(output) == crate::base::DType::F32;
            if is_float && self.values(output).iter().any(|v| !v.is_finite()) {
                return Ok(Some(format!("{place} ({op})")));
            }
        }
        Ok(None)
    }
}
