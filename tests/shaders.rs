//! Every shader against its card, without a GPU: it is valid WGSL that needs no optional feature but f16 where it stores f16 and subgroups where its card says so, it translates to SPIR-V,
//! MSL and HLSL, its bindings and its uniform struct are the op's, and its workgroup fits every device.

use std::collections::BTreeSet;
use std::path::Path;

use naevus::base::DType;
use naevus::exec::precision::stored_as_f16;
use naevus::ops;
use naevus::plan::{Field, Op, Variant};

use naga::back::{PipelineConstants, hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ScalarKind, ShaderStage, StorageAccess, TypeInner};

/// Limits that every WebGPU device has.
const WORKGROUP_BYTES: u32 = 16 << 10;
/// What kernels by cooperative matrices ask for (`AdapterSummary::matrices`).
const MATRICES_WORKGROUP_BYTES: u32 = 48 << 10;
const WORKGROUP_INVOCATIONS: u32 = 256;
const WORKGROUPS_PER_AXIS: u32 = 65_535;
const STORAGE_BUFFERS: usize = 8;

/// What a shader must agree with.
struct Expected {
    params: &'static [Field],
    /// Inputs in binding order, then the output.
    buffers: Vec<DType>,
    workgroup: u32,
    constants: Vec<(&'static str, f64)>,
    /// Whether it may have operations of subgroups.
    subgroups: bool,
}

fn inspect(source: &str, expected: &Expected) -> Result<(), String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let info = validate(&module, expected.subgroups)?;
    check_bindings(&module, expected)?;
    check_params(&module, expected.params)?;
    let constants: PipelineConstants = expected.constants.iter().map(|&(name, value)| (name.to_string(), value)).collect();
    let (module, info) = process_overrides(&module, &info, Some((ShaderStage::Compute, "main")), &constants).map_err(|e| format!("override constants: {e}"))?;
    check_workgroup(&module, expected.workgroup)?;
    translate(&module, &info)
}

fn has_matrices(module: &Module) -> bool {
    module.types.iter().any(|(_, t)| matches!(t.inner, TypeInner::CooperativeMatrix { .. }))
}

fn validate(module: &Module, subgroups: bool) -> Result<ModuleInfo, String> {
    let f16 = module.types.iter().any(|(_, t)| t.inner.scalar().is_some_and(|s| s.kind == ScalarKind::Float && s.width == 2));
    let mut capabilities = if f16 { Capabilities::SHADER_FLOAT16 } else { Capabilities::empty() };
    if has_matrices(module) {
        capabilities |= Capabilities::COOPERATIVE_MATRIX;
    }
    if subgroups {
        capabilities |= Capabilities::SUBGROUP;
    }
    Validator::new(ValidationFlags::all(), capabilities).validate(module).map_err(|e| format!("{:?}", e.into_inner()))
}

/// Binding 0 is the uniform `p`; then come the inputs, read-only, and the output, read-write.
fn check_bindings(module: &Module, expected: &Expected) -> Result<(), String> {
    let mut found = Vec::new();
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = &variable.binding else { continue };
        if binding.group != 0 {
            return Err(format!("group {}, expected 0", binding.group));
        }
        let element = match module.types[variable.ty].inner {
            TypeInner::Array { base, .. } => module.types[base].inner.scalar(),
            _ => None,
        };
        found.push((binding.binding, variable.space, element));
    }
    found.sort_by_key(|f| f.0);
    if found.len() != expected.buffers.len() + 1 {
        return Err(format!("{} bindings, expected {}", found.len(), expected.buffers.len() + 1));
    }
    for (at, (binding, space, element)) in found.iter().enumerate() {
        let wanted = match at.checked_sub(1) {
            None => AddressSpace::Uniform,
            Some(i) if i + 1 == expected.buffers.len() => AddressSpace::Storage { access: StorageAccess::LOAD | StorageAccess::STORE },
            Some(_) => AddressSpace::Storage { access: StorageAccess::LOAD },
        };
        if *binding != at as u32 || *space != wanted {
            return Err(format!("binding {binding} is {space:?}, expected binding {at} in {wanted:?}"));
        }
        let kind = at.checked_sub(1).map(|i| if expected.buffers[i] == DType::U32 { ScalarKind::Uint } else { ScalarKind::Float });
        let width = at.checked_sub(1).map(|i| expected.buffers[i].bytes() as u8);
        if element.map(|s| s.kind) != kind || element.map(|s| s.width) != width {
            return Err(format!("binding {at} holds {element:?}, expected {kind:?} of {width:?} bytes"));
        }
    }
    Ok(())
}

