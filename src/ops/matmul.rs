//! Matrix product with optional bias: batched, and the linear layer as its case of one shared right side.
//!
//! y[b, m, n] = sum_k a[b, m, k] w[b, k, n] + bias[n].  a: `[B, M, K]`; w: `[B, K, N]` or `[K, N]` for all b; bias: `[N]`.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::activation::{Function, SIGMOID};
use crate::ops::epilogue::{EPILOGUE, EPILOGUE_4, NETWORK, epilogue};
use crate::ops::join::joined;
use crate::ops::{
    ELEM, ELEM_MATRICES, LINEAR_INDEX, MATRICES, MATRICES_8, MATRICES_128, MATRICES_160, MATRICES_OF_8, MATRICES_SPLIT, MATRICES_STAGE, TILE_64, TILE_128,
    TILE_STORE,
};
use crate::params;
use crate::plan::card::SHUFFLE;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Machine, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub batch: u32,
        pub m: u32,
        pub k: u32,
        pub n: u32,
        /// 1 when the right side has a batch axis.
        pub batched: u32,
        pub has_bias: u32,
        /// The end of the kernel: `ops::epilogue`.
        pub added_rows: u32,
        pub added_count: u32,
        pub function: u32,
        pub a: f32,
        pub b: f32,
    }
}

/// Rows of a thread's tile in the `tiled` variant.
const TILE_M: usize = 8;

/// Invocations of a `tiled` workgroup, four columns each: 16, or 8 where that leaves fewer idle.
pub(crate) fn column_lanes(columns: u32) -> u32 {
    if (1..=8).contains(&(columns.div_ceil(4) % 16)) { 8 } else { 16 }
}

/// Invocations of a `shuffled` workgroup, four columns each.
pub(crate) fn shuffled_lanes(columns: u32) -> u32 {
    if columns.is_multiple_of(256) { 64 } else { 32 }
}

