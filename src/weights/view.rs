//! One tensor of a mapped file without a copy: element type, shape, strides and the place of its first element.
//! A [`Part`] of it (rows, a transpose, a reshape) is a view of the same bytes.

use std::ops::Range;
use std::sync::Arc;

use safetensors::tensor::Dtype;

use crate::base::Halves;
use crate::weights::low_rank::{self, LowRank};
use crate::weights::mapped::Mapped;
use crate::weights::numbers::{self, Elements, is_contiguous, row_major};

/// Bytes that are read before their pages are given back.
const READ_AT_ONCE: usize = 8 << 20;

/// A tensor of a file. Clones share the file.
#[derive(Clone, Debug)]
pub struct View {
    own_name: Arc<str>,
    pub(crate) dtype: Dtype,
    shape: Vec<usize>,
    /// In elements.
    strides: Vec<usize>,
    /// Byte of the first element.
    offset: usize,
    file: Arc<Mapped>,
    deltas: Vec<LowRank>,
}

impl View {
    /// A row-major tensor whose bytes lie within the file.
    pub(crate) fn contiguous(file: &Arc<Mapped>, own_name: &str, dtype: Dtype, shape: Vec<usize>, offset: usize) -> View {
        View { own_name: own_name.into(), dtype, strides: row_major(&shape), shape, offset, file: Arc::clone(file), deltas: Vec::new() }
    }

    /// A tensor within `bytes` of the file that begins `start` elements behind their first. Fails, with a fact, when an element
    /// lies outside, and when there are more elements than the bytes hold: nothing is allocated by a claim.
    pub(crate) fn strided(
        file: &Arc<Mapped>,
        own_name: &str,
        dtype: Dtype,
        shape: Vec<usize>,
        strides: Vec<usize>,
        start: usize,
        bytes: Range<usize>,
    ) -> Result<View, String> {
        let item = dtype.bitsize() / 8;
        let held = bytes.len() / item.max(1);
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let mut last = Some(start);
        if count != Some(0) {
            for (dim, stride) in shape.iter().zip(&strides) {
                last = last.and_then(|l| l.checked_add((dim - 1).checked_mul(*stride)?));
            }
        }
        let fits = shape.len() == strides.len() && count.is_some_and(|n| n == 0 || (n <= held && last.is_some_and(|l| l < held)));
        if !fits {
            return Err(format!("shape {shape:?}, strides {strides:?}, first element {start}, expected a tensor within the {held} elements of its storage"));
        }
        let offset = if count == Some(0) { bytes.start } else { bytes.start + start * item };
        Ok(View { own_name: own_name.into(), dtype, shape, strides, offset, file: Arc::clone(file), deltas: Vec::new() })
    }

    /// The name in the file, whatever the store calls it.
    pub fn own_name(&self) -> &str {
        &self.own_name
    }

    /// PyTorch's axis order.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// `F32`, `BF16` and so on.
    pub fn dtype_name(&self) -> String {
        self.dtype.to_string()
    }

    pub(crate) fn file(&self) -> &Mapped {
        &self.file
    }

    /// Adds `delta` to what is read; fails, with a fact, where it does not have this shape.
    pub(crate) fn add(&mut self, delta: LowRank) -> Result<(), String> {
        if numbers::floats(self.dtype, Elements { bytes: &[], shape: &[0], strides: &[1] }).is_none() {
            return Err(format!("has dtype {}, expected floating point numbers", self.dtype));
        }
        delta.check(&self.shape)?;
        self.deltas.push(delta);
        Ok(())
    }

    /// The values as f32 in row-major order, with all low-rank changes added; None where they are no floats and no bytes.
    pub fn floats(&self) -> Option<Vec<f32>> {
        let mut values = self.read(|elements| numbers::floats(self.dtype, elements))?;
        for delta in &self.deltas {
            low_rank::add(delta, &mut values, &self.shape)?;
        }
        Some(values)
    }

