"""Cuts the file that `naevus demo` and `naevus select --reference` score by: the classifier's features of training images,
with their classes, as f16. No image and nothing of the held-out part goes in.

naevus features --classifier weights/classifier --images ../shared/data/ham10000/images --out out/features.safetensors
python tools/train/reference.py --features out/features.safetensors --data ../shared/data/ham10000 --out weights/reference/features.safetensors
"""

import argparse
import csv
import hashlib
import json
import pathlib
import struct

from safetensors import safe_open

HERE = pathlib.Path(__file__).parent


def write(path, tensors, metadata):
    """A safetensors file whose bytes depend on nothing but its content: `save_file` orders the metadata by chance."""
    header, blobs, at = {"__metadata__": dict(sorted(metadata.items()))}, [], 0
    for name, tensor in tensors.items():
        blobs.append(tensor.contiguous().numpy().tobytes())
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [at, at + len(blobs[-1])]}
        at += len(blobs[-1])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--features", type=pathlib.Path, required=True, help="written by `naevus features`")
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--split", type=pathlib.Path, default=HERE / "split.csv")
    p.add_argument("--most", type=int, default=280, help="images of one class; those whose hashed names come first")
    p.add_argument("--out", type=pathlib.Path, required=True)
    args = p.parse_args()
    classes = {row["image_id"]: row["dx"] for row in csv.DictReader(open(args.data / "labels.csv"))}
    train = {row["image_id"] for row in csv.DictReader(open(args.split)) if row["part"] == "train"}
    with safe_open(args.features, "pt") as file:
        metadata, features, logits = file.metadata(), file.get_tensor("features"), file.get_tensor("logits")
    ids = json.loads(metadata["ids"])
    rows = []
    for name in sorted(set(classes.values())):
        of_class = [i for i, image in enumerate(ids) if image in train and classes[image] == name]
        of_class.sort(key=lambda i: hashlib.sha256(ids[i].encode()).hexdigest())
        rows += of_class[: args.most]
        print(f"{name}: {len(of_class[: args.most])} of {len(of_class)}")
    rows.sort(key=lambda i: ids[i])
    kept = [ids[i] for i in rows]
    # The classifier's path is that of whoever ran it; its sum says which it is.
    metadata |= {"ids": json.dumps(kept), "labels": json.dumps([classes[i] for i in kept]), "classifier": "classifier"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write(args.out, {"features": features[rows].half(), "logits": logits[rows].half()}, metadata)
    print(f"{args.out}: {len(rows)} images, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
