"""Trains a classifier with timm's names from scratch: `--arch resnet18`, the one that scores samples, or `--arch densenet121`,
an independent judge of their labels. Both are narrower than the published ones; loaders read the widths off the weights.

Classes are drawn in proportion to the square root of their counts, and the rest of the imbalance goes into the logits during
training (Menon et al. 2021), so that the logits at the end are those of equally frequent classes.
"""

import torch
import torch.nn.functional as F
from timm.models.densenet import DenseNet
from timm.models.resnet import BasicBlock, ResNet

import data
import export
import session

POWER = 0.5
ARGUMENTS = {
    "resnet18": {"channels": [40, 80, 128, 200]},
    "densenet121": {"growth_rate": 12, "block_config": [6, 12, 24, 16]},
}
FOLDER = {"resnet18": "classifier", "densenet121": "judge"}


def make(arch):
    a = ARGUMENTS[arch]
    if arch == "resnet18":
        return ResNet(BasicBlock, (2, 2, 2, 2), num_classes=len(data.CLASSES), channels=tuple(a["channels"]), drop_rate=0.2)
    return DenseNet(growth_rate=a["growth_rate"], block_config=tuple(a["block_config"]), num_classes=len(data.CLASSES), drop_rate=0.2)


def normalised(x):
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (data.MEAN, data.STD))
    return (x - mean) / std


def augmented(x):
    """x: [0, 1]."""
    x = data.vary(x, zoom=(0.8, 1.5), shift=0.15, turn=0.4)
    x = data.recolour(x, 0.2, 0.25, 0.08)
    n = len(x)
    # One rectangle of a third of each side, grey, in half of the images.
    top, left = (torch.randint(0, data.SIZE - 40, (n, 1, 1, 1), device=x.device) for _ in range(2))
    at = torch.arange(data.SIZE, device=x.device)
    inside = (at.view(1, 1, -1, 1) >= top) & (at.view(1, 1, -1, 1) < top + 40) & (at.view(1, 1, 1, -1) >= left) & (at.view(1, 1, 1, -1) < left + 40)
    erased = inside & (torch.rand(n, 1, 1, 1, device=x.device) < 0.5)
    return torch.where(erased, 0.6, x)


@torch.no_grad()
def logits_of(model, images, batch=256):
    """images: u8, or float in [0, 1]."""
    scale = 255 if images.dtype == torch.uint8 else 1
    return torch.cat([model(normalised(chunk.float() / scale)).float() for chunk in images.split(batch)])


@torch.no_grad()
def features_of(model, images, batch=256):
    scale = 255 if images.dtype == torch.uint8 else 1
    return torch.cat([model.forward_head(model.forward_features(normalised(c.float() / scale)), pre_logits=True).float() for c in images.split(batch)])


def recalls(predicted, labels):
    return {c: round((predicted[labels == i] == i).float().mean().item(), 4) for i, c in enumerate(data.CLASSES) if (labels == i).any()}


def balanced_interval(predicted, labels, draws=2000, seed=0):
    """95 % bootstrap interval of the balanced accuracy; every image is a lesion of its own, so images are drawn."""
    g = torch.Generator().manual_seed(seed)
    right, labels = (predicted == labels).cpu().float(), labels.cpu()
    rows = torch.randint(len(labels), (draws, len(labels)), generator=g)
    hit, label = right[rows], labels[rows]
    per_class = [((hit * (label == i)).sum(1) / (label == i).sum(1)) for i in range(len(data.CLASSES)) if (labels == i).any()]
    values = torch.stack(per_class).nanmean(0)
    return [round(values.quantile(q).item(), 4) for q in (0.025, 0.975)]


def save(run, held, arch):
    model = make(arch).to(session.device()).eval()
    state = {k: v.half().float() if v.is_floating_point() else v for k, v in run.averaged().items()}
    model.load_state_dict({k: v for k, v in state.items()}, strict=False)
    export.classifier(run.args.work / "export" / FOLDER[arch], state, arch, ARGUMENTS[arch], model.num_features)
    predicted = logits_of(model, held.images).argmax(1)
    recall = recalls(predicted, held.labels)
    run.metrics(
        architecture=arch, parameters=sum(p.numel() for p in model.parameters()), held_out=len(held),
        accuracy=round((predicted == held.labels).float().mean().item(), 4), balanced_accuracy=round(sum(recall.values()) / len(recall), 4),
        balanced_accuracy_interval=balanced_interval(predicted, held.labels), recall=recall,
    )  # fmt: skip


def main():
    args = session.arguments(__doc__, batch=128, lr=1.5e-3, seed=3, arch="resnet18")
    device = session.device()
    model = make(args.arch).to(device, memory_format=torch.channels_last)
    run = session.Run(FOLDER[args.arch], args, model, half=False, weight_decay=0.05, betas=(0.9, 0.999), warmup=0.05)
    train, held = data.load(args.pack, device, args.limit)
    prior = data.class_weights(train.counts(), POWER).clamp(min=1e-6).log()
    session.wait(args)
    while run.goes_on():
        rows = data.draw(train, args.batch, POWER)
        x = normalised(augmented(train.images[rows].float() / 255))
        y = F.one_hot(train.labels[rows], len(data.CLASSES)).float()
        part = torch.distributions.Beta(0.3, 0.3).sample().item()
        other = torch.randperm(args.batch, device=device)
        x, y = torch.lerp(x[other], x, part), torch.lerp(y[other], y, part)
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(x.contiguous(memory_format=torch.channels_last))
        run.step(F.cross_entropy(logits.float() + prior, y, label_smoothing=0.05))
        if run.is_time_to_save():
            save(run, held, args.arch)
            run.checkpoint()
    run.checkpoint()
    save(run, held, args.arch)
    (args.work / f"{run.name}.done").touch()


if __name__ == "__main__":
    main()
