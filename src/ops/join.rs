//! Steps that need no memory of their own: an enlargement before a convolution, and a sum and a function after a convolution or a product, become
//! part of it. In f32 no bit changes. Where f16 is stored there are fewer roundings, so whether steps are joined must not depend on the batch.

use std::collections::HashMap;

use crate::ops::axes::broadcast_rows;
use crate::ops::binary::Operator;
use crate::ops::epilogue::{ADDED, is_of_networks};
use crate::ops::{activation, binary, conv2d, upsample_nearest};
use crate::plan::{Op, Step, Tape, Tensor};

/// The same tape with fewer steps. Tensors keep their handles; the modules at `taps`, outputs and what is carried keep their steps.
pub fn joined(mut tape: Tape, taps: &[String]) -> Tape {
    let steps = std::mem::take(&mut tape.steps);
    let mut joiner = Joiner { spare: spare(&tape, &steps, taps), tape: &tape, steps: Vec::new(), made_by: HashMap::new() };
    for step in steps {
        let step = match step.op {
            op if is(op, &conv2d::OP) => joiner.with_enlargement(step),
            op if is(op, &binary::OP) => joiner.with_sum(step),
            op if is(op, &activation::OP) => joiner.with_function(step),
            _ => step,
        };
        joiner.made_by.insert(step.output, joiner.steps.len());
        joiner.steps.push(Some(step));
    }
    tape.steps = joiner.steps.into_iter().flatten().collect();
    tape
}

fn is(op: &Op, other: &Op) -> bool {
    op.name == other.name
}

/// Per tensor, whether one step reads it and nobody else does.
fn spare(tape: &Tape, steps: &[Step], taps: &[String]) -> Vec<bool> {
    let mut readers = vec![0; tape.tensors.len()];
    steps.iter().flat_map(|step| &step.inputs).for_each(|&t| readers[tape.owner(t).index()] += 1);
    let tapped = tape.taps.iter().filter(|(path, _)| taps.contains(path)).map(|&(_, t)| t);
    let kept = tape.outputs.iter().map(|&(_, t)| t).chain(tape.carries.iter().map(|&(from, _)| from)).chain(tapped);
    kept.for_each(|t| readers[tape.owner(t).index()] = usize::MAX);
    readers.into_iter().map(|readers| readers == 1).collect()
}

struct Joiner<'a> {
    tape: &'a Tape,
    spare: Vec<bool>,
    /// `None` where a step became part of another one.
    steps: Vec<Option<Step>>,
    made_by: HashMap<Tensor, usize>,
}

impl Joiner<'_> {
    /// The position of the step that made `tensor`, where `wanted` takes it and only one step reads its result.
    fn maker(&self, tensor: Tensor, wanted: impl Fn(&Step) -> bool) -> Option<usize> {
        let owner = self.tape.owner(tensor);
        let at = *self.made_by.get(&owner)?;
        (self.spare[owner.index()] && self.steps[at].as_ref().is_some_and(wanted)).then_some(at)
    }

    /// A convolution that reads the small image in place of the enlarged one.
    fn with_enlargement(&mut self, step: Step) -> Step {
        let factor = |s: &Step| bytemuck::pod_read_unaligned::<upsample_nearest::Params>(&s.params).factor;
        // Its image, and not the same values in rows of another length.
        let wanted = |s: &Step| is(s.op, &upsample_nearest::OP) && factor(s).is_power_of_two() && s.output == step.inputs[0];
        let Some(maker) = self.maker(step.inputs[0], wanted).and_then(|at| self.steps[at].take()) else { return step };
        let inputs = [&maker.inputs[..1], &step.inputs[1..]].concat();
        with(Step { inputs, ..step }, &[("enlarged", factor(&maker).trailing_zeros())])
    }

    /// A product or a convolution to whose sums the step's other operand is added.
    fn with_sum(&mut self, step: Step) -> Step {
        let params: binary::Params = bytemuck::pod_read_unaligned(&step.params);
        if params.function != Operator::Add as u32 {
            return step;
        }
        let has_room = |s: &Step| word(s, "added_count") == Some(0) && word(s, "function") == Some(0) && rows_of_item(s) > 1;
        let makers = [0, 1].map(|side| self.maker(step.inputs[side], has_room));
        // Of two sums the later one takes the other: nothing lives longer for it.
        let side = usize::from(makers[1] > makers[0]);
        let (sums, added) = (step.inputs[side], step.inputs[1 - side]);
        let shape = self.tape.shape(step.output);
        let rows = broadcast_rows(self.tape.shape(added).dims(), shape.dims());
        let (Some(at), Some([rows, count])) = (makers[side], rows) else { return step };
        let columns = self.steps[at].as_ref().map(|s| self.tape.shape(s.output).last());
        let is_plain = self.tape.shape(sums) == shape && columns == Some(shape.last());
        let has_one_type = [sums, added].iter().all(|&t| self.tape.dtype(t) == self.tape.dtype(step.output));
        let Some(mut maker) = self.steps[at].take_if(|_| is_plain && has_one_type) else { return step };
        maker.inputs[ADDED] = added;
        with(Step { output: step.output, ..maker }, &[("added_rows", rows as u32), ("added_count", count as u32)])
    }

    /// A product or a convolution whose results go through the step's function.
    fn with_function(&mut self, step: Step) -> Step {
        let p: activation::Params = bytemuck::pod_read_unaligned(&step.params);
        let has_one_type = self.tape.dtype(step.inputs[0]) == self.tape.dtype(step.output);
        let wanted = |s: &Step| word(s, "added_count").is_some() && word(s, "function") == Some(0) && has_one_type && is_of_networks(p.function);
        let Some(maker) = self.maker(step.inputs[0], wanted).and_then(|at| self.steps[at].take()) else { return step };
        with(Step { output: step.output, ..maker }, &[("function", p.function), ("a", p.a.to_bits()), ("b", p.b.to_bits())])
    }
}

