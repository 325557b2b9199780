"""Narrow AutoencoderKL, VQModel and AutoencoderTiny of diffusers: the published layouts and options, with few channels."""

import re

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel

from golden.files import Tensors, normal, smooth_image
from golden.recipe import fixture

TAPPED = re.compile(
    r"(encoder|decoder)(\.(conv_in|conv_out|mid_block|(down|up)_blocks\.\d+))?|(post_)?quant_conv"
    r"|(encoder|decoder)\..*\.(resnets|attentions|downsamplers|upsamplers)\.\d+"
).pattern
TILE = 8
FILE = "diffusion_pytorch_model.safetensors"
OLD_ATTENTION_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def published(model):
    """config.json as diffusers writes it."""
    return {"_class_name": type(model).__name__, **{key: value for key, value in model.config.items() if not key.startswith("_")}}


def blocks(count):
    return {"down_block_types": ["DownEncoderBlock2D"] * count, "up_block_types": ["UpDecoderBlock2D"] * count}


def with_old_names(name):
    for new, old in OLD_ATTENTION_NAMES.items():
        name = re.sub(rf"(attentions\.\d+)\.{re.escape(new)}\.", rf"\1.{old}.", name)
    return name


def encode_kl(model, sample):
    posterior = model.encode(sample).latent_dist
    return {"latent_dist_mean": posterior.mean, "latent_dist_logvar": posterior.logvar}


def decode(model, latents):
    return {"sample": model.decode(latents).sample}


