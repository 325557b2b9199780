"""The packed data set as tensors on one device, and random variations of it made there."""

import concurrent.futures
import dataclasses
import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SIZE = 128
# Position = class label.
CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
# Pixels per latent along one axis.
CELL = 4
# The lesion mask is dilated by this many pixels before it becomes the hole.
DILATE = 4
# Channel statistics of the training images in [0, 1].
MEAN = [0.763, 0.546, 0.570]
STD = [0.141, 0.152, 0.169]


@dataclasses.dataclass
class Data:
    """images: u8 [N, 3, S, S]; masks: u8 [N, 1, S, S], 1 = lesion; labels: i64 [N]."""

    images: torch.Tensor
    masks: torch.Tensor
    labels: torch.Tensor
    ids: list
    lesions: list

    def __len__(self):
        return len(self.labels)

    def counts(self):
        return torch.bincount(self.labels, minlength=len(CLASSES)).float()


def load(path, device, limit=None):
    """(training part, held-out part). `limit` keeps that many of each: for trying things out."""
    pack = np.load(path)
    ends, held, blob = pack["end"], pack["held_out"], pack["jpeg"].tobytes()
    starts = np.concatenate([[0], ends[:-1]])

    def decode(i):
        return np.asarray(Image.open(io.BytesIO(blob[starts[i] : ends[i]])).convert("RGB"))

    def part(keep):
        rows = np.flatnonzero(keep)
        if limit:
            # Every class appears: rows are taken in turn from each.
            order = np.argsort([np.sum(pack_labels[rows][:i] == label) for i, label in enumerate(pack_labels[rows])], kind="stable")
            rows = np.sort(rows[order[:limit]])
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            images = np.stack(list(pool.map(decode, rows)))
        masks = np.unpackbits(pack["mask"][rows], axis=1).reshape(-1, 1, SIZE, SIZE)
        return Data(
            torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device),
            torch.from_numpy(masks).to(device),
            torch.from_numpy(pack_labels[rows]).long().to(device),
            [str(pack["id"][i]) for i in rows],
            [str(pack["lesion"][i]) for i in rows],
        )

    pack_labels = pack["label"]
    return part(~held), part(held)


def uniform(n, low, high, device):
    return torch.rand(n, device=device) * (high - low) + low


def class_weights(counts, power):
    """Probability of each class when it is drawn in proportion to count ** power (0.5: sqrt-balanced)."""
    weights = counts.clamp(min=1) ** power * (counts > 0)
    return weights / weights.sum()


def draw(data, n, power):
    """n indices, classes in proportion to count ** power."""
    per_class = class_weights(data.counts(), power) / data.counts().clamp(min=1)
    return torch.multinomial(per_class[data.labels], n, replacement=True)


def vary(x, masks=None, zoom=(0.85, 1.15), shift=0.06, turn=0.0):
    """One of the eight symmetries of the square, zoomed, moved and turned by up to `turn` radians, per image.
    x: float [N, C, S, S]. Beyond the border the image is mirrored. Masks are 0 or 1 afterwards too."""
    n, device = len(x), x.device
    angle = torch.randint(4, (n,), device=device) * (torch.pi / 2) + uniform(n, -turn, turn, device)
    scale = torch.exp(uniform(n, *np.log(zoom), device)) ** -1
    flip = torch.randint(2, (n,), device=device) * 2.0 - 1
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    move = [uniform(n, -shift, shift, device) for _ in range(2)]
    theta = torch.stack([torch.stack([cos * flip, -sin, move[0]], 1), torch.stack([sin * flip, cos, move[1]], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    y = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if masks is None:
        return y
    m = F.grid_sample(masks, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return y, (m > 0.5).float()


def recolour(x, brightness, contrast, channel):
    """Brightness, contrast and the gain of each channel changed by up to these parts. x: [0, 1]."""
    n, device = len(x), x.device
    shape = (n, 1, 1, 1)
    gain = 1 + uniform(n, -contrast, contrast, device).view(shape)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * gain + mean * (1 + uniform(n, -brightness, brightness, device).view(shape))
    tint = 1 + (torch.rand(n, 3, 1, 1, device=device) * 2 - 1) * channel
    return (x * tint).clamp(0, 1)


def opponent(x):
    """Luminance, red against green, yellow against blue: [N, 3, H, W]."""
    r, g, b = x.unbind(1)
    return torch.stack([(r + g + b) / 3, (r - g) / 2, (r + g) / 4 - b / 2], 1)


def saturate(x, low, high):
    """The distance of every pixel from grey times a factor between `low` and `high`, per image. x: [0, 1]."""
    grey = x.mean(1, keepdim=True)
    return (grey + (x - grey) * uniform(len(x), low, high, x.device).view(-1, 1, 1, 1)).clamp(0, 1)


def lab(rgb):
    """CIE L*a*b* (D65) of sRGB colours in [0, 1]: [N, 3]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]], device=rgb.device)
    t = linear @ to_xyz.T / torch.tensor([0.95047, 1.0, 1.08883], device=rgb.device)
    f = torch.where(t > (6 / 29) ** 3, t.clamp(min=1e-9) ** (1 / 3), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def colour_error(images, decoded, masks):
    """CIE76 difference of the mean colours inside the masks, per image. images, decoded: [0, 1]; NaN where the mask is empty."""
    m = masks.float()
    mean = [(x * m).sum((2, 3)) / m.sum((2, 3)) for x in (images, decoded)]
    return (lab(mean[0]) - lab(mean[1])).norm(dim=1)


def dilate(masks, radius):
    """By a square, one axis after the other."""
    k = 2 * radius + 1
    return F.max_pool2d(F.max_pool2d(masks, (k, 1), stride=1, padding=(radius, 0)), (1, k), stride=1, padding=(0, radius)) if radius else masks


def cells(pixels):
    """Latent cells that hold any open pixel, and those cells as pixels."""
    open_cells = F.max_pool2d(pixels, CELL)
    return open_cells, open_cells.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)


def blobs(n, device):
    """Random smooth regions of 8 to 55 % of the image."""
    field = F.interpolate(torch.randn(n, 1, 6, 6, device=device), size=SIZE, mode="bicubic", align_corners=False)
    area = uniform(n, 0.08, 0.55, device)
    rank = (field.view(n, -1).sort(1).values).gather(1, ((1 - area) * (SIZE * SIZE - 1)).long().view(n, 1))
    return (field > rank.view(n, 1, 1, 1)).float()


def holes(masks):
    """Holes to learn on, float [N, 1, S, S]: 65 % the image's own lesion, a quarter of these dilated by DILATE and the rest by 4 to
    24 pixels, as a lesion of another class may need more room than the one it replaces, 15 % another image's lesion somewhere else, 20 % blobs. Where the lesion fills less than 1 % a blob takes its place."""
    n, device = len(masks), masks.device
    kind = torch.rand(n, device=device).view(-1, 1, 1, 1)
    parts = masks.split(max(1, -(-n // 8)))
    wide = torch.cat([dilate(part, torch.randint(4, 25, ()).item()) for part in parts])
    own = torch.where(torch.rand(n, 1, 1, 1, device=device) < 0.25, dilate(masks, DILATE), wide)
    moved = torch.roll(masks[torch.randperm(n, device=device)], tuple(torch.randint(-40, 41, (2,)).tolist()), (2, 3)).flip(2)
    chosen = torch.where(kind < 0.65, own, torch.where(kind < 0.8, moved, blobs(n, device)))
    small = chosen.mean((1, 2, 3), keepdim=True) < 0.01
    return torch.where(small, blobs(n, device), chosen)
