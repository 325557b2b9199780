"""Measures the trained models on the held-out part and draws contact sheets.

Sources of the samples are training images of the class (`same`) and of nevi (`head`); the judge, which shares nothing with
the denoiser but the split, labels the samples. PRDC compares the classifier's features of the samples with those of held-out
real images of the same class; near copies are samples whose features have a cosine above 0.995 with a training image other than
the source. Writes evaluation.json and sheets/*.jpg (source | hole | samples; those hold patients' images: keep them out of the repository).
"""

import argparse
import json
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import load_file

import classifier
import data
import denoiser
import inpaint
import session
from prdc import prdc


def load_classifier(folder):
    config = json.loads((folder / "config.json").read_text())
    model = classifier.make(config["architecture"])
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()}, strict=False)
    return model.to(session.device()).eval()


def load_unet(folder):
    config = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if not k.startswith("_")}
    model = UNet2DModel(**config)
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "diffusion_pytorch_model.safetensors").items()})
    return model.to(session.device()).eval()


def interval(values, groups, draws=1000, seed=0):
    """95 % bootstrap interval of a mean, whole groups drawn."""
    names = sorted(set(groups))
    sums = torch.zeros(len(names)).index_add(0, torch.tensor([names.index(g) for g in groups]), values.cpu().float())
    sizes = torch.zeros(len(names)).index_add(0, torch.tensor([names.index(g) for g in groups]), torch.ones(len(groups)))
    rows = torch.randint(len(names), (draws, len(names)), generator=torch.Generator().manual_seed(seed))
    means = sums[rows].sum(1) / sizes[rows].sum(1)
    return [round(means.quantile(q).item(), 4) for q in (0.025, 0.975)]


def sheet(rows, path):
    """rows: lists of [3, S, S] in [0, 1]."""
    lines = [torch.cat(list(row), 2) for row in rows]
    pixels = (torch.cat(lines, 1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=88)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--pack", type=pathlib.Path, required=True)
    p.add_argument("--models", type=pathlib.Path, required=True, help="folder with inpaint/, classifier/, judge/")
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--until", type=float, default=math.inf, help="begin nothing new after this Unix time")
    p.add_argument("--wait-for", type=pathlib.Path, help="begin when this file is there")
    p.add_argument("--wait-until", type=float, default=0, help="or at this Unix time")
    p.add_argument("--per-class", type=int, default=64)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--guidance", type=float, nargs="*", default=[2.0, 3.0, 1.0, 4.0])
    p.add_argument("--widen", type=int, default=data.DILATE, help="pixels by which the lesion mask becomes the hole")
    p.add_argument("--classes", nargs="*", choices=data.CLASSES, default=data.CLASSES)
    p.add_argument("--limit", type=int)
    p.add_argument("--threads", type=int, default=0)
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    train, held = data.load(args.pack, session.device(), args.limit)
    while args.wait_for and not args.wait_for.exists() and time.time() < args.wait_until:
        time.sleep(0.2)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    unet, vae = load_unet(args.models / "inpaint" / "unet"), denoiser.load_autoencoder(args.models / "inpaint" / "vae")
    judges = {name: load_classifier(args.models / name) for name in ["judge", "classifier"] if (args.models / name / "config.json").exists()}
    print(f"evaluate: {time.strftime('%H:%M:%S')} loaded", flush=True)
    real = {name: classifier.features_of(m, held.images) for name, m in judges.items()}
    known = {name: F.normalize(classifier.features_of(m, train.images), dim=1) for name, m in judges.items()}
    report = {"steps": args.steps, "widen": args.widen, "samples": []}
    report["held_out_recall"] = {n: classifier.recalls(classifier.logits_of(m, held.images).argmax(1), held.labels) for n, m in judges.items()}

    def paint(rows, label, guidance, seed):
        images, masks = train.images[rows].float() / 255, data.dilate(train.masks[rows].float(), args.widen)
        labels = torch.full((len(rows),), label, device=images.device)
        step = 96 if session.device().type == "cuda" else 8
        parts = [
            inpaint.paint(unet, vae, images[i : i + step], masks[i : i + step], labels[i : i + step], args.steps, guidance, seed + i)
            for i in range(0, len(rows), step)
        ]
        return images, data.cells(masks)[1], torch.cat(parts)

    area = train.masks.float().mean((1, 2, 3))
    usable = (area > 0.03) & (area < 0.6)
    for guidance in args.guidance:
        for name in args.classes:
            label = data.CLASSES.index(name)
            for sources in ["same", "head"]:
                of = label if sources == "same" else data.CLASSES.index("nv")
                rows = torch.nonzero((train.labels == of) & usable).flatten()
                if time.time() > args.until or not len(rows):
                    continue
                pick = torch.randint(len(rows), (args.per_class,), generator=torch.Generator().manual_seed(label))
                rows = rows[pick.to(rows.device)]
                images, pixels, made = paint(rows, label, guidance, 1000 * label)
                row = {"class": name, "sources": sources, "guidance": guidance, "samples": len(rows)}
                row["spread_in_hole"] = round(((made - images).abs() * pixels).sum().item() / (pixels.sum().item() * 3 + 1e-9), 4)
                for judge, model in judges.items():
                    features = classifier.features_of(model, made)
                    agree = classifier.logits_of(model, made).argmax(1) == label
                    row[f"{judge}_agreement"] = round(agree.float().mean().item(), 4)
                    row[f"{judge}_agreement_interval"] = interval(agree, [train.lesions[i] for i in rows.tolist()])
                    near = F.normalize(features, dim=1) @ known[judge].T
                    near[torch.arange(len(rows)), rows] = -1
                    row[f"{judge}_near_copies"] = round((near.max(1).values > 0.995).float().mean().item(), 4)
                    row[f"{judge}_prdc"] = prdc(real[judge][held.labels == label], features)
                report["samples"].append(row)
                print(json.dumps(row), flush=True)
                grey = torch.where(pixels > 0, 0.5, images)
                again = [paint(rows[:8], label, guidance, 77 + 10 * s)[2] for s in range(2)]
                lines = [[images[i], grey[i], made[i], again[0][i], again[1][i]] for i in range(min(8, len(rows)))]
                reals = held.images[held.labels == label].float() / 255
                for i, line in enumerate(lines):
                    line.append(reals[i % len(reals)] if len(reals) else torch.zeros_like(images[0]))
                sheet(lines, args.out / "sheets" / f"{name}-{sources}-g{guidance:g}.jpg")
                session.write_json(args.out / "evaluation.json", report)
    with torch.no_grad():
        rows = torch.randperm(len(held), generator=torch.Generator().manual_seed(1))[:8].to(held.images.device)
        decoded = denoiser.inpaint.decode(vae, inpaint.encode(vae, held.images[rows].float() / 255))
        sheet([[held.images[r].float() / 255 for r in rows], list(decoded)], args.out / "sheets" / "autoencoder.jpg")
    session.write_json(args.out / "evaluation.json", report)


if __name__ == "__main__":
    main()
