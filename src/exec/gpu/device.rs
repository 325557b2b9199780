//! An open device: queue, pipelines, uploaded weights, and the errors that the driver reports out of band.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use crate::base::{DType, Error, Kind, Result, Stored};
use crate::exec::gpu::adapter::{self, AdapterKind, AdapterSummary};
use crate::exec::gpu::heap;
use crate::exec::gpu::pipeline::{Kernel, KernelKey};
use crate::exec::gpu::pipeline_cache::PipelineCache;
use crate::exec::gpu::values::{from_bytes, to_bytes};
use crate::exec::kept::{Identity, Keeper, Kept};
use crate::exec::precision::Precision;
use crate::exec::{Settings, Tune};
use crate::plan::{Limits, Weight};

/// Bytes of weights that may wait for their copy to the device: the driver holds them a second time until then.
const WAITING_BYTES: u64 = 256 << 20;

/// Values of a 16-bit parameter that are f32 on their way to the device. Even, so that pieces begin at whole words.
const WIDENED_AT_ONCE: usize = 1 << 20;

/// A device; sessions share it.
pub struct Gpu {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) summary: AdapterSummary,
    pub(super) timestamp_period_ns: Option<f32>,
    memory_bytes: Option<u64>,
    pub(super) kernels: Mutex<HashMap<KernelKey, Arc<Kernel>>>,
    pub(super) pipelines: Option<PipelineCache>,
    /// How it was opened, and what is known about it.
    pub(in crate::exec) settings: Settings,
    pub(in crate::exec) keeper: Option<Keeper>,
    pub(in crate::exec) kept: Mutex<Kept>,
    weights: Mutex<HashMap<(usize, DType), (Weak<Stored>, wgpu::Buffer)>>,
    waiting_bytes: Mutex<u64>,
    failure: Arc<Mutex<Option<String>>>,
}

impl Gpu {
    /// Opens adapter `index` of [`super::adapters`]; its kernels are chosen by the written heuristic.
    pub fn open(index: usize) -> Result<Arc<Gpu>> {
        Gpu::open_with(index, &Settings { tune: Tune::Off, ..Settings::default() })
    }

