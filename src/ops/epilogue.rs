//! What a product or a convolution does with its sums before it stores them: y = f((sum + bias) + added).
//!
//! In f32 these are the operations of the steps whose place they take, in their order: `ops::join` changes no bit.
//! In the parameters of such an op are `has_bias`; `added_rows`, the rows of y that share a row of `added`, and `added_count`, its rows,
//! after which it begins anew (0: nothing is added); `function`, `a` and `b`, as in [`activation::Params`].

use crate::ops::activation;
use crate::ops::lanes;
use crate::plan::StepView;

pub(crate) use crate::plan::card::NETWORK;
/// WGSL fragments: the end of a kernel that stores single values or groups of four. They need [`NETWORK`].
pub(crate) const EPILOGUE: &str = include_str!("../../shaders/lib/epilogue.wgsl");
pub(crate) const EPILOGUE_4: &str = include_str!("../../shaders/lib/epilogue_4.wgsl");

/// Position of the tensor that is added among the inputs.
pub(crate) const ADDED: usize = 3;

/// Codes of the functions in lib/network.wgsl.
const OF_NETWORKS: [u32; 12] = [0, 1, 2, 3, 4, 5, 6, 8, 11, 12, 13, 14];

/// Whether a kernel that stores sums knows the function.
pub(crate) fn is_of_networks(function: u32) -> bool {
    OF_NETWORKS.contains(&function)
}

/// These parameters, read with [`epilogue!`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epilogue {
    pub has_bias: bool,
    pub added_rows: usize,
    pub added_count: usize,
    pub function: activation::Params,
}

impl Epilogue {
    /// Finishes `y`, rows of `columns` sums with their bias of which the first is row `first` of the result.
    pub fn finish(&self, y: &mut [f32], first: usize, columns: usize, added: &[f32]) {
        if self.added_count > 0 {
            y.chunks_exact_mut(columns.max(1)).enumerate().for_each(|(row, y)| self.add(y, first + row, columns, 0, added));
        }
        self.apply(y);
    }

    /// Finishes a part of one row, from column `from` on.
    pub fn finish_part(&self, y: &mut [f32], row: usize, columns: usize, from: usize, added: &[f32]) {
        if self.added_count > 0 {
            self.add(y, row, columns, from, added);
        }
        self.apply(y);
    }

    fn add(&self, y: &mut [f32], row: usize, columns: usize, from: usize, added: &[f32]) {
        let at = row / self.added_rows % self.added_count * columns + from;
        lanes::zip(y, &added[at..at + y.len()], |y, added| y + added);
    }

    fn apply(&self, y: &mut [f32]) {
        if self.function.function != 0 {
            activation::apply_in_place(&self.function, y);
        }
    }

    /// The constant of the fragments.
    pub fn constant(&self) -> (&'static str, f64) {
        ("FUNCTION", f64::from(self.function.function))
    }

    /// Operations beyond the sums, of which there are `values`.
    pub fn flops(&self, values: usize) -> u64 {
        let each = usize::from(self.added_count > 0) + if self.function.function == 0 { 0 } else { 4 };
        (each * values) as u64
    }

    /// Bytes of what is read and written: an input that stands in for one that is absent is neither.
    pub fn bytes(&self, s: &StepView) -> u64 {
        let optional = [(self.has_bias, 2), (self.added_count > 0, ADDED)].into_iter().filter(|(has, _)| *has);
        s.input_bytes(0) + s.input_bytes(1) + optional.map(|(_, at)| s.input_bytes(at)).sum::<u64>() + s.output_bytes()
    }
}

/// The epilogue in an op's parameters.
macro_rules! epilogue {
    ($p:expr) => {{
        let p = $p;
        $crate::ops::epilogue::Epilogue {
            has_bias: p.has_bias != 0,
            added_rows: p.added_rows as usize,
            added_count: p.added_count as usize,
            function: $crate::ops::activation::Params { len: 0, function: p.function, a: p.a, b: p.b },
        }
    }};
}
pub(crate) use epilogue;
