//! Running the rows of the ops' tables: generated inputs, the CPU twins step by step, and the comparison of results.

use crate::base::{Array, Comparison, DType, Error, Kind, Result, Shape, Tolerance, compare, rng};
use crate::plan::{Case, CaseInput, Fill, Layout, Op, Tape, Tensor, TensorKind, TwinCall};

/// A case on a tape: inputs in the case's order, the result marked as the output `y`.
pub struct Recorded {
    pub tape: Tape,
    pub inputs: Vec<Tensor>,
    pub output: Tensor,
}

/// Records `case` on a tape of its own.
pub fn record(case: &Case) -> Result<Recorded> {
    let mut tape = Tape::new();
    let inputs: Vec<Tensor> = case.inputs.iter().map(|i| tape.input(i.name, &i.device_shape(), i.dtype())).collect();
    let output = (case.record)(&mut tape, &inputs).map_err(|e| e.within(case.name))?;
    tape.output("y", output);
    Ok(Recorded { tape, inputs, output })
}

/// Inputs of `case` in our axis order, a function of their names only. Index inputs hold the bits of `u32`.
pub fn generated_inputs(op: &Op, case: &Case) -> Vec<Array> {
    case.inputs.iter().map(|input| generated(&format!("{}/{}/{}", op.name, case.name, input.name), input)).collect()
}

fn generated(name: &str, input: &CaseInput) -> Array {
    let shape = Shape::new(&input.shape);
    let len = shape.numel();
    let seed = rng::name_seed(name);
    let normal = || rng::normal(seed, 0, 0, len);
    let uniform = || rng::uniform(seed, 0, 0, len);
    let data = match input.fill {
        Fill::Normal => normal(),
        Fill::Affine { scale, shift } => normal().iter().map(|v| v * scale + shift).collect(),
        Fill::Uniform { low, high } => uniform().iter().map(|v| low + v * (high - low)).collect(),
        Fill::Binary => uniform().iter().map(|&v| if v < 0.5 { 0.0 } else { 1.0 }).collect(),
        Fill::Index(bound) => {
            // Two draws of 24 bits: every bit of the index varies.
            let fine = rng::uniform(seed, 0, 1, len);
            let index = |(a, b): (&f32, &f32)| ((f64::from(*a) + f64::from(*b) / f64::from(1 << 24)) * f64::from(bound)) as u32;
            uniform().iter().zip(&fine).map(index).map(f32::from_bits).collect()
        }
        Fill::NonFinite(every) => {
            let mut values = normal();
            let kinds = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
            values.iter_mut().step_by(every.max(1)).zip(kinds.iter().cycle()).for_each(|(v, kind)| *v = *kind);
            values
        }
    };
    to_device(Array { shape, data }, input.layout)
}

/// `array` from PyTorch's axis order to ours.
pub fn to_device(array: Array, layout: Layout) -> Array {
    match layout.order() {
        Some(order) => array.permute(order),
        None => array,
    }
}

/// How the result of `case` stands in a golden file: a result of four axes is an image, unless an input of four axes is plain.
pub fn output_layout(case: &Case, rank: usize) -> Layout {
    let plain = |i: &CaseInput| i.shape.len() == 4 && i.layout == Layout::Plain;
    if rank == 4 && !case.inputs.iter().any(plain) { Layout::Image } else { Layout::Plain }
}

/// The result of `case` by the CPU twins, in our axis order. `inputs` as from [`generated_inputs`].
pub fn run_twin(case: &Case, inputs: &[Array]) -> Result<(Array, DType)> {
    let recorded = record(case)?;
    let values: Vec<&[f32]> = inputs.iter().map(|a| a.data.as_slice()).collect();
    let data = run_tape(&recorded.tape, &values, recorded.output).map_err(|e| e.within(case.name))?;
    let shape = recorded.tape.shape(recorded.output);
    Ok((Array::new(shape.dims(), data)?, recorded.tape.dtype(recorded.output)))
}

