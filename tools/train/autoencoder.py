"""Trains the AutoencoderKL: 128x128 pixels to 32x32 latents of 4 channels.

Loss: L1, L1 of the gradients at three scales, L1 of the spectrum, L1 of coarse opponent colours, a small KL term, and L1 of what half-size latents decode to
(so that latents change with the image as the image does, which the denoiser finds easier: EQ-VAE, Kouzelis et al. 2025).
Classes are drawn in proportion to a power of their counts, and colours of a third of the draws are changed strongly, so that rare colours
are learnt too. At the end mean and deviation of each latent channel go into `quant_conv` and `post_quant_conv`, so that the scaling factor is 1.
With `--decoder-only 1` the encoder stays as it is, to the bit, and with it what latents mean: a denoiser that was trained on them needs no more training.
"""

import copy
import os
import sys
import time

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file

import data
import export
import session


def make():
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=data.SIZE, norm_num_groups=16, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(32, 64, 112),
        scaling_factor=1.0, mid_block_add_attention=False,
    )  # fmt: skip


def gradients(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def detail(y, x):
    """L1 of pixels, of gradients at three scales, and of the spectrum."""
    loss = (y - x).abs().mean()
    spectrum = torch.fft.rfft2(y - x, norm="ortho")
    loss = loss + 0.3 * (spectrum.real.abs().mean() + spectrum.imag.abs().mean())
    for _ in range(3):
        loss = loss + 0.3 * sum((a - b).abs().mean() for a, b in zip(gradients(y), gradients(x)))
        y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
    return loss


def colour(y, x):
    """L1 of opponent colours averaged over 4, 8 and 16 pixels: what a lesion's hue is made of."""
    difference = data.opponent(y - x)
    return sum(F.avg_pool2d(difference, k).abs().mean() for k in (4, 8, 16))


def moments(model, x):
    return model.quant_conv(model.encoder(x)).float().chunk(2, 1)


def decode(model, z):
    return model.decoder(model.post_quant_conv(z)).float()


def loss_of(model, x, dtype, kl_weight=1e-4, colour_weight=1.0):
    mean, logvar = moments(model, x.to(dtype))
    logvar = logvar.clamp(-30, 20)
    z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    y = decode(model, z.to(dtype))
    loss = detail(y, x) + colour_weight * colour(y, x) + kl_weight * kl
    half = len(x) // 2
    small = decode(model, F.avg_pool2d(z[:half], 2).to(dtype))
    return loss + 0.25 * (small - F.avg_pool2d(x[:half], 2)).abs().mean()


@torch.no_grad()
def reconstruct(model, images):
    """Decoded means of u8 images, in [0, 1]."""
    parts = []
    # A CPU spends half of a batch of 64 on fresh memory.
    for chunk in images.split(64 if images.device.type == "cuda" else 8):
        mean, _ = moments(model, chunk.float() / 127.5 - 1)
        parts.append((decode(model, mean) * 0.5 + 0.5).clamp(0, 1))
    return torch.cat(parts)


def psnr(images, decoded):
    """Per image, in dB, of pixels rounded to 8 bits."""
    error = ((decoded * 255).round() - images.float()) ** 2
    return 10 * torch.log10(255**2 / error.mean((1, 2, 3)).clamp(min=1e-3))


@torch.no_grad()
def normalise(state, model, images):
    """Mean and deviation of each latent channel over `images` taken out of the encoder and put into the decoder."""
    means = torch.cat([moments(model, chunk.float() / 127.5 - 1)[0] for chunk in images.split(64)])
    mu, sd = means.mean((0, 2, 3)), means.std((0, 2, 3)).clamp(min=1e-4)
    n = len(mu)
    w, b = state["quant_conv.weight"].clone(), state["quant_conv.bias"].clone()
    b[:n] = (b[:n] - mu) / sd
    w[:n] = w[:n] / sd.view(-1, 1, 1, 1)
    b[n:] = b[n:] - 2 * sd.log()
    out = dict(state) | {"quant_conv.weight": w, "quant_conv.bias": b}
    w = state["post_quant_conv.weight"]
    out["post_quant_conv.bias"] = state["post_quant_conv.bias"] + w[:, :, 0, 0] @ mu
    out["post_quant_conv.weight"] = w * sd.view(1, -1, 1, 1)
    return out


def save(run, train, held):
    """Exports the average and measures it as exported."""
    model = make().to(session.device()).eval()
    state = run.averaged()
    model.load_state_dict(state)
    if not run.args.decoder_only:
        state = normalise(state, model, train.images[:1024])
    state = {k: v.half().float() for k, v in state.items()}
    model.load_state_dict(state)
    export.diffusers(run.args.work / "export" / "inpaint" / "vae", model, state)
    decoded = reconstruct(model, held.images)
    values = psnr(held.images, decoded)
    errors = data.colour_error(held.images.float() / 255, decoded, held.masks)
    means = torch.cat([moments(model, chunk.float() / 127.5 - 1)[0].detach() for chunk in held.images.split(64)])
    run.metrics(
        psnr_db_mean=round(values.mean().item(), 3), psnr_db_median=round(values.median().item(), 3), psnr_db_p05=round(values.quantile(0.05).item(), 3),
        colour_error={c: round(errors[held.labels == i].nanmean().item(), 3) for i, c in enumerate(data.CLASSES)},
        psnr_db_class={c: round(values[held.labels == i].mean().item(), 3) for i, c in enumerate(data.CLASSES)},
        latent_deviation=[round(v, 4) for v in means.std((0, 2, 3)).tolist()],
        parameters=sum(p.numel() for p in model.parameters()), held_out=len(held),
    )  # fmt: skip


def main():
    args = session.arguments(__doc__, batch=48, lr=1e-3, seed=1, power=0.4, kl=1e-4, colour=1.0, from_vae="", decoder_only=0, graph=1)
    device = session.device()
    model = make().to(device)
    if args.from_vae:
        model.load_state_dict({k: v.float() for k, v in load_file(args.from_vae).items()})
    if args.decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    train, held = data.load(args.pack, device, args.limit)
    args.graph = args.graph and device.type == "cuda"
    try:
        if device.type == "cuda":
            model.to(memory_format=faster_format(model, train.images, args))
        else:
            model.to(memory_format=torch.channels_last)
        run = session.Run("autoencoder", args, model, half=True, weight_decay=1e-3, betas=(0.9, 0.99))
        loss = graphed(model, train.images, args)
    except RuntimeError as e:
        if not args.graph:
            raise
        # What a failed capture leaves behind is not to be trusted: from the start, without.
        print(f"autoencoder: no graphs: {str(e)[:500]}", flush=True)
        os.execv(sys.executable, [sys.executable, "-u", *sys.argv, "--graph", "0"])
    session.wait(args)
    while run.goes_on():
        x = train.images[data.draw(train, args.batch, args.power)].float() / 255
        kind = torch.rand(()).item()
        if kind < 0.35:
            x = data.saturate(data.recolour(data.vary(x, zoom=(0.8, 1.3)), 0.25, 0.3, 0.2), 0.6, 1.8)
        elif kind < 0.6:
            x = data.recolour(data.vary(x, zoom=(0.9, 1.3)), 0.1, 0.1, 0.03)
        else:
            x = torch.rot90(x, torch.randint(4, ()).item(), (2, 3))
        run.step(loss(x * 2 - 1))
        if run.is_time_to_save():
            save(run, train, held)
            run.checkpoint()
    run.checkpoint()
    save(run, train, held)
    (args.work / "autoencoder.done").touch()


class Loss(torch.nn.Module):
    """The loss as a module of the images in [-1, 1], so that it can become a graph."""

    def __init__(self, model, args):
        super().__init__()
        self.model, self.args = model, args

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=x.device.type == "cpu"):
            return loss_of(self.model, x, next(self.model.parameters()).dtype, self.args.kl, self.args.colour)


def graphed(model, images, args):
    """Loss and gradient as CUDA graphs: a step is a thousand small kernels, whose launches would take longer than they do."""
    loss = Loss(model, args)
    x = images[: args.batch].float() / 127.5 - 1
    return torch.cuda.make_graphed_callables(loss, (x,), allow_unused_input=True) if args.graph else loss


def faster_format(model, images, args):
    """The memory format in which a few steps take less time."""
    seconds, model = {}, copy.deepcopy(model).to(torch.bfloat16)
    for layout in [torch.contiguous_format, torch.channels_last]:
        loss = graphed(copy.deepcopy(model).to(memory_format=layout), images, args)
        x = images[: args.batch].float() / 127.5 - 1
        for i in range(13):
            if i == 3:
                torch.cuda.synchronize()
                since = time.time()
            loss(x).backward()
        torch.cuda.synchronize()
        seconds[layout] = time.time() - since
    print(f"autoencoder: seconds of ten steps by layout: {seconds}", flush=True)
    return min(seconds, key=seconds.get)


if __name__ == "__main__":
    main()
