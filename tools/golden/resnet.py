"""Narrow torchvision ResNets: the published topology, names and strides, with few channels and random batch-norm statistics."""

import re

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from golden.files import Json, Tensors, normal, uniform
from golden.taps import record

TAPPED = re.compile(r"maxpool|layer\d\.\d|avgpool")


class NarrowResNet(ResNet):
    """torchvision's ResNet; only the widths, 64 to 512 there, are arguments."""

    def __init__(self, block, layers, stem, planes, classes):
        nn.Module.__init__(self)
        self._norm_layer, self.inplanes, self.dilation, self.groups, self.base_width = nn.BatchNorm2d, stem, 1, 1, 64
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for i in range(4):
            setattr(self, f"layer{i + 1}", self._make_layer(block, planes[i], layers[i], stride=1 if i == 0 else 2))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(planes[3] * block.expansion, classes)


def randomise(name, model):
    """Weights that f16 holds exactly. The last norm of a block is small, so that sixteen blocks do not explode."""
    state = {}
    for key, value in model.state_dict().items():
        names = (name, key)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1000)
            continue
        if value.ndim >= 2:
            tensor = normal(names, value.shape, (2.0 / value[0].numel()) ** 0.5)
        elif key.endswith("running_var"):
            tensor = uniform(names, value.shape, 0.3, 2.0)
        elif "fc" not in key and key.endswith("weight"):
            tensor = normal(names, value.shape, 0.2, 0.6)
        else:
            tensor = normal(names, value.shape, 0.3)
        state[key] = tensor.half().double()
    model.double().load_state_dict(state)
    return model.eval()


def config(architecture, features, classes, size):
    return {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": features,
        "label_names": ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"][:classes],
        "pretrained_cfg": {
            "input_size": [3, *size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": classes,
            "pool_size": [2, 2],
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def fixture(name, architecture, block, layers, stem, planes, classes, size):
    model = randomise(name, NarrowResNet(block, layers, stem, planes, classes))
    pixels = normal((name, "pixel_values"), (2, 3, *size))
    logits, taps = record(model, lambda path, _module: TAPPED.fullmatch(path), lambda m: m(pixels))
    features = taps.pop("avgpool").flatten(1)
    weights = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    io = {"in/pixel_values": pixels, "out/features": features, "out/logits": logits} | {f"tap/{key}": value for key, value in taps.items()}
    files = {
        "config.json": Json(config(architecture, features.shape[1], classes, size)),
        "model.safetensors": Tensors(weights),
        "io.safetensors": Tensors(io),
    }
    return {f"models/{name}/{path}": file for path, file in files.items()}


FIXTURES = {
    "models/resnet18": lambda: fixture("resnet18", "resnet18", BasicBlock, [2, 2, 2, 2], 8, [8, 12, 16, 24], 7, (40, 36)),
    "models/resnet50": lambda: fixture("resnet50", "resnet50", Bottleneck, [3, 4, 6, 3], 8, [4, 4, 8, 12], 5, (36, 40)),
}
