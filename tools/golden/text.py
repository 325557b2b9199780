"""Narrow CLIP text encoders of transformers: Stable Diffusion 1's, 2's and the second of XL, with their published options."""

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from golden.recipe import fixture

VOCABULARY, TOKENS = 45, 11
TAPPED = r"(text_model\.)?(embeddings(\.token_embedding)?|encoder\.layers\.\d+(\.(layer_norm1|self_attn|mlp|layer_norm2))?|final_layer_norm)|text_projection"

START, END, PAD = 29, 30, 0


def texts(end, pad):
    """Token numbers as a tokenizer leaves them: short; empty; cut, with larger numbers than the end's; without an end."""
    rows = [[START, 7, 12, 7, end], [START, end], [START, 40, 1, 2, 3, 42, 5, 42, 8, 9, end], [START, 40, 1, 2, 3, 40, 5, 6, 8, 9, 3]]
    return [row + [pad] * (TOKENS - len(row)) for row in rows]


class Old(torch.nn.Module):
    """The model as transformers 4 saves it: all in `text_model`."""

    def __init__(self, model):
        super().__init__()
        self.text_model = model

    def forward(self, *arguments, **options):
        return self.text_model(*arguments, **options)


def call(model, input_ids):
    out = model(input_ids.long(), output_hidden_states=True)
    kept = {"last_hidden_state": out.last_hidden_state, "penultimate_hidden_state": out.hidden_states[-2]}
    for name in ("pooler_output", "text_embeds"):
        if getattr(out, name, None) is not None:
            kept[name] = getattr(out, name)
    return kept


def published(config, kind):
    """config.json as transformers 4 writes it."""
    value = config.to_dict() | {"architectures": [kind], "torch_dtype": "float32", "transformers_version": "4.21.0", "_name_or_path": "a/b"}
    return {key: value[key] for key in sorted(value) if key not in ("id2label", "label2id") or value[key]}


def encoder(name, kind, ids, wrap=None, change=None, **options):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3, "max_position_embeddings": TOKENS}
    config = CLIPTextConfig(**(sizes | {"num_hidden_layers": 2, "bos_token_id": START, "pad_token_id": 1, "attn_implementation": "eager"} | options))
    model = kind(config)
    model = wrap(model) if wrap else model
    inputs = {"input_ids": torch.tensor(ids, dtype=torch.int64)}
    return fixture(name, model, published(config, kind.__name__), "model.safetensors", {"text-encoder": (inputs, call)}, tapped=TAPPED, prepare=change)


FIXTURES = {
    "models/clip-text": lambda: encoder("clip-text", CLIPTextModel, texts(44, 44), wrap=Old, hidden_act="quick_gelu", eos_token_id=2, projection_dim=24),
    "models/openclip-text": lambda: encoder(
        "openclip-text", CLIPTextModel, texts(END, PAD), hidden_act="gelu", eos_token_id=END, num_hidden_layers=3, projection_dim=16
    ),
    "models/clip-text-projection": lambda: encoder(
        "clip-text-projection", CLIPTextModelWithProjection, texts(44, PAD), hidden_act="gelu", eos_token_id=2, projection_dim=20
    ),
}
