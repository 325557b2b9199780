#!/usr/bin/env python3
"""The CIFAR ResNets that others published: writes tests/external/classifiers.safetensors, what plain PyTorch in float64 makes of a synthetic image.

    tools/external_classifiers.py DIR

DIR holds cifar10_resnet/ with the .th files of https://github.com/akamaster/pytorch_resnet_cifar10. Nothing of them is committed but results.
"""

import argparse
from pathlib import Path

import torch

from golden.classifiers import CifarResNet
from golden.files import METADATA, Tensors, smooth_image

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "external" / "classifiers.safetensors"
FILES = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path)
    folder = parser.parse_args().folder / "cifar10_resnet"
    image = smooth_image(("external", "classifiers"), (4, 3, 32, 32)) * 2 - 1
    tensors = {"pixel_values": image}
    for depth, file in FILES.items():
        model = CifarResNet(depth, 16).double().eval()
        state = torch.load(folder / file, map_location="cpu", weights_only=True)["state_dict"]
        model.load_state_dict({name.removeprefix("module."): value.double() for name, value in state.items()})
        tensors[f"{file}/logits"] = model(image)
    GOLDEN.write_bytes(Tensors(tensors, METADATA | {"generator": "tools/external_classifiers.py"}).bytes())
    print(f"{GOLDEN}: {GOLDEN.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
