//! How much memory plans may take together, and plans that are only looked at.

use std::collections::HashSet;
use std::sync::Arc;

use crate::base::{DType, Error, Kind, Result};
use crate::exec::Device;
use crate::exec::gpu::AdapterKind;
use crate::plan::{Plan, Session, StepTimes, Tensor};

/// Share of the memory that plans may take: the rest is for other programs, staging and the driver.
const SHARE: f64 = 0.8;

/// Of a discrete GPU that does not tell: what nearly all have.
const DISCRETE_BYTES: u64 = 4 << 30;

/// Bytes that plans may take together. Weights that several plans hold count once.
#[derive(Clone, Debug)]
pub struct Budget {
    most: u64,
    /// What `most` is: `80 % of ...`.
    pub what: String,
    counts_weights: bool,
    used: u64,
    weights: HashSet<(usize, DType)>,
}

impl Budget {
    /// `asked` bytes; otherwise a share of the memory of a GPU, or of what this machine has free. None: nobody knows.
    pub fn of(device: &Device, asked: Option<u64>) -> Option<Budget> {
        let share = |bytes: u64| (SHARE * bytes as f64) as u64;
        // On the CPU weights were loaded before the free memory was asked for, and no plan copies them.
        let budget = |most, counts_weights, what: &str| Some(Budget { most, what: what.to_string(), counts_weights, used: 0, weights: HashSet::new() });
        if let Some(bytes) = asked {
            return budget(bytes, true, "--memory-limit");
        }
        let host = || host_available().map(share);
        match device.gpu() {
            None => budget(host()?, false, "80 % of this machine's free memory"),
            Some(gpu) => match (gpu.summary().kind, gpu.memory_bytes()) {
                (AdapterKind::Discrete | AdapterKind::Virtual, Some(bytes)) => budget(share(bytes), true, "80 % of the device's memory"),
                (AdapterKind::Discrete | AdapterKind::Virtual, None) => budget(share(DISCRETE_BYTES), true, "80 % of the 4 GiB that GPUs have at least"),
                // The memory is the host's, and so is its heap's size on some drivers: the less of both.
                (_, heap) => budget(heap.map_or(host()?, |bytes| share(bytes).min(host().unwrap_or(u64::MAX))), true, "80 % of the free memory"),
            },
        }
    }

    /// Takes what `plan` needs, or fails with `Kind::Limit`.
    pub fn take(&mut self, plan: &Plan) -> Result<()> {
        let weights: Vec<_> = plan.weights().filter(|(weight, dtype, _)| !self.weights.contains(&(Arc::as_ptr(&weight.array) as usize, *dtype))).collect();
        let weight_bytes: u64 = if self.counts_weights { weights.iter().map(|(.., bytes)| bytes).sum() } else { 0 };
        let need = plan.slot_bytes() + plan.io_bytes() + weight_bytes;
        if need > self.most.saturating_sub(self.used) {
            let fact = format!("the plan needs {need} bytes beside {} of other plans, {} is {}", self.used, self.what, self.most);
            return Err(Error::new(Kind::Limit, "memory", fact));
        }
        self.weights.extend(weights.iter().map(|(weight, dtype, _)| (Arc::as_ptr(&weight.array) as usize, *dtype)));
        self.used += need;
        Ok(())
    }

    pub fn most(&self) -> u64 {
        self.most
    }

    pub fn used(&self) -> u64 {
        self.used
    }
}

/// Bytes that programs can still take on this machine, in this container: Linux alone tells without further ado.
pub fn host_available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let free = available(&read("/proc/meminfo")?)?;
    let group = read("/sys/fs/cgroup/memory.max").and_then(|most| group_free(&most, &read("/sys/fs/cgroup/memory.current")?));
    Some(group.map_or(free, |group| group.min(free)))
}

/// `MemAvailable:   123 kB` of /proc/meminfo.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What a control group leaves; None where its limit is `max`.
fn group_free(most: &str, current: &str) -> Option<u64> {
    Some(most.trim().parse::<u64>().ok()?.saturating_sub(current.trim().parse().ok()?))
}

/// A plan to look at, with no memory behind it. Whoever wants to run it gets an error.
pub struct Draft(pub Plan);

impl Draft {
    fn refuse<T>(&self) -> Result<T> {
        Err(Error::new(Kind::Usage, "plan", "a draft, which has no memory; expected a prepared plan"))
    }
}

impl Session for Draft {
    fn plan(&self) -> &Plan {
        &self.0
    }

    fn write_tensor(&mut self, _: Tensor, _: &[f32]) -> Result<()> {
        self.refuse()
    }

    fn run(&mut self) -> Result<()> {
        self.refuse()
    }

    fn read_tensor(&mut self, _: Tensor) -> Result<Vec<f32>> {
        self.refuse()
    }

    fn first_nonfinite(&mut self) -> Result<Option<String>> {
        self.refuse()
    }

    fn run_timed(&mut self) -> Result<StepTimes> {
        self.refuse()
    }

    fn finish(&mut self) -> Result<()> {
        self.refuse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Array;
    use crate::plan::{Options, Tape, Weight};

    #[test]
    fn free_memory_is_read() {
        assert_eq!(available("MemTotal:  9 kB\nMemAvailable:    123 kB\n"), Some(123 * 1024));
        assert_eq!(available("MemAvailable: many kB"), None);
        assert_eq!(available("MemTotal: 9 kB"), None);
        assert_eq!((group_free("max\n", "7"), group_free("100\n", "30\n"), group_free("1", "2")), (None, Some(70), Some(0)));
        if cfg!(target_os = "linux") {
            assert!(host_available().is_some_and(|bytes| bytes > 1 << 20));
        }
    }

    #[test]
    fn weights_count_once_and_too_much_is_a_limit() {
        let weight = Weight::new("w", Array::new(&[1024], vec![1.0; 1024]).unwrap());
        let plan = || {
            let mut tape = Tape::new();
            let x = tape.input("x", &[1024], DType::F32);
            let w = tape.weight(&weight);
            let y = tape.add(x, w).unwrap();
            tape.output("y", y);
            Plan::freeze(tape, &Options::default()).unwrap()
        };
        // x, y and w of 4 KiB each; the second plan shares w.
        let mut budget = Budget::of(&Device::Cpu, Some(5 * 4096)).unwrap();
        budget.take(&plan()).unwrap();
        assert_eq!(budget.used(), 3 * 4096);
        budget.take(&plan()).unwrap();
        assert_eq!(budget.used(), 5 * 4096);
        let error = budget.take(&plan()).unwrap_err();
        assert_eq!((error.kind(), budget.used()), (Kind::Limit, 5 * 4096));
        assert!(error.to_string().contains("--memory-limit is 20480"), "{error}");
        assert_eq!(Draft(plan()).run().unwrap_err().kind(), Kind::Usage);
    }
}
