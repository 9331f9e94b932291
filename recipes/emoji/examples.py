"""The training data of the denoisers: latents of the images and token states of their captions."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from autoencoder import as_float, held_out, load_images
from captions import captions_of, digest, read_lines
from cotrunk.mini import TOKENS, text_encoder
from training import device, save

EMPTY = 0.1  # share of empty captions, needed for classifier-free guidance
COPIES = 0.1  # share of copies in another colour


@dataclass
class Examples:
    """Latents (n, channels, side, side) on the CPU, with the captions of each image."""

    latents: torch.Tensor
    copy: torch.Tensor  # (n,) which are copies in another colour
    states: torch.Tensor  # (captions, TOKENS, 384) float16; the first is the empty caption
    lengths: torch.Tensor  # (captions,) number of tokens without padding
    rows: torch.Tensor  # (n, most) captions of each image, rows of `states`
    weights: torch.Tensor  # (n, most)

    @classmethod
    def of(cls, build: Path) -> "Examples":
        """Return all images that are not held out. Encoding takes minutes, so it is done once and kept in `build`."""
        kept, data = build / "examples.pt", trained_on(build)
        if kept.exists() and (known := torch.load(kept))["data"] == data:
            return cls(**known["fields"])
        seen = ~held_out(build)
        lines = [line for line, use in zip(read_lines(build), seen.tolist(), strict=True) if use]
        options = [captions_of(line) for line in lines]
        texts = ["", *sorted({text for captions in options for text, _ in captions})]
        row = {text: i for i, text in enumerate(texts)}
        most = max(map(len, options))
        rows, weights = torch.zeros(len(options), most, dtype=torch.long), torch.zeros(len(options), most)
        for i, captions in enumerate(options):
            rows[i, : len(captions)] = torch.tensor([row[text] for text, _ in captions])
            weights[i, : len(captions)] = torch.tensor([weight for _, weight in captions])
        vae = AutoencoderKL.from_pretrained(build / "autoencoder").to(device()).eval()
        latents = latents_of(vae, load_images(build)[seen])
        states, lengths = token_states(texts)
        print(f"{len(lines)} images, {len(texts)} captions", flush=True)
        copy = torch.tensor([line["copy"] for line in lines])
        fields = {
            "latents": latents,
            "copy": copy,
            "states": states,
            "lengths": lengths,
            "rows": rows,
            "weights": weights,
        }
        save(kept, data=data, fields=fields)
        return cls(**fields)

    def draw(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw latents (n, channels, side, side), token states (n, TOKENS, 384) and their mask (n, TOKENS)."""
        share = torch.where(self.copy, COPIES / self.copy.sum(), (1 - COPIES) / (~self.copy).sum())
        image = torch.multinomial(share, n, replacement=True, generator=generator)
        choice = torch.multinomial(self.weights[image], 1, generator=generator)
        caption = self.rows[image].gather(1, choice)[:, 0]
        caption[torch.rand(n, generator=generator) < EMPTY] = 0
        mask = torch.arange(TOKENS) < self.lengths[caption, None]
        return self.latents[image], self.states[caption].float(), mask


def trained_on(build: Path) -> str:
    """Return a digest of the training data, including the autoencoder."""
    return digest(build / "captions.jsonl", *sorted((build / "autoencoder").glob("*.safetensors")))


@torch.no_grad()
def latents_of(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Return the latents of images in bytes, on the CPU.

    They are the mean of the encoder's posterior, not samples. The decoder is robust to posterior noise, which leaves
    room for the denoiser's errors.
    """
    return torch.cat([vae.encode(as_float(batch)).latent_dist.mode().cpu() for batch in images.split(32)])


@torch.no_grad()
def token_states(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states (n, TOKENS, 384) in float16, padded as in the pipelines, and numbers of tokens (n,)."""
    tokenizer, encoder = text_encoder()
    encoder = encoder.to(device())
    states, lengths = [], []
    for i in range(0, len(texts), 256):
        batch = tokenizer(
            texts[i : i + 256], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(device())
        states.append(encoder(batch.input_ids, batch.attention_mask)[0].half().cpu())
        lengths.append(batch.attention_mask.sum(dim=1).cpu())
    return torch.cat(states), torch.cat(lengths)
