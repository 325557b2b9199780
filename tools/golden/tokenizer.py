"""CLIP tokenizers over a small vocabulary, and what transformers makes of texts that are hard to cut.

Folders of tests/golden/tokenizers hold the files as diffusers' pipelines have them, and prompts.json: a list of
[text, token numbers at model_max_length].
"""

import json
import tempfile
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode


START, END, LENGTH = "<|startoftext|>", "<|endoftext|>", 40
WORDS = """a photo of dermatofibroma skin lesion dermoscopy image the melanoma nevus vascular lesion with pigment network
    it's a benign keratosis, they've seen actinic keratoses in the skin of the patient photo photo lesion 10 20 2024 é naïve
    haut läsion кожа 皮膚 ... !!! the and lesions dermoscopic""".split()
MERGES = 120

PROMPTS = [
    "",
    " ",
    "a photo of a dermatofibroma",
    "A Photo  of\ta DERMATOFIBROMA\n\non the skin ",
    "it's they've I'm we'll he'd don't '' 'sS 's",
    "!!!",
    "melanoma! (benign), ... ?!*&^%$#@ -- __init__ [x]",
    "10 2024 3.14 1e-5 ½ ² ٣ Ⅷ 1st",
    "naïve café NAÏVE nai\u0308ve cafe\u0301",
    "Läsion der HAUT ß ẞ İstanbul ΣΊΣΥΦΟΣ ﬁ",
    "кожа 皮膚の写真 피부 त्वचा جلد עור ผิวหนัง",
    "🩺 👩🏽‍⚕️ 🏳️‍🌈 ✨skin✨",
    "a\u00a0b\u2003c\u3000d\u200be\ufefff\u0085g\u2028h",
    "\u0000\u0007\u001b[0m\u007f",
    "word " * 60,
    "dermatofibromadermatofibromadermatofibromadermatofibroma",
    "<|startoftext|>lesion<|endoftext|>after the end",
    "<|STARTOFTEXT|> <|EndOfText|> <| endoftext |>",
    "<lesion> of <lesion>, <Lesion> and<lesion>",
    "x" * 300,
    "a-b_c/d\\e|f",
    "ʼn ǆ ŉ ﷽ 𝔻𝕖𝕣𝕞 ①②③",
    "e\u0301\u0302\u0303 \u1100\u1161\u11a8 \ud55c",
    "\u202eright to left\u202c",
    "'",
    "l'l 'LL 'Re 'vE",
]


def trained():
    """Vocabulary and merges in CLIP's order: bytes, bytes that end a word, merges, the two special tokens."""
    letters = bytes_to_unicode()
    words = Counter(tuple(letters[b] for b in word.lower().encode()) for word in WORDS)
    words = {word[:-1] + (word[-1] + "</w>",): count for word, count in words.items()}
    merges = []
    for _ in range(MERGES):
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {merged(word, best): count for word, count in words.items()}
    tokens = [*letters.values(), *(letter + "</w>" for letter in letters.values()), *("".join(pair) for pair in merges), START, END]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges


def merged(word, pair):
    result, at = [], 0
    while at < len(word):
        if word[at : at + 2] == pair:
            result.append("".join(pair))
            at += 2
        else:
            result.append(word[at])
            at += 1
    return tuple(result)


class Text:
    """A text file."""

    def __init__(self, value):
        self.value = value

    def bytes(self):
        return self.value.encode()

    def differences(self, path):
        if path.read_text(encoding="utf-8") != self.value:
            yield "another text"


def old_token(content):
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def settings(pad):
    """tokenizer_config.json and special_tokens_map.json of Stable Diffusion 1 (pad is the end) and 2 (pad is "!")."""
    config = {
        "add_prefix_space": False,
        "bos_token": old_token(START) | {"__type": "AddedToken"},
        "do_lower_case": True,
        "eos_token": old_token(END) | {"__type": "AddedToken"},
        "errors": "replace",
        "model_max_length": LENGTH,
        "name_or_path": "openai/clip-vit-large-patch14",
        "pad_token": END,
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": old_token(END) | {"__type": "AddedToken"},
    }
    special = {"bos_token": old_token(START), "eos_token": old_token(END), "pad_token": pad, "unk_token": old_token(END)}
    return {"tokenizer_config.json": config, "special_tokens_map.json": special}


def fixture(name, files, save=False):
    """The files of tokenizers/<name>. save: what transformers saves of that instead."""
    with tempfile.TemporaryDirectory() as folder:
        for path, value in files.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1) + "\n"
            (Path(folder) / path).write_text(text, encoding="utf-8")
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        if save:
            folder = Path(folder) / "saved"
            tokenizer.save_pretrained(folder)
            tokenizer = CLIPTokenizer.from_pretrained(folder)
        made = {path.name: Text(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).iterdir()) if path.is_file()}
        rows = [[text, tokenizer(text, padding="max_length", truncation=True)["input_ids"]] for text in PROMPTS]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    made["prompts.json"] = Text(f"[\n{lines}\n]\n")
    return {f"tokenizers/{name}/{path}": value for path, value in made.items()}


def legacy(pad):
    vocabulary, merges = trained()
    lines = "".join(f"{a} {b}\n" for a, b in merges)
    return {"vocab.json": vocabulary, "merges.txt": "#version: 0.2\n" + lines} | settings(pad)


def with_added():
    """A fine-tune that was saved with a learned token of its own."""
    files = legacy(END)
    return files | {"added_tokens.json": {"<lesion>": len(files["vocab.json"])}}


FIXTURES = {
    "tokenizers/clip": lambda: fixture("clip", legacy(END)),
    "tokenizers/openclip": lambda: fixture("openclip", legacy("!")),
    "tokenizers/added": lambda: fixture("added", with_added()),
    "tokenizers/saved": lambda: fixture("saved", with_added(), save=True),
}
