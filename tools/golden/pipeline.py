"""Whole pipelines of Stable Diffusion, narrow: prompts, a negative prompt, a learned word, and the trajectory that diffusers' own
pipeline makes of an image, a mask and noise. The posterior's mode stands for its sample.
"""

import json
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline, UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from golden import tokenizer, unet
from golden.files import Json, Tensors, normal, smooth_image
from golden.tokenizer import END, Text
from golden.torch_files import Blob, saved

F = torch.nn.functional
SIZE, LATENT, DOWNSCALE, TOKENS = 16, 4, 4, 16
WORD, VECTORS = "<mole>", 2
# In the order of the alphabet: that of the labels.
PROMPTS = {"df": f"dermoscopy image of {WORD}, it's a dermatofibroma!", "vasc": "a photo of a vascular lesion"}
# More tokens than there is room for.
LONG = "blurry photo of a hand, a ruler, a coin, a watch, long dark hair over the skin and the letters of a label"
STEPS, GUIDANCE = 4, 2.5


def text_files(pad):
    files = tokenizer.legacy(pad)
    files["tokenizer_config.json"]["model_max_length"] = TOKENS
    return files


def text_part(name, files, kind, width, **options):
    """Tokenizer and text encoder, with the files of both."""
    with tempfile.TemporaryDirectory() as folder:
        texts = {path: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) + "\n" for path, value in files.items()}
        for path, text in texts.items():
            (Path(folder) / path).write_text(text, encoding="utf-8")
        cutter = CLIPTokenizer.from_pretrained(folder)
    words = len(files["vocab.json"])
    config = CLIPTextConfig(
        vocab_size=words, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=TOKENS,
        bos_token_id=words - 2, eos_token_id=words - 1, **options,
    )
    encoder = unet.randomise(name, kind(config))
    stated = config.to_dict() | {"architectures": [kind.__name__]}
    weights = Tensors({key if key.startswith("text_") else f"text_model.{key}": value for key, value in encoder.state_dict().items()})
    return cutter, encoder, {path: Text(text) for path, text in texts.items()}, {"config.json": Json(stated), "model.safetensors": weights}


def learned(name, widths):
    """The vectors of the word for each text encoder."""
    return [normal((name, "word", str(at)), (VECTORS, width)) for at, width in enumerate(widths)]


def denoiser(name, width, in_channels, **options):
    return unet.build(
        name, UNet2DConditionModel, sample_size=SIZE // DOWNSCALE, in_channels=in_channels, out_channels=LATENT, block_out_channels=(4, 8),
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1, attention_head_dim=2, cross_attention_dim=width, **options,
    )


def parts(name, width, **options):
    net, unet_files = denoiser(f"{name}/unet", width, 2 * LATENT + 1, **options)
    blocks = 3
    vae, vae_files = unet.build(
        f"{name}/vae", AutoencoderKL, down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(4, 4, 8), layers_per_block=1, norm_num_groups=4, latent_channels=LATENT, sample_size=SIZE,
    )
    # A short noise range: random weights do not denoise, and a long one would let the latents grow.
    scheduler = DDIMScheduler(beta_start=0.0002, beta_end=0.004, beta_schedule="linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    files = {f"unet/{path}": file for path, file in unet_files.items()} | {f"vae/{path}": file for path, file in vae_files.items()}
    return net, vae, scheduler, files | {"scheduler/scheduler_config.json": Json(json.loads(scheduler.to_json_string()))}


def index(kind, encoders, **more):
    """model_index.json."""
    value = {"_class_name": kind.__name__, "_diffusers_version": "0.20.0"} | more
    value |= {"feature_extractor": ["transformers", "CLIPImageProcessor"], "scheduler": ["diffusers", "DDIMScheduler"]}
    for at, encoder in enumerate(encoders):
        suffix = "" if at == 0 else "_2"
        value |= {f"text_encoder{suffix}": ["transformers", encoder], f"tokenizer{suffix}": ["transformers", "CLIPTokenizer"]}
    return Json(value | {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]})


def conditions(pipe, negative):
    """What each class and the null class are to the denoiser, named as its inputs."""
    prompts = list(PROMPTS.values())
    embeds = pipe.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=negative)
    out = {"encoder_hidden_states": torch.cat([embeds[0], embeds[1][:1]])}
    return out if len(embeds) == 2 else out | {"text_embeds": torch.cat([embeds[2], embeds[3][:1]])}


