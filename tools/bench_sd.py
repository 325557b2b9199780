#!/usr/bin/env python3
"""Stable Diffusion 1.5's inpainting UNet and autoencoder with random weights: written for `naevus bench`, and timed with PyTorch.

    tools/bench_sd.py DIR                     write DIR/unet and DIR/vae (f16), and time both eagerly on the GPU
    naevus bench unet --model DIR/unet --batch 2 --precision f16
    naevus bench vae --model DIR/vae --precision f16
"""

import argparse
import statistics
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file


def randomise(model):
    """Weights that keep activations near one."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.normal_(generator=generator)
            if value.ndim >= 2:
                value.mul_(0.8 / value[0].numel() ** 0.5)
            elif "norm" in key and key.endswith("weight"):
                value.mul_(0.3).add_(1.0)
            else:
                value.mul_(0.1)


def write(model, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(model.to_json_string())
    save_file({k: v.half().contiguous().cpu() for k, v in model.state_dict().items()}, folder / "diffusion_pytorch_model.safetensors")


def timed(name, call, runs=20):
    with torch.inference_mode():
        for _ in range(5):
            call()
        times = []
        for _ in range(runs):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
    median = statistics.median(times)
    mad = statistics.median(abs(t - median) for t in times)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, eager: {name}: {median:.2f} ms +- {mad:.2f}, {min(times):.2f} to {max(times):.2f}", flush=True)


def time_unet(model, batch, dtype):
    sample = torch.randn(batch, 9, 64, 64, device="cuda", dtype=dtype)
    text = torch.randn(batch, 77, 768, device="cuda", dtype=dtype)
    if dtype == torch.float16:
        sample = sample.contiguous(memory_format=torch.channels_last)
    timed(f"unet {dtype} batch {batch}", lambda: model(sample, 501, text, return_dict=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.device("cuda"):
        unet = UNet2DConditionModel(sample_size=64, in_channels=9, cross_attention_dim=768).eval()
        vae = AutoencoderKL(
            sample_size=512, latent_channels=4, norm_num_groups=32, layers_per_block=2, block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).eval()  # fmt: skip
    for name, model in [("unet", unet), ("vae", vae)]:
        randomise(model)
        write(model, folder / name)
    time_unet(unet, 2, torch.float32)
    unet.half().to(memory_format=torch.channels_last)
    time_unet(unet, 2, torch.float16)
    time_unet(unet, 8, torch.float16)
    vae.half().to(memory_format=torch.channels_last)
    latents = torch.randn(1, 4, 64, 64, device="cuda", dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    image = torch.randn(1, 3, 512, 512, device="cuda", dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    timed("decode 512 f16", lambda: vae.decode(latents, return_dict=False))
    timed("encode 512 f16", lambda: vae.encode(image, return_dict=False))


if __name__ == "__main__":
    main()
