//! Scaled dot-product attention with a streaming softmax: the score matrix is never stored.
//! Vaswani et al. (2017), equation 1; the running maximum and sum follow Milakov and Gimelshein (2018), algorithm 3.
//!
//! y = softmax(q k^T / sqrt(D) + bias) v per head.  q, y: `[N, ..., heads D]`; k, v: `[N, ..., heads D]`; middle axes are tokens.
//! bias, which may be absent: `[W, heads or 1, Q, K]`; item n takes row n % W, and one head's values serve all heads where
//! there is one. A mask is a bias of 0 and of a large negative finite number; every query needs one key that is not masked.

use std::cell::Cell;

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::lanes::{self, exp};
use crate::ops::matmul::Product;
use crate::ops::{ELEM, ELEM_MATRICES, MATRICES, TILE_64, TILE_STORE};
use crate::params;
use crate::plan::card::grid_1d;
use crate::plan::{Case, CaseInput, Cost, Fill, Machine, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub batch: u32,
        pub queries: u32,
        pub keys: u32,
        pub heads: u32,
        pub head_dim: u32,
        pub scale: f32,
        /// Rows of the bias; 0: there is none.
        pub bias_rows: u32,
        /// Heads of the bias: all, or 1.
        pub bias_heads: u32,
    }
}

/// Largest head dimension of the shader: 64 lanes of 16 channels.
pub const MAX_HEAD_DIM: usize = 1024;

pub static OP: Op = Op {
    name: "attention",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 2e-5, reason: "exp of scores with f32 rounding (|score| up to 20), sums over the keys in another order" },
    f16: true,
    statistics: &[],
    variants: &[
        Variant {
            name: "direct",
            family: "direct",
            source: &[ELEM, include_str!("../../shaders/attention.wgsl")],
            workgroup: 64,
            meant_for: Machine::Any,
            constants: |_| vec![],
            accepts: |_| true,
            grid: |s| {
                let p: Params = s.params();
                grid_1d((p.batch * p.heads * p.queries) as usize, 1)
            },
        },
        Variant {
            name: "rows",
            family: "rows",
            source: &[ELEM, include_str!("../../shaders/attention_rows.wgsl")],
            workgroup: 32,
            meant_for: Machine::Any,
            constants: |_| vec![],
            accepts: |s| {
                let p: Params = s.params();
                p.head_dim.is_multiple_of(4) && p.head_dim <= 64 && p.queries >= 8 && p.batch * p.heads <= 65_535
            },
            grid: |s| {
                let p: Params = s.params();
                [p.queries.div_ceil(32), p.batch * p.heads, 1]
            },
        },
        Variant {
            name: "shared",
            family: "shared",
            source: &[ELEM, TILE_64, TILE_STORE, include_str!("../../shaders/attention_shared.wgsl")],
            workgroup: 256,
            meant_for: Machine::Hardware,
            constants: |_| vec![],
            accepts: |s| {
                let p: Params = s.params();
                p.head_dim.is_multiple_of(4) && p.queries >= 8 && p.batch * p.heads <= 65_535
            },
            grid: |s| {
                let p: Params = s.params();
                [p.queries.div_ceil(64), p.batch * p.heads, p.head_dim.div_ceil(64)]
            },
        },
        Variant {
            name: "matrices",
            family: "matrices",
            source: &[ELEM_MATRICES, MATRICES, include_str!("../../shaders/attention_matrices.wgsl")],
            workgroup: 128,
            meant_for: Machine::Matrices,
            constants: |s| vec![("TILES", f64::from(s.params::<Params>().head_dim.div_ceil(16)))],
            accepts: |s| {
                let p: Params = s.params();
                let is_small = p.head_dim.is_multiple_of(4) && p.head_dim <= 160 && p.batch * p.heads <= 65_535;
                s.floats() == DType::F16 && is_small && p.bias_rows == 0 && p.queries >= 8
            },
            grid: |s| {
                let p: Params = s.params();
                [p.queries.div_ceil(64), p.batch * p.heads, 1]
            },
        },
    ],
};

