#!/usr/bin/env python3
"""Makes every fixture under tests/golden with PyTorch, diffusers, torchvision and Pillow (tools/requirements.txt).

    tools/golden.py                       write all
    tools/golden.py --only ops/conv2d     write the fixtures whose name starts so
    tools/golden.py --check               compute again and compare with what is committed; exit 1 on a difference
    tools/golden.py --prove DIR           replay the trajectories recorded with real weights in DIR
"""

import argparse
import sys
from pathlib import Path

import diffusers
import torch

from golden import autoencoder, classifiers, convnext, ddim, inpaint, jpeg, ldm, lora, monai_nets, onnx, ops, pipeline, preprocess, resize, resnet, schedulers, segmentation, swin, taesd, text, tokenizer, torch_files, unet, unet_condition, vit
from golden.files import ROOT

MODULES = (ops, autoencoder, classifiers, convnext, ddim, inpaint, jpeg, ldm, lora, monai_nets, onnx, pipeline, preprocess, resize, resnet, schedulers, segmentation, swin, taesd, text, tokenizer, torch_files, unet, unet_condition, vit)
FIXTURES = {name: make for module in MODULES for name, make in module.FIXTURES.items()}
PROOF_TOLERANCE = 1e-5


def select(prefix):
    names = [name for name in FIXTURES if prefix is None or name == prefix or name.startswith(f"{prefix}/") or name.startswith(prefix)]
    if not names:
        sys.exit(f"golden.py: no fixture is named {prefix}, expected one of {', '.join(FIXTURES)}")
    return names


def write(files):
    for path, file in files.items():
        target = ROOT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.bytes())
    return sum(len(file.bytes()) for file in files.values())


def differences(files):
    for path, file in files.items():
        if not (ROOT / path).exists():
            yield f"{path}: not committed"
            continue
        yield from (f"{path}: {fact}" for fact in file.differences(ROOT / path))


def check(names, whole):
    """Number of differences; with `whole`, a committed file that no fixture makes is one."""
    found, made = 0, set()
    for name in names:
        files = FIXTURES[name]()
        made |= set(files)
        for fact in differences(files):
            found += 1
            print(fact)
    committed = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()} if whole else set()
    for path in sorted(committed - made):
        found += 1
        print(f"{path}: committed, but no fixture makes it")
    print(f"{len(names)} fixtures, {len(made)} files, {found} differences")
    return found


def prove(reference):
    failures = 0
    for name, worst in inpaint.prove(reference):
        tensor, value = max(worst.items(), key=lambda item: item[1])
        failures += not value <= PROOF_TOLERANCE
        print(f"{name}: {len(worst)} tensors, worst {tensor} differs by {value:.1e} of its rms, expected at most {PROOF_TOLERANCE:.0e}")
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="fixtures whose name starts with NAME")
    parser.add_argument("--check", action="store_true", help="compare with what is committed")
    parser.add_argument("--prove", metavar="DIR", type=Path, help="directory with inpaint-ham128/ and golden/")
    arguments = parser.parse_args()
    diffusers.logging.set_verbosity_error()
    torch.manual_seed(0)
    if arguments.prove:
        return 1 if prove(arguments.prove) else 0
    names = select(arguments.only)
    if arguments.check:
        return 1 if check(names, whole=arguments.only is None) else 0
    total = 0
    for name in names:
        size = write(FIXTURES[name]())
        total += size
        print(f"{name}: {size / 1000:.0f} kB")
    print(f"{len(names)} fixtures, {total / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