/// The uniform struct has the parameters' names and offsets, and 4-byte scalars only.
fn check_params(module: &Module, params: &[Field]) -> Result<(), String> {
    let uniform = module.global_variables.iter().find(|(_, v)| v.space == AddressSpace::Uniform).ok_or("no uniform")?.1;
    if uniform.name.as_deref() != Some("p") {
        return Err(format!("the uniform is called {:?}, expected p", uniform.name));
    }
    let TypeInner::Struct { members, .. } = &module.types[uniform.ty].inner else { return Err("the uniform is no struct".to_string()) };
    let scalars = members.iter().all(|m| matches!(module.types[m.ty].inner, TypeInner::Scalar(s) if s.width == 4));
    let fields: Vec<(&str, usize)> = members.iter().map(|m| (m.name.as_deref().unwrap_or(""), m.offset as usize)).collect();
    let expected: Vec<(&str, usize)> = params.iter().map(|f| (f.name, f.offset)).collect();
    if fields != expected || !scalars {
        return Err(format!("uniform {fields:?}, expected {expected:?}, scalars of 4 bytes"));
    }
    Ok(())
}

fn check_workgroup(module: &Module, workgroup: u32) -> Result<(), String> {
    let [entry] = module.entry_points.as_slice() else { return Err(format!("{} entry points, expected 1", module.entry_points.len())) };
    let size: u32 = entry.workgroup_size.iter().product();
    if size > workgroup || size == 0 || size > WORKGROUP_INVOCATIONS {
        return Err(format!("workgroup of {size}, expected at most {workgroup} and at most {WORKGROUP_INVOCATIONS}"));
    }
    let shared = module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::WorkGroup);
    let bytes: u32 = shared.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx())).sum();
    let most = if has_matrices(module) { MATRICES_WORKGROUP_BYTES } else { WORKGROUP_BYTES };
    if bytes > most {
        return Err(format!("{bytes} bytes of workgroup memory, at most {most}"));
    }
    Ok(())
}

fn translate(module: &Module, info: &ModuleInfo) -> Result<(), String> {
    let options = spv::Options { lang_version: (1, 3), ..Default::default() };
    let entry = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: "main".to_string() };
    let words = spv::write_vec(module, info, &options, Some(&entry)).map_err(|e| format!("SPIR-V: {e}"))?;
    if words.len() < 20 {
        return Err(format!("SPIR-V of {} words", words.len()));
    }
    // naga writes 16 x 16 matrices for Vulkan alone, and 8 x 8 for Metal too.
    let of_8 = |t: &naga::Type| matches!(t.inner, TypeInner::CooperativeMatrix { columns: naga::CooperativeSize::Eight, .. });
    let is_metal = module.types.iter().any(|(_, t)| of_8(t));
    if has_matrices(module) && !is_metal {
        return Ok(());
    }
    let options = msl::Options { lang_version: if is_metal { (2, 3) } else { (2, 0) }, ..Default::default() };
    let (text, translation) = msl::write_string(module, info, &options, &msl::PipelineOptions::default()).map_err(|e| format!("MSL: {e}"))?;
    if !text.contains("kernel void") {
        return Err("MSL without a kernel".to_string());
    }
    if let Some(Err(e)) = translation.entry_point_names.first() {
        return Err(format!("MSL: {e}"));
    }
    if is_metal {
        // A matrix is loaded through a pointer to scalars, or Metal refuses the kernel.
        let call = text.split("NagaCooperativeLoad(&").nth(1).ok_or("MSL without a load of a matrix")?;
        let array = call.split(['.', '[']).next().unwrap_or_default();
        let is_scalar = module.global_variables.iter().any(|(_, v)| {
            let TypeInner::Array { base, .. } = module.types[v.ty].inner else { return false };
            v.name.as_deref() == Some(array.trim_end_matches('_')) && matches!(module.types[base].inner, TypeInner::Scalar(_))
        });
        return is_scalar.then_some(()).ok_or(format!("MSL: a matrix is loaded from {array}, expected an array of scalars"));
    }
    let mut text = String::new();
    let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_2, ..Default::default() };
    let pipeline = hlsl::PipelineOptions::default();
    hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None).map_err(|e| format!("HLSL: {e}"))?;
    if !text.contains("numthreads") {
        return Err("HLSL without a kernel".to_string());
    }
    Ok(())
}

