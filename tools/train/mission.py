"""Does a classifier learn more from real images and kept samples than from real images alone?

Arms, all on the training part of split.csv and scored on the held-out part, which no model saw:

real     real images
balanced real images, every class drawn equally often
replay   real images, and rare classes' real images once more: as many extra images of each class as `kept` has
all      real images, and as many samples of each class as `kept` has, drawn from all that were made
kept     real images, and the samples that `naevus select` kept
replay_soft, kept_soft
         the same, but half of the draws of real images are seen through the autoencoder (`soften`): so that how sharp an image is
         does not tell which class it is of. They need --softened

Everything else is the same for all: network, number of steps, augmentations, optimiser, seeds. The loss adds the logarithm of
the class frequencies of the arm to the logits (Menon et al. 2021), so one training gives two classifiers: with that term the
plain one, without it the one for equally frequent classes.

python tools/train/mission.py prepare --data ../shared/data/ham10000 --out out/mission
python tools/train/mission.py pack    --runs out/mission/run --out out/mission/samples.npz
python tools/train/mission.py soften  --pack out/ham128.npz --out out/mission/softened.npz
python tools/train/mission.py all     --pack out/ham128.npz --samples out/mission/samples.npz --softened out/mission/softened.npz --out out/mission/runs --seconds 100
python tools/train/mission.py table   --out out/mission/runs

Packs and prepared folders hold patients' images: keep them out of the repository.
"""

import argparse
import csv
import io
import json
import math
import pathlib
import shutil
import time

import numpy as np

HERE = pathlib.Path(__file__).parent
RARE = ["df", "vasc", "akiec"]
SOFT = "_soft"
ARMS = ["real", "balanced", "replay", "all", "kept", "replay" + SOFT, "kept" + SOFT]
PAIRS = [("kept", "real"), ("kept", "balanced"), ("kept", "replay"), ("kept", "all"), ("replay", "real"), ("all", "replay")]
PAIRS += [("kept" + SOFT, "replay" + SOFT), ("kept" + SOFT, "replay"), ("kept" + SOFT, "kept"), ("replay" + SOFT, "replay")]
# The demo's settings (docs/demo.md), and the photograph's own detail (docs/reference-models.md).
SETTINGS = "--steps 20 --guidance 5 --dilate 20 --feather 8 --detail 1 --sources head"
# Seconds of a budget that are left for writing and for what a measurement of speed does not see.
RESERVE = 4.0
MEASURED_STEPS, WARM_STEPS = 30, 15


def prepare(args):
    """A data set of the training part alone, and one of the held-out part for prdc.py."""
    part = {row["image_id"]: row["part"] for row in csv.DictReader(open(HERE / "split.csv"))}
    rows = list(csv.DictReader(open(args.data / "labels.csv")))
    for name in ["train", "held_out"]:
        folder = args.out / name
        for sub in ["images", "masks"]:
            (folder / sub).mkdir(parents=True, exist_ok=True)
        with open(folder / "labels.csv", "w", newline="") as file:
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            for row in rows:
                if part.get(row["image_id"]) == name:
                    table.writerow(row)
                    for path in [f"images/{row['image_id']}.jpg", f"masks/{row['image_id']}_segmentation.png"]:
                        shutil.copyfile(args.data / path, folder / path)
    print_commands(args)


def print_commands(args):
    run = args.out / "run"
    print(
        f"naevus synthesize --model {args.weights}/inpaint --dataset {args.out}/train --classes {','.join(RARE)} --per-class {args.per_class} "
        f"{SETTINGS} --out {run}"
    )
    print(f"naevus select --classifier {args.weights}/classifier --dataset {args.out}/train --out {run}")
    print(f"naevus features --classifier {args.weights}/classifier --images {run}/manifest.jsonl --out {run}/features.safetensors")
    print(f"naevus features --classifier {args.weights}/classifier --images {args.out}/held_out/images --out {run}/held_out.safetensors")