impl Tape {
    /// Attention of `q` over `k` and `v`, in `heads` heads of the last axis.
    pub fn attention(&mut self, q: Tensor, k: Tensor, v: Tensor, heads: usize) -> Result<Tensor> {
        self.attend(q, k, v, None, heads)
    }

    /// The same with `bias` `[W, heads or 1, Q, K]` added to the scaled scores; item n takes row n % W, and W divides N.
    pub fn attention_with_bias(&mut self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: usize) -> Result<Tensor> {
        self.attend(q, k, v, Some(bias), heads)
    }

    fn attend(&mut self, q: Tensor, k: Tensor, v: Tensor, bias: Option<Tensor>, heads: usize) -> Result<Tensor> {
        let (sq, sk, sv) = (self.shape(q).clone(), self.shape(k).clone(), self.shape(v).clone());
        let channels = sq.last();
        if sq.rank() < 3 || sk != sv || sk.last() != channels || sk[0] != sq[0] || sk.rank() < 3 {
            return Err(self.mismatch(format!("attention of q {sq}, k {sk}, v {sv}: expected [N, ..., C] with one N and C, k and v alike")));
        }
        let head_dim = channels / heads.max(1);
        if heads == 0 || head_dim * heads != channels || head_dim > MAX_HEAD_DIM || head_dim == 0 {
            return Err(
                self.mismatch(format!("attention of {channels} channels in {heads} heads: heads must divide the channels, head size <= {MAX_HEAD_DIM}"))
            );
        }
        let tokens = |shape: &crate::base::Shape| (shape.numel() / (shape[0] * channels).max(1)) as u32;
        let (queries, keys) = (tokens(&sq), tokens(&sk));
        let [bias_rows, bias_heads] = match bias {
            Some(bias) => self.bias_shape(bias, [sq[0], heads, queries as usize, keys as usize])?,
            None => [0, 1],
        };
        let scale = 1.0 / (head_dim as f32).sqrt();
        let params = Params { batch: sq[0] as u32, queries, keys, heads: heads as u32, head_dim: head_dim as u32, scale, bias_rows, bias_heads };
        // Without a bias the queries stand in its place: a binding must hold something, and it is not read.
        Ok(self.push(&OP, &params, &[q, k, v, bias.unwrap_or(q)], sq.dims(), DType::F32))
    }

    /// Rows and heads of a bias for scores of the shape `[N, heads, Q, K]`.
    fn bias_shape(&self, bias: Tensor, [batch, heads, queries, keys]: [usize; 4]) -> Result<[u32; 2]> {
        match *self.shape(bias).dims() {
            [w, h, q, k] if w > 0 && batch.is_multiple_of(w) && (h == heads || h == 1) && q == queries && k == keys => Ok([w as u32, h as u32]),
            _ => {
                Err(self.mismatch(format!("attention bias is {}, expected [W, {heads} or 1, {queries}, {keys}] with W a divisor of {batch}", self.shape(bias))))
            }
        }
    }
}

/// Queries and keys of one block of the twin.
const QUERY_BLOCK: usize = 128;
const KEY_BLOCK: usize = 512;

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let [q, k, v, bias] = *call.inputs else { return };
    let (queries, keys, heads, dim) = (p.queries as usize, p.keys as usize, p.heads as usize, p.head_dim as usize);
    let width = heads * dim;
    let blocks = queries.div_ceil(QUERY_BLOCK);
    let jobs = p.batch as usize * blocks;
    // One task per (item, block of queries): its rows of the output are contiguous, heads are a loop inside.
    let mut rows: Vec<&mut [f32]> = Vec::with_capacity(jobs);
    for item in call.output.chunks_mut((queries * width).max(1)) {
        rows.extend(item.chunks_mut((QUERY_BLOCK * width).max(1)));
    }
    rows.into_par_iter().enumerate().for_each(|(job, y)| {
        let mut scratch = SCRATCH.take();
        let (n, first) = (job / blocks, job % blocks * QUERY_BLOCK);
        let m = y.len() / width;
        for h in 0..heads {
            let q = &q[(n * queries + first) * width + h * dim..];
            let k = &k[n * keys * width + h * dim..];
            let v = &v[n * keys * width + h * dim..];
            let bias = (p.bias_rows != 0).then(|| {
                let at = n % p.bias_rows as usize * p.bias_heads as usize + h % p.bias_heads as usize;
                &bias[(at * queries + first) * keys..]
            });
            scratch.block(m, keys, dim, width, p.scale, q, k, v, bias);
            for (row, y) in y.chunks_exact_mut(width).enumerate() {
                let inv = 1.0 / scratch.sum[row];
                let from = &scratch.acc[row * dim..(row + 1) * dim];
                y[h * dim..(h + 1) * dim].iter_mut().zip(from).for_each(|(y, a)| *y = a * inv);
            }
        }
        SCRATCH.set(scratch);
    });
}

