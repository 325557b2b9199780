"""Writes models in the ecosystem's own layouts: f16 safetensors beside a config.json."""

import json
import os

import torch
from safetensors.torch import save_file

from data import CLASSES, DILATE, MEAN, SIZE, STD
from session import write_json

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.42.1",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "trained_betas": None,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": False,
    "steps_offset": 0,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}

INDEX = {
    "_class_name": "ClassConditionalInpaint",
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "vae": ["diffusers", "AutoencoderKL"],
    "image_size": SIZE,
    "scaling_factor": 1.0,
    "class_names": CLASSES,
    "null_class": len(CLASSES),
    "unet_input": ["latents", "hole", "masked_image_latents"],
    "hole_to_latent": "max_pool",
    "hole_pixels": "latent_cell",
    "masked_fill": 0.5,
    "dilate_px": DILATE,
    "reimpose_known": True,
}


def write(folder, state, config, file="model.safetensors"):
    """`state` as f16 in `folder`/`file`, `config` as its config.json. Fails when a value does not fit f16."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {}
    for name, value in state.items():
        if value.is_floating_point():
            value = value.half()
            if not torch.isfinite(value).all():
                raise RuntimeError(f"{folder}: {name}: not finite in f16")
        half[name] = value.cpu().contiguous()
    part = folder / (file + ".part")
    save_file(half, part, metadata={"format": "pt", "license": "CC-BY-NC-4.0"})
    os.replace(part, folder / file)
    write_json(folder / "config.json", config)


def diffusers(folder, model, state):
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in model.config.items() if not k.startswith("_") or k == "_class_name"}
    config = {"_class_name": type(model).__name__, "_diffusers_version": "0.42.1"} | config
    config.pop("_use_default_values", None)
    write(folder, state, json.loads(json.dumps(config)), "diffusion_pytorch_model.safetensors")


def inpainting(folder):
    """The files beside unet/ and vae/."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "model_index.json", INDEX)
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)


def classifier(folder, state, architecture, arguments, num_features):
    """timm's config.json."""
    config = {
        "architecture": architecture,
        "num_classes": len(CLASSES),
        "num_features": num_features,
        "label_names": CLASSES,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, SIZE, SIZE],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": MEAN,
            "std": STD,
            "num_classes": len(CLASSES),
        },
    }
    write(folder, {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, config)
