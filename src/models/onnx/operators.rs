//! The table of operators: by what function each is recorded, and which attributes it may have.

use super::call::Call;
use super::value::Value;
use super::{arrange, fold, images, norms, pointwise, products, resize};
use crate::base::Result;

/// How a call is recorded.
#[derive(Clone, Copy)]
pub(super) enum Run {
    One(fn(&mut Call) -> Result<Value>),
    Many(fn(&mut Call) -> Result<Vec<Value>>),
}

/// One operator of the standard.
pub(super) struct Operator {
    pub(super) name: &'static str,
    /// Any other attribute is refused.
    pub(super) attributes: &'static [&'static str],
    pub(super) run: Run,
}

const fn one(name: &'static str, attributes: &'static [&'static str], run: fn(&mut Call) -> Result<Value>) -> Operator {
    Operator { name, attributes, run: Run::One(run) }
}

const WINDOWS: &[&str] = &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];
const TRANSPOSED: &[&str] = &["auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides"];
const POOL: &[&str] = &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "storage_order", "strides"];
const REDUCE: &[&str] = &["axes", "keepdims", "noop_with_empty_axes"];
const RESIZE: &[&str] = &[
    "antialias",
    "axes",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "keep_aspect_ratio_policy",
    "mode",
    "nearest_mode",
    "scales",
];

/// By name, in order.
pub(super) static OPERATORS: &[Operator] = &[
    one("Abs", &[], pointwise::unary),
    one("Add", &[], pointwise::binary),
    one("And", &[], pointwise::binary),
    one("AveragePool", POOL, images::pool),
    one("BatchNormalization", &["epsilon", "momentum", "training_mode"], norms::batch_norm),
    one("Cast", &["saturate", "to"], pointwise::cast),
    one("Ceil", &[], pointwise::unary),
    one("Celu", &["alpha"], pointwise::unary),
    one("Clip", &["max", "min"], pointwise::clip),
    one("Concat", &["axis"], arrange::concat),
    one("ConstantOfShape", &["value"], fold::constant_of_shape),
    one("Conv", WINDOWS, images::conv),
    one("ConvTranspose", TRANSPOSED, images::conv_transpose),
    one("Cos", &[], pointwise::unary),
    one("DepthToSpace", &["blocksize", "mode"], arrange::depth_to_space),
    one("Div", &[], pointwise::binary),
    one("Dropout", &["ratio", "seed"], pointwise::identity),
    one("Elu", &["alpha"], pointwise::unary),
    one("Equal", &[], pointwise::compare),
    one("Erf", &[], pointwise::unary),
    one("Exp", &[], pointwise::unary),
    one("Expand", &[], arrange::expand),
    one("Flatten", &["axis"], arrange::flatten),
    one("Floor", &[], pointwise::unary),
    one("Gather", &["axis"], arrange::gather),
    one("Gelu", &["approximate"], pointwise::unary),
    one("Gemm", &["alpha", "beta", "transA", "transB"], products::gemm),
    one("GlobalAveragePool", &[], images::global_pool),
    one("GlobalMaxPool", &[], images::global_pool),
    one("Greater", &[], pointwise::compare),
    one("GreaterOrEqual", &[], pointwise::compare),
    one("GroupNormalization", &["epsilon", "num_groups", "stash_type"], norms::group_norm),
    one("HardSigmoid", &["alpha", "beta"], pointwise::unary),
    one("HardSwish", &[], pointwise::unary),
    one("Identity", &[], pointwise::identity),
    one("InstanceNormalization", &["epsilon"], norms::instance_norm),
    one("LRN", &["alpha", "beta", "bias", "size"], norms::local_response_norm),
    one("LayerNormalization", &["axis", "epsilon", "stash_type"], norms::layer_norm),
    one("LeakyRelu", &["alpha"], pointwise::unary),
    one("Less", &[], pointwise::compare),
    one("LessOrEqual", &[], pointwise::compare),
    one("Log", &[], pointwise::unary),
    one("LogSoftmax", &["axis"], products::softmax),
    one("LpNormalization", &["axis", "p"], norms::lp_norm),
    one("MatMul", &[], products::matmul),
    one("Max", &[], pointwise::binary),
    one("MaxPool", POOL, images::pool),
    one("Mean", &[], pointwise::mean),
    one("Min", &[], pointwise::binary),
    one("Mish", &[], pointwise::unary),
    one("Mod", &["fmod"], fold::modulo),
    one("Mul", &[], pointwise::binary),
    one("Neg", &[], pointwise::unary),
    one("Not", &[], pointwise::unary),
    one("Or", &[], pointwise::binary),
    one("PRelu", &[], pointwise::prelu),
    one("Pad", &["mode", "pads", "value"], arrange::pad),
    one("Pow", &[], pointwise::binary),
    one("Range", &[], fold::range),
    one("Reciprocal", &[], pointwise::unary),
    one("ReduceL1", REDUCE, products::reduce),
    one("ReduceL2", REDUCE, products::reduce),
    one("ReduceMax", REDUCE, products::reduce),
    one("ReduceMean", REDUCE, products::reduce),
    one("ReduceMin", REDUCE, products::reduce),
    one("ReduceProd", REDUCE, products::reduce),
    one("ReduceSum", REDUCE, products::reduce),
    one("ReduceSumSquare", REDUCE, products::reduce),
    one("Relu", &[], pointwise::unary),
    one("Reshape", &["allowzero"], arrange::reshape),
    one("Resize", RESIZE, resize::resize),
    one("Round", &[], pointwise::unary),
    one("ScatterND", &["reduction"], fold::scatter_nd),
    one("Selu", &["alpha", "gamma"], pointwise::unary),
    one("Shape", &["end", "start"], fold::shape),
    one("Sigmoid", &[], pointwise::unary),
    one("Sin", &[], pointwise::unary),
    one("Size", &[], fold::size),
    one("Slice", &["axes", "ends", "starts"], arrange::slice),
    one("Softmax", &["axis"], products::softmax),
    one("Softplus", &[], pointwise::unary),
    one("Softsign", &[], pointwise::unary),
    one("SpaceToDepth", &["blocksize"], arrange::space_to_depth),
    Operator { name: "Split", attributes: &["axis", "num_outputs", "split"], run: Run::Many(arrange::split) },
    one("Sqrt", &[], pointwise::unary),
    one("Squeeze", &["axes"], arrange::squeeze),
    one("Sub", &[], pointwise::binary),
    one("Sum", &[], pointwise::binary),
    one("Tanh", &[], pointwise::unary),
    one("Tile", &[], arrange::tile),
    one("Transpose", &["perm"], arrange::transpose),
    one("Trilu", &["upper"], fold::trilu),
    one("Unsqueeze", &["axes"], arrange::unsqueeze),
    one("Upsample", RESIZE, resize::resize),
    one("Where", &[], pointwise::choose),
    one("Xor", &[], pointwise::binary),
];

pub(super) fn find(name: &str) -> Option<&'static Operator> {
    OPERATORS.binary_search_by(|row| row.name.cmp(name)).ok().map(|at| &OPERATORS[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found() {
        for row in OPERATORS {
            assert!(find(row.name).is_some_and(|found| std::ptr::eq(found, row)), "{} is not in its place", row.name);
        }
        assert!(find("Loop").is_none());
    }
}
