"""Makes the 24 source images of `naevus demo` and their masks. No patient's pixel goes in: skin is drawn from random fields, the
models in `weights/` paint a lesion into it, then the whole picture over again, and the segmenter says where the lesion is.

python tools/train/demo_images.py --weights weights --out weights/demo

Which candidates are kept is a rule: the segmenter sees one compact lesion of 4 to 25 % of the image, at least 6 pixels from the border,
mostly where it was painted, that is darker than its surroundings; then, for each class, those come first of which the judge is surest.
Takes about three minutes on two CPU cores.
"""

import argparse
import csv
import math
import pathlib

import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file

import classifier
import data
import denoiser
import evaluate
import inpaint
import segmenter

# Class: images that are kept, and candidates that are made.
KEPT = {"nv": (15, 42), "mel": (6, 35), "bkl": (3, 30)}
# Least difference of mean brightness between the lesion and the rest, in [0, 1].
CONTRAST = 0.05
# Colour of the skin around a lesion in the training part of HAM10000: mean, and a factor of the covariance over images.
TONE = [0.83, 0.60, 0.63]
TONE_FACTOR = [[0.0915, 0.0, 0.0], [0.0278, 0.0832, 0.0], [0.0201, 0.0857, 0.0427]]


def field(n, channels, cells, generator):
    """Smooth random fields of about unit deviation: [n, channels, SIZE, SIZE]."""
    coarse = torch.randn(n, channels, cells, cells, generator=generator)
    return F.interpolate(coarse, size=data.SIZE, mode="bicubic", align_corners=False)


def skin(n, generator):
    """[n, 3, SIZE, SIZE] in [0, 1]: a tone, uneven light, reddish patches and fine texture."""
    colour = lambda values: torch.tensor(values).view(1, 3, 1, 1)  # noqa: E731
    tone = colour(TONE) + (torch.randn(n, 3, generator=generator).clamp(-1.5, 1.5) @ torch.tensor(TONE_FACTOR).T)[:, :, None, None]
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, data.SIZE)] * 2, indexing="ij")
    light = 0.02 * field(n, 1, 3, generator) - 0.03 * (x * x + y * y)
    red = 0.008 * field(n, 1, 5, generator) * colour([0.5, -1.0, -0.7])
    texture = 0.008 * field(n, 1, 20, generator) + 0.010 * field(n, 1, 48, generator)
    return (tone + light + red + texture).clamp(0, 1)


def outlines(n, generator):
    """Irregular ellipses near the middle: [n, 1, SIZE, SIZE], 1 = lesion."""
    y, x = torch.meshgrid(*[torch.arange(float(data.SIZE))] * 2, indexing="ij")
    shapes = []
    for _ in range(n):
        radius, angle, long = torch.rand(3, generator=generator).tolist()
        radius, angle, long = 24 + 14 * radius, math.pi * angle, 1 + 0.25 * long
        dx, dy = (t - data.SIZE / 2 - 5 * torch.randn(1, generator=generator) for t in (x, y))
        u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
        wobble = 0.1 * field(1, 1, 6, generator)[0, 0]
        shapes.append((((u / long) ** 2 + (v * long) ** 2).sqrt() / radius + wobble < 1).float()[None])
    return torch.stack(shapes)


@torch.no_grad()
def paint_over(unet, vae, images, labels, seed, strength=0.4, guidance=1.5, steps=20):
    """Every pixel again by the model, from the images noised to `strength` of the schedule (SDEdit, Meng et al. 2022)."""
    bars, null = inpaint.alphas_cumprod(images.device), torch.full_like(labels, len(data.CLASSES))
    stride = len(bars) // steps
    times = [len(bars) - 1 - i * stride for i in range(steps)][round(steps * (1 - strength)) :]
    z = inpaint.encode(vae, images)
    hole, masked = torch.ones_like(z[:, :1]), inpaint.encode(vae, torch.full_like(images, 0.5))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
    x = bars[times[0]].sqrt() * z + (1 - bars[times[0]]).sqrt() * noise
    for t in times:
        sample, when = torch.cat([x, hole, masked], 1), torch.full((len(x),), t)
        v = unet(sample, when, null, return_dict=False)[0].lerp(unet(sample, when, labels, return_dict=False)[0], guidance)
        a, before = bars[t], bars[max(t - stride, 0)]
        x = before.sqrt() * (a.sqrt() * x - (1 - a).sqrt() * v) + (1 - before).sqrt() * (a.sqrt() * v + (1 - a).sqrt() * x)
    return inpaint.decode(vae, x)


