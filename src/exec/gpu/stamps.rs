//! Times of compute passes on the device's own clock.

use crate::base::{DType, Result};
use crate::exec::gpu::device::Gpu;

/// Passes whose two queries one query set holds.
const PER_SET: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
/// Bytes of a pass's two stamps.
const PASS_BYTES: u64 = 16;

/// A pair of timestamps for each of some passes, read at once after all of them.
pub(super) struct Stamps {
    sets: Vec<wgpu::QuerySet>,
    resolved: wgpu::Buffer,
    period_ns: f32,
    passes: usize,
}

impl Stamps {
    /// `None` where the device has no timestamps.
    pub fn new(gpu: &Gpu, passes: usize) -> Option<Stamps> {
        let period_ns = gpu.timestamp_period_ns?;
        let set = |at: usize| {
            let count = 2 * (passes - at * PER_SET).min(PER_SET) as u32;
            gpu.device.create_query_set(&wgpu::QuerySetDescriptor { label: Some("timestamps"), ty: wgpu::QueryType::Timestamp, count })
        };
        let resolved = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("timestamps"),
            size: passes.max(1) as u64 * PASS_BYTES,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        Some(Stamps { sets: (0..passes.div_ceil(PER_SET)).map(set).collect(), resolved, period_ns, passes })
    }

    /// What makes pass `pass` write its stamps.
    pub fn of(&self, pass: usize) -> wgpu::ComputePassTimestampWrites<'_> {
        let first = 2 * (pass % PER_SET) as u32;
        wgpu::ComputePassTimestampWrites {
            query_set: &self.sets[pass / PER_SET],
            beginning_of_pass_write_index: Some(first),
            end_of_pass_write_index: Some(first + 1),
        }
    }

    /// Milliseconds of each pass. All of them were submitted; waits for the device.
    pub fn read(&self, gpu: &Gpu) -> Result<Vec<f64>> {
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        for (at, set) in self.sets.iter().enumerate() {
            let queries = 2 * (self.passes - at * PER_SET).min(PER_SET) as u32;
            encoder.resolve_query_set(set, 0..queries, &self.resolved, (at * PER_SET) as u64 * PASS_BYTES);
        }
        gpu.queue.submit([encoder.finish()]);
        let words = gpu.read_back(&self.resolved, DType::U32, 4 * self.passes)?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&words);
        // Some counters have 36 bits and wrap within hours: such a pass counts as no time, which a median passes over.
        Ok(ticks.chunks_exact(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64 * f64::from(self.period_ns) / 1e6).collect())
    }
}
