//! A plan on a device: buffers, pipelines and bind groups are made once, then replayed.

use std::ops::Range;
use std::sync::Arc;

use crate::base::{Error, Kind, Result};
use crate::exec::gpu::device::Gpu;
use crate::exec::gpu::pipeline::{Kernel, UNIFORM_STRIDE, uniform_bytes};
use crate::exec::gpu::stamps::Stamps;
use crate::plan::{Plan, Session, StepTimes, Storage, Tensor, TensorKind, Timer};

/// A plan with its buffers on a device.
pub struct GpuSession {
    gpu: Arc<Gpu>,
    plan: Plan,
    /// Per tensor; `None` for tensors that no step touches.
    buffers: Vec<Option<wgpu::Buffer>>,
    dispatches: Vec<Dispatch>,
    /// First dispatch of each submission, and the end.
    submissions: Vec<usize>,
    previous: Option<wgpu::SubmissionIndex>,
}

struct Dispatch {
    kernel: Arc<Kernel>,
    bindings: wgpu::BindGroup,
    uniform_offset: u32,
    grid: [u32; 3],
}

impl GpuSession {
    /// Allocates buffers, uploads weights, compiles kernels. The plan must have been frozen with this device's limits.
    pub fn new(gpu: &Arc<Gpu>, plan: Plan) -> Result<Self> {
        let buffers = allocate(gpu, &plan)?;
        let uniforms = uniforms(gpu, &plan);
        let mut dispatches = Vec::with_capacity(plan.steps().len());
        for s in 0..plan.steps().len() {
            dispatches.push(dispatch(gpu, &plan, s, &buffers, &uniforms)?);
        }
        gpu.queue.submit([]);
        let submissions = split(&plan, gpu.submission_flops());
        gpu.health()?;
        Ok(GpuSession { gpu: Arc::clone(gpu), plan, buffers, dispatches, submissions, previous: None })
    }

    fn buffer(&self, tensor: Tensor) -> Result<&wgpu::Buffer> {
        let missing = || Error::new(Kind::Usage, self.plan.tape.info(tensor).place.clone(), "the plan does not use this tensor");
        self.buffers[tensor.index()].as_ref().ok_or_else(missing)
    }

    /// One step in a submission of its own.
    fn submit(&self, s: usize) -> Result<()> {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        self.encode(&mut encoder, s..s + 1, None);
        self.gpu.queue.submit([encoder.finish()]);
        self.gpu.health()
    }

    /// Steps in one pass.
    fn encode(&self, encoder: &mut wgpu::CommandEncoder, range: Range<usize>, timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
        for dispatch in &self.dispatches[range] {
            pass.set_pipeline(&dispatch.kernel.pipeline);
            pass.set_bind_group(0, &dispatch.bindings, &[dispatch.uniform_offset]);
            pass.dispatch_workgroups(dispatch.grid[0], dispatch.grid[1], dispatch.grid[2]);
        }
    }
}

impl Session for GpuSession {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn write_tensor(&mut self, tensor: Tensor, values: &[f32]) -> Result<()> {
        // An input that no step reads (noise when eta is 0) has no buffer; its values are not needed.
        if let Some(buffer) = &self.buffers[tensor.index()] {
            self.gpu.write(buffer, values, self.plan.tape.dtype(tensor));
        }
        Ok(())
    }

    /// One submission where the estimated cost allows, with at most two runs in flight.
    fn run(&mut self) -> Result<()> {
        let before = self.previous.take();
        for window in self.submissions.windows(2) {
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            self.encode(&mut encoder, window[0]..window[1], None);
            if window[1] == self.dispatches.len() {
                for &(from, to) in &self.plan.tape.carries {
                    let bytes = self.plan.tape.info(from).bytes();
                    encoder.copy_buffer_to_buffer(self.buffer(from)?, 0, self.buffer(to)?, 0, bytes);
                }
            }
            self.previous = Some(self.gpu.queue.submit([encoder.finish()]));
        }
        if let Some(index) = before {
            let wait = wgpu::PollType::Wait { submission_index: Some(index), timeout: None };
            self.gpu.device.poll(wait).map_err(|e| Error::new(Kind::Device, self.gpu.summary.name.clone(), e.to_string()))?;
        }
        self.gpu.health()
    }

