"""Small diffusers UNet2DModels with random weights: together they use every block type and option that the program reads."""

import json
import re

import torch
from diffusers import UNet2DModel

from golden.files import Json, Tensors, as_f32, normal
from golden.taps import record

TAPPED = re.compile(
    r"conv_in|conv_out|time_embedding|class_embedding|mid_block|(down|up)_blocks\.\d+"
    r"|.*\.(resnets|attentions|downsamplers|upsamplers)\.\d+|.*\.time_emb_proj"
)
OLD_ATTENTION_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def is_tapped(path, _module):
    return TAPPED.fullmatch(path)


def randomise(name, model):
    """Weights that f32 holds exactly. Norms are far from identity, activations keep their size."""
    state = {}
    for key, value in model.state_dict().items():
        if key == "time_proj.weight":
            state[key] = normal((name, key), value.shape, 4.0)
        elif key == "class_embedding.weight":
            state[key] = normal((name, key), value.shape)
        elif value.ndim >= 2:
            # Queries and keys are larger, so that attention is far from uniform.
            gain = 2.0 if re.search(r"to_[qk]\.", key) else 1.0
            state[key] = normal((name, key), value.shape, gain / value[0].numel() ** 0.5)
        elif "norm" in key and key.endswith("weight"):
            state[key] = normal((name, key), value.shape, 0.3, 1.0)
        else:
            state[key] = normal((name, key), value.shape, 0.2)
    model.double().load_state_dict(state)
    return model.eval()


def build(name, architecture=UNet2DModel, **config):
    """A model with random weights, and the files of its directory."""
    model = randomise(name, architecture(**config))
    files = {
        "config.json": Json(json.loads(model.to_json_string())),
        "diffusion_pytorch_model.safetensors": Tensors(dict(model.state_dict())),
    }
    return model, files


def class_labels(name, model, batch):
    config = model.config
    if config.class_embed_type == "timestep":
        return as_f32([3.0, 250.0][:batch])
    if config.class_embed_type == "identity":
        return normal((name, "class_labels"), (batch, config.time_embedding_dim or 4 * config.block_out_channels[0]))
    if config.num_class_embeds is not None:
        return torch.tensor([config.num_class_embeds - 1, 1][:batch])
    return None


def fixture(name, size, timesteps=(37.0, 851.0), old_names=False, **config):
    model, files = build(name, **config)
    sample = normal((name, "sample"), (2, config["in_channels"], *size))
    inputs = {"sample": sample, "timestep": as_f32(timesteps)}
    labels = class_labels(name, model, 2)
    # Timesteps' sines are f32 in every precision; the class embedding expects them in the model's.
    model.time_proj.register_forward_hook(lambda _module, _inputs, output: output.double())
    if labels is not None:
        inputs["class_labels"] = labels
    result, taps = record(model, is_tapped, lambda m: m(**inputs).sample)
    if labels is not None and labels.dtype == torch.int64:
        inputs["class_labels"] = labels.int()
    tensors = {f"in/{key}": value for key, value in inputs.items()} | {f"tap/{key}": value for key, value in taps.items()}
    files["io.safetensors"] = Tensors(tensors | {"out/sample": result})
    if old_names:
        weights = files["diffusion_pytorch_model.safetensors"]
        weights.tensors = {old_attention_name(key): value for key, value in weights.tensors.items()}
    return {f"models/{name}/{path}": file for path, file in files.items()}


def old_attention_name(key):
    """The name that a tensor of an attention block had before diffusers 0.15."""
    for new, old in OLD_ATTENTION_NAMES.items():
        key = re.sub(rf"(attentions\.\d+)\.{re.escape(new)}\.", rf"\1.{old}.", key)
    return key


def unet_attention_classes():
    return fixture(
        "unet-attention-classes", size=(8, 8), sample_size=8, in_channels=13, out_channels=4, block_out_channels=(6, 8), norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2, attention_head_dim=4, num_class_embeds=5, flip_sin_to_cos=True, freq_shift=0, downsample_padding=1,
    )


def unet_fourier_scale_shift():
    return fixture(
        "unet-fourier-scale-shift", size=(8, 8), timesteps=(0.5, 12.25), sample_size=8, in_channels=3, out_channels=3,
        block_out_channels=(8, 8, 8), norm_num_groups=4, time_embedding_type="fourier", resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        layers_per_block=1, attention_head_dim=4, downsample_type="resnet", upsample_type="resnet", norm_eps=1e-6,
    )


def unet_timestep_class():
    return fixture(
        "unet-timestep-class", size=(8, 12), sample_size=(8, 12), in_channels=3, out_channels=2, block_out_channels=(6, 12), norm_num_groups=2,
        down_block_types=("AttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        layers_per_block=1, attention_head_dim=2, class_embed_type="timestep", flip_sin_to_cos=False, freq_shift=1, downsample_padding=0,
        center_input_sample=True, add_attention=False, act_fn="mish",
    )


def unet_identity_class():
    return fixture(
        "unet-identity-class", size=(8, 8), sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("UpBlock2D", "AttnUpBlock2D"), mid_block_type=None,
        layers_per_block=3, attention_head_dim=None, class_embed_type="identity", time_embedding_dim=24, act_fn="gelu",
        flip_sin_to_cos=False, freq_shift=0,
    )


def unet_rescaled_mid():
    return fixture(
        "unet-rescaled-mid", size=(12, 4), sample_size=None, in_channels=5, out_channels=3, block_out_channels=(8, 12), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1, attention_head_dim=3, attn_norm_num_groups=2, mid_block_scale_factor=1.4142135, act_fn="relu",
        resnet_time_scale_shift="scale_shift", flip_sin_to_cos=True, freq_shift=1, upsample_type="resnet", downsample_type="resnet",
    )


def unet_old_names():
    """The shape of the first published DDPM checkpoints, with the attention names of their time."""
    return fixture(
        "unet-old-names", size=(8, 8), old_names=True, sample_size=8, in_channels=3, out_channels=3, block_out_channels=(4, 8, 8),
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), layers_per_block=2, attention_head_dim=None,
        flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, norm_eps=1e-6,
    )


def recipe_fixture():
    from golden.recipe import fixture as recipe

    model = UNet2DModel(
        sample_size=8, in_channels=9, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=8,
    )
    inputs = {"sample": normal(("unet2d", "sample"), (2, 9, 8, 8)), "timestep": as_f32([37.0, 851.0]), "class_labels": torch.tensor([7, 1])}
    return recipe(
        "unet2d", model, json.loads(model.to_json_string()), "diffusion_pytorch_model.safetensors",
        {"unet": (inputs, lambda m, **given: {"sample": m(**given).sample})}, tapped=TAPPED.pattern, prepare=in_float64,
    )


def in_float64(model):
    """Timesteps' sines are f32 in every precision; the embedding expects them in the model's."""
    model.time_proj.register_forward_hook(lambda _module, _inputs, output: output.double())


FIXTURES = {
    "models/unet2d": recipe_fixture,
    "models/unet-attention-classes": unet_attention_classes,
    "models/unet-fourier-scale-shift": unet_fourier_scale_shift,
    "models/unet-timestep-class": unet_timestep_class,
    "models/unet-identity-class": unet_identity_class,
    "models/unet-rescaled-mid": unet_rescaled_mid,
    "models/unet-old-names": unet_old_names,
}
