//! Shapes of tensors and the element types of a buffer.

use std::fmt;

/// Element type of a tape tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    /// Storage alone: kernels compute in f32. The host sees f32.
    F16,
    /// Indices, counts and packed RGBA pixels.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            DType::F16 => 2,
            DType::F32 | DType::U32 => 4,
        }
    }

    pub fn is_float(self) -> bool {
        self != DType::U32
    }
}

/// Sizes of a tensor's axes, outermost first.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shape(Vec<usize>);

impl Shape {
    pub fn new(dims: &[usize]) -> Self {
        Shape(dims.to_vec())
    }

    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Number of elements; saturates instead of wrapping, so that a limit check sees it.
    pub fn numel(&self) -> usize {
        self.0.iter().fold(1usize, |n, &d| n.saturating_mul(d))
    }

    /// Bytes of a tensor of this shape in a buffer: a whole number of four-byte words.
    pub fn bytes(&self, dtype: DType) -> u64 {
        (self.numel() as u64).saturating_mul(dtype.bytes()).saturating_add(3) / 4 * 4
    }

    /// The last axis; 1 for a scalar.
    pub fn last(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// `[N, H, W, C]` of a channels-last image tensor, when it has four axes.
    pub fn nhwc(&self) -> Option<[usize; 4]> {
        <[usize; 4]>::try_from(self.0.as_slice()).ok()
    }
}

impl std::ops::Index<usize> for Shape {
    type Output = usize;
    fn index(&self, axis: usize) -> &usize {
        &self.0[axis]
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
