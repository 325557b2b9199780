//! Single kernels on a device: for proofs (guard bands, poison, replay) and for timing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::{DType, Error, Kind, Result};
use crate::exec::gpu::device::Gpu;
use crate::exec::gpu::pipeline::{Kernel, uniform_bytes};
use crate::exec::gpu::stamps::Stamps;
use crate::exec::gpu::values::from_bytes;
use crate::plan::{Op, Step, Tape, Timer, Variant};

/// Bytes on each side of the output that a kernel must leave alone: the offset alignment of every device.
const GUARD: usize = 256;
/// A NaN with a payload that no kernel computes, in f32 and twice in f16.
const POISON: u32 = 0x7fdf_7fdf;

/// Time under load before the first sample.
const WARM_UP: Duration = Duration::from_millis(200);

/// One kernel with its inputs on the device.
pub struct KernelRun {
    gpu: Arc<Gpu>,
    kernel: Arc<Kernel>,
    bindings: wgpu::BindGroup,
    output: wgpu::Buffer,
    len: usize,
    dtype: DType,
    grid: [u32; 3],
}

/// Times of repeated dispatches of one kernel.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Milliseconds per dispatch.
    pub samples_ms: Vec<f64>,
    pub timer: Timer,
}

impl KernelRun {
    /// Prepares `variant` for the single step of `tape` as it runs in plans, with `inputs` in the step's binding order.
    /// `source` replaces the variant's WGSL, to show that a broken shader is found.
    pub fn new(gpu: &Arc<Gpu>, tape: &Tape, variant: &'static Variant, inputs: &[&[f32]], source: Option<&str>) -> Result<Self> {
        let [step] = tape.steps() else {
            return Err(Error::new(Kind::Usage, "kernel run", format!("{} steps, expected 1", tape.steps().len())));
        };
        let checked = source.is_some() || tape.view(step, |view| gpu.is_checked(step.op, variant, view.floats()));
        KernelRun::with(gpu, tape, variant, inputs, source, checked)
    }

    /// The same with or without runtime checks.
    pub fn with(gpu: &Arc<Gpu>, tape: &Tape, variant: &'static Variant, inputs: &[&[f32]], source: Option<&str>, checked: bool) -> Result<Self> {
        let [step] = tape.steps() else {
            return Err(Error::new(Kind::Usage, "kernel run", format!("{} steps, expected 1", tape.steps().len())));
        };
        let op: &'static Op = step.op;
        let (kernel, grid) = tape.view(step, |view| {
            let kernel = match source {
                None => gpu.kernel_with(op, variant, view, checked)?,
                Some(source) => Arc::new(gpu.compile(op, source, variant, &(variant.constants)(view), inputs.len(), checked)?),
            };
            Ok::<_, Error>((kernel, (variant.grid)(view)))
        })?;
        let buffers = StepBuffers::of(gpu, tape, step)?;
        for ((buffer, values), &tensor) in buffers.inputs.iter().zip(inputs).zip(&step.inputs) {
            gpu.write(buffer, values, tape.dtype(tensor));
        }
        KernelRun::bound(gpu, kernel, grid, op.name, &buffers)
    }

