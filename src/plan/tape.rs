//! The tape: steps in call order, tensors as handles, module paths as places. Plain data with many readers.

use std::sync::Arc;

use crate::base::{DType, Error, Kind, Result, Shape, Stored};
use crate::plan::card::{Cost, Op, StepView};

/// A handle of a tensor on one tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tensor(pub(crate) u32);

impl Tensor {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A loaded parameter in our axis order. Cloning shares the values.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Name in the checkpoint.
    pub name: Arc<str>,
    /// Its values, as wide as its file has them.
    pub array: Arc<Stored>,
}

impl Weight {
    pub fn new(name: &str, values: impl Into<Stored>) -> Self {
        Weight { name: name.into(), array: Arc::new(values.into()) }
    }

    pub fn dims(&self) -> &[usize] {
        self.array.dims()
    }
}

#[derive(Clone, Debug)]
pub enum TensorKind {
    /// Written by the caller before a run.
    Input(String),
    Weight(Weight),
    /// Made by a step.
    Activation,
    /// The numbers of another tensor in another shape. That tensor is none of these.
    Reshaped(Tensor),
}

#[derive(Clone, Debug)]
pub struct TensorInfo {
    pub shape: Shape,
    pub dtype: DType,
    pub kind: TensorKind,
    /// Module path that was open when the tensor was made.
    pub place: String,
}

impl TensorInfo {
    /// Bytes in a buffer.
    pub fn bytes(&self) -> u64 {
        self.shape.bytes(self.dtype)
    }
}

#[derive(Clone, Debug)]
pub struct Step {
    pub op: &'static Op,
    pub params: Vec<u8>,
    pub inputs: Vec<Tensor>,
    pub output: Tensor,
    pub place: String,
}

/// Call-order record of a computation.
#[derive(Clone, Debug, Default)]
pub struct Tape {
    pub(crate) steps: Vec<Step>,
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) outputs: Vec<(String, Tensor)>,
    pub(crate) carries: Vec<(Tensor, Tensor)>,
    pub(crate) taps: Vec<(String, Tensor)>,
    path: Vec<String>,
}

impl Tape {
    pub fn new() -> Self {
        Self::default()
    }

    /// A named tensor that the caller writes before a run.
    pub fn input(&mut self, name: &str, shape: &[usize], dtype: DType) -> Tensor {
        self.tensor(TensorInfo { shape: Shape::new(shape), dtype, kind: TensorKind::Input(name.to_string()), place: name.to_string() })
    }

    /// A parameter; the same parameter recorded twice is one tensor.
    pub fn weight(&mut self, weight: &Weight) -> Tensor {
        let same = |info: &TensorInfo| matches!(&info.kind, TensorKind::Weight(w) if Arc::ptr_eq(&w.array, &weight.array));
        if let Some(at) = self.tensors.iter().position(same) {
            return Tensor(at as u32);
        }
        self.tensor(TensorInfo {
            shape: weight.array.shape.clone(),
            dtype: DType::F32,
            kind: TensorKind::Weight(weight.clone()),
            place: weight.name.to_string(),
        })
    }

    /// The numbers of `x` in another shape: a name, no step and no copy. Row-major order stays.
    pub fn reshape(&mut self, x: Tensor, shape: &[usize]) -> Result<Tensor> {
        let (from, to) = (self.shape(x).clone(), Shape::new(shape));
        if from == to {
            return Ok(x);
        }
        if from.numel() != to.numel() {
            return Err(self.mismatch(format!("reshape of {from} to {to}: {} numbers, expected {}", from.numel(), to.numel())));
        }
        let info = TensorInfo { shape: to, dtype: self.dtype(x), kind: TensorKind::Reshaped(self.owner(x)), place: self.place() };
        Ok(self.tensor(info))
    }

    /// The tensor whose numbers these are: `tensor` itself unless it was reshaped.
    pub fn owner(&self, tensor: Tensor) -> Tensor {
        match self.tensors[tensor.index()].kind {
            TensorKind::Reshaped(owner) => owner,
            _ => tensor,
        }
    }

    pub fn shape(&self, tensor: Tensor) -> &Shape {
        &self.tensors[tensor.index()].shape
    }

    pub fn dtype(&self, tensor: Tensor) -> DType {
        self.tensors[tensor.index()].dtype
    }

