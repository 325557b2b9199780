#!/usr/bin/env python3
"""Every classifier and segmenter that timm, torchvision and segmentation-models-pytorch publish in our families, at its published
width. No weights are downloaded and nothing of it is committed.

    cargo build --release
    tools/coverage.py names                     each published configuration with each tensor's name and shape (values: zeros, in
                                                a sparse file): is it recognised, is every field read, every tensor accounted for?
    tools/coverage.py numbers [PATTERN...]      random weights: `naevus forward` on the CPU executor against PyTorch in f32

A name is timm's with its tag (`resnet50.a1_in1k`), `torchvision/...` or `smp/...`. `numbers` leaves the tag out, takes small images
where the architecture allows any, and leaves out what has more than 200 M parameters. Patterns are regular expressions of whole
names. What is built otherwise (other norms, pruned, relative positions) must be
refused by its name. Exit code 1: another refusal, or a difference of more than 1e-4.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from timm.models._hub import save_config_for_hf

from golden.recipe import spread

ALLOWED = 1e-4
LARGEST = 200_000_000

# Beginnings of the names of the families.
TIMM = re.compile(
    r"((tf_|adv_|gluon_)?(efficientnet(v2)?_|mobilenet|inception_v3)|(se|eca)?resne[x]?t\d|resnetrs|wide_resnet|densenet|convnext|vit_|deit|swin_)"
)
TORCHVISION = re.compile(r"(resne[x]?t|wide_resnet|densenet|efficientnet|mobilenet|convnext|vit_|swin_|squeezenet|inception|deeplab|fcn_)")
# Classes of residual blocks that end in a batch norm.
BRANCHES = ("BasicBlock", "Bottleneck", "InvertedResidual", "EdgeResidual", "DepthwiseSeparableConv", "MBConv", "FusedMBConv")


def names_of_timm(tags):
    names = [name for name in timm.list_pretrained() if TIMM.match(name)]
    return names if tags else sorted({name.split(".")[0] for name in names})


def names_of_torchvision():
    names = [name for name in torchvision.models.list_models() if TORCHVISION.match(name) and not name.startswith("quantized")]
    return [f"torchvision/{name}" for name in names]


def names_of_smp():
    return [f"smp/{encoder}" for encoder in ("resnet18", "resnet34", "resnet50", "resnext50_32x4d")]


class Subject:
    """A model by its name: how it is built, stored, fed and read."""

    def __init__(self, name):
        self.name = name
        self.arguments = {}
        self.library, _, self.own = name.rpartition("/")
        self.is_segmenter = self.library == "smp" or re.match("deeplab|fcn_|lraspp", self.own) is not None
        self.component = "segmenter" if self.is_segmenter else "classifier"

    def build(self, **arguments):
        self.arguments = arguments
        if self.library == "smp":
            return smp.Unet(self.own, encoder_weights=None, classes=2)
        if self.library == "torchvision":
            more = {"weights_backbone": None} if self.is_segmenter else {}
            if self.own.startswith("inception"):
                more = {"init_weights": False}
            return torchvision.models.get_model(self.own, weights=None, **more, **arguments)
        return timm.create_model(self.name, **arguments)

    def small(self):
        """Arguments, and the side of a small image."""
        if re.match("(tf_|adv_|gluon_)?inception", self.own):
            return {}, 96
        if self.library == "torchvision" and self.own.startswith("vit_"):
            side = 4 * int(re.search(r"vit_\w_(\d+)", self.own)[1])
            return {"image_size": side}, side
        if self.library == "" and re.match("vit|deit|swin", self.own):
            side = timm.get_pretrained_cfg(self.own).input_size[-1]
            patch = int((re.search(r"patch(\d+)", self.own) or re.search(r"()(4)", "4"))[1] or 4)
            if side <= 256 or self.own.startswith("swin"):
                return {}, side
            return {"img_size": 4 * patch}, 4 * patch
        return {}, 64

    def store(self, model, folder):
        """Writes what a publisher would; where the weights are."""
        if self.library == "torchvision":
            path = folder / "weights.pth"
            torch.save(model.state_dict(), path)
            return path
        if self.library == "smp":
            model.save_pretrained(folder)
            return folder
        save_config_for_hf(model, folder / "config.json", model_args=self.arguments or None)
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
        return folder

    def call(self, model, pixels):
        """Outputs by the names of ours."""
        if self.library == "smp":
            return {"logits": model(pixels)}
        if self.is_segmenter:
            return {"logits": model(pixels)["out"]}
        if self.library == "":
            maps = model.forward_features(pixels)
            features = {"features": model.forward_head(maps, pre_logits=True)}
            return features | ({"logits": model(pixels)} if model.num_classes > 0 else {})
        kept = {}
        is_squeeze = self.own.startswith("squeezenet")
        last = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d if is_squeeze else torch.nn.Linear))][-1]
        handle = last.register_forward_pre_hook(lambda _module, inputs: kept.update(features=inputs[0].mean((2, 3)) if is_squeeze else inputs[0]))
        kept["logits"] = model(pixels)
        handle.remove()
        return kept


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]


def randomise(model, seed, pixels):
    """Weights as the goldens have them. Batch norms then take the statistics of what comes to them, and the last
    one of a residual branch is small: a deep network would multiply rounding errors."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            scale, shift = spread(key, value, ())
            value.uniform_(-1, 1, generator=generator).mul_(scale).add_(shift)
    norms = batch_norms(model)
    model.eval()
    for block in model.modules():
        if type(block).__name__ in BRANCHES:
            last = getattr(block, "bn3", None) or getattr(block, "bn2", None) or batch_norms(block)[-1]
            last.weight.mul_(0.2)
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    if norms:
        model(pixels)
    for norm in norms:
        # A channel that was silent here may not be there.
        norm.running_var.clamp_(min=0.1 * norm.running_var.mean().item())
        norm.momentum = 0.1
    return model.eval()


