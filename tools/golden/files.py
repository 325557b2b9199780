"""What a fixture is made of: seeded values, safetensors and JSON files, and their comparison with what is committed."""

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2] / "tests" / "golden"
METADATA = {
    "computed_in": "float64",
    "diffusers": diffusers.__version__,
    "generator": "tools/golden.py",
    "torch": torch.__version__.split("+")[0],
}
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.int32: "I32", torch.int64: "I64"}
TOLERANCE = 1e-6


def random(*names):
    """A generator whose values are a function of the names alone."""
    digest = hashlib.sha256("/".join(names).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))


def as_f32(values):
    """float64 values that f32 holds exactly: what a fixture stores is what was computed with."""
    return torch.as_tensor(values, dtype=torch.float64).to(torch.float32).to(torch.float64)


def normal(names, shape, scale=1.0, shift=0.0):
    return as_f32(random(*names).standard_normal(tuple(shape)) * scale + shift)


def uniform(names, shape, low=0.0, high=1.0):
    return as_f32(random(*names).uniform(low, high, tuple(shape)))


def smooth_image(names, shape):
    """[N, C, H, W] in [0, 1]: a few random waves, so that convolutions and resizing see edges and slopes."""
    n, c, height, width = shape
    rng = random(*names)
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    image = np.zeros(shape)
    for _ in range(5):
        frequency, phase = rng.uniform(-4, 4, (n, c, 2, 1, 1)), rng.uniform(0, 6.3, (n, c, 1, 1))
        image += np.sin(6.3 * (frequency[:, :, 0] * y + frequency[:, :, 1] * x) + phase)
    return as_f32(0.5 + 0.5 * np.tanh(image / 2))


@dataclass
class Tensors:
    """One safetensors file. float64 is stored as f32, other types as they are."""

    tensors: dict
    metadata: dict | None = None

    def stored(self):
        def narrow(t):
            t = t.detach().contiguous()
            return t.to(torch.float32) if t.dtype == torch.float64 else t

        return {name: narrow(self.tensors[name]) for name in sorted(self.tensors)}

    def bytes(self):
        """Names in order, then data in the same order: the same values always give the same bytes."""
        header, data = {"__metadata__": dict(sorted({**METADATA, **(self.metadata or {})}.items()))}, b""
        for name, tensor in self.stored().items():
            raw = tensor.numpy().tobytes()
            header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + data

    def differences(self, path):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            committed = {name: file.get_tensor(name) for name in file.keys()}
        stored = self.stored()
        for name in sorted(set(stored) ^ set(committed)):
            yield f"{name}: only {'computed' if name in stored else 'committed'}"
        for name in sorted(set(stored) & set(committed)):
            ours, theirs = stored[name], committed[name]
            if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
                yield f"{name}: committed as {theirs.dtype} {list(theirs.shape)}, computed as {ours.dtype} {list(ours.shape)}"
                continue
            fact = difference(ours.double().numpy(), theirs.double().numpy())
            if fact:
                yield f"{name}: {fact}"


@dataclass
class Json:
    """One JSON file. `indent=None` keeps number tables on one line per entry of the top list."""

    value: object
    compact: bool = False

    def bytes(self):
        if self.compact:
            rows = ",\n".join(json.dumps(row) for row in self.value)
            return f"[\n{rows}\n]\n".encode()
        return (json.dumps(self.value, indent=2) + "\n").encode()

    def differences(self, path):
        yield from json_differences("", self.value, json.loads(Path(path).read_text()))


def difference(ours, theirs):
    """None where every value is within TOLERANCE of the tensor's RMS; NaN and infinities must stand at the same places."""
    finite = np.isfinite(ours)
    if not np.array_equal(finite, np.isfinite(theirs)) or not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return "not finite at other places"
    ours, theirs = ours[finite], theirs[finite]
    rms = float(np.sqrt(np.mean(theirs**2))) if theirs.size else 0.0
    worst = float(np.max(np.abs(ours - theirs))) if theirs.size else 0.0
    return None if worst <= TOLERANCE * max(rms, 1e-30) else f"differs by {worst:.3e} where the rms is {rms:.3e}"


def json_differences(place, ours, theirs):
    numbers = (int, float)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(set(ours) | set(theirs)):
            if key not in ours or key not in theirs:
                yield f"{place}.{key}: only {'computed' if key in ours else 'committed'}"
            else:
                yield from json_differences(f"{place}.{key}", ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (a, b) in enumerate(zip(ours, theirs)):
            yield from json_differences(f"{place}[{i}]", a, b)
    elif isinstance(ours, float) and isinstance(theirs, numbers):
        if not abs(ours - theirs) <= TOLERANCE * max(abs(theirs), 1e-3):
            yield f"{place}: committed {theirs}, computed {ours}"
    elif ours != theirs:
        yield f"{place}: committed {theirs}, computed {ours}"
