"""Times PyTorch on the CPU in f32: the other side of `naevus bench unet` and `naevus bench ops --device cpu`.

python tools/bench_torch.py --model ../shared/reference/inpaint-ham128 --batch 4 --threads 2    # a UNet2DModel's forward
python tools/bench_torch.py --ops --threads 2                                                   # operators in shapes of Stable Diffusion 1.5, depthwise convolutions

Operators carry the names of naevus' bench rows; a convolution is timed in both memory formats, and the faster one counts.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel


def conv2d(batch, inputs, outputs, side, layout):
    x = torch.randn(batch, inputs, side, side).to(memory_format=layout)
    weight, bias = torch.randn(outputs, inputs, 3, 3).to(memory_format=layout), torch.randn(outputs)
    return lambda: F.conv2d(x, weight, bias, padding=1)


def depthwise(batch, channels, side, kernel, layout):
    x = torch.randn(batch, channels, side, side).to(memory_format=layout)
    weight, bias = torch.randn(channels, 1, kernel, kernel).to(memory_format=layout), torch.randn(channels)
    return lambda: F.conv2d(x, weight, bias, padding=kernel // 2, groups=channels)


def attention(batch, tokens, keys, heads, width):
    q = torch.randn(batch, heads, tokens, width)
    k, v = torch.randn(2, batch, heads, keys, width)
    return lambda: F.scaled_dot_product_attention(q, k, v)


LAYOUTS = [torch.contiguous_format, torch.channels_last]
OPS = {
    "conv2d/sd_320x64x64": [lambda f=f: conv2d(2, 320, 320, 64, f) for f in LAYOUTS],
    "conv2d/sd_640x64x64": [lambda f=f: conv2d(1, 640, 640, 64, f) for f in LAYOUTS],
    "conv2d/sd_1280x16x16": [lambda f=f: conv2d(2, 1280, 1280, 16, f) for f in LAYOUTS],
    "conv2d/depthwise_96x56x56": [lambda f=f: depthwise(8, 96, 56, 3, f) for f in LAYOUTS],
    "conv2d/depthwise_384x14x14": [lambda f=f: depthwise(8, 384, 14, 7, f) for f in LAYOUTS],
    "attention/sd_4096x8x40": [lambda: attention(1, 4096, 4096, 8, 40)],
    "attention/sd_1024x8x80": [lambda: attention(2, 1024, 1024, 8, 80)],
    "attention/sd_cross_4096x77x8x40": [lambda: attention(2, 4096, 77, 8, 40)],
}


def timed(run, runs):
    """Milliseconds of each run after three that are not counted."""
    times = []
    for i in range(runs + 3):
        start = time.perf_counter()
        run()
        if i >= 3:
            times.append(1e3 * (time.perf_counter() - start))
    return times


def line(times):
    median = statistics.median(times)
    mad = statistics.median(abs(t - median) for t in times)
    return f"{median:.2f} ms +- {mad:.2f} ms, {min(times):.2f} ... {max(times):.2f}, {len(times)} runs"


def forward(args):
    unet = UNet2DModel.from_pretrained(args.model, subfolder="unet").float().eval()
    size = unet.config.sample_size
    sample = torch.randn(args.batch, unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    classes = torch.zeros(args.batch, dtype=torch.long) if unet.config.num_class_embeds else None
    return lambda: unet(sample, torch.tensor(500), class_labels=classes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="model folder with unet/")
    what.add_argument("--ops", action="store_true")
    parser.add_argument("--batch", type=int, default=4, help="of the model's forward")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        if args.model:
            print(f"torch {torch.__version__}, {args.threads} threads, batch {args.batch}: {line(timed(forward(args), args.runs))}")
            return
        for name, forms in OPS.items():
            print(f"{name}: {line(min((timed(form(), args.runs) for form in forms), key=statistics.median))}", flush=True)


if __name__ == "__main__":
    main()
