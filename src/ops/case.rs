//! Runs a case: its inputs from its name, its record on a tape, its twin.

use crate::base::{Array, DType, Error, Kind, Result, rng};
use crate::plan::{Case, Fill, Layout, Op, Tape, Tensor, TwinCall};

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
        Array { shape: crate::base::Shape::new(&shape), data }
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

/// How the case's result stands in a golden file: four axes are an image, unless an input of four axes is plain.
pub fn output_layout(case: &Case, rank: usize) -> Layout {
    let plain = |i: &crate::plan::CaseInput| i.shape.len() == 4 && i.layout == Layout::Plain;
    if rank == 4 && !case.inputs.iter().any(plain) { Layout::Image } else { Layout::Plain }
}

/// The values that the case's one step binds, in binding order: inputs of the case, some of them twice.
pub fn bound<'a>(tape: &Tape, inputs: &'a [Array]) -> Vec<&'a [f32]> {
    // `record` made the inputs first, so a tensor's index is the input's.
    tape.steps()[0].inputs.iter().map(|t| inputs[t.index()].data.as_slice()).collect()
}

/// The twin's result on `inputs` (our axis order), and its element type.
pub fn run_twin(case: &Case, inputs: &[Array]) -> Result<(Array, DType)> {
    let (tape, y) = record(case)?;
    let step = &tape.steps()[0];
    let values = bound(&tape, inputs);
    let shapes: Vec<_> = step.inputs.iter().map(|&t| tape.shape(t)).collect();
    let mut output = Array::zeros(tape.shape(y).dims());
    let output_shape = tape.shape(y);
    (step.op.twin)(&mut TwinCall { params: &step.params, inputs: &values, shapes: &shapes, output: &mut output.data, output_shape });
    Ok((output, tape.dtype(y)))
}
