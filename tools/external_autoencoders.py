#!/usr/bin/env python3
"""The weights that others published (TAEF2, TAESANA): naevus against plain PyTorch in float64, on real images.

    tools/external_autoencoders.py DIR --images DIR2                compares, prints the figures, exits 1 where one is beyond the limit
    tools/external_autoencoders.py DIR --write                      writes tests/external/autoencoders.safetensors

DIR holds taef2/ and taesana/ with the .pth files of https://github.com/madebyollin/taesd. Nothing of them is committed but results
on a synthetic image.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from golden import taesd
from golden.files import METADATA, Tensors, smooth_image

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "external" / "autoencoders.safetensors"
ALLOWED = 1e-4
# (name, file, component, how it is built)
MODELS = {
    "taef2 encoder": ("taef2/taef2_encoder.pth", "vae-encoder", lambda: taesd.encoder(64, 32, True)),
    "taef2 decoder": ("taef2/taef2_decoder.pth", "vae-decoder", lambda: taesd.decoder(64, 32, True)),
    "taesana encoder": ("taesana/taesana_encoder.pth", "vae-encoder", lambda: taesd.encoder_by_32(64, 32)),
}


def load(folder, name):
    file, _, build = MODELS[name]
    model = build().double().eval()
    state = torch.load(folder / file, map_location="cpu", weights_only=True)
    model.load_state_dict({key: value.double() for key, value in state.items()})
    return model


def pixels(path):
    """[1, 3, H, W] in [0, 1], the upper left part whose sides are multiples of 32."""
    image = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) / 255
    height, width = (side // 32 * 32 for side in image.shape[:2])
    return torch.from_numpy(image[:height, :width]).permute(2, 0, 1)[None].float().double()


def naevus(program, device, folder, name, tensor):
    file, component, _ = MODELS[name]
    given, made = ("sample", "latents") if component == "vae-encoder" else ("latents", "sample")
    with tempfile.TemporaryDirectory() as scratch:
        inputs, out = Path(scratch) / "in.safetensors", Path(scratch) / "out.safetensors"
        save_file({given: tensor.float().contiguous()}, inputs)
        command = [program, "-q", "--device", device, "forward", "--model", folder / file, "--component", component, "--inputs", inputs, "--out", out]
        subprocess.run(command, check=True)
        return load_file(out)[made].double()


def relative_rms(ours, theirs):
    return float((ours - theirs).pow(2).mean().sqrt() / theirs.pow(2).mean().sqrt())


def psnr(image, original):
    return float(-10 * (image.clamp(0, 1) - original).pow(2).mean().log10())


@torch.no_grad()
def compare(arguments, folder):
    models, failures = {name: load(folder, name) for name in MODELS}, 0
    print(f"device {arguments.device}; relative rms of naevus from PyTorch in float64")
    print("| image | size | latents | image of them | PyTorch's round trip | naevus' round trip | taesana |")
    print("|---|---|---|---|---|---|---|")
    for path in sorted(arguments.images.glob("*.jpg"))[: arguments.count]:
        image = pixels(path)
        theirs = {"taef2 encoder": models["taef2 encoder"](image), "taesana encoder": models["taesana encoder"](image)}
        theirs["taef2 decoder"] = models["taef2 decoder"](theirs["taef2 encoder"])
        given = {"taef2 encoder": image, "taef2 decoder": theirs["taef2 encoder"], "taesana encoder": image}
        ours = {name: naevus(arguments.naevus, arguments.device, folder, name, given[name]) for name in MODELS}
        trip = naevus(arguments.naevus, arguments.device, folder, "taef2 decoder", ours["taef2 encoder"])
        errors = {name: relative_rms(ours[name], theirs[name]) for name in MODELS}
        figures = [psnr(theirs["taef2 decoder"], image), psnr(trip, image)]
        failures += not max(errors.values()) <= ALLOWED
        size = f"{image.shape[3]} x {image.shape[2]}"
        latents, decoded, taesana = (f"{errors[name]:.1e}" for name in ("taef2 encoder", "taef2 decoder", "taesana encoder"))
        print(f"| {path.stem} | {size} | {latents} | {decoded} | {figures[0]:.3f} dB | {figures[1]:.3f} dB | {taesana} |")
    return failures


@torch.no_grad()
def golden(folder):
    image = smooth_image(("external", "autoencoders"), (1, 3, 32, 64))
    models = {name: load(folder, name) for name in MODELS}
    latents = models["taef2 encoder"](image).float().double()
    return Tensors({
        "sample": image, "taef2/latents": latents, "taef2/sample": models["taef2 decoder"](latents),
        "taesana/latents": models["taesana encoder"](image),
    }, METADATA | {"generator": "tools/external_autoencoders.py"})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--images", metavar="DIR2", type=Path, help="JPEG files")
    parser.add_argument("--count", type=int, default=8, help="so many of them, by name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--naevus", default=ROOT / "target" / "release" / "naevus", help="the program")
    parser.add_argument("--write", action="store_true", help="write the numbers that the tests compare with")
    arguments = parser.parse_args()
    if arguments.write:
        GOLDEN.parent.mkdir(parents=True, exist_ok=True)
        GOLDEN.write_bytes(golden(arguments.folder).bytes())
        print(f"{GOLDEN}: {GOLDEN.stat().st_size / 1000:.0f} kB")
        return 0
    if arguments.images is None:
        parser.error("--images is needed to compare")
    return 1 if compare(arguments, arguments.folder) else 0


if __name__ == "__main__":
    sys.exit(main())
