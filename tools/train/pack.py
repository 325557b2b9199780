"""Packs the data set into one file: images at 128x128 as JPEG, masks as bits, labels, lesion hashes and parts.

The file holds patients' images (HAM10000, CC BY-NC 4.0): keep it out of the repository.

python tools/train/pack.py --data ../shared/data/ham10000 --out out/ham128.npz
"""

import argparse
import csv
import io
import pathlib

import numpy as np
from PIL import Image

from data import CLASSES, SIZE

HERE = pathlib.Path(__file__).parent


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--split", type=pathlib.Path, default=HERE / "split.csv")
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--quality", type=int, default=93)
    p.add_argument("--subsampling", type=int, default=0, help="0: colour as fine as brightness, 2: at half the size")
    p.add_argument("--nevi", type=float, default=1.0, help="this part of the training nevi, the commonest class, for a smaller file")
    args = p.parse_args()
    labels = {row["image_id"]: row["dx"] for row in csv.DictReader(open(args.data / "labels.csv"))}
    rows = list(csv.DictReader(open(args.split)))
    nevi = [r for r in rows if labels[r["image_id"]] == "nv" and r["part"] != "held_out"]
    dropped = {r["image_id"] for r in nevi[round(args.nevi * len(nevi)) :]}
    rows = [r for r in rows if r["image_id"] not in dropped]
    jpegs, ends, masks = [], [], []
    for row in rows:
        name = row["image_id"]
        image = Image.open(args.data / "images" / f"{name}.jpg").convert("RGB").resize((SIZE, SIZE), Image.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=args.quality, subsampling=args.subsampling, optimize=True)
        jpegs.append(file.getvalue())
        ends.append(len(file.getvalue()))
        mask = Image.open(args.data / "masks" / f"{name}_segmentation.png").convert("L").resize((SIZE, SIZE), Image.BILINEAR)
        masks.append(np.packbits(np.asarray(mask) > 127))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        args.out,
        jpeg=np.frombuffer(b"".join(jpegs), np.uint8),
        end=np.cumsum(ends),
        mask=np.stack(masks),
        label=np.array([CLASSES.index(labels[row["image_id"]]) for row in rows]),
        id=np.array([row["image_id"] for row in rows]),
        lesion=np.array([row["lesion_hash"] for row in rows]),
        held_out=np.array([row["part"] == "held_out" for row in rows]),
    )
    print(f"{args.out}: {len(rows)} images, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