/// What `variant` must agree with, once for each set of constants that the op's cases and bench rows lead to.
fn expectations(op: &'static Op, variant: &'static Variant, floats: DType) -> Vec<Expected> {
    let mut found: Vec<Expected> = Vec::new();
    for case in (op.cases)().iter().chain((op.bench)().iter()) {
        let (mut tape, _) = ops::case::record(case).unwrap();
        if floats == DType::F16 {
            tape = stored_as_f16(tape);
        }
        for step in tape.steps().iter().filter(|s| s.op.name == op.name) {
            let (accepted, constants, grid) = tape.view(step, |view| ((variant.accepts)(view), (variant.constants)(view), (variant.grid)(view)));
            if !accepted {
                continue;
            }
            assert!(grid.iter().all(|&g| (1..=WORKGROUPS_PER_AXIS).contains(&g)), "{} {} {}: grid {grid:?}", op.name, variant.name, case.name);
            let buffers: Vec<DType> = step.inputs.iter().chain([&step.output]).map(|&t| tape.dtype(t)).collect();
            let known = found.iter_mut().find(|e| e.constants == constants);
            match known {
                Some(e) => assert_eq!(e.buffers, buffers, "{} {}", op.name, case.name),
                None => found.push(Expected { params: op.params, buffers, workgroup: variant.workgroup, constants, subgroups: variant.needs_subgroups() }),
            }
        }
    }
    found
}