    /// The values in row-major order where they have 16 bits and no low-rank change.
    pub(crate) fn halves(&self) -> Option<Halves> {
        match self.dtype {
            _ if !self.deltas.is_empty() => None,
            Dtype::F16 => self.read(|elements| Some(numbers::f16s(elements))).map(Halves::F16),
            Dtype::BF16 => self.read(|elements| Some(numbers::bf16s(elements))).map(Halves::Bf16),
            _ => None,
        }
    }

    /// The values as integers; None for other types and where one does not fit.
    pub(crate) fn integers(&self) -> Option<Vec<i64>> {
        self.read(|elements| numbers::integers(self.dtype, elements))
    }

    /// Reads all elements with `f`; a large contiguous tensor in pieces, so that its pages and its values are not all in memory at once.
    fn read<T>(&self, f: impl Fn(Elements) -> Option<Vec<T>>) -> Option<Vec<T>> {
        let count: usize = self.shape.iter().product();
        let item = self.dtype.bitsize() / 8;
        if count == 0 {
            return f(Elements { bytes: &[], shape: &[0], strides: &[1] });
        }
        let bytes = &self.file.bytes()[self.offset..];
        if !is_contiguous(&self.shape, &self.strides) {
            let values = f(Elements { bytes, shape: &self.shape, strides: &self.strides });
            let span: usize = self.shape.iter().zip(&self.strides).map(|(dim, stride)| (dim - 1) * stride).sum();
            self.file.forget(self.offset..self.offset + (span + 1) * item);
            return values;
        }
        let mut values = Vec::new();
        let piece = (READ_AT_ONCE / item.max(1)).max(1);
        for from in (0..count).step_by(piece) {
            let (to, at) = (count.min(from + piece), from * item);
            let read = f(Elements { bytes: &bytes[at..], shape: &[to - from], strides: &[1] })?;
            if to - from == count {
                values = read;
            } else {
                values.reserve_exact(count - from);
                values.extend(read);
            }
            self.file.forget(self.offset + at..self.offset + to * item);
        }
        Some(values)
    }

    /// The part of this tensor, or the fact why there is none.
    fn part(&self, part: &Part) -> Result<View, String> {
        if self.dtype.bitsize() < 8 || (!part.0.is_empty() && !self.deltas.is_empty()) {
            return Err(format!("is {} with {} low-rank changes, expected whole bytes and none before it is renamed", self.dtype, self.deltas.len()));
        }
        part.0.iter().try_fold(self.clone(), |view, step| view.step(step))
    }

    fn step(mut self, step: &Step) -> Result<View, String> {
        match step {
            Step::Rows(rows) => self.keep_rows(rows.clone())?,
            Step::Share { index, of } => {
                let each = self.shape.first().filter(|rows| *of > 0 && **rows % of == 0 && index < of).map(|rows| rows / of);
                let each = each.ok_or_else(|| format!("is {:?}, expected {of} equal parts along its first axis", self.shape))?;
                self.keep_rows(index * each..(index + 1) * each)?;
            }
            Step::Squeeze => {
                while self.shape.len() > 2 && self.shape.last() == Some(&1) {
                    self.shape.pop();
                    self.strides.pop();
                }
            }
            Step::Transpose => {
                let axes = self.shape.len();
                if axes < 2 {
                    return Err(format!("is {:?}, expected two axes or more to transpose", self.shape));
                }
                self.shape.swap(axes - 2, axes - 1);
                self.strides.swap(axes - 2, axes - 1);
            }
            Step::Reshape(shape) => {
                let same = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) == Some(self.shape.iter().product());
                if !same || !is_contiguous(&self.shape, &self.strides) {
                    return Err(format!("is {:?} with strides {:?}, expected row-major values for {shape:?}", self.shape, self.strides));
                }
                self.strides = row_major(shape);
                self.shape.clone_from(shape);
            }
        }
        Ok(self)
    }

    fn keep_rows(&mut self, rows: Range<usize>) -> Result<(), String> {
        if rows.start > rows.end || self.shape.first().is_none_or(|count| rows.end > *count) {
            return Err(format!("is {:?}, expected rows {} to {} along its first axis", self.shape, rows.start, rows.end));
        }
        self.shape[0] = rows.len();
        if !rows.is_empty() {
            self.offset += rows.start * self.strides[0] * (self.dtype.bitsize() / 8);
        }
        Ok(())
    }
}

