"""Times a diffusers UNet2DModel's forward with PyTorch on the CPU in f32: the other side of `naevus bench unet`.

python tools/bench_torch.py --model ../shared/reference/inpaint-ham128 --batch 4 --threads 2
"""

import argparse
import statistics
import time

import torch
from diffusers import UNet2DModel


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="model folder with unet/")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    unet = UNet2DModel.from_pretrained(args.model, subfolder="unet").float().eval()
    size = unet.config.sample_size
    sample = torch.randn(args.batch, unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    classes = torch.zeros(args.batch, dtype=torch.long) if unet.config.num_class_embeds else None
    times = []
    with torch.inference_mode():
        for run in range(args.runs + 3):
            start = time.perf_counter()
            unet(sample, torch.tensor(500), class_labels=classes)
            if run >= 3:
                times.append(1e3 * (time.perf_counter() - start))
    median = statistics.median(times)
    mad = statistics.median(abs(t - median) for t in times)
    print(f"torch {torch.__version__}, {args.threads} threads, batch {args.batch}: {median:.2f} ms +- {mad:.2f} ms, {min(times):.2f} ... {max(times):.2f}, {args.runs} runs")


if __name__ == "__main__":
    main()