def inputs(name, model, downscale, size, batch):
    height, width = size
    pixels = 2 * smooth_image((name, "sample"), (batch, model.config.in_channels, height, width)) - 1
    latents = normal((name, "latents"), (batch, model.config.latent_channels, height // downscale, width // downscale))
    return pixels, latents


@torch.no_grad()
def tiled(name, model, downscale):
    """diffusers' own tiles of 8 latents over 14 by 9: the last row lies within the one before, the last column does not."""
    model.tile_latent_min_size, model.tile_sample_min_size, model.tile_overlap_factor = TILE, TILE * downscale, 0.25
    pixels, latents = inputs(f"{name}/tiled", model, downscale, (14 * downscale, 9 * downscale), 1)
    mean, logvar = model._tiled_encode(pixels).chunk(2, dim=1)
    out = {"out/latent_dist_mean": mean, "out/latent_dist_logvar": logvar.clamp(-30, 20), "out/sample": model.tiled_decode(latents).sample}
    return Tensors({"in/sample": pixels, "in/latents": latents} | out)


def kl(name, size=(32, 32), batch=1, rename=None, gains=(), dropped=(), in_tiles=False, **options):
    channels = options["block_out_channels"]
    model = AutoencoderKL(**({**blocks(len(channels)), "layers_per_block": 2, "norm_num_groups": 4} | options))
    pixels, latents = inputs(name, model, 2 ** (len(channels) - 1), size, batch)
    config = {key: value for key, value in published(model).items() if key not in dropped}
    components = {"vae-encoder": ({"sample": pixels}, encode_kl), "vae-decoder": ({"latents": latents}, decode)}
    files = fixture(name, model, config, FILE, components, tapped=TAPPED, rename=rename, gains=gains)
    return files | ({f"models/{name}/tiled.safetensors": tiled(name, model, 2 ** (len(channels) - 1))} if in_tiles else {})


# The first configurations have none of the later fields.
LATER_FIELDS = ("force_upcast", "latents_mean", "latents_std", "mid_block_add_attention", "scaling_factor", "shift_factor", "use_quant_conv", "use_post_quant_conv")

KL = {
    # SD 1.x: four blocks, half as wide in the first two. The logarithm of the variance leaves its limits.
    "sd-vae": {"block_out_channels": (8, 16, 24, 24), "sample_size": 512, "gains": [(r"^quant_conv\.weight", 20.0, 0.0)]},
    "sd-vae-old-names": {"block_out_channels": (8, 8, 16, 16), "sample_size": 256, "rename": with_old_names, "dropped": LATER_FIELDS},
    "sdxl-vae": {"block_out_channels": (8, 16, 24, 24), "sample_size": 1024, "scaling_factor": 0.13025, "size": (16, 40), "batch": 2},
    "flux-vae": {
        "block_out_channels": (8, 16, 24, 24),
        "sample_size": 1024,
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "kl-vae-odd": {
        "in_tiles": True,
        "block_out_channels": (6, 15, 9),
        "norm_num_groups": 3,
        "layers_per_block": 1,
        "sample_size": 20,
        "size": (20, 12),
        "act_fn": "mish",
        "latent_channels": 5,
        "mid_block_add_attention": False,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    },
}


def vq(name, size=(16, 16), rename=None, dropped=(), **options):
    channels = options["block_out_channels"]
    model = VQModel(**({**blocks(len(channels)), "layers_per_block": 2, "norm_num_groups": 4} | options))
    width = model.config.vq_embed_dim or model.config.latent_channels
    downscale = 2 ** (len(channels) - 1)
    pixels = 2 * smooth_image((name, "sample"), (2, 3, *size)) - 1
    latents = normal((name, "latents"), (2, width, size[0] // downscale, size[1] // downscale))
    config = {key: value for key, value in published(model).items() if key not in dropped}
    components = {
        "vae-encoder": ({"sample": pixels}, lambda model, sample: {"latents": model.encode(sample).latents}),
        "vae-decoder": ({"latents": latents}, decode),
    }
    return fixture(name, model, config, FILE, components, tapped=TAPPED + "|quantize", rename=rename, gains=[(r"quantize", 2.0, 0.0)])


VQ = {
    # CompVis' models of 2022: three blocks, names of attention from before diffusers 0.15.
    "vq-model": {
        "block_out_channels": (8, 16, 24),
        "num_vq_embeddings": 64,
        "sample_size": 256,
        "rename": with_old_names,
        "dropped": ("scaling_factor", "norm_type", "mid_block_add_attention", "lookup_from_codebook", "force_upcast"),
    },
    "vq-model-attention": {
        "block_out_channels": (8, 12),
        "num_vq_embeddings": 17,
        "vq_embed_dim": 5,
        "latent_channels": 4,
        "layers_per_block": 1,
        "size": (8, 12),
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    },
}

def tiny(name, size=(16, 24), rename=None, dropped=(), **options):
    model = AutoencoderTiny(**options)
    downscale = 2 ** (len(model.config.num_encoder_blocks) - 1)
    pixels, latents = inputs(name, model, downscale, size, 2)
    config = {key: value for key, value in published(model).items() if key not in dropped}
    components = {
        "vae-encoder": ({"sample": pixels}, lambda model, sample: {"latents": model.encode(sample).latents}),
        # Beyond the clamp at the decoder's entry.
        "vae-decoder": ({"latents": 3 * latents}, decode),
    }
    gains = [(r"conv\.4\.weight", 0.1, 0.0)]
    return fixture(name, model, config, FILE, components, tapped=r"(encoder|decoder)(\.layers(\.\d+)?)?", rename=rename, gains=gains)


# madebyollin's configurations: SD 1.x and SDXL have 4 latent channels, SD 3 and FLUX 16 and a shift.
TINY = {
    "tiny-taesd": {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4, "dropped": ("upsample_fn", "shift_factor")},
    "tiny-taesd3": {
        "encoder_block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
    },
    "tiny-odd": {
        "in_channels": 4,
        "encoder_block_out_channels": (6, 6, 6),
        "decoder_block_out_channels": (10, 10),
        "num_encoder_blocks": (2, 1, 2),
        "num_decoder_blocks": (1, 2),
        "upsampling_scaling_factor": 4,
        "act_fn": "silu",
        "latent_channels": 5,
        "latent_magnitude": 2,
        "latent_shift": 0.25,
        "scaling_factor": 0.5,
    },
}

FIXTURES = {f"models/{name}": lambda name=name, options=options: kl(name, **options) for name, options in KL.items()}
FIXTURES |= {f"models/{name}": lambda name=name, options=options: vq(name, **options) for name, options in VQ.items()}
FIXTURES |= {f"models/{name}": lambda name=name, options=options: tiny(name, **options) for name, options in TINY.items()}