    /// A pass for each step, in the submissions of [`Session::run`]; without timestamps a submission and a wait for each step.
    fn run_timed(&mut self) -> Result<StepTimes> {
        self.gpu.wait()?;
        if let Some(stamps) = Stamps::new(&self.gpu, self.dispatches.len()) {
            for window in self.submissions.windows(2) {
                let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
                for s in window[0]..window[1] {
                    self.encode(&mut encoder, s..s + 1, Some(stamps.of(s)));
                }
                self.gpu.queue.submit([encoder.finish()]);
            }
            return Ok(StepTimes { ms: stamps.read(&self.gpu)?, timer: Timer::Gpu });
        }
        let mut ms = Vec::with_capacity(self.dispatches.len());
        for s in 0..self.dispatches.len() {
            let start = std::time::Instant::now();
            self.submit(s)?;
            self.gpu.wait()?;
            ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(StepTimes { ms, timer: Timer::Wall })
    }

    fn finish(&mut self) -> Result<()> {
        self.gpu.wait()
    }

    fn read_tensor(&mut self, tensor: Tensor) -> Result<Vec<f32>> {
        if !self.plan.readable(tensor) {
            return Err(Error::new(Kind::Usage, self.plan.tape.info(tensor).place.clone(), "this tensor is not kept by the plan; tap it"));
        }
        let len = self.plan.tape.shape(tensor).numel();
        self.gpu.read_back(self.buffer(tensor)?, self.plan.tape.dtype(tensor), len)
    }

    fn first_nonfinite(&mut self) -> Result<Option<String>> {
        for s in 0..self.dispatches.len() {
            self.submit(s)?;
            let step = &self.plan.steps()[s];
            let dtype = self.plan.tape.dtype(step.output);
            if !dtype.is_float() {
                continue;
            }
            let values = self.gpu.read_back(self.buffer(step.output)?, dtype, self.plan.tape.shape(step.output).numel())?;
            if values.iter().any(|v| !v.is_finite()) {
                return Ok(Some(format!("{} ({})", step.place, step.op.name)));
            }
        }
        Ok(None)
    }
}

fn allocate(gpu: &Gpu, plan: &Plan) -> Result<Vec<Option<wgpu::Buffer>>> {
    let mut slots = Vec::with_capacity(plan.slots.len());
    for (slot, &bytes) in plan.slots.iter().enumerate() {
        slots.push(gpu.buffer(&format!("slot {slot}"), bytes)?);
    }
    let mut buffers: Vec<Option<wgpu::Buffer>> = Vec::with_capacity(plan.storage.len());
    for (info, storage) in plan.tape.tensors.iter().zip(&plan.storage) {
        buffers.push(match (&info.kind, storage) {
            (_, Storage::Nowhere) => None,
            (TensorKind::Reshaped(owner), _) => buffers[owner.index()].clone(),
            (_, Storage::Slot(slot)) => Some(slots[*slot].clone()),
            (TensorKind::Weight(weight), Storage::Own) => Some(gpu.weight(weight, info.dtype)?),
            (_, Storage::Own) => Some(gpu.buffer(&info.place, info.bytes())?),
        });
    }
    Ok(buffers)
}

/// All steps' parameters in one buffer, at multiples of [`UNIFORM_STRIDE`].
fn uniforms(gpu: &Gpu, plan: &Plan) -> wgpu::Buffer {
    let mut bytes = vec![0u8; (UNIFORM_STRIDE as usize) * plan.steps().len().max(1)];
    for (s, step) in plan.steps().iter().enumerate() {
        let at = s * UNIFORM_STRIDE as usize;
        bytes[at..at + step.params.len()].copy_from_slice(&step.params);
    }
    let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("parameters"),
        size: bytes.len() as u64,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    gpu.queue.write_buffer(&buffer, 0, &bytes);
    buffer
}

fn dispatch(gpu: &Gpu, plan: &Plan, s: usize, buffers: &[Option<wgpu::Buffer>], uniforms: &wgpu::Buffer) -> Result<Dispatch> {
    let step = &plan.steps()[s];
    let (kernel, grid) = plan.tape.view(step, |view| {
        let none = || Error::new(Kind::Shape, step.place.clone(), format!("no {} kernel takes these shapes", step.op.name));
        let variant = plan.kernels[s].ok_or_else(none)?;
        Ok((gpu.kernel(step.op, variant, view)?, (variant.grid)(view)))
    })?;
    let mut entries = vec![wgpu::BindGroupEntry {
        binding: 0,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: uniforms, offset: 0, size: std::num::NonZeroU64::new(uniform_bytes(step.op)) }),
    }];
    for (at, &tensor) in step.inputs.iter().chain([&step.output]).enumerate() {
        let missing = || Error::new(Kind::Shape, step.place.clone(), "a tensor has no buffer");
        let buffer = buffers[tensor.index()].as_ref().ok_or_else(missing)?;
        let size = std::num::NonZeroU64::new(plan.tape.info(tensor).bytes());
        let binding = wgpu::BufferBinding { buffer, offset: 0, size };
        entries.push(wgpu::BindGroupEntry { binding: at as u32 + 1, resource: wgpu::BindingResource::Buffer(binding) });
    }
    let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
    let bindings = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some(step.op.name), layout: &kernel.layout, entries: &entries });
    if let Some(e) = pollster::block_on(scope.pop()) {
        return Err(Error::new(Kind::Limit, step.place.clone(), format!("{}: {e}", step.op.name)));
    }
    Ok(Dispatch { kernel, bindings, uniform_offset: (s as u64 * UNIFORM_STRIDE) as u32, grid })
}

/// Cuts the steps into submissions of at most `most` estimated floating point operations, one step at least.
fn split(plan: &Plan, most: u64) -> Vec<usize> {
    let mut cuts = vec![0];
    let mut sum = 0u64;
    for (s, step) in plan.steps().iter().enumerate() {
        let flops = plan.tape.cost(step).flops;
        if sum > 0 && sum.saturating_add(flops) > most {
            cuts.push(s);
            sum = 0;
        }
        sum = sum.saturating_add(flops).max(1);
    }
    cuts.push(plan.steps().len());
    cuts
}
