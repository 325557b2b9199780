"""DDIM steps of diffusers' DDIMScheduler: its own f32 tables of alphas_cumprod, every step in float64."""

import json

import torch
from diffusers import DDIMScheduler

from golden.files import Json, normal

TRAINED_BETAS = [round(0.001 + 0.0018 * i + 0.00005 * i * i, 6) for i in range(20)]

# name: (steps, eta, batch, what differs from DDIMScheduler's defaults)
CASES = {
    "defaults": (5, 0.0, 1, {}),
    "stable_diffusion": (4, 0.0, 1, dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)),
    "stable_diffusion_eta": (4, 0.5, 1, dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)),
    "cosine": (5, 0.0, 1, dict(beta_schedule="squaredcos_cap_v2", clip_sample=False)),
    "cosine_eta_one": (5, 1.0, 1, dict(beta_schedule="squaredcos_cap_v2", clip_sample=False, set_alpha_to_one=False)),
    "trained_betas": (5, 0.5, 1, dict(num_train_timesteps=20, trained_betas=TRAINED_BETAS, clip_sample=False)),
    "v_prediction": (4, 0.0, 1, dict(prediction_type="v_prediction", clip_sample=False)),
    "v_prediction_clipped_eta": (4, 0.5, 1, dict(prediction_type="v_prediction", clip_sample_range=0.8)),
    "sample_prediction": (4, 0.0, 1, dict(prediction_type="sample", clip_sample=False)),
    "sample_prediction_eta_one": (4, 1.0, 1, dict(prediction_type="sample", clip_sample=True, beta_schedule="scaled_linear")),
    "trailing": (7, 0.0, 1, dict(timestep_spacing="trailing", clip_sample=False)),
    "trailing_half_even": (16, 0.0, 1, dict(timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False)),
    "linspace": (3, 0.0, 1, dict(timestep_spacing="linspace", clip_sample=False)),
    "linspace_eta": (6, 0.5, 1, dict(timestep_spacing="linspace", clip_sample=False, set_alpha_to_one=False, beta_schedule="scaled_linear")),
    "leading_uneven": (7, 0.0, 1, dict(timestep_spacing="leading", steps_offset=1, clip_sample=False)),
    "clip_range": (4, 1.0, 1, dict(clip_sample=True, clip_sample_range=2.0, steps_offset=1)),
    "thresholding": (4, 0.0, 2, dict(thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.9, clip_sample=False)),
    "thresholding_eta_v": (3, 0.5, 2, dict(thresholding=True, sample_max_value=4.0, dynamic_thresholding_ratio=0.6, prediction_type="v_prediction")),
    "zero_snr": (4, 0.0, 1, dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")),
    "zero_snr_sample_eta": (4, 1.0, 1, dict(rescale_betas_zero_snr=True, prediction_type="sample", timestep_spacing="linspace", clip_sample=False, set_alpha_to_one=False)),
    "one_step": (1, 0.0, 1, dict(timestep_spacing="trailing", clip_sample=True)),
}


def floats(tensor):
    return tensor.flatten().tolist()


def trajectory(name, steps, eta, batch, options):
    scheduler = DDIMScheduler(**options)
    config = json.loads(scheduler.to_json_string())
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = scheduler.alphas_cumprod.double(), scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(steps)
    shape = (batch, 1, 2, 3)
    x = normal(("ddim", name, "init_noise"), shape)
    row = {"name": name, "config": config, "num_inference_steps": steps, "eta": eta, "shape": shape, "timesteps": scheduler.timesteps.tolist()}
    table = scheduler.alphas_cumprod
    picked = sorted({0, 1, len(table) // 2, len(table) - 1, *row["timesteps"]})
    row |= {"alphas_cumprod": {str(t): float(table[t]) for t in picked}, "final_alpha_cumprod": float(scheduler.final_alpha_cumprod)}
    row |= {"init_noise": floats(x), "model_output": [], "variance_noise": [], "pred_original_sample": [], "prev_sample": []}
    for k, t in enumerate(scheduler.timesteps):
        output, noise = (normal(("ddim", name, kind, str(k)), shape) for kind in ("model_output", "variance_noise"))
        step = scheduler.step(output, t, x, eta=eta, variance_noise=noise if eta > 0 else None)
        x = step.prev_sample
        row["model_output"].append(floats(output))
        row["variance_noise"].append(floats(noise))
        row["pred_original_sample"].append(floats(step.pred_original_sample))
        row["prev_sample"].append(floats(x))
        assert torch.isfinite(x).all(), f"{name} step {k}"
    return row


def ddim():
    return {"schedulers/ddim.json": Json([trajectory(name, *case) for name, case in CASES.items()], compact=True)}


FIXTURES = {"schedulers/ddim": ddim}
