"""timm's evaluation transform, and torchvision's, on small images: all filters, crop modes and shares, non-square images and inputs,
enlargement. `tools/golden/preprocess.py OUT IMAGE...` writes the same of real images, for a comparison that is not committed:

    tools/golden/preprocess.py /tmp/pixels ../shared/data/ham10000/images/ISIC_0024306.jpg ...
    NAEVUS_PIXELS=/tmp/pixels cargo test --lib transform -- --nocapture
"""

import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import PIL
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from golden.files import Tensors
from golden.resize import pixels

MEAN, STD = [0.25, 0.5, 0.75], [0.5, 0.25, 1.0]
FILTERS, MODES, SHARES = ("bicubic", "bilinear", "nearest", "lanczos"), ("center", "squash", "border"), (0.875, 0.9, 0.95, 1.0)
# (height, width) of images: low, high, square, smaller than the input.
IMAGES = {"low": (20, 33), "high": (31, 18), "square": (24, 24), "small": (5, 6)}


def case(image, size, crop_pct, mode, interpolation):
    return f"{image}/{size[0]}x{size[1]}/{crop_pct}/{mode}/{interpolation}"


def transform(size, crop_pct, mode, interpolation):
    """What timm makes of a published configuration."""
    told = {"input_size": (3, *size), "crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation, "mean": MEAN, "std": STD}
    return create_transform(**resolve_data_config({}, pretrained_cfg=told), is_training=False)


def torchvisions(size, resize):
    return ImageClassification(crop_size=size, resize_size=resize, mean=MEAN, std=STD, interpolation=InterpolationMode.BILINEAR)


def choices():
    """Everything with everything on one image; each mode on the others."""
    yield from (("low", (8, 8), share, mode, interpolation) for interpolation in FILTERS for mode in MODES for share in SHARES)
    for image in ("high", "square", "small"):
        yield from ((image, (8, 8), 0.9, mode, interpolation) for mode in MODES for interpolation in ("bicubic", "lanczos"))
    # 24 pixels become 9: the middle of the fifth is a whole number, but for rounding.
    yield "square", (8, 8), 0.875, "center", "nearest"
    for image in ("low", "high"):
        yield from ((image, size, 0.95, mode, "bicubic") for size in ((7, 10), (10, 7)) for mode in MODES)


def preprocess():
    images = {name: pixels(f"preprocess_{name}", size, 3) for name, size in IMAGES.items()}
    tensors = {f"image/{name}": torch.tensor(image).int() for name, image in images.items()}
    for image, *told in choices():
        tensors[f"timm/{case(image, *told)}"] = transform(*told)(Image.fromarray(images[image])).double()
    for image, pil in images.items():
        # The preset of most of torchvision's weights, 256 and 224, at a 28th.
        tensors[f"torchvision/{case(image, (8, 8), 0.875, 'center', 'bilinear')}"] = torchvisions(8, 9)(Image.fromarray(pil)).double()
    return {"preprocess.safetensors": Tensors(tensors, {"timm": timm.__version__, "pillow": PIL.__version__, "computed_in": "u8"})}


FIXTURES = {"preprocess": preprocess}

# Of published configurations: ResNet, ViT, ConvNeXt at 384, one squashed, one bordered, and torchvision's.
REAL = (
    ((224, 224), 0.95, "center", "bicubic"),
    ((224, 224), 0.9, "center", "bicubic"),
    ((384, 384), 1.0, "squash", "bicubic"),
    ((299, 299), 0.875, "center", "bicubic"),
    ((224, 224), 0.875, "center", "bilinear"),
    ((128, 128), 1.0, "center", "bilinear"),
    ((240, 240), 0.882, "center", "lanczos"),
    ((160, 224), 0.9, "center", "bicubic"),
    ((224, 224), 1.0, "border", "bicubic"),
    ((224, 224), 1.0, "center", "nearest"),
)


def real(out, paths):
    """The images as they are and as PNG, and timm's pixels of them."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path in paths:
        shutil.copy(path, out / path.name)
        image = Image.open(path).convert("RGB")
        image.save(out / f"{path.stem}.png")
        for told in REAL:
            tensors[f"timm/{case(path.name, *told)}"] = transform(*told)(image).double()
    (out / "pixels.safetensors").write_bytes(Tensors(tensors).bytes())


if __name__ == "__main__":
    real(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
