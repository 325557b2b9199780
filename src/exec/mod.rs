//! The tower: runs a plan. `cpu` with the ops' twins, `gpu` with their WGSL; `gpu` is the only room that says `wgpu`.

pub mod bench;
pub mod check;
pub mod cpu;
pub mod gpu;
pub mod kept;
pub mod memory;
pub mod pipelines;
pub mod precision;
pub mod tuner;

use std::path::PathBuf;
use std::sync::Arc;

use crate::base::{Error, Kind, Result};
use crate::ops::join::joined;
use crate::plan::{Limits, Options, Plan, Session, Tape};
use gpu::{AdapterKind, AdapterSummary, Gpu};
use precision::{Precision, stored_as_f16};

/// What runs a plan.
#[derive(Clone)]
pub enum Device {
    Cpu,
    Gpu(Arc<Gpu>),
}

/// Whether the kernels of a GPU are measured or chosen by the written heuristic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tune {
    /// On hardware, where there is a folder to keep the choice in.
    #[default]
    Auto,
    On,
    Off,
}

/// Whether kernels run without the checks of every index, loop and division that wgpu adds: only those that were proved on the device
/// with the checks, and then without them to the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checks {
    /// Dropped on hardware. On software adapters they cost nothing measurable.
    #[default]
    Auto,
    Keep,
    Drop,
}

/// How a GPU is opened. The default keeps nothing and measures nothing.
#[derive(Clone, Debug)]
pub struct Settings {
    pub tune: Tune,
    pub checks: Checks,
    /// How floats are stored; f16 needs a device that has it.
    pub precision: Precision,
    /// Whether kernels by cooperative matrices may be used where the device has them.
    pub matrices: bool,
    /// The folder for what is learnt about adapters.
    pub cache: Option<PathBuf>,
    /// Told, in a line, what takes a while.
    pub say: fn(&str),
}

impl Default for Settings {
    fn default() -> Self {
        Settings { tune: Tune::Auto, checks: Checks::Auto, precision: Precision::F32, matrices: true, cache: None, say: |_| {} }
    }
}

impl Device {
    /// Opens the device that `request` names: `auto`, `cpu`, `gpu`, an index of [`gpu::adapters`] or a part of a name.
    pub fn open(request: &str) -> Result<Device> {
        Device::open_with(request, &Settings::default())
    }

    pub fn open_with(request: &str, settings: &Settings) -> Result<Device> {
        if request == "cpu" {
            return Ok(Device::Cpu);
        }
        match choose(request, &gpu::adapters())? {
            None => Ok(Device::Cpu),
            Some(index) => Ok(Device::Gpu(Gpu::open_with(index, settings)?)),
        }
    }

    /// The GPU, when it is one.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        match self {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(gpu),
        }
    }

    pub fn precision(&self) -> Precision {
        self.gpu().map_or(Precision::F32, |gpu| gpu.settings.precision)
    }

    pub fn limits(&self) -> Limits {
        self.gpu().map_or(Limits::HOST, |gpu| gpu.limits())
    }

    /// Freezes `tape` for this device: its memory is known, and nothing is taken yet.
    pub fn plan(&self, tape: Tape, options: &Options) -> Result<Plan> {
        let tape = if self.precision() == Precision::F16 { stored_as_f16(tape) } else { tape };
        Plan::freeze(joined(tape, &options.taps), &Options { limits: self.limits(), ..options.clone() })
    }

    /// Freezes `tape` for this device, chooses its kernels and prepares it.
    pub fn prepare(&self, tape: Tape, options: &Options) -> Result<Box<dyn Session>> {
        self.ready(self.plan(tape, options)?)
    }

    /// Chooses the kernels of a plan of this device, takes its memory and uploads its weights.
    pub fn ready(&self, plan: Plan) -> Result<Box<dyn Session>> {
        match self {
            Device::Cpu => Ok(Box::new(cpu::CpuSession::new(plan))),
            Device::Gpu(gpu) => Ok(Box::new(gpu::GpuSession::new(gpu, tuner::choose_kernels(gpu, plan)?)?)),
        }
    }

    /// Name, backend and driver in one phrase.
    pub fn describe(&self) -> String {
        match self {
            Device::Cpu => format!("CPU executor, {} threads", rayon::current_num_threads()),
            Device::Gpu(gpu) => {
                let s = gpu.summary();
                format!("{} ({}, {}, {})", s.name, s.kind, s.backend, s.driver)
            }
        }
    }

    /// Vulkan, Metal, Dx12 or cpu.
    pub fn backend(&self) -> &str {
        match self {
            Device::Cpu => "cpu",
            Device::Gpu(gpu) => &gpu.summary().backend,
        }
    }
}

