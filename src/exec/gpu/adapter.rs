//! The machine's adapters, as data.

use crate::plan::{Limits, Machine};

/// What an adapter is and may do.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSummary {
    /// Position in this machine's list; `--device <index>`.
    pub index: usize,
    pub name: String,
    /// PCI numbers of vendor and device.
    pub vendor: u32,
    pub device: u32,
    /// Vulkan, Metal or Dx12.
    pub backend: String,
    /// Driver name and version.
    pub driver: String,
    pub kind: AdapterKind,
    pub f16: bool,
    pub subgroup: Option<(u32, u32)>,
    /// Cooperative matrix shapes, `16x16x16 f16 -> f32`.
    pub cooperative_matrix: Vec<String>,
    /// What it is where kernels by cooperative matrices compile for it, with f16 factors and f32 sums: 16 x 16, subgroups of 32 and 48 KiB of
    /// workgroup memory; or 8 x 8 on Metal, whose subgroups have 32 invocations on all hardware with such units.
    pub matrices: Option<Machine>,
    pub timestamps: bool,
    pub limits: Limits,
    pub workgroup_memory_bytes: u32,
    pub invocations_per_workgroup: u32,
    pub storage_buffers: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterKind {
    Discrete,
    Integrated,
    Virtual,
    /// Vulkan on the CPU: slower than the CPU executor.
    Software,
    Other,
}

impl std::fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            AdapterKind::Discrete => "discrete GPU",
            AdapterKind::Integrated => "integrated GPU",
            AdapterKind::Virtual => "virtual GPU",
            AdapterKind::Software => "software",
            AdapterKind::Other => "other",
        })
    }
}

/// Storage buffers that the widest kernel (ddim_step) binds.
pub const STORAGE_BUFFERS: u32 = 8;

/// Workgroup memory of the kernel by cooperative matrices that takes the most: attention with heads of 160.
const MATRICES_BYTES: u32 = 48 << 10;

/// All adapters of the backends that naevus is written for.
pub fn adapters() -> Vec<AdapterSummary> {
    list().iter().enumerate().map(|(index, adapter)| summary(index, adapter)).collect()
}

pub(super) fn list() -> Vec<wgpu::Adapter> {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let descriptor = wgpu::InstanceDescriptor { backends, flags: wgpu::InstanceFlags::empty(), ..wgpu::InstanceDescriptor::new_without_display_handle() };
    let instance = wgpu::Instance::new(descriptor);
    pollster::block_on(instance.enumerate_adapters(backends))
}

pub(super) fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let features = adapter.features();
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
        wgpu::DeviceType::Other => AdapterKind::Other,
    };
    let cooperative = adapter.cooperative_matrix_properties();
    let shape = |c: &wgpu::CooperativeMatrixProperties| format!("{}x{}x{} {:?} -> {:?}", c.m_size, c.n_size, c.k_size, c.ab_type, c.cr_type);
    let has_shape = |side: u32| {
        let [ab, cr] = [wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32];
        cooperative.iter().any(|c| (c.m_size, c.n_size, c.k_size) == (side, side, side) && c.ab_type == ab && c.cr_type == cr)
    };
    let needed = wgpu::Features::SHADER_F16 | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    let fits = (info.subgroup_min_size, info.subgroup_max_size) == (32, 32) && limits.max_compute_workgroup_storage_size >= MATRICES_BYTES;
    let is_metal = info.backend == wgpu::Backend::Metal;
    let matrices = (has_shape(16) && fits).then_some(Machine::Matrices).or_else(|| (has_shape(8) && is_metal).then_some(Machine::Matrices8));
    AdapterSummary {
        index,
        matrices: matrices.filter(|_| features.contains(needed) && kind != AdapterKind::Software),
        name: info.name,
        vendor: info.vendor,
        device: info.device,
        backend: format!("{:?}", info.backend),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        kind,
        f16: features.contains(wgpu::Features::SHADER_F16),
        subgroup: features.contains(wgpu::Features::SUBGROUP).then_some((info.subgroup_min_size, info.subgroup_max_size)),
        cooperative_matrix: cooperative.iter().map(shape).collect(),
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        limits: plan_limits(&limits, features, kind),
        workgroup_memory_bytes: limits.max_compute_workgroup_storage_size,
        invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
        storage_buffers: limits.max_storage_buffers_per_shader_stage,
    }
}

pub(super) fn plan_limits(limits: &wgpu::Limits, features: wgpu::Features, kind: AdapterKind) -> Limits {
    Limits {
        binding_bytes: limits.max_storage_buffer_binding_size,
        buffer_bytes: limits.max_buffer_size,
        workgroups_per_axis: limits.max_compute_workgroups_per_dimension,
        machine: if kind == AdapterKind::Software { Machine::Any } else { Machine::Hardware },
        subgroups: features.contains(wgpu::Features::SUBGROUP),
    }
}
