"""Narrow classifiers of torchvision, timm and others: the published topology, names, strides and depths, with few channels.
Weights alone where that is how they are published (torchvision, akamaster, pytorch-fid), else with the config.json that timm
writes (timm.models.save_for_hf)."""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision
from timm.models import efficientnet, mobilenetv3
from timm.models._hub import save_config_for_hf
from torch import nn
from torch.nn import functional as F
from torchvision.models import inception
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig, _efficientnet_conf
from torchvision.models.resnet import Bottleneck

from golden.files import normal
from golden.recipe import fixture
from golden.resnet import NarrowResNet

CLASSES = 5
# The last norm of a residual branch is small, so that dozens of blocks in a row do not explode.
CALM = ((r"layer\d\.\d+\.(bn[23])\.weight$", 0.2, 0.4), (r"blocks\.\d+\.\d+\.bn[23]\.weight$", 0.2, 0.5), (r"running_var$", 0.5, 1.0))


def published(model):
    """config.json as timm writes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        save_config_for_hf(model, path)
        return json.loads(path.read_text())


def golden(name, model, call, size, tapped, config=None):
    pixels = normal((name, "pixels"), (1, 3, *size))
    return fixture(name, model, config, "model.safetensors", {"classifier": ({"pixel_values": pixels}, call)}, tapped=tapped, gains=CALM)


def by_parts(model, pixel_values):
    """timm's models tell features from logits."""
    maps = model.forward_features(pixel_values)
    return {"features": model.forward_head(maps, pre_logits=True), "logits": model(pixel_values)}


def before(path):
    """Features are what goes into the module `path`."""

    def call(model, pixel_values):
        kept = {}
        handle = model.get_submodule(path).register_forward_pre_hook(lambda _module, inputs: kept.update(features=inputs[0]))
        kept["logits"] = model(pixel_values)
        handle.remove()
        return {"features": kept["features"], "logits": kept["logits"]}

    return call


# ResNets

BLOCKS = r"maxpool|layer\d\.\d+|layer\d\.0\.(downsample|se)"


def timm_resnet(name, architecture=None, size=(33, 47), **arguments):
    model = timm.create_model(architecture or name, num_classes=CLASSES, **arguments)
    return golden(name, model, by_parts, size, BLOCKS, published(model))


def torchvision_resnet(name, planes, groups, base_width):
    """`groups` and `base_width` are set before the stages are made."""

    class Grouped(NarrowResNet):
        def _make_layer(self, *arguments, **options):
            self.groups, self.base_width = groups, base_width
            return super()._make_layer(*arguments, **options)

    return golden(name, Grouped(Bottleneck, [3, 4, 6, 3], 8, planes, CLASSES), before("fc"), (33, 47), BLOCKS)


class OptionA(nn.Module):
    """Every other pixel, zeros for the new channels on both sides."""

    def __init__(self, added):
        super().__init__()
        self.added = added

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added // 2))


class CifarBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = OptionA(outputs - inputs) if inputs != outputs else nn.Identity()

    def forward(self, x):
        h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(h + self.shortcut(x))


