"""One golden per op: the cases of its table in src/ops, in PyTorch's axis order, f32 inputs and the float64 result.

An op's function yields (case, inputs, y). A test holds names and shapes against the table.
"""

import math

import torch

from golden.files import Tensors, normal

F = torch.nn.functional


def fill(op, case, **shapes):
    """Standard normal inputs of the given shapes; None is left out."""
    return {name: normal((op, case, name), shape) for name, shape in shapes.items() if shape is not None}


def affine(op, case, name, shape, scale, shift=0.0):
    return normal((op, case, name), shape, scale, shift)


def activation():
    functions = {
        "silu": F.silu,
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "mish": F.mish,
        "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
        "tanh_clamp": lambda x: torch.tanh(x / 3) * 3,
        "affine": lambda x: -1.5 * x + 0.25,
    }
    for case, function in functions.items():
        x = affine("activation", case, "x", (3, 5, 31), 4.0)
        yield case, {"x": x}, function(x)


def group_norm():
    for case, shape, groups, eps, silu, shift in (
        ("plain", (2, 12, 5, 3), 4, 1e-5, False, 0.0),
        ("silu", (2, 64, 8, 8), 32, 1e-5, True, 0.0),
        ("one_group", (1, 6, 4, 4), 1, 1e-6, False, 0.0),
        ("instance", (3, 7, 1, 9), 7, 1e-5, True, 0.0),
        ("far_mean", (1, 8, 16, 16), 2, 1e-5, False, 100.0),
    ):
        x = affine("group_norm", case, "x", shape, 1.0, shift)
        weight = affine("group_norm", case, "weight", shape[1:2], 0.5, 1.0)
        bias = affine("group_norm", case, "bias", shape[1:2], 1.0)
        y = F.group_norm(x, groups, weight, bias, eps)
        yield case, {"x": x, "weight": weight, "bias": bias}, F.silu(y) if silu else y


def conv2d():
    same = {"padding": (1, 1, 1, 1)}
    for case, x, weight, bias, geometry in (
        ("same_3x3", (2, 5, 7, 6), (8, 5, 3, 3), True, same),
        ("pointwise", (1, 12, 4, 5), (8, 12, 1, 1), True, {}),
        ("pointwise_odd", (2, 3, 5, 3), (7, 3, 1, 1), False, {}),
        ("stride_2", (1, 8, 9, 8), (12, 8, 3, 3), True, {**same, "stride": 2}),
        ("pad_after", (1, 4, 8, 8), (4, 4, 3, 3), True, {"padding": (0, 1, 0, 1), "stride": 2}),
        ("uneven", (1, 3, 9, 11), (4, 3, 5, 2), True, {"padding": (2, 1, 0, 3), "stride": (2, 3), "dilation": (2, 1)}),
        ("dilated", (1, 4, 9, 9), (8, 4, 3, 3), False, {"padding": (2, 2, 2, 2), "dilation": 2}),
        ("grouped", (2, 8, 5, 5), (12, 2, 3, 3), True, {**same, "groups": 4}),
        ("depthwise", (1, 6, 6, 5), (6, 1, 3, 3), True, {**same, "groups": 6}),
        ("stem_7x7", (1, 3, 14, 14), (8, 3, 7, 7), False, {"padding": (3, 3, 3, 3), "stride": 2}),
        ("to_rgb", (1, 8, 6, 6), (3, 8, 3, 3), True, same),
    ):
        inputs = fill("conv2d", case, x=x, weight=weight, bias=weight[:1] if bias else None)
        top, bottom, left, right = geometry.get("padding", (0, 0, 0, 0))
        options = {key: value for key, value in geometry.items() if key != "padding"}
        padded = F.pad(inputs["x"], (left, right, top, bottom))
        yield case, inputs, F.conv2d(padded, inputs["weight"], inputs.get("bias"), **options)


def matmul():
    for case, x, out, bias in (("linear", (3, 24), 20, True), ("linear_no_bias", (2, 5, 7), 12, False), ("linear_odd", (1, 33), 7, True)):
        inputs = fill("matmul", case, x=x, weight=(out, x[-1]), bias=(out,) if bias else None)
        yield case, inputs, F.linear(inputs["x"], inputs["weight"], inputs.get("bias"))
    for case, b, m, k, n in (("batched", 3, 5, 9, 8), ("batched_tall", 2, 17, 4, 3)):
        inputs = fill("matmul", case, a=(b, m, k), b=(b, k, n))
        yield case, inputs, inputs["a"] @ inputs["b"]


def attention():
    for case, batch, queries, keys, heads, dim in (
        ("self", 2, 16, 16, 3, 8),
        ("cross", 2, 9, 77, 2, 5),
        ("one_key", 1, 4, 1, 1, 6),
        ("one_head_wide", 1, 7, 11, 1, 72),
    ):
        width = heads * dim
        inputs = fill("attention", case, q=(batch, queries, width), k=(batch, keys, width), v=(batch, keys, width))
        q, k, v = (x.unflatten(2, (heads, dim)).transpose(1, 2) for x in inputs.values())
        y = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(dim), dim=3) @ v
        yield case, inputs, y.transpose(1, 2).flatten(2)


OPS = (activation, attention, conv2d, group_norm, matmul)


def fixture(op):
    tensors = {}
    for case, inputs, y in op():
        tensors |= {f"{case}/{name}": value for name, value in inputs.items()} | {f"{case}/y": y}
    return {f"ops/{op.__name__}.safetensors": Tensors(tensors)}


FIXTURES = {f"ops/{op.__name__}": lambda op=op: fixture(op) for op in OPS}
