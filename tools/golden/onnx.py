"""ONNX files as torch.onnx writes them, by both of its exporters and over the opsets, with onnxruntime's outputs.

A graph is the exporter's; the values of its larger tensors are functions of their names (golden.recipe) and stand in a file of
their own beside the graph, which the test writes: models/onnx-<name> holds model.onnx, weights.json and onnx.safetensors.
Node names are the paths of the taps.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import timm
import torch
import torchvision
from onnx import numpy_helper
from torch import nn

from golden.files import ROOT, Tensors, normal, smooth_image
from golden.onnx_operators import X, branches
from golden.recipe import Table, sampled, values

CLASSES = 5
# Tensors of fewer values are the exporter's own constants and stay as they are.
SMALL = 24
WEIGHTS = "weights.bin"
TAPPED_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Resize", "Softmax")
TAPS = 24


class Autoencoder(nn.Module):
    """What a style or restoration network is made of: instance norms, PReLU, strides down, resizing and transposed convolution up."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.PReLU(8),
            nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.GroupNorm(3, 12), nn.ELU(), nn.AvgPool2d(2, ceil_mode=True),
        )  # fmt: skip
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(12, 8, 3, padding=1), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, groups=2), nn.Softplus(),
            nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, dilation=1), nn.Tanh(),
        )  # fmt: skip
        self.shuffle = nn.PixelShuffle(2)
        self.last = nn.Conv2d(6, 12, 1)

    def forward(self, x):
        h = self.up(self.down(x))
        h = nn.functional.interpolate(h, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.shuffle(self.last(h))


class Shapes(nn.Module):
    """Shape arithmetic and the moves of data between the products: rolls, windows, tokens, masks, normalisation written out."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.scale = nn.Parameter(values("scale", (8, 1, 1), 0.5, 1.0).float())
        self.tokens = nn.Parameter(values("tokens", (1, 2, 8), 1.0, 0.0).float())
        self.last = nn.Linear(16, CLASSES)
        self.register_buffer("mask", torch.ones(5, 5).tril().bool())

    def forward(self, x):
        h = self.conv(x) * self.scale
        n, c, rows, columns = h.shape
        h = torch.roll(h, (1, -2), (2, 3)).view(n, c, rows // 2, 2, columns // 2, 2).permute(0, 2, 4, 3, 5, 1)
        h = h.reshape(n, -1, 4 * c).mean(-1, keepdim=True) * torch.ones(1, 1, c) + h.flatten(1, 2)[..., 0, 0, :]
        h = torch.cat([self.tokens.expand(n, -1, -1), h], dim=1)[:, :5]
        scores = (h @ h.transpose(1, 2) / c**0.5).masked_fill(~self.mask, -1e9)
        h = scores.softmax(-1) @ h
        h = torch.cat([h[:, ::2].amax(1), (h**2).sum(1).clamp(max=6.0).sqrt()], dim=1)
        first, second = h.split([6, 10], dim=-1)
        return self.last(torch.cat([second, first], dim=-1)), torch.stack([first.log_softmax(-1), first.abs().neg()], 1)


@dataclass
class Graph:
    """A module and how it is exported."""

    module: nn.Module
    size: tuple
    opset: int
    dynamo: bool = False
    # Symbols for the batch, and for rows and columns.
    free_batch: bool = True
    folded: bool = True
    inputs: tuple = ("pixel_values",)
    outputs: tuple = ("logits",)


def exported(graph):
    """The ModelProto without what only describes it."""
    module, x = graph.module.eval(), torch.zeros(graph.size)
    buffer, names = io.BytesIO(), {"input_names": list(graph.inputs), "output_names": list(graph.outputs)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if graph.dynamo:
            shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if graph.free_batch else None
            torch.onnx.export(module, (x,), buffer, dynamo=True, opset_version=graph.opset, dynamic_shapes=shapes, external_data=False, verbose=False, **names)
        else:
            axes = {graph.inputs[0]: {0: "batch"}} if graph.free_batch else None
            folding = {"do_constant_folding": graph.folded}
            if not graph.folded:
                folding["training"] = torch.onnx.TrainingMode.PRESERVE
            torch.onnx.export(module, (x,), buffer, dynamo=False, opset_version=graph.opset, dynamic_axes=axes, **folding, **names)
    model = onnx.load_from_string(buffer.getvalue())
    model.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    model.graph.ClearField("metadata_props")
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    return renamed(model)


def renamed(model):
    """Short names for the values between the nodes: the exporters' are paths, and most of a file."""
    kept = {value.name for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]}
    names = {}
    for node in model.graph.node:
        for side in (node.input, node.output):
            for i, name in enumerate(side):
                if name and name not in kept:
                    side[i] = names.setdefault(name, f"v{len(names)}")
        if node.op_type not in TAPPED_OPERATORS:
            node.name = "" if node.op_type == "Constant" else node.name.rsplit("/", 1)[-1] + "@" + node.output[0]
    return model