pub static OP: Op = Op {
    name: "matmul",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 2e-5, reason: "f32 sums over K <= 2048 in another order: about sqrt(K) half-ulps of the partial sums" },
    f16: true,
    statistics: &[],
    variants: &[
        Variant {
            constants: |s| vec![("WG", 256.0), function(s)],
            ..Variant::per_element(&[ELEM, LINEAR_INDEX, SIGMOID, NETWORK, EPILOGUE, include_str!("../../shaders/matmul.wgsl")])
        },
        // Before `tiled`, so that only a measurement chooses it.
        Variant {
            name: "shuffled",
            family: "shuffled",
            source: &[ELEM, SHUFFLE, SIGMOID, NETWORK, EPILOGUE_4, include_str!("../../shaders/matmul_shuffled.wgsl")],
            workgroup: 64,
            meant_for: Machine::Hardware,
            constants: |s| vec![("WG", f64::from(shuffled_lanes(s.params::<Params>().n))), function(s)],
            accepts: accepts_tiled,
            grid: |s| {
                let p: Params = s.params();
                [p.m.div_ceil(TILE_M as u32), p.n.div_ceil(4 * shuffled_lanes(p.n)), p.batch]
            },
        },
        Variant {
            name: "tiled",
            family: "tiled",
            source: &[ELEM, SIGMOID, NETWORK, EPILOGUE_4, include_str!("../../shaders/matmul_tiled.wgsl")],
            workgroup: 16,
            meant_for: Machine::Any,
            constants: |s| vec![("WG", f64::from(column_lanes(s.params::<Params>().n))), function(s)],
            accepts: accepts_tiled,
            grid: |s| {
                let p: Params = s.params();
                [p.m.div_ceil(TILE_M as u32), p.n.div_ceil(4 * column_lanes(p.n)), p.batch]
            },
        },
        Variant {
            name: "sliced",
            family: "sliced",
            source: &[ELEM, SIGMOID, NETWORK, EPILOGUE_4, include_str!("../../shaders/matmul_sliced.wgsl")],
            workgroup: 256,
            meant_for: Machine::Hardware,
            constants: |s| vec![function(s)],
            accepts: |s| {
                let p: Params = s.params();
                p.n.is_multiple_of(4) && p.m < 4 && p.k >= 64 && p.batch <= 65_535
            },
            grid: |s| {
                let p: Params = s.params();
                [p.n.div_ceil(64), p.m, p.batch]
            },
        },
        // Before `shared_64`: with indices into its sums that were not constant it ran at a fifteenth of what it can (docs/performance.md).
        Variant {
            name: "shared_128",
            family: "shared",
            source: &[ELEM, TILE_128, TILE_STORE, SIGMOID, NETWORK, EPILOGUE_4, SHARED],
            workgroup: 256,
            meant_for: Machine::Hardware,
            constants: |s| vec![function(s)],
            accepts: |s| accepts_shared(s) && fills_the_device(shared_grid(s, 128)),
            grid: |s| shared_grid(s, 128),
        },
        Variant {
            name: "shared_64",
            family: "shared",
            source: &[ELEM, TILE_64, TILE_STORE, SIGMOID, NETWORK, EPILOGUE_4, SHARED],
            workgroup: 256,
            meant_for: Machine::Hardware,
            constants: |s| vec![function(s)],
            accepts: accepts_shared,
            grid: |s| shared_grid(s, 64),
        },
        Variant {
            name: "matrices_8",
            family: "matrices_8",
            source: &[ELEM_MATRICES, MATRICES_OF_8, MATRICES_8, SIGMOID, NETWORK, EPILOGUE_4, BY_MATRICES],
            workgroup: 128,
            meant_for: Machine::Matrices8,
            constants: |s| vec![function(s)],
            accepts: accepts_matrices,
            grid: |s| shared_grid(s, 64),
        },
        Variant {
            name: "matrices_128",
            family: "matrices",
            source: &[ELEM_MATRICES, MATRICES, MATRICES_128, MATRICES_STAGE, SIGMOID, NETWORK, EPILOGUE_4, BY_MATRICES],
            workgroup: 256,
            meant_for: Machine::Matrices,
            constants: |s| vec![function(s)],
            accepts: accepts_matrices,
            grid: |s| shared_grid(s, 128),
        },
        Variant {
            name: "matrices_160",
            family: "matrices",
            source: &[ELEM_MATRICES, MATRICES, MATRICES_160, MATRICES_STAGE, SIGMOID, NETWORK, EPILOGUE_4, BY_MATRICES],
            workgroup: 128,
            meant_for: Machine::Matrices,
            constants: |s| vec![function(s)],
            accepts: |s| accepts_matrices(s) && s.params::<Params>().n.is_multiple_of(160),
            grid: |s| {
                let p: Params = s.params();
                [p.n.div_ceil(160), p.m.div_ceil(64), p.batch]
            },
        },
        Variant {
            name: "matrices_split",
            family: "matrices_split",
            source: &[ELEM_MATRICES, MATRICES, MATRICES_SPLIT, SIGMOID, NETWORK, EPILOGUE_4, BY_MATRICES],
            workgroup: 128,
            meant_for: Machine::Matrices,
            constants: |s| vec![function(s)],
            accepts: |s| {
                let p: Params = s.params();
                accepts_matrices(s) && p.n.is_multiple_of(80) && p.k >= 128 && p.m <= 128
            },
            grid: |s| {
                let p: Params = s.params();
                [p.n / 80, p.m.div_ceil(32), p.batch]
            },
        },
    ],
};

const BY_MATRICES: &str = include_str!("../../shaders/matmul_matrices.wgsl");
const SHARED: &str = include_str!("../../shaders/matmul_shared.wgsl");

fn function(s: &StepView) -> (&'static str, f64) {
    epilogue!(s.params::<Params>()).constant()
}

/// Tiles of 8 rows and four columns, whatever brings the values.
fn accepts_tiled(s: &StepView) -> bool {
    let p: Params = s.params();
    p.n.is_multiple_of(4) && p.m >= 4 && p.batch <= 65_535 && p.m.div_ceil(TILE_M as u32) <= 65_535
}

