//! The plan: lifetimes, slots and limits of a tape. Each slot is a buffer of its own, because wgpu tracks usage per
//! whole buffer: sub-ranges of one arena that are read and written in one dispatch are rejected.

use std::fmt::Write as _;

use crate::base::{DType, Error, Kind, Result};
use crate::plan::card::{Machine, Variant};
use crate::plan::tape::{Step, Tape, Tensor, TensorKind, Weight};

/// Largest sizes that a device takes, in bytes, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub binding_bytes: u64,
    pub buffer_bytes: u64,
    pub workgroups_per_axis: u32,
    /// For which kernels are chosen.
    pub machine: Machine,
    /// Whether kernels may be made of operations of subgroups.
    pub subgroups: bool,
}

impl Limits {
    /// The CPU executor: element counts and indices of the ops are 32 bits wide, so 16 GiB a tensor.
    pub const HOST: Limits = Limits {
        binding_bytes: u32::MAX as u64 * 4,
        buffer_bytes: u32::MAX as u64 * 4,
        workgroups_per_axis: u32::MAX,
        machine: Machine::Any,
        subgroups: false,
    };
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Share slots between tensors whose lifetimes do not meet.
    pub alias: bool,
    /// Module paths whose results can be read after a run.
    pub taps: Vec<String>,
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Options { alias: true, taps: Vec::new(), limits: Limits::HOST }
    }
}

/// Where a tensor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A buffer of its own for as long as the plan: inputs, weights, outputs, taps.
    Own,
    /// A slot shared with other activations.
    Slot(usize),
    /// Never used.
    Nowhere,
}

/// A frozen tape.
#[derive(Clone, Debug)]
pub struct Plan {
    pub tape: Tape,
    /// Per tensor.
    pub storage: Vec<Storage>,
    /// Bytes of each slot.
    pub slots: Vec<u64>,
    /// Per step: the GPU kernel that runs it; `None` where no kernel takes its shapes.
    pub kernels: Vec<Option<&'static Variant>>,
    /// Per tensor: the step that writes it (0 for inputs and weights) and the last step that reads it.
    pub lifetimes: Vec<(usize, usize)>,
}

impl Plan {
    /// Freezes `tape`. Fails, naming the tensor, where a limit would be exceeded or a tap is unknown.
    pub fn freeze(mut tape: Tape, options: &Options) -> Result<Plan> {
        for tap in &options.taps {
            let found = tape.taps.iter().rev().find(|(path, _)| path == tap).map(|&(_, t)| t);
            let tensor = found.ok_or_else(|| unknown_tap(&tape, tap))?;
            tape.outputs.push((tap.clone(), tensor));
        }
        let machine = options.limits.machine;
        let kernels: Vec<_> = tape.steps.iter().map(|step| tape.view(step, |view| step.op.choose(view, machine))).collect();
        check_limits(&tape, &kernels, &options.limits)?;
        let lifetimes = lifetimes(&tape);
        let kept = kept(&tape);
        let mut plan = Plan { storage: vec![Storage::Nowhere; tape.tensors.len()], slots: Vec::new(), kernels, lifetimes, tape };
        plan.assign(&kept, options.alias);
        Ok(plan)
    }

    /// The same plan with other kernels, one per step. Fails, naming the step, where a limit would be exceeded.
    pub fn with_kernels(mut self, kernels: Vec<Option<&'static Variant>>, limits: &Limits) -> Result<Plan> {
        check_limits(&self.tape, &kernels, limits)?;
        self.kernels = kernels;
        Ok(self)
    }

    /// Each step with its place, its kernel and the kernel's family.
    pub fn kernel_lines(&self) -> impl Iterator<Item = String> {
        self.tape.steps.iter().zip(&self.kernels).enumerate().map(|(s, (step, kernel))| {
            let [name, family] = kernel.map_or(["-"; 2], |kernel| [kernel.name, kernel.family]);
            format!("{s:4} {:<20} {name:<12} of family {family:<12} # {}", step.op.name, step.place)
        })
    }