def spread(name, shape, variances):
    if name in variances:
        return 0.5, 1.0
    if len(shape) <= 1 or max(shape) == np.prod(shape):
        return 0.4, 0.3
    # Convolutions and Gemm have outputs first, MatMul last: the larger of both keeps values small.
    return round(1.2 * (3.0 / max(np.prod(shape[1:]), np.prod(shape[:-1]) if len(shape) == 2 else 0)) ** 0.5, 6), 0.0


def revalued(model):
    """Gives the larger float tensors values that are functions of their names; the table of what was done."""
    copies = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    variances = {node.input[4] for node in model.graph.node if node.op_type == "BatchNormalization"}
    variances |= {copies[name] for name in variances if name in copies}
    table, offset, outside = [], 0, {}
    for tensor in model.graph.initializer:
        count = int(np.prod(tensor.dims, dtype=np.int64))
        if tensor.data_type != onnx.TensorProto.FLOAT or count < SMALL:
            continue
        shape = list(tensor.dims)
        scale, shift = spread(tensor.name, shape, variances)
        array = values(tensor.name, shape, scale, shift).numpy().astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        table.append([tensor.name, shape, scale, shift])
        outside[tensor.name] = (offset, 4 * count)
        offset += 4 * count
    return table, outside


def without_values(model, outside):
    """The same file with its larger tensors in another."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in model.graph.initializer:
        if tensor.name in outside:
            offset, length = outside[tensor.name]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
    return model.SerializeToString()


def computed(model, given):
    """onnxruntime's outputs, and those of evenly chosen nodes by the nodes' names."""
    nodes = [node for node in model.graph.node if node.op_type in TAPPED_OPERATORS and node.name]
    nodes = nodes[:: max(1, len(nodes) // TAPS)][:TAPS]
    wider = onnx.ModelProto.FromString(model.SerializeToString())
    outputs = [output.name for output in model.graph.output]
    for node in nodes:
        if node.output[0] not in outputs:
            wider.graph.output.add(name=node.output[0])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(wider.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    result = dict(zip(names, session.run(None, {key: value.float().numpy() for key, value in given.items()})))
    return {name: result[name] for name in outputs}, {node.name: result[node.output[0]] for node in nodes}


@dataclass
class Bytes:
    """One file as it is."""

    value: bytes

    def bytes(self):
        return self.value

    def differences(self, path):
        if path.read_bytes() != self.value:
            yield "other bytes"


def fixture(name, graph):
    torch.manual_seed(0)
    made = graph()
    model = exported(made)
    table, outside = revalued(model)
    given = {input.name: normal((name, input.name), made.size) for input in model.graph.input}
    outputs, taps = computed(model, given)
    tensors = {f"in/{key}": value for key, value in given.items()}
    tensors |= {f"out/{key}": torch.from_numpy(np.array(value)) for key, value in outputs.items()}
    for path, value in taps.items():
        if value.dtype == np.float32 and value.size:
            tensors[f"tap/{path}"] = sampled(torch.from_numpy(value))
            tensors[f"shape/{path}"] = torch.tensor(list(value.shape), dtype=torch.int32)
    folder = f"models/onnx-{name}"
    return {
        f"{folder}/weights.json": Table({"file": WEIGHTS, "tensors": table}),
        f"{folder}/model.onnx": Bytes(without_values(model, outside)),
        f"{folder}/onnx.safetensors": Tensors(tensors, {"computed_in": "float32", "onnxruntime": onnxruntime.__version__}),
    }


def of_timm(name, size=(2, 3, 32, 32), **options):
    return lambda: (timm.create_model(name, num_classes=CLASSES, **options), size)


def graph(make, opset, **options):
    def build():
        made = make()
        module, size = made if isinstance(made, tuple) else (made, (2, 3, 32, 32))
        return Graph(module, size, opset, **options)

    return build


class Segmentation(nn.Module):
    """The one output that is used of torchvision's segmentation models."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)["out"]


