"""How near a run's samples come to real images that no model saw, and whether any is a copy of a training image.

Precision, recall, density and coverage (Naeem et al. 2020) of the samples against held-out real images of their class, in the features
of the classifier that selects, as `naevus features` writes them; the same for the training images of the class, which is what
could be reached. Near copies: the cosine to the nearest training image, and the root mean square difference of the pixels
inside the hole to the training image that is nearest there; for comparison, of held-out images inside their own holes.

python tools/train/mission.py prepare ...   # prints the four commands of naevus that come before this
python tools/train/prdc.py --pack out/ham128.npz --samples out/mission/samples.npz --run out/mission/run
"""

import argparse
import json
import pathlib

import torch

MAX_COSINE = 0.995
# Root mean square difference of pixels in [0, 1] under which two images of the same hole are called the same: 5 of 255.
MAX_RMS = 0.02


def prdc(real, made, k=3):
    """Precision, recall, density, coverage (Naeem et al. 2020)."""
    k = min(k, len(real) - 1, len(made) - 1)
    if k < 1:
        return None
    radius_real = torch.cdist(real, real).kthvalue(k + 1, 1).values
    radius_made = torch.cdist(made, made).kthvalue(k + 1, 1).values
    distance = torch.cdist(real, made)
    inside = distance < radius_real.view(-1, 1)
    values = {
        "precision": inside.any(0).float().mean(),
        "recall": (distance < radius_made.view(1, -1)).any(1).float().mean(),
        "density": inside.float().sum(0).mean() / k,
        "coverage": inside.any(1).float().mean(),
    }
    return {name: round(v.item(), 4) for name, v in values.items()}


def features(path):
    """({image or sample id: row}, features)."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        ids = json.loads(file.metadata()["ids"])
        return {name: i for i, name in enumerate(ids)}, file.get_tensor("features").float()


def nearest_in_hole(images, holes, known, skip=None):
    """For every image the root mean square difference inside its hole to the nearest of `known`. images, known: u8 [N, 3, S, S];
    holes: [N, 1, S, S]. At half the size: the nearest of thousands is wanted, not the last digit."""
    import torch.nn.functional as F

    def half(x):
        return F.avg_pool2d(x.float(), 2)

    x, m, k = half(images) / 255, (half(holes) == 1).float().expand(-1, 3, -1, -1), (half(known) / 255).flatten(1)
    m = m.flatten(1)
    x = x.flatten(1) * m
    square = (x * x).sum(1, keepdim=True) - 2 * x @ k.T + m @ (k * k).T
    if skip is not None:
        square[torch.arange(len(x)), skip] = torch.inf
    return (square.clamp(min=0) / m.sum(1, keepdim=True).clamp(min=1)).sqrt().min(1)


def main():
    import data
    import mission

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pack", type=pathlib.Path, required=True)
    p.add_argument("--samples", type=pathlib.Path, required=True, help="the file that `mission.py pack` wrote of this run")
    p.add_argument("--run", type=pathlib.Path, required=True, help="with features.safetensors, held_out.safetensors, real_features.safetensors")
    p.add_argument("--dilate", type=int, default=20, help="pixels by which the run widened the masks")
    p.add_argument("--k", type=int, default=5)
    p.add_argument("--out", type=pathlib.Path, help="[default: prdc.json in the run]")
    args = p.parse_args()
    train, held = data.load(args.pack, "cpu")
    images, labels, kept = mission.load_samples(args.samples, "cpu")
    lines = mission.written(args.run)
    verdicts = {v["sample_id"]: v for v in map(json.loads, open(args.run / "selection.jsonl"))}
    made_rows, made = features(args.run / "features.safetensors")
    held_rows, real = features(args.run / "held_out.safetensors")
    known_rows, known = features(args.run / "real_features.safetensors")
    row_of = {name: i for i, name in enumerate(train.ids)}
    holes = data.cells(data.dilate(train.masks.float(), args.dilate))[1]
    source = torch.tensor([row_of[line["source_id"]] for line in lines])
    cosine = torch.tensor([verdicts[line["sample_id"]]["nearest_cosine"] for line in lines])
    rms, nearest = nearest_in_hole(images, holes[source], train.images)
    held_holes = data.cells(data.dilate(held.masks.float(), args.dilate))[1]
    report = {"k": args.k, "max_cosine": MAX_COSINE, "max_rms": MAX_RMS}
    print("| class | images | precision | recall | density | coverage | cosine above 0.995 | median RMS in the hole | RMS below 0.02 | nearest is the source |\n" + "|---" * 10 + "|")
    for name in mission.RARE:
        label = data.CLASSES.index(name)
        of = real[[held_rows[i] for i, y in zip(held.ids, held.labels.tolist(), strict=True) if y == label]]
        for what in ["kept", "all"]:
            rows = [i for i, line in enumerate(lines) if line["class"] == name and (what == "all" or kept[i])]
            if not rows:
                print(f"| {name}, {what} | 0 |" + " |" * 8)
                continue
            values = prdc(of, made[[made_rows[lines[i]["sample_id"]] for i in rows]], args.k) or {}
            values["samples"] = len(rows)
            values["cosine_above"] = round((cosine[rows] > MAX_COSINE).float().mean().item(), 4)
            values["median_rms"] = round(rms[rows].median().item(), 4)
            values["rms_below"] = round((rms[rows] < MAX_RMS).float().mean().item(), 4)
            values["nearest_is_source"] = round((nearest[rows] == source[rows]).float().mean().item(), 4)
            report[f"{name} {what}"] = values
            show(name, what, values)
        values = prdc(of, known[[known_rows[i] for i, y in zip(train.ids, train.labels.tolist(), strict=True) if y == label]], args.k) or {}
        mine = held.labels == label
        values |= {"samples": int((train.labels == label).sum()), "held_out": int(mine.sum())}
        values["median_rms"] = round(nearest_in_hole(held.images[mine], held_holes[mine], train.images)[0].median().item(), 4)
        report[f"{name} real"] = values
        show(name, "real", values)
    (args.out or args.run / "prdc.json").write_text(json.dumps(report, indent=1) + "\n")


def show(name, what, values):
    keys = ["precision", "recall", "density", "coverage", "cosine_above", "median_rms", "rms_below", "nearest_is_source"]
    print(f"| {name}, {what} | {values['samples']} | " + " | ".join(f"{values[k]:.3f}" if k in values else "" for k in keys) + " |")


if __name__ == "__main__":
    main()