thread_local! {
    /// A thread's buffers, from one attention to the next.
    static SCRATCH: Cell<Scratch> = Cell::new(Scratch::default());
}

#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
    acc: Vec<f32>,
}

impl Scratch {
    /// One block of `m` queries against all keys: acc = sum_j exp(s_j - max) v_j, sum = sum_j exp(s_j - max). Rows of `bias`
    /// have a value for each key.
    fn block(&mut self, m: usize, keys: usize, dim: usize, width: usize, scale: f32, q: &[f32], k: &[f32], v: &[f32], bias: Option<&[f32]>) {
        self.max.clear();
        self.max.resize(m, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(m, 0.0);
        self.acc.clear();
        self.acc.resize(m * dim, 0.0);
        self.scores.resize(QUERY_BLOCK * KEY_BLOCK, 0.0);
        for start in (0..keys).step_by(KEY_BLOCK) {
            let n = KEY_BLOCK.min(keys - start);
            let (k, v) = (&k[start * width..], &v[start * width..]);
            Product { m, k: dim, n, a: q, lda: width, b: k, ldb: width, b_transposed: true, accumulate: false, scale, shared: false }
                .run(&mut self.scores, KEY_BLOCK);
            if let Some(bias) = bias {
                for (scores, bias) in self.scores.chunks_exact_mut(KEY_BLOCK).zip(bias.chunks(keys)).take(m) {
                    scores[..n].iter_mut().zip(&bias[start..]).for_each(|(score, bias)| *score += bias);
                }
            }
            lanes::wide(Exponentials { scratch: self, n, dim });
            let scores = &self.scores;
            Product { m, k: n, n: dim, a: scores, lda: KEY_BLOCK, b: v, ldb: width, b_transposed: false, accumulate: true, scale: 1.0, shared: false }
                .run(&mut self.acc, dim);
        }
    }
}

/// Scores of `n` keys become their exponentials; what was added before is scaled down where a maximum rises.
struct Exponentials<'a> {
    scratch: &'a mut Scratch,
    n: usize,
    dim: usize,
}

impl lanes::Job for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Scratch { scores, max, sum, acc } = self.scratch;
        let rows = scores.chunks_exact_mut(KEY_BLOCK).zip(max).zip(sum).zip(acc.chunks_exact_mut(self.dim));
        for (((scores, max), sum), acc) in rows {
            let scores = &mut scores[..self.n];
            let before = std::mem::replace(max, lanes::max(scores, *max));
            let correction = exp(before - *max);
            *sum = *sum * correction + lanes::exp_sum(scores, *max);
            acc.iter_mut().for_each(|a| *a *= correction);
        }
    }
}

fn cost(s: &StepView) -> Cost {
    let p: Params = s.params();
    let pairs = u64::from(p.batch) * u64::from(p.heads) * u64::from(p.queries) * u64::from(p.keys);
    let (biased, bias) = (u64::from(p.bias_rows != 0), s.input_bytes(3));
    Cost { flops: pairs * (4 * u64::from(p.head_dim) + 5 + biased), bytes: s.bytes() - (1 - biased) * bias }
}

fn case(name: &'static str, batch: usize, queries: usize, keys: usize, heads: usize, dim: usize) -> Case {
    let (q, kv) = ([batch, queries, heads * dim], [batch, keys, heads * dim]);
    let inputs = vec![CaseInput::plain("q", &q), CaseInput::plain("k", &kv), CaseInput::plain("v", &kv)];
    Case::new(name, inputs, move |t, i| t.attention(i[0], i[1], i[2], heads))
}

