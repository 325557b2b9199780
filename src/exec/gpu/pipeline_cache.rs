//! The driver's compiled pipelines, from the file of an earlier start and back to it.

use crate::exec::gpu::device::Gpu;
use crate::exec::kept::Keeper;
use crate::exec::pipelines::PipelineFile;

/// A cache that every pipeline of a device goes through.
pub(super) struct PipelineCache {
    pub cache: wgpu::PipelineCache,
    file: PipelineFile,
    /// What the file held.
    before: Option<Vec<u8>>,
}

impl PipelineCache {
    /// `None` where the backend has none. `say` is told of a file that is left aside.
    pub fn open(device: &wgpu::Device, keeper: &Keeper, say: fn(&str)) -> Option<PipelineCache> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let file = PipelineFile::beside(keeper);
        let (before, note) = file.read();
        note.iter().for_each(|note| say(note));
        let cache = create(device, before.as_deref()).or_else(|| create(device, None))?;
        Some(PipelineCache { cache, file, before })
    }

    /// Writes what the driver has now, where that is new.
    fn keep(&self) -> crate::base::Result<()> {
        match self.cache.get_data() {
            Some(data) if self.before.as_ref() != Some(&data) => self.file.write(&data),
            _ => Ok(()),
        }
    }
}

#[allow(unsafe_code)]
fn create(device: &wgpu::Device, data: Option<&[u8]>) -> Option<wgpu::PipelineCache> {
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    // SAFETY: the data must come from `get_data` of the same kind of adapter. `PipelineFile` reads only what it wrote itself, by its
    // SHA-256, for this adapter, driver and program; wgpu and the driver check their own headers after that.
    let cache = unsafe { device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor { label: Some("naevus"), data, fallback: true }) };
    pollster::block_on(scope.pop()).is_none().then_some(cache)
}

/// What was compiled is kept when the last session is gone.
impl Drop for Gpu {
    fn drop(&mut self) {
        let Some(cache) = &self.pipelines else { return };
        if self.kernels.get_mut().is_ok_and(|kernels| !kernels.is_empty())
            && let Err(e) = cache.keep()
        {
            (self.settings.say)(&format!("compiled pipelines are not kept: {e}"));
        }
    }
}