class Featured(nn.Module):
    """A classifier with its features as a second output."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        features = self.model.forward_head(self.model.forward_features(x), pre_logits=True)
        return features, self.model.get_classifier()(features)


def narrow_resnet(layers=(1, 1, 1, 1), **options):
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, list(layers), num_classes=CLASSES, **options)


def narrow_efficientnet(name="tf_efficientnet_b0"):
    """Same-padded for TensorFlow's weights, as the published file is."""
    entry = timm.models.efficientnet
    make = entry._gen_efficientnet_lite if "lite" in name else entry._gen_efficientnet
    return make(name, channel_multiplier=0.2, num_classes=CLASSES, pad_type="same" if name.startswith("tf_") else ""), (2, 3, 32, 32)


def narrow_convnext():
    return timm.models.convnext.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 12, 16, 24), num_classes=CLASSES), (2, 3, 32, 32)


def narrow_vit():
    return timm.models.vision_transformer.VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=CLASSES), (2, 3, 32, 32)


def narrow_swin():
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 3), num_classes=CLASSES
    )
    return model, (2, 3, 32, 32)


def torchvision_swin():
    return torchvision.models.swin_transformer.SwinTransformer([2, 2], 12, [2, 1], [2, 3], [4, 4], num_classes=CLASSES)


def torchvision_vit():
    return torchvision.models.VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=CLASSES)


def deeplab():
    model = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    return Segmentation(model), (1, 3, 32, 48)


def fcn():
    backbone = torchvision.models._utils.IntermediateLayerGetter(narrow_resnet(replace_stride_with_dilation=[False, True, True]), {"layer4": "out"})
    head = torchvision.models.segmentation.fcn.FCNHead(2048, 3)
    return Segmentation(torchvision.models.segmentation.FCN(backbone, head)), (1, 3, 32, 48)


