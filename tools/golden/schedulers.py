"""Walks of diffusers' schedulers with a model that is a formula: their own f32 tables, every step in float64.

Latents are four numbers x_i; the model sees z = what scale_model_input makes of them and predicts 0.3 z_i + 0.5 cos(i + t / 100).
"""

import contextlib
from unittest import mock

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler, PNDMScheduler, UniPCMultistepScheduler
from diffusers.schedulers import scheduling_ddpm, scheduling_lcm

from golden.files import Json, random

MOST_STEPS = 50
STEPS = (1, 2, 5, 20, MOST_STEPS)
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
COSINE = dict(beta_schedule="squaredcos_cap_v2")
TRAINED = dict(num_train_timesteps=20, trained_betas=[round(0.001 + 0.0018 * i + 0.00005 * i * i, 6) for i in range(20)])
SPACINGS = (dict(timestep_spacing="leading", steps_offset=1), dict(timestep_spacing="trailing"), dict(timestep_spacing="linspace"))
KARRAS, EXPONENTIAL, SIGMA_MIN = dict(use_karras_sigmas=True), dict(use_exponential_sigmas=True), dict(final_sigmas_type="sigma_min")
START = torch.tensor([round(v, 3) for v in random("schedulers", "start").standard_normal(4)], dtype=torch.float64)
NOISE = torch.tensor([[round(v, 3) for v in row] for row in random("schedulers", "noise").standard_normal((MOST_STEPS, 4))], dtype=torch.float64)


def grid(predictions=("epsilon", "v_prediction", "sample"), zero_snr=True, spacings=SPACINGS, **options):
    """Every prediction, spacing and number of steps, and zero terminal SNR where a signal is left."""
    for spacing in spacings:
        for prediction in predictions:
            for rescale in (False, True) if zero_snr and prediction != "epsilon" else (False,):
                rescaled = dict(rescale_betas_zero_snr=True) if rescale else {}
                for steps in STEPS:
                    yield steps, BETAS | dict(prediction_type=prediction) | spacing | rescaled | options


def each(steps, *options):
    """Each of `options` at each of `steps`."""
    return ((count, option) for option in options for count in steps)


def ddpm():
    yield from grid(clip_sample=False)
    yield from each((1, 4, 20), {}, BETAS | dict(clip_sample_range=2.0), dict(variance_type="fixed_large"), dict(variance_type="fixed_small_log"))
    yield from each((4, 20), COSINE, TRAINED | dict(clip_sample=False), dict(prediction_type="v_prediction", timestep_spacing="trailing"))


def dpm_solver():
    yield from grid()
    for order in (1, 2, 3):
        options = [dict(solver_type="heun"), SIGMA_MIN, KARRAS, EXPONENTIAL, dict(euler_at_final=True) | SIGMA_MIN, dict(lower_order_final=False) | SIGMA_MIN]
        yield from each((1, 3, 6, 17), *(BETAS | dict(solver_order=order) | option for option in options))
    yield from each((4, 16), {}, COSINE | dict(lambda_min_clipped=-5.1), COSINE | KARRAS, COSINE | dict(lambda_min_clipped=-4.0, timestep_spacing="trailing"))
    yield from each((4, 16), TRAINED, BETAS | dict(solver_type="bh2", algorithm_type="deis", final_sigmas_type="sigma_min"), BETAS | KARRAS | SIGMA_MIN | dict(prediction_type="v_prediction"))


def unipc():
    yield from grid()
    for order in (1, 2, 3):
        options = [dict(solver_type="bh1") | SIGMA_MIN, SIGMA_MIN, KARRAS, EXPONENTIAL, dict(lower_order_final=False) | SIGMA_MIN]
        options += [dict(predict_x0=False) | SIGMA_MIN, dict(disable_corrector=[0, 2]), dict(predict_x0=False, prediction_type="v_prediction") | SIGMA_MIN]
        yield from each((1, 3, 6, 17), *(BETAS | dict(solver_order=order) | option for option in options))
    yield from each((4, 16), {}, COSINE, TRAINED, KARRAS | SIGMA_MIN, EXPONENTIAL | SIGMA_MIN, BETAS | KARRAS | dict(sigma_min=0.1, sigma_max=9.0))
    yield from each((4,), BETAS | SIGMA_MIN | dict(predict_x0=False, prediction_type="sample"))


