#!/usr/bin/env python3
"""The same job by `naevus synthesize` and by diffusers on the CPU in f32: peak resident memory and seconds of the whole process.

    tools/bench_synthesize.py small --naevus target/release/naevus          weights/inpaint: 128 x 128, 8 images in batches of 8, 20 steps
    tools/full_size.py DIR                                                   a full-size Stable Diffusion 1.5 inpainting UNet (f16 file), random weights
    tools/bench_synthesize.py sd --folder DIR --naevus target/release/naevus 512 x 512, 1 image, 2 steps; writes DIR/vae, DIR/tokens.safetensors, ... first

Sources are those of weights/demo. Both sides read the same weights, encode an image and its hole, walk with guidance 3 and write PNG files.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "weights" / "demo"
CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]


def sources(count, size):
    import numpy
    import torch
    from PIL import Image

    def read(folder, mode):
        files = sorted((SOURCES / folder).iterdir())[:count]
        return numpy.stack([numpy.asarray(Image.open(f).convert(mode).resize((size, size))) for f in files])

    images = torch.from_numpy(read("images", "RGB").copy()).permute(0, 3, 1, 2).float() / 255
    return images, (torch.from_numpy(read("masks", "L").copy())[:, None] > 127).float()


def write(images, out):
    from PIL import Image

    for i, image in enumerate(images):
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(out / f"{i}.png")


def small(args):
    """diffusers' models and scheduler in the loop of ClassConditionalInpaint: diffusers has no pipeline for it."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
    from torch.nn.functional import max_pool2d

    folder = ROOT / "weights" / "inpaint"
    unet, vae = (kind.from_pretrained(folder, subfolder=part).float().eval() for kind, part in [(UNet2DModel, "unet"), (AutoencoderKL, "vae")])
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    images, hole = sources(args.images, 128)
    cells = max_pool2d(hole, 4)
    with torch.inference_mode():
        z0 = vae.encode(images * 2 - 1).latent_dist.mean
        masked = vae.encode(torch.where(cells.repeat_interleave(4, 2).repeat_interleave(4, 3) > 0, 0.5, images) * 2 - 1).latent_dist.mean
        noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
        x, labels = noise, torch.full((args.images,), CLASSES.index("df"))
        scheduler.set_timesteps(args.steps)
        for k, t in enumerate(scheduler.timesteps):
            both = torch.cat([torch.cat([x, cells, masked], 1)] * 2)
            none, some = unet(both, t, torch.cat([torch.full_like(labels, len(CLASSES)), labels])).sample.chunk(2)
            x = scheduler.step(none + 3 * (some - none), t, x).prev_sample
            later = scheduler.timesteps[k + 1 : k + 2]
            known = scheduler.add_noise(z0, noise, later) if len(later) else z0
            x = cells * x + (1 - cells) * known
        write((vae.decode(x).sample * 0.5 + 0.5).clamp(0, 1), args.out)


def sd(args):
    import torch
    from diffusers import StableDiffusionInpaintPipeline
    from safetensors.torch import load_file

    pipeline = StableDiffusionInpaintPipeline.from_pretrained(
        args.folder, text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None, torch_dtype=torch.float32, requires_safety_checker=False
    )
    images, hole = sources(args.images, 512)
    tokens = load_file(args.folder / "tokens.safetensors")
    some, none = (tokens[name].repeat(args.images, 1, 1) for name in ["df", "null"])
    result = pipeline(
        image=images * 2 - 1, mask_image=hole, prompt_embeds=some, negative_prompt_embeds=none, num_inference_steps=args.steps, guidance_scale=3.0,
        height=512, width=512, output_type="pt",
    )  # fmt: skip
    write(result.images.float().cpu(), args.out)


def make_sd(folder):
    """What a Stable Diffusion folder needs beside unet/, with random weights."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler
    from safetensors.torch import save_file

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4, sample_size=512, scaling_factor=0.18215,
    ).half()  # fmt: skip
    vae.save_pretrained(folder / "vae")
    DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1).save_pretrained(folder / "scheduler")
    parts = {"scheduler": ["diffusers", "DDIMScheduler"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    parts |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionInpaintPipeline", "_diffusers_version": "0.42.1", **parts}))
    save_file({name: torch.randn(77, 768) for name in ["df", "null"]}, folder / "tokens.safetensors")


def measured(line):
    """Seconds and peak resident memory in bytes of one process."""
    code = "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:], capture_output=True, text=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.stderr.write(r.stderr[-2000:] if r.returncode else ''); sys.exit(r.returncode)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *map(str, line)], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(map(str, line))}: exit code {done.returncode}: {done.stderr}")
    return seconds, 1024 * int(done.stdout)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("job", choices=["small", "sd"])
    p.add_argument("--folder", type=Path, help="of the job sd: tools/full_size.py's")
    p.add_argument("--naevus", type=Path, help="the program; without it diffusers' side is run in this process")
    p.add_argument("--images", type=int)
    p.add_argument("--steps", type=int)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    args.images, args.steps = args.images or {"small": 8, "sd": 1}[args.job], args.steps or {"small": 20, "sd": 2}[args.job]
    if not args.naevus:
        import torch

        torch.set_num_threads(args.threads)
        args.out.mkdir(parents=True, exist_ok=True)
        {"small": small, "sd": sd}[args.job](args)
        return
    if args.job == "sd" and not (args.folder / "model_index.json").exists():
        make_sd(args.folder)
    both = {"diffusers": [], "naevus": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as out:
            same = ["--images", args.images, "--steps", args.steps, "--out", out]
            both["diffusers"].append(measured([sys.executable, __file__, args.job, "--threads", args.threads, *same, *(["--folder", args.folder] if args.folder else [])]))
        with tempfile.TemporaryDirectory() as out:
            line = [args.naevus, "synthesize", "--labels", SOURCES / "labels.csv", "--images", SOURCES / "images", "--masks", SOURCES / "masks", "--sources", "any"]
            line += ["--classes", "df", "--per-class", args.images, "--batch", args.images, "--steps", args.steps, "--guidance", 3, "--device", "cpu", "--out", Path(out) / "o"]
            line += ["--model", ROOT / "weights" / "inpaint"] if args.job == "small" else ["--model", args.folder, "--class-tokens", args.folder / "tokens.safetensors", "--size", 512]
            both["naevus"].append(measured(line))
    for side, values in both.items():
        print(f"{side}: {statistics.median(v[0] for v in values):.1f} s, peak {max(v[1] for v in values) / 1e6:.0f} MB")
    seconds, peaks = ([statistics.median(v[i] for v in both[side]) for side in ["naevus", "diffusers"]] for i in (0, 1))
    print(f"naevus / diffusers: time {seconds[0] / seconds[1]:.2f}, memory {peaks[0] / peaks[1]:.2f}")


if __name__ == "__main__":
    main()
