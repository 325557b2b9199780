"""LoRA files in every convention, merged by diffusers and peft into narrow models. A folder of tests/golden/models holds beside its model

    loras.json                      {case: [[file or folder in loras, weight], ...]}
    loras/                          the files
    <component>.<case>.safetensors  as <component>.safetensors, with the LoRAs merged

Each case is computed twice: by diffusers' loader and peft's layers, and by adding weight * scale * up down to the weights.
"""

import json
import re

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model
from transformers import CLIPTextModel

from golden import ldm, text
from golden.files import Json, Tensors, normal
from golden.recipe import fixture
from golden.unet_condition import TWO, condition

TAPPED = r"mid_block|(down|up)_blocks\.\d+"
# A LoRA's result must differ from the model's own by this share of its rms: one that is not merged would be seen.
VISIBLE = 0.02


def factors(names, module, rank):
    """down and up of a linear layer or a convolution; kohya's convolutions have their kernel below."""
    weight = module.weight
    down, up = (rank, *weight.shape[1:]), (weight.shape[0], rank, *[1] * (weight.ndim - 2))
    fan = down[1] * (down[2] * down[3] if weight.ndim == 4 else 1)
    # Numbers that half precision holds exactly.
    return (value.half().double() for value in (normal((*names, "down"), down, fan**-0.5), normal((*names, "up"), up, 0.4 * rank**-0.5)))


def chosen(model, pattern, kinds=(torch.nn.Linear, torch.nn.Conv2d)):
    return {path: module for path, module in model.named_modules() if isinstance(module, kinds) and re.fullmatch(pattern, path)}


def random_factors(model, name, pattern, rank):
    """{module path: (down, up)}; `rank` is a number or a function of the path."""
    rank_of = rank if callable(rank) else lambda _path: rank
    return {path: tuple(factors((name, path), module, rank_of(path))) for path, module in chosen(model, pattern).items()}


def merge(model, changes, weight):
    """changes: {module path: (down, up, scale)}."""
    modules = dict(model.named_modules())
    for path, (down, up, scale) in changes.items():
        target = modules[path].weight.data
        delta = torch.einsum("or,r...->o...", up.flatten(1), down.to(up))
        assert delta.shape == target.shape, path
        target += (weight * scale * delta).to(target.dtype)


class Case:
    """One LoRA file. changes: {path: (down, up, scale)} of a model; files: {path in loras: file}; load: puts it into a model by
    diffusers under an adapter's name, None where no loader takes it."""

    def __init__(self, path, changes, files, load):
        self.path, self.changes, self.files, self.load = path, changes, files, load


def by_pipeline(pipeline, tensors, metadata=None):
    """What diffusers makes of a file: its own conversion, then the model's loader."""

    def load(model, adapter):
        state, alphas = pipeline.lora_state_dict(dict(tensors), unet_config=model.config)
        model.load_lora_adapter(state, prefix="unet", network_alphas=alphas, adapter_name=adapter, metadata=metadata)

    return load


# Everything that a LoRA of attention layers has.
ATTENTION = r".*\.attn[12]\.to_(q|k|v|out\.0)"
# And what LyCORIS and LCM-LoRA have beside it.
WIDE = r".*\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)|proj_in|proj_out|conv1|conv2|conv_shortcut|conv|time_emb_proj)|conv_in|conv_out|time_embedding\.linear_[12]"