class CifarResNet(nn.Module):
    """The small ResNets of He et al. 2016, section 4.2, with akamaster's names."""

    def __init__(self, depth, stem):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        width = stem
        for stage in range(3):
            blocks = []
            for i in range((depth - 2) // 6):
                outputs = stem << stage
                blocks.append(CifarBlock(width, outputs, 2 if stage and i == 0 else 1))
                width = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(width, 10)

    def forward(self, x):
        h = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        return self.linear(h.mean((2, 3)))


# DenseNets

DENSE = r"features\.(pool0|denseblock\d(\.denselayer1)?|transition\d)"


def torchvision_densenet():
    model = torchvision.models.DenseNet(growth_rate=4, block_config=(6, 12, 24, 16), num_init_features=8, bn_size=2, num_classes=CLASSES)
    return golden("torchvision-densenet121", model, before("classifier"), (33, 47), DENSE)


def timm_densenet():
    model = timm.create_model("densenet161", growth_rate=6, block_config=(2, 3, 2, 2), bn_size=2, num_classes=CLASSES)
    return golden("densenet161", model, by_parts, (33, 47), DENSE, published(model))


# Inverted residuals

STAGES = r"bn[12]|blocks\.\d+\.\d+|blocks\.\d+\.0\.se|global_pool"
FEATURES = r"features\.\d+(\.\d+)?"


def inverted(name, make, size=(37, 50), **arguments):
    model = make(name, num_classes=CLASSES, **arguments)
    return golden(name, model, by_parts, size, STAGES, published(model))


TENSORFLOW = {"bn_eps": 1e-3, "pad_type": "same"}
INVERTED = {
    "efficientnet_b0": lambda name: inverted(name, efficientnet._gen_efficientnet, channel_multiplier=0.25),
    "tf_efficientnet_b3": lambda name: inverted(name, efficientnet._gen_efficientnet, channel_multiplier=0.3, depth_multiplier=1.4, **TENSORFLOW),
    "efficientnetv2_s": lambda name: inverted(name, efficientnet._gen_efficientnetv2_s, channel_multiplier=0.25, depth_multiplier=0.4),
    "tf_efficientnetv2_s": lambda name: inverted(name, efficientnet._gen_efficientnetv2_s, channel_multiplier=0.25, depth_multiplier=0.3, **TENSORFLOW),
    "efficientnetv2_rw_s": lambda name: inverted(name, efficientnet._gen_efficientnetv2_s, channel_multiplier=0.25, depth_multiplier=0.3, rw=True),
    "mobilenetv2_100": lambda name: inverted(name, efficientnet._gen_mobilenet_v2, channel_multiplier=0.25),
    "mobilenetv3_large_100": lambda name: inverted(name, mobilenetv3._gen_mobilenet_v3, channel_multiplier=0.25),
    "mobilenetv3_small_100": lambda name: inverted(name, mobilenetv3._gen_mobilenet_v3, channel_multiplier=0.25),
    "tf_mobilenetv3_small_100": lambda name: inverted(name, mobilenetv3._gen_mobilenet_v3, channel_multiplier=0.25, **TENSORFLOW),
}


def torchvision_efficientnet(name, variant, width, depth, eps):
    setting, _ = _efficientnet_conf(variant, width_mult=width, depth_mult=depth)
    model = EfficientNet(setting, 0.2, num_classes=CLASSES, last_channel=64, norm_layer=partial(nn.BatchNorm2d, eps=eps))
    return golden(name, model, before("classifier.1"), (37, 50), r"features\.\d+(\.0)?")


def torchvision_efficientnet_v2():
    rows = [(1, 3, 1, 6, 6, 2), (4, 3, 2, 6, 12, 2), (4, 3, 2, 12, 16, 2), (4, 3, 2, 16, 32, 2), (6, 3, 1, 32, 40, 3), (6, 3, 2, 40, 64, 3)]
    setting = [(FusedMBConvConfig if i < 3 else MBConvConfig)(*row) for i, row in enumerate(rows)]
    model = EfficientNet(setting, 0.2, num_classes=CLASSES, last_channel=64, norm_layer=partial(nn.BatchNorm2d, eps=1e-3))
    return golden("torchvision-efficientnet_v2_s", model, before("classifier.1"), (37, 50), FEATURES)


def torchvision_mobile(name, last):
    model = getattr(torchvision.models, name)(width_mult=0.25, num_classes=CLASSES)
    return golden(f"torchvision-{name}", model, before(last), (37, 50), FEATURES)


# SqueezeNet

def squeezenet(name):
    model = getattr(torchvision.models, name)(num_classes=CLASSES)

    def call(model, pixel_values):
        return {"features": model.features(pixel_values).mean((2, 3)), "logits": model(pixel_values)}

    return golden(name, model, call, (60, 47), r"features\.([2-9]|1\d)")


# Inception-v3

NARROWER = 8
INCEPTION = r"Conv2d_\w+|maxpool\d|Mixed_\d\w"


class NarrowConv(inception.BasicConv2d):
    """An eighth of the channels, but for the pixels."""

    def __init__(self, inputs, outputs, **options):
        super().__init__(inputs if inputs == 3 else inputs // NARROWER, outputs // NARROWER, **options)


class FrechetA(inception.InceptionA):
    def _forward(self, x):
        *rest, _ = super()._forward(x)
        return [*rest, self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))]


class FrechetC(inception.InceptionC):
    def _forward(self, x):
        *rest, _ = super()._forward(x)
        return [*rest, self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))]


class FrechetE(inception.InceptionE):
    """Mixed_7b takes the mean, Mixed_7c the maximum."""

    def _forward(self, x):
        *rest, _ = super()._forward(x)
        pooled = F.max_pool2d(x, 3, 1, 1) if self.takes_maximum else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return [*rest, self.branch_pool(pooled)]


