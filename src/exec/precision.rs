//! Which tensors of a tape are stored as f16. Kernels compute in f32 whatever is stored, so f16 halves memory and traffic and
//! rounds each result once.

use std::collections::HashMap;

use crate::base::DType;
use crate::ops::convert;
use crate::plan::{Op, Step, Tape, Tensor, TensorInfo, TensorKind};

/// How a device stores floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    F32,
    F16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Precision::F32 { "f32" } else { "f16" })
    }
}

/// The same tape with weights and activations stored as f16. Ops whose card says that they stay f32 (solvers, and the angles of
/// time embeddings) keep their tensors, with `convert` steps between them and the others. Tensors keep their handles.
pub fn stored_as_f16(mut tape: Tape) -> Tape {
    let is_half = halves(&tape);
    for (info, half) in tape.tensors.iter_mut().zip(&is_half) {
        if *half {
            info.dtype = DType::F16;
        }
    }
    let mut converted = Converted::default();
    for mut step in std::mem::take(&mut tape.steps) {
        if step.op.name != convert::OP.name {
            for at in 0..step.inputs.len() {
                let wanted = if takes_half(step.op, at) { DType::F16 } else { DType::F32 };
                step.inputs[at] = converted.of(&mut tape, step.inputs[at], wanted, &step.place);
            }
        }
        tape.steps.push(step);
    }
    for at in 0..tape.carries.len() {
        let (from, to) = tape.carries[at];
        let (wanted, place) = (tape.dtype(to), tape.info(to).place.clone());
        tape.carries[at].0 = converted.of(&mut tape, from, wanted, &place);
    }
    tape
}

/// Whether the op takes f16 as input `at`, or makes it where `at` is the number of inputs.
fn takes_half(op: &Op, at: usize) -> bool {
    op.f16 && !op.statistics.contains(&at)
}

/// Per tensor, whether f16 holds it: what a step that may makes, and what only such steps read.
fn halves(tape: &Tape) -> Vec<bool> {
    let mut is_read = vec![false; tape.tensors.len()];
    let mut stays = vec![false; tape.tensors.len()];
    let mut is_made_half = vec![false; tape.tensors.len()];
    for step in &tape.steps {
        for (at, &input) in step.inputs.iter().enumerate() {
            let owner = tape.owner(input).index();
            is_read[owner] = true;
            stays[owner] |= !takes_half(step.op, at);
        }
        is_made_half[step.output.index()] = takes_half(step.op, step.inputs.len());
    }
    let own = |at: usize| match tape.tensors[at].kind {
        TensorKind::Activation => is_made_half[at],
        _ => is_read[at] && !stays[at],
    };
    (0..tape.tensors.len()).map(|at| tape.tensors[at].dtype == DType::F32 && own(tape.owner(Tensor(at as u32)).index())).collect()
}

/// Tensors that were converted already.
#[derive(Default)]
struct Converted(HashMap<Tensor, Tensor>);

impl Converted {
    /// `tensor` in the type `wanted`: itself, or a copy that a new last step makes.
    fn of(&mut self, tape: &mut Tape, tensor: Tensor, wanted: DType, place: &str) -> Tensor {
        let found = tape.dtype(tensor);
        if found == wanted || !found.is_float() {
            return tensor;
        }
        if let Some(&copy) = self.0.get(&tensor) {
            return copy;
        }
        let shape = tape.shape(tensor).clone();
        let params = convert::Params { len: shape.numel() as u32 };
        let copy = Tensor(tape.tensors.len() as u32);
        tape.tensors.push(TensorInfo { shape, dtype: wanted, kind: TensorKind::Activation, place: place.to_string() });
        let params = bytemuck::bytes_of(&params).to_vec();
        tape.steps.push(Step { op: &convert::OP, params, inputs: vec![tensor], output: copy, place: place.to_string() });
        self.0.insert(tensor, copy);
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Array;
    use crate::plan::Weight;

    /// Names of the steps and the type of each result.
    fn steps(tape: &Tape) -> Vec<(&'static str, DType)> {
        tape.steps.iter().map(|step| (step.op.name, tape.dtype(step.output))).collect()
    }

    fn weight(name: &str, dims: &[usize]) -> Weight {
        Weight::new(name, Array::new(dims, vec![0.5; dims.iter().product()]).unwrap())
    }

    /// An embedding stays f32, is converted once for both of its readers, and a name of it is as it is.
    #[test]
    fn steps_that_stay_f32_are_converted_once() {
        let mut t = Tape::new();
        let timesteps = t.input("timesteps", &[2], DType::F32);
        let frequencies = t.weight(&weight("frequencies", &[3]));
        let matrix = t.weight(&weight("matrix", &[6, 6]));
        let embedded = t.timestep_embedding(timesteps, frequencies, true, 6, false).unwrap();
        let one = t.linear(embedded, matrix, None).unwrap();
        let sum = t.add(one, embedded).unwrap();
        let flat = t.reshape(sum, &[12]).unwrap();
        t.output("y", flat);
        let t = stored_as_f16(t);
        let expected = [("timestep_embedding", DType::F32), ("convert", DType::F16), ("matmul", DType::F16), ("binary", DType::F16)];
        assert_eq!(steps(&t), expected);
        let kept = [timesteps, frequencies, matrix, flat].map(|tensor| t.dtype(tensor));
        assert_eq!(kept, [DType::F32, DType::F32, DType::F16, DType::F16]);
        assert_eq!((t.steps[2].inputs[0], t.steps[3].inputs[1]), (t.steps[1].output, t.steps[1].output));
        assert_eq!(t.info(t.steps[1].output).bytes(), 24);
    }

    /// What a run carries to the next keeps the type of the input that it becomes.
    #[test]
    fn what_is_carried_has_the_type_of_its_input() {
        let mut t = Tape::new();
        let state = t.input("state", &[2], DType::F32);
        let frequencies = t.weight(&weight("frequencies", &[1]));
        let embedded = t.timestep_embedding(state, frequencies, true, 2, false).unwrap();
        let next = t.reshape(embedded, &[4]).unwrap();
        let sum = t.add(next, next).unwrap();
        let other = t.input("other", &[4], DType::F32);
        let both = t.add(sum, other).unwrap();
        t.carry(both, other).unwrap();
        let t = stored_as_f16(t);
        assert_eq!([state, other, both].map(|tensor| t.dtype(tensor)), [DType::F32, DType::F16, DType::F16]);
        assert_eq!(t.carries, [(both, other)]);

        let mut t = Tape::new();
        let state = t.input("state", &[1], DType::F32);
        let frequencies = t.weight(&weight("frequencies", &[1]));
        t.timestep_embedding(state, frequencies, true, 2, false).unwrap();
        let half = t.input("half", &[1], DType::F32);
        let double = t.add(half, half).unwrap();
        t.carry(double, state).unwrap();
        let t = stored_as_f16(t);
        assert_eq!(steps(&t).last(), Some(&("convert", DType::F32)));
        assert_eq!(t.carries, [(t.steps[2].output, state)]);
    }

    #[test]
    fn integers_and_what_nothing_reads_stay() {
        let mut t = Tape::new();
        let table = t.weight(&weight("table", &[4, 2]));
        let rows = t.input("rows", &[3], DType::U32);
        let unread = t.input("unread", &[3], DType::F32);
        let found = t.embedding(table, rows).unwrap();
        let t = stored_as_f16(t);
        assert_eq!([table, rows, unread, found].map(|tensor| t.dtype(tensor)), [DType::F16, DType::U32, DType::F32, DType::F16]);
    }
}
