//! Kernels of one step of a plan timed against one another, on buffers of the step's own shapes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::{DType, Result, rng};
use crate::exec::gpu::device::Gpu;
use crate::exec::gpu::proof::{Clock, KernelRun, StepBuffers};
use crate::plan::{Machine, Step, Tape, Variant};

/// Load before the samples of a step: the device was idle while its kernels were compiled (docs/performance.md).
const WARM_UP: Duration = Duration::from_millis(30);
/// Samples of each kernel, in turn, so that a drift of the clock meets all of them.
const ROUNDS: usize = 7;
/// A rival that takes this many times as long in its first run is not run again.
const HOPELESS: f64 = 4.0;
/// On hardware nothing is tried beside a kernel of so many milliseconds: the readable variants are twenty times slower at
/// worst, and Windows resets a device after two seconds.
const LONG_MS: f64 = 50.0;

/// Normal numbers on the device, from which inputs of any length are filled. Zeros would not do: a device that adds
/// zeros draws less power and runs at a higher clock.
pub struct Filling {
    floats: wgpu::Buffer,
    halves: wgpu::Buffer,
}

impl Filling {
    pub fn new(gpu: &Gpu) -> Result<Filling> {
        let values = rng::normal(rng::name_seed("trial"), 0, 0, 1 << 18);
        let buffer = |dtype: DType| {
            let buffer = gpu.buffer("filling", values.len() as u64 * dtype.bytes())?;
            gpu.write(&buffer, &values, dtype);
            Ok(buffer)
        };
        Ok(Filling { floats: buffer(DType::F32)?, halves: buffer(DType::F16)? })
    }

    fn fill(&self, encoder: &mut wgpu::CommandEncoder, buffer: &wgpu::Buffer, dtype: DType, bytes: u64) {
        let from = if dtype == DType::F16 { &self.halves } else { &self.floats };
        let mut at = 0;
        while at < bytes {
            let part = from.size().min(bytes - at);
            encoder.copy_buffer_to_buffer(from, 0, buffer, at, part);
            at += part;
        }
    }
}

/// One step with its rivals.
pub struct Trial {
    gpu: Arc<Gpu>,
    clock: Clock,
    runs: Vec<KernelRun>,
}

impl Trial {
    /// Compiles `variants`, which accept the step's shapes, and binds them to buffers of its sizes. Index inputs are 0.
    pub fn new(gpu: &Arc<Gpu>, tape: &Tape, step: &Step, variants: &[&'static Variant], filling: &Filling) -> Result<Trial> {
        let buffers = StepBuffers::of(gpu, tape, step)?;
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        for (&tensor, buffer) in step.inputs.iter().zip(&buffers.inputs) {
            let dtype = tape.dtype(tensor);
            if dtype.is_float() {
                filling.fill(&mut encoder, buffer, dtype, tape.info(tensor).bytes());
            }
        }
        gpu.queue.submit([encoder.finish()]);
        let run = |variant: &&'static Variant| {
            let (kernel, grid) = tape.view(step, |view| (gpu.kernel(step.op, variant, view), (variant.grid)(view)));
            KernelRun::bound(gpu, kernel?, grid, step.op.name, &buffers)
        };
        Ok(Trial { gpu: Arc::clone(gpu), clock: Clock::new(gpu), runs: variants.iter().map(run).collect::<Result<_>>()? })
    }

    /// Median milliseconds of each variant; `None` for those that were not worth a run. The first is the one to beat.
    pub fn run(&self, until: Instant) -> Result<Vec<Option<f64>>> {
        let hardware = self.gpu.limits().machine >= Machine::Hardware;
        let Some((first, rivals)) = self.runs.split_first() else { return Ok(Vec::new()) };
        let once = |run: &KernelRun| {
            // The first run of a kernel pays for buffers that are cleared and code that is loaded.
            run.submit(1, None)?;
            self.clock.measure(run, 1)
        };
        let mut best = once(first)?;
        if hardware && best > LONG_MS {
            return Ok(std::iter::once(Some(best)).chain(rivals.iter().map(|_| None)).collect());
        }
        let mut firsts = vec![best];
        for run in rivals {
            firsts.push(once(run)?);
            best = best.min(firsts[firsts.len() - 1]);
        }
        let warm_up = Instant::now();
        while hardware && warm_up.elapsed() < WARM_UP {
            first.submit(1, None)?;
            self.gpu.wait()?;
        }
        let repeats = (2.0 / best.max(1e-3)).clamp(1.0, 100.0) as u32;
        let mut samples = vec![Vec::new(); self.runs.len()];
        for round in 0..ROUNDS {
            if round >= 3 && Instant::now() > until {
                break;
            }
            for (at, run) in self.runs.iter().enumerate().filter(|(at, _)| firsts[*at] <= HOPELESS * best) {
                samples[at].push(self.clock.measure(run, repeats)?);
            }
        }
        Ok(samples.iter().zip(firsts).map(|(samples, first)| Some(if samples.is_empty() { first } else { median(samples) })).collect())
    }
}

/// The middle one of an odd number of samples; the larger of two middle ones.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