/// The adapter that `request` names; `None` is the CPU executor. `auto` takes a discrete GPU, then an integrated one, then
/// the CPU executor: software adapters are slower than it and are taken only when asked for.
pub fn choose(request: &str, adapters: &[AdapterSummary]) -> Result<Option<usize>> {
    let first = |kinds: &[AdapterKind]| kinds.iter().find_map(|kind| adapters.iter().find(|a| a.kind == *kind)).map(|a| a.index);
    let hardware = [AdapterKind::Discrete, AdapterKind::Integrated, AdapterKind::Virtual, AdapterKind::Other];
    let refuse = |fact: String| Error::new(Kind::Device, format!("--device {request}"), fact);
    let known = || match adapters {
        [] => "this machine has no adapter; --device cpu needs none".to_string(),
        _ => format!("expected auto, cpu, gpu or one of {}", adapters.iter().map(|a| format!("{} ({})", a.index, a.name)).collect::<Vec<_>>().join(", ")),
    };
    match request {
        "auto" => Ok(first(&hardware[..2])),
        "cpu" => Ok(None),
        "gpu" => first(&hardware).or_else(|| first(&[AdapterKind::Software])).map(Some).ok_or_else(|| refuse(known())),
        _ => {
            if let Ok(index) = request.parse::<usize>() {
                return adapters.iter().find(|a| a.index == index).map(|a| Some(a.index)).ok_or_else(|| refuse(format!("no such adapter; {}", known())));
            }
            let part = request.to_lowercase();
            match adapters.iter().filter(|a| a.name.to_lowercase().contains(&part)).collect::<Vec<_>>()[..] {
                [] => Err(refuse(format!("no adapter's name holds it; {}", known()))),
                [one] => Ok(Some(one.index)),
                [one, ref rest @ ..] if rest.iter().all(|a| a.name == one.name) => Ok(Some(one.index)),
                _ => Err(refuse(format!("several adapters' names hold it; {}", known()))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(index: usize, name: &str, kind: AdapterKind) -> AdapterSummary {
        AdapterSummary {
            index,
            name: name.to_string(),
            vendor: 0,
            device: 0,
            backend: "Vulkan".to_string(),
            driver: String::new(),
            kind,
            f16: false,
            subgroup: None,
            cooperative_matrix: Vec::new(),
            matrices: None,
            timestamps: false,
            limits: Limits::HOST,
            workgroup_memory_bytes: 16_384,
            invocations_per_workgroup: 256,
            storage_buffers: 8,
        }
    }

    #[test]
    fn auto_prefers_discrete_and_never_software() {
        let soft = adapter(0, "llvmpipe", AdapterKind::Software);
        let integrated = adapter(1, "Iris Xe", AdapterKind::Integrated);
        let discrete = adapter(2, "RTX 4090", AdapterKind::Discrete);
        assert_eq!(choose("auto", &[]).unwrap(), None);
        assert_eq!(choose("auto", std::slice::from_ref(&soft)).unwrap(), None);
        assert_eq!(choose("auto", &[soft.clone(), integrated.clone()]).unwrap(), Some(1));
        assert_eq!(choose("auto", &[soft.clone(), integrated.clone(), discrete.clone()]).unwrap(), Some(2));
        assert_eq!(choose("gpu", std::slice::from_ref(&soft)).unwrap(), Some(0));
        assert_eq!(choose("rtx", &[soft.clone(), integrated, discrete]).unwrap(), Some(2));
        assert_eq!(choose("0", std::slice::from_ref(&soft)).unwrap(), Some(0));
        for wrong in ["7", "radeon", "gpu"] {
            let error = choose(wrong, if wrong == "gpu" { &[] } else { std::slice::from_ref(&soft) }).unwrap_err();
            assert_eq!((error.kind(), error.place()), (Kind::Device, format!("--device {wrong}").as_str()));
        }
    }
}
