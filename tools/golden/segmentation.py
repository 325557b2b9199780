"""Narrow segmenters: torchvision's DeepLabV3 and FCN on dilated ResNets (weights alone, as they are published), and the U-Net of
segmentation-models-pytorch (config.json as its `save_pretrained` writes it, or weights alone)."""

import json
import tempfile
from pathlib import Path

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.encoders import encoders
from segmentation_models_pytorch.encoders.resnet import ResNetEncoder
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabV3
from torchvision.models.segmentation.fcn import FCN, FCNHead

from golden.files import normal
from golden.recipe import fixture
from golden.resnet import NarrowResNet

# The last norm of a residual branch is small, so that the blocks in a row do not explode.
CALM = ((r"layer\d\.\d+\.bn[23]\.weight$", 0.2, 0.4),)
PLANES, CLASSES = [4, 6, 8, 10], 2
RATES = (12, 24, 36)


def golden(name, model, size, tapped, call, config=None):
    pixels = normal((name, "pixels"), (1, 3, *size))
    return fixture(name, model, config, "model.safetensors", {"segmenter": ({"pixel_values": pixels}, call)}, tapped=tapped, gains=CALM)


# torchvision


class Dilated(NarrowResNet):
    """torchvision's with replace_stride_with_dilation=[False, True, True]."""

    def _make_layer(self, block, planes, blocks, stride=1):
        return super()._make_layer(block, planes, blocks, stride=stride, dilate=planes in PLANES[2:])


def backbone(layers, has_aux):
    model = Dilated(Bottleneck, layers, 8, PLANES, 1)
    return IntermediateLayerGetter(model, {"layer4": "out"} | ({"layer3": "aux"} if has_aux else {}))


def torchvision_segmenter(name, make, layers, size, has_aux, tapped):
    inputs, middle = PLANES[3] * 4, PLANES[2] * 4
    aux = FCNHead(middle, CLASSES) if has_aux else None
    model = make(backbone(layers, has_aux), inputs, aux)
    return golden(name, model, size, tapped, lambda model, pixel_values: {"logits": model(pixel_values)["out"]})


def deeplab(backbone, inputs, aux):
    head = nn.Sequential(ASPP(inputs, RATES, 8), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))
    return DeepLabV3(backbone, head, aux)


def fcn(backbone, inputs, aux):
    return FCN(backbone, FCNHead(inputs, CLASSES), aux)


BACKBONE = r"backbone\.(maxpool|layer\d(\.\d+)?)|classifier"

# U-Net


class NarrowEncoder(ResNetEncoder):
    def __init__(self, out_channels, depth=5, output_stride=32, **options):
        block = options["block"]
        NarrowResNet.__init__(self, block, options["layers"], 8, PLANES, 1)
        del self.fc
        del self.avgpool
        self._depth, self._in_channels, self._output_stride = depth, 3, output_stride
        self._out_channels = [3, 8, *(planes * block.expansion for planes in PLANES)]


def saved(model):
    """config.json as the library writes it."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return json.loads((Path(folder) / "config.json").read_text())


def unet(encoder, size, has_config=True, **arguments):
    whole = encoders[encoder]["encoder"]
    encoders[encoder]["encoder"] = NarrowEncoder
    try:
        model = smp.Unet(encoder, encoder_weights=None, classes=CLASSES, **arguments)
    finally:
        encoders[encoder]["encoder"] = whole
    tapped = r"encoder\.layer\d(\.\d+)?|decoder(\.blocks\.\d(\.conv\d)?)?"
    config = saved(model) if has_config else None

    def call(model, pixel_values):
        result = model(pixel_values)
        # With a classification head it gives masks and labels.
        return {"logits": result[0] if isinstance(result, tuple) else result}

    return golden(f"smp-unet-{encoder}", model, size, tapped, call, config)


CHANNELS = (16, 12, 10, 8, 6)

FIXTURES = {
    # Wide and low: the rates reach across the map, 2 x 38.
    "models/deeplabv3_resnet50": lambda: torchvision_segmenter(
        "deeplabv3_resnet50", deeplab, [1, 2, 2, 3], (9, 300), True, BACKBONE + r"(\.0(\.(convs\.\d|project))?)?"
    ),
    "models/deeplabv3_resnet101": lambda: torchvision_segmenter("deeplabv3_resnet101", deeplab, [1, 1, 3, 1], (33, 42), False, BACKBONE),
    "models/fcn_resnet50": lambda: torchvision_segmenter("fcn_resnet50", fcn, [1, 2, 2, 3], (43, 50), True, BACKBONE),
    "models/smp-unet-resnet34": lambda: unet("resnet34", (45, 38), decoder_channels=CHANNELS),
    "models/smp-unet-resnet18": lambda: unet("resnet18", (32, 64), has_config=False, decoder_channels=CHANNELS),
    "models/smp-unet-resnet50": lambda: unet(
        "resnet50", (37, 40), decoder_channels=CHANNELS[:4], encoder_depth=4, decoder_interpolation="bilinear", decoder_use_norm=False, aux_params={"classes": 3}
    ),
}