def euler():
    yield from grid()
    yield from each((1, 4, 20), *(BETAS | option for option in (KARRAS, EXPONENTIAL, SIGMA_MIN, KARRAS | SIGMA_MIN, dict(interpolation_type="log_linear"))))
    yield from each((4, 20), {}, COSINE, TRAINED, BETAS | KARRAS | dict(sigma_min=0.1, sigma_max=9.0, timestep_spacing="trailing"))
    yield from each((7,), BETAS | KARRAS | dict(interpolation_type="log_linear", timestep_spacing="leading"))


def lcm():
    yield from grid(spacings=({},))
    yield from each((1, 4, 8), dict(clip_sample=True), dict(original_inference_steps=30), dict(timestep_scaling=0.02), dict(set_alpha_to_one=False) | COSINE)


def pndm():
    yield from grid(("epsilon", "v_prediction"), zero_snr=False, skip_prk_steps=True)
    options = ({}, COSINE, dict(set_alpha_to_one=True), dict(num_train_timesteps=200))
    yield from each((3, 4, 11), *(option | dict(skip_prk_steps=True) for option in options))


CLASSES = {
    "ddpm": (DDPMScheduler, ddpm), "dpmpp-2m": (DPMSolverMultistepScheduler, dpm_solver), "unipc": (UniPCMultistepScheduler, unipc),
    "euler": (EulerDiscreteScheduler, euler), "lcm": (LCMScheduler, lcm), "pndm": (PNDMScheduler, pndm),
}


@contextlib.contextmanager
def float64_steps(noise):
    """Steps do not narrow the latents to f32, and draw `noise()`."""
    narrow = torch.Tensor.to

    def keep(tensor, *arguments, **named):
        if torch.float32 in (*arguments, named.get("dtype")) and tensor.dtype == torch.float64:
            return tensor
        return narrow(tensor, *arguments, **named)

    draw = lambda *_, **__: noise()
    with mock.patch.object(torch.Tensor, "to", keep), mock.patch.object(scheduling_ddpm, "randn_tensor", draw):
        with mock.patch.object(scheduling_lcm, "randn_tensor", draw):
            yield


def begin(scheduler, steps, skipped=0):
    """Sets the timesteps; those that are walked. All but DDIM go on in float64 from here."""
    scheduler.set_timesteps(steps)
    for table in () if isinstance(scheduler, DDIMScheduler) else ("alphas_cumprod", "final_alpha_cumprod", "sigmas"):
        if hasattr(scheduler, table):
            setattr(scheduler, table, getattr(scheduler, table).double())
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    return scheduler.timesteps[skipped:]


def walk(make, steps, options):
    scheduler = make(**options)
    timesteps = begin(scheduler, steps)
    scale = float(scheduler.init_noise_sigma)
    latents, x = [], START.reshape(1, 1, 2, 2) * scale
    index = torch.arange(4, dtype=torch.float64).reshape(1, 1, 2, 2)
    step = 0
    with float64_steps(lambda: NOISE[step].reshape(1, 1, 2, 2)):
        for step, t in enumerate(timesteps):
            z = scheduler.scale_model_input(x, t)
            x = scheduler.step(0.3 * z + 0.5 * torch.cos(index + t.double() / 100), t, x).prev_sample
            latents.append([float(f"{v:.10g}") for v in x.flatten().tolist()])
            assert x.dtype == torch.float64 and torch.isfinite(x).all(), f"{make.__name__} {steps} {options} {step}"
    kept = sorted({0, (len(latents) - 1) // 2, len(latents) - 1})
    times = [int(t) if float(t).is_integer() else float(f"{t:.8g}") for t in timesteps.tolist()]
    row = {"config": {"_class_name": make.__name__} | options, "steps": steps, "timesteps": times}
    return row | {"init_noise_sigma": float(f"{scale:.10g}"), "latents": {str(k): latents[k] for k in kept}}


def fixture(name):
    make, cases = CLASSES[name]
    return {f"schedulers/{name}.json": Json([walk(make, *case) for case in cases()], compact=True)}


def noise():
    return {"schedulers/noise.json": Json([START.tolist(), *NOISE.tolist()], compact=True)}


FIXTURES = {"schedulers/noise": noise} | {f"schedulers/{name}": lambda name=name: fixture(name) for name in CLASSES}
