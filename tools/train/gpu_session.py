"""Trains everything within one budget of seconds on one GPU (or, with --smoke, tries all of it out on the CPU).

python tools/train/gpu_session.py --pack out/ham128.npz --out out/session --seconds 460

One process per model, so that the end of one is not the end of the others; their logs and exports are gathered into --out every
20 seconds and at the end: weights-inpaint.tar, weights-small.tar (unpack both into weights/), metrics.json, sheets.tar, log.txt.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time

HERE = pathlib.Path(__file__).parent
# Beginning and end of each training, as parts of the budget after SETUP seconds. The denoiser begins when the autoencoder ends.
SETUP = 14
PLAN = {"autoencoder": (0.0, 0.24), "segmenter": (0.24, 0.40), "classifier": (0.24, 0.46), "judge": (0.24, 0.46), "denoiser": (0.24, 0.90)}


def window(name, args):
    """Begin and end of a training; with --autoencoder-share the others follow that, and denoising has what is left."""
    begin, end = PLAN[name]
    if args.autoencoder_share is not None:
        shift = args.autoencoder_share - PLAN["autoencoder"][1]
        begin, end = (begin if name == "autoencoder" else begin + shift), (end if name == "denoiser" else end + shift)
    if name == "denoiser" and "autoencoder" not in args.names:
        begin = 0.06
    return begin, end


def command(name, args, start):
    begin, end = window(name, args)
    span = args.seconds - SETUP if not args.smoke else args.seconds
    first = start + (SETUP if not args.smoke else 0)
    until = first + end * span
    script = {"judge": "classifier"}.get(name, name)
    line = [sys.executable, "-u", str(HERE / f"{script}.py"), "--pack", args.pack, "--work", args.work, "--until", until]
    if name == "denoiser":
        line += ["--seconds", 10**9, "--vae-by", first + (begin + 0.06) * span, "--compile-seconds", 40 + begin * span]
    else:
        line += ["--seconds", (end - begin) * span, "--start-at", 0 if args.smoke else first + begin * span]
    if name == "judge":
        line += ["--arch", "densenet121", "--seed", 5]
    if args.source:
        file = args.source / "inpaint" / {"autoencoder": "vae", "denoiser": "unet"}.get(name, "") / "diffusion_pytorch_model.safetensors"
        line += {"autoencoder": ["--from-vae", file, "--lr", 8e-4], "denoiser": ["--from-unet", file]}.get(name, [])
    if args.smoke:
        line += ["--limit", 28, "--batch", 4, "--threads", 1, "--max-steps", 2]
        line += ["--pool", 16] if name == "denoiser" else []
    return [str(part) for part in line]


def gather(args):
    """Copies what there is into --out. A file is there whole or not at all."""
    export, logs = args.work / "export", args.work / "log"
    metrics = {f.name.removesuffix(".metrics.json"): json.loads(f.read_text()) for f in sorted(export.glob("*.metrics.json"))}
    if (args.work / "evaluation.json").exists():
        metrics["evaluation"] = json.loads((args.work / "evaluation.json").read_text())
    put(args, "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=2) + "\n"))
    text = "".join(f"==> {f.stem}\n{f.read_text(errors='replace')[-200_000:]}\n" for f in sorted(logs.glob("*.txt")))
    put(args, "log.txt", lambda path: path.write_text(text))
    archive(args, "weights-inpaint.tar", export, ["inpaint/unet", "inpaint/scheduler", "inpaint/model_index.json"])
    archive(args, "weights-small.tar", export, ["inpaint/vae", "classifier", "judge", "segmenter"])
    if (args.work / "sheets").is_dir():
        archive(args, "sheets.tar", args.work, ["sheets"])


def archive(args, name, folder, parts):
    files = [f for part in parts for f in [folder / part, *sorted((folder / part).rglob("*"))] if f.is_file() and f.suffix != ".part"]
    stamp = [(str(f), f.stat().st_mtime_ns) for f in files]
    if not files or stamp == archive.seen.get(name):
        return

    def write(path):
        with tarfile.open(path, "w") as tar:
            for f in files:
                tar.add(f, f.relative_to(folder))

    put(args, name, write)
    archive.seen[name] = stamp


archive.seen = {}


def put(args, name, write):
    try:
        path = args.work / (name + ".part")
        write(path)
        shutil.copyfile(path, args.out / (name + ".part"))
        os.replace(args.out / (name + ".part"), args.out / name)
    except (OSError, ValueError) as e:
        print(f"session: {name}: {e}", flush=True)


def evaluation(args, end):
    line = [sys.executable, "-u", HERE / "evaluate.py", "--pack", args.pack, "--models", args.work / "export", "--out", args.work, "--until", end]
    line += [] if args.smoke or "denoiser" not in args.names else ["--wait-for", args.work / "denoiser.done", "--wait-until", end - 0.05 * args.seconds]
    if args.smoke:
        line += ["--limit", 14, "--per-class", 2, "--steps", 2, "--threads", 1, "--guidance", 2]
    else:
        line += ["--guidance", 3, 5, 7, "--widen", 20, "--classes", "vasc", "df", "akiec", "bcc", "bkl", "mel"]
    return [str(part) for part in line]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--pack", type=pathlib.Path, required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--work", type=pathlib.Path, help="checkpoints and exports; default: OUT-work. With the same folder a stopped session goes on")
    p.add_argument("--seconds", type=float, required=True)
    p.add_argument("--only", nargs="*", choices=list(PLAN), help="train these; the others' exports are taken from --work")
    p.add_argument("--from", dest="source", type=pathlib.Path, help="folder of exported weights: autoencoder and denoiser start from them")
    p.add_argument("--autoencoder-share", type=float, help="part of the budget for the autoencoder; default 0.24")
    p.add_argument("--smoke", action="store_true", help="two steps of everything on few images, on the CPU")
    args = p.parse_args()
    start = time.time()
    args.work = args.work or args.out.with_name(args.out.name + "-work")
    for folder in [args.out, args.work / "log", args.work / "export"]:
        folder.mkdir(parents=True, exist_ok=True)
    args.names = args.only or list(PLAN)
    if args.source:
        for name in ["classifier", "judge", "segmenter", "inpaint/vae", "inpaint/unet"]:
            if not (args.work / "export" / name).exists():
                shutil.copytree(args.source / name, args.work / "export" / name)
        for name in ["scheduler/scheduler_config.json", "model_index.json"]:
            (args.work / "export" / "inpaint" / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(args.source / "inpaint" / name, args.work / "export" / "inpaint" / name)
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1" if args.smoke else "4"}
    if args.smoke:
        environment["CUDA_VISIBLE_DEVICES"] = ""

    def begin(name, line):
        print(f"session: {time.time() - start:6.1f} s: {name}", flush=True)
        return subprocess.Popen(line, stdout=open(args.work / "log" / f"{name}.txt", "a"), stderr=subprocess.STDOUT, env=environment)

    names = args.names
    for name in names:
        (args.work / f"{name}.done").unlink(missing_ok=True)
    if args.smoke:
        # One after another: two cores.
        for name in names:
            print(f"session: {name} ended with {begin(name, command(name, args, start)).wait()}", flush=True)
        running = {}
    else:
        running = {name: begin(name, command(name, args, start)) for name in names}
    evaluator, gathered = None, time.time()
    while True:
        time.sleep(0.25)
        for name, process in list(running.items()):
            if process.poll() is not None:
                print(f"session: {time.time() - start:6.1f} s: {name} ended with {process.returncode}", flush=True)
                del running[name]
        left = start + args.seconds - time.time()
        if evaluator is None and (not running or left < 0.14 * args.seconds):
            evaluator = begin("evaluate", evaluation(args, start + args.seconds - 4))
        if time.time() - gathered > 20:
            gather(args)
            gathered = time.time()
        is_done = not running and evaluator is not None and evaluator.poll() is not None
        if is_done or (left < 2 and not args.smoke):
            break
    for process in [*running.values(), evaluator]:
        if process is not None and process.poll() is None:
            process.kill()
    gather(args)
    print(f"session: {time.time() - start:.1f} s; {[(f.name, f.stat().st_size) for f in sorted(args.out.iterdir()) if f.is_file()]}", flush=True)
    print((args.out / "metrics.json").read_text())


if __name__ == "__main__":
    main()
