"""Class-conditional latent inpainting: the loop with DDIM or another scheduler, its fixtures and its proof against recorded trajectories.

Notation: x_t latents, z0 the image's own latents, hole 1 where to repaint, masked the latents of the image with its hole filled.
"""

import json
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel

from golden import schedulers, taesd, unet
from golden.files import Json, Tensors, normal, smooth_image

F = torch.nn.functional


@dataclass
class Model:
    index: dict
    unet: torch.nn.Module
    scheduler: DDIMScheduler
    encoder: torch.nn.Module
    decoder: torch.nn.Module
    # [classes + 1, L, D], the null class last; None: the UNet takes labels alone.
    class_tokens: torch.Tensor | None = None

    def conditions(self, labels):
        """What the UNet takes for class labels."""
        given = {} if self.class_tokens is None else {"encoder_hidden_states": self.class_tokens[labels]}
        return given if self.unet.config.num_class_embeds is None else given | {"class_labels": labels}


@dataclass
class Job:
    """What one trajectory is a function of. Tensors float64, class labels int64."""

    image: torch.Tensor
    hole: torch.Tensor
    noise: torch.Tensor
    class_labels: torch.Tensor
    steps: int
    guidance: float
    eta: float
    strength: float
    variance_noise: list
    # What samples the encoder's posterior: the image's and the masked image's. None: its mode.
    posterior_noise: tuple | None = None


def load(directory):
    index = json.loads((directory / "model_index.json").read_text())
    encoder, decoder = taesd.load(directory / "vae")
    return Model(
        index, UNet2DModel.from_pretrained(directory / "unet").double().eval(), DDIMScheduler.from_pretrained(directory / "scheduler"), encoder, decoder
    )


def guided(model, x, hole, masked, t, job):
    """eps(null) and eps(class)."""
    parts = {"latents": x, "hole": hole, "masked_image_latents": masked}
    inputs = torch.cat([parts[part] for part in model.index["unet_input"]], dim=1)
    null = torch.full_like(job.class_labels, model.index["null_class"])
    return (model.unet(inputs, t, **model.conditions(labels)).sample for labels in (null, job.class_labels))


@torch.no_grad()
def inpaint(model, job):
    """Every intermediate of one trajectory, named as in a trajectory file."""
    scale, cell = model.index["scaling_factor"], 8
    scheduler = model.scheduler
    hole_latent = F.max_pool2d(job.hole, cell)
    hole = F.interpolate(hole_latent, scale_factor=cell, mode="nearest")
    masked_image = job.image * (1 - hole) + model.index["masked_fill"] * hole
    noises = job.posterior_noise or (None, None)
    z0, masked = (model.encoder(*([image] if noise is None else [image, noise])) * scale for image, noise in zip((job.image, masked_image), noises))
    out = {"image": job.image, "hole": hole, "hole_latent": hole_latent, "masked_image": masked_image, "z0": z0, "masked_latents": masked}

    timesteps = schedulers.begin(scheduler, job.steps, job.steps - int(job.steps * job.strength))
    x = job.noise * scheduler.init_noise_sigma if job.strength >= 1 else scheduler.add_noise(z0, job.noise, timesteps[:1])
    for k, t in enumerate(timesteps):
        uncond, cond = guided(model, scheduler.scale_model_input(x, t), hole_latent, masked, t, job)
        if k == 0:
            out |= {"eps_uncond_0": uncond, "eps_cond_0": cond}
        eps = uncond + job.guidance * (cond - uncond)
        with schedulers.float64_steps(lambda: job.variance_noise[k]):
            x = scheduler.step(eps, t, x, **step_settings(scheduler, job, k)).prev_sample
        if model.index["reimpose_known"]:
            known = scheduler.add_noise(z0, job.noise, timesteps[k + 1 : k + 2]) if k + 1 < len(timesteps) else z0
            x = hole_latent * x + (1 - hole_latent) * known
        out[f"latents_{k}"] = x
        if job.eta > 0:
            out[f"variance_noise_{k}"] = job.variance_noise[k]
    decoded = model.decoder(x / scale).clamp(0, 1)
    if job.posterior_noise:
        out |= dict(zip(("posterior_noise", "masked_posterior_noise"), job.posterior_noise))
    out |= {"noise": job.noise, "class_labels": job.class_labels.int(), "timesteps": timesteps.int()}
    return out | {"decoded": decoded, "output": decoded * hole + job.image * (1 - hole)}


