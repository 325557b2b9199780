//! Runs a case: its inputs from its name, its record on a tape, its twin.

use std::borrow::Cow;

use crate::base::{Array, DType, Error, Kind, Result, Shape, rng};
use crate::plan::{Case, Fill, Op, Tape, Tensor, TensorKind, TwinCall};

/// The case's inputs in our axis order, each a function of (op, case, input) names. Index inputs hold `u32` bits.
pub fn generated_inputs(op: &Op, case: &Case) -> Vec<Array> {
    let fill = |input: &crate::plan::CaseInput| {
        let shape = input.device_shape();
        let len = shape.iter().product();
        let seed = rng::name_seed(&format!("{}/{}/{}", op.name, case.name, input.name));
        let normal = || rng::normal(seed, 0, 0, len);
        let uniform = || rng::uniform(seed, 0, 0, len);
        let data = match input.fill {
            Fill::Normal => normal(),
            Fill::Half => normal().into_iter().map(crate::ops::convert::rounded).collect(),
            Fill::Affine { scale, shift } => normal().into_iter().map(|v| v * scale + shift).collect(),
            Fill::Uniform { low, high } => uniform().into_iter().map(|v| low + v * (high - low)).collect(),
            Fill::Binary => uniform().into_iter().map(|v| v.round()).collect(),
            Fill::Index(bound) => {
                // Two draws of 24 bits: every bit of the index varies.
                let fine = rng::uniform(seed, 0, 1, len);
                let index = |(a, b): (&f32, &f32)| ((f64::from(*a) + f64::from(*b) / f64::from(1 << 24)) * f64::from(bound)) as u32;
                uniform().iter().zip(&fine).map(index).map(f32::from_bits).collect()
            }
            Fill::NonFinite(every) => {
                let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
                normal().into_iter().enumerate().map(|(i, v)| if (i + 1) % every == 0 { odd[(i / every) % 3] } else { v }).collect()
            }
        };
        Array { shape: Shape::new(&shape), data }
    };
    case.inputs.iter().map(fill).collect()
}

/// The case on a tape of its own: one step, inputs named as in the case, the result marked as output `y`.
pub fn record(case: &Case) -> Result<(Tape, Tensor)> {
    let mut tape = Tape::new();
    let inputs: Vec<Tensor> = case.inputs.iter().map(|i| tape.input(i.name, &i.device_shape(), i.dtype())).collect();
    let y = (case.record)(&mut tape, &inputs)?;
    tape.output("y", y);
    match tape.steps() {
        [_] => Ok((tape, y)),
        steps => Err(Error::new(Kind::Shape, case.name, format!("the case records {} steps, expected 1", steps.len()))),
    }
}

/// The values that the case's one step binds, in binding order: inputs of the case, some of them twice.
pub fn bound<'a>(tape: &Tape, inputs: &'a [Array]) -> Vec<&'a [f32]> {
    // `record` made the inputs first, so a tensor's index is the input's.
    tape.steps()[0].inputs.iter().map(|t| inputs[t.index()].data.as_slice()).collect()
}

/// The twin's result on `inputs` (our axis order), and its element type.
pub fn run_twin(case: &Case, inputs: &[Array]) -> Result<(Array, DType)> {
    let (tape, y) = record(case)?;
    let values: Vec<&[f32]> = inputs.iter().map(|a| a.data.as_slice()).collect();
    let data = run_tape(&tape, &values, y).map_err(|e| e.within(case.name))?;
    Ok((Array::new(tape.shape(y).dims(), data)?, tape.dtype(y)))
}

