"""Single-file Stable Diffusion checkpoints in the names of the latent diffusion code, made from diffusers' and transformers'
models. Every name that is made here goes back through diffusers' own converters and must give the model again."""

import contextlib
import io
import json
import re

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from golden.files import Json, normal, smooth_image
from golden.recipe import Stored, fixture

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET, VAE = "model.diffusion_model.", "first_stage_model."


def unet_name(key, config):
    """LDM's name of a tensor of UNet2DConditionModel."""
    module, _, kind = key.rpartition(".")
    if module in UNET_ENDS:
        return f"{UNET}{UNET_ENDS[module]}.{kind}"
    per_level = config.layers_per_block + 1
    path, block, part, index, rest = re.fullmatch(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(\w+)\.(\d+)\.(.*)", key).groups()
    block, index = int(block or 0), int(index)
    if part == "resnets":
        inner, kind = rest.rsplit(".", 1)
        rest = f"{RESNET[inner]}.{kind}"
    if path == "mid":
        return f"{UNET}middle_block.{2 * index if part == 'resnets' else 1}.{rest}"
    if path == "down":
        if part == "downsamplers":
            return f"{UNET}input_blocks.{(block + 1) * per_level}.0.op.{kind}"
        return f"{UNET}input_blocks.{1 + block * per_level + index}.{0 if part == 'resnets' else 1}.{rest}"
    if part == "upsamplers":
        attended = config.up_block_types[block].startswith("CrossAttn")
        return f"{UNET}output_blocks.{block * per_level + per_level - 1}.{2 if attended else 1}.{rest}"
    return f"{UNET}output_blocks.{block * per_level + index}.{0 if part == 'resnets' else 1}.{rest}"


VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def vae_name(key, config):
    """LDM's name of a tensor of AutoencoderKL."""
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"mid_block\.attentions\.0\.(group_norm|to_q|to_k|to_v|to_out\.0)", lambda m: f"mid.attn_1.{VAE_ATTENTION[m[1]]}", key)
    key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    last = len(config.block_out_channels) - 1
    key = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", key)
    return VAE + re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", key)


OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
OPEN_CLIP_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}


def with_wrapper(key):
    """transformers dropped `text_model.` from the names in memory, not from the files."""
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"


def open_clip_name(key):
    """OpenCLIP's name of a tensor of a CLIPTextModel; three of them share an in_proj."""
    key = with_wrapper(key)
    if key in OPEN_CLIP:
        return OPEN_CLIP[key]
    layer, inner, kind = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.*)\.(\w+)", key).groups()
    if inner in OPEN_CLIP_LAYER:
        return f"transformer.resblocks.{layer}.{OPEN_CLIP_LAYER[inner]}.{kind}"
    assert inner in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), key
    return f"transformer.resblocks.{layer}.attn.in_proj_{kind}"


def is_kept(key):
    return not key.endswith("position_ids")


def unet_state(unet):
    return {unet_name(key, unet.config): value for key, value in unet.state_dict().items()}


def vae_state(vae):
    def shaped(key, value):
        return value[:, :, None, None] if ".attentions." in key and value.ndim == 2 else value

    return {vae_name(key, vae.config): shaped(key, value) for key, value in vae.state_dict().items()}


def clip_state(text, prefix):
    return {prefix + with_wrapper(key): value for key, value in text.state_dict().items() if is_kept(key)}