def spread(seed, within):
    """What can be reached from `seed` through `within`; bool [SIZE, SIZE]."""
    while True:
        wider = (F.max_pool2d(seed.float()[None, None], 3, stride=1, padding=1)[0, 0] > 0) & within
        if (wider == seed).all():
            return seed
        seed = wider


def opened(mask, radius):
    """Without what is thinner than 2 radius + 1 pixels."""
    return data.dilate(1 - data.dilate(1 - mask.float()[None, None], radius), radius)[0, 0]


def lesion(logits, outline, image):
    """The segmenter's lesion, its holes filled, as a bool [SIZE, SIZE]; None where it breaks the rule."""
    found = logits > 0
    if not found.any():
        return None
    seed = torch.zeros_like(found)
    seed.view(-1)[torch.where(outline, logits, -math.inf).argmax()] = True
    part = spread(seed & found, found)
    border = F.pad(torch.zeros(data.SIZE - 2, data.SIZE - 2), (1, 1, 1, 1), value=1) > 0
    mask = ~spread(border & ~part, ~part)
    inner = mask[6:-6, 6:-6].sum() == mask.sum()
    alone, there = part.sum() >= 0.9 * found.sum(), (mask & outline).sum() >= 0.8 * mask.sum()
    compact = opened(mask, 4).sum() >= 0.95 * mask.sum()
    grey = image.mean(0)
    dark = grey[~mask].mean() - grey[mask].mean() >= CONTRAST
    return mask if inner and alone and there and compact and dark and 0.04 <= mask.float().mean() <= 0.25 else None


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--weights", type=pathlib.Path, default=pathlib.Path("weights"))
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    torch.set_num_threads(2)
    unet, vae = evaluate.load_unet(args.weights / "inpaint" / "unet"), denoiser.load_autoencoder(args.weights / "inpaint" / "vae")
    judge, seg = evaluate.load_classifier(args.weights / "judge"), segmenter.Segmenter().eval()
    seg.load_state_dict({k: v.float() for k, v in load_file(args.weights / "segmenter" / "model.safetensors").items()}, strict=False)
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    (args.out / "masks").mkdir(exist_ok=True)
    rows = []
    for name, (kept, n) in KEPT.items():
        label = data.CLASSES.index(name)
        generator, seed = torch.Generator().manual_seed(100 * args.seed + label), 1000 * args.seed + label
        drawn, holes, labels = skin(n, generator), outlines(n, generator), torch.full((n,), label)
        made = paint_over(unet, vae, inpaint.paint(unet, vae, drawn, data.dilate(holes, data.DILATE), labels, seed=seed), labels, seed + 500)
        made = (made * 255).round() / 255
        with torch.no_grad():
            found = seg(segmenter.normalised(made))[:, 0]
        sure = classifier.logits_of(judge, made).softmax(1)[:, label]
        masks = [lesion(found[i], holes[i, 0] > 0, made[i]) for i in range(n)]
        best = sorted((i for i in range(n) if masks[i] is not None), key=lambda i: -sure[i].item())[:kept]
        print(f"{name}: {sum(m is not None for m in masks)} of {n} keep the rule; kept: the judge's {', '.join(f'{sure[i].item():.2f}' for i in best)}")
        if len(best) < kept:
            raise SystemExit(f"{name}: {len(best)} candidates, expected {kept}: take another --seed")
        for i in best:
            title = f"demo_{len(rows):02}"
            info = PngImagePlugin.PngInfo()
            for key, text in [("Synthetic", "true"), ("Sample", title), ("Copyright", "CC BY-NC 4.0"), ("Disclaimer", "not for diagnosis")]:
                info.add_text(key, text)
            pixels = (made[i] * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(args.out / "images" / f"{title}.png", optimize=True, pnginfo=info)
            Image.fromarray(masks[i].numpy()).save(args.out / "masks" / f"{title}_mask.png", optimize=True)
            rows.append({"image_id": title, "dx": name})
    with open(args.out / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["image_id", "dx"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