def step_settings(scheduler, job, k):
    """DDIM alone has eta and takes its noise as an argument."""
    if not isinstance(scheduler, DDIMScheduler):
        return {}
    return {"eta": job.eta} | ({"variance_noise": job.variance_noise[k]} if job.eta > 0 else {})


CLASSES = ["bcc", "df", "vasc"]


LATENT, SIZE = 4, 32
UNET_INPUT = ["latents", "hole", "masked_image_latents"]


def tiny(name):
    """A model directory of a few thousand weights, complete as a real one."""
    net, unet_files = unet.build(
        f"{name}/unet", sample_size=SIZE // 8, in_channels=2 * LATENT + 1, out_channels=LATENT, block_out_channels=(4, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1,
        attention_head_dim=4, num_class_embeds=len(CLASSES) + 1,
    )
    return assemble(name, net, unet_files)


def tiny_with_tokens(name, unet_input, classes=None, **index):
    """The same around a UNet2DConditionModel whose classes are tokens, and labels as well where it has embeddings for them."""
    channels = sum(1 if part == "hole" else LATENT for part in unet_input)
    net, unet_files = unet.build(
        f"{name}/unet", UNet2DConditionModel, sample_size=SIZE // 8, in_channels=channels, out_channels=LATENT, block_out_channels=(4, 8),
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1, attention_head_dim=2, cross_attention_dim=6, num_class_embeds=classes,
    )
    tokens = normal((name, "class_tokens"), (len(CLASSES) + 1, 3, 6))
    model, files = assemble(name, net, unet_files, unet_input=unet_input, class_tokens="class_tokens.safetensors", **index)
    model.class_tokens = tokens
    return model, files | {"class_tokens.safetensors": Tensors({"class_tokens": tokens})}


def kl(name):
    """Encoder and decoder of an AutoencoderKL between images in [0, 1] and the denoiser's latents before their scale."""
    count, shift = 4, 0.125
    model, files = unet.build(
        name, AutoencoderKL, down_block_types=("DownEncoderBlock2D",) * count, up_block_types=("UpDecoderBlock2D",) * count,
        block_out_channels=(4,) * count, norm_num_groups=2, latent_channels=LATENT, sample_size=SIZE, shift_factor=shift,
    )

    def encode(image, noise):
        posterior = model.encode(2 * image - 1).latent_dist
        return posterior.mean + posterior.std * noise - shift

    return {"encoder": encode, "decoder": lambda latents: (model.decode(latents + shift).sample + 1) / 2}, files


def assemble(name, net, unet_files, vae=None, **settings):
    """The model directory around a UNet."""
    parts, vae_files = vae or taesd.build(f"{name}/vae", 8, LATENT, True)
    # A short noise range: random weights do not denoise, and a long one would let the latents grow.
    scheduler = DDIMScheduler(beta_start=0.0002, beta_end=0.004, beta_schedule="linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    index = {
        "_class_name": "ClassConditionalInpaint",
        "unet": ["diffusers", type(net).__name__],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "vae": ["diffusers", "AutoencoderKL"] if vae else ["taesd", "TAESD"],
        "image_size": SIZE,
        "scaling_factor": 0.75,
        "class_names": CLASSES,
        "null_class": len(CLASSES),
        "unet_input": UNET_INPUT,
        "hole_to_latent": "max_pool",
        "hole_pixels": "latent_cell",
        "masked_fill": 0.5,
        "dilate_px": 1,
        "reimpose_known": True,
    } | settings
    files = {"model_index.json": Json(index), "scheduler/scheduler_config.json": Json(json.loads(scheduler.to_json_string()))}
    files |= {f"unet/{path}": file for path, file in unet_files.items()} | {f"vae/{path}": file for path, file in vae_files.items()}
    return Model(index, net, scheduler, parts["encoder"], parts["decoder"]), files


def tiny_job(name, steps, guidance, eta, strength):
    size, latent = (32, 32), (2, 4, 4, 4)
    mask = torch.zeros(2, 1, *size, dtype=torch.float64)
    mask[0, :, 9:20, 3:14] = 1
    mask[1, :, 18:30, 8:17] = 1
    noises = [normal((name, f"variance_noise_{k}"), latent) for k in range(steps)]
    image = smooth_image((name, "image"), (2, 3, *size))
    return Job(image, mask, normal((name, "noise"), latent), torch.tensor([2, 0]), steps, guidance, eta, strength, noises)