def open_clip_state(text, prefix, extra_layer):
    """As OpenCLIP holds it; `extra_layer`: the last layer, which Stable Diffusion 2 does not use, is in the file."""
    state = {}
    for key, value in text.state_dict().items():
        if is_kept(key):
            state.setdefault(prefix + open_clip_name(key), []).append((key, value))
    joined = {}
    for name, parts in state.items():
        parts = [value for _, value in sorted(parts, key=lambda part: "qkv".find(re.sub(r".*\.(.)_proj.*", r"\1", part[0])[0]))]
        joined[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
        if name.endswith("text_projection"):
            joined[name] = joined[name].T
    if extra_layer:
        layers = text.config.num_hidden_layers
        for name in [name for name in joined if ".resblocks.0." in name]:
            joined[name.replace(".resblocks.0.", f".resblocks.{layers}.")] = joined[name]
    return joined


def agree(found, expected, what):
    """Names and tensors of a conversion are the model's."""
    found, expected = ({k.removeprefix("text_model."): v for k, v in state.items() if is_kept(k)} for state in (found, expected))
    assert found.keys() == expected.keys(), f"{what}: {sorted(found.keys() ^ expected.keys())[:8]}"
    for key, value in expected.items():
        assert found[key].shape == value.shape, f"{what}: {key} is {found[key].shape}, expected {value.shape}"
        assert value.is_meta or torch.equal(found[key], value), f"{what}: {key}"


def prove(state, unet, vae, texts):
    """diffusers' converters give the models again. `texts`: (model, prefix, whether it is OpenCLIP's)."""
    with contextlib.redirect_stdout(io.StringIO()):
        agree(single_file_utils.convert_ldm_unet_checkpoint(dict(state), unet.config), unet.state_dict(), "unet")
        agree(single_file_utils.convert_ldm_vae_checkpoint(dict(state), vae.config), vae.state_dict(), "vae")
        for text, prefix, is_open in texts:
            if is_open:
                found = single_file_utils.convert_open_clip_checkpoint(text, dict(state), prefix=prefix)
                kept = text.config.num_hidden_layers
                found = {key: value for key, value in found.items() if int((re.search(r"layers\.(\d+)\.", key) or [0, 0])[1]) < kept}
            else:
                found = single_file_utils.convert_ldm_clip_checkpoint({k: v for k, v in state.items() if k.startswith(prefix)}, remove_prefix=prefix)
            agree(found, text.state_dict(), prefix)


def unet_config(channels, cross, depths, in_channels=4, **options):
    types = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    given = {
        "in_channels": in_channels,
        "block_out_channels": channels,
        "down_block_types": types,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(types)],
        "cross_attention_dim": cross,
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
    }
    return given | options


def vae_config(channels, **options):
    count = len(channels)
    return {"block_out_channels": channels, "down_block_types": ["DownEncoderBlock2D"] * count, "up_block_types": ["UpDecoderBlock2D"] * count, "layers_per_block": 2} | options


def clip_config(hidden, layers, act, projection=None, vocabulary=49408, positions=77, **options):
    given = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "num_attention_heads": max(1, hidden // 64), "hidden_act": act}
    given |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    given["architectures"] = ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"]
    return CLIPTextConfig(vocab_size=vocabulary, max_position_embeddings=positions, projection_dim=projection or hidden, **given, **options)


def text_model(config, projected=False):
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


SD1 = {"attention_head_dim": 8}
SD_VAE = (128, 256, 512, 512)
SDXL_EXTRA = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True}


def full_size(name):
    """Models of the published sizes, without memory: UNet, autoencoder, [(text encoder, prefix, is OpenCLIP's, has a last layer more)]."""
    latents = {"sd1": 64, "sd2": 64 if name == "sd2-inpaint" else 96, "sdx": 128}[name[:3]]
    vae = AutoencoderKL(**vae_config(SD_VAE, sample_size=8 * latents, **({"scaling_factor": 0.13025} if name.startswith("sdxl") else {})))
    if name.startswith("sd1"):
        unet = unet_config((320, 640, 1280, 1280), 768, (1, 1, 1, 0), in_channels=9 if name.endswith("inpaint") else 4, sample_size=latents, **SD1)
        return UNet2DConditionModel(**unet), vae, [(text_model(clip_config(768, 12, "quick_gelu")), "cond_stage_model.transformer.", False, False)]
    if name.startswith("sd2"):
        channels = {"sd2-inpaint": 9, "sd2-depth": 5}.get(name, 4)
        unet = unet_config((320, 640, 1280, 1280), 1024, (1, 1, 1, 0), in_channels=channels, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True, sample_size=latents)
        return UNet2DConditionModel(**unet), vae, [(text_model(clip_config(1024, 23, "gelu")), "cond_stage_model.model.", True, True)]
    if name == "sdxl-refiner":
        extra = SDXL_EXTRA | {"projection_class_embeddings_input_dim": 2560}
        unet = unet_config((384, 768, 1536, 1536), 1280, (0, 4, 4, 0), attention_head_dim=[6, 12, 24, 24], sample_size=latents, **extra)
        # A list would give the middle its last number: the published configuration has one for all.
        unet["transformer_layers_per_block"] = 4
        second = text_model(clip_config(1280, 32, "gelu", projection=1280), projected=True)
        return UNet2DConditionModel(**unet), vae, [(second, "conditioner.embedders.0.model.", True, False)]
    unet = unet_config((320, 640, 1280), 2048, (0, 2, 10), attention_head_dim=[5, 10, 20], sample_size=latents, **SDXL_EXTRA)
    first, second = text_model(clip_config(768, 12, "quick_gelu")), text_model(clip_config(1280, 32, "gelu", projection=1280), projected=True)
    return UNet2DConditionModel(**unet), vae, [(first, "conditioner.embedders.0.transformer.", False, False), (second, "conditioner.embedders.1.model.", True, False)]


