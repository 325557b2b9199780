//! The size of a device's own memory. wgpu does not tell; Vulkan does.

/// Bytes of the largest heap that is local to the device. `None` on other backends.
#[cfg(not(target_vendor = "apple"))]
#[allow(unsafe_code)]
pub(super) fn local_bytes(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the raw handles are only read, while the adapter that owns them is alive, and nothing is made or destroyed.
    let properties = unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::vulkan::Api>()?;
        vulkan.shared_instance().raw_instance().get_physical_device_memory_properties(vulkan.raw_physical_device())
    };
    let heaps = properties.memory_heaps.iter().take(properties.memory_heap_count as usize);
    // Bit 0 is VK_MEMORY_HEAP_DEVICE_LOCAL_BIT.
    heaps.filter(|heap| heap.flags.as_raw() & 1 == 1).map(|heap| heap.size).max()
}

#[cfg(target_vendor = "apple")]
pub(super) fn local_bytes(_: &wgpu::Adapter) -> Option<u64> {
    None
}
