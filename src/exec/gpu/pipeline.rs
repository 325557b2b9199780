//! Kernels: a variant's WGSL with its constants, compiled once per device.

use std::sync::Arc;

use crate::base::{DType, Error, Kind, Result};
use crate::exec::gpu::device::{Gpu, lock};
use crate::plan::{Op, StepView, Variant};

/// Op, variant, the type of its floats, the bits of its constants, and whether it has runtime checks.
pub(super) type KernelKey = (&'static str, &'static str, DType, Vec<(&'static str, u64)>, bool);

pub(super) struct Kernel {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// Alignment of dynamic uniform offsets that every device takes.
pub(super) const UNIFORM_STRIDE: u64 = 256;

/// Bytes of an op's uniform binding: WGSL rounds a uniform struct's size up to 16.
pub(super) fn uniform_bytes(op: &Op) -> u64 {
    (op.params_size as u64).next_multiple_of(16).max(16)
}

impl Gpu {
    /// The compiled kernel of `variant` for these shapes; without runtime checks where it was proved without them.
    pub(super) fn kernel(&self, op: &'static Op, variant: &'static Variant, view: &StepView) -> Result<Arc<Kernel>> {
        self.kernel_with(op, variant, view, self.is_checked(op, variant, view.floats()))
    }

    /// The same with or without runtime checks.
    pub(super) fn kernel_with(&self, op: &'static Op, variant: &'static Variant, view: &StepView, checked: bool) -> Result<Arc<Kernel>> {
        let constants = (variant.constants)(view);
        let floats = view.floats();
        let key: KernelKey = (op.name, variant.name, floats, constants.iter().map(|&(n, v)| (n, v.to_bits())).collect(), checked);
        if let Some(kernel) = lock(&self.kernels).get(&key) {
            return Ok(Arc::clone(kernel));
        }
        let kernel = Arc::new(self.compile(op, &variant.wgsl_with(floats, &constants), variant, &constants, view.inputs.len(), checked)?);
        lock(&self.kernels).insert(key, Arc::clone(&kernel));
        Ok(kernel)
    }

    /// Compiles `source` with `inputs` read-only storage bindings and one output.
    pub(super) fn compile(&self, op: &Op, source: &str, variant: &Variant, constants: &[(&'static str, f64)], inputs: usize, checked: bool) -> Result<Kernel> {
        let label = format!("{} {}", op.name, variant.name);
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(&label), source: wgpu::ShaderSource::Wgsl(source.into()) };
        // A checked index turns a matrix's load into a branch, in which the subgroup may not be whole.
        let checked = checked && !variant.needs_matrices();
        let module = if checked { self.device.create_shader_module(descriptor) } else { self.unchecked(descriptor) };
        let layout = self.bind_group_layout(&label, uniform_bytes(op), inputs);
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            // Every kernel writes its workgroup memory before it reads it.
            compilation_options: wgpu::PipelineCompilationOptions { constants, zero_initialize_workgroup_memory: false },
            cache: self.pipelines.as_ref().map(|pipelines| &pipelines.cache),
        });
        match pollster::block_on(scope.pop()) {
            None => Ok(Kernel { pipeline, layout }),
            Some(e) => Err(Error::new(Kind::Device, label, format!("{} refused the shader: {e}", self.summary.name))),
        }
    }

    /// A module without bounds checks, loop bounds and guarded divisions.
    #[allow(unsafe_code)]
    fn unchecked(&self, descriptor: wgpu::ShaderModuleDescriptor) -> wgpu::ShaderModule {
        // SAFETY: our own shaders, whose shape rules guard each index; each was proved on this device with the checks first, between
        // guard bands, then without them to the same bits.
        unsafe { self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
    }

    /// Kernels that were compiled without runtime checks: `op variant`.
    pub fn unchecked_kernels(&self) -> Vec<String> {
        lock(&self.kernels).keys().filter(|(.., checked)| !checked).map(|(op, variant, ..)| format!("{op} {variant}")).collect()
    }

    fn bind_group_layout(&self, label: &str, uniform_bytes: u64, inputs: usize) -> wgpu::BindGroupLayout {
        let entry = |binding: u32, ty: wgpu::BindingType| wgpu::BindGroupLayoutEntry { binding, visibility: wgpu::ShaderStages::COMPUTE, ty, count: None };
        let storage =
            |read_only| wgpu::BindingType::Buffer { ty: wgpu::BufferBindingType::Storage { read_only }, has_dynamic_offset: false, min_binding_size: None };
        let uniform = wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Uniform,
            has_dynamic_offset: true,
            min_binding_size: std::num::NonZeroU64::new(uniform_bytes),
        };
        let mut entries = vec![entry(0, uniform)];
        entries.extend((1..=inputs as u32).map(|binding| entry(binding, storage(true))));
        entries.push(entry(inputs as u32 + 1, storage(false)));
        self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(label), entries: &entries })
    }
}