def states(unet, vae, texts):
    """What a file holds, by part."""
    parts = {"unet": unet_state(unet), "vae": vae_state(vae)}
    for number, (text, prefix, is_open, has_more) in enumerate(texts):
        parts["text_encoder" if number == 0 else f"text_encoder_{number + 1}"] = open_clip_state(text, prefix, has_more) if is_open else clip_state(text, prefix)
    return parts


def shared(one, two):
    """How many characters two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))


class Rows(Json):
    """Rows of texts without spaces, each text without what it shares with the one above: the count of shared characters, a colon, the rest."""

    def bytes(self):
        out, before = [], [""] * len(self.value[0])
        for row in self.value:
            out.append(" ".join(f"{shared(text, above)}:{text[shared(text, above):]}" for text, above in zip(row, before)))
            before = row
        return ("\n".join(out) + "\n").encode()

    def differences(self, path):
        if self.bytes() != path.read_bytes():
            yield "other rows than committed"


def name_list(name):
    """Every tensor of a full-size file: part, name in the file, shape there, and the model's name (several with `+`, none as `-`).
    All have the same autoencoder: it is in the first list only. The refiner's text encoder is SDXL's second."""
    names = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    with torch.device("meta"):
        unet, vae, texts = full_size(name)
        parts = states(unet, vae, texts)
    prove({key: value for state in parts.values() for key, value in state.items()}, unet, vae, [text[:3] for text in texts])
    owners = {}
    for key in unet.state_dict():
        owners.setdefault(unet_name(key, unet.config), []).append(key)
    for key in vae.state_dict():
        owners.setdefault(vae_name(key, vae.config), []).append(key)
    for text, prefix, is_open, _ in texts:
        for key in filter(is_kept, text.state_dict()):
            file = open_clip_name(key) if is_open else with_wrapper(key)
            owners.setdefault(prefix + file, []).append(with_wrapper(key))
    rows = []
    for part, state in parts.items():
        if (part == "vae" and name != NAMES[0]) or (part != "unet" and name == "sdxl-refiner"):
            continue
        for key, value in sorted(state.items()):
            rows.append([part, key, "x".join(str(dim) for dim in value.shape), "+".join(sorted(owners.get(key, ["-"])))])
    configs = {"unet": unet.config, "vae": vae.config} | {part: text.config.to_dict() for part, (text, *_) in zip(list(parts)[2:], texts)}
    published = {part: {"_class_name": names.get(part)} | {key: value for key, value in config.items() if not key.startswith("_")} for part, config in configs.items()}
    return {f"names/{name}.txt": Rows(rows), f"names/{name}.json": Json(json.loads(json.dumps(published, default=str)))}


class Parts(torch.nn.Module):
    """What one file holds, as modules of the names of diffusers' folders."""

    def __init__(self, unet, vae, texts):
        super().__init__()
        self.unet, self.vae = unet, vae
        self.prefixes = {}
        for number, (text, prefix, is_open, has_more) in enumerate(texts):
            name = "text_encoder" if number == 0 else f"text_encoder_{number + 1}"
            setattr(self, name, text)
            self.prefixes[name] = (prefix, is_open, has_more)

    def stored(self, key):
        part, key = key.split(".", 1)
        if part == "unet":
            return unet_name(key, self.unet.config)
        if part == "vae":
            value = self.vae.state_dict()[key]
            is_linear = ".attentions." in key and value.ndim == 2
            return Stored(vae_name(key, self.vae.config), (*value.shape, 1, 1) if is_linear else None)
        prefix, is_open, _ = self.prefixes[part]
        if not is_kept(key):
            return None
        if not is_open:
            return prefix + with_wrapper(key)
        name = open_clip_name(key)
        joined = re.search(r"\.([qkv])_proj\.", key)
        return Stored(prefix + name, part="qkv".index(joined[1]) if joined else 0, transposed=name == "text_projection")

    def last_layers(self):
        """Rows of the text encoders' layers that nobody reads: as the first, of other values."""
        rows = []
        for part, (prefix, is_open, has_more) in self.prefixes.items():
            text = getattr(self, part)
            if is_open and has_more:
                state = open_clip_state(text, prefix, True)
                last = f".resblocks.{text.config.num_hidden_layers}."
                rows += [[name, list(value.shape), 0.5, 0.0] for name, value in state.items() if last in name]
        return rows

    def proved(self):
        """diffusers' converters give every part again."""
        texts = [(getattr(self, part), prefix, is_open, has_more) for part, (prefix, is_open, has_more) in self.prefixes.items()]
        state = {key: value for part in states(self.unet, self.vae, texts).values() for key, value in part.items()}
        prove(state, self.unet, self.vae, [text[:3] for text in texts])


