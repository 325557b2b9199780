//! An op is a value: its card holds everything that any reader of a tape needs to know about it.

use crate::base::{DType, Result, Shape, Tolerance};
use crate::plan::{Limits, Tape, Tensor};

/// Work of one step, counted from its shapes. A multiply-add is two floating point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub flops: u64,
    /// Bytes that must move at least: each input and the output once.
    pub bytes: u64,
}

/// The shapes and parameters of one step, as a card's functions see them.
#[derive(Clone, Copy)]
pub struct StepView<'a> {
    pub params: &'a [u8],
    pub inputs: &'a [&'a Shape],
    pub output: &'a Shape,
    /// Element types of the inputs.
    pub input_types: &'a [DType],
    pub output_type: DType,
}

impl StepView<'_> {
    /// The step's parameters as the op's own struct.
    pub fn params<P: bytemuck::Pod>(&self) -> P {
        bytemuck::pod_read_unaligned(self.params)
    }

    pub fn input_bytes(&self, i: usize) -> u64 {
        self.inputs[i].bytes(self.input_types[i])
    }

    pub fn output_bytes(&self) -> u64 {
        self.output.bytes(self.output_type)
    }

    /// What the step's floats are stored as: all of them alike, but for those of `convert`.
    pub fn floats(&self) -> DType {
        self.input_types.iter().copied().chain([self.output_type]).find(|dtype| dtype.is_float()).unwrap_or(DType::F32)
    }

    /// Bytes of every input and of the output, once each.
    pub fn bytes(&self) -> u64 {
        (0..self.inputs.len()).map(|i| self.input_bytes(i)).sum::<u64>() + self.output_bytes()
    }
}

/// One call of a CPU twin. Index inputs hold `u32` bits: read them with [`TwinCall::indices`].
pub struct TwinCall<'a> {
    pub params: &'a [u8],
    pub inputs: &'a [&'a [f32]],
    pub shapes: &'a [&'a Shape],
    pub output: &'a mut [f32],
    pub output_shape: &'a Shape,
}

impl<'a> TwinCall<'a> {
    pub fn params<P: bytemuck::Pod>(&self) -> P {
        bytemuck::pod_read_unaligned(self.params)
    }

    /// Input `i` as the integers that its buffer holds.
    pub fn indices(&self, i: usize) -> &'a [u32] {
        bytemuck::cast_slice(self.inputs[i])
    }
}

/// A field of an op's parameter struct and its byte offset, compared with the shader's uniform struct by a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
}

/// How a case's input stands in a golden file (PyTorch's order) and on the tape (ours).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same in both.
    Plain,
    /// `[N, C, H, W]` there, `[N, H, W, C]` here.
    Image,
    /// Convolution weight: `[O, I, KH, KW]` there, `[KH, KW, I, O]` here.
    ConvWeight,
    /// Linear weight: `[O, I]` there, `[I, O]` here.
    LinearWeight,
}

impl Layout {
    /// Axis order that takes PyTorch's layout to ours.
    pub fn order(self) -> Option<&'static [usize]> {
        match self {
            Layout::Plain => None,
            Layout::Image => Some(&[0, 2, 3, 1]),
            Layout::ConvWeight => Some(&[2, 3, 1, 0]),
            Layout::LinearWeight => Some(&[1, 0]),
        }
    }
}

/// Values of a generated case input; a function of (case name, input name).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    Normal,
    /// Normal times `scale` plus `shift`.
    Affine {
        scale: f32,
        shift: f32,
    },
    Uniform {
        low: f32,
        high: f32,
    },
    /// 0.0 or 1.0.
    Binary,
    /// `u32` below the bound.
    Index(u32),
    /// Normal, rounded to values that f16 holds, in a tensor of type F16.
    Half,
    /// Normal, with every `n`-th value replaced by NaN, +inf and -inf in turn.
    NonFinite(usize),
}

#[derive(Clone, Debug)]
pub struct CaseInput {
    pub name: &'static str,
    /// In PyTorch's axis order.
    pub shape: Vec<usize>,
    pub layout: Layout,
    pub fill: Fill,
}

pub type Record = Box<dyn Fn(&mut Tape, &[Tensor]) -> Result<Tensor> + Send + Sync>;

/// One row of an op's table: it feeds goldens, GPU proofs, the bench and `naevus check`.
pub struct Case {
    pub name: &'static str,
    pub inputs: Vec<CaseInput>,
    pub record: Record,
    /// Whether `tests/golden/<op>.safetensors` must hold this case.
    pub golden: bool,
}

