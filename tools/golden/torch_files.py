"""Files of torch.save in every form, each with what its tensors are as safetensors (float32, contiguous).

torch.save writes no date and no path into a file, so the bytes are a function of torch's version.
"""

import io
import re

import torch
from torch import nn

from golden.files import Tensors, normal


class Blob:
    """A file of torch.save. It is compared by what PyTorch reads from it: the pickle's bytes depend on torch's version."""

    def __init__(self, data):
        self.data = data

    def bytes(self):
        return self.data

    def differences(self, path):
        mine, theirs = (flat(torch.load(io.BytesIO(b), map_location="cpu", weights_only=True)) for b in (self.data, path.read_bytes()))
        if mine.keys() != theirs.keys():
            yield f"names {sorted(theirs)}, expected {sorted(mine)}"
            return
        yield from (f"{name} differs" for name in mine if mine[name].dtype != theirs[name].dtype or not torch.equal(mine[name], theirs[name]))


def flat(value, path=""):
    if torch.is_tensor(value):
        return {path: value.detach().contiguous()}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {name: tensor for key, below in items for name, tensor in flat(below, f"{path}.{key}" if path else str(key)).items()}


def saved(value, legacy=False):
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def on_cuda(data):
    """The same file as a graphics card would have written it: only the location differs. Both are texts with a length before them."""
    tag = b"X\x03\x00\x00\x00cpu"
    return re.sub(re.escape(tag), b"X\x06\x00\x00\x00cuda:0", data)


def tensors():
    x = normal(("torch_files",), (4, 6)).half().double()
    return {
        "f32": x.float(),
        "f64": x,
        "f16": x.half(),
        "bf16": (x * 4).round().bfloat16(),
        "i8": (x * 20).to(torch.int8),
        "u8": (x.abs() * 50).to(torch.uint8),
        "i16": (x * 100).to(torch.int16),
        "i32": (x * 100).to(torch.int32),
        "i64": (x * 100).to(torch.int64),
        "bool": x > 0,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }


def views():
    x = normal(("torch_files", "views"), (6, 8)).float()
    return {"whole": x, "transposed": x.t(), "rows": x[2:5], "strided": x[::2, 1::3], "swapped": x.view(2, 3, 2, 4).permute(3, 0, 2, 1), "one": x[3:4, 5:6]}


def lightning(state):
    """What a Lightning trainer leaves beside the weights."""
    return {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state,
        "callbacks": {"ModelCheckpoint": {"monitor": "val/loss", "best_model_score": torch.tensor(0.5), "best_model_path": "last.ckpt"}},
        "optimizer_states": [{"state": {0: {"step": 7, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}]}],
        "lr_schedulers": [],
        "hyper_parameters": {"size": 256, "name": "ldm", "scale": None, "nested": {"flag": True}},
    }


def fixture(name, data, expected):
    arrays = {key: value.detach().float().contiguous() for key, value in expected.items()}
    return {f"torch/{name}": Blob(data), f"torch/{name}.safetensors": Tensors(arrays)}


def make():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for key, value in module.state_dict().items():
            value.copy_(normal(("torch_files", key), value.shape) if value.is_floating_point() else torch.tensor(5))
    state = module.state_dict()
    parameters = {key: nn.Parameter(value) for key, value in state.items() if value.is_floating_point()}
    parallel = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "best_prec1": torch.tensor(91.7), "epoch": 9}
    averaged = {"params": {key: value + 1 for key, value in state.items()}, "params_ema": state}
    return {
        **fixture("types.pt", saved(tensors()), tensors()),
        **fixture("types.th", saved(tensors(), legacy=True), tensors()),
        **fixture("views.pt", saved(views()), views()),
        **fixture("views.th", saved(views(), legacy=True), views()),
        **fixture("lightning.ckpt", saved(lightning(state)), state),
        **fixture("parameters.pth", saved(parameters), parameters),
        **fixture("parallel-cuda.th", on_cuda(saved(parallel, legacy=True)), state),
        **fixture("averaged.pth", saved(averaged), state),
        **fixture("module.bin", saved(state), state),
    }


FIXTURES = {"torch": make}
