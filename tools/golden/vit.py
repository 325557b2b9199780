"""Narrow vision transformers of timm and torchvision: the published layouts, names and options, with few channels and blocks."""

import json
import tempfile
from pathlib import Path

import timm
from timm.models._hub import save_config_for_hf
from torchvision.models.vision_transformer import VisionTransformer

from golden.files import normal
from golden.recipe import fixture

CLASSES = 5
TAPPED = r"patch_embed\.proj|norm_pre|blocks\.\d+(\.(norm1|attn|ls1|norm2|mlp|ls2))?|norm|fc_norm|conv_proj|encoder\.layers\.encoder_layer_\d+|encoder\.ln"


def published(model, **model_args):
    """config.json as timm writes it; `model_args` are those that the model was created with."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        save_config_for_hf(model, path, model_args=model_args)
        return json.loads(path.read_text())


def by_parts(model, pixel_values):
    tokens = model.forward_features(pixel_values)
    result = {"features": model.forward_head(tokens, pre_logits=True)}
    if model.num_classes > 0:
        result["logits"] = model(pixel_values)
    return result


def timm_vit(name, size=(32, 32), classes=CLASSES, width=24, depth=2, heads=3, patch=8, **options):
    arguments = {"img_size": list(size), "embed_dim": width, "num_heads": heads, "depth": depth, "patch_size": patch, "num_classes": classes} | options
    model = timm.create_model(name, **arguments)
    pixels = normal((name, "pixels"), (2, 3, *size))
    config = published(model, **arguments)
    return fixture(name, model, config, "model.safetensors", {"classifier": ({"pixel_values": pixels}, by_parts)}, tapped=TAPPED)


def torchvision_vit():
    model = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=128, mlp_dim=96, num_classes=CLASSES)

    def call(model, pixel_values):
        kept = {}
        handle = model.heads.head.register_forward_pre_hook(lambda _module, inputs: kept.update(features=inputs[0]))
        kept["logits"] = model(pixel_values)
        handle.remove()
        return {"features": kept["features"], "logits": kept["logits"]}

    name = "torchvision-vit"
    return fixture(name, model, None, "model.safetensors", {"classifier": ({"pixel_values": normal((name, "pixels"), (2, 3, 32, 32))}, call)}, tapped=TAPPED)


NAMES = {
    "vit_tiny_patch16_224": {},
    "vit_small_patch32_384": {"size": (32, 48)},
    "vit_base_patch16_gap_224": {},
    "vit_base_patch32_clip_quickgelu_224": {},
    "vit_medium_patch16_reg4_gap_256": {"width": 32, "heads": 2},
    "vit_large_patch14_dinov2": {"classes": 0},
    "vit_small_patch14_reg4_dinov2": {"classes": 0, "size": (48, 48)},
    "vit_giant_patch14_dinov2": {"classes": 0},
    "vit_so150m2_patch16_reg1_gap_256": {"qk_norm": True},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
}

FIXTURES = {f"models/{name}": lambda name=name, options=options: timm_vit(name, **options) for name, options in NAMES.items()}
FIXTURES["models/torchvision-vit"] = torchvision_vit