/// The value of `output` after all steps of `tape`, by the CPU twins; `inputs` in the order in which the tape's were made.
/// Nothing is freed in between: for single kernels, not for models.
pub fn run_tape(tape: &Tape, inputs: &[&[f32]], output: Tensor) -> Result<Vec<f32>> {
    let mut values: Vec<Vec<f32>> = Vec::with_capacity(tape.tensors.len());
    let mut given = inputs.iter();
    for info in &tape.tensors {
        values.push(match &info.kind {
            TensorKind::Input(name) => match given.next() {
                Some(v) if v.len() == info.shape.numel() => v.to_vec(),
                Some(v) => return Err(Error::new(Kind::Shape, name, format!("{} values, expected {} for {}", v.len(), info.shape.numel(), info.shape))),
                None => return Err(Error::new(Kind::Usage, name, "no value was given for this input")),
            },
            TensorKind::Weight(weight) => weight.array.data.clone(),
            TensorKind::Activation => vec![0.0; info.shape.numel()],
        });
    }
    for step in tape.steps() {
        let mut result = std::mem::take(&mut values[step.output.index()]);
        let step_inputs: Vec<&[f32]> = step.inputs.iter().map(|t| values[t.index()].as_slice()).collect();
        let shapes: Vec<&Shape> = step.inputs.iter().map(|&t| tape.shape(t)).collect();
        let output_shape = tape.shape(step.output);
        (step.op.twin)(&mut TwinCall { params: &step.params, inputs: &step_inputs, shapes: &shapes, output: &mut result, output_shape });
        values[step.output.index()] = result;
    }
    Ok(values.swap_remove(output.index()))
}

/// [`compare`] for results of either element type: integers are compared byte by byte, as packed pixels and counts are.
pub fn compare_output(actual: &[f32], expected: &[f32], dtype: DType, tolerance: Tolerance) -> Comparison {
    match dtype {
        DType::F32 => compare(actual, expected, tolerance),
        DType::U32 => compare(&bytes(actual), &bytes(expected), tolerance),
    }
}

fn bytes(values: &[f32]) -> Vec<f32> {
    values.iter().flat_map(|v| v.to_bits().to_le_bytes()).map(f32::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_depend_on_their_names_only() {
        let op = &crate::ops::activation::OP;
        let cases = (op.cases)();
        let case = &cases[0];
        assert_eq!(generated_inputs(op, case), generated_inputs(op, case));
        assert_ne!(generated_inputs(op, case)[0].data, generated_inputs(op, &cases[1])[0].data);
    }

    #[test]
    fn fills_are_what_they_say() {
        let fill = |fill| generated("test", &CaseInput::new("x", &[4096], Layout::Plain, fill)).data;
        let bits: Vec<u32> = fill(Fill::Index(u32::MAX)).iter().map(|v| v.to_bits()).collect();
        assert!((0..32).all(|bit| {
            let ones = bits.iter().filter(|&v| v >> bit & 1 == 1).count();
            (1800..2300).contains(&ones)
        }));
        assert!(fill(Fill::Index(7)).iter().all(|v| v.to_bits() < 7));
        assert!(fill(Fill::Uniform { low: 0.2, high: 1.0 }).iter().all(|v| (0.2..=1.0).contains(v)));
        let ones = fill(Fill::Binary).iter().filter(|&&v| v == 1.0).count();
        assert!((1800..2300).contains(&ones));
        assert_eq!(fill(Fill::NonFinite(7)).iter().filter(|v| !v.is_finite()).count(), 4096usize.div_ceil(7));
    }

    /// Every case of every op records one step of that op and gives finite values (counts and pixels aside) of the right length.
    #[test]
    fn every_case_runs() {
        for op in crate::ops::ALL {
            for case in (op.cases)().iter().filter(|c| c.golden) {
                let recorded = record(case).unwrap();
                assert_eq!(recorded.tape.steps().len(), 1, "{} {}", op.name, case.name);
                assert_eq!(recorded.tape.steps()[0].op.name, op.name);
                let (y, dtype) = run_twin(case, &generated_inputs(op, case)).unwrap();
                assert!(!y.data.is_empty());
                assert!(dtype == DType::U32 || y.data.iter().all(|v| v.is_finite()), "{} {}", op.name, case.name);
            }
        }
    }

    #[test]
    fn missing_and_misshapen_inputs_are_errors() {
        let case = &(crate::ops::activation::OP.cases)()[0];
        assert!(run_twin(case, &[]).unwrap_err().fact().contains("no value"));
        assert!(run_twin(case, &[Array::zeros(&[3])]).unwrap_err().fact().starts_with("3 values, expected 465"));
    }

    #[test]
    fn integers_are_compared_by_their_bytes() {
        let level = Tolerance { relative: 8e-3, reason: "one level" };
        let pixel = |v: u32| [f32::from_bits(v)];
        let compare = |a: u32, b: u32, t| compare_output(&pixel(a), &pixel(b), DType::U32, t).passed;
        // These bits are NaNs as floats.
        assert!(compare(0xff80_8081, 0xff80_8080, level) && !compare(0xff80_8081, 0xff80_8080, Tolerance::EXACT));
        assert!(!compare(0xff80_8082, 0xff80_8080, level) && compare(0xffff_ffff, 0xffff_ffff, Tolerance::EXACT));
    }
}
