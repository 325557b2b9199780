"""One graph per opset with a branch for each form of an operator, each branch an output of its own: onnxruntime says what they are."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

X = (2, 4, 5, 6)


class Branches:
    """A graph of the input `x` under construction."""

    def __init__(self, opset):
        self.opset, self.nodes, self.tensors, self.outputs = opset, [], [], []

    def tensor(self, values, dtype=np.float32):
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def integers(self, *values):
        return self.tensor(values, np.int64)

    def drawn(self, *shape, seed=0):
        return self.tensor(np.random.Generator(np.random.PCG64(seed + len(self.tensors))).uniform(-0.8, 1.0, shape))

    def node(self, operator, *inputs, outputs=1, **attributes):
        names = [f"n{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=f"{operator}_{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def out(self, operator, *inputs, outputs=1, **attributes):
        made = self.node(operator, *inputs, outputs=outputs, **attributes)
        self.outputs += [made] if outputs == 1 else made

    def model(self):
        value = helper.make_tensor_value_info
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.outputs]
        for output in outputs:
            output.type.tensor_type.elem_type = TensorProto.FLOAT
        graph = helper.make_graph(self.nodes, "branches", [value("x", TensorProto.FLOAT, X)], outputs, self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], producer_name="naevus")
        model.ir_version = {9: 4, 11: 6, 13: 7, 18: 8, 21: 10}[self.opset]
        # Inferred shapes are what a file has of its outputs.
        inferred = onnx.shape_inference.infer_shapes(model)
        model.graph.ClearField("output")
        model.graph.output.extend(inferred.graph.output)
        return model


def pointwise(b):
    for operator in ("Abs", "Exp", "Neg", "Sigmoid", "Tanh", "Softplus", "Softsign", "Erf", "Sin", "Cos", "Floor", "Ceil", "Reciprocal"):
        b.out(operator, "x")
    above = b.node("Abs", "x")
    b.out("Log", above), b.out("Sqrt", above)
    b.out("Elu", "x", alpha=0.7), b.out("Selu", "x"), b.out("HardSigmoid", "x", alpha=0.3, beta=0.4), b.out("LeakyRelu", "x", alpha=0.2)
    b.out("PRelu", "x", b.drawn(4, 1, 1)), b.out("PRelu", "x", b.tensor([0.3]))
    b.out("Sum", "x", b.drawn(4, 5, 6), b.drawn(1)), b.out("Mean", "x", b.drawn(6), above), b.out("Max", "x", b.drawn(5, 1), b.drawn(1))
    b.out("Min", "x", b.drawn(2, 1, 1, 6)), b.out("Pow", above, b.tensor(1.5)), b.out("Pow", "x", b.tensor([2.0])), b.out("Sub", b.tensor(1.0), "x")
    b.out("Div", b.drawn(4, 1, 1), b.node("Exp", "x")), b.out("Div", "x", b.tensor(3.0)), b.out("Mul", b.node("Transpose", "x", perm=[0, 2, 3, 1]), b.drawn(4))
    b.out("Where", b.tensor(np.arange(6) % 2 == 0, np.bool_), "x", b.tensor(-np.inf)), b.out("Where", b.node("Greater", "x", b.tensor(0.1)), "x", above)
    b.out("Where", b.node("Not", b.node("Less", "x", b.tensor(-0.1))), b.tensor(2.0), "x")


def windows(b):
    b.out("Conv", "x", b.drawn(6, 2, 3, 2), b.drawn(6), group=2, pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2])
    b.out("Conv", "x", b.drawn(3, 4, 3, 4), auto_pad="SAME_LOWER", strides=[2, 3]), b.out("Conv", "x", b.drawn(3, 4, 2, 2), auto_pad="VALID")
    rows = b.node("Reshape", "x", b.integers(2, 4, 30))
    b.out("Conv", rows, b.drawn(5, 4, 3), b.drawn(5), pads=[1, 2], strides=[2]), b.out("MaxPool", rows, kernel_shape=[3], strides=[2])
    b.out("ConvTranspose", "x", b.drawn(4, 3, 3, 2), b.drawn(3), strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 2])
    b.out("ConvTranspose", "x", b.drawn(4, 2, 3, 3), group=2, dilations=[2, 1], strides=[1, 2]), b.out("ConvTranspose", rows, b.drawn(4, 2, 5), strides=[3], pads=[2, 1])
    b.out("ConvTranspose", "x", b.drawn(4, 2, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"), b.out("ConvTranspose", "x", b.drawn(4, 1, 4, 4), strides=[2, 2], output_shape=[10, 11])
    b.out("MaxPool", "x", kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 2]), b.out("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    b.out("AveragePool", "x", kernel_shape=[2, 3], auto_pad="SAME_UPPER"), b.out("GlobalMaxPool", "x"), b.out("GlobalAveragePool", "x")
    if b.opset >= 11:
        b.out("MaxPool", "x", kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1), b.out("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)


def norms(b):
    b.out("InstanceNormalization", "x", b.drawn(4), b.drawn(4), epsilon=1e-3), b.out("LRN", "x", size=3, alpha=0.2, beta=0.6, bias=1.5)
    flat = b.node("Reshape", "x", b.integers(2, 2, -1))
    b.out("InstanceNormalization", flat, b.drawn(2), b.drawn(2))
    b.out("BatchNormalization", "x", b.drawn(4), b.drawn(4), b.drawn(4), b.tensor([0.5, 1.0, 2.0, 0.1]), epsilon=1e-2)
    b.out("LpNormalization", "x", axis=1, p=2), b.out("LpNormalization", "x", axis=3, p=1)
    if b.opset >= 18:
        b.out("LayerNormalization", "x", b.drawn(6), b.drawn(6)), b.out("LayerNormalization", "x", b.drawn(5, 6), axis=2)
        b.out("LayerNormalization", b.node("Transpose", "x", perm=[0, 2, 3, 1]), b.drawn(4), b.drawn(4), epsilon=1e-3)
    if b.opset >= 21:
        b.out("GroupNormalization", "x", b.drawn(4), b.drawn(4), num_groups=2)


def moves(b):
    old, tokens = b.opset < 13, b.node("Reshape", "x", b.integers(0, -1, 6))
    b.out("Concat", "x", b.drawn(2, 1, 5, 6), "x", axis=1), b.out("Concat", tokens, tokens, axis=-1), b.out("Transpose", "x"), b.out("Flatten", "x", axis=2)
    b.out("Gather", "x", b.tensor([[3, 0], [-1, 1]], np.int64), axis=1), b.out("Gather", "x", b.tensor(-2, np.int64), axis=3)
    b.out("Gather", tokens, b.integers(*[(7 * i) % 20 for i in range(24)]), axis=1), b.out("Tile", "x", b.integers(1, 2, 1, 2)), b.out("Expand", tokens, b.integers(3, 1, 1, 6))
    b.out("SpaceToDepth", b.node("Transpose", "x", perm=[0, 2, 1, 3]), blocksize=2), b.out("DepthToSpace", "x", blocksize=2), b.out("Identity", "x")
    b.out("Split", "x", *([] if old else [b.integers(1, 3)]), outputs=2, axis=1, **({"split": [1, 3]} if old else {}))
    b.out("Squeeze", b.node("Unsqueeze", "x", *([] if old else [b.integers(0, 3)]), **({"axes": [0, 3]} if old else {})), *([] if old else [b.integers(3)]), **({"axes": [3]} if old else {}))
    if b.opset < 10:
        b.out("Slice", "x", starts=[1, -4], ends=[100, -1], axes=[1, 3])
        b.out("Pad", "x", pads=[0, 1, 0, 2, 0, 0, 3, 1], value=0.5), b.out("Pad", "x", pads=[0, 0, 2, 1, 0, 0, 1, 3], mode="reflect")
        return
    b.out("Slice", "x", b.integers(1, 0), b.integers(2**62, 5), b.integers(1, 3), b.integers(1, 2)), b.out("Slice", "x", b.integers(-1), b.integers(-(2**62)), b.integers(2), b.integers(-2))
    b.out("Pad", "x", b.integers(0, 1, 0, 2, 0, 0, 3, 1), b.tensor(0.5)), b.out("Pad", "x", b.integers(0, 0, 2, 1, 0, 0, 1, 3), mode="reflect")
    b.out("Pad", "x", b.integers(0, 0, 2, -1, 0, 0, 1, 3), mode="edge"), b.out("DepthToSpace", "x", blocksize=2, mode="CRD")
    steps = b.node("Range", b.tensor(0.0), b.tensor(3.0), b.tensor(0.5))
    b.out("Mul", "x", steps)
    data = b.node("ConstantOfShape", b.integers(4, 5, 6), value=numpy_helper.from_array(np.array([0.25], np.float32)))
    b.out("Add", "x", b.node("ScatterND", data, b.tensor([[0, 1], [3, -1]], np.int64), b.drawn(2, 6)))
    if b.opset >= 18:
        b.out("Split", "x", outputs=2, axis=3, num_outputs=2), b.out("Pad", "x", b.integers(1, 2), b.tensor(1.0), b.integers(3))
    if b.opset >= 14:
        b.out("Mul", b.node("Trilu", b.drawn(5, 6), b.tensor(-1, np.int64), upper=0), "x")


def resizes(b):
    scales = [1.0, 1.0, 2.0, 3.0]
    if b.opset < 10:
        b.out("Upsample", "x", b.tensor(scales)), b.out("Upsample", "x", b.tensor(scales), mode="linear")
        return
    empty = b.tensor([])
    for places in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
        b.out("Resize", "x", empty, b.tensor(scales), mode="linear", coordinate_transformation_mode=places)
        b.out("Resize", "x", empty, empty, b.integers(2, 4, 7, 4), mode="cubic", coordinate_transformation_mode=places)
    b.out("Resize", "x", empty, b.tensor([1.0, 1.0, 2.0, 2.0]), coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        b.out("Resize", "x", empty, empty, b.integers(2, 4, 8, 3), nearest_mode=nearest)
    b.out("Resize", "x", empty, b.tensor([1.0, 1.0, 0.6, 1.4]), mode="linear"), b.out("Resize", "x", empty, b.tensor(scales), mode="cubic", exclude_outside=1)
    if b.opset >= 18:
        b.out("Resize", "x", "", "", b.integers(9, 7), mode="linear", axes=[2, 3])


def products(b):
    old, tokens = b.opset < 13, b.node("Reshape", "x", b.integers(0, -1, 6))
    flat = b.node("Flatten", "x")
    b.out("Gemm", flat, b.drawn(3, 120), b.drawn(3), transB=1), b.out("Gemm", flat, b.drawn(120, 3), b.drawn(2, 1), alpha=0.5, beta=2.0)
    b.out("Gemm", flat, b.drawn(2, 3), b.drawn(1), transA=1), b.out("MatMul", "x", b.drawn(6, 3)), b.out("MatMul", b.drawn(5, 4), b.node("Reshape", "x", b.integers(12, 4, 5)))
    b.out("MatMul", tokens, b.node("Transpose", tokens, perm=[0, 2, 1])), b.out("MatMul", "x", b.drawn(4, 6, 2)), b.out("MatMul", tokens, b.drawn(6)), b.out("MatMul", b.drawn(20), tokens)
    for axis in (1, 3):
        b.out("Softmax", "x", axis=axis), b.out("LogSoftmax", "x", axis=axis)
    late = b.opset >= 18

    def reduced(operator, axes, x="x", **attributes):
        inside = late or (operator == "ReduceSum" and not old)
        b.out(operator, x, *([b.integers(*axes)] if inside else []), **({} if inside else {"axes": list(axes)}), **attributes)

    reduced("ReduceMean", (2, 3)), reduced("ReduceMean", (1, 3), keepdims=0), reduced("ReduceSum", (0, 2)), reduced("ReduceMax", (1,), keepdims=0), reduced("ReduceMin", (-1,))
    reduced("ReduceL1", (1, 2)), reduced("ReduceL2", (3,), keepdims=0), reduced("ReduceProd", (3,)), reduced("ReduceSumSquare", (2,))
    b.out("ReduceMean", "x"), b.out("ReduceSum", "x", keepdims=0)
    image = b.node("Conv", "x", b.drawn(3, 4, 1, 1))
    reduced("ReduceMean", (2, 3), image, keepdims=0), reduced("ReduceMax", (1,), image), reduced("ReduceSum", (0, 3), image, keepdims=0)
    b.out("Reshape", image, b.integers(2, 90)), b.out("Reshape", image, b.integers(2, 3, -1)), b.out("Add", image, b.drawn(5, 6)), b.out("Softmax", image, axis=1)


def limits(b):
    if b.opset < 11:
        b.out("Clip", "x", min=-0.3, max=0.4), b.out("Clip", "x", min=0.0)
    else:
        b.out("Clip", "x", b.tensor(-0.3), b.tensor(0.4)), b.out("Clip", "x", "", b.tensor(0.1)), b.out("Clip", "x", b.tensor(0.0))
    if b.opset >= 18:
        b.out("HardSwish", "x"), b.out("Mish", "x"), b.out("Celu", "x", alpha=0.6)
        b.out("Where", b.node("And", b.node("GreaterOrEqual", "x", b.tensor(-0.5)), b.node("LessOrEqual", "x", b.tensor(0.5))), "x", b.tensor(0.0))
    if b.opset >= 21:
        b.out("Gelu", "x"), b.out("Gelu", "x", approximate="tanh")


def branches(opset):
    b = Branches(opset)
    for part in (pointwise, windows, norms, moves, resizes, products, limits):
        part(b)
    return b.model()
