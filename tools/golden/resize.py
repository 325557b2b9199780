"""Pillow's antialiased resizing of 8-bit images and masks."""

import numpy as np
import PIL
import torch
from PIL import Image

from golden.files import Tensors, random, smooth_image

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# (height, width) before and after: down, up, odd ratios, one axis only, down to one pixel.
SIZES = [((24, 32), (8, 8)), ((7, 9), (16, 21)), ((30, 17), (11, 13)), ((12, 12), (12, 5)), ((5, 6), (1, 1))]


def pixels(name, size, channels):
    """u8 [H, W, C]: waves with a block of noise and hard edges to 0 and 255."""
    image = (smooth_image((name, "image"), (1, channels, *size))[0].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
    rng = random(name, "noise")
    height, width = size
    image[: height // 3, : width // 2] = rng.integers(0, 256, (height // 3, width // 2, channels))
    image[height // 2 :, width // 2 :] = rng.integers(0, 2, (height - height // 2, width - width // 2, 1)) * 255
    return image


def resize():
    tensors = {}
    for channels, kind in ((3, "rgb"), (1, "mask")):
        for filter_name, method in FILTERS.items():
            for before, after in SIZES:
                case = f"{kind}_{filter_name}_{before[0]}x{before[1]}_to_{after[0]}x{after[1]}"
                x = pixels(case, before, channels)
                image = Image.fromarray(x if channels == 3 else x[:, :, 0])
                y = np.asarray(image.resize((after[1], after[0]), method)).reshape(*after, channels)
                tensors[f"{case}/x"], tensors[f"{case}/y"] = torch.tensor(x).int(), torch.tensor(y).int()
    return {"resize.safetensors": Tensors(tensors, {"pillow": PIL.__version__, "computed_in": "u8"})}


FIXTURES = {"resize": resize}
