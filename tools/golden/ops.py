"""One golden per op: the cases of its table in src/ops, in PyTorch's axis order, f32 inputs and the float64 result.

An op's function yields (case, inputs, y). A test holds names and shapes against the table.
"""

import math

import torch

from golden.files import Tensors, as_f32, normal, random, uniform

F = torch.nn.functional


def fill(op, case, **shapes):
    """Standard normal inputs of the given shapes; None is left out."""
    return {name: normal((op, case, name), shape) for name, shape in shapes.items() if shape is not None}


def affine(op, case, name, shape, scale, shift=0.0):
    return normal((op, case, name), shape, scale, shift)


def bits_as_i32(values):
    """u32 values in an i64 tensor, as the i32 with the same bits."""
    return torch.where(values >= 2**31, values - 2**32, values).int()


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
        "relu6": F.relu6,
        "clamp": lambda x: x.clamp(-2.5, 0.75),
        "hard_sigmoid": F.hardsigmoid,
        "hard_swish": F.hardswish,
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "exp": torch.exp,
        "log": torch.log,
        "sqrt": torch.sqrt,
        "erf": torch.erf,
        "abs": torch.abs,
        "elu": lambda x: F.elu(x, 0.75),
        "softplus": lambda x: F.softplus(x, threshold=1000),
        "reciprocal": torch.reciprocal,
        "sin": torch.sin,
        "cos": torch.cos,
        "floor": torch.floor,
        "softsign": F.softsign,
    }
    for case, function in functions.items():
        if case in ("log", "sqrt", "reciprocal"):
            x = uniform(("activation", case, "x"), (7, 31), 0.002, 80.0)
        else:
            x = affine("activation", case, "x", (7, 31), 4.0)
        yield case, {"x": x}, function(x)


def convert():
    for case, shape, scale in (("to_f16", (3, 5, 31), 1.0), ("to_f16_large_values", (301,), 9000.0), ("to_f16_small_values", (301,), 0.01)):
        x = normal(("convert", case, "x"), shape, scale)
        yield case, {"x": x}, x.half().float()
    for case, shape in (("to_f32", (3, 5, 31)), ("to_f32_one", (1,))):
        x = normal(("convert", case, "x"), shape).half().float()
        yield case, {"x": x}, x


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


