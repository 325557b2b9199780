//! Scaled dot-product attention with a streaming softmax: the score matrix is never stored.
//! Vaswani et al. (2017), equation 1; the running maximum and sum follow Milakov and Gimelshein (2018), algorithm 3.
//!
//! y = softmax(q k^T / sqrt(D)) v per head.  q, y: `[N, ..., heads D]`; k, v: `[N, ..., heads D]`; middle axes are tokens.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::ELEM;
use crate::ops::activation::exp;
use crate::ops::matmul::Product;
use crate::params;
use crate::plan::card::grid_1d;
use crate::plan::{Case, CaseInput, Cost, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub batch: u32,
        pub queries: u32,
        pub keys: u32,
        pub heads: u32,
        pub head_dim: u32,
        pub scale: f32,
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
    variants: &[
        Variant {
            name: "direct",
            source: &[ELEM, include_str!("../../shaders/attention.wgsl")],
            workgroup: 64,
            constants: |_| vec![],
            accepts: |_| true,
            grid: |s| {
                let p: Params = s.params();
                grid_1d((p.batch * p.heads * p.queries) as usize, 1)
            },
        },
        Variant {
            name: "rows",
            source: &[ELEM, include_str!("../../shaders/attention_rows.wgsl")],
            workgroup: 32,
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
    ],
};

impl Tape {
    /// Attention of `q` over `k` and `v`, in `heads` heads of the last axis.
    pub fn attention(&mut self, q: Tensor, k: Tensor, v: Tensor, heads: usize) -> Result<Tensor> {
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
        let params = Params {
            batch: sq[0] as u32,
            queries: tokens(&sq),
            keys: tokens(&sk),
            heads: heads as u32,
            head_dim: head_dim as u32,
            scale: 1.0 / (head_dim as f32).sqrt(),
        };
        Ok(self.push(&OP, &params, &[q, k, v], sq.dims(), DType::F32))
    }
}

/// Queries and keys of one block of the twin.
const QUERY_BLOCK: usize = 64;
const KEY_BLOCK: usize = 256;

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let [q, k, v] = *call.inputs else { return };
    let (queries, keys, heads, dim) = (p.queries as usize, p.keys as usize, p.heads as usize, p.head_dim as usize);
    let width = heads * dim;
    let blocks = queries.div_ceil(QUERY_BLOCK);
    let jobs = p.batch as usize * blocks;
    // One task per (item, block of queries): its rows of the output are contiguous, heads are a loop inside.
    let mut rows: Vec<&mut [f32]> = Vec::with_capacity(jobs);
    for item in call.output.chunks_mut((queries * width).max(1)) {
        rows.extend(item.chunks_mut((QUERY_BLOCK * width).max(1)));
    }
    rows.into_par_iter().enumerate().for_each_init(Scratch::default, |scratch, (job, y)| {
        let (n, first) = (job / blocks, job % blocks * QUERY_BLOCK);
        let m = y.len() / width;
        for h in 0..heads {
            let q = &q[(n * queries + first) * width + h * dim..];
            let k = &k[n * keys * width + h * dim..];
            let v = &v[n * keys * width + h * dim..];
            scratch.block(m, keys, dim, width, p.scale, q, k, v);
            for (row, y) in y.chunks_exact_mut(width).enumerate() {
                let inv = 1.0 / scratch.sum[row];
                let from = &scratch.acc[row * dim..(row + 1) * dim];
                y[h * dim..(h + 1) * dim].iter_mut().zip(from).for_each(|(y, a)| *y = a * inv);
            }
        }
    });
}

#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
    acc: Vec<f32>,
}

impl Scratch {
    /// One block of `m` queries against all keys: acc = sum_j exp(s_j - max) v_j, sum = sum_j exp(s_j - max).
    fn block(&mut self, m: usize, keys: usize, dim: usize, width: usize, scale: f32, q: &[f32], k: &[f32], v: &[f32]) {
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
            Product { m, k: dim, n, a: q, lda: width, b: k, ldb: width, b_transposed: true, accumulate: false, scale }.run(&mut self.scores, KEY_BLOCK);
            for row in 0..m {
                let scores = &mut self.scores[row * KEY_BLOCK..][..n];
                let max = scores.iter().fold(self.max[row], |a, &b| if b > a || b.is_nan() { b } else { a });
                let correction = (self.max[row] - max).exp();
                self.max[row] = max;
                let mut sum = 0.0;
                for s in scores.iter_mut() {
                    *s = exp(*s - max);
                    sum += *s;
                }
                self.sum[row] = self.sum[row] * correction + sum;
                self.acc[row * dim..(row + 1) * dim].iter_mut().for_each(|a| *a *= correction);
            }
            let scores = &self.scores;
            Product { m, k: n, n: dim, a: scores, lda: KEY_BLOCK, b: v, ldb: width, b_transposed: false, accumulate: true, scale: 1.0 }.run(&mut self.acc, dim);
        }
    }
}

fn cost(s: &StepView) -> Cost {
    let p: Params = s.params();
    let pairs = u64::from(p.batch) * u64::from(p.heads) * u64::from(p.queries) * u64::from(p.keys);
    Cost { flops: pairs * (4 * u64::from(p.head_dim) + 5), bytes: s.bytes() }
}

fn case(name: &'static str, batch: usize, queries: usize, keys: usize, heads: usize, dim: usize) -> Case {
    let (q, kv) = ([batch, queries, heads * dim], [batch, keys, heads * dim]);
    let inputs = vec![CaseInput::plain("q", &q), CaseInput::plain("k", &kv), CaseInput::plain("v", &kv)];
    Case::new(name, inputs, move |t, i| t.attention(i[0], i[1], i[2], heads))
}

fn cases() -> Vec<Case> {
    vec![
        case("self", 2, 16, 16, 3, 8),
        case("cross", 2, 9, 77, 2, 5),
        case("one_key", 1, 4, 1, 1, 6),
        case("one_head_wide", 1, 7, 11, 1, 72),
        case("unet_8x8", 2, 64, 64, 6, 32).without_golden(),
        case("many_keys", 1, 70, 600, 2, 40).without_golden(),
        case("head_512", 1, 33, 65, 1, 512).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("unet_64x6x32", 8, 64, 64, 6, 32), case("sd_1024x8x40", 1, 1024, 1024, 8, 40)]
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
    }
}
