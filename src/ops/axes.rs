//! Walking through tensors of up to six axes: strides, broadcasting, and the merging of axes that lie side by side.

use std::ops::Range;

/// Axes that a shader's parameters have room for.
pub const AXES: usize = 6;

/// Values of a task of a twin that walks: tasks have this size whatever the shapes and the threads.
pub const TASK: usize = 16_384;

/// Distance in elements between neighbours along each axis of a dense row-major tensor.
pub fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; dims.len()];
    for axis in (0..dims.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1].saturating_mul(dims[axis + 1]);
    }
    strides
}

/// The shape that both shapes broadcast to by numpy's rule: aligned at the last axis, an axis of one repeats.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |dims: &[usize], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(1, |own| dims[own]);
    let one = |axis| match (size(a, axis), size(b, axis)) {
        (a, b) if a == b => Some(a),
        (1, n) | (n, 1) => Some(n),
        _ => None,
    };
    (0..rank).map(one).collect()
}

/// Strides of a tensor of shape `dims` along the axes of `result`, which it broadcasts to: 0 where it repeats.
pub fn broadcast_strides(dims: &[usize], result: &[usize]) -> Vec<usize> {
    let own = strides(dims);
    let along = |axis: usize| match (axis + dims.len()).checked_sub(result.len()) {
        Some(at) if dims[at] != 1 => own[at],
        _ => 0,
    };
    (0..result.len()).map(along).collect()
}

/// How the rows of a result, which are all of its axes but the last, go through those of a tensor of shape `dims` that broadcasts to it: row r of
/// the result meets row r / rows % count, `[rows, count]`. `None` where the last axis repeats, or one between others that do not. The first axis is the
/// batch: it may repeat or not, and its size does not decide.
pub fn broadcast_rows(dims: &[usize], result: &[usize]) -> Option<[usize; 2]> {
    let above = result.len().checked_sub(dims.len())?;
    let (last, result) = result.split_last()?;
    if dims.last() != Some(last) {
        return None;
    }
    let own: Vec<usize> = (0..result.len()).map(|axis| axis.checked_sub(above).map_or(1, |at| dims[at])).collect();
    let end = own.iter().rposition(|&size| size != 1).map_or(0, |axis| axis + 1);
    let fits = own[..end].iter().zip(result).enumerate().all(|(axis, (own, size))| own == size || axis == 0 && *own == 1);
    fits.then(|| [&result[end..], &own[..end]].map(|sizes| sizes.iter().product::<usize>().max(1)))
}

/// A dense result of up to six axes, last axis innermost, and the strides of its axes through each of `K` inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk<const K: usize> {
    pub sizes: [usize; AXES],
    pub strides: [[usize; AXES]; K],
}

impl<const K: usize> Walk<K> {
    /// A result of shape `dims` with one stride per axis and input. Axes of one are left out, and axes that every input
    /// passes in one stride are merged; `None` where more than six remain.
    pub fn new(dims: &[usize], strides: &[Vec<usize>; K]) -> Option<Self> {
        let mut merged: Vec<(usize, [usize; K])> = Vec::new();
        for (axis, &size) in dims.iter().enumerate().filter(|&(_, &size)| size != 1) {
            let step: [usize; K] = std::array::from_fn(|k| strides[k][axis]);
            match merged.last_mut() {
                Some((outer, outer_step)) if (0..K).all(|k| outer_step[k] == step[k].saturating_mul(size)) => {
                    *outer = outer.saturating_mul(size);
                    *outer_step = step;
                }
                _ => merged.push((size, step)),
            }
        }
        let first = AXES.checked_sub(merged.len())?;
        let mut walk = Walk { sizes: [1; AXES], strides: [[0; AXES]; K] };
        for (axis, (size, step)) in (first..).zip(merged) {
            walk.sizes[axis] = size;
            (0..K).for_each(|k| walk.strides[k][axis] = step[k]);
        }
        Some(walk)
    }