GRAPHS = {
    "resnet18-opset9": graph(of_timm("resnet18"), 9),
    "resnet26d-opset11": graph(of_timm("resnet26d"), 11, folded=False),
    "resnet-features-opset17": graph(lambda: (Featured(timm.create_model("resnet18", num_classes=CLASSES)), (2, 3, 32, 32)), 17, outputs=("features", "logits")),
    "mobilenetv3-opset10": graph(of_timm("mobilenetv3_small_050"), 10),
    "mobilenetv3-opset18": graph(of_timm("mobilenetv3_small_050"), 18, dynamo=True),
    "efficientnet-opset14": graph(lambda: narrow_efficientnet("efficientnet_lite0"), 14, folded=False),
    "efficientnet-b0-opset20": graph(narrow_efficientnet, 20, dynamo=True),
    "squeezenet-opset12": graph(lambda: torchvision.models.squeezenet1_1(num_classes=CLASSES), 12, free_batch=False),
    "convnext-opset16": graph(narrow_convnext, 16),
    "convnext-opset21": graph(narrow_convnext, 21, dynamo=True),
    "vit-opset14": graph(narrow_vit, 14),
    "vit-opset20": graph(narrow_vit, 20, dynamo=True),
    "torchvision-vit-opset17": graph(torchvision_vit, 17),
    "swin-opset17": graph(narrow_swin, 17),
    "swin-opset18": graph(narrow_swin, 18, dynamo=True),
    "torchvision-swin-opset15": graph(torchvision_swin, 15, free_batch=False),
    "deeplabv3-opset11": graph(deeplab, 11, free_batch=False),
    "deeplabv3-opset19": graph(deeplab, 19, dynamo=True, free_batch=False),
    "fcn-opset12": graph(fcn, 12, free_batch=False),
    "autoencoder-opset11": graph(lambda: (Autoencoder(), (2, 3, 24, 32)), 11, outputs=("reconstruction",)),
    "autoencoder-opset18": graph(lambda: (Autoencoder(), (2, 3, 24, 32)), 18, dynamo=True, outputs=("reconstruction",)),
    "shapes-opset13": graph(lambda: (Shapes(), (2, 3, 16, 16)), 13, outputs=("logits", "parts")),
    "shapes-opset21": graph(lambda: (Shapes(), (2, 3, 16, 16)), 21, dynamo=True, outputs=("logits", "parts")),
}

FIXTURES = {f"models/onnx-{name}": (lambda name=name, build=build: fixture(name, build)) for name, build in GRAPHS.items()}

VAELIGHT = ROOT.parents[1].parent / "shared" / "reference" / "external" / "vaelight"


def vaelight(name, file, given):
    """onnxruntime's outputs of a published file on made-up inputs; what is committed where the file is not at hand."""
    path = f"onnx/{name}.safetensors"
    if not (VAELIGHT / file).exists():
        return {path: Bytes((ROOT / path).read_bytes())}
    session = onnxruntime.InferenceSession(str(VAELIGHT / file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(None, {key: value.float().numpy() for key, value in given.items()})
    tensors = {f"in/{key}": value for key, value in given.items()}
    tensors |= {f"out/{key}": torch.from_numpy(value) for key, value in zip(names, outputs)}
    return {path: Tensors(tensors, {"computed_in": "float32", "onnxruntime": onnxruntime.__version__, "weights": f"VAElight {file}, Apache-2.0"})}


def operators(opset):
    """Every branch of golden.onnx_operators by onnxruntime: samples and shapes."""
    model, path = branches(opset), f"onnx/operators-opset{opset}"
    given = {"x": normal(("onnx", "operators"), X)}
    outputs, _ = computed(model, given)
    tensors = {f"in/{key}": value for key, value in given.items()}
    for key, value in outputs.items():
        tensors[f"out/{key}"] = sampled(torch.from_numpy(np.array(value)))
        tensors[f"shape/{key}"] = torch.tensor(list(value.shape), dtype=torch.int32)
    return {f"{path}.onnx": Bytes(model.SerializeToString()), f"{path}.safetensors": Tensors(tensors, {"computed_in": "float32", "onnxruntime": onnxruntime.__version__})}


def whole(name):
    """A graph of GRAPHS with its values inside: a seed for the fuzzer, and what the tests of hostile files cut."""
    model = exported(GRAPHS[name]())
    revalued(model)
    return {f"onnx/{name}.onnx": Bytes(model.SerializeToString())}


FIXTURES |= {f"onnx/operators-opset{opset}": (lambda opset=opset: operators(opset)) for opset in (9, 13, 18, 21)}
FIXTURES |= {f"onnx/{name}": (lambda name=name: whole(name)) for name in ("shapes-opset13", "shapes-opset21")}
FIXTURES |= {
    "onnx/vaelight-encoder": lambda: vaelight("vaelight-encoder", "VAEencoder.onnx", {"input": smooth_image(("vaelight",), (2, 3, 32, 40))}),
    "onnx/vaelight-preview": lambda: vaelight("vaelight-preview", "VAEpreview.onnx", {"latent": normal(("vaelight", "latent"), (1, 4, 4, 5))}),
}
