"""What all training scripts share: the clock, the optimiser with its average of the weights, checkpoints and the log.

A run has a budget of seconds and its learning rate follows the part of the budget that is spent, down to zero at the end; a
run that was stopped goes on from its last checkpoint with what is left of the budget. CPU and GPU differ in nothing else.
"""

import argparse
import json
import math
import os
import pathlib
import time

import torch


def arguments(description, **defaults):
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--pack", type=pathlib.Path, required=True, help="the file that pack.py wrote")
    p.add_argument("--work", type=pathlib.Path, required=True, help="checkpoints, logs and export/ go here")
    p.add_argument("--seconds", type=float, required=True, help="the whole training's budget")
    p.add_argument("--until", type=float, default=math.inf, help="stop at this Unix time even if the budget is not spent")
    p.add_argument("--start-at", type=float, default=0, help="prepare, then wait for this Unix time")
    p.add_argument("--seed", type=int, default=defaults.pop("seed", 0))
    p.add_argument("--limit", type=int, help="images per part, for trying things out")
    p.add_argument("--max-steps", type=int, default=10**9)
    p.add_argument("--batch", type=int, default=defaults.pop("batch"))
    p.add_argument("--lr", type=float, default=defaults.pop("lr"))
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0: as many as torch likes")
    for name, value in defaults.items():
        p.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / "export").mkdir(exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    return args


def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait(args):
    while time.time() < args.start_at:
        time.sleep(0.2)


class Run:
    """Trains `model`. On a GPU with `half` the model itself is bf16 and the optimiser keeps f32 weights beside it."""

    def __init__(self, name, args, model, half, weight_decay=0.01, betas=(0.9, 0.99), warmup=0.02):
        self.name, self.args, self.model, self.warmup = name, args, model, warmup
        self.is_half = half and device().type == "cuda"
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.masters = [p.detach().float().clone() for p in self.params] if self.is_half else self.params
        if self.is_half:
            model.to(torch.bfloat16)
            self.params = [p for p in model.parameters() if p.requires_grad]
        for p in self.masters:
            # Of the weights' own strides, which the fused optimiser insists on.
            p.grad = torch.zeros_like(p)
        self.ema = [p.detach().clone() for p in self.masters]
        self.buffers = [b for b in model.buffers() if b.is_floating_point()]
        self.ema_buffers = [b.detach().clone() for b in self.buffers]
        decayed = [p for p in self.masters if p.ndim > 1]
        plain = [p for p in self.masters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=betas, fused=device().type == "cuda")
        self.steps, self.spent, self.kept = 0, 0.0, {}
        self.state = args.work / f"{name}.state.pt"
        self.started = self.logged = self.saved = None
        self.losses = None
        self.resume()

    def resume(self):
        if not self.state.exists():
            return
        state = torch.load(self.state, map_location=device(), weights_only=True)
        with torch.no_grad():
            for to, values in [(self.masters, "masters"), (self.ema, "ema"), (self.buffers, "buffers"), (self.ema_buffers, "ema_buffers")]:
                for t, v in zip(to, state[values], strict=True):
                    t.copy_(v)
            self.publish()
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.spent = state["steps"], state["spent"]
        torch.manual_seed(self.args.seed + self.steps)
        self.log(f"resumed at step {self.steps}, {self.spent:.0f} of {self.args.seconds:.0f} s spent")

    def checkpoint(self):
        state = {"masters": [p.detach() for p in self.masters], "ema": self.ema, "buffers": self.buffers, "ema_buffers": self.ema_buffers}
        state |= {"optimizer": self.optimizer.state_dict(), "steps": self.steps, "spent": self.spent_now()}
        part = self.state.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.state)

    def spent_now(self):
        return self.spent + (time.time() - self.started if self.started else 0)

    def progress(self):
        return min(1.0, max(self.spent_now() / self.args.seconds, self.steps / self.args.max_steps))

    def goes_on(self):
        if self.started is None:
            self.started = time.time()
            # What comes too late has a shorter training, not one that breaks off; two seconds are for the export.
            self.args.seconds = max(1.0, min(self.args.seconds, self.args.until - 2 - self.started + self.spent))
        return self.progress() < 1 and time.time() < self.args.until

    def rate(self):
        done = self.progress()
        return self.args.lr * min(1.0, done / self.warmup + 1e-3) * 0.5 * (1 + math.cos(math.pi * done))

    def publish(self):
        if self.is_half:
            torch._foreach_copy_([p.data for p in self.params], self.masters)

    def step(self, loss):
        loss.backward()
        if self.is_half:
            torch._foreach_copy_([m.grad for m in self.masters], [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.params])
            for p in self.params:
                p.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        rate = self.rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if device().type != "cuda" and not torch.isfinite(norm):
            raise RuntimeError(f"{self.name}: the gradient is not finite at step {self.steps}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        with torch.no_grad():
            self.publish()
            self.steps += 1
            # Averages the last twentieth of all steps, however many there are.
            weight = 20 / (self.steps + 20)
            torch._foreach_lerp_(self.ema, [m.detach() for m in self.masters], weight)
            if self.buffers:
                torch._foreach_lerp_(self.ema_buffers, self.buffers, weight)
        self.losses = loss.detach() if self.losses is None else torch.lerp(self.losses, loss.detach(), 0.05)
        if self.logged is None or time.time() - self.logged > 8:
            since, self.logged = self.logged, time.time()
            value = self.losses.item()
            if not math.isfinite(value):
                raise RuntimeError(f"{self.name}: the loss is not finite at step {self.steps}")
            per_second = self.steps / max(1e-9, self.spent_now()) * self.args.batch
            self.log(f"step {self.steps} progress {self.progress():.3f} loss {value:.5f} rate {rate:.2e} images/s {per_second:.0f}")

    def is_time_to_save(self, every=40.0):
        """On a CPU a thirtieth as often: what is measured with each save takes that much longer."""
        every *= 1 if device().type == "cuda" else 30
        if self.saved is None:
            self.saved = time.time()
        if time.time() - self.saved > every:
            self.saved = time.time()
            return True
        return False

    def averaged(self):
        """State dict of the average, f32, with the names of the model."""
        names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        state = {n: v.detach().float() for n, v in self.model.state_dict().items()}
        state |= dict(zip(names, self.ema, strict=True))
        state |= dict(zip([n for n, b in self.model.named_buffers() if b.is_floating_point()], self.ema_buffers, strict=True))
        return {n: v.clone() for n, v in state.items()}

    def log(self, text):
        print(f"{time.strftime('%H:%M:%S')} {self.name}: {text}", flush=True)

    def metrics(self, **values):
        values |= {"steps": self.steps, "batch": self.args.batch, "seconds": round(self.spent_now(), 1), "device": device_name()}
        write_json(self.args.work / "export" / f"{self.name}.metrics.json", values)
        self.log(json.dumps(values))


def device_name():
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def write_json(path, value):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(part, path)