/// Both tile sizes add along K in the same order, so the size may depend on the batch: a row's bits do not.
fn accepts_shared(s: &StepView) -> bool {
    let p: Params = s.params();
    p.k.is_multiple_of(4) && p.n.is_multiple_of(4) && p.m >= 4 && p.batch <= 65_535 && p.m.div_ceil(64) <= 65_535
}

/// f16 factors only, and tiles that are mostly filled. It depends on the item alone, as a family must.
fn accepts_matrices(s: &StepView) -> bool {
    let p: Params = s.params();
    s.floats() == DType::F16 && accepts_shared(s) && p.n >= 64 && p.k >= 16
}

fn shared_grid(s: &StepView, tile: u32) -> [u32; 3] {
    let p: Params = s.params();
    [p.n.div_ceil(tile), p.m.div_ceil(tile), p.batch]
}

/// Whether there are workgroups for two on each compute unit of a large device. Fewer: smaller tiles are faster.
pub(crate) fn fills_the_device(grid: [u32; 3]) -> bool {
    grid.into_iter().map(u64::from).product::<u64>() >= 256
}

impl Tape {
    /// x w + bias over the last axis of `x` `[..., K]`; w `[K, N]`, bias `[N]`; result `[..., N]`.
    pub fn linear(&mut self, x: Tensor, weight: Tensor, bias: Option<Tensor>) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        let k = shape.last();
        let &[rows, n] = self.shape(weight).dims() else {
            return Err(self.mismatch(format!("linear weight is {}, expected two axes", self.shape(weight))));
        };
        if rows != k || shape.rank() == 0 {
            return Err(self.mismatch(format!("linear of {shape}: weight takes {rows} features, expected {k}")));
        }
        let mut out = shape.dims().to_vec();
        out[shape.rank() - 1] = n;
        // Items of the first axis stay apart: see `rows_per_task`.
        let (batch, m) = if shape.rank() < 2 { (1, 1) } else { (shape[0], shape.numel() / (shape[0] * k).max(1)) };
        self.product(x, weight, bias, [batch, m, k, n], false, &out)
    }

    /// a b per item of the batch. a `[B, M, K]`, b `[B, K, N]`; result `[B, M, N]`.
    pub fn matmul(&mut self, a: Tensor, b: Tensor) -> Result<Tensor> {
        let (sa, sb) = (self.shape(a).clone(), self.shape(b).clone());
        match (sa.dims(), sb.dims()) {
            (&[batch, m, k], &[batch_b, k_b, n]) if batch == batch_b && k == k_b => self.product(a, b, None, [batch, m, k, n], true, &[batch, m, n]),
            _ => Err(self.mismatch(format!("matmul of {sa} and {sb}: expected [B, M, K] and [B, K, N]"))),
        }
    }

    fn product(&mut self, a: Tensor, w: Tensor, bias: Option<Tensor>, [batch, m, k, n]: [usize; 4], batched: bool, out: &[usize]) -> Result<Tensor> {
        if let Some(bias) = bias
            && self.shape(bias).dims() != [n]
        {
            return Err(self.mismatch(format!("bias is {}, expected [{n}]", self.shape(bias))));
        }
        let [batch, m, k, n] = [batch, m, k, n].map(|v| v as u32);
        let params = Params { batch, m, k, n, batched: u32::from(batched), has_bias: u32::from(bias.is_some()), ..bytemuck::Zeroable::zeroed() };
        // The right side stands for what is not there: a binding must hold something, and it is not read.
        Ok(self.push(&OP, &params, &[a, w, bias.unwrap_or(w), w], out, DType::F32))
    }
}