/// What is taken of a tensor: steps, each of which acts on the result of the one before. None: the whole tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Rows(Range<usize>),
    Share { index: usize, of: usize },
    Squeeze,
    Transpose,
    Reshape(Vec<usize>),
}

impl Part {
    /// All of it, as it stands.
    pub fn whole() -> Part {
        Part::default()
    }

    /// Rows of the first axis.
    pub fn rows(self, rows: Range<usize>) -> Part {
        self.then(Step::Rows(rows))
    }

    /// The `index`-th of `of` equal parts along the first axis: `share(1, 3)` are the keys of an `in_proj_weight`.
    pub fn share(self, index: usize, of: usize) -> Part {
        self.then(Step::Share { index, of })
    }

    /// Without the trailing axes of length 1 beyond the second: the weight `[O, I, 1, 1]` of a convolution as `[O, I]` of a linear layer.
    pub fn squeezed(self) -> Part {
        self.then(Step::Squeeze)
    }

    /// The last two axes exchanged.
    pub fn transposed(self) -> Part {
        self.then(Step::Transpose)
    }

    /// The same values, row-major, in another shape. Does not follow a transpose.
    pub fn reshaped(self, shape: &[usize]) -> Part {
        self.then(Step::Reshape(shape.to_vec()))
    }

    fn then(mut self, step: Step) -> Part {
        self.0.push(step);
        self
    }

    /// This part of `view`; an error is a fact that lacks its place.
    pub(crate) fn of(&self, view: &View) -> Result<View, String> {
        view.part(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Fate, Store, Writer};

    /// A store of tensors whose values count from 0.
    fn store(tensors: &[(&str, &[usize])]) -> Store {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut writer = Writer::new();
        for (name, shape) in tensors {
            writer.f32(name, shape, (0..shape.iter().product::<usize>()).map(|v| v as f32).collect()).unwrap();
        }
        writer.write(&path).unwrap();
        Store::open(&path).unwrap()
    }

    #[test]
    fn parts_are_views_under_new_names() {
        let store = store(&[("m.attn.in_proj_weight", &[6, 2]), ("m.proj.weight", &[2, 3, 1, 1]), ("m.old", &[1]), ("x", &[1])]);
        let fate = |name: &str, _: &[usize]| match name {
            "in_proj_weight" => Fate::Keep,
            "attn.in_proj_weight" => Fate::Split(["q", "k", "v"].iter().enumerate().map(|(i, n)| (n.to_string(), Part::whole().share(i, 3))).collect()),
            "proj.weight" => Fate::Split(vec![
                ("linear".to_string(), Part::whole().squeezed()),
                ("transposed".to_string(), Part::whole().squeezed().transposed().rows(1..3)),
                ("flat".to_string(), Part::whole().reshaped(&[6])),
            ]),
            "old" => Fate::Drop,
            _ => Fate::Keep,
        };
        let renamed = store.under("m.").renamed(fate).unwrap();
        assert_eq!(renamed.names().collect::<Vec<_>>(), ["flat", "k", "linear", "q", "transposed", "v"]);
        assert_eq!(renamed.dropped(), ["old"]);
        assert_eq!(renamed.array("k").unwrap(), crate::base::Array::new(&[2, 2], vec![4.0, 5.0, 6.0, 7.0]).unwrap());
        assert_eq!(renamed.array("linear").unwrap().dims(), [2, 3]);
        assert_eq!(renamed.array("transposed").unwrap(), crate::base::Array::new(&[2, 2], vec![1.0, 4.0, 2.0, 5.0]).unwrap());
        assert_eq!(renamed.own_name("k"), Some("m.attn.in_proj_weight"));
        assert!(renamed.integers("k").unwrap_err().to_string().starts_with("k (in the file m.attn.in_proj_weight): dtype F32"));
    }

    #[test]
    fn parts_that_do_not_fit_are_named() {
        let rows: Vec<(Part, &str)> = vec![
            (Part::whole().share(0, 4), "a: is [6, 2], expected 4 equal parts along its first axis ("),
            (Part::whole().share(3, 3), "expected 3 equal parts"),
            (Part::whole().rows(2..7), "a: is [6, 2], expected rows 2 to 7 along its first axis"),
            (Part::whole().reshaped(&[5, 2]), "expected row-major values for [5, 2]"),
            (Part::whole().reshaped(&[usize::MAX, 2]), "expected row-major values"),
            (Part::whole().transposed().reshaped(&[12]), "is [2, 6] with strides [1, 2], expected row-major"),
            (Part::whole().reshaped(&[12]).transposed(), "expected two axes or more"),
        ];
        for (part, want) in rows {
            let error = store(&[("a", &[6, 2])]).renamed(|_, _| Fate::Split(vec![("b".to_string(), part.clone())])).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("model.safetensors"), "{part:?}: {error}");
        }
        let error = store(&[("a", &[1]), ("b", &[1])]).renamed(|_, _| Fate::Rename("c".to_string())).unwrap_err().to_string();
        assert!(error.starts_with("b: becomes `c`, and so does `a`"), "{error}");
    }