/// The value of `output` after all steps of `tape`, by the CPU twins; `inputs` in the order in which the tape's were made.
/// Nothing is freed in between: for single kernels, not for models.
pub fn run_tape(tape: &Tape, inputs: &[&[f32]], output: Tensor) -> Result<Vec<f32>> {
    let mut given = inputs.iter();
    let mut values: Vec<Cow<[f32]>> = Vec::with_capacity(tape.tensors.len());
    for info in &tape.tensors {
        values.push(match &info.kind {
            TensorKind::Input(name) => match given.next() {
                Some(v) if v.len() == info.shape.numel() => Cow::Borrowed(*v),
                Some(v) => return Err(Error::new(Kind::Shape, name, format!("{} values, expected {} for {}", v.len(), info.shape.numel(), info.shape))),
                None => return Err(Error::new(Kind::Usage, name, "no value was given for this input")),
            },
            TensorKind::Weight(weight) => weight.array.values(),
            TensorKind::Activation => Cow::Owned(vec![0.0; info.shape.numel()]),
            TensorKind::Reshaped(_) => Cow::Owned(Vec::new()),
        });
    }
    for step in tape.steps() {
        let mut result = std::mem::take(&mut values[step.output.index()]).into_owned();
        let step_inputs: Vec<&[f32]> = step.inputs.iter().map(|&t| values[tape.owner(t).index()].as_ref()).collect();
        let shapes: Vec<&Shape> = step.inputs.iter().map(|&t| tape.shape(t)).collect();
        let output_shape = tape.shape(step.output);
        (step.op.twin)(&mut TwinCall { params: &step.params, inputs: &step_inputs, shapes: &shapes, output: &mut result, output_shape });
        values[step.output.index()] = Cow::Owned(result);
    }
    Ok(values.swap_remove(tape.owner(output).index()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::CaseInput;

    fn filled(fill: Fill) -> Vec<f32> {
        let case = Case::new("test", vec![CaseInput::new("x", &[4096], crate::plan::Layout::Plain, fill)], |t, i| t.count_nonfinite(i[0]));
        generated_inputs(&crate::ops::count_nonfinite::OP, &case).remove(0).data
    }

    #[test]
    fn inputs_depend_on_their_names_only() {
        let op = &crate::ops::activation::OP;
        let cases = (op.cases)();
        assert_eq!(generated_inputs(op, &cases[0]), generated_inputs(op, &cases[0]));
        assert_ne!(generated_inputs(op, &cases[0])[0].data, generated_inputs(op, &cases[1])[0].data);
    }

    #[test]
    fn fills_are_what_they_say() {
        // Half of 4096, within six standard deviations of 32.
        let about_half = |count: usize| (1856..2240).contains(&count);
        let bits: Vec<u32> = filled(Fill::Index(u32::MAX)).iter().map(|v| v.to_bits()).collect();
        assert!((0..32).all(|bit| about_half(bits.iter().filter(|&v| v >> bit & 1 == 1).count())));
        assert!(filled(Fill::Index(7)).iter().all(|v| v.to_bits() < 7));
        assert!(filled(Fill::Uniform { low: 0.2, high: 1.0 }).iter().all(|v| (0.2..=1.0).contains(v)));
        let binary = filled(Fill::Binary);
        assert!(binary.iter().all(|&v| v == 0.0 || v == 1.0) && about_half(binary.iter().filter(|&&v| v == 1.0).count()));
        assert_eq!(filled(Fill::NonFinite(7)).iter().filter(|v| !v.is_finite()).count(), 4096 / 7);
    }

    /// Every small case records one step, of its op, with finite values (counts and pixels aside).
    #[test]
    fn every_case_runs() {
        for op in crate::ops::ALL {
            for case in (op.cases)().iter().filter(|c| c.golden) {
                let (tape, _) = record(case).unwrap();
                assert_eq!(tape.steps()[0].op.name, op.name, "{}", case.name);
                let (y, dtype) = run_twin(case, &generated_inputs(op, case)).unwrap();
                assert!(!y.data.is_empty());
                assert!(dtype == DType::U32 || y.data.iter().all(|v| v.is_finite()), "{} {}", op.name, case.name);
            }
        }
    }

    #[test]
    fn missing_and_misshapen_inputs_are_errors() {
        let (tape, y) = record(&(crate::ops::activation::OP.cases)()[0]).unwrap();
        assert!(run_tape(&tape, &[], y).unwrap_err().fact().contains("no value"));
        assert!(run_tape(&tape, &[&[0.0; 3]], y).unwrap_err().fact().starts_with("3 values, expected 217"));
    }
}
