//! The row of a table that lies nearest to each vector: a vector-quantised autoencoder's codebook.
//! Source: van den Oord et al., "Neural Discrete Representation Learning" (2017), eq. 2.
//!
//! y[r] = table[argmin over v of |x[r] - table[v]|].   x, y: `[..., D]`; table: `[V, D]`. The first of equally near rows.
//! A vector that is not finite gives NaN.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::card::grid_1d;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Machine, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        /// Vectors of x.
        pub len: u32,
        pub rows: u32,
        pub channels: u32,
    }
}

pub static OP: Op = Op {
    name: "nearest_row",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    // A copy of a row; distances that differ by less than an ulp are none of the cases'.
    tolerance: Tolerance::EXACT,
    f16: true,
    statistics: &[],
    variants: &[Variant {
        name: "per_vector",
        family: "per_vector",
        source: &[ELEM, LINEAR_INDEX, include_str!("../../shaders/nearest_row.wgsl")],
        workgroup: 64,
        meant_for: Machine::Any,
        constants: |_| vec![],
        accepts: |_| true,
        grid: |s| grid_1d(s.params::<Params>().len as usize, 64),
    }],
};

impl Tape {
    /// The row of `table` `[V, D]` nearest to each vector of `x` `[..., D]`.
    pub fn nearest_row(&mut self, x: Tensor, table: Tensor) -> Result<Tensor> {
        let shape = self.shape(x).clone();
        let fits = matches!(*self.shape(table).dims(), [rows, channels] if rows > 0 && channels > 0 && shape.rank() > 0 && channels == shape.last());
        if !fits {
            return Err(self.mismatch(format!("nearest_row of {shape} in {}, expected [..., D] and a table [V, D]", self.shape(table))));
        }
        let (rows, channels) = (self.shape(table)[0], shape.last());
        let params = Params { len: (shape.numel() / channels) as u32, rows: rows as u32, channels: channels as u32 };
        Ok(self.push(&OP, &params, &[x, table], shape.dims(), DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let channels = (p.channels as usize).max(1);
    let (x, table) = (call.inputs[0], call.inputs[1]);
    call.output.par_chunks_mut(channels).zip(x.par_chunks(channels)).for_each(|(y, x)| {
        let mut nearest = (f32::INFINITY, 0);
        for (v, row) in table.chunks_exact(channels).enumerate() {
            let distance: f32 = x.iter().zip(row).map(|(x, e)| (x - e) * (x - e)).sum();
            if distance < nearest.0 {
                nearest = (distance, v);
            }
        }
        y.copy_from_slice(&table[nearest.1 * channels..][..channels]);
        if x.iter().any(|v| !v.is_finite()) {
            y.fill(f32::NAN);
        }
    });
}

fn cost(s: &StepView) -> Cost {
    let p: Params = s.params();
    Cost { flops: 3 * u64::from(p.len) * u64::from(p.rows) * u64::from(p.channels), bytes: s.bytes() }
}

fn case(name: &'static str, shape: &[usize], table: [usize; 2]) -> Case {
    let layout = if shape.len() == 4 { Layout::Image } else { Layout::Plain };
    Case::new(name, vec![CaseInput::new("x", shape, layout, Fill::Normal), CaseInput::plain("table", &table)], |t, i| t.nearest_row(i[0], i[1]))
}

fn cases() -> Vec<Case> {
    vec![
        case("images", &[2, 3, 5, 7], [45, 3]),
        case("vectors", &[31, 4], [64, 4]),
        case("one_row", &[9, 5], [1, 5]),
        case("one_channel", &[3, 1, 4, 5], [17, 1]),
        case("large", &[1, 3, 65, 67], [1021, 3]).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("codebook_8192x3", &[1, 3, 64, 64], [8192, 3])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 3, 4], DType::F32);
        let (table, wrong, empty) = (t.input("table", &[5, 4], DType::F32), t.input("wrong", &[4, 5], DType::F32), t.input("empty", &[0, 4], DType::F32));
        assert_eq!(t.nearest_row(x, wrong).unwrap_err().fact(), "nearest_row of [2, 3, 4] in [4, 5], expected [..., D] and a table [V, D]");
        assert!(t.nearest_row(x, empty).is_err());
        let y = t.nearest_row(x, table).unwrap();
        assert_eq!(t.shape(y).dims(), [2, 3, 4]);
    }

    #[test]
    fn the_first_of_equally_near_rows_is_taken() {
        let case = Case::new("tie", vec![CaseInput::plain("x", &[1, 1]), CaseInput::plain("table", &[3, 1])], |t, i| t.nearest_row(i[0], i[1]));
        let inputs = [vec![0.0], vec![2.0, 1.0, -1.0]];
        let (tape, y) = crate::ops::case::record(&case).unwrap();
        let y = crate::ops::case::run_tape(&tape, &inputs.iter().map(Vec::as_slice).collect::<Vec<_>>(), y).unwrap();
        assert_eq!(y, [1.0]);
    }
}
