"""Writes split.csv: the images of HAM10000 by part. A lesion is held out when sha256(lesion_id), as an integer, is divisible
by 5; no training sees those. The file holds image ids and the first 16 digits of that hash, nothing else of the data.

python tools/train/split.py --data ../shared/data/ham10000
"""

import argparse
import csv
import hashlib
import pathlib

HERE = pathlib.Path(__file__).parent


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", type=pathlib.Path, required=True, help="folder with labels.csv")
    p.add_argument("--out", type=pathlib.Path, default=HERE / "split.csv")
    args = p.parse_args()
    rows = sorted(csv.DictReader(open(args.data / "labels.csv")), key=lambda row: row["image_id"])
    with open(args.out, "w", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["image_id", "lesion_hash", "part"])
        for row in rows:
            digest = hashlib.sha256(row["lesion_id"].encode()).hexdigest()
            out.writerow([row["image_id"], digest[:16], "held_out" if int(digest, 16) % 5 == 0 else "train"])


if __name__ == "__main__":
    main()
