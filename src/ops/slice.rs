//! A range of one axis: of channels, of tokens, of rows.
//!
//! y[r, c] = x[r, start + c] for c < length, where a row is everything from the sliced axis on.   x: `[R, width]`; y: `[R, length]`.

use rayon::prelude::*;

use crate::base::{Result, Tolerance};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        pub len: u32,
        pub width: u32,
        pub start: u32,
        pub length: u32,
    }
}

pub static OP: Op = Op {
    name: "slice",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance::EXACT,
    f16: true,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, include_str!("../../shaders/slice.wgsl")])],
};

impl Tape {
    /// `length` places of `axis` from `start` on.
    pub fn slice(&mut self, x: Tensor, axis: usize, start: usize, length: usize) -> Result<Tensor> {
        let mut shape = self.shape(x).dims().to_vec();
        let fits = axis < shape.len() && length > 0 && start.checked_add(length).is_some_and(|end| end <= shape[axis]);
        if !fits {
            return Err(self.mismatch(format!("slice of {} along axis {axis}: {length} places from {start} on", self.shape(x))));
        }
        if length == shape[axis] {
            return Ok(x);
        }
        let inner: usize = shape[axis + 1..].iter().product();
        let width = shape[axis] * inner;
        shape[axis] = length;
        let len: usize = shape.iter().product();
        let params = Params { len: len as u32, width: width as u32, start: (start * inner) as u32, length: (length * inner) as u32 };
        Ok(self.push(&OP, &params, &[x], &shape, self.dtype(x)))
    }

    /// `parts` equal ranges of `axis`.
    pub fn split(&mut self, x: Tensor, axis: usize, parts: usize) -> Result<Vec<Tensor>> {
        let size = self.shape(x).dims().get(axis).copied().unwrap_or(0);
        if parts == 0 || size == 0 || !size.is_multiple_of(parts) {
            return Err(self.mismatch(format!("split of {} along axis {axis} in {parts} equal parts", self.shape(x))));
        }
        (0..parts).map(|i| self.slice(x, axis, i * (size / parts), size / parts)).collect()
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let (width, start, length) = (p.width as usize, p.start as usize, p.length as usize);
    let x = call.inputs[0];
    call.output.par_chunks_mut(length.max(1)).enumerate().for_each(|(row, y)| y.copy_from_slice(&x[row * width + start..][..length]));
}

fn cost(s: &StepView) -> Cost {
    Cost { flops: 0, bytes: 2 * s.output_bytes() }
}

fn case(name: &'static str, shape: &[usize], axis: usize, start: usize, length: usize) -> Case {
    let layout = if shape.len() == 4 { Layout::Image } else { Layout::Plain };
    Case::new(name, vec![CaseInput::new("x", shape, layout, Fill::Normal)], move |t, i| t.slice(i[0], axis, start, length))
}

fn cases() -> Vec<Case> {
    vec![
        case("channels", &[2, 7, 5, 3], 3, 2, 4),
        case("tokens", &[3, 9, 5], 1, 0, 1),
        case("rows", &[7, 3, 2], 0, 3, 4),
        case("rank_1", &[17], 0, 16, 1),
        case("large", &[2, 65, 131, 137], 3, 33, 31).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    vec![case("vit_qkv_197x2304", &[8, 197, 2304], 2, 768, 768)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DType;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let x = t.input("x", &[2, 4, 6], DType::F32);
        assert_eq!(t.slice(x, 1, 2, 3).unwrap_err().fact(), "slice of [2, 4, 6] along axis 1: 3 places from 2 on");
        assert!(t.slice(x, 3, 0, 1).is_err() && t.slice(x, 0, 0, 0).is_err() && t.slice(x, 0, usize::MAX, 1).is_err());
        assert!(t.split(x, 1, 3).is_err() && t.split(x, 1, 0).is_err());
        assert_eq!(t.slice(x, 1, 0, 4).unwrap(), x);
        let thirds = t.split(x, 2, 3).unwrap();
        assert!(thirds.len() == 3 && thirds.iter().all(|&y| t.shape(y).dims() == [2, 4, 2]));
    }
}
