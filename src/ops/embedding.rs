//! Rows of a table by their numbers: class embeddings, and the row of a plan's coefficient table for the step at hand.
//!
//! y[n] = table[index[n]].   table: `[V, D]`; index: `[N]` u32; y: `[N, D]`. An index beyond the table is the caller's error;
//! it is held to the last row, so that nothing outside the table is read.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub rows: u32,
        pub channels: u32,
    }
}

pub static OP: Op = Op {
    name: "embedding",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance::EXACT,
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/embedding.wgsl")])],
};

impl Tape {
    /// Rows `index` `[N]` (u32, below V) of `table` `[V, D]`.
    pub fn embedding(&mut self, table: Tensor, index: Tensor) -> Result<Tensor> {
        let (&[rows, channels], &[count]) = (self.shape(table).dims(), self.shape(index).dims()) else {
            let fact = format!("embedding of {} by {}, expected a table [V, D] and indices [N]", self.shape(table), self.shape(index));
            return Err(self.mismatch(fact));
        };
        if rows == 0 || self.dtype(index) != DType::U32 {
            return Err(self.mismatch(format!("embedding: a table of {rows} rows by {:?} indices, expected rows and U32 indices", self.dtype(index))));
        }
        let params = Params { len: (count * channels) as u32, rows: rows as u32, channels: channels as u32 };
        Ok(self.push(&OP, &params, &[table, index], &[count, channels], DType::F32))
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let (rows, channels) = (p.rows as usize, p.channels as usize);
    let (table, index) = (call.inputs[0], call.indices(1));
    call.output.par_chunks_mut(channels.max(1)).zip(index).for_each(|(y, &index)| {
        let row = (index as usize).min(rows - 1);
        y.copy_from_slice(&table[row * channels..][..channels]);
    });
}

fn cost(s: &StepView) -> Cost {
    // The rows that are read, not the whole table.
    Cost { flops: 0, bytes: 2 * s.output_bytes() + s.input_bytes(1) }
}

fn case(name: &'static str, table: [usize; 2], count: usize, bound: u32) -> Case {
    let inputs = vec![CaseInput::plain("table", &table), CaseInput::new("index", &[count], Layout::Plain, Fill::Index(bound))];
    Case::new(name, inputs, |t, i| t.embedding(i[0], i[1]))
}

fn cases() -> Vec<Case> {
    vec![
        case("classes", [8, 45], 11, 8),
        case("coefficients", [50, 8], 1, 50),
        case("one_row", [1, 7], 3, 1),
        // Indices beyond the table: held to its last row, which PyTorch refuses.
        case("beyond", [3, 5], 9, 12).without_golden(),
        case("large", [1000, 773], 3001, 1000).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("tokens_49408x768", [49_408, 768], 77, 49_408)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let table = t.input("table", &[8, 4], DType::F32);
        let index = t.input("index", &[3], DType::U32);
        let wrong = t.input("wrong", &[3], DType::F32);
        let empty = t.input("empty", &[0, 4], DType::F32);
        assert!(t.embedding(table, wrong).unwrap_err().fact().contains("F32 indices"));
        assert!(t.embedding(index, table).unwrap_err().fact().starts_with("embedding of [3] by [8, 4]"));
        assert!(t.embedding(empty, index).is_err());
        let y = t.embedding(table, index).unwrap();
        assert_eq!(t.shape(y).dims(), [3, 4]);
    }
}