/// One dense row-major product on the CPU: `c[m, n] (+)= a[m, k] b[k, n]` with row strides `lda`, `ldb`, `ldc`.
/// `b_transposed` reads `b` as `[n, k]`. Callers split the rows; where that leaves threads without work, a product may be `shared` among
/// them, with the same result to the bit.
pub(crate) struct Product<'a> {
    pub m: usize,
    pub k: usize,
    pub n: usize,
    pub a: &'a [f32],
    pub lda: usize,
    pub b: &'a [f32],
    pub ldb: usize,
    pub b_transposed: bool,
    pub accumulate: bool,
    pub scale: f32,
    pub shared: bool,
}

impl Product<'_> {
    #[allow(unsafe_code)]
    pub(crate) fn run(&self, c: &mut [f32], ldc: usize) {
        let (m, k, n) = (self.m, self.k, self.n);
        if m == 0 || n == 0 {
            return;
        }
        let last = |rows: usize, cols: usize, stride: usize| if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols };
        let b_len = if self.b_transposed { last(n, k, self.ldb) } else { last(k, n, self.ldb) };
        assert!(self.a.len() >= last(m, k, self.lda) && self.b.len() >= b_len && c.len() >= last(m, n, ldc), "product: slice too short");
        let (b_cs, b_rs) = if self.b_transposed { (self.ldb as isize, 1) } else { (1, self.ldb as isize) };
        // SAFETY: the assertion above bounds every element that the strides reach; c is borrowed mutably, so it overlaps neither a nor b.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c.as_mut_ptr(),
                1,
                ldc as isize,
                self.accumulate,
                self.a.as_ptr(),
                1,
                self.lda as isize,
                self.b.as_ptr(),
                b_cs,
                b_rs,
                1.0f32,
                self.scale,
                false,
                false,
                false,
                if self.shared { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None },
            );
        }
    }
}

/// Rows of one product, from the rows and the depth of an item: not from the batch or the threads, because the product's
/// order of summation depends on its size, and a row of a batch must equal that row alone.
///
/// Each task reads the whole right side, so rows are not few where that is large: with 16 instead of 64 rows of Stable Diffusion's deepest
/// convolutions a task waits for memory half of its time.
pub(crate) fn rows_per_task(rows_of_item: usize, depth: usize) -> usize {
    let most = (PANEL_BYTES / (depth * 4).max(1)).clamp(256, 1024) / 8 * 8;
    rows_of_item.div_ceil(8).next_multiple_of(8).clamp(64, most)
}

/// Bytes of a task's left side: a quarter to a half of a usual second-level cache.
pub(crate) const PANEL_BYTES: usize = 512 << 10;

/// Whether so few tasks leave threads without work.
pub(crate) fn is_shared(tasks: usize) -> bool {
    tasks < rayon::current_num_threads()
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let (m, k, n) = (p.m as usize, p.k as usize, p.n as usize);
    let [a, w, bias, added] = *call.inputs else { return };
    let end = epilogue!(p);
    let rows = rows_per_task(m, k);
    let shared = is_shared(p.batch as usize * m.div_ceil(rows));
    call.output.par_chunks_mut((m * n).max(1)).enumerate().for_each(|(b, y)| {
        let w = if p.batched != 0 { &w[b * k * n..(b + 1) * k * n] } else { w };
        let a = &a[b * m * k..(b + 1) * m * k];
        y.par_chunks_mut((rows * n).max(1)).enumerate().for_each(|(task, y)| {
            let m = y.len() / n;
            let accumulate = p.has_bias != 0;
            if accumulate {
                y.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(bias));
            }
            let a = &a[task * rows * k..];
            Product { m, k, n, a, lda: k, b: w, ldb: n, b_transposed: false, accumulate, scale: 1.0, shared }.run(y, n);
            end.finish(y, b * p.m as usize + task * rows, n, added);
        });
    });
}

fn cost(s: &StepView) -> Cost {
    let p: Params = s.params();
    let end = epilogue!(p);
    Cost { flops: 2 * u64::from(p.batch) * u64::from(p.m) * u64::from(p.k) * u64::from(p.n) + end.flops(s.output.numel()), bytes: end.bytes(s) }
}