@torch.no_grad()
def trajectory(name, pipe, negative):
    """What the pipeline makes, named as in a trajectory file."""
    labels = torch.tensor([1, 0])
    image, hole = smooth_image((name, "image"), (2, 3, SIZE, SIZE)), torch.zeros(2, 1, SIZE, SIZE, dtype=torch.float64)
    hole[0, :, 3:10, 3:14] = 1
    hole[1, :, 8:15, 6:11] = 1
    noise = normal((name, "noise"), (2, LATENT, SIZE // DOWNSCALE, SIZE // DOWNSCALE))
    out = {"image": image, "hole": hole, "noise": noise, "class_labels": labels.int()}

    def keep(_pipe, k, _t, given):
        out[f"latents_{k}"] = given["latents"].clone()
        return given

    sampled, DiagonalGaussianDistribution.sample = DiagonalGaussianDistribution.sample, lambda self, generator=None: self.mode()
    pipe.set_progress_bar_config(disable=True)
    prompts = list(PROMPTS.values())
    decoded = pipe(
        prompt=[prompts[label] for label in labels], negative_prompt=None if negative is None else [negative] * 2, image=image, mask_image=hole,
        height=SIZE, width=SIZE, strength=1.0, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise, output_type="pt",
        callback_on_step_end=keep,
    ).images
    DiagonalGaussianDistribution.sample = sampled
    out |= conditions(pipe, None if negative is None else [negative] * len(prompts))
    out |= {"timesteps": pipe.scheduler.timesteps.int(), "decoded": decoded, "output": decoded * hole + image * (1 - hole)}
    settings = {"steps": str(STEPS), "guidance": str(GUIDANCE), "eta": "0", "strength": "1"}
    return Tensors(out, settings | ({} if negative is None else {"negative_prompt": negative}))


def finish(name, pipe, files, negatives):
    """The files of models/<name>, with a trajectory for each negative prompt."""
    files |= {"prompts.json": Json(PROMPTS)}
    files |= {f"{file}.safetensors": trajectory(f"{name}/{file}", pipe, negative) for file, negative in negatives.items()}
    return {f"models/{name}/{path}": file for path, file in files.items()}


def sd():
    """Stable Diffusion 1's inpainting pipeline, with a learned word in both formats of files."""
    name = "pipeline-sd"
    cutter, encoder, tokenizer_files, encoder_files = text_part(f"{name}/text_encoder", text_files(END), CLIPTextModel, 8, hidden_act="quick_gelu")
    net, vae, scheduler, files = parts(name, 8)
    files |= {f"tokenizer/{path}": file for path, file in tokenizer_files.items()} | {f"text_encoder/{path}": file for path, file in encoder_files.items()}
    [word] = learned(name, [8])
    pipe = StableDiffusionInpaintPipeline(vae, encoder, cutter, net, scheduler, None, None, requires_safety_checker=False)
    pipe.load_textual_inversion({WORD: word})
    web_ui = {"string_to_token": {"*": 265}, "string_to_param": {"*": word.float()}, "name": WORD, "step": 500, "sd_checkpoint": None}
    files |= {
        "model_index.json": index(StableDiffusionInpaintPipeline, ["CLIPTextModel"], safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]),
        "mole.safetensors": Tensors({WORD: word}),
        "mole.pt": Blob(saved(web_ui)),
    }
    files = finish(name, pipe, files, {"io": None, "io-negative": LONG})
    # A denoiser that sees no mask: the known latents are noised again after each step.
    pipe.unet, unet_files = denoiser(f"{name}/known/unet", 8, LATENT)
    files |= {f"models/{name}/known/unet/{path}": file for path, file in unet_files.items()}
    return files | {f"models/{name}/known/io.safetensors": trajectory(f"{name}/known", pipe, None)}


def sdxl():
    """Stable Diffusion XL's: two text encoders, whose last but one layers are the tokens; the second's projection; sizes."""
    name, widths, projection = "pipeline-sdxl", [8, 12], 10
    one = text_part(f"{name}/text_encoder", text_files(END), CLIPTextModel, widths[0], hidden_act="quick_gelu")
    two = text_part(f"{name}/text_encoder_2", text_files("!"), CLIPTextModelWithProjection, widths[1], hidden_act="gelu", projection_dim=projection)
    net, vae, scheduler, files = parts(
        name, sum(widths), addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + projection
    )
    for suffix, (_, _, tokenizer_files, encoder_files) in (("", one), ("_2", two)):
        files |= {f"tokenizer{suffix}/{path}": file for path, file in tokenizer_files.items()}
        files |= {f"text_encoder{suffix}/{path}": file for path, file in encoder_files.items()}
    words = learned(name, widths)
    pipe = StableDiffusionXLInpaintPipeline(vae, one[1], two[1], one[0], two[0], net, scheduler, add_watermarker=False)
    for word, (cutter, encoder, _, _) in zip(words, (one, two)):
        pipe.load_textual_inversion({WORD: word}, tokenizer=cutter, text_encoder=encoder)
    files |= {
        "model_index.json": index(
            StableDiffusionXLInpaintPipeline, ["CLIPTextModel", "CLIPTextModelWithProjection"], force_zeros_for_empty_prompt=True, image_encoder=[None, None]
        ),
        "mole.safetensors": Tensors({"clip_l": words[0], "clip_g": words[1]}),
    }
    return finish(name, pipe, files, {"io": None, "io-negative": ""})


FIXTURES = {"models/pipeline-sd": sd, "models/pipeline-sdxl": sdxl}
