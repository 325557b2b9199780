"""Can a sample be told from a photograph by how sharp its hole is?

The root mean square of the Laplacian inside the lesion's mask over that outside, in 8-bit grey values: of real training images of a class, of the same
where the autoencoder's round trip is pasted into the hole, and of the samples of a run. AUC 0.5: not to be told apart; 1: real images are always the sharper ones.

python tools/train/sharpness.py --pack out/ham128.npz --softened out/mission/softened.npz --run out/mission/run --data out/mission/train
"""

import argparse
import csv
import json
import pathlib

import numpy as np
from PIL import Image

import data
import mission

# Pixels by which the masks are left on both sides: the seam is not what is asked for.
MARGIN = 4


def grown(mask, pixels):
    for _ in range(pixels):
        wide = np.pad(mask, 1)
        mask = wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return mask


def ratio(image, mask, hole):
    """log of the inside's sharpness over the outside's; None where either is too small."""
    grey = image.astype(np.float64).mean(2)
    laplacian = np.zeros_like(grey)
    laplacian[1:-1, 1:-1] = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    edge = np.zeros_like(mask)
    edge[2:-2, 2:-2] = True
    inside, outside = ~grown(~mask, MARGIN) & edge, ~grown(mask, hole + MARGIN) & edge
    if inside.sum() < 50 or outside.sum() < 50:
        return None
    return 0.5 * np.log((laplacian[inside] ** 2).mean() / (laplacian[outside] ** 2).mean())


def auc(high, low):
    """Probability that a value of `high` is above one of `low`."""
    return float((np.asarray(high)[:, None] > np.asarray(low)[None]).mean())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pack", type=pathlib.Path, required=True)
    p.add_argument("--softened", type=pathlib.Path, required=True, help="mission.py soften's")
    p.add_argument("--run", type=pathlib.Path, required=True, help="of naevus synthesize")
    p.add_argument("--data", type=pathlib.Path, required=True, help="the run's data set, mission.py prepare's train/")
    args = p.parse_args()
    train, _ = data.load(args.pack, "cpu")
    soft = mission.load_jpegs(np.load(args.softened), "cpu")
    classes = {row["image_id"]: row["dx"] for row in csv.DictReader(open(args.data / "labels.csv"))}
    print("| class | real, median | round trip | samples | AUC real : samples | AUC real : round trip | AUC round trip : samples |\n|---|---|---|---|---|---|---|")
    lines = mission.written(args.run)
    for name in sorted({line["class"] for line in lines}):
        of = {"real": [], "trip": [], "samples": []}
        for i in np.flatnonzero((train.labels == data.CLASSES.index(name)).numpy()):
            mask = train.masks[i].numpy().reshape(data.SIZE, data.SIZE) > 0
            # The same outside as that of a sample.
            of["real"].append(ratio(train.images[i].permute(1, 2, 0).numpy(), mask, 20))
            # Pasted into the photograph, as a sample is.
            hole = grown(mask, 20)[..., None]
            pasted = np.where(hole, soft[i].permute(1, 2, 0).numpy(), train.images[i].permute(1, 2, 0).numpy())
            of["trip"].append(ratio(pasted, mask, 20))
        for line in (line for line in lines if line["class"] == name):
            assert line["source_id"] in classes
            mask = Image.open(args.data / "masks" / f"{line['source_id']}_segmentation.png").convert("L")
            image = Image.open(args.run / "images" / name / f"{line['sample_id']}.png").convert("RGB")
            mask = np.asarray(mask.resize(image.size, Image.Resampling.NEAREST)) > 127
            # What was repainted is the mask widened; all of it counts.
            of["samples"].append(ratio(np.asarray(image), grown(mask, 20 - MARGIN), MARGIN))
        real, trip, samples = ([v for v in values if v is not None] for values in of.values())
        cells = [*(f"{np.exp(np.median(v)):.2f}" for v in (real, trip, samples)), *(f"{auc(a, b):.2f}" for a, b in ((real, samples), (real, trip), (trip, samples)))]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