def peft_in_metadata(model):
    """diffusers 0.34 and later: PEFT's names, its settings in the metadata, ranks and alphas by module."""
    rank = lambda path: 2 if path.endswith("to_k") else 4
    found = random_factors(model, "peft", ATTENTION + "|conv_out", rank)
    settings = LoraConfig(
        r=4, lora_alpha=6, rank_pattern={"to_k": 2}, alpha_pattern={"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 1, "conv_out": 9},
        target_modules=sorted(found),
    ).to_dict()
    alpha = lambda path: {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 1, "conv_out": 9}.get(path, 6)
    changes = {path: (down, up, alpha(path) / down.shape[0]) for path, (down, up) in found.items()}
    tensors = {}
    for path, (down, up) in found.items():
        tensors |= {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
    packed = {f"unet.{key}": sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    file = Tensors(tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(packed, indent=2, sort_keys=True, default=str)})
    return Case("peft.safetensors", changes, {"peft.safetensors": file}, by_pipeline(StableDiffusionPipeline, tensors, packed))


def peft_folder(model):
    """What PEFT saves of a model that it wraps, with alpha over the root of the rank."""
    found = random_factors(model, "rslora", r".*\.attn2\.to_[qv]|.*\.conv1", 4)
    config = LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=sorted(found), base_model_name_or_path="a/b")
    config.inference_mode = True
    changes = {path: (down, up, 3 / 4**0.5) for path, (down, up) in found.items()}
    tensors = {}
    for path, (down, up) in found.items():
        tensors |= {f"base_model.model.{path}.lora_A.weight": down, f"base_model.model.{path}.lora_B.weight": up}
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    files = {"rslora/adapter_config.json": Json(settings), "rslora/adapter_model.safetensors": Tensors(tensors, {"format": "pt"})}

    def load(model, adapter):
        wrapped = get_peft_model(model, config, adapter_name=adapter)
        state = dict(wrapped.named_parameters())
        for key, value in tensors.items():
            state[key.replace(".weight", f".{adapter}.weight")].data = value.clone()

    return Case("rslora", changes, files, load)


def diffusers_old(model):
    """Before diffusers 0.26: no alpha."""
    found = random_factors(model, "old", ATTENTION + r"|.*\.ff\.net\.2", 3)
    tensors = {}
    for path, (down, up) in found.items():
        tensors |= {f"unet.{path}.lora.down.weight": down, f"unet.{path}.lora.up.weight": up}
    changes = {path: (*pair, 1.0) for path, pair in found.items()}
    return Case("diffusers-old.safetensors", changes, {"diffusers-old.safetensors": Tensors(tensors)}, by_pipeline(StableDiffusionPipeline, tensors))


def processors(model):
    """Before diffusers 0.20: attention processors, without the model's name."""
    found = random_factors(model, "processors", ATTENTION, 2)
    tensors = {}
    for path, (down, up) in found.items():
        attention, layer = re.fullmatch(r"(.*)\.(to_\w+)(?:\.0)?", path).groups()
        tensors |= {f"{attention}.processor.{layer}_lora.down.weight": down, f"{attention}.processor.{layer}_lora.up.weight": up}
    changes = {path: (*pair, 1.0) for path, pair in found.items()}
    prefixed = {f"unet.{key}": value for key, value in tensors.items()}
    return Case("processors.safetensors", changes, {"processors.safetensors": Tensors(tensors)}, by_pipeline(StableDiffusionPipeline, prefixed))


def kohya_file(found, name_of, alpha_of, path, pipeline):
    """In half precision, as most are published."""
    tensors, changes = {}, {}
    for module, (down, up) in found.items():
        alpha = alpha_of(module)
        tensors |= {f"{name_of(module)}.lora_down.weight": down, f"{name_of(module)}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{name_of(module)}.alpha"] = torch.tensor(float(alpha), dtype=torch.float64)
        changes[module] = (down, up, 1.0 if alpha is None else alpha / down.shape[0])
    halves = {key: value.half() for key, value in tensors.items()}
    return Case(path, changes, {path: Tensors(halves, {"ss_base_model_version": "a/b", "ss_network_module": "networks.lora"})}, by_pipeline(pipeline, tensors))


def kohya(model):
    """kohya's names of a diffusers model, with convolutions: kernels below, 1x1 above; alpha is not the rank."""
    found = random_factors(model, "kohya", WIDE, lambda path: 1 if "conv" in path else 3)
    name_of = lambda path: "lora_unet_" + path.replace(".", "_")
    # diffusers takes one alpha for several modules from the end of a path; different ones show that each has its own.
    alpha_of = lambda path: 0.5 if "conv" in path else 4.0
    return kohya_file(found, name_of, alpha_of, "kohya.safetensors", StableDiffusionPipeline)


def kohya_ldm(model):
    """kohya's names of SDXL's own code."""
    found = random_factors(model, "kohya-ldm", WIDE + r"|add_embedding\.linear_[12]", lambda path: 1 if "conv" in path else 2)

    def name_of(path):
        name = ldm.unet_name(f"{path}.weight", model.config)
        return "lora_unet_" + name.removeprefix(ldm.UNET).removesuffix(".weight").replace(".", "_")

    return kohya_file(found, name_of, lambda path: 0.5 if "conv" in path else 3.0, "kohya-ldm.safetensors", StableDiffusionXLPipeline)


def changed(make, component, cases):
    """The files of one folder. make(change, tapped): the fixture with a model that was changed; cases: {case: [(maker, weight)]}."""

    def only(case, files):
        return {path.replace(f"/{component}.", f"/{component}.{case}."): file for path, file in files.items() if path.endswith(f"/{component}.safetensors")}

    files = make(None, TAPPED)
    folder = next(iter(files)).rsplit("/", 1)[0]
    plain = result(files, component)
    index = {}
    for case, loras in cases.items():
        kept, index[case] = {}, []

        def add(model):
            for maker, weight in loras:
                lora = maker(model)
                merge(model, lora.changes, weight)
                kept.update({f"{folder}/loras/{path}": file for path, file in lora.files.items()})
                index[case].append([lora.path, weight])

        def load(model):
            made = [(maker(model), weight) for maker, weight in loras]
            if any(lora.load is None for lora, _ in made):
                return merge_all(model, made)
            for number, (lora, _) in enumerate(made):
                lora.load(model, f"a{number}")
            weigh(model, {f"a{number}": weight for number, (_, weight) in enumerate(made)})

        merged, loaded = only(case, make(add, TAPPED)), only(case, make(load, TAPPED))
        ours, told = result(merged, f"{component}.{case}"), result(loaded, f"{component}.{case}")
        assert relative(ours, told) < 1e-6, f"{folder} {case}: diffusers' loader and the sum differ by {relative(ours, told):.1e}"
        assert relative(ours, plain) > VISIBLE, f"{folder} {case}: the LoRA changes {relative(ours, plain):.1e} of the result"
        files |= kept | loaded
    files[f"{folder}/loras.json"] = Json(index)
    return files


def merge_all(model, made):
    for lora, weight in made:
        merge(model, lora.changes, weight)


def weigh(model, weights):
    """Every adapter at its weight: peft's layers multiply it with alpha / r."""
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_adapter([name for name in weights if name in module.scaling])
            for name, weight in weights.items():
                if name in module.scaling:
                    module.set_scale(name, weight)


def result(files, component):
    file = next(file for path, file in files.items() if path.endswith(f"/{component}.safetensors"))
    return next(value for name, value in file.tensors.items() if name.startswith("out/"))


def relative(ours, told):
    return float((ours - told).pow(2).mean().sqrt() / told.pow(2).mean().sqrt())


def stable_diffusion_1():
    def make(change, tapped):
        return condition("lora-sd1", change=change, attention_head_dim=4, cross_attention_dim=10, tapped=tapped, **TWO)

    cases = {maker.__name__.replace("_", "-"): [(maker, 1.0)] for maker in (peft_in_metadata, peft_folder, diffusers_old, processors, kohya)}
    return changed(make, "unet", cases | {"two": [(peft_in_metadata, 0.7), (kohya, -0.3)]})


def stable_diffusion_xl():
    def make(change, tapped):
        return condition(
            "lora-sdxl", change=change, block_out_channels=(8, 16, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4, 4),
            cross_attention_dim=10, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=10 + 6 * 8, given=[("text_embeds", (2, 10))], gains=[(r"to_[qk]\.weight", 0.4, 0.0)], tapped=tapped,
        )

    return changed(make, "unet", {"kohya-ldm": [(kohya_ldm, 0.8)]})


def kohya_text(model):
    """kohya's names of a text encoder alone. diffusers loads such names into a pipeline only: the sum alone is the reference."""
    found = random_factors(model, "kohya-text", r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])", 3)
    name_of = lambda path: "lora_te_" + ldm.with_wrapper(path).replace(".", "_")
    case = kohya_file(found, name_of, lambda path: None if "mlp" in path else 1.5, "kohya-text.safetensors", None)
    case.load = None
    return case


def text_encoder():
    def make(change, _tapped):
        return text.encoder("lora-clip-text", CLIPTextModel, text.texts(44, 44), wrap=text.Old, change=change, hidden_act="quick_gelu", eos_token_id=2, projection_dim=24)

    return changed(make, "text-encoder", {"kohya": [(kohya_text, 1.0)]})


FIXTURES = {"models/lora-sd1": stable_diffusion_1, "models/lora-sdxl": stable_diffusion_xl, "models/lora-clip-text": text_encoder}