def naevus(binary, *arguments):
    """The error's line; empty when there is none."""
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no error was printed"])[-1]


def relative_rms(got, want):
    if got is None or got.shape != want.shape:
        return float("inf")
    return ((got.double() - want.double()).pow(2).mean() / want.double().pow(2).mean()).sqrt().item()


def numbers(name, binary, folder):
    """Whether it is equal, and a line of the table."""
    subject = Subject(name)
    arguments, side = subject.small()
    with torch.device("meta"):
        parameters = sum(value.numel() for value in subject.build().parameters())
    if parameters > LARGEST:
        return True, f"{parameters / 1e6:.1f} M parameters: left out"
    model = subject.build(**arguments)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        randomise(model, zlib.crc32(name.encode()), torch.randn(4, 3, side, side, generator=generator))
        pixels = torch.randn(2, 3, side, side, generator=generator)
        want = subject.call(model, pixels)
    path = subject.store(model, folder)
    save_file({"pixel_values": pixels}, folder / "in.tensors")
    error = naevus(binary, "forward", "--device", "cpu", "--model", path, "--component", subject.component, "--inputs", folder / "in.tensors", "--out", folder / "out.tensors")
    about = f"{parameters / 1e6:.1f} M, {side} px"
    if error:
        return False, f"{about}: {error}"
    got = load_file(folder / "out.tensors")
    errors = {key: relative_rms(got.get(key), value) for key, value in want.items()}
    return all(e <= ALLOWED for e in errors.values()), f"{about}: " + ", ".join(f"{key} {e:.1e}" for key, e in errors.items())


def names(name, binary, folder):
    """Whether it is known, and a line of the table."""
    subject = Subject(name)
    with torch.device("meta"):
        model = subject.build()
    state = model.state_dict()
    if subject.library == "":
        save_config_for_hf(model, folder / "config.json")
    at, header = 0, {}
    for key, value in state.items():
        end = at + 4 * value.numel()
        header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    error = naevus(binary, "inspect", folder if subject.library == "" else folder / "model.safetensors")
    return not error, error or f"{at / 4e6:.1f} M"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["names", "numbers"])
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    parser.add_argument("--binary", default=Path(__file__).resolve().parents[1] / "target/release/naevus", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    is_numbers = arguments.what == "numbers"
    candidates = names_of_timm(tags=not is_numbers) + names_of_torchvision() + names_of_smp() * is_numbers
    good, refused, failed = 0, 0, 0
    for name in candidates:
        if arguments.patterns and not any(re.fullmatch(pattern, name) for pattern in arguments.patterns):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                is_good, line = (numbers if is_numbers else names)(name, arguments.binary, Path(folder))
            except Exception as error:
                is_good, line = False, f"PyTorch: {type(error).__name__}: {error}"
        by_name = re.search(r'architecture: "[^"]*", expected one of', line)
        verdict, line = ("ok", line) if is_good else ("refused", "by name") if by_name else ("FAIL", line)
        good, refused, failed = good + is_good, refused + (verdict == "refused"), failed + (verdict == "FAIL")
        print(f"{verdict:7} {name}: {line}", flush=True)
    print(f"{good} are equal or known, {refused} are refused by name, {failed} fail")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