def unpack(args):
    """The same folders out of a pack, at its size: where the data set itself is not."""
    from PIL import Image

    from data import CLASSES, SIZE

    file = np.load(args.pack)
    ends, blob = file["end"], file["jpeg"].tobytes()
    for name, value in [("train", False), ("held_out", True)]:
        folder = args.out / name
        for sub in ["images", "masks"]:
            (folder / sub).mkdir(parents=True, exist_ok=True)
        with open(folder / "labels.csv", "w") as table:
            table.write("image_id,lesion_id,dx\n")
            for i in np.flatnonzero(file["held_out"] == value):
                image = str(file["id"][i])
                table.write(f"{image},{file['lesion'][i]},{CLASSES[file['label'][i]]}\n")
                (folder / "images" / f"{image}.jpg").write_bytes(blob[ends[i - 1] if i else 0 : ends[i]])
                mask = np.unpackbits(file["mask"][i]).reshape(SIZE, SIZE) * 255
                Image.fromarray(mask).save(folder / "masks" / f"{image}_segmentation.png", compress_level=1)
    print_commands(args)


def written(run):
    """The lines of a run's manifest whose images are there."""
    return [line for line in map(json.loads, open(run / "manifest.jsonl")) if line["status"] == "written"]


def pack(args):
    """Samples as JPEG files, with their labels and what became of them."""
    from PIL import Image

    from data import CLASSES, SIZE

    jpegs, rows = [], []
    for run in args.runs:
        verdicts = {v["sample_id"]: v for v in map(json.loads, open(run / "selection.jsonl"))}
        for line in written(run):
            name, label = line["sample_id"], line["class"]
            image = Image.open(run / "images" / label / f"{name}.png").convert("RGB")
            if image.size != (SIZE, SIZE):
                raise SystemExit(f"{run}/{name}: {image.size[0]}x{image.size[1]} pixels, expected {SIZE}x{SIZE}")
            jpegs.append(jpeg(image, args))
            rows.append((f"{run.name}/{name}", CLASSES.index(label), verdicts[name]["kept"], line["source_id"]))
    ids, labels, kept, sources = (np.array(column) for column in zip(*rows, strict=True))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    ends = np.cumsum([len(j) for j in jpegs])
    np.savez_compressed(args.out, jpeg=np.frombuffer(b"".join(jpegs), np.uint8), end=ends, label=labels, kept=kept, id=ids, source=sources)
    counts = {c: [int((labels == i).sum()), int(kept[labels == i].sum())] for i, c in enumerate(CLASSES) if (labels == i).any()}
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB; made and kept: {counts}")


def jpeg(image, args):
    """The bytes of a file of the real images' own quality, so that compression does not tell images apart."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=args.quality, subsampling=args.subsampling, optimize=True)
    return file.getvalue()


def soften(args):
    """The training part's images after the autoencoder's round trip, in the pack's order."""
    from PIL import Image

    import autoencoder
    import data
    import denoiser
    import session

    device = session.device()
    train, _ = data.load(args.pack, device, args.limit)
    decoded = autoencoder.reconstruct(denoiser.load_autoencoder(args.vae).to(device), train.images)
    jpegs = [jpeg(Image.fromarray(image), args) for image in (decoded * 255 + 0.5).byte().permute(0, 2, 3, 1).cpu().numpy()]
    np.savez_compressed(args.out, jpeg=np.frombuffer(b"".join(jpegs), np.uint8), end=np.cumsum([len(j) for j in jpegs]))
    print(f"{args.out}: {len(jpegs)} images, {args.out.stat().st_size / 1e6:.1f} MB")


