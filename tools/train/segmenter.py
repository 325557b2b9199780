"""Trains the lesion segmentation U-Net on the real masks, with the names of segmentation-models-pytorch: `Unet("resnet18",
encoder_depth=3, decoder_channels=(128, 64, 32))`, which loads the file (the encoder's layers that this depth never runs are left out).
"""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import ResNet, BasicBlock

import data
import export
import session

CHANNELS = [128, 64, 32]


class Encoder(nn.Module):
    """ResNet-18 up to layer2: maps at 1/2, 1/4 and 1/8."""

    def __init__(self):
        super().__init__()
        whole = ResNet(BasicBlock, [2, 2, 2, 2])
        self.conv1, self.bn1, self.layer1, self.layer2 = whole.conv1, whole.bn1, whole.layer1, whole.layer2

    def forward(self, x):
        a = F.relu(self.bn1(self.conv1(x)))
        b = self.layer1(F.max_pool2d(a, 3, 2, 1))
        return a, b, self.layer2(b)


def conv_norm_relu(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.conv2 = conv_norm_relu(inputs, outputs), conv_norm_relu(outputs, outputs)

    def forward(self, x, skip=None):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv2(self.conv1(x if skip is None else torch.cat([x, skip], 1)))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(128 + 64, CHANNELS[0]), Block(CHANNELS[0] + 64, CHANNELS[1]), Block(CHANNELS[1], CHANNELS[2])])

    def forward(self, a, b, c):
        return self.blocks[2](self.blocks[1](self.blocks[0](c, b), a))


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.segmentation_head = nn.Sequential(nn.Conv2d(CHANNELS[-1], 1, 3, padding=1))

    def forward(self, x):
        return self.segmentation_head(self.decoder(*self.encoder(x)))


# What a segmentation checkpoint without its own mean and deviation is fed with: ImageNet's.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def normalised(x):
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


def dice(predicted, masks):
    """Per image."""
    both = (predicted * masks).sum((1, 2, 3))
    return (2 * both + 1) / (predicted.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)


def save(run, held):
    model = Segmenter().to(session.device()).eval()
    state = {k: v.half().float() if v.is_floating_point() else v for k, v in run.averaged().items()}
    model.load_state_dict(state)
    config = {
        "_model_class": "Unet", "encoder_name": "resnet18", "encoder_depth": 3, "encoder_weights": None, "decoder_use_norm": "batchnorm",
        "decoder_channels": CHANNELS, "decoder_attention_type": None, "decoder_interpolation": "nearest", "in_channels": 3, "classes": 1,
        "activation": None, "aux_params": None,
    }  # fmt: skip
    export.write(run.args.work / "export" / "segmenter", {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, config)
    with torch.no_grad():
        values = torch.cat(
            [dice((model(normalised(x.float() / 255)) > 0).float(), m.float()) for x, m in zip(held.images.split(128), held.masks.split(128))]
        )
    drawn = values.cpu()[torch.randint(len(values), (2000, len(values)), generator=torch.Generator().manual_seed(0))].mean(1)
    interval = [round(drawn.quantile(q).item(), 4) for q in (0.025, 0.975)]
    run.metrics(
        dice_mean=round(values.mean().item(), 4), dice_interval=interval, dice_median=round(values.median().item(), 4),
        parameters=sum(p.numel() for p in model.parameters()), held_out=len(held),
    )  # fmt: skip


def main():
    args = session.arguments(__doc__, batch=64, lr=1.5e-3, seed=4)
    device = session.device()
    model = Segmenter().to(device, memory_format=torch.channels_last)
    run = session.Run("segmenter", args, model, half=False, weight_decay=0.02, betas=(0.9, 0.999), warmup=0.05)
    train, held = data.load(args.pack, device, args.limit)
    session.wait(args)
    while run.goes_on():
        rows = torch.randint(len(train), (args.batch,), device=device)
        x, m = data.vary(train.images[rows].float() / 255, train.masks[rows].float(), zoom=(0.8, 1.4), shift=0.15, turn=0.4)
        x = normalised(data.recolour(x, 0.2, 0.2, 0.06))
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(x.contiguous(memory_format=torch.channels_last))
        logits = logits.float()
        run.step(F.binary_cross_entropy_with_logits(logits, m) + 1 - dice(logits.sigmoid(), m).mean())
        if run.is_time_to_save():
            save(run, held)
            run.checkpoint()
    run.checkpoint()
    save(run, held)
    (args.work / "segmenter.done").touch()


if __name__ == "__main__":
    main()