    /// Best fit over slots in step order: a slot is free for step s when its tenant was last read before s.
    fn assign(&mut self, kept: &[bool], alias: bool) {
        let used = used(&self.tape);
        for (i, info) in self.tape.tensors.iter().enumerate() {
            let is_activation = matches!(info.kind, TensorKind::Activation | TensorKind::Reshaped(_));
            if !is_activation || kept[i] {
                self.storage[i] = if used[i] || matches!(info.kind, TensorKind::Input(_)) { Storage::Own } else { Storage::Nowhere };
            }
        }
        let mut busy_until: Vec<usize> = Vec::new();
        for (s, step) in self.tape.steps.iter().enumerate() {
            let i = step.output.index();
            if self.storage[i] == Storage::Own {
                continue;
            }
            let bytes = self.tape.tensors[i].bytes().max(4);
            let free = |slot: &usize| alias && busy_until[*slot] < s;
            let fits = (0..self.slots.len()).filter(free).filter(|&k| self.slots[k] >= bytes).min_by_key(|&k| self.slots[k]);
            let grow = || (0..self.slots.len()).filter(free).max_by_key(|&k| self.slots[k]);
            let slot = fits.or_else(grow).unwrap_or_else(|| {
                self.slots.push(0);
                busy_until.push(0);
                self.slots.len() - 1
            });
            self.slots[slot] = self.slots[slot].max(bytes);
            busy_until[slot] = self.lifetimes[i].1.max(s);
            self.storage[i] = Storage::Slot(slot);
        }
        for i in 0..self.storage.len() {
            self.storage[i] = self.storage[self.tape.owner(Tensor(i as u32)).index()];
        }
    }

    pub fn input(&self, name: &str) -> Result<Tensor> {
        let find = |i: &usize| matches!(&self.tape.tensors[*i].kind, TensorKind::Input(n) if n == name);
        let found = (0..self.tape.tensors.len()).find(find).map(|i| Tensor(i as u32));
        found.ok_or_else(|| Error::new(Kind::Usage, name, "the plan has no such input"))
    }

    pub fn output(&self, name: &str) -> Result<Tensor> {
        let found = self.tape.outputs.iter().find(|(n, _)| n == name).map(|&(_, t)| t);
        found.ok_or_else(|| Error::new(Kind::Usage, name, "the plan has no such output"))
    }

    /// Whether the tensor keeps its value until the end of a run.
    pub fn readable(&self, tensor: Tensor) -> bool {
        self.storage[tensor.index()] == Storage::Own
    }

    pub fn steps(&self) -> &[Step] {
        &self.tape.steps
    }

    /// The weights that steps use, their types on the device and their bytes there.
    pub fn weights(&self) -> impl Iterator<Item = (&Weight, DType, u64)> {
        self.tape.tensors.iter().zip(&self.storage).filter_map(|(info, storage)| match (&info.kind, storage) {
            (TensorKind::Weight(weight), Storage::Own) => Some((weight, info.dtype, info.bytes().max(4))),
            _ => None,
        })
    }

    pub fn weight_bytes(&self) -> u64 {
        self.own_bytes(|kind| matches!(kind, TensorKind::Weight(_)))
    }

    /// Inputs, outputs and taps.
    pub fn io_bytes(&self) -> u64 {
        self.own_bytes(|kind| !matches!(kind, TensorKind::Weight(_) | TensorKind::Reshaped(_)))
    }

    pub fn slot_bytes(&self) -> u64 {
        self.slots.iter().sum()
    }

    /// Device memory of the plan: weights, inputs, outputs and slots.
    pub fn peak_bytes(&self) -> u64 {
        self.weight_bytes() + self.io_bytes() + self.slot_bytes()
    }

    fn own_bytes(&self, want: impl Fn(&TensorKind) -> bool) -> u64 {
        let own = self.tape.tensors.iter().zip(&self.storage).filter(|(info, storage)| **storage == Storage::Own && want(&info.kind));
        own.map(|(info, _)| info.bytes().max(4)).sum()
    }
}

