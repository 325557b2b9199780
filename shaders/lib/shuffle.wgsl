// An invocation and its place in its subgroup, for kernels that read each other's registers. Subgroups must be full, or `member` of those
// that there are must count from 0: a driver that does otherwise fails the kernel's proof. naga has no `enable subgroups;`: the
// operations are there where the device has the feature.
struct Own {
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) member: u32,
    @builtin(subgroup_size) size: u32,
}
