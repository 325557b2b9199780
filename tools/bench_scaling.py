#!/usr/bin/env python3
"""How time and memory of `naevus bench synthesize` grow with the batch and the image.

    tools/bench_scaling.py --naevus target/release/naevus [--model weights/inpaint] [--steps 2] [--batches 1 2 4 8 16] [--sizes 64 128 256 512]

Each cell is a process of its own: median seconds of a batch from pixels to pixels, and the process' peak resident memory. The exponents are
slopes of straight lines through the logarithms: of batches in a column, of pixels in a row; 1 is proportional. Sizes other than
the model's own are copies of its folder that say another size; what such a model paints is not looked at.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def resized(model, size, folder):
    """A folder like `model` whose configurations say `size` pixels; weights are links."""
    index = json.loads((model / "model_index.json").read_text())
    factor = index["image_size"] / size
    for file in model.rglob("*"):
        if file.is_dir():
            continue
        to = folder / file.relative_to(model)
        to.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".json":
            config = json.loads(file.read_text())
            for key in ("image_size", "sample_size"):
                if isinstance(config.get(key), int):
                    config[key] = round(config[key] / factor)
            to.write_text(json.dumps(config))
        else:
            to.symlink_to(file.resolve())
    return folder


def cell(args, model, batch):
    """(seconds, bytes)"""
    with tempfile.TemporaryDirectory() as scratch:
        export = Path(scratch) / "rows.json"
        line = [args.naevus, "--quiet", "--device", args.device, "bench", "synthesize", "--model", model, "--batch", batch, "--steps", args.steps]
        line += ["--seconds", args.seconds, "--no-layers", "--export", "json", export]
        child = subprocess.Popen([str(word) for word in line], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        if os.waitstatus_to_exitcode(status):
            sys.exit(f"{' '.join(map(str, line))}: {os.waitstatus_to_exitcode(status)}")
        row = next(row for row in json.loads(export.read_text())["rows"] if row["name"] == "synthesize.batch")
        return row["median_ms"] / 1e3, used.ru_maxrss * 1024


def slope(xs, ys):
    xs, ys = ([math.log(v) for v in values] for values in (xs, ys))
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys)) / sum((a - x) ** 2 for a in xs)


def table(title, values, args, form):
    print(f"\n{title}\n\n| batch | " + " | ".join(f"{size} x {size}" for size in args.sizes) + " | exponent of pixels |")
    print("|---" * (len(args.sizes) + 2) + "|")
    for batch in args.batches:
        row = [values[batch, size] for size in args.sizes]
        print(f"| {batch} | " + " | ".join(form(v) for v in row) + f" | {slope([s * s for s in args.sizes], row):.2f} |")
    print("| exponent of batch | " + " | ".join(f"{slope(args.batches, [values[b, s] for b in args.batches]):.2f}" for s in args.sizes) + " | |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    p.add_argument("--naevus", type=Path, required=True)
    p.add_argument("--model", type=Path, default=root / "weights" / "inpaint")
    p.add_argument("--device", default="cpu")
    p.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    p.add_argument("--sizes", type=int, nargs="*", default=[64, 128, 256, 512])
    p.add_argument("--steps", type=int, default=2)
    p.add_argument("--seconds", type=float, default=0.3)
    args = p.parse_args()
    times, peaks = {}, {}
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            model = resized(args.model, size, Path(scratch))
            for batch in args.batches:
                times[batch, size], peaks[batch, size] = cell(args, model, batch)
                print(f"batch {batch}, {size} pixels: {times[batch, size]:.3f} s, {peaks[batch, size] / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    first = times[args.batches[0], args.sizes[0]]
    table("Time, in units of the first cell:", times, args, lambda v: f"{v / first:.2f}")
    table("Peak resident memory, MiB:", peaks, args, lambda v: f"{v / 2**20:.0f}")


if __name__ == "__main__":
    main()