    /// The same with no optional features but timestamps, f16, pipeline caches, subgroups and cooperative matrices, and with what `settings` says.
    pub fn open_with(index: usize, settings: &Settings) -> Result<Arc<Gpu>> {
        let adapters = adapter::list();
        let place = format!("--device {index}");
        let adapter = adapters.get(index).ok_or_else(|| Error::new(Kind::Device, place, format!("this machine has {} adapters", adapters.len())))?;
        let mut summary = adapter::summary(index, adapter);
        if summary.storage_buffers < adapter::STORAGE_BUFFERS {
            let fact = format!("{} storage buffers per shader, expected at least {}", summary.storage_buffers, adapter::STORAGE_BUFFERS);
            return Err(Error::new(Kind::Device, summary.name, fact));
        }
        if settings.precision == Precision::F16 && !summary.f16 {
            return Err(Error::new(Kind::Device, summary.name, "it has no f16 in shaders, expected --precision f32"));
        }
        let mut wanted = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SHADER_F16 | wgpu::Features::PIPELINE_CACHE | wgpu::Features::SUBGROUP;
        if settings.matrices
            && let Some(machine) = summary.matrices
        {
            wanted |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            summary.limits.machine = machine;
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("naevus"),
            required_features: adapter.features() & wanted,
            required_limits: adapter.limits(),
            experimental_features: experimental(),
            ..Default::default()
        };
        let opened = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) = opened.map_err(|e| Error::new(Kind::Device, summary.name.clone(), format!("the driver refused a device: {e}")))?;
        let failure = Arc::new(Mutex::new(None));
        let sink = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| note(&sink, error.to_string())));
        let sink = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                note(&sink, format!("the device was lost: {message}"));
            }
        });
        let timestamp_period_ns = summary.timestamps.then(|| queue.get_timestamp_period());
        let keeper = settings.cache.as_ref().map(|folder| Keeper::new(folder, Identity::of(&summary)));
        let (kept, note) = keeper.as_ref().map_or((Kept::default(), None), Keeper::read);
        note.iter().for_each(|note| (settings.say)(note));
        let pipelines = keeper.as_ref().and_then(|keeper| PipelineCache::open(&device, keeper, settings.say));
        Ok(Arc::new(Gpu {
            device,
            queue,
            summary,
            settings: settings.clone(),
            keeper,
            kept: Mutex::new(kept),
            timestamp_period_ns,
            memory_bytes: heap::local_bytes(adapter),
            kernels: Mutex::default(),
            pipelines,
            weights: Mutex::default(),
            waiting_bytes: Mutex::default(),
            failure,
        }))
    }

    pub fn summary(&self) -> &AdapterSummary {
        &self.summary
    }

    pub fn limits(&self) -> Limits {
        self.summary.limits
    }

    /// The device's own memory, all of it, where the driver tells.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.memory_bytes
    }

    /// Floating point operations of one submission: a fraction of the two seconds after which Windows resets a device,
    /// for the slowest hardware of the kind running our slowest kernels. Software devices have no watchdog.
    pub(super) fn submission_flops(&self) -> u64 {
        match self.summary.kind {
            AdapterKind::Software => u64::MAX,
            AdapterKind::Discrete => 200_000_000_000,
            _ => 20_000_000_000,
        }
    }

    /// A buffer that shaders read and write and that can be copied either way.
    pub(super) fn buffer(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes.max(4).next_multiple_of(4),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        match pollster::block_on(scope.pop()) {
            None => Ok(buffer),
            Some(_) => Err(Error::new(Kind::Limit, label, format!("{} has no {bytes} bytes left; use a smaller batch", self.summary.name))),
        }
    }

    /// The uploaded weight; uploaded once for all sessions that hold it in this type.
    pub(super) fn weight(&self, weight: &Weight, dtype: DType) -> Result<wgpu::Buffer> {
        let key = (Arc::as_ptr(&weight.array) as usize, dtype);
        let mut weights = lock(&self.weights);
        weights.retain(|_, (array, _)| array.strong_count() > 0);
        if let Some((_, buffer)) = weights.get(&key) {
            return Ok(buffer.clone());
        }
        let bytes = weight.array.shape.bytes(dtype);
        let buffer = self.buffer(&weight.name, bytes)?;
        self.write_weight(&buffer, &weight.array, dtype);
        weights.insert(key, (Arc::downgrade(&weight.array), buffer.clone()));
        self.copied(bytes)?;
        Ok(buffer)
    }

    /// Writes `values` from the buffer's start on.
    pub(super) fn write(&self, buffer: &wgpu::Buffer, values: &[f32], dtype: DType) {
        match dtype {
            DType::F16 => self.queue.write_buffer(buffer, 0, &to_bytes(values, dtype)),
            DType::F32 | DType::U32 => self.queue.write_buffer(buffer, 0, bytemuck::cast_slice(values)),
        }
    }

    /// Writes a parameter: bit by bit where it is stored as it will be, else in pieces.
    fn write_weight(&self, buffer: &wgpu::Buffer, values: &Stored, dtype: DType) {
        if let Some(values) = values.as_f32() {
            return self.write(buffer, values, dtype);
        }
        let mut piece = vec![0.0; WIDENED_AT_ONCE.min(values.len())];
        for from in (0..values.len()).step_by(WIDENED_AT_ONCE) {
            let piece = &mut piece[..WIDENED_AT_ONCE.min(values.len() - from)];
            values.widen(from, piece);
            self.queue.write_buffer(buffer, from as u64 * dtype.bytes(), &to_bytes(piece, dtype));
        }
    }

    /// Counts `bytes` that wait for their copy, and has the copies made when there are many.
    fn copied(&self, bytes: u64) -> Result<()> {
        let mut waiting = lock(&self.waiting_bytes);
        *waiting += bytes;
        if *waiting < WAITING_BYTES {
            return Ok(());
        }
        *waiting = 0;
        self.queue.submit([]);
        self.wait()
    }

    /// Waits until everything submitted has run, and reports what the driver complained of.
    pub(super) fn wait(&self) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.health()?;
        polled.map(|_| ()).map_err(|e| Error::new(Kind::Device, self.summary.name.clone(), e.to_string()))
    }

    /// The first error that the driver reported out of band.
    pub(in crate::exec) fn health(&self) -> Result<()> {
        match &*lock(&self.failure) {
            None => Ok(()),
            Some(fact) => Err(Error::new(Kind::Device, self.summary.name.clone(), fact.clone())),
        }
    }

    /// The first `len` values of `buffer`, on the host. Waits for the device.
    pub(super) fn read_back(&self, buffer: &wgpu::Buffer, dtype: DType, len: usize) -> Result<Vec<f32>> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let bytes = (len as u64 * dtype.bytes()).next_multiple_of(4);
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read back"),
            size: bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, bytes);
        self.queue.submit([encoder.finish()]);
        let mapped = Arc::new(Mutex::new(None));
        let sink = Arc::clone(&mapped);
        staging.map_async(wgpu::MapMode::Read, .., move |result| *lock(&sink) = Some(result));
        self.wait()?;
        let failed = |fact: String| Error::new(Kind::Device, self.summary.name.clone(), fact);
        match lock(&mapped).take() {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(failed(format!("reading back failed: {e}"))),
            None => return Err(failed("reading back did not finish".to_string())),
        }
        let view = staging.get_mapped_range(..).map_err(|e| failed(format!("reading back failed: {e}")))?;
        Ok(from_bytes(&view, dtype, len))
    }
}

/// Leave for the one experimental feature that is asked for: its kernels are proved on the device before they are used.
#[allow(unsafe_code)]
fn experimental() -> wgpu::ExperimentalFeatures {
    // SAFETY: what may be wrong in them is known (no availability operands in SPIR-V, naga 30) and is what the proofs look for.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// A lock that outlives a panic elsewhere: the values behind our locks are valid at every point.
pub(in crate::exec) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn note(sink: &Mutex<Option<String>>, fact: String) {
    lock(sink).get_or_insert(fact);
}