NOISE = ["betas", "alphas_cumprod", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_mean_coef1"]
TAPPED = (
    r"unet\.(conv_in|time_embedding|add_embedding|mid_block|(down|up)_blocks\.\d+(\.(resnets|attentions|downsamplers|upsamplers)\.\d+)?|conv_out)"
    r"|text_encoder\.(text_model\.)?(encoder\.layers\.\d+|final_layer_norm)"
    r"|vae\.((en|de)coder\.(conv_in|mid_block|(down|up)_blocks\.\d+)|(post_)?quant_conv)"
)


# With sharper attention in 30 layers PyTorch's own f32 is more than 1e-4 off its f64.
SOFTER = [(r"attn[12]\.to_[qk]\.weight", 0.1, 0.0)]


def run_unet(model, sample, timestep, encoder_hidden_states, **added):
    return {"sample": model.unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added or None).sample}


def encode(model, sample):
    posterior = model.vae.encode(sample).latent_dist
    return {"latent_dist_mean": posterior.mean, "latent_dist_logvar": posterior.logvar}


def encode_text(model, input_ids):
    result = model.text_encoder(input_ids, output_hidden_states=True)
    outputs = {"last_hidden_state": result.last_hidden_state, "penultimate_hidden_state": result.hidden_states[-2]}
    return outputs | ({"text_embeds": result.text_embeds} if hasattr(result, "text_embeds") else {"pooler_output": result.pooler_output})


def tap_name(path):
    part, path = path.split(".", 1)
    return with_wrapper(path) if part == "text_encoder" else path