    /// A compiled kernel on the buffers of its step.
    pub(super) fn bound(gpu: &Arc<Gpu>, kernel: Arc<Kernel>, grid: [u32; 3], label: &str, buffers: &StepBuffers) -> Result<Self> {
        let (output, len, dtype) = (&buffers.output, buffers.len, buffers.dtype);
        let size = std::num::NonZeroU64::new(output.size() - 2 * GUARD as u64);
        let between_guards = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: output, offset: GUARD as u64, size });
        let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: buffers.uniform.as_entire_binding() }];
        for (at, buffer) in buffers.inputs.iter().enumerate() {
            entries.push(wgpu::BindGroupEntry { binding: at as u32 + 1, resource: buffer.as_entire_binding() });
        }
        entries.push(wgpu::BindGroupEntry { binding: entries.len() as u32, resource: between_guards });
        let bindings = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some(label), layout: &kernel.layout, entries: &entries });
        gpu.health()?;
        Ok(KernelRun { gpu: Arc::clone(gpu), kernel, bindings, output: output.clone(), len, dtype, grid })
    }

    /// Poisons the output, runs once, checks the guard bands, and returns the output. Unwritten values stay NaN.
    pub fn output(&self) -> Result<Vec<f32>> {
        let poison = vec![POISON; self.output.size() as usize / 4];
        self.gpu.queue.write_buffer(&self.output, 0, bytemuck::cast_slice(&poison));
        self.submit(1, None)?;
        let words = self.gpu.read_back(&self.output, DType::F32, poison.len())?;
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let (before, rest) = bytes.split_at(GUARD);
        let (values, after) = rest.split_at(self.len * self.dtype.bytes() as usize);
        // The last word of an odd number of halves is poison in its second half.
        let stray = |pair: &[u8]| pair != &POISON.to_le_bytes()[..2];
        if before.chunks(2).any(stray) || after.chunks(2).any(stray) {
            return Err(Error::new(Kind::Numeric, "guard band", "the kernel wrote outside its output"));
        }
        Ok(from_bytes(values, self.dtype, self.len))
    }

    /// Times the kernel: warms up, then takes samples until `budget` is spent, at least 5 (fewer where these would take ten
    /// times the budget) and at most 200.
    pub fn time(&self, budget: Duration) -> Result<Timing> {
        self.submit(1, None)?;
        self.gpu.wait()?;
        let start = Instant::now();
        self.submit(1, None)?;
        self.gpu.wait()?;
        let once = start.elapsed().max(Duration::from_micros(1));
        // A sample repeats the dispatch until it is well above the clock and the submission's own cost.
        let repeats = (Duration::from_millis(5).as_secs_f64() / once.as_secs_f64()).clamp(1.0, 100.0) as u32;
        // An idle GPU runs at a fifth of its clock (345 of 1980 MHz on an H200) and takes a while to leave it.
        let warm_up = Instant::now();
        while warm_up.elapsed() < WARM_UP.min(budget) {
            self.submit(repeats, None)?;
            self.gpu.wait()?;
        }
        let clock = Clock::new(&self.gpu);
        let mut samples_ms = Vec::new();
        let start = Instant::now();
        while samples_ms.is_empty() || (samples_ms.len() < 5 && start.elapsed() < 10 * budget) || (start.elapsed() < budget && samples_ms.len() < 200) {
            samples_ms.push(clock.measure(self, repeats)?);
        }
        Ok(Timing { samples_ms, timer: clock.timer() })
    }

    pub(super) fn submit(&self, repeats: u32, stamps: Option<&Stamps>) -> Result<()> {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        {
            let timestamp_writes = stamps.map(|stamps| stamps.of(0));
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
            pass.set_pipeline(&self.kernel.pipeline);
            pass.set_bind_group(0, &self.bindings, &[0]);
            for _ in 0..repeats {
                pass.dispatch_workgroups(self.grid[0], self.grid[1], self.grid[2]);
            }
        }
        self.gpu.queue.submit([encoder.finish()]);
        self.gpu.health()
    }
}

impl Gpu {
    /// Bytes read and written per second by the driver's copy of `bytes`, the best of many on the host's clock.
    pub fn copy_bytes_per_s(&self, bytes: u64, budget: Duration) -> Result<f64> {
        const COPIES: u64 = 8;
        let (from, to) = (self.buffer("copy from", bytes)?, self.buffer("copy to", bytes)?);
        let mut best = f64::INFINITY;
        let start = Instant::now();
        while best.is_infinite() || start.elapsed() < budget {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            (0..COPIES).for_each(|_| encoder.copy_buffer_to_buffer(&from, 0, &to, 0, bytes));
            let once = Instant::now();
            self.queue.submit([encoder.finish()]);
            self.wait()?;
            best = best.min(once.elapsed().as_secs_f64());
        }
        Ok((2 * bytes * COPIES) as f64 / best)
    }
}

/// The buffers that one step binds, each of its own; the output between guard bands.
pub(super) struct StepBuffers {
    pub uniform: wgpu::Buffer,
    pub inputs: Vec<wgpu::Buffer>,
    output: wgpu::Buffer,
    len: usize,
    dtype: DType,
}

impl StepBuffers {
    /// For `step` of `tape`; the inputs hold nothing yet.
    pub fn of(gpu: &Gpu, tape: &Tape, step: &Step) -> Result<Self> {
        let (len, dtype) = (tape.shape(step.output).numel(), tape.dtype(step.output));
        let uniform = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("parameters"),
            size: uniform_bytes(step.op),
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        gpu.queue.write_buffer(&uniform, 0, &step.params);
        let output = gpu.buffer("output", tape.info(step.output).bytes() + 2 * GUARD as u64)?;
        let inputs = step.inputs.iter().map(|&input| gpu.buffer("input", tape.info(input).bytes())).collect::<Result<_>>()?;
        Ok(StepBuffers { uniform, inputs, output, len, dtype })
    }
}

/// Measures kernels by timestamps on the device, or by the host's clock where there are none.
pub(super) struct Clock {
    gpu: Arc<Gpu>,
    stamps: Option<Stamps>,
}

impl Clock {
    pub fn new(gpu: &Arc<Gpu>) -> Clock {
        Clock { gpu: Arc::clone(gpu), stamps: Stamps::new(gpu, 1) }
    }

    pub fn timer(&self) -> Timer {
        if self.stamps.is_some() { Timer::Gpu } else { Timer::Wall }
    }

    /// Milliseconds of one dispatch, as the mean of `repeats`.
    pub fn measure(&self, run: &KernelRun, repeats: u32) -> Result<f64> {
        let start = Instant::now();
        run.submit(repeats, self.stamps.as_ref())?;
        let total_ms = match &self.stamps {
            Some(stamps) => stamps.read(&self.gpu)?[0],
            None => {
                self.gpu.wait()?;
                start.elapsed().as_secs_f64() * 1e3
            }
        };
        Ok(total_ms / f64::from(repeats))
    }
}