def torchvision_inception(name, classes, config=None, frechet=False, **options):
    kinds = [FrechetA, inception.InceptionB, FrechetC, inception.InceptionD, FrechetE] if frechet else [
        inception.InceptionA, inception.InceptionB, inception.InceptionC, inception.InceptionD, inception.InceptionE]
    blocks = [NarrowConv, *(partial(kind, conv_block=NarrowConv) for kind in kinds), partial(inception.InceptionAux, conv_block=NarrowConv)]
    model = inception.Inception3(classes, inception_blocks=blocks, init_weights=False, **options)
    width = 2048 // NARROWER
    model.fc = nn.Linear(width, classes)
    if model.AuxLogits is not None:
        model.AuxLogits.fc = nn.Linear(768 // NARROWER, classes)
    if frechet:
        model.Mixed_7b.takes_maximum, model.Mixed_7c.takes_maximum = False, True
    return golden(name, model, before("fc"), (75, 80), INCEPTION, config)


def timm_inception():
    module = sys.modules["timm.models.inception_v3"]

    whole = module.ConvNormAct
    module.ConvNormAct = lambda inputs, outputs, **options: whole(inputs if inputs == 3 else inputs // NARROWER, outputs // NARROWER, **options)
    try:
        model = timm.create_model("inception_v3", num_classes=CLASSES)
    finally:
        module.ConvNormAct = whole
    model.num_features = 2048 // NARROWER
    model.fc = nn.Linear(model.num_features, CLASSES)
    return golden("inception_v3", model, by_parts, (75, 80), INCEPTION, published(model))


TRANSFORMED = {"architecture": "inception_v3", "num_classes": CLASSES, "model_args": {"transform_input": True}}

FIXTURES = {
    "models/resnet18d": lambda: timm_resnet("resnet18d", channels=(8, 12, 16, 24), stem_width=4),
    "models/resnet26t": lambda: timm_resnet("resnet26t", channels=(4, 6, 8, 10), stem_width=8, size=(33, 50)),
    "models/resnet50d": lambda: timm_resnet("resnet50d", channels=(4, 6, 8, 10), stem_width=4),
    "models/seresnet50": lambda: timm_resnet("seresnet50", channels=(4, 6, 8, 10)),
    "models/resnetrs50": lambda: timm_resnet("resnetrs50", channels=(4, 6, 8, 10), stem_width=4, layers=(1, 2, 1, 1)),
    "models/resnext50_32x4d": lambda: timm_resnet("resnext50_32x4d", channels=(8, 16, 24, 32), cardinality=4, base_width=16),
    "models/torchvision-resnext50": lambda: torchvision_resnet("torchvision-resnext50", [8, 16, 24, 32], 4, 16),
    "models/torchvision-wide_resnet50_2": lambda: torchvision_resnet("torchvision-wide_resnet50_2", [4, 6, 8, 10], 1, 128),
    "models/cifar_resnet20": lambda: golden("cifar_resnet20", CifarResNet(20, 8), before("linear"), (32, 32), r"layer\d\.\d+"),
    "models/torchvision-densenet121": torchvision_densenet,
    "models/densenet161": timm_densenet,
    **{f"models/{name}": partial(make, name) for name, make in INVERTED.items()},
    "models/torchvision-efficientnet_b0": lambda: torchvision_efficientnet("torchvision-efficientnet_b0", "efficientnet_b0", 0.25, 1.0, 1e-5),
    "models/torchvision-efficientnet_b5": lambda: torchvision_efficientnet("torchvision-efficientnet_b5", "efficientnet_b5", 0.2, 2.2, 1e-3),
    "models/torchvision-efficientnet_v2_s": torchvision_efficientnet_v2,
    "models/torchvision-mobilenet_v2": lambda: torchvision_mobile("mobilenet_v2", "classifier.1"),
    "models/torchvision-mobilenet_v3_large": lambda: torchvision_mobile("mobilenet_v3_large", "classifier.3"),
    "models/torchvision-mobilenet_v3_small": lambda: torchvision_mobile("mobilenet_v3_small", "classifier.3"),
    "models/squeezenet1_0": lambda: squeezenet("squeezenet1_0"),
    "models/squeezenet1_1": lambda: squeezenet("squeezenet1_1"),
    "models/torchvision-inception_v3": lambda: torchvision_inception("torchvision-inception_v3", CLASSES),
    "models/transformed-inception_v3": lambda: torchvision_inception("transformed-inception_v3", CLASSES, TRANSFORMED, aux_logits=False, transform_input=True),
    "models/frechet-inception_v3": lambda: torchvision_inception("frechet-inception_v3", 1008, frechet=True, aux_logits=False),
    "models/inception_v3": timm_inception,
}
