"""Can a sample be told from a photograph by how sharp its hole is?

The root mean square of the Laplacian inside the hole over that outside, in 8-bit grey values: of real training images of a class, inside their lesion; of the
same where the autoencoder's round trip is pasted into the hole; and of the samples of a run, in all that was repainted. AUC 0.5: not to be told apart; 1: real
images are always the sharper ones. And how many of the samples an independent classifier gives the asked class.

python tools/train/sharpness.py --pack out/ham128.npz --softened out/mission/softened.npz --run out/mission/run --data out/mission/train
"""

import argparse
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import classifier
import data
import evaluate
import mission

# Pixels by which both sides keep clear of the seam.
MARGIN = 4
LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]


def ratio(image, inside, hole):
    """log of the sharpness in `inside` over that outside the hole; None where either is too small. u8 [3, S, S]; float [1, 1, S, S], 1: in it."""
    squares = F.conv2d(image.float().mean(0)[None, None], LAPLACIAN) ** 2
    inside, outside = 1 - data.dilate(1 - inside, MARGIN) > 0, data.dilate(hole, MARGIN) == 0
    inside, outside = (squares[part[..., 1:-1, 1:-1]] for part in (inside, outside))
    if min(len(inside), len(outside)) < 50:
        return None
    return 0.5 * (inside.mean() / outside.mean()).log().item()


def auc(high, low):
    """Probability that a value of `high` is above one of `low`."""
    return float((np.asarray(high)[:, None] > np.asarray(low)[None]).mean())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pack", type=pathlib.Path, required=True)
    p.add_argument("--softened", type=pathlib.Path, required=True, help="mission.py soften's")
    p.add_argument("--run", type=pathlib.Path, required=True, help="of naevus synthesize")
    p.add_argument("--data", type=pathlib.Path, required=True, help="the run's data set, mission.py prepare's train/")
    p.add_argument("--widen", type=int, default=20, help="pixels by which the lesion mask became the hole: the run's --dilate")
    p.add_argument("--judge", type=pathlib.Path, default=pathlib.Path("weights/judge"))
    args = p.parse_args()
    train, _ = data.load(args.pack, "cpu")
    soft = mission.load_jpegs(np.load(args.softened), "cpu")
    judge = evaluate.load_classifier(args.judge)
    device = next(judge.parameters()).device
    print("| class | real, median | round trip | samples | AUC real : samples | AUC real : round trip | AUC round trip : samples | judge agrees |\n" + "|---" * 8 + "|")
    lines = mission.written(args.run)
    for name in sorted({line["class"] for line in lines}):
        label = data.CLASSES.index(name)
        real, trip, samples, images = [], [], [], []
        for i in torch.nonzero(train.labels == label).flatten():
            mask = train.masks[i].float().reshape(1, 1, data.SIZE, data.SIZE)
            hole = data.dilate(mask, args.widen)
            real.append(ratio(train.images[i], mask, hole))
            trip.append(ratio(torch.where(hole[0] > 0, soft[i], train.images[i]), mask, hole))
        for line in (line for line in lines if line["class"] == name):
            image = Image.open(args.run / "images" / name / f"{line['sample_id']}.png").convert("RGB")
            mask = Image.open(args.data / "masks" / f"{line['source_id']}_segmentation.png").convert("L").resize(image.size, Image.Resampling.BILINEAR)
            hole = data.dilate(torch.from_numpy(np.asarray(mask) > 127).float()[None, None], args.widen)
            images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
            samples.append(ratio(images[-1], hole, hole))
        agrees = (classifier.logits_of(judge, torch.stack(images).to(device)).argmax(1) == label).float().mean().item()
        real, trip, samples = ([v for v in values if v is not None] for values in (real, trip, samples))
        cells = [*(f"{np.exp(np.median(v)):.2f}" for v in (real, trip, samples)), *(f"{auc(a, b):.2f}" for a, b in ((real, samples), (real, trip), (trip, samples)))]
        print(f"| {name} | " + " | ".join([*cells, f"{agrees:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