fn biased(name: &'static str, batch: usize, queries: usize, keys: usize, heads: usize, dim: usize, bias: [usize; 2]) -> Case {
    let (q, kv) = ([batch, queries, heads * dim], [batch, keys, heads * dim]);
    let bias = CaseInput::plain("bias", &[bias[0], bias[1], queries, keys]);
    let inputs = vec![CaseInput::plain("q", &q), CaseInput::plain("k", &kv), CaseInput::plain("v", &kv), bias];
    Case::new(name, inputs, move |t, i| t.attention_with_bias(i[0], i[1], i[2], i[3], heads))
}

fn cases() -> Vec<Case> {
    vec![
        case("self", 2, 16, 16, 3, 8),
        case("cross", 2, 9, 77, 2, 5),
        case("one_key", 1, 4, 1, 1, 6),
        case("one_head_wide", 1, 7, 11, 1, 72),
        biased("bias_of_windows", 4, 9, 9, 2, 4, [2, 2]),
        biased("bias_of_all_heads", 2, 5, 7, 3, 5, [1, 1]),
        // The golden's bias is a causal mask.
        biased("causal", 2, 13, 13, 2, 8, [1, 1]),
        case("unet_8x8", 2, 64, 64, 6, 32).without_golden(),
        biased("bias_many_keys", 6, 70, 600, 2, 40, [3, 2]).without_golden(),
        biased("bias_head_512", 2, 33, 130, 1, 512, [2, 1]).without_golden(),
        case("many_keys", 1, 70, 600, 2, 40).without_golden(),
        case("head_80", 2, 130, 77, 3, 80).without_golden(),
        case("head_160", 1, 64, 64, 2, 160).without_golden(),
        case("head_512", 1, 33, 65, 1, 512).without_golden(),
        steep("rising", 1, 70, 330, 1, 40).without_golden(),
    ]
}

/// Scores six times as steep: a row's maximum goes on rising over the keys.
fn steep(name: &'static str, batch: usize, queries: usize, keys: usize, heads: usize, head_dim: usize) -> Case {
    let mut case = case(name, batch, queries, keys, heads, head_dim);
    case.inputs[0].fill = Fill::Affine { scale: 6.0, shift: 0.0 };
    case
}

fn bench() -> Vec<Case> {
    vec![
        case("unet_64x6x32", 8, 64, 64, 6, 32),
        case("sd_1024x8x40", 1, 1024, 1024, 8, 40),
        case("sd_4096x8x40", 1, 4096, 4096, 8, 40),
        case("sd_1024x8x80", 2, 1024, 1024, 8, 80),
        case("sd_2x4096x8x40", 2, 4096, 4096, 8, 40),
        case("sd_256x8x160", 2, 256, 256, 8, 160),
        case("sd_cross_4096x77x8x40", 2, 4096, 77, 8, 40),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let q = t.input("q", &[1, 4, 6], DType::F32);
        let k = t.input("k", &[1, 5, 6], DType::F32);
        let v = t.input("v", &[1, 4, 6], DType::F32);
        assert!(t.attention(q, k, v, 2).is_err());
        assert!(t.attention(q, k, k, 4).unwrap_err().fact().contains("6 channels in 4 heads"));
        assert!(t.attention(q, k, k, 0).is_err());
        assert!(t.attention(q, k, k, 2).is_ok());
        for (shape, fits) in
            [([1, 1, 4, 5], true), ([1, 2, 4, 5], true), ([2, 1, 4, 5], false), ([1, 3, 4, 5], false), ([1, 1, 5, 4], false), ([0, 1, 4, 5], false)]
        {
            let bias = t.input("bias", &shape, DType::F32);
            let made = t.attention_with_bias(q, k, k, bias, 2);
            assert_eq!(made.is_ok(), fits, "{shape:?}");
            if let Err(error) = made {
                assert!(error.fact().contains("expected [W, 2 or 1, 4, 5] with W a divisor of 1"), "{error}");
            }
        }
    }
}
