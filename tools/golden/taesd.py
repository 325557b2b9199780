"""TAESD-family autoencoders with the plain Sequential names of their published weights."""

import torch
from torch import nn

from golden.files import Json, Tensors, as_f32, normal, smooth_image
from golden.taps import record

BLOCKS_PER_STAGE = 3


class TanhClamp(nn.Module):
    """A decoder's entry: 3 tanh(x / 3)."""

    def forward(self, x):
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """relu(conv(x) + x); with a pool branch, x + pool(x) takes the place of x before it."""

    def __init__(self, width, pool_branch=False):
        super().__init__()
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        self.pool = None
        if pool_branch:
            inner = 4 * width
            self.pool = nn.Sequential(
                nn.Conv2d(width, inner, 1, bias=False), nn.GroupNorm(4, inner), nn.ReLU(), nn.Conv2d(inner, width, 1, bias=False)
            )

    def forward(self, x):
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


def encoder(width, latent_channels, pool_branch):
    """[N, 3, 8h, 8w] in [0, 1] to latents [N, latent_channels, h, w]."""
    layers = [nn.Conv2d(3, width, 3, padding=1), Block(width)]
    for stage in range(3):
        layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
        layers += [Block(width, pool_branch and stage == 2) for _ in range(BLOCKS_PER_STAGE)]
    return nn.Sequential(*layers, nn.Conv2d(width, latent_channels, 3, padding=1))


def encoder_by_32(width, latent_channels):
    """[N, 3, 32h, 32w] in [0, 1] to latents [N, latent_channels, h, w]: taesana. Two strided convolutions stand before the first block."""
    stem = [nn.Conv2d(3, width // 2, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.ReLU()]
    layers = [*stem, Block(width)]
    for _ in range(3):
        layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
        layers += [Block(width) for _ in range(BLOCKS_PER_STAGE)]
    return nn.Sequential(*layers, nn.Conv2d(width, latent_channels, 3, padding=1))


def decoder(width, latent_channels, pool_branch):
    """Latents [N, latent_channels, h, w] to [N, 3, 8h, 8w] about [0, 1]."""
    layers = [TanhClamp(), nn.Conv2d(latent_channels, width, 3, padding=1), nn.ReLU()]
    for stage in range(3):
        layers += [Block(width, pool_branch and stage == 0) for _ in range(BLOCKS_PER_STAGE)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, Block(width), nn.Conv2d(width, 3, 3, padding=1))


def load(directory):
    """Encoder and decoder of a model directory, float64."""
    from safetensors.torch import load_file

    parts = []
    for name, build, last in (("encoder", encoder, "0.weight"), ("decoder", decoder, "1.weight")):
        state = load_file(directory / f"{name}.safetensors")
        width = state[last].shape[0]
        latent_channels = state["14.weight"].shape[0] if name == "encoder" else state["1.weight"].shape[1]
        model = build(width, latent_channels, any(".pool." in key for key in state)).double().eval()
        model.load_state_dict({key: value.double() for key, value in state.items()})
        parts.append(model)
    return parts


def randomise(name, model, output_scale, output_shift):
    """Weights that f16 holds exactly; activations keep their size from block to block."""
    last = list(model.state_dict())[-1].split(".")[0]
    state = {}
    for key, value in model.state_dict().items():
        if value.ndim == 4:
            gain = (2.0 / value[0].numel()) ** 0.5
            # The third convolution of a block and a pool branch are added to x.
            gain *= 0.5 if ".conv.4." in key or ".pool.3." in key else 1.0
            gain *= output_scale if key.startswith(f"{last}.") else 1.0
            state[key] = normal((name, key), value.shape, gain)
        elif ".pool.1.weight" in key:
            state[key] = normal((name, key), value.shape, 0.3, 1.0)
        else:
            state[key] = normal((name, key), value.shape, 0.1, output_shift if key.startswith(f"{last}.") else 0.0)
    model.load_state_dict({key: value.half().double() for key, value in state.items()})
    return model.double().eval()


def build(name, width, latent_channels, pool_branch):
    """Encoder and decoder with random weights, and the files of their directory."""
    parts = {
        "encoder": randomise(f"{name}/encoder", encoder(width, latent_channels, pool_branch), 1.0, 0.0),
        "decoder": randomise(f"{name}/decoder", decoder(width, latent_channels, pool_branch), 0.06, 0.5),
    }
    config = {
        "_class_name": "TAESD",
        "variant": "taef2" if pool_branch else "taesd",
        "latent_channels": latent_channels,
        "downscale": 8,
        "input_range": [0, 1],
        "output_range": [0, 1],
        "pool_branch_in_middle_blocks": pool_branch,
        "files": {part: f"{part}.safetensors" for part in parts},
    }
    files = {"config.json": Json(config)}
    for part, model in parts.items():
        files[f"{part}.safetensors"] = Tensors({key: value.half() for key, value in model.state_dict().items()})
    return parts, files


def fixture(name, pool_branch):
    parts, files = build(name, 8, 4, pool_branch)
    image = smooth_image((name, "image"), (2, 3, 16, 16))
    latents, encoder_taps = record(parts["encoder"], is_layer, lambda m: m(image))
    latents = as_f32(latents)
    decoded, decoder_taps = record(parts["decoder"], is_layer, lambda m: m(latents))
    taps = {f"tap/encoder.{path}": value for path, value in encoder_taps.items()}
    taps |= {f"tap/decoder.{path}": value for path, value in decoder_taps.items()}
    files["io.safetensors"] = Tensors({"in/sample": image, "out/latents": latents, "out/sample": decoded, **taps})
    return {f"models/{name}/{path}": file for path, file in files.items()}


def is_layer(path, module):
    return path.isdigit() and not isinstance(module, nn.Upsample)


FIXTURES = {
    "models/taesd": lambda: fixture("taesd", False),
    "models/taesd-pool": lambda: fixture("taesd-pool", True),
}