    /// `[N, H, W, C]` of `tensor`, or an error at the open module path.
    pub fn nhwc(&self, tensor: Tensor) -> Result<[usize; 4]> {
        let shape = self.shape(tensor);
        shape.nhwc().ok_or_else(|| self.mismatch(format!("tensor is {shape}, expected four axes [N, H, W, C]")))
    }

    /// A shape error at the open module path.
    pub fn mismatch(&self, fact: String) -> Error {
        Error::new(Kind::Shape, self.place(), fact)
    }

    /// The open module path, `down_blocks.0.resnets.1`.
    pub fn place(&self) -> String {
        self.path.join(".")
    }

    /// Records `body` under the module `name`; its result can be tapped by the module's path.
    pub fn scope(&mut self, name: &str, body: impl FnOnce(&mut Tape) -> Result<Tensor>) -> Result<Tensor> {
        let tensor = self.within(name, body)?;
        self.tap(name, tensor);
        Ok(tensor)
    }

    /// Records `body` under the module `name` without a tap: for a step that is more than the module, as a norm with
    /// its activation fused.
    pub fn within<R>(&mut self, name: &str, body: impl FnOnce(&mut Tape) -> R) -> R {
        self.path.push(name.to_string());
        let result = body(self);
        self.path.pop();
        result
    }

    /// Lets `tensor` be tapped as the result of the module `name` in the open one.
    pub fn tap(&mut self, name: &str, tensor: Tensor) {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.place()) };
        self.taps.push((path, tensor));
    }

    /// Appends a step. Every op's recording function ends here, after its shape checks.
    pub fn push<P: bytemuck::Pod>(&mut self, op: &'static Op, params: &P, inputs: &[Tensor], shape: &[usize], dtype: DType) -> Tensor {
        let place = self.place();
        let output = self.tensor(TensorInfo { shape: Shape::new(shape), dtype, kind: TensorKind::Activation, place: place.clone() });
        self.steps.push(Step { op, params: bytemuck::bytes_of(params).to_vec(), inputs: inputs.to_vec(), output, place });
        output
    }

    /// Marks a tensor that the caller reads after a run.
    pub fn output(&mut self, name: &str, tensor: Tensor) {
        self.outputs.push((name.to_string(), tensor));
    }

    /// After each run, `from` is copied into the input `to`: state from one replay to the next.
    pub fn carry(&mut self, from: Tensor, to: Tensor) -> Result<()> {
        if self.shape(from) != self.shape(to) || !matches!(self.tensors[to.index()].kind, TensorKind::Input(_)) {
            return Err(self.mismatch(format!("carry: {} into {}", self.shape(from), self.shape(to))));
        }
        self.carries.push((from, to));
        Ok(())
    }

    /// Names and facts of the inputs.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().filter_map(|info| match &info.kind {
            TensorKind::Input(name) => Some((name.as_str(), info)),
            _ => None,
        })
    }

    /// Names and tensors that can be read after a run.
    pub fn outputs(&self) -> &[(String, Tensor)] {
        &self.outputs
    }

    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub fn info(&self, tensor: Tensor) -> &TensorInfo {
        &self.tensors[tensor.index()]
    }

    /// Module paths that can be tapped, with their tensors.
    pub fn taps(&self) -> &[(String, Tensor)] {
        &self.taps
    }

    /// Calls `f` with the shapes and parameters of `step`.
    pub fn view<R>(&self, step: &Step, f: impl FnOnce(&StepView) -> R) -> R {
        let inputs: Vec<&Shape> = step.inputs.iter().map(|&t| self.shape(t)).collect();
        let input_types: Vec<DType> = step.inputs.iter().map(|&t| self.dtype(t)).collect();
        let output_type = self.dtype(step.output);
        f(&StepView { params: &step.params, inputs: &inputs, output: self.shape(step.output), input_types: &input_types, output_type })
    }

    /// Cost of one step.
    pub fn cost(&self, step: &Step) -> Cost {
        self.view(step, |view| (step.op.cost)(view))
    }

    /// Cost of all steps.
    pub fn total_cost(&self) -> Cost {
        self.steps.iter().map(|s| self.cost(s)).fold(Cost::default(), |a, b| Cost { flops: a.flops + b.flops, bytes: a.bytes + b.bytes })
    }

    fn tensor(&mut self, info: TensorInfo) -> Tensor {
        self.tensors.push(info);
        Tensor((self.tensors.len() - 1) as u32)
    }
}