/// The plan in words, for snapshots and `-v`.
impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = |t: Tensor| &self.tape.tensors[self.tape.owner(t).index()].kind;
        let name = |t: Tensor| match (kind(t), self.storage[t.index()]) {
            (TensorKind::Input(name), _) => format!("<{name}>"),
            (TensorKind::Weight(w), _) => w.name.to_string(),
            (_, Storage::Slot(slot)) => format!("%{}@{slot}", self.tape.owner(t).0),
            (_, _) => format!("%{}", self.tape.owner(t).0),
        };
        for (s, step) in self.tape.steps.iter().enumerate() {
            let mut line = format!("{s:4} {:<20} {} = ", step.op.name, name(step.output));
            let inputs: Vec<String> = step.inputs.iter().map(|&t| name(t)).collect();
            write!(line, "({}) -> {}", inputs.join(", "), self.tape.shape(step.output))?;
            writeln!(f, "{line}  # {}", step.place)?;
        }
        for (from, to) in &self.tape.carries {
            writeln!(f, "     carry {} -> {}", name(*from), name(*to))?;
        }
        for (output, tensor) in &self.tape.outputs {
            writeln!(f, "     output {output} = {} {}", name(*tensor), self.tape.shape(*tensor))?;
        }
        let cost = self.tape.total_cost();
        writeln!(f, "slots {:?} bytes; weights {} bytes; inputs and outputs {} bytes; {} flop", self.slots, self.weight_bytes(), self.io_bytes(), cost.flops)
    }
}

/// Tensors that must keep their value until the end: outputs and carried ones.
fn kept(tape: &Tape) -> Vec<bool> {
    let mut kept = vec![false; tape.tensors.len()];
    tape.outputs.iter().for_each(|&(_, t)| kept[tape.owner(t).index()] = true);
    tape.carries.iter().for_each(|&(from, _)| kept[tape.owner(from).index()] = true);
    kept
}

/// Tensors that some step reads or writes.
fn used(tape: &Tape) -> Vec<bool> {
    let mut used = vec![false; tape.tensors.len()];
    for step in &tape.steps {
        used[step.output.index()] = true;
        step.inputs.iter().for_each(|&t| used[tape.owner(t).index()] = true);
    }
    used
}

fn lifetimes(tape: &Tape) -> Vec<(usize, usize)> {
    let mut lifetimes = vec![(0, 0); tape.tensors.len()];
    for (s, step) in tape.steps.iter().enumerate() {
        lifetimes[step.output.index()] = (s, s);
        step.inputs.iter().for_each(|&t| lifetimes[tape.owner(t).index()].1 = s);
    }
    lifetimes
}

fn check_limits(tape: &Tape, kernels: &[Option<&'static Variant>], limits: &Limits) -> Result<()> {
    let used = used(tape);
    for (i, info) in tape.tensors.iter().enumerate() {
        // A step that was joined to another one leaves a tensor that nobody makes.
        if !used[tape.owner(Tensor(i as u32)).index()] && matches!(info.kind, TensorKind::Activation) {
            continue;
        }
        let bytes = info.bytes();
        let (what, limit) = if bytes > limits.binding_bytes {
            ("binding", limits.binding_bytes)
        } else if bytes > limits.buffer_bytes {
            ("buffer", limits.buffer_bytes)
        } else {
            continue;
        };
        let fact =
            format!("tensor {} needs a {what} of {bytes} bytes, the device takes {limit}; use a smaller batch or image, or the CPU executor", info.shape);
        return Err(Error::new(Kind::Limit, info.place.clone(), fact));
    }
    for (step, kernel) in tape.steps.iter().zip(kernels) {
        let grid = kernel.map(|kernel| tape.view(step, |view| (kernel.grid)(view)));
        if let Some(groups) = grid.and_then(|g| g.into_iter().find(|&n| n > limits.workgroups_per_axis)) {
            let fact = format!("{} needs {groups} workgroups along one axis, the device takes {}", step.op.name, limits.workgroups_per_axis);
            return Err(Error::new(Kind::Limit, step.place.clone(), fact));
        }
    }
    Ok(())
}

fn unknown_tap(tape: &Tape, tap: &str) -> Error {
    let near = tape.taps.iter().map(|(path, _)| path.as_str()).min_by_key(|path| crate::base::error::edit_distance(path, tap));
    let fact = match near {
        Some(near) => format!("no module of that name was run; the nearest is `{near}`"),
        None => "no module of that name was run".to_string(),
    };
    Error::new(Kind::Usage, format!("--tap {tap}"), fact)
}
