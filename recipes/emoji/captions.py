"""Captions of a picture, and their token states: what the denoiser reads."""

import json
from pathlib import Path

import torch

from cotrunk.mini import TOKENS, text_encoder


def captions_of(line: dict) -> list[tuple[str, float]]:
    """(caption, probability) of one picture: its name, with and without the style, with keywords."""
    name, style = line["concept"], line["style"]
    words = [k for k in line["keywords"] if k not in name][:6]
    captions = [
        (name, 0.22),
        (f"{name}, {style} style", 0.30),
        (f"a {name}", 0.08),
        (f"a {name}, {style} style", 0.10),
        (f"a picture of a {name}", 0.05),
        (f"a picture of a {name}, {style} style", 0.05),
    ]
    if not words:
        return captions
    pairs = [f"{name}, {word}, {style} style" for word in words[:4]]
    pairs += [f"{name}, {', '.join(words[:2])}", f"{name}, {', '.join(words[2:4] or words[:2])}"]
    return captions + [(pair, 0.20 / len(pairs)) for pair in pairs]


def read_lines(build: Path) -> list[dict]:
    return [json.loads(line) for line in (build / "captions.jsonl").read_text().splitlines()]


@torch.no_grad()
def token_states(texts: list[str], device: torch.device) -> torch.Tensor:
    """(n, TOKENS, 384) float16 states, padded like the pipeline pads them."""
    tokenizer, encoder = text_encoder()
    encoder = encoder.to(device)
    states = []
    for i in range(0, len(texts), 256):
        batch = tokenizer(
            texts[i : i + 256], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(device)
        states.append(encoder(batch.input_ids, batch.attention_mask)[0].half().cpu())
    return torch.cat(states)