def single_file(name, unet, texts, vae=(32, 64), more=(), **vae_options):
    """A narrow file. Norms have 32 groups, as no file can tell another number."""
    torch.manual_seed(0)
    model = Parts(UNet2DConditionModel(**unet), AutoencoderKL(**vae_config(vae, **vae_options)), texts)
    model.proved()
    config = model.unet.config
    factor = 2 ** (len(config.block_out_channels) - 1)
    given = {
        "sample": normal((name, "sample"), (1, config.in_channels, 2 * factor, 3 * factor)),
        "timestep": torch.tensor([321.0]),
        "encoder_hidden_states": normal((name, "tokens"), (1, 77, config.cross_attention_dim)),
    }
    if config.addition_embed_type:
        ids = 5 if name.endswith("refiner") else 6
        pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        given |= {"text_embeds": normal((name, "text"), (1, pooled)), "time_ids": torch.tensor([[512.0, 384.0, 0.0, 64.0, 6.0, 384.0][:ids]])}
    pixels = 2 * smooth_image((name, "pixels"), (1, 3, 16, 24)) - 1
    latents = normal((name, "latents"), (1, 4, 4, 6))
    components = {
        "unet": (given, run_unet),
        "vae-encoder": ({"sample": pixels}, encode),
        "vae-decoder": ({"latents": latents}, lambda model, latents: {"sample": model.vae.decode(latents).sample}),
    }
    rows = [*model.last_layers(), *([buffer, [7], 0.5, 0.5] for buffer in NOISE), *more]
    text = texts[0][0]
    tokens = torch.tensor([[0, 5, 17, 3, text.config.vocab_size - 1, 1, 1], [0, text.config.vocab_size - 1, 9, 1, 1, 1, 1]])
    components["text-encoder"] = ({"input_ids": tokens}, encode_text)
    return fixture(name, model, None, "model.safetensors", components, tapped=TAPPED, rename=model.stored, more=rows, tap_name=tap_name, gains=SOFTER)


def ldm_sd1_inpaint():
    unet = unet_config((32, 64, 96), 40, (1, 1, 0), in_channels=9, attention_head_dim=8)
    text = text_model(clip_config(64, 2, "quick_gelu", vocabulary=99))
    ema = [["model_ema.decay", [1], 0.0, 0.5], ["model_ema.diffusion_modelout2bias", [4], 0.5, 0.0]]
    return single_file("ldm-sd1-inpaint", unet, [(text, "cond_stage_model.transformer.", False, False)], more=ema)


def ldm_sd2():
    unet = unet_config((64, 128), 64, (1, 0), attention_head_dim=[1, 2], use_linear_projection=True)
    text = text_model(clip_config(64, 2, "gelu", vocabulary=99))
    unread = [["cond_stage_model.model.logit_scale", [1], 0.0, 4.0], ["cond_stage_model.model.text_projection", [64, 64], 0.1, 0.0]]
    return single_file("ldm-sd2", unet, [(text, "cond_stage_model.model.", True, True)], more=unread)


def ldm_sdxl():
    extra = SDXL_EXTRA | {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 128 + 6 * 8}
    unet = unet_config((64, 64, 128), 192, (0, 1, 2), attention_head_dim=[1, 1, 2], **extra)
    first = text_model(clip_config(64, 2, "quick_gelu", vocabulary=99))
    second = text_model(clip_config(128, 2, "gelu", projection=128, vocabulary=99), projected=True)
    texts = [(first, "conditioner.embedders.0.transformer.", False, False), (second, "conditioner.embedders.1.model.", True, False)]
    unread = [["conditioner.embedders.1.model.logit_scale", [1], 0.0, 4.0], ["denoiser.sigmas", [7], 0.5, 1.0]]
    return single_file("ldm-sdxl", unet, texts, more=unread, scaling_factor=0.13025)


def ldm_sdxl_refiner():
    """The one whose first text encoder is OpenCLIP's with its projection."""
    extra = SDXL_EXTRA | {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 128 + 5 * 8}
    unet = unet_config((64, 128, 64), 128, (0, 1, 0), attention_head_dim=[1, 2, 1], **extra)
    text = text_model(clip_config(128, 2, "gelu", projection=128, vocabulary=99), projected=True)
    return single_file("ldm-sdxl-refiner", unet, [(text, "conditioner.embedders.0.model.", True, False)], scaling_factor=0.13025)


NAMES = ("sd1-inpaint", "sd2-depth", "sdxl", "sdxl-refiner")
FIXTURES = {f"names/{name}": lambda name=name: name_list(name) for name in NAMES}
FIXTURES |= {"models/ldm-sd1-inpaint": ldm_sd1_inpaint, "models/ldm-sd2": ldm_sd2, "models/ldm-sdxl": ldm_sdxl, "models/ldm-sdxl-refiner": ldm_sdxl_refiner}
