"""Narrow Swin transformers of timm and torchvision: windows that do not divide the image, that cover it along one axis or both,
shifts, odd sizes to merge; config.json as timm writes it."""

import re

import timm
from torchvision.models.swin_transformer import SwinTransformer

from golden.classifiers import before
from golden.files import normal
from golden.recipe import fixture
from golden.vit import by_parts, published

CLASSES = 5
TAPPED = r"patch_embed|layers\.\d(\.(downsample|blocks(\.\d(\.(norm1|attn\.qkv|attn\.proj|norm2))?)?))?|norm|features\.\d(\.\d+(\.norm[12])?)?"
# The bias tells distances apart as strongly as queries and keys do.
GAINS = ((r"relative_position_bias_table$", 2.0, 0.0),)
NARROW = {"embed_dim": 8, "depths": [2, 2, 2, 1], "num_heads": [1, 2, 4, 2]}


def golden(name, model, config, call, size, rename=None):
    pixels = normal((name, "pixels"), (2, 3, *size))
    components = {"classifier": ({"pixel_values": pixels}, call)}
    return fixture(name, model, config, "model.safetensors", components, tapped=TAPPED, gains=GAINS, rename=rename)


def timm_swin(name, architecture=None, size=(40, 36), has_config=True, rename=None, **options):
    arguments = {**NARROW, "img_size": list(size), "num_classes": CLASSES, **options}
    model = timm.create_model(architecture or name, **arguments)
    return golden(name, model, published(model, **arguments) if has_config else None, by_parts, size, rename)


def original(name):
    """The names of the first checkpoints: a stage ends with what the next one begins with today."""
    name = re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
    return name.replace("head.fc.", "head.")


def torchvision_swin():
    model = SwinTransformer([4, 4], 8, NARROW["depths"], NARROW["num_heads"], [3, 3], num_classes=CLASSES)
    return golden("torchvision-swin_t", model, None, before("head"), (44, 38))


FIXTURES = {
    "models/swin_tiny_patch4_window7_224": lambda: timm_swin("swin_tiny_patch4_window7_224", window_size=3),
    "models/swin_small_patch4_window7_224": lambda: timm_swin("swin_small_patch4_window7_224", size=(48, 12), window_size=[4, 3], qkv_bias=False),
    "models/swin_s3_tiny_224": lambda: timm_swin("swin_s3_tiny_224", size=(32, 40), window_size=[3, 4, 2, 2], always_partition=True),
    "models/original-swin_base": lambda: timm_swin("original-swin_base", "swin_base_patch4_window7_224", rename=original, has_config=False, window_size=2),
    "models/torchvision-swin_t": torchvision_swin,
}