def load_jpegs(file, device):
    """u8 [N, 3, S, S]"""
    import torch
    from PIL import Image

    blob, ends = file["jpeg"].tobytes(), file["end"]
    starts = np.concatenate([[0], ends[:-1]])
    images = np.stack([np.asarray(Image.open(io.BytesIO(blob[a:b])).convert("RGB")) for a, b in zip(starts, ends, strict=True)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)


def load_samples(path, device):
    """(images u8 [N, 3, S, S], labels, kept flags)."""
    import torch

    file = np.load(path)
    return load_jpegs(file, device), torch.from_numpy(file["label"]).long().to(device), torch.from_numpy(file["kept"])


def arm_rows(arm, seed, labels, sample_labels, kept):
    """Rows of the union (real images, then samples) that the arm draws from, each as often as it stands there, and the arm's
    probability of each row. All arguments on the CPU."""
    import torch

    from data import CLASSES

    real = torch.arange(len(labels))
    g = torch.Generator().manual_seed(1000 + seed)
    extra = []
    for label in range(len(CLASSES)):
        dose = int((kept & (sample_labels == label)).sum())
        if not dose or arm in ("real", "balanced"):
            continue
        if arm == "kept":
            pool = torch.nonzero(kept & (sample_labels == label)).flatten() + len(labels)
            extra.append(pool)
        elif arm == "all":
            pool = torch.nonzero(sample_labels == label).flatten() + len(labels)
            extra.append(pool[torch.randperm(len(pool), generator=g)[:dose]])
        else:
            pool = torch.nonzero(labels == label).flatten()
            order = torch.cat([pool[torch.randperm(len(pool), generator=g)] for _ in range(-(-dose // len(pool)))])
            extra.append(order[:dose])
    rows = torch.cat([real, *extra])
    of = torch.cat([labels, sample_labels])[rows]
    counts = torch.bincount(of, minlength=len(CLASSES)).double()
    weight = (1 / counts)[of] if arm == "balanced" else torch.ones(len(rows), dtype=torch.double)
    weight /= weight.sum()
    frequency = torch.zeros(len(CLASSES), dtype=torch.double).index_add(0, of, weight)
    return rows, weight.float(), frequency.float()


class Bench:
    """All data on one device, and one training at a time."""

    def __init__(self, args):
        import torch

        import data
        import session

        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.args, self.device = args, session.device()
        torch.set_num_threads(args.threads)
        train, self.held = data.load(args.pack, self.device, args.limit)
        images, self.sample_labels, self.kept = load_samples(args.samples, self.device)
        self.images = torch.cat([train.images, images])
        self.labels = torch.cat([train.labels, self.sample_labels])
        self.real_labels = train.labels.cpu()
        self.softened = load_jpegs(np.load(args.softened), self.device) if args.softened else None
        if self.softened is not None and len(self.softened) != len(train.labels):
            raise SystemExit(f"{args.softened}: {len(self.softened)} images, expected the pack's {len(train.labels)}")

    def start(self, arm, seed):
        """The state of one training before its first step."""
        import torch

        import classifier

        torch.manual_seed(seed)
        model = classifier.make("resnet18").to(self.device, memory_format=torch.channels_last)
        rows, weight, frequency = arm_rows(arm.removesuffix(SOFT), seed, self.real_labels, self.sample_labels.cpu(), self.kept)
        decayed, plain = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.args.lr, fused=self.device.type == "cuda")
        return {
            "model": model.train(), "optimizer": optimizer, "rows": rows.to(self.device), "weight": weight.to(self.device),
            "prior": frequency.to(self.device).clamp(min=1e-6).log(), "step": 0, "soft": arm.endswith(SOFT),
        }  # fmt: skip

    def step(self, run, steps):
        import torch
        import torch.nn.functional as F

        import classifier

        done = run["step"] / steps
        for group in run["optimizer"].param_groups:
            group["lr"] = self.args.lr * min(1.0, done / 0.05 + 1e-3) * 0.5 * (1 + math.cos(math.pi * done))
        picked = run["rows"][torch.multinomial(run["weight"], self.args.batch, replacement=True)]
        images = self.images[picked]
        if run["soft"]:
            seen = (picked < len(self.softened)) & (torch.rand(len(picked), device=self.device) < 0.5)
            images[seen] = self.softened[picked[seen]]
        x = classifier.normalised(classifier.augmented(images.float() / 255)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = run["model"](x)
        F.cross_entropy(logits.float() + run["prior"], self.labels[picked], label_smoothing=0.05).backward()
        run["optimizer"].step()
        run["optimizer"].zero_grad(set_to_none=True)
        run["step"] += 1

    def measured(self):
        """Seconds a step, with everything else that runs at the time."""
        import torch

        run = self.start("real", 0)
        for i in range(MEASURED_STEPS + WARM_STEPS):
            if i == WARM_STEPS:
                self.synchronize(torch)
                since = time.time()
            self.step(run, 10**6)
        self.synchronize(torch)
        return (time.time() - since) / MEASURED_STEPS

    def synchronize(self, torch):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def train(self, arm, seed, steps):
        """Trains, then writes the held-out images' logits."""
        import torch

        import classifier
        import session

        since = time.time()
        run = self.start(arm, seed)
        while run["step"] < steps:
            self.step(run, steps)
        model = run["model"].eval()
        logits = classifier.logits_of(model, self.held.images).cpu().numpy()
        if not np.isfinite(logits).all():
            raise RuntimeError(f"{arm} {seed}: logits that are not finite")
        self.args.out.mkdir(parents=True, exist_ok=True)
        part = self.args.out / f"{arm}-{seed}.part.npz"
        np.savez_compressed(
            part, logits=logits.astype(np.float32), prior=run["prior"].cpu().numpy(), label=self.held.labels.cpu().numpy(), lesion=np.array(self.held.lesions),
            steps=steps, batch=self.args.batch, rows=len(run["rows"]), device=session.device_name(), seconds=time.time() - since,
        )  # fmt: skip
        part.rename(self.args.out / f"{arm}-{seed}.npz")
        print(f"{time.strftime('%H:%M:%S')} {arm} {seed}: {steps} steps of {self.args.batch}, {time.time() - since:.1f} s", flush=True)


def worker(args, jobs, most, barrier, slowest, deadline):
    """The jobs of one process, in turn."""
    bench = Bench(args)
    barrier.wait()
    steps = args.steps
    if not steps:
        # All at once, so that each sees the load of the others.
        took = bench.measured()
        with slowest.get_lock():
            slowest.value = max(slowest.value, took)
        barrier.wait()
        # Over a whole training a step takes a fifth longer than in the measurement (H100, six processes: 30 ms and 24.5).
        steps = int((deadline - RESERVE - time.time()) / most / slowest.value * 0.78)
        if jobs and jobs[0] == (args.arms[0], args.seeds[0]):
            print(f"{slowest.value * 1000:.1f} ms a step at the slowest: {steps} steps for every training", flush=True)
        barrier.wait()
    if steps < 1:
        raise SystemExit(f"--seconds {args.seconds:g}: nothing is left for training")
    took = 0.0
    for arm, seed in jobs:
        # A training that would not end is not begun. With --steps its length is not known before the first.
        since = time.time()
        if since + (took if args.steps else 0) < deadline:
            bench.train(arm, seed, steps)
            took = time.time() - since


def all_arms(args):
    import torch.multiprocessing as mp

    deadline = time.time() + args.seconds
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [(arm, seed) for seed in args.seeds for arm in args.arms if not (args.out / f"{arm}-{seed}.npz").exists()]
    if not jobs:
        return print("nothing to do")
    if any(args.out.glob("*-*.npz")) and not args.steps:
        raise SystemExit(f"{args.out}: trainings of another call are there, expected their number of steps by --steps")
    count = min(args.processes, len(jobs))
    context = mp.get_context("spawn")
    barrier, slowest = context.Barrier(count), context.Value("d", 0.0)
    most = -(-len(jobs) // count)
    processes = [context.Process(target=worker, args=(args, jobs[i::count], most, barrier, slowest, deadline)) for i in range(count)]
    for process in processes:
        process.start()
    # One that fails would leave the others at the barrier.
    while any(p.is_alive() for p in processes):
        time.sleep(0.2)
        if any(p.exitcode for p in processes) or time.time() > deadline + 15:
            for process in processes:
                process.terminate()
            raise SystemExit("a training failed or outran the budget; those that ended are written")


def one(args):
    if not args.steps:
        raise SystemExit("train: no --steps, expected a number")
    Bench(args).train(args.arm, args.seed, args.steps)


def table(args):
    from data import CLASSES

    runs = {arm: sorted(args.out.glob(f"{arm}-*[0-9].npz")) for arm in ARMS}
    runs = {arm: paths for arm, paths in runs.items() if paths}
    seeds = set.intersection(*({int(p.stem.split("-")[1]) for p in paths} for paths in runs.values())) if runs else set()
    if not seeds:
        raise SystemExit(f"{args.out}: no seed that every arm was trained with")
    files = {arm: [np.load(args.out / f"{arm}-{seed}.npz") for seed in sorted(seeds)] for arm in runs}
    first = next(iter(files.values()))[0]
    label, lesion, steps = first["label"], first["lesion"], {int(f["steps"]) for many in files.values() for f in many}
    if len(steps) > 1:
        raise SystemExit(f"{args.out}: trainings of {sorted(steps)} steps, expected one number for all")
    groups = np.unique(lesion, return_inverse=True)[1]
    rng = np.random.default_rng(0)
    # Draws of lesions, as weights of images, and of trainings, as weights of seeds: the same for all arms.
    lesions = rng.multinomial(groups.max() + 1, np.full(groups.max() + 1, 1 / (groups.max() + 1)), args.draws)[:, groups]
    seed_weight = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), args.draws) / len(seeds)
    weight = np.concatenate([np.ones((1, len(label))), lesions])
    seed_weight = np.concatenate([np.full((1, len(seeds)), 1 / len(seeds)), seed_weight])
    present = [i for i in range(len(CLASSES)) if (label == i).any()]
    names = [CLASSES[i] for i in present]

    def recalls(arm, plain):
        """[1 + draws, classes], the first row being that of the data themselves."""
        per_seed = []
        for file in files[arm]:
            right = (file["logits"] + file["prior"] * plain).argmax(1) == label
            of = [label == i for i in present]
            with np.errstate(invalid="ignore"):
                per_seed.append(np.stack([weight[:, m] @ right[m] / weight[:, m].sum(1) for m in of], 1))
        return np.einsum("ds,sdc->dc", seed_weight, np.stack(per_seed))

    def with_interval(values, sign=False):
        low, high = np.nanquantile(values[1:], [0.025, 0.975])
        form = "{:+.3f} ({:+.3f} to {:+.3f})" if sign else "{:.3f} ({:.3f} to {:.3f})"
        return form.format(values[0], low, high)

    report = {"steps": steps.pop(), "batch": int(first["batch"]), "seeds": sorted(seeds), "device": str(first["device"]), "draws": args.draws}
    report["held_out"] = {name: int((label == i).sum()) for i, name in zip(present, names, strict=True)}
    for plain, title in [(1, "Plain classifier"), (0, "Classifier for equally frequent classes")]:
        print(f"\n{title}: balanced accuracy and recall\n\n| arm | images | balanced accuracy | " + " | ".join(names) + " |\n" + "|---" * (3 + len(names)) + "|")
        of = {arm: recalls(arm, plain) for arm in runs}
        for arm in runs:
            cells = [with_interval(np.nanmean(of[arm], 1)), *(with_interval(of[arm][:, i]) for i in range(len(names)))]
            print(f"| {arm} | {int(files[arm][0]['rows'])} | " + " | ".join(cells) + " |")
            report[f"{'plain' if plain else 'equal'} {arm}"] = cells
        rare = [i for i, name in enumerate(names) if name in RARE]
        other = [i for i in range(len(names)) if i not in rare]
        columns = [("balanced accuracy", list(range(len(names)))), (", ".join(RARE), rare), ("other classes", other), *((names[i], [i]) for i in rare)]
        print("\n| difference | " + " | ".join(c for c, _ in columns) + " |\n" + "|---" * (1 + len(columns)) + "|")
        for a, b in (pair for pair in PAIRS if runs.keys() >= {*pair}):
            cells = [with_interval(np.nanmean((of[a] - of[b])[:, rows], 1), sign=True) for _, rows in columns]
            print(f"| {a} - {b} | " + " | ".join(cells) + " |")
            report[f"{'plain' if plain else 'equal'} {a} - {b}"] = cells
    (args.out / "table.json").write_text(json.dumps(report, indent=1) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = p.add_subparsers(dest="verb", required=True)
    v = verbs.add_parser("prepare", help="write the parts as data sets and print the commands of naevus")
    v.add_argument("--data", type=pathlib.Path, required=True)
    v.set_defaults(call=prepare)
    v = verbs.add_parser("unpack", help="the same out of a pack that pack.py wrote")
    v.add_argument("--pack", type=pathlib.Path, required=True)
    v.set_defaults(call=unpack)
    for name in ["prepare", "unpack"]:
        v = verbs.choices[name]
        v.add_argument("--out", type=pathlib.Path, required=True)
        v.add_argument("--weights", type=pathlib.Path, default=pathlib.Path("weights"))
        v.add_argument("--per-class", type=int, default=400)
    v = verbs.add_parser("pack", help="pack runs of naevus into one file")
    v.add_argument("--runs", type=pathlib.Path, nargs="+", required=True)
    v.add_argument("--out", type=pathlib.Path, required=True)
    v.set_defaults(call=pack)
    v = verbs.add_parser("soften", help="real images of the training part after the autoencoder's round trip")
    v.add_argument("--pack", type=pathlib.Path, required=True)
    v.add_argument("--vae", type=pathlib.Path, default=pathlib.Path("weights/inpaint/vae"))
    v.add_argument("--out", type=pathlib.Path, required=True)
    v.add_argument("--limit", type=int)
    v.set_defaults(call=soften)
    for name in ["pack", "soften"]:
        v = verbs.choices[name]
        v.add_argument("--quality", type=int, default=93)
        v.add_argument("--subsampling", type=int, default=0)
    for name, call in [("train", one), ("all", all_arms)]:
        v = verbs.add_parser(name)
        v.add_argument("--pack", type=pathlib.Path, required=True, help="the file that pack.py wrote")
        v.add_argument("--samples", type=pathlib.Path, required=True, help="the file that `pack` wrote")
        v.add_argument("--softened", type=pathlib.Path, help="the file that `soften` wrote")
        v.add_argument("--out", type=pathlib.Path, required=True)
        v.add_argument("--steps", type=int, default=0, help="of every training; with `all`, 0: as many as the budget allows, by measuring")
        v.add_argument("--batch", type=int, default=128)
        v.add_argument("--lr", type=float, default=1.5e-3)
        v.add_argument("--limit", type=int, help="images per part, for trying things out")
        v.add_argument("--threads", type=int, default=1)
        v.set_defaults(call=call)
        if name == "train":
            v.add_argument("--arm", choices=ARMS, required=True)
            v.add_argument("--seed", type=int, required=True)
        else:
            v.add_argument("--seconds", type=float, required=True, help="for all of it, imports included")
            v.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
            v.add_argument("--arms", choices=ARMS, nargs="+", help="default: all, without --softened those that do not need it")
            v.add_argument("--processes", type=int, default=5)
    v = verbs.add_parser("table", help="print the tables in Markdown, write table.json")
    v.add_argument("--out", type=pathlib.Path, required=True)
    v.add_argument("--draws", type=int, default=2000)
    v.set_defaults(call=table)
    args = p.parse_args()
    if args.call in (one, all_arms):
        possible = [arm for arm in ARMS if args.softened or not arm.endswith(SOFT)]
        args.arms = [args.arm] if args.call is one else args.arms or possible
        if not set(args.arms) <= set(possible):
            p.error(f"{', '.join(args.arms)}: no --softened, expected the file that `soften` wrote")
    args.call(args)


if __name__ == "__main__":
    main()