impl Case {
    /// A case with a PyTorch golden.
    pub fn new(name: &'static str, inputs: Vec<CaseInput>, record: impl Fn(&mut Tape, &[Tensor]) -> Result<Tensor> + Send + Sync + 'static) -> Self {
        Case { name, inputs, record: Box::new(record), golden: true }
    }

    /// A case held only against the twin: for shapes whose golden would be large, and for the bench.
    pub fn without_golden(mut self) -> Self {
        self.golden = false;
        self
    }
}

impl CaseInput {
    pub fn new(name: &'static str, shape: &[usize], layout: Layout, fill: Fill) -> Self {
        CaseInput { name, shape: shape.to_vec(), layout, fill }
    }

    pub fn plain(name: &'static str, shape: &[usize]) -> Self {
        Self::new(name, shape, Layout::Plain, Fill::Normal)
    }

    /// `[N, C, H, W]`.
    pub fn image(name: &'static str, shape: &[usize]) -> Self {
        Self::new(name, shape, Layout::Image, Fill::Normal)
    }

    pub fn dtype(&self) -> DType {
        match self.fill {
            Fill::Index(_) => DType::U32,
            Fill::Half => DType::F16,
            _ => DType::F32,
        }
    }

    /// The shape in our axis order.
    pub fn device_shape(&self) -> Vec<usize> {
        match self.layout.order() {
            Some(order) => order.iter().map(|&axis| self.shape[axis]).collect(),
            None => self.shape.clone(),
        }
    }
}

/// WGSL fragments: the storage type of a kernel's floats, `elem`. A kernel begins with the first one, where it has floats.
pub(crate) const ELEM: &str = include_str!("../../shaders/lib/elem_f32.wgsl");
const ELEM_F16: &str = include_str!("../../shaders/lib/elem_f16.wgsl");

/// WGSL fragments: the functions that may follow a sum, of which override constant `FUNCTION` selects one; and what stands there for none.
pub(crate) const NETWORK: &str = include_str!("../../shaders/lib/network.wgsl");
const NO_FUNCTION: &str = include_str!("../../shaders/lib/no_function.wgsl");

/// WGSL fragment: sum and maximum over a workgroup by operations of its subgroups. A kernel that has it compiles where these are.
pub(crate) const TREE_SUBGROUP: &str = include_str!("../../shaders/lib/tree_subgroup.wgsl");
/// The same of an invocation's place in its subgroup.
pub(crate) const SHUFFLE: &str = include_str!("../../shaders/lib/shuffle.wgsl");

/// One GPU kernel for an op: its idea, its WGSL, what it is meant for.
pub struct Variant {
    /// The idea: `direct`, `tiled`.
    pub name: &'static str,
    /// Variants of one family give the same bits: they add in one order. So a family may be chosen by the item alone,
    /// and the variant in it by the whole batch. `naevus check` compares them.
    pub family: &'static str,
    /// WGSL fragments, joined in order. WGSL's module scope is order-free.
    pub source: &'static [&'static str],
    /// Invocations of one workgroup, at most: constants may make it smaller.
    pub workgroup: u32,
    /// `override` constants for these shapes.
    pub constants: fn(&StepView) -> Vec<(&'static str, f64)>,
    /// Shapes for which this variant is correct and meant.
    pub accepts: fn(&StepView) -> bool,
    /// Workgroups to dispatch.
    pub grid: fn(&StepView) -> [u32; 3],
    /// Where this variant is worth more than the ones before it.
    pub meant_for: Machine,
}

/// The machines on which a variant is chosen. Hardware can what any machine can, and both kinds with matrices what hardware can. Variants are
/// correct and proved wherever they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Machine {
    Any,
    /// Workgroup memory is a memory of its own. On software Vulkan it is the host's, and a barrier cuts the kernel into loops.
    Hardware,
    /// Hardware with units that multiply 16 x 16 matrices of f16 with f32 sums, and with them switched on. A kernel for it does not
    /// compile elsewhere, and runs only once it was proved on the device: drivers are young there.
    Matrices,
    /// The same with matrices of 8 x 8, and not of 16 x 16: Metal.
    Matrices8,
}

impl Variant {
    /// The WGSL of this kernel for floats that are stored as `floats`.
    pub fn wgsl(&self, floats: DType) -> String {
        let fragment = |&text: &&'static str| if text == ELEM && floats == DType::F16 { ELEM_F16 } else { text };
        self.source.iter().map(fragment).collect::<Vec<_>>().join("\n")
    }

