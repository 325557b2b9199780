"""Narrow ConvNeXts of timm and torchvision: the published stems, blocks, heads and names, with few channels and blocks."""

import timm
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from golden.classifiers import before
from golden.files import normal
from golden.recipe import fixture
from golden.vit import by_parts, published

CLASSES = 5
TAPPED = r"stem|stages\.\d|stages\.\d\.(downsample|blocks\.\d+(\.mlp(\.grn)?)?)|norm_pre|features\.\d(\.\d)?"
# Layer scales of torchvision have three axes, and are not weights of a product. The stem gives small numbers, so that the norm behind it
# tells one constant added to the variance from another.
QUIET = ((r"^(stem\.0|features\.0\.0)\.(weight|bias)$", 0.002, 0.0),)
GAINS = (*QUIET, (r"layer_scale$", 0.3, 0.0), (r"grn\.(weight|bias)$", 0.5, 0.0))
NARROW = {"depths": [1, 1, 2, 1], "dims": [8, 12, 16, 24]}


def golden(name, model, config, call, size):
    pixels = normal((name, "pixels"), (1, 3, *size))
    return fixture(name, model, config, "model.safetensors", {"classifier": ({"pixel_values": pixels}, call)}, tapped=TAPPED, gains=GAINS)


def timm_convnext(name, size=(50, 40), **options):
    arguments = {**NARROW, "num_classes": CLASSES, **options}
    model = timm.create_model(name, **arguments)
    return golden(name, model, published(model, **arguments), by_parts, size)


def torchvision_convnext():
    widths, depths = NARROW["dims"], NARROW["depths"]
    setting = [CNBlockConfig(width, following, depth) for width, following, depth in zip(widths, [*widths[1:], None], depths)]
    model = ConvNeXt(setting, num_classes=CLASSES)
    return golden("torchvision-convnext_tiny", model, None, before("classifier.2"), (50, 40))


NAMES = {
    "convnext_tiny": {},
    "convnext_atto": {},
    "convnext_femto_ols": {"dims": [16, 20, 24, 28]},
    "convnext_nano_ols": {},
    "convnext_tiny_hnf": {},
    "convnext_large_mlp": {"head_hidden_size": 20},
    "convnext_xxlarge": {},
    "convnextv2_atto": {},
    "convnextv2_tiny": {},
}

FIXTURES = {f"models/{name}": lambda name=name, options=options: timm_convnext(name, **options) for name, options in NAMES.items()}
FIXTURES["models/torchvision-convnext_tiny"] = torchvision_convnext
