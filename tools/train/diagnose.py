"""Where a class is lost: in the classifier that judges, in the autoencoder, or in the denoiser.

python tools/train/diagnose.py --pack out/ham128.npz --weights weights --judge weights/judge

Held-out images that the judge gets right, the same after the autoencoder's round trip, the colour error of that round trip (CIE76
difference of the mean colour inside the lesion), and samples in `--images` (synthetic nevi, the demo's) by guidance.
Same seeds and same judge: two sets of weights can be compared. One JSON object on standard output.
"""

import argparse
import csv
import json
import pathlib

import numpy as np
import torch
from PIL import Image

import autoencoder
import classifier
import data
import denoiser
import evaluate
import inpaint
import session


def sources(folder, device):
    """(images in [0, 1], masks) of a folder laid out like weights/demo."""
    names = [row["image_id"] for row in csv.DictReader(open(folder / "labels.csv"))]
    images = np.stack([np.asarray(Image.open(folder / "images" / f"{n}.png").convert("RGB")) for n in names])
    masks = np.stack([np.asarray(Image.open(folder / "masks" / f"{n}_mask.png").convert("L")) > 127 for n in names])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().to(device) / 255, torch.from_numpy(masks)[:, None].float().to(device)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--pack", type=pathlib.Path, required=True)
    p.add_argument("--weights", type=pathlib.Path, required=True, help="its inpaint/ is looked at")
    p.add_argument("--judge", type=pathlib.Path, help="default: judge/ of --weights")
    p.add_argument("--images", type=pathlib.Path, default=pathlib.Path("weights/demo"))
    p.add_argument("--classes", nargs="*", choices=data.CLASSES, default=["df", "vasc", "akiec"])
    p.add_argument("--guidance", type=float, nargs="*", default=[3.0, 5.0, 7.0])
    p.add_argument("--rounds", type=int, default=2, help="samples per source")
    p.add_argument("--widen", type=int, default=20, help="pixels by which the lesion mask becomes the hole")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    device = session.device()
    _, held = data.load(args.pack, device)
    vae = denoiser.load_autoencoder(args.weights / "inpaint" / "vae")
    judge = evaluate.load_classifier(args.judge or args.weights / "judge")
    decoded = autoencoder.reconstruct(vae, held.images)
    psnr = autoencoder.psnr(held.images, decoded)
    error = data.colour_error(held.images.float() / 255, decoded, held.masks)
    real, trip = (classifier.logits_of(judge, x).argmax(1) for x in (held.images, decoded))
    report = {"psnr_db_mean": round(psnr.mean().item(), 3), "held_out": {}, "samples": []}
    for label, name in enumerate(data.CLASSES):
        of = held.labels == label
        report["held_out"][name] = {
            "images": int(of.sum()), "right": int((real[of] == label).sum()), "right_after_round_trip": int((trip[of] == label).sum()),
            "psnr_db": round(psnr[of].mean().item(), 2), "colour_error": round(error[of].nanmean().item(), 2),
        }  # fmt: skip
    print(json.dumps(report["held_out"]), flush=True)
    images, masks = sources(args.images, device)
    holes, unet = data.dilate(masks, args.widen), evaluate.load_unet(args.weights / "inpaint" / "unet")
    for name in args.classes:
        label = data.CLASSES.index(name)
        labels = torch.full((len(images),), label, device=device)
        for guidance in args.guidance:
            made = torch.cat([inpaint.paint(unet, vae, images, holes, labels, args.steps, guidance, seed=100 * r + label) for r in range(args.rounds)])
            seen = classifier.logits_of(judge, made).argmax(1)
            others = {c: int((seen == i).sum()) for i, c in enumerate(data.CLASSES) if i != label and (seen == i).any()}
            report["samples"].append({"class": name, "guidance": guidance, "samples": len(made), "agree": int((seen == label).sum()), "else": others})
            print(json.dumps(report["samples"][-1]), flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