    /// The same without what `constants` make needless.
    pub fn wgsl_with(&self, floats: DType, constants: &[(&str, f64)]) -> String {
        let source = self.wgsl(floats);
        if constants.contains(&("FUNCTION", 0.0)) { source.replace(NETWORK, NO_FUNCTION) } else { source }
    }

    /// Whether it is made of cooperative matrices.
    pub fn needs_matrices(&self) -> bool {
        self.meant_for >= Machine::Matrices
    }

    /// Whether it is made of operations of subgroups.
    pub fn needs_subgroups(&self) -> bool {
        self.source.contains(&TREE_SUBGROUP) || self.source.contains(&SHUFFLE)
    }

    /// Whether it is worth more than the ones before it on `machine`. Whether subgroups are worth more than workgroup memory is the
    /// driver's matter: only a measurement says so.
    pub fn is_meant_for(&self, machine: Machine) -> bool {
        let fits = self.meant_for == machine || self.meant_for <= machine.min(Machine::Hardware);
        fits && !self.needs_subgroups()
    }

    /// Whether a device of these limits can compile it.
    pub fn runs_on(&self, limits: &Limits) -> bool {
        (!self.needs_matrices() || limits.machine == self.meant_for) && (limits.subgroups || !self.needs_subgroups())
    }

    /// The readable kernel of most ops: one invocation per element of the result, in workgroups of 256 of a `grid_1d` grid.
    pub const fn per_element(source: &'static [&'static str]) -> Variant {
        Variant {
            name: "direct",
            family: "direct",
            source,
            workgroup: 256,
            constants: |_| vec![("WG", 256.0)],
            accepts: |_| true,
            grid: |s| grid_1d(s.output.numel(), 256),
            meant_for: Machine::Any,
        }
    }
}

/// The card of an op.
pub struct Op {
    pub name: &'static str,
    pub params: &'static [Field],
    pub params_size: usize,
    pub twin: fn(&mut TwinCall),
    pub cost: fn(&StepView) -> Cost,
    pub cases: fn() -> Vec<Case>,
    /// Shapes worth timing.
    pub bench: fn() -> Vec<Case>,
    /// GPU against twin, and twin against PyTorch in float64.
    pub tolerance: Tolerance,
    /// Whether its floats may be stored as f16. Solvers and their coefficients stay f32: their steps add up.
    pub f16: bool,
    /// What stays f32 where the others are f16: positions of inputs, and the number of inputs for the output.
    pub statistics: &'static [usize],
    /// From readable to clever; the last that accepts the shapes is taken.
    pub variants: &'static [Variant],
}

impl Op {
    /// The variant that runs a step where nothing was measured or proved: the last one that accepts its shapes and is meant for the
    /// machine, but for those that must be proved first.
    pub fn choose(&self, view: &StepView, machine: Machine) -> Option<&'static Variant> {
        self.choose_of(view, machine, |v| !v.needs_matrices())
    }

    /// The same among the variants that are `fit`.
    pub fn choose_of(&self, view: &StepView, machine: Machine, fit: impl Fn(&Variant) -> bool) -> Option<&'static Variant> {
        self.variants.iter().rev().find(|v| v.is_meant_for(machine) && (v.accepts)(view) && fit(v))
    }
}

impl std::fmt::Debug for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Declares an op's parameter struct: `#[repr(C)]`, `Pod`, four-byte scalars only, with the table of its fields
/// that a test holds against the shader's uniform struct.
#[macro_export]
macro_rules! params {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident : $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type),+ }
        impl $name {
            pub const FIELDS: &'static [$crate::plan::Field] =
                &[$($crate::plan::Field { name: stringify!($field), offset: std::mem::offset_of!($name, $field) }),+];
            pub const SIZE: usize = std::mem::size_of::<$name>();
        }
    };
}

/// Workgroups for `items` invocations in a two-dimensional grid, below the limit of 65,535 groups per axis.
/// The shader's index is `gid.x + gid.y * num_workgroups.x * WG`.
pub fn grid_1d(items: usize, workgroup: u32) -> [u32; 3] {
    let groups = (items as u64).div_ceil(u64::from(workgroup)).max(1);
    let x = groups.min(32_768);
    [x as u32, groups.div_ceil(x) as u32, 1]
}