def moments_of(x, groups, chunk):
    """Mean and variance per (n, chunk of pixels, g): [N, P, 2 G]."""
    n, c = x.shape[:2]
    parts = x.double().reshape(n, groups, c // groups, -1).split(chunk, 3)
    return torch.stack([torch.stack([part.mean((2, 3)), part.var((2, 3), unbiased=False)], -1) for part in parts], 1).flatten(2)


def group_moments():
    for case, shape, groups, chunk, shift in (
        ("even", (2, 12, 6, 4), 4, 8, 0.0),
        ("uneven", (1, 20, 5, 7), 2, 8, 0.5),
        ("far_mean", (1, 8, 16, 16), 2, 64, 100.0),
        ("odd_channels", (2, 9, 3, 3), 3, 4, 0.0),
    ):
        x = affine("group_moments", case, "x", shape, 1.0, shift)
        yield case, {"x": x}, moments_of(x, groups, chunk)


def group_norm_apply():
    for case, shape, groups, chunk, silu in (
        ("even", (2, 12, 6, 4), 4, 8, False),
        ("uneven", (1, 20, 5, 7), 2, 8, True),
        ("one_group", (2, 8, 3, 3), 1, 2, False),
    ):
        op, pixels = "group_norm_apply", shape[2] * shape[3]
        x = normal((op, case, "x"), shape)
        weight = affine(op, case, "weight", shape[1:2], 0.5, 1.0)
        bias = affine(op, case, "bias", shape[1:2], 1.0)
        moments = uniform((op, case, "moments"), (shape[0], -(-pixels // chunk), 2 * groups), 0.5, 2.0)
        mean, variance = moments.double().unflatten(2, (groups, 2)).unbind(-1)
        share = torch.tensor([min(chunk, pixels - at) / pixels for at in range(0, pixels, chunk)], dtype=torch.float64)[None, :, None]
        whole = (share * mean).sum(1, keepdim=True)
        spread = (share * (variance + (mean - whole) ** 2)).sum(1)
        whole, spread = (v.repeat_interleave(shape[1] // groups, 1)[..., None, None] for v in (whole[:, 0], spread))
        y = (x.double() - whole) / (spread + 1e-5).sqrt() * weight.double()[:, None, None] + bias.double()[:, None, None]
        yield case, {"x": x, "weight": weight, "bias": bias, "moments": moments}, F.silu(y) if silu else y


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
    for case, batch, queries, keys, heads, dim, (rows, bias_heads) in (
        ("bias_of_windows", 4, 9, 9, 2, 4, (2, 2)),
        ("bias_of_all_heads", 2, 5, 7, 3, 5, (1, 1)),
        ("causal", 2, 13, 13, 2, 8, (1, 1)),
    ):
        width = heads * dim
        inputs = fill("attention", case, q=(batch, queries, width), k=(batch, keys, width), v=(batch, keys, width), bias=(rows, bias_heads, queries, keys))
        if case == "causal":
            inputs["bias"] = torch.full((1, 1, queries, keys), -1e30).triu(1).double()
        q, k, v = (inputs[name].unflatten(2, (heads, dim)).transpose(1, 2) for name in "qkv")
        y = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(dim) + inputs["bias"].repeat(batch // rows, 1, 1, 1), dim=3) @ v
        yield case, inputs, y.transpose(1, 2).flatten(2)


def channels_last(x):
    """The tape's axis order, in which ops count axes."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def channels_first(x):
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def binary():
    for case, a, b, operator in (
        ("add", (3, 5, 31), (3, 5, 31), torch.add),
        ("sub", (6, 7, 9), (6, 7, 9), torch.sub),
        ("mul", (467,), (467,), torch.mul),
        ("one", (1,), (1,), torch.add),
        ("div", (5, 43), (0.25, 80.0, 5, 43), torch.div),
        ("min", (5, 43), (5, 43), torch.minimum),
        ("max", (5, 43), (5, 43), torch.maximum),
        ("pow", (0.05, 6.0, 7, 67), (-3.0, 4.0, 7, 67), torch.pow),
        ("pow_square", (7, 67), (2.0, 2.0, 1), torch.pow),
        ("pow_cube", (7, 67), (3.0, 3.0, 1), torch.pow),
        ("pow_of_zero_or_one", (3, 37), (3, 37), torch.pow),
        ("by_scalar", (3, 5, 7), (), torch.sub),
        ("scalar_by", (1,), (3, 41), torch.sub),
        ("by_channel", (2, 7, 5, 3), (7,), torch.mul),
        ("by_item_and_channel", (2, 7, 5, 3), (2, 7, 1, 1), torch.sub),
        ("by_pixel", (2, 7, 5, 3), (2, 1, 5, 3), torch.sub),
        ("outer", (11, 1), (1, 13), torch.sub),
        ("both_repeat", (2, 1, 3, 1, 5, 1), (3, 1, 4, 1, 3), torch.sub),
    ):

        def values(name, shape):
            """A shape that begins with fractions begins with the bounds of a uniform distribution."""
            if shape and isinstance(shape[0], float):
                return uniform(("binary", case, name), shape[2:], *shape[:2])
            drawn = normal(("binary", case, name), shape)
            return (drawn > 0).double() if case == "pow_of_zero_or_one" else drawn

        inputs = {"a": values("a", a), "b": values("b", b)}
        yield case, inputs, channels_first(operator(*map(channels_last, inputs.values())))


def permute():
    for case, shape, order in (
        ("transpose", (13, 37), (1, 0)),
        ("tokens", (2, 9, 5), (0, 2, 1)),
        ("to_channels_first", (2, 7, 5, 3), (0, 3, 1, 2)),
        ("reversed", (2, 7, 5, 3), (3, 2, 1, 0)),
        ("one_pixel", (3, 5, 1, 1), (0, 3, 1, 2)),
        ("heads", (2, 3, 5, 2, 7), (3, 0, 2, 1, 4)),
        ("windows", (2, 3, 4, 2, 5, 3), (0, 1, 3, 2, 4, 5)),
        ("six_axes", (2, 3, 2, 5, 3, 2), (5, 3, 1, 4, 2, 0)),
    ):
        x = normal(("permute", case, "x"), shape)
        yield case, {"x": x}, channels_first(channels_last(x).permute(order))


def reduce():
    plain, near_one, far, below = (1.0, 0.0), (0.125, 1.0), (1.0, 100.0), (1.0, -100.0)
    functions = {
        "sum": torch.sum,
        "mean": torch.mean,
        "max": torch.amax,
        "min": torch.amin,
        "l2": lambda x, dim: torch.linalg.vector_norm(x, dim=dim),
        "prod": torch.prod,
    }
    for case, shape, axis, function, (scale, shift) in (
        ("sum", (3, 17, 5), 1, "sum", plain),
        ("mean", (5, 37), 1, "mean", plain),
        ("max", (3, 17, 5), 1, "max", far),
        ("min", (3, 17, 5), 2, "min", far),
        ("l2", (7, 43), 1, "l2", plain),
        ("prod", (3, 19, 5), 1, "prod", near_one),
        ("one_axis", (67,), 0, "sum", near_one),
        ("of_one", (5, 1, 7), 1, "l2", plain),
        ("across_the_batch", (5, 3, 7), 0, "mean", plain),
        ("rows_of_images", (2, 7, 5, 3), 1, "mean", plain),
        ("channels_of_images", (2, 7, 5, 3), 3, "max", plain),
        ("tree_sum", (3, 301), 1, "sum", near_one),
        ("tree_mean", (2, 129, 3), 1, "mean", plain),
        ("tree_max", (3, 301), 1, "max", below),
        ("tree_min", (2, 129, 3), 1, "min", far),
        ("tree_l2", (3, 301), 1, "l2", plain),
        ("tree_prod", (3, 65), 1, "prod", near_one),
    ):
        x = affine("reduce", case, "x", shape, scale, shift)
        yield case, {"x": x}, functions[function](channels_last(x), dim=axis)


def gated():
    for case, shape, function in (
        ("geglu", (2, 7, 26), F.gelu),
        ("swiglu", (11, 14), F.silu),
        ("glu", (38,), torch.sigmoid),
        ("bilinear", (3, 2), lambda x: x),
        ("constants", (5, 22), lambda x: x.clamp(-0.5, 1.25)),
        ("images", (2, 6, 5, 3), F.gelu),
    ):
        x = affine("gated", case, "x", shape, 2.0)
        half, gate = x.chunk(2, dim=1 if len(shape) == 4 else -1)
        yield case, {"x": x}, half * function(gate)


def channel_affine():
    for case, shape, relu in (
        ("images", (2, 7, 5, 3), False),
        ("images_relu", (2, 13, 3, 5), True),
        ("vectors", (9, 31), False),
        ("tokens_relu", (3, 5, 17), True),
        ("one_channel", (2, 1, 5, 7), False),
    ):
        x = normal(("channel_affine", case, "x"), shape)
        channels = (shape[1 if len(shape) == 4 else -1],)
        scale = affine("channel_affine", case, "scale", channels, 0.5, 1.0)
        shift = normal(("channel_affine", case, "shift"), channels)
        y = channels_first(channels_last(x) * scale + shift)
        yield case, {"x": x, "scale": scale, "shift": shift}, F.relu(y) if relu else y


def concat():
    for case, a, b in (
        ("images", (2, 5, 3, 7), (2, 4, 3, 7)),
        ("one_channel", (1, 4, 5, 5), (1, 1, 5, 5)),
        ("tokens", (2, 9, 3), (2, 9, 10)),
        ("rank_1", (17,), (6,)),
    ):
        inputs = fill("concat", case, a=a, b=b)
        yield case, inputs, torch.cat(list(inputs.values()), dim=1 if len(a) == 4 else -1)


def count_nonfinite():
    for case, shape, every in (("none", (3, 5, 31), None), ("some", (2, 301), 7), ("all", (37,), 1)):
        x = fill("count_nonfinite", case, x=shape)["x"].flatten()
        if every:
            places = torch.arange(every - 1, x.numel(), every)
            x[places] = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)[torch.arange(len(places)) % 3]
        yield case, {"x": x.reshape(shape)}, (~torch.isfinite(x)).sum().int().reshape(1)


def divide():
    for case, shape, divisors in (("per_item", (3, 2, 5, 7), 3), ("one_for_all", (3, 4, 5, 2), 1), ("vector", (67,), 67)):
        x, d = normal(("divide", case, "x"), shape), uniform(("divide", case, "d"), (divisors,), 0.25, 80.0)
        yield case, {"x": x, "d": d}, x / d.reshape(-1, *[1] * (len(shape) - 1))


def embedding():
    for case, table, count in (("classes", (8, 45), 11), ("coefficients", (50, 8), 1), ("one_row", (1, 7), 3)):
        weight = fill("embedding", case, table=table)["table"]
        index = torch.from_numpy(random("embedding", case, "index").integers(0, table[0], count))
        yield case, {"table": weight, "index": index.int()}, F.embedding(index, weight)


def layer_norm():
    for case, shape, eps, shift in (
        ("tokens", (2, 7, 45), 1e-5, 0.0),
        ("narrow", (13, 3), 1e-6, 0.0),
        ("wide", (1, 3, 301), 1e-5, 0.0),
        ("far_mean", (2, 3, 96), 1e-5, 100.0),
        ("large_eps", (5, 64), 0.5, 0.0),
    ):
        x = affine("layer_norm", case, "x", shape, 1.0, shift)
        weight = affine("layer_norm", case, "weight", shape[-1:], 0.5, 1.0)
        bias = affine("layer_norm", case, "bias", shape[-1:], 1.0)
        yield case, {"x": x, "weight": weight, "bias": bias}, F.layer_norm(x, shape[-1:], weight, bias, eps)


def modulate():
    for case, shape, scaled, silu in (
        ("add_channel", (2, 7, 5, 3), False, False),
        ("add_channel_rank_2", (3, 5), False, False),
        ("scale_shift", (3, 5, 4, 7), True, False),
        ("scale_shift_silu", (2, 6, 3, 5), True, True),
    ):
        n, channels = shape[:2]
        vector = {"scale_shift": (n, 2 * channels)} if scaled else {"shift": (n, channels)}
        inputs = fill("modulate", case, x=shape, **vector)
        per_channel = list(inputs.values())[1].reshape(n, -1, *[1] * (len(shape) - 2))
        scale, shift = per_channel.chunk(2, dim=1) if scaled else (0.0, per_channel)
        y = inputs["x"] * (1 + scale) + shift
        yield case, inputs, F.silu(y) if silu else y


def nearest_row():
    for case, shape, table in (("images", (2, 3, 5, 7), (45, 3)), ("vectors", (31, 4), (64, 4)), ("one_row", (9, 5), (1, 5)), ("one_channel", (3, 1, 4, 5), (17, 1))):
        inputs = fill("nearest_row", case, x=shape, table=table)
        x = channels_last(inputs["x"]) if len(shape) == 4 else inputs["x"]
        nearest = torch.cdist(x.reshape(-1, table[1]), inputs["table"]).argmin(dim=1)
        y = inputs["table"][nearest].reshape(x.shape)
        yield case, inputs, channels_first(y) if len(shape) == 4 else y


def pool2d():
    for case, x, mode, kernel, stride, padding, count_padding in (
        ("max", (2, 5, 9, 8), "max", (3, 3), (2, 2), (1, 1, 1, 1), False),
        ("max_uneven", (1, 3, 7, 11), "max", (4, 2), (1, 3), (0, 2, 1, 0), False),
        ("average", (2, 5, 8, 7), "average", (2, 2), (2, 2), (0, 0, 0, 0), True),
        ("average_padding", (1, 4, 7, 9), "average", (3, 3), (2, 2), (1, 1, 1, 1), True),
        ("average_padding_apart", (2, 3, 7, 9), "average", (3, 3), (2, 2), (1, 1, 1, 1), False),
        ("average_uneven", (1, 3, 8, 6), "average", (3, 4), (3, 1), (2, 0, 1, 3), False),
    ):
        x = affine("pool2d", case, "x", x, 1.0, -2.0)
        top, bottom, left, right = padding
        sides = (left, right, top, bottom)
        if mode == "max":
            y = F.max_pool2d(F.pad(x, sides, value=-math.inf), kernel, stride)
        else:
            y = F.avg_pool2d(F.pad(x, sides), kernel, stride)
            # The share of each window that is not padding.
            y = y if count_padding else y / F.avg_pool2d(F.pad(torch.ones_like(x), sides), kernel, stride)
        yield case, {"x": x}, y
    for case, shape in (("global", (2, 13, 5, 7)), ("global_one_pixel", (3, 9, 1, 1))):
        x = affine("pool2d", case, "x", shape, 1.0)
        yield case, {"x": x}, F.adaptive_avg_pool2d(x, 1).flatten(1)


def slice():
    for case, shape, axis, start, length in (
        ("channels", (2, 7, 5, 3), 1, 2, 4),
        ("tokens", (3, 9, 5), 1, 0, 1),
        ("rows", (7, 3, 2), 0, 3, 4),
        ("rank_1", (17,), 0, 16, 1),
    ):
        inputs = fill("slice", case, x=shape)
        yield case, inputs, inputs["x"].narrow(axis, start, length)


def softmax():
    for case, shape, scale, shift in (
        ("logits", (5, 7), 1.0, 0.0),
        ("attention", (6, 5, 37), 3.0, 0.0),
        ("wide", (3, 401), 1.0, 0.0),
        ("one", (4, 1), 1.0, 0.0),
        ("far", (3, 65), 20.0, 1000.0),
    ):
        x = affine("softmax", case, "x", shape, scale, shift)
        yield case, {"x": x}, torch.softmax(x, dim=-1)


def timestep_embedding():
    for case, n, f, width, sin_first, log, timesteps, frequencies in (
        ("cos_first", 3, 32, 64, False, False, (0, 1000), (0, 1)),
        ("sin_first", 3, 17, 34, True, False, (0, 1000), (0, 1)),
        ("odd_width", 2, 9, 19, False, False, (0, 1000), (0, 1)),
        ("wide_padding", 2, 5, 16, True, False, (0, 1000), (0, 1)),
        ("far", 5, 23, 46, True, False, (-1000, 1000), (-100, 100)),
        ("near_zero", 5, 7, 14, True, False, (-1, 1), (-1e-3, 1e-3)),
        ("log", 4, 16, 32, True, True, (0.002, 80), None),
        ("log_cos_first", 4, 5, 11, False, True, (0.002, 80), None),
    ):
        names = ("timestep_embedding", case)
        t = uniform((*names, "timesteps"), (n,), *timesteps)
        frequency = uniform((*names, "frequencies"), (f,), *frequencies) if frequencies else normal((*names, "frequencies"), (f,), 4.0)
        # The angle is rounded to f32, as in PyTorch; the sines are not.
        angle = ((t.log() if log else t).float()[:, None] * frequency.float()[None, :]).double()
        halves = (angle.sin(), angle.cos()) if sin_first else (angle.cos(), angle.sin())
        yield case, {"timesteps": t, "frequencies": frequency}, F.pad(torch.cat(halves, dim=1), (0, width - 2 * f))


def upsample_nearest():
    for case, shape, factor in (("twice", (2, 5, 3, 7), 2), ("three_times", (1, 3, 4, 5), 3), ("once", (2, 3, 3, 1), 1)):
        x = fill("upsample_nearest", case, x=shape)["x"]
        yield case, {"x": x}, F.interpolate(x, scale_factor=factor, mode="nearest")


def image_to_tensor():
    imagenet = ((4.366812, 4.464286, 4.4444445), (-2.117904, -2.0357144, -1.8044444))
    for case, shape, (scale, shift) in (
        ("unit", (2, 5, 7), ((1.0,) * 3, (0.0,) * 3)),
        ("signed", (1, 9, 3), ((2.0,) * 3, (-1.0,) * 3)),
        ("imagenet", (2, 3, 11), imagenet),
    ):
        pixels = torch.from_numpy(random("image_to_tensor", case, "pixels").integers(0, 2**32, shape))
        levels = torch.stack([(pixels >> bits) & 255 for bits in (0, 8, 16)], dim=1).double()
        scale, shift = (as_f32(values).reshape(1, 3, 1, 1) for values in (scale, shift))
        yield case, {"pixels": bits_as_i32(pixels)}, levels / 255 * scale + shift


def solver_step():
    small = (2, 3, 5, 7)
    for case, shape, rows, known, variance, slots, scale, clip in (
        ("no_memory", small, 1, False, False, 1, None, None),
        ("two_slots", small, 1, False, False, 2, None, None),
        ("six_slots", (2, 3, 3, 5), 2, False, False, 6, None, None),
        ("guided", small, 1, False, False, 4, 7.5, None),
        ("clip", small, 1, False, False, 1, None, 0.25),
        ("variance", small, 1, False, True, 1, None, None),
        ("reimpose", small, 1, True, False, 2, None, None),
        ("row_of_each", (3, 4, 3, 3), 3, True, True, 3, None, None),
        ("everything", (2, 4, 5, 3), 2, True, True, 4, 7.5, 1.0),
    ):
        n, _, height, width = shape
        outputs = (2 * n if scale else n, *shape[1:])
        inputs = fill("solver_step", case, model_output=outputs, state=(slots * n, *shape[1:]), z0=shape, noise=shape, variance_noise=shape)
        inputs["hole"] = uniform(("solver_step", case, "hole"), (n, 1, height, width)).round()
        inputs["row"] = uniform(("solver_step", case, "row"), (rows, 4 + slots * (slots + 2)), -1.0, 1.0)
        from_latents, from_output, known_z0, known_noise, *matrix = columns(inputs["row"])
        state = inputs["state"].chunk(slots)
        converted = from_latents * state[0] + from_output * guided(inputs["model_output"], scale)
        if clip:
            converted = converted.clamp(-clip, clip)
        read = (*state, converted, inputs["variance_noise"] if variance else torch.zeros(()))
        y = [sum(a * value for a, value in zip(matrix[s * (slots + 2) :], read)) for s in range(slots)]
        if known:
            y[0] = inputs["hole"] * y[0] + (1 - inputs["hole"]) * (known_z0 * inputs["z0"] + known_noise * inputs["noise"])
        yield case, inputs, torch.cat(y)


def tensor_to_image():
    for case, (n, height, width), scale, shift in (
        ("signed", (2, 5, 7), (0.5,) * 3, (0.5,) * 3),
        ("unit", (1, 9, 11), (1.0,) * 3, (0.0,) * 3),
        ("per_channel", (2, 3, 13), (0.5, 1.0, -0.25), (0.5, 0.0, 0.625)),
    ):
        x = uniform(("tensor_to_image", case, "x"), (n, 3, height, width), -1.3, 1.3)
        scale, shift = (as_f32(values).reshape(1, 3, 1, 1) for values in (scale, shift))
        levels = ((x * scale + shift).clamp(0, 1) * 255 + 0.5).floor().long()
        yield case, {"x": x}, bits_as_i32(levels[:, 0] | levels[:, 1] << 8 | levels[:, 2] << 16 | 255 << 24)


def predicted(prediction, output, x, a, b):
    """x_0 and epsilon, where a = sqrt(alpha_bar_t) and b = sqrt(1 - alpha_bar_t)."""
    if prediction == "v":
        return a * x - b * output, a * output + b * x
    if prediction == "sample":
        return output, (x - a * output) / b
    return (x - b * output) / a, output


def guided(output, scale):
    if scale is None:
        return output
    uncond, cond = output.chunk(2)
    return uncond + scale * (cond - uncond)


def columns(row):
    """The coefficient table's columns, each [rows, 1, 1, 1]."""
    return [column.reshape(-1, 1, 1, 1) for column in row.unbind(1)]


def ddim_step():
    small = (2, 3, 5, 7)
    for case, shape, rows, known, variance, prediction, scale, clip, threshold in (
        ("epsilon", small, 1, False, False, "epsilon", None, None, False),
        ("v_prediction", small, 1, False, False, "v", None, None, False),
        ("sample", small, 1, False, False, "sample", None, None, False),
        ("guided", small, 1, False, False, "epsilon", 7.5, None, False),
        ("clip", small, 1, False, False, "epsilon", None, 0.75, False),
        ("threshold", small, 2, False, False, "v", None, 0.1, True),
        ("variance", small, 1, False, True, "epsilon", None, None, False),
        ("reimpose", small, 1, True, False, "epsilon", None, None, False),
        ("row_of_each", (3, 4, 3, 3), 3, True, True, "v", None, None, False),
        ("everything", (2, 4, 5, 3), 1, True, True, "epsilon", 7.5, 1.0, False),
        ("everything_guided_v", (3, 1, 5, 3), 3, True, True, "v", 2.0, None, True),
    ):
        n, _, height, width = shape
        outputs = (2 * n if scale else n, *shape[1:])
        inputs = fill("ddim_step", case, model_output=outputs, latents=shape, z0=shape, noise=shape, variance_noise=shape)
        inputs["hole"] = uniform(("ddim_step", case, "hole"), (n, 1, height, width)).round()
        inputs["row"] = uniform(("ddim_step", case, "row"), (rows, 8), 0.2, 1.0)
        a, b, a_prev, direction, sigma, known_a, known_b, s = columns(inputs["row"])
        x0, epsilon = predicted(prediction, guided(inputs["model_output"], scale), inputs["latents"], a, b)
        if threshold:
            x0 = torch.maximum(torch.minimum(x0, s), -s) / s
        elif clip:
            x0 = x0.clamp(-clip, clip)
        y = a_prev * x0 + direction * epsilon + (sigma * inputs["variance_noise"] if variance else 0)
        if known:
            y = inputs["hole"] * y + (1 - inputs["hole"]) * (known_a * inputs["z0"] + known_b * inputs["noise"])
        yield case, inputs, y


def threshold_quantile():
    for case, shape, rows, prediction, scale, ratio, largest in (
        ("epsilon", (2, 3, 5, 7), 1, "epsilon", None, 0.995, 100.0),
        ("v_prediction", (2, 3, 5, 7), 2, "v", None, 0.9, 100.0),
        ("sample", (3, 4, 3, 3), 1, "sample", None, 0.5, 100.0),
        ("guided", (2, 3, 5, 5), 2, "epsilon", 3.0, 0.8, 100.0),
        ("largest", (2, 3, 5, 5), 1, "sample", None, 0.995, 1.5),
        ("at_least_one", (2, 3, 5, 5), 1, "sample", None, 0.01, 1.5),
        ("maximum", (1, 1, 3, 5), 1, "sample", None, 1.0, 100.0),
        ("one_value", (2, 1, 1, 1), 1, "sample", None, 0.995, 100.0),
    ):
        n = shape[0]
        inputs = {
            "model_output": affine("threshold_quantile", case, "model_output", (2 * n if scale else n, *shape[1:]), 3.0, 0.5),
            "latents": affine("threshold_quantile", case, "latents", shape, 1.0),
            "row": uniform(("threshold_quantile", case, "row"), (rows, 8), 0.2, 1.0),
        }
        a, b, *_ = columns(inputs["row"])
        x0, _ = predicted(prediction, guided(inputs["model_output"], scale), inputs["latents"], a, b)
        y = inputs["row"].expand(n, 8).clone()
        y[:, 7] = torch.quantile(x0.abs().flatten(1), ratio, dim=1).clamp(1, largest)
        yield case, inputs, y


def repeat():
    for case, shape, times in (("images", (2, 5, 3, 7), 2), ("tokens", (3, 4, 5), 3), ("rank_1", (1,), 9), ("once", (4, 3), 1)):
        x = normal(("repeat", case, "x"), shape)
        yield case, {"x": x}, x.repeat(times, *[1] * (x.ndim - 1))


def resize_bilinear():
    for case, shape, size, align_corners in (
        ("eight_times", (1, 2, 3, 4), (24, 32), False),
        ("odd_ratio", (2, 3, 5, 7), (13, 11), False),
        ("smaller", (1, 3, 13, 9), (5, 4), False),
        ("same", (2, 3, 4, 5), (4, 5), False),
        ("of_one_pixel", (2, 7, 1, 1), (6, 9), False),
        ("to_one_pixel", (1, 3, 6, 9), (1, 1), False),
        ("one_axis", (1, 2, 6, 5), (6, 17), False),
        ("corners", (2, 3, 5, 7), (13, 11), True),
        ("corners_smaller", (1, 3, 13, 9), (5, 4), True),
        ("corners_to_one_pixel", (1, 3, 6, 9), (1, 1), True),
        ("corners_of_one_pixel", (2, 7, 1, 1), (6, 9), True),
    ):
        x = normal(("resize_bilinear", case, "x"), shape)
        yield case, {"x": x}, F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


OPS = (
    activation,
    attention,
    binary,
    channel_affine,
    concat,
    conv2d,
    convert,
    count_nonfinite,
    ddim_step,
    divide,
    embedding,
    gated,
    group_moments,
    group_norm,
    group_norm_apply,
    image_to_tensor,
    layer_norm,
    matmul,
    modulate,
    nearest_row,
    permute,
    pool2d,
    reduce,
    repeat,
    resize_bilinear,
    slice,
    softmax,
    solver_step,
    tensor_to_image,
    threshold_quantile,
    timestep_embedding,
    upsample_nearest,
)


def fixture(op):
    tensors = {}
    for case, inputs, y in op():
        tensors |= {f"{case}/{name}": value for name, value in inputs.items()} | {f"{case}/y": y}
    return {f"ops/{op.__name__}.safetensors": Tensors(tensors)}


FIXTURES = {f"ops/{op.__name__}": lambda op=op: fixture(op) for op in OPS}
