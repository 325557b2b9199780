"""Goldens of models without their weights: every tensor is a function of its name and two numbers.

    value[i] = shift + scale * u(name, i),   u in [-1, 1) from 24 bits of a hash of the name and the index

tests/models.rs makes the same tensors, writes the checkpoint, recognises and loads it, runs every component and
compares. A folder of tests/golden/models holds

    config.json                     as the ecosystem's own tools write it; may be absent
    weights.json                    {"file": ..., "tensors": [[name, shape, scale, shift, name of the values, "transposed"], ...]}
                                    rows of one name are one tensor, joined along its first axis
    <component>.safetensors         in/<port>, out/<output> whole, tap/<module> SAMPLES values of each module's result, shape/<module>
"""

import re
from dataclasses import dataclass

import numpy as np
import torch

from golden.files import Json, Tensors
from golden.taps import record

SAMPLES = 64
MASK = 0xFFFFFFFFFFFFFFFF


def fnv1a(text):
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = ((state ^ byte) * 0x100000001B3) & MASK
    return state


def unit(name, count):
    """`count` numbers in [-1, 1): splitmix64 of the name's FNV-1a hash, 24 bits each, exact in f32."""
    with np.errstate(over="ignore"):
        state = np.uint64(fnv1a(name)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def values(name, shape, scale, shift):
    """float64 values that f32 holds exactly."""
    count = int(np.prod(shape, dtype=np.int64))
    return torch.from_numpy((shift + scale * unit(name, count)).astype(np.float32).astype(np.float64)).reshape(shape)


def spread(key, value, gains):
    """Scale and shift of a tensor: activations keep their size, norms are far from identity, variances are positive."""
    for pattern, scale, shift in gains:
        if re.search(pattern, key):
            return scale, shift
    if key.endswith("running_var"):
        return 0.5, 1.0
    if key.endswith("running_mean") or key.endswith("bias"):
        return 0.2, 0.0
    if value.ndim <= 1:
        return (0.4, 1.0) if key.endswith("weight") else (0.3, 0.0)
    if re.search(r"embedding|embeddings|pos_embed|cls_token", key):
        return 1.0, 0.0
    # A uniform variable's deviation is scale / sqrt(3). Queries and keys are larger, so that attention is far from uniform.
    gain = 2.0 if re.search(r"(to_[qk]|[qk]_proj|query|key)\.weight", key) else 1.2
    return round(gain * (3.0 / value[0].numel()) ** 0.5, 6), 0.0


def apply(model, gains=()):
    """Fills the model's floating point state in place, in float64; the table of what was done."""
    table, state = [], model.state_dict()
    for key, value in state.items():
        if not value.is_floating_point():
            table.append([key, list(value.shape), 0.0, float(value.flatten()[0]) if value.numel() else 0.0])
            continue
        scale, shift = spread(key, value, gains)
        state[key] = values(key, tuple(value.shape), scale, shift)
        table.append([key, list(value.shape), scale, shift])
    model.double().load_state_dict(state)
    return table


def sampled(value):
    flat = value.detach().flatten()
    if flat.numel() <= SAMPLES:
        return flat.clone()
    return flat[torch.arange(SAMPLES) * flat.numel() // SAMPLES].clone()


def to_depth(depth):
    return lambda path, _module: path != "" and path.count(".") < depth


@dataclass
class Stored:
    """How a file holds a tensor of the model."""

    name: str
    # There, where it has more axes of length 1.
    shape: tuple | None = None
    # Among the tensors of the model that are joined in this one.
    part: int = 0
    transposed: bool = False


def stored(table, rename):
    """The table of the file. The hash goes by the model's own name: a row says it behind the file's."""
    rows = []
    for row in table:
        held = rename(row[0])
        if held is None:
            continue
        held = Stored(held) if isinstance(held, str) else held
        rows.append((held.name, held.part, [held.name, list(held.shape or row[1]), *row[2:], row[0], *(["transposed"] if held.transposed else [])]))
    first = {}
    for index, (name, _, _) in enumerate(rows):
        first.setdefault(name, index)
    return [row for _, _, row in sorted(rows, key=lambda row: (first[row[0]], row[1]))]


def fixture(name, model, config, file, components, tapped=None, rename=None, gains=(), prepare=None, extra=None, more=(), tap_name=None):
    """The files of models/<name>.

    config: the value of config.json, or None. file: name of the weights file that the test writes.
    components: {component: (inputs by port, call)} where call(model, **inputs) gives a dict of outputs.
    tapped: regular expression of module paths; by default all down to a depth of three. rename: name in the file of a
    name in the model, or how it is `Stored` (None leaves a tensor out). more: rows of the file that the model has not.
    tap_name: the path of a module as taps are called; None leaves it out.
    gains: (pattern, scale, shift) that go before the rules of `spread`. prepare: called with the model after its weights
    were set. extra: other files, {path: Json or Tensors}.
    """
    model = model.eval()
    table = apply(model, gains)
    if prepare:
        prepare(model)
    model = model.double().eval()
    if rename:
        table = stored(table, rename)
    files = {"weights.json": Table({"file": file, "tensors": [*table, *more]})}
    if config is not None:
        files["config.json"] = Json(config)
    for path, value in (extra or {}).items():
        files[path] = value
    for component, (inputs, call) in components.items():
        pattern = re.compile(tapped) if tapped else None
        wanted = (lambda path, _m: pattern.fullmatch(path)) if pattern else to_depth(3)
        given = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
        result, taps = record(model, wanted, lambda m: call(m, **given))
        tensors = {f"in/{key}": value.int() if value.dtype == torch.int64 else value for key, value in inputs.items()}
        tensors |= {f"out/{key}": value for key, value in result.items()}
        for path, value in taps.items():
            path = tap_name(path) if tap_name else path
            if path is None:
                continue
            if torch.is_tensor(value) and value.is_floating_point() and value.numel():
                tensors[f"tap/{path}"] = sampled(value)
                tensors[f"shape/{path}"] = torch.tensor(list(value.shape), dtype=torch.int32)
        files[f"{component}.safetensors"] = Tensors(tensors)
    return {f"models/{name}/{path}": value for path, value in files.items()}


class Table(Json):
    """weights.json: one line per tensor."""

    def bytes(self):
        import json

        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in self.value["tensors"])
        return f'{{"file": {json.dumps(self.value["file"])}, "tensors": [\n{rows}\n]}}\n'.encode()