/// Rows of an item. What has one row, as embeddings do, may be computed once for the whole batch and then meet others of it: then shapes are
/// equal in a batch of one alone.
fn rows_of_item(step: &Step) -> u32 {
    let of = |names: &[&str]| names.iter().map(|name| word(step, name)).product::<Option<u32>>();
    of(&["m"]).or_else(|| of(&["out_h", "out_w"])).unwrap_or(0)
}

/// The parameter `name` of a step, where its op has it.
fn word(step: &Step, name: &str) -> Option<u32> {
    let field = step.op.params.iter().find(|field| field.name == name)?;
    Some(bytemuck::pod_read_unaligned(&step.params[field.offset..field.offset + 4]))
}

/// The step with other parameters, all of which its op has.
fn with(mut step: Step, changes: &[(&str, u32)]) -> Step {
    for field in step.op.params {
        if let Some((_, value)) = changes.iter().find(|(name, _)| *name == field.name) {
            step.params[field.offset..field.offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{DType, rng};
    use crate::ops::activation::Function;
    use crate::ops::case::run_tape;
    use crate::ops::conv2d::Conv2d;
    use crate::plan::{Limits, Options, Plan};

    /// A residual block: enlargement, convolution, time embedding and function; convolution and shortcut; tokens, a layer, the sum with the image.
    fn block() -> (Tape, Tensor, [Tensor; 2]) {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 3, 4, 8], DType::F32);
        let [w, v] = ["w", "v"].map(|name| t.input(name, &[3, 3, 8, 8], DType::F32));
        let [bias, time] = [("bias", vec![8]), ("time", vec![2, 1, 1, 8])].map(|(name, shape)| t.input(name, &shape, DType::F32));
        let matrix = t.input("matrix", &[8, 8], DType::F32);
        let up = t.upsample_nearest(x, 2).unwrap();
        let one = t.conv2d(up, w, Some(bias), &Conv2d::padded(1)).unwrap();
        let timed = t.add(one, time).unwrap();
        let h = t.activation(timed, Function::Silu).unwrap();
        t.tap("conv1", h);
        let two = t.conv2d(h, v, None, &Conv2d::padded(1)).unwrap();
        let sum = t.add(h, two).unwrap();
        let tokens = t.reshape(sum, &[2, 48, 8]).unwrap();
        let layer = t.linear(tokens, matrix, Some(bias)).unwrap();
        let image = t.reshape(layer, &[2, 6, 8, 8]).unwrap();
        let y = t.add(image, sum).unwrap();
        t.output("y", y);
        (t, y, [timed, sum])
    }

    fn names(t: &Tape) -> Vec<&'static str> {
        t.steps().iter().map(|step| step.op.name).collect()
    }

    #[test]
    fn a_block_is_three_steps_with_the_same_bits() {
        let (plain, y, _) = block();
        let small = joined(plain.clone(), &[]);
        assert_eq!(names(&small), ["conv2d", "conv2d", "matmul"]);
        let values: Vec<Vec<f32>> = plain.inputs().enumerate().map(|(i, (_, info))| rng::normal(7, 0, i as u64, info.shape.numel())).collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let bits = |t: &Tape| run_tape(t, &values, y).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&plain), bits(&small));
        assert!(small.total_cost().bytes * 2 < plain.total_cost().bytes);
        assert_eq!(Plan::freeze(small, &Options::default()).unwrap().slots.len(), 2);
    }

    /// A device that could not hold the enlarged image takes the convolution of it.
    #[test]
    fn what_nobody_makes_has_no_limit() {
        let mut t = Tape::new();
        let x = t.input("x", &[1, 16, 16, 8], DType::F32);
        let w = t.input("w", &[3, 3, 8, 8], DType::F32);
        let up = t.upsample_nearest(x, 4).unwrap();
        let y = t.conv2d(up, w, None, &Conv2d::padded(1).strided(4)).unwrap();
        t.output("y", y);
        let options = Options { limits: Limits { binding_bytes: 4 * 2048, ..Limits::HOST }, ..Options::default() };
        assert!(Plan::freeze(t.clone(), &options).unwrap_err().fact().contains("needs a binding"));
        Plan::freeze(joined(t, &[]), &options).unwrap();
    }

    #[test]
    fn what_somebody_reads_keeps_its_step() {
        let (mut t, _, [timed, sum]) = block();
        t.output("timed", timed);
        assert_eq!(names(&joined(t.clone(), &[])), ["conv2d", "activation", "conv2d", "matmul"]);
        t.tap("sum", sum);
        assert_eq!(names(&joined(t, &["sum".to_string()])), ["conv2d", "activation", "conv2d", "matmul"]);
        let (mut t, ..) = block();
        let [one, two] = [1, 4].map(|step| t.steps()[step].output);
        t.tap("one", one);
        t.tap("two", two);
        assert_eq!(names(&joined(t.clone(), &["two".to_string()])), ["conv2d", "conv2d", "binary", "matmul"]);
        assert_eq!(names(&joined(t, &["one".to_string()])), ["conv2d", "binary", "activation", "conv2d", "matmul"]);
    }

    /// Functions after a function, sums after a function, other operators and other shapes stay steps.
    #[test]
    fn what_does_not_fit_stays() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 4, 4, 8], DType::F32);
        let w = t.input("w", &[1, 1, 8, 8], DType::F32);
        let column = t.input("column", &[2, 1, 4, 8], DType::F32);
        let conv = |t: &mut Tape| t.conv2d(x, w, None, &Conv2d::default()).unwrap();
        let y = conv(&mut t);
        let y = t.activation(y, Function::Relu).unwrap();
        let y = t.activation(y, Function::Sigmoid).unwrap();
        t.output("twice", y);
        let y = conv(&mut t);
        let y = t.activation(y, Function::Relu).unwrap();
        let y = t.add(y, x).unwrap();
        t.output("sum of a function", y);
        let y = conv(&mut t);
        let y = t.mul(y, x).unwrap();
        t.output("product", y);
        let y = conv(&mut t);
        let y = t.add(y, column).unwrap();
        t.output("by columns", y);
        let y = conv(&mut t);
        let y = t.activation(y, Function::Exp).unwrap();
        t.output("rare function", y);
        let y = t.upsample_nearest(x, 3).unwrap();
        let y = t.conv2d(y, w, None, &Conv2d::default()).unwrap();
        t.output("by three", y);
        let y = t.upsample_nearest(x, 2).unwrap();
        let y = t.reshape(y, &[2, 4, 16, 8]).unwrap();
        let y = t.conv2d(y, w, None, &Conv2d::default()).unwrap();
        t.output("other rows", y);
        let expected =
            ["conv2d", "activation", "conv2d", "binary", "conv2d", "binary", "conv2d", "binary", "conv2d", "activation", "upsample_nearest", "conv2d"];
        assert_eq!(names(&joined(t, &[])), [&expected[..], &expected[10..]].concat());
    }
}