def trajectories(name, model, files, walks):
    """The files of models/<name>: the model's directory, and a trajectory for each of `walks`."""
    for file, steps, guidance, eta, strength in walks:
        job = tiny_job(f"{name}/{file}", steps, guidance, eta, strength)
        if model.index["vae"][1] == "AutoencoderKL":
            job.posterior_noise = tuple(normal((name, file, part), job.noise.shape) for part in ("posterior_noise", "masked_posterior_noise"))
        mask, dilate_px = job.hole, model.index["dilate_px"]
        job.hole = F.max_pool2d(mask, 2 * dilate_px + 1, stride=1, padding=dilate_px)
        settings = {"steps": str(steps), "guidance": str(guidance), "eta": str(eta), "strength": str(strength)}
        files[f"{file}.safetensors"] = Tensors({"mask": mask, **inpaint(model, job)}, settings)
    return {f"models/{name}/{path}": file for path, file in files.items()}


def inpaint_tiny():
    name = "inpaint-tiny"
    return trajectories(name, *tiny(name), (("io", 6, 2.5, 0.5, 1.0), ("io-strength", 10, 1.5, 0.0, 0.6)))


def inpaint_tokens():
    """Nine channels, each class three tokens."""
    name = "inpaint-tokens"
    return trajectories(name, *tiny_with_tokens(name, UNET_INPUT, reimpose_known=False), (("io", 4, 2.5, 0.5, 1.0),))


def inpaint_known():
    """Four channels: the UNet sees no mask, what is known is noised again after each step. Classes are tokens and labels."""
    name = "inpaint-known"
    model, files = tiny_with_tokens(name, ["latents"], classes=len(CLASSES) + 1)
    return trajectories(name, model, files, (("io", 4, 2.5, 0.0, 0.8),)) | other_schedulers(name, model)


def other_schedulers(name, model):
    """The same model with each of the other schedulers, which take the betas from its own configuration."""
    config, walks = json.loads(model.scheduler.to_json_string()), (("", 5, 1.0), ("-strength", 10, 0.6))
    tensors, settings = {}, {}
    for scheduler, (make, _) in schedulers.CLASSES.items():
        pndm = {"skip_prk_steps": True} if scheduler == "pndm" else {}
        model.scheduler = make.from_config(dict(config), **pndm)
        for kind, steps, strength in walks:
            job = tiny_job(f"{name}/schedulers", steps, 2.5, 0.0, strength)
            # PNDM takes one step more.
            job.variance_noise = [normal((name, f"variance_noise_{k}"), job.noise.shape) for k in range(steps + 1)]
            out = inpaint(model, job)
            tensors |= {f"{scheduler}{kind}/{key}": value for key, value in out.items() if key.startswith("latents_")}
            tensors[f"{scheduler}{kind}/timesteps"] = model.scheduler.timesteps[-sum(key.startswith("latents_") for key in out) :].double()
            settings[f"{scheduler}{kind}"] = f"{steps} {strength}"
    tensors |= {key: out[key] for key in ("image", "hole", "noise", "class_labels")}
    tensors |= {f"variance_noise_{k}": noise for k, noise in enumerate(job.variance_noise[:6])}
    return {f"models/{name}/schedulers.safetensors": Tensors(tensors, settings)}


def inpaint_posterior():
    """The latents of image and masked image are samples of an AutoencoderKL's posterior."""
    name = "inpaint-posterior"
    model, files = tiny_with_tokens(name, UNET_INPUT, vae=kl(f"{name}/vae"))
    return trajectories(name, model, files, (("io", 3, 2.0, 0.0, 0.7),))


def prove(reference):
    """The worst relative difference (of the rms) from the trajectories recorded with real weights, per file."""
    from safetensors import safe_open

    model = load(reference / "inpaint-ham128")
    for path in sorted((reference / "golden").glob("inpaint-*.safetensors")):
        with safe_open(path, "pt") as file:
            told, settings = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
        noises = [told[f"variance_noise_{k}"].double() for k in range(len(told["timesteps"]))] if float(settings["eta"]) > 0 else []
        job = Job(
            *(told[key].double() for key in ("image", "hole", "noise")), told["class_labels"].long(),
            int(settings["steps"]), float(settings["guidance"]), float(settings["eta"]), float(settings["strength"]), noises,
        )
        ours = inpaint(model, job)
        yield path.name, {key: float((ours[key] - value).abs().max() / value.double().pow(2).mean().sqrt()) for key, value in told.items()}


FIXTURES = {"models/inpaint-tiny": inpaint_tiny, "models/inpaint-tokens": inpaint_tokens, "models/inpaint-known": inpaint_known, "models/inpaint-posterior": inpaint_posterior}
