#!/usr/bin/env python3
"""A UNet of Stable Diffusion 1.5 inpainting's full size with random weights, to prove that one loads and runs. Nothing of it is committed.

    tools/full_size.py DIR                          write DIR/unet (860 M parameters, f16, 1.7 GB), DIR/inputs.safetensors
                                                    and PyTorch's result in f32, DIR/expected.safetensors
    naevus forward --model DIR/unet --component unet --inputs DIR/inputs.safetensors --out OUT.safetensors
    tools/full_size.py DIR --compare OUT.safetensors
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

LATENTS = (64, 64)
TOKENS = 77
# Relative root mean square: f32 sums of up to 23 040 terms through some 200 layers.
ALLOWED = 1e-4


def randomise(model):
    """Weights that f16 holds. Queries and keys are larger than the rest, norms are far from identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.normal_(generator=generator)
            if value.ndim >= 2:
                gain = 1.5 if re.search(r"to_[qk]\.", key) else 0.8
                value.mul_(gain / value[0].numel() ** 0.5)
            elif "norm" in key and key.endswith("weight"):
                value.mul_(0.3).add_(1.0)
            else:
                value.mul_(0.1)
            value.copy_(value.half().float())


def write(folder):
    model = UNet2DConditionModel(sample_size=LATENTS[0], in_channels=9, cross_attention_dim=768).eval()
    randomise(model)
    unet = folder / "unet"
    unet.mkdir(parents=True, exist_ok=True)
    (unet / "config.json").write_text(json.dumps(json.loads(model.to_json_string()), indent=2))
    save_file({key: value.half().contiguous() for key, value in model.state_dict().items()}, unet / "diffusion_pytorch_model.safetensors")
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "sample": torch.randn(1, 9, *LATENTS, generator=generator),
        "timestep": torch.tensor([501.0]),
        "encoder_hidden_states": torch.randn(1, TOKENS, 768, generator=generator),
    }
    save_file(inputs, folder / "inputs.safetensors")
    start = time.perf_counter()
    with torch.inference_mode():
        sample = model(**inputs).sample
    seconds = time.perf_counter() - start
    save_file({"sample": sample.contiguous()}, folder / "expected.safetensors")
    parameters = sum(value.numel() for value in model.parameters())
    rms = sample.double().pow(2).mean().sqrt().item()
    print(f"{parameters} parameters; PyTorch {torch.__version__}, {torch.get_num_threads()} threads: {seconds:.1f} s, result of rms {rms:.3g}")


def compare(folder, out):
    got, want = (load_file(path)["sample"].double() for path in (out, folder / "expected.safetensors"))
    error = ((got - want).pow(2).mean() / want.pow(2).mean()).sqrt().item() if got.shape == want.shape else float("inf")
    print(f"{out}: {list(got.shape)}, relative rms {error:.1e}, expected {list(want.shape)} and at most {ALLOWED:.0e}")
    return error <= ALLOWED


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--compare", type=Path, metavar="OUT.safetensors", help="compare with PyTorch's result; exit 1 if it differs")
    arguments = parser.parse_args()
    if arguments.compare:
        return 0 if compare(arguments.folder, arguments.compare) else 1
    write(arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
