"""Narrow MONAI DiffusionModelUNets and AutoencoderKLs in two dimensions, with their constructors' arguments as config.json."""

import re

import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet

from golden.files import normal, smooth_image
from golden.recipe import fixture

TAPPED = (
    r"conv_in|time_embed|class_embedding|middle_block(\.(resnet_1|attention|resnet_2))?|(down|up)_blocks\.\d+(\.(resnets|attentions)\.\d+|\.(down|up)sampler)?"
    r"|(en|de)coder(\.blocks\.\d+)?|(post_)?quant_conv\w*"
)


def tap_name(path):
    """diffusers' path of a MONAI module."""
    path = re.sub(r"^middle_block\.resnet_([12])", lambda m: f"mid_block.resnets.{int(m[1]) - 1}", path)
    path = path.replace("middle_block.attention", "mid_block.attentions.0").replace("middle_block", "mid_block").replace("time_embed", "time_embedding")
    return path.replace("downsampler", "downsamplers.0").replace("upsampler", "upsamplers.0")


def config(kind, arguments, module="monai.networks.nets"):
    return {"_target_": f"{module}.{kind}"} | arguments


# With sharper attention PyTorch's own f32 is close to 1e-4 off its f64.
SOFTER = [(r"attn[12]\.to_[qk]\.weight", 0.3, 0.0)]


def unet(name, size, rename=None, module="monai.networks.nets", renamed_arguments=(), **arguments):
    arguments = {"spatial_dims": 2} | arguments
    model = DiffusionModelUNet(**arguments)
    given = {"sample": normal((name, "sample"), (2, arguments["in_channels"], *size)), "timestep": torch.tensor([7.0, 431.0])}
    if arguments.get("num_class_embeds"):
        given["class_labels"] = torch.tensor([0, arguments["num_class_embeds"] - 1])
    if arguments.get("with_conditioning"):
        given["encoder_hidden_states"] = normal((name, "tokens"), (2, 5, arguments["cross_attention_dim"]))

    def call(model, sample, timestep, class_labels=None, encoder_hidden_states=None):
        return {"sample": model(sample, timestep, context=encoder_hidden_states, class_labels=class_labels)}

    written = {dict(renamed_arguments).get(key, key): value for key, value in arguments.items()}
    files = config("DiffusionModelUNet", written, module)
    return fixture(name, model, files, "model.safetensors", {"unet": (given, call)}, tapped=TAPPED, rename=rename, tap_name=tap_name, gains=SOFTER)


def with_classes():
    """Blocks and heads of their own per level, in heads of whole levels and of parts."""
    return unet(
        "monai-unet", (8, 12), in_channels=3, out_channels=2, num_res_blocks=[1, 2, 1], channels=[8, 16, 24], attention_levels=[False, True, True],
        norm_num_groups=4, num_head_channels=[0, 16, 8], num_class_embeds=5,
    )


def with_tokens():
    return unet(
        "monai-unet-cross-attention", (8, 8), in_channels=4, out_channels=4, num_res_blocks=[2, 1], channels=[8, 16], attention_levels=[True, True],
        norm_num_groups=4, num_head_channels=[4, 8], with_conditioning=True, cross_attention_dim=10, transformer_num_layers=2,
    )


def resampled():
    """Changes of resolution by residual blocks; queries, keys and values in one matrix; an attention in the middle alone."""
    return unet(
        "monai-unet-resblock-updown", (8, 8), in_channels=1, out_channels=1, num_res_blocks=1, channels=[8, 8, 16], attention_levels=[False, False, False],
        norm_num_groups=2, norm_eps=1e-5, num_head_channels=4, resblock_updown=True, use_combined_linear=True,
    )


def old_unet_name(key):
    """MONAI Generative's name of a tensor."""
    key = key.replace("postconv", "conv")
    if "transformer_blocks" in key:
        return key.replace("out_proj", "to_out.0")
    return re.sub(r"\.attn\.(to_[qkv]|out_proj)\.", lambda m: f".{m[1].replace('out_proj', 'proj_attn')}.", key)


def generative():
    return unet(
        "monai-generative-unet", (8, 8), rename=old_unet_name, module="generative.networks.nets", renamed_arguments=[("channels", "num_channels")],
        in_channels=1, out_channels=1, num_res_blocks=[1, 1], channels=[8, 16], attention_levels=[False, True], norm_num_groups=4, num_head_channels=16,
    )


def encode(model, sample):
    mean, sigma = model.encode(sample)
    return {"latent_dist_mean": mean, "latent_dist_logvar": 2 * sigma.log()}


def autoencoder(name, rename=None, module="monai.networks.nets", gains=(), **arguments):
    arguments = {"spatial_dims": 2} | arguments
    model = AutoencoderKL(**arguments)
    factor = 2 ** (len(arguments["channels"]) - 1)
    pixels = smooth_image((name, "pixels"), (2, arguments["in_channels"], 6 * factor, 4 * factor))
    latents = normal((name, "latents"), (2, arguments["latent_channels"], 4, 6))
    components = {
        "vae-encoder": ({"sample": pixels}, encode),
        "vae-decoder": ({"latents": latents}, lambda model, latents: {"sample": model.decode(latents)}),
    }
    return fixture(name, model, config("AutoencoderKL", arguments, module), "model.safetensors", components, tapped=TAPPED, rename=rename, gains=gains)


def autoencoder_kl():
    """The logarithm of the variance leaves its limits."""
    return autoencoder(
        "monai-autoencoder-kl", in_channels=1, out_channels=2, num_res_blocks=[1, 2, 1], channels=[8, 12, 16], attention_levels=[False, True, False],
        latent_channels=3, norm_num_groups=4, with_decoder_nonlocal_attn=False, gains=[(r"^quant_conv_log_sigma\.conv\.weight", 20.0, 0.0)],
    )


def autoencoder_generative():
    return autoencoder(
        "monai-generative-autoencoder-kl", rename=old_unet_name, module="generative.networks.nets", in_channels=3, out_channels=3, num_res_blocks=1,
        channels=[8, 8], attention_levels=[False, False], latent_channels=4, norm_num_groups=4, norm_eps=1e-5,
    )


FIXTURES = {
    "models/monai-unet": with_classes,
    "models/monai-unet-cross-attention": with_tokens,
    "models/monai-unet-resblock-updown": resampled,
    "models/monai-generative-unet": generative,
    "models/monai-autoencoder-kl": autoencoder_kl,
    "models/monai-generative-autoencoder-kl": autoencoder_generative,
}
