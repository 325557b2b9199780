"""Narrow diffusers UNet2DConditionModels: the topologies of Stable Diffusion 1, 2 and XL, and every way to condition them."""

import json

import torch
from diffusers import UNet2DConditionModel

from golden.files import as_f32, normal
from golden.recipe import fixture

TAPPED = (
    r"conv_in|conv_out|time_embedding|class_embedding|add_embedding|encoder_hid_proj|mid_block|(down|up)_blocks\.\d+"
    r"|.*\.(resnets|downsamplers|upsamplers)\.\d+|.*\.attentions\.\d+(\.(norm|proj_in))?"
    r"|.*\.transformer_blocks\.\d+(\.(attn1|attn2|norm3|ff))?"
)
TOKENS = 5


def in_float64(model):
    """Timesteps' sines are f32 in every precision; the embeddings expect them in the model's."""
    for projection in (model.time_proj, getattr(model, "add_time_proj", None)):
        if projection is not None:
            projection.register_forward_hook(lambda _module, _inputs, output: output.double())


def class_labels(name, config):
    kind, width = config.class_embed_type, config.projection_class_embeddings_input_dim
    if kind == "timestep":
        return {"class_labels": as_f32([3.0, 250.0])}
    if kind is not None:
        width = config.time_embedding_dim or 4 * config.block_out_channels[0] if kind == "identity" else width
        return {"class_labels": normal((name, "class_labels"), (2, width))}
    return {} if config.num_class_embeds is None else {"class_labels": torch.tensor([config.num_class_embeds - 1, 1])}


def call(model, **given):
    added = {key: given.pop(key) for key in ("text_embeds", "time_ids") if key in given}
    return {"sample": model(**given, added_cond_kwargs=added or None).sample}


def condition(name, size=(8, 8), timesteps=(37.0, 851.0), given=(), gains=(), tapped=TAPPED, change=None, **config):
    """The fixture of UNet2DConditionModel(**config). `given`: shapes of further inputs of normal numbers. `change`: called with the
    model after its weights were set."""
    options = {"layers_per_block": 1, "norm_num_groups": 4, "sample_size": size[0]} | config
    model = UNet2DConditionModel(**options)
    c = model.config
    inputs = {"sample": normal((name, "sample"), (2, c.in_channels, *size)), "timestep": as_f32(timesteps)}
    widths = c.cross_attention_dim
    width = c.encoder_hid_dim or (widths if isinstance(widths, int) else widths[0])
    if any("attn2" in key for key in model.state_dict()):
        inputs["encoder_hidden_states"] = normal((name, "tokens"), (2, TOKENS, width))
    inputs |= class_labels(name, c)
    inputs |= {key: normal((name, key), shape) for key, shape in dict(given).items()}
    if c.addition_embed_type == "text_time":
        inputs["time_ids"] = as_f32([[1024.0, 768.0, 0.0, 16.0, 1024.0, 512.0], [512.0, 512.0, 8.0, 0.0, 640.0, 960.0]])
    config_json = json.loads(model.to_json_string())

    def prepare(model):
        in_float64(model)
        if change:
            change(model)

    return fixture(
        name, model, config_json, "diffusion_pytorch_model.safetensors", {"unet": (inputs, call)}, tapped=tapped, prepare=prepare, gains=gains
    )


TWO = {"block_out_channels": (8, 16), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}


def sd15_inpainting():
    """Four levels, projections by 1x1 convolutions, eight heads everywhere: head sizes 1, 2 and 4 for 40, 80 and 160."""
    return condition(
        "sd15-inpainting", in_channels=9, out_channels=4, block_out_channels=(8, 16, 32, 32), layers_per_block=2, attention_head_dim=8,
        cross_attention_dim=12,
    )


def sd2():
    """Linear projections, the number of heads per block, half precision's upcast flag, not square."""
    return condition(
        "sd2", size=(8, 12), block_out_channels=(8, 16, 24), down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=(1, 2, 1), attention_head_dim=(1, 2, 3),
        cross_attention_dim=16, use_linear_projection=True, upcast_attention=True, only_cross_attention=(True, False, False),
    )


def sdxl():
    """Queries and keys are smaller than elsewhere: with sharper attention in 24 layers PyTorch's own f32 is 7e-5 off its f64."""
    return condition(
        "sdxl", block_out_channels=(8, 16, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4, 8), cross_attention_dim=20,
        transformer_layers_per_block=(1, 2, 3), use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=10 + 6 * 8, given=[("text_embeds", (2, 10))],
        gains=[(r"to_[qk]\.weight", 0.4, 0.0)],
    )


def asymmetric():
    """Layers per transformer as the distilled XL models have them; residual blocks that resample; no token at the middle."""
    return condition(
        "unet-condition-asymmetric", block_out_channels=(8, 8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), mid_block_type="UNetMidBlock2D",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), layers_per_block=2, attention_head_dim=2,
        cross_attention_dim=10, transformer_layers_per_block=[0, [2, 1], [1, 2]], reverse_transformer_layers_per_block=[[1, 2, 1], [2, 1, 1], 0],
        resnet_skip_time_act=True, resnet_out_scale_factor=1.25, mid_block_scale_factor=1.4142135, center_input_sample=True, conv_in_kernel=5,
        conv_out_kernel=1,
    )


def lcm():
    """The guidance scale as an input, and every activation that the time embedding can have."""
    return condition(
        "unet-condition-lcm", **TWO, attention_head_dim=4, cross_attention_dim=10, time_cond_proj_dim=6, timestep_post_act="mish",
        time_embedding_act_fn="gelu", act_fn="relu", freq_shift=1, flip_sin_to_cos=False, downsample_padding=0, given=[("timestep_cond", (2, 6))],
    )


def fourier_scale_shift():
    return condition(
        "unet-condition-fourier", **TWO | {"down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "CrossAttnUpBlock2D")},
        timesteps=(0.5, 1.25), attention_head_dim=4, cross_attention_dim=(10, 10), time_embedding_type="fourier", time_embedding_dim=24,
        resnet_time_scale_shift="scale_shift", act_fn="mish", gains=[(r"time_proj\.weight", 1.0, 0.0)],
    )


def by_class(name, **config):
    return condition(f"unet-condition-{name}", **TWO, attention_head_dim=4, cross_attention_dim=10, **config)


def text_proj():
    return by_class("text-proj", encoder_hid_dim=7, encoder_hid_dim_type="text_proj", mid_block_type=None, in_channels=5)


FIXTURES = {
    "models/sd15-inpainting": sd15_inpainting,
    "models/sd2": sd2,
    "models/sdxl": sdxl,
    "models/unet-condition-asymmetric": asymmetric,
    "models/unet-condition-lcm": lcm,
    "models/unet-condition-fourier": fourier_scale_shift,
    "models/unet-condition-labels": lambda: by_class("labels", num_class_embeds=5, in_channels=13),
    "models/unet-condition-timestep": lambda: by_class("timestep", class_embed_type="timestep", act_fn="gelu"),
    "models/unet-condition-identity": lambda: by_class("identity", class_embed_type="identity"),
    "models/unet-condition-projection": lambda: by_class(
        "projection", class_embed_type="projection", projection_class_embeddings_input_dim=7, in_channels=65
    ),
    "models/unet-condition-concat": lambda: by_class(
        "concat", class_embed_type="simple_projection", projection_class_embeddings_input_dim=6, class_embeddings_concat=True
    ),
    "models/unet-condition-text-proj": text_proj,
}