    /// Calls `visit` for each run along the innermost axis of the `len` results from `start` on: the run's place among
    /// them, and the offset of its first value in each input. Within a run the innermost strides hold.
    pub fn runs(&self, start: usize, len: usize, mut visit: impl FnMut(Range<usize>, [usize; K])) {
        const INNER: usize = AXES - 1;
        let mut index = [0usize; AXES];
        let mut rest = start;
        for axis in (0..AXES).rev() {
            index[axis] = rest % self.sizes[axis].max(1);
            rest /= self.sizes[axis].max(1);
        }
        let mut done = 0;
        while done < len {
            let at = std::array::from_fn(|k| (0..AXES).map(|axis| index[axis] * self.strides[k][axis]).sum());
            let run = (self.sizes[INNER] - index[INNER]).clamp(1, len - done);
            visit(done..done + run, at);
            done += run;
            index[INNER] = 0;
            for axis in (0..INNER).rev() {
                index[axis] += 1;
                if index[axis] < self.sizes[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
    }
}

/// Six axes as a shader's parameters.
pub fn words(axes: [usize; AXES]) -> [u32; AXES] {
    axes.map(|v| v as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_repeat_are_counted() {
        let of = |dims: &[usize], result: &[usize]| broadcast_rows(dims, result);
        assert_eq!(of(&[2, 3, 4, 8], &[2, 3, 4, 8]), Some([1, 24]));
        assert_eq!(of(&[2, 1, 1, 8], &[2, 3, 4, 8]), Some([12, 2]));
        assert_eq!(of(&[8], &[2, 3, 4, 8]), Some([24, 1]));
        assert_eq!(of(&[1, 3, 4, 8], &[2, 3, 4, 8]), Some([1, 12]));
        assert_eq!(of(&[3, 1, 8], &[2, 3, 4, 8]), Some([4, 3]));
        assert_eq!([of(&[1, 1, 4, 8], &[1, 3, 4, 8]), of(&[4, 8], &[2, 3, 4, 8])], [None; 2]);
        assert_eq!(of(&[8], &[8]), Some([1, 1]));
        assert_eq!([of(&[2, 1, 4, 8], &[2, 3, 4, 8]), of(&[2, 3, 4, 1], &[2, 3, 4, 8]), of(&[], &[8]), of(&[1, 8], &[8])], [None; 4]);
    }

    #[test]
    fn shapes_broadcast_as_in_numpy() {
        assert_eq!(broadcast(&[2, 1, 5], &[3, 1]), Some(vec![2, 3, 5]));
        assert_eq!(broadcast(&[], &[4]), Some(vec![4]));
        assert_eq!(broadcast(&[0], &[1]), Some(vec![0]));
        assert_eq!((broadcast(&[2, 3], &[2]), broadcast(&[0], &[2])), (None, None));
        assert_eq!(broadcast_strides(&[3, 1], &[2, 3, 5]), [0, 1, 0]);
        assert_eq!(broadcast_strides(&[2, 3, 5], &[2, 3, 5]), [15, 5, 1]);
    }

    #[test]
    fn axes_are_merged_where_every_input_passes_them_in_one_stride() {
        let dims = [2, 3, 4, 5];
        let whole = Walk::new(&dims, &[strides(&dims), strides(&dims)]).unwrap();
        assert_eq!((whole.sizes, whole.strides[1]), ([1, 1, 1, 1, 1, 120], [0, 0, 0, 0, 0, 1]));
        let channel = Walk::new(&dims, &[strides(&dims), broadcast_strides(&[5], &dims)]).unwrap();
        assert_eq!((channel.sizes, channel.strides), ([1, 1, 1, 1, 24, 5], [[0, 0, 0, 0, 5, 1], [0, 0, 0, 0, 0, 1]]));
        // Seven axes, none of which can be merged.
        let many = [2; 7];
        assert_eq!(Walk::new(&many, &[strides(&many).into_iter().rev().collect()]), None);
        assert!(Walk::new(&[2, 1, 2, 1, 2, 2, 2, 2, 2], &[strides(&[2, 1, 2, 1, 2, 2, 2, 2, 2])]).is_some());
    }

    /// Wherever a task is cut, the runs visit the same offsets.
    #[test]
    fn runs_visit_every_result_once() {
        let dims = [3, 2, 4];
        let walk = Walk::new(&dims, &[vec![1, 12, 3], vec![0, 1, 0]]).unwrap();
        let offsets = |start: usize, len: usize| {
            let mut seen = vec![];
            walk.runs(start, len, |run, [a, b]| {
                assert_eq!(run.start, seen.len());
                seen.extend((0..run.len()).map(|i| (a + i * walk.strides[0][AXES - 1], b + i * walk.strides[1][AXES - 1])));
            });
            seen
        };
        let all = offsets(0, 24);
        let expected: Vec<(usize, usize)> = (0..24).map(|i| (i / 8 + i / 4 % 2 * 12 + i % 4 * 3, i / 4 % 2)).collect();
        assert_eq!(all, expected);
        for cut in 1..24 {
            assert_eq!([offsets(0, cut), offsets(cut, 24 - cut)].concat(), all, "cut at {cut}");
        }
    }
}