#[test]
fn every_shader_agrees_with_its_card() {
    let mut failures = Vec::new();
    let mut inspected = 0;
    for op in ops::ALL {
        assert!(!op.variants.is_empty(), "{} has no shader", op.name);
        let floats: &[DType] = if op.f16 { &[DType::F32, DType::F16] } else { &[DType::F32] };
        for (variant, &floats) in op.variants.iter().flat_map(|v| floats.iter().map(move |f| (v, f))) {
            if variant.needs_matrices() && floats == DType::F32 {
                continue;
            }
            let expected = expectations(op, variant, floats);
            if expected.is_empty() {
                failures.push(format!("{} {} {floats:?}: no case is meant for this variant", op.name, variant.name));
            }
            for expected in &expected {
                inspected += 1;
                if expected.buffers.len() > STORAGE_BUFFERS {
                    failures.push(format!("{} {}: {} storage buffers, at most {STORAGE_BUFFERS}", op.name, variant.name, expected.buffers.len()));
                }
                if let Err(e) = inspect(&variant.wgsl_with(floats, &expected.constants), expected) {
                    failures.push(format!("{} {} {floats:?} {:?}: {e}", op.name, variant.name, expected.constants));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(inspected >= ops::ALL.len() && inspected > 0, "only {inspected} shaders were found");
}

/// Stems of the files with this extension in a folder of the repository.
fn stems(folder: &str, extension: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|p| p.extension().is_some_and(|e| e == extension));
    files.map(|p| p.file_stem().unwrap().to_str().unwrap().to_string()).collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_list_is_the_modules() {
    let listed: Vec<&str> = ops::ALL.iter().map(|op| op.name).collect();
    assert!(listed.is_sorted() && !listed.is_empty(), "{listed:?}");
    let modules: BTreeSet<String> =
        stems("src/ops", "rs").into_iter().filter(|stem| read(&format!("src/ops/{stem}.rs")).contains("pub static OP: Op")).collect();
    assert_eq!(listed.iter().map(|s| s.to_string()).collect::<BTreeSet<_>>(), modules);
}

/// `<op>.wgsl` is the first variant, `<op>_<variant>.wgsl` another one, without the size, the split or the subgroups that may end the variant's name; every fragment in `lib` is part of some shader.
#[test]
fn the_list_is_the_shader_files() {
    let mut expected = BTreeSet::new();
    for op in ops::ALL {
        for (i, variant) in op.variants.iter().enumerate() {
            let idea =
                variant.name.trim_end_matches("subgroups").trim_end_matches("_split").trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('_');
            let stem = if i == 0 || idea.is_empty() { op.name.to_string() } else { format!("{}_{idea}", op.name) };
            let text = read(&format!("shaders/{stem}.wgsl"));
            assert!(variant.source.contains(&text.as_str()), "{} {} is not made of {stem}.wgsl", op.name, variant.name);
            expected.insert(stem);
        }
    }
    assert_eq!(stems("shaders", "wgsl"), expected);
    for fragment in stems("shaders/lib", "wgsl") {
        let text = read(&format!("shaders/lib/{fragment}.wgsl"));
        let used = ops::ALL
            .iter()
            .flat_map(|op| op.variants)
            .any(|v| v.source.contains(&text.as_str()) || v.wgsl_with(DType::F16, &[("FUNCTION", 0.0)]).contains(&text));
        assert!(used, "no shader uses lib/{fragment}.wgsl");
    }
}

/// A shader that is broken in any of the ways that are looked for is refused.
#[test]
fn broken_shaders_are_refused() {
    let op = &ops::layer_norm::OP;
    let expected = || expectations(op, &op.variants[0], DType::F32).remove(0);
    let source = op.variants[0].source.join("\n");
    assert_eq!(inspect(&source, &expected()), Ok(()));
    // What is replaced, by what, and what the refusal speaks of.
    let mutants = [
        ("rows: u32, channels: u32", "channels: u32, rows: u32", "uniform"),
        ("channels: u32, eps: f32", "channels: u32, eps: u32", "InvalidBinaryOperandTypes"),
        ("rows: u32,", "rows: array<u32, 2>,", "array"),
        ("channels: u32, eps: f32", "channels: u32, spare: u32, eps: f32", "uniform"),
        ("@binding(3) var<storage, read>      ", "@binding(3) var<storage, read_write>", "binding 3"),
        ("weight: array<elem>", "weight: array<u32>", "binding 2"),
        ("@binding(4)", "@binding(5)", "binding 5"),
        ("WG: u32 = 64u", "WG: u32 = 128u", "workgroup of 128"),
        ("array<f32, WG>", "array<f32, WG * 65>", "workgroup memory"),
        ("return sum;", "return sun;", "sun"),
        ("fn main(", "fn entry(", "entry points"),
    ];
    for (from, to, what) in mutants {
        assert!(source.contains(from), "{from}");
        let refusal = inspect(&source.replace(from, to), &expected()).expect_err(to);
        assert!(refusal.contains(what), "{to}: {refusal}");
    }
    let short = Expected { buffers: vec![DType::F32; 3], ..expected() };
    assert!(inspect(&source, &short).unwrap_err().contains("bindings"));
    let unknown = Expected { constants: vec![("TILE", 4.0)], ..expected() };
    assert!(inspect(&source, &unknown).unwrap_err().contains("TILE"));
}