    #[test]
    fn low_rank_changes_are_added_when_read() {
        let lora =
            store(&[("up", &[2, 2]), ("down", &[2, 3]), ("mid", &[2, 1, 1, 2]), ("down1", &[1, 3, 1, 1]), ("up1", &[2, 2, 1, 1]), ("conv", &[2, 3, 1, 2])]);
        let mut base = store(&[("w", &[2, 3]), ("conv", &[2, 3, 1, 2])]);
        let delta = |up: &str, mid: Option<&str>, down: &str, scale| LowRank {
            up: lora.view(up).unwrap(),
            mid: mid.map(|m| lora.view(m).unwrap()),
            down: lora.view(down).unwrap(),
            scale,
        };
        base.add_low_rank("w", delta("up", None, "down", 0.5)).unwrap();
        base.add_low_rank("w", delta("up", None, "down", 1.0)).unwrap();
        // up down = [[3, 4, 5], [9, 14, 19]].
        assert_eq!(base.array("w").unwrap().data, [4.5, 7.0, 9.5, 16.5, 25.0, 33.5]);
        base.add_low_rank("conv", delta("up1", Some("mid"), "down1", 1.0)).unwrap();
        // mid[p, 0, 0, k] = 2 p + k and down1[0, i] = i; the sum over p of up[o, p] mid[p, k] is [[2, 3], [6, 11]].
        assert_eq!(base.array("conv").unwrap().data, [0.0, 1.0, 4.0, 6.0, 8.0, 11.0, 6.0, 7.0, 14.0, 20.0, 22.0, 33.0]);
        base.add_low_rank("conv", delta("up1", None, "conv", 1.0)).unwrap();
        // up[1, 1] conv[1, 2, 0, 1] + up[1, 0] conv[0, 2, 0, 1] = 3 * 11 + 2 * 5.
        assert_eq!(base.array("conv").unwrap().data[11], 33.0 + 43.0);
        let error = base.add_low_rank("w", delta("down", None, "up", 1.0)).unwrap_err().to_string();
        assert!(error.starts_with("w: is [2, 3], which down [2, 3] times up [2, 2] does not change ("), "{error}");
        assert!(base.add_low_rank("w", delta("up", Some("mid"), "down", 1.0)).unwrap_err().fact().contains("times mid [2, 1, 1, 2] times"));
        assert!(base.add_low_rank("w", delta("up", None, "down", f32::NAN)).unwrap_err().fact().contains("expected a finite number"));
        assert!(base.add_low_rank("v", delta("up", None, "down", 1.0)).unwrap_err().fact().contains("no such tensor"));
        let split = |_: &str, _: &[usize]| Fate::Split(vec![("part".to_string(), Part::whole().rows(0..1))]);
        assert!(base.renamed(split).unwrap_err().fact().contains("low-rank changes, expected"));
    }
}