fn linear_case(name: &'static str, x: &[usize], n: usize, bias: bool) -> Case {
    let k = x[x.len() - 1];
    let mut inputs = vec![CaseInput::plain("x", x), CaseInput::new("weight", &[n, k], Layout::LinearWeight, Fill::Normal)];
    if bias {
        inputs.push(CaseInput::plain("bias", &[n]));
    }
    Case::new(name, inputs, |t, i| t.linear(i[0], i[1], i.get(2).copied()))
}

fn batched_case(name: &'static str, batch: usize, m: usize, k: usize, n: usize) -> Case {
    Case::new(name, vec![CaseInput::plain("a", &[batch, m, k]), CaseInput::plain("b", &[batch, k, n])], |t, i| t.matmul(i[0], i[1]))
}

/// A linear layer to which `join` adds another tensor and a function.
fn joined_case(name: &'static str, x: &[usize], n: usize, added: &'static [usize], function: Function) -> Case {
    let mut inputs = linear_case(name, x, n, false).inputs;
    inputs.push(CaseInput::plain("added", added));
    let record = move |t: &mut Tape, i: &[Tensor]| {
        let y = t.linear(i[0], i[1], None)?;
        let y = t.add(i[2], y)?;
        let y = if function == Function::Identity { y } else { t.activation(y, function)? };
        *t = joined(std::mem::take(t), &[]);
        Ok(y)
    };
    Case::new(name, inputs, record).without_golden()
}

fn cases() -> Vec<Case> {
    vec![
        linear_case("linear", &[3, 24], 20, true),
        linear_case("linear_no_bias", &[2, 5, 7], 12, false),
        linear_case("linear_odd", &[1, 33], 7, true),
        batched_case("batched", 3, 5, 9, 8),
        batched_case("batched_tall", 2, 17, 4, 3),
        joined_case("joined_odd", &[2, 5, 33], 7, &[2, 5, 7], Function::Sigmoid),
        joined_case("joined_row", &[2, 3, 130], 68, &[68], Function::GeluTanh),
        joined_case("joined_tokens", &[3, 37, 300], 160, &[37, 160], Function::QuickGelu),
        joined_case("joined_sum", &[2, 70, 100], 320, &[2, 70, 320], Function::Identity),
        joined_case("joined_large", &[1, 2100, 20], 2052, &[1, 2100, 2052], Function::Tanh),
        linear_case("large", &[130, 192], 200, true).without_golden(),
        linear_case("deep", &[9, 2048], 68, false).without_golden(),
        batched_case("batched_large", 4, 65, 64, 132).without_golden(),
        linear_case("many_tiles", &[1, 2100, 20], 2052, true).without_golden(),
        linear_case("wide_tiles", &[2, 70, 100], 320, true).without_golden(),
        linear_case("split", &[2, 37, 300], 160, true).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![
        batched_case("512x512x512", 1, 512, 512, 512),
        linear_case("qkv_512x192", &[8, 64, 192], 192, true),
        batched_case("1024x1024x1024", 1, 1024, 1024, 1024),
        batched_case("2048x2048x2048", 1, 2048, 2048, 2048),
        batched_case("4096x4096x4096", 1, 4096, 4096, 4096),
        linear_case("sd_4096x320to1280", &[2, 4096, 320], 1280, true),
        linear_case("sd_time_1280", &[2, 1280], 1280, true),
        linear_case("sd_text_77x768to320", &[2, 77, 768], 320, false),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 3], DType::F32);
        let w = t.input("w", &[4, 5], DType::F32);
        let b = t.input("b", &[4], DType::F32);
        assert_eq!(t.linear(x, w, None).unwrap_err().fact(), "linear of [2, 3]: weight takes 4 features, expected 3");
        let w3 = t.input("w3", &[3, 5], DType::F32);
        assert_eq!(t.linear(x, w3, Some(b)).unwrap_err().fact(), "bias is [4], expected [5]");
        assert!(t.matmul(x, w).is_err());
    }
}
