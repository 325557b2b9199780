"""JPEG files and the pixels that Pillow makes of them: baseline and progressive, every subsampling, odd sizes, restart markers,
scans of one component. tests/golden/jpeg holds the files, all of them pictures made here, and `pillow.json`: size and SHA-256 of the RGB bytes.
`ham10000.json` holds the same of real images, which are not committed; it is made anew where ../shared/data is present.

Pillow's bytes are libjpeg-turbo's. Of coefficients that no encoder makes (`loud`), its vector code for x86 decides.
"""

import hashlib
import io
import json

import numpy as np
from PIL import Image

from golden.files import ROOT, Json
from golden.resize import pixels

DATA = ROOT.parents[2] / "shared" / "data" / "ham10000"
REAL = (("images", 30), ("full_600x450", 10))
SOF, DHT, SOS, EOI, DQT, DRI = (0xC0, 0xC2), 0xC4, 0xDA, 0xD9, 0xDB, 0xDD


class Bytes:
    """A file as it is."""

    def __init__(self, data):
        self.data = data

    def bytes(self):
        return self.data

    def differences(self, path):
        if path.read_bytes() != self.data:
            yield "other bytes"


def picture(name, width, height, channels=3):
    x = pixels(f"jpeg_{name}", (height, width), channels)
    return Image.fromarray(x if channels == 3 else x[:, :, 0])


def saved(image, quality, progressive=False, **more):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, progressive=progressive, **more)
    return file.getvalue()


def segments(data):
    """(marker, body, entropy-coded data behind it), from the first segment to the end of the image."""
    at = 2
    while data[at + 1] != EOI:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        end = start = at + 2 + length
        while data[end] != 0xFF or data[end + 1] == 0 or 0xD0 <= data[end + 1] <= 0xD7:
            end += 1
        yield marker, data[at + 4 : start], data[start:end]
        at = end


def joined(parts):
    return b"\xff\xd8" + b"".join(bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body + scan for marker, body, scan in parts) + bytes([0xFF, EOI])


def frame_of(width, height, components):
    """Body of a frame: (number, h, v, quantisation table) of each component."""
    head = b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes([len(components)])
    return head + b"".join(bytes([number, h << 4 | v, table]) for number, h, v, table in components)


def turned(data):
    """The same coefficients as another picture: rows and columns of blocks, and the factors of luma, change places. 4:2:2 becomes 4:4:0."""
    for marker, body, scan in segments(data):
        if marker in SOF:
            components = [(body[i], body[i + 1] & 15, body[i + 1] >> 4, body[i + 2]) for i in (6, 9, 12)]
            body = frame_of(int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"), components)
        yield marker, body, scan


def spliced(name, width, height, factors, quality, progressive, **more):
    """Three grey files become the components of one, each with scans of its own."""
    high, wide = max(v for _, v in factors), max(h for h, _ in factors)
    parts = []
    for i, (h, v) in enumerate(factors):
        size = -(-width * h // wide), -(-height * v // high)
        for marker, body, scan in segments(saved(picture(f"{name}{i}", *size, 1), quality - 10 * i, progressive, **more)):
            if marker == DQT:
                parts.append((DQT, bytes([i]) + body[1:], b""))
            elif marker == SOS:
                parts.append((SOS, body[:1] + bytes([i + 1]) + body[2:], scan))
            elif marker in (DHT, DRI):
                parts.append((marker, body, b""))
    frame = (SOF[progressive], frame_of(width, height, [(i + 1, h, v, i) for i, (h, v) in enumerate(factors)]), b"")
    tables = [p for p in parts if p[0] == DQT]
    return joined([*tables, frame, *(p for p in parts if p[0] != DQT)])


def loud(data):
    """Coefficients many times too large."""
    for marker, body, scan in segments(data):
        yield marker, bytes([body[0]]) + b"\xff" * 64 if marker == DQT else body, scan


def files():
    """(name, bytes)."""
    for kind in ("baseline", "progressive"):
        progressive = kind == "progressive"
        for sampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
            image, short = picture(sampling, 45, 35), sampling.replace(":", "")
            for quality in (30, 95):
                yield f"{kind}-{short}-q{quality}", saved(image, quality, progressive, subsampling=sampling)
            yield f"{kind}-{short}-restart", saved(image, 75, progressive, subsampling=sampling, restart_marker_blocks=2)
        for quality in (30, 95):
            yield f"{kind}-grey-q{quality}", saved(picture("grey", 43, 37, 1), quality, progressive)
            yield f"{kind}-440-q{quality}", joined(turned(saved(picture("440", 35, 45), quality, progressive, subsampling="4:2:2")))
        yield f"{kind}-grey-restart", saved(picture("grey", 43, 37, 1), 75, progressive, restart_marker_rows=1)
        yield f"{kind}-rgb", saved(picture("rgb", 21, 19), 80, progressive, keep_rgb=True)
        for width, height in ((1, 1), (3, 2), (5, 16), (32, 16)):
            yield f"{kind}-420-{width}x{height}", saved(picture("small", width, height), 80, progressive, subsampling="4:2:0")
        yield f"{kind}-422-4x3", saved(picture("small", 4, 3), 80, progressive, subsampling="4:2:2")
        # Factors of luma, blue, red: 4:2:0, 4:4:0, a quarter, chroma finer than luma, and none alike.
        for factors in ("22 11 11", "12 11 11", "41 11 11", "11 22 12", "42 11 21"):
            pairs = [(int(f[0]), int(f[1])) for f in factors.split()]
            yield f"{kind}-apart-{factors.replace(' ', '-')}", spliced(factors, 41, 27, pairs, 85, progressive)
        yield f"{kind}-apart-restart", spliced("restart", 30, 30, [(2, 1), (1, 1), (1, 1)], 85, progressive, restart_marker_blocks=3)
        yield f"{kind}-loud", joined(loud(saved(picture("loud", 24, 24), 90, progressive)))


def decoded(file):
    image = Image.open(file)
    rgb = np.asarray(image.convert("RGB"))
    return {"size": list(image.size), "sha256": hashlib.sha256(rgb.tobytes()).hexdigest()}


def real():
    """Evenly spaced images; what is committed where there are none."""
    if not DATA.is_dir():
        return json.loads((ROOT / "jpeg" / "ham10000.json").read_text())
    chosen = {}
    for folder, count in REAL:
        paths = sorted((DATA / folder).rglob("*.jpg"))
        for path in (paths[i * len(paths) // count] for i in range(count)):
            chosen[str(path.relative_to(DATA))] = decoded(path)
    return chosen


def jpeg():
    made = dict(files())
    out = {f"jpeg/{name}.jpg": Bytes(data) for name, data in made.items()}
    out["jpeg/pillow.json"] = Json({name: decoded(io.BytesIO(data)) for name, data in made.items()})
    out["jpeg/ham10000.json"] = Json(real())
    return out


FIXTURES = {"jpeg": jpeg}
