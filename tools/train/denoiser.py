"""Trains the UNet2DModel that repaints lesions by class in the latents of autoencoder.py.

Input [noisy latents, hole, latents of the masked image], classes 0 to 6 and 7 = none, v-prediction. Classes are drawn in
proportion to a power of their counts (--power). Images, masks and holes are varied and encoded once, on the device, before
the first step; --pool says how many.
"""

import json
import pathlib
import signal
import time

import torch
from diffusers import AutoencoderKL, UNet2DModel
from safetensors.torch import load_file

import data
import export
import inpaint
import session


def make():
    return UNet2DModel(
        sample_size=data.SIZE // data.CELL, in_channels=9, out_channels=4, layers_per_block=2, block_out_channels=(64, 112, 144),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16, norm_num_groups=16, attn_norm_num_groups=16, resnet_time_scale_shift="scale_shift", add_attention=True,
        num_class_embeds=len(data.CLASSES) + 1,
    )  # fmt: skip


def load_autoencoder(folder):
    config = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if not k.startswith("_")}
    vae = AutoencoderKL(**config)
    vae.load_state_dict({k: v.float() for k, v in load_file(folder / "diffusion_pytorch_model.safetensors").items()})
    return vae.to(session.device()).eval().requires_grad_(False)


@torch.no_grad()
def make_pool(vae, train, size, chunk, power):
    """size x (latents, masked latents, hole, label), in f16 and u8."""
    device = train.images.device
    dtype = next(vae.parameters()).dtype
    shape = (size, 4, data.SIZE // data.CELL, data.SIZE // data.CELL)
    z = torch.empty(shape, dtype=torch.float16, device=device)
    masked, hole = torch.empty_like(z), torch.empty((size, 1, *shape[2:]), dtype=torch.uint8, device=device)
    rows = data.draw(train, size, power)
    for i in range(0, size, chunk):
        row = rows[i : i + chunk]
        x, m = data.vary(train.images[row].float() / 255, train.masks[row].float(), zoom=(0.9, 1.2), shift=0.05)
        x = data.recolour(x, 0.06, 0.08, 0.02)
        open_cells, pixels = data.cells(data.holes(m))
        z[i : i + chunk] = inpaint.encode(vae, x, dtype).half()
        masked[i : i + chunk] = inpaint.encode(vae, torch.where(pixels > 0, 0.5, x), dtype).half()
        hole[i : i + chunk] = open_cells.to(torch.uint8)
    return z, masked, hole, train.labels[rows]


def loss_of(model, bars, z, masked, hole, labels, dtype):
    n, device = len(z), z.device
    z, hole = z.float(), hole.float()
    noise = torch.randn_like(z)
    # One timestep from each of n equal intervals.
    t = ((torch.randperm(n, device=device) + torch.rand(n, device=device)) / n * len(bars)).long().clamp(max=len(bars) - 1)
    a, b = bars[t].sqrt().view(-1, 1, 1, 1), (1 - bars[t]).sqrt().view(-1, 1, 1, 1)
    sample = torch.cat([a * z + b * noise, hole, masked.float()], 1).to(dtype)
    labels = torch.where(torch.rand(n, device=device) < 0.12, len(data.CLASSES), labels)
    v = model(sample, t, labels, return_dict=False)[0].float()
    # Known cells are put back after every step: they count little.
    weight = hole + 0.1 * (1 - hole)
    return (weight * (v - (a * noise - b * z)) ** 2).sum() / (weight.sum() * z.shape[1])


def compiled(model, args, dtype, seconds):
    """The model compiled and warm, or as it is when that fails or takes too long."""
    device = session.device()

    def late(*_):
        raise TimeoutError(f"compiling took over {seconds:.0f} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(max(1, int(seconds)))
    since = time.time()
    try:
        fast = torch.compile(model)
        side = data.SIZE // data.CELL
        for _ in range(3):
            z = torch.randn(args.batch, 4, side, side, device=device)
            hole = torch.ones(args.batch, 1, side, side, device=device)
            labels = torch.zeros(args.batch, dtype=torch.long, device=device)
            loss_of(fast, inpaint.alphas_cumprod(device), z, z, hole, labels, dtype).backward()
            model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        print(f"denoiser: compiled in {time.time() - since:.0f} s", flush=True)
        return fast
    except BaseException as e:  # noqa: BLE001: whatever it is, training goes on without.
        if isinstance(e, KeyboardInterrupt):
            raise
        print(f"denoiser: not compiled: {type(e).__name__}: {str(e)[:500]}", flush=True)
        model.zero_grad(set_to_none=True)
        return model
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def save(run):
    folder = run.args.work / "export" / "inpaint"
    export.diffusers(folder / "unet", run.model, run.averaged())
    export.inpainting(folder)
    run.metrics(parameters=sum(p.numel() for p in run.params), loss=float(run.losses) if run.losses is not None else None)


def main():
    args = session.arguments(__doc__, batch=256, lr=5e-4, seed=2, pool=160_000, compile=1, compile_seconds=150.0, vae_by=0.0, from_unet="", power=0.3)
    device = session.device()
    model = make().to(device)
    if args.from_unet:
        model.load_state_dict({k: v.float() for k, v in load_file(args.from_unet).items()})
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    run = session.Run("denoiser", args, model, half=True, weight_decay=0.01, betas=(0.9, 0.99), warmup=0.03)
    dtype = torch.bfloat16 if run.is_half else torch.float32
    fast = compiled(model, args, dtype, args.compile_seconds) if device.type == "cuda" and args.compile else model
    train, _ = data.load(args.pack, device, args.limit)
    folder = args.work / "export" / "inpaint" / "vae"
    while not (args.work / "autoencoder.done").exists() and (time.time() < args.vae_by or not (folder / "config.json").exists()):
        if time.time() > args.until:
            raise SystemExit("denoiser: no autoencoder came")
        time.sleep(0.2)
    since = time.time()
    vae = load_autoencoder(folder)
    if device.type == "cuda":
        vae.to(torch.float16)
    pool = make_pool(vae, train, args.pool, 512 if device.type == "cuda" else 16, args.power)
    if not torch.isfinite(pool[0]).all() or not torch.isfinite(pool[1]).all():
        run.log("latents are not finite in f16: again in bf16")
        pool = make_pool(vae.to(torch.bfloat16), train, args.pool, 512, args.power)
    run.log(f"{args.pool} varied latents in {time.time() - since:.1f} s; deviation {pool[0][:4096].float().std().item():.3f}")
    bars = inpaint.alphas_cumprod(device)
    while run.goes_on():
        rows = torch.randint(args.pool, (args.batch,), device=device)
        run.step(loss_of(fast, bars, *(part[rows] for part in pool), dtype))
        if run.is_time_to_save(45.0):
            save(run)
            run.checkpoint()
    run.checkpoint()
    save(run)
    (args.work / "denoiser.done").touch()


if __name__ == "__main__":
    main()
