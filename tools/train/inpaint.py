"""Inpainting by class in PyTorch, step for step as naevus does it: for the metrics and the contact sheets."""

import torch

import data
import export


def alphas_cumprod(device):
    s = export.SCHEDULER
    betas = torch.linspace(s["beta_start"] ** 0.5, s["beta_end"] ** 0.5, s["num_train_timesteps"], dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().to(device)


def encode(vae, x, dtype=None):
    """Mean latents of images in [0, 1]."""
    dtype = dtype or next(vae.parameters()).dtype
    return vae.quant_conv(vae.encoder((x * 2 - 1).to(dtype))).chunk(2, 1)[0]


def decode(vae, z):
    return (vae.decoder(vae.post_quant_conv(z.to(next(vae.parameters()).dtype))).float() * 0.5 + 0.5).clamp(0, 1)


@torch.no_grad()
def paint(unet, vae, images, holes, labels, steps=20, guidance=2.0, seed=0):
    """images: [N, 3, S, S] in [0, 1]; holes: [N, 1, S, S], already dilated. The samples, the input's own pixels outside the hole."""
    device, dtype = images.device, next(unet.parameters()).dtype
    cells, pixels = data.cells(holes)
    z0 = encode(vae, images).float()
    masked = encode(vae, torch.where(pixels > 0, torch.full_like(images, export.INDEX["masked_fill"]), images)).float()
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(seed)).to(device)
    bars = alphas_cumprod(device)
    train = len(bars)
    times = [round(train - i * train / steps) - 1 for i in range(steps)]
    null = torch.full_like(labels, len(data.CLASSES))
    x = noise
    for k, t in enumerate(times):
        def run(y, t=t, x=x):
            sample = torch.cat([x, cells, masked], 1).to(dtype)
            return unet(sample, torch.full((len(x),), t, device=device), y, return_dict=False)[0].float()

        v = run(labels) if guidance == 1 else run(null).lerp(run(labels), guidance)
        a, before = bars[t], bars[t - train // steps] if t >= train // steps else bars[0]
        clean, eps = a.sqrt() * x - (1 - a).sqrt() * v, a.sqrt() * v + (1 - a).sqrt() * x
        x = before.sqrt() * clean + (1 - before).sqrt() * eps
        known = bars[times[k + 1]].sqrt() * z0 + (1 - bars[times[k + 1]]).sqrt() * noise if k + 1 < steps else z0
        x = cells * x + (1 - cells) * known
    return torch.where(pixels > 0, decode(vae, x), images)
