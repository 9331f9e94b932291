"""Train the two matrices of `cotrunk.evaluation.emoji`, which give an image and its caption similar vectors.

    python alignment.py --build ../emoji/build

The loss is contrastive (Radford et al. 2021): in a batch, every image should find its caption and every caption its
image. The features of both are fixed. The training images are those of the embedded model, including the concepts that
are held out for evaluation. (The network knows nothing of a concept that it was not trained on: without those concepts,
2.5 % of their images find their own caption.) Validation uses images held out from both trainings. Prints how often an
image finds its own caption among those of all concepts in its style, and writes `emoji.safetensors`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from split import caption

from cotrunk.evaluation.emoji import WEIGHTS
from cotrunk.evaluation.networks import EfficientNetLite0
from cotrunk.planning.embedding import sentence_encoder

WIDTH, BATCH, EPOCHS, RATE, DECAY = 256, 256, 60, 1e-3, 0.05
TEMPERATURE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path(__file__).parent.parent / "emoji" / "build")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.manual_seed(0)
    lines = [json.loads(line) for line in (args.build / "captions.jsonl").read_text().splitlines()]
    with np.load(args.build / "images.npz") as found:
        images = torch.from_numpy(found["images"])
    if images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    network, encoder = EfficientNetLite0(), sentence_encoder("minilm")
    features = torch.cat([network.features(batch.float() / 255) for batch in images.split(64)]).float()
    texts = torch.from_numpy(encoder.encode([caption(line) for line in lines]))
    held = torch.tensor([line["held_out"] for line in lines])
    centre = features[~held].mean(dim=0)
    inputs = features - centre

    sides = [
        torch.nn.Parameter(torch.randn(width, WIDTH) / width**0.5) for width in (features.shape[1], texts.shape[1])
    ]
    optimiser = torch.optim.AdamW(sides, lr=RATE, weight_decay=DECAY)
    seen = (~held).nonzero().flatten()
    steps = EPOCHS * len(seen) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        chosen = seen[torch.randperm(len(seen))[:BATCH]]
        mine = F.normalize(inputs[chosen] @ sides[0], dim=1)
        theirs = F.normalize(texts[chosen] @ sides[1], dim=1)
        scores = mine @ theirs.T / TEMPERATURE
        own = torch.arange(len(chosen))
        loss = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}, loss {float(loss):.3f}", flush=True)

    with torch.no_grad():
        for name, which in (("trained on", ~held), ("held out", held)):
            ranks = []
            for style in sorted({line["style"] for line in lines}):
                candidates = sorted({line["concept"] for line in lines})
                asked = F.normalize(
                    torch.from_numpy(encoder.encode([f"{c}, {style} style" for c in candidates])) @ sides[1], dim=1
                )
                rows = [i for i, line in enumerate(lines) if which[i] and line["style"] == style and not line["copy"]]
                scores = F.normalize(inputs[rows] @ sides[0], dim=1) @ asked.T
                own = torch.tensor([candidates.index(lines[i]["concept"]) for i in rows])
                ranks += (scores > scores.gather(1, own[:, None])).sum(dim=1).tolist()
            found = np.array(ranks)
            print(f"{name}: {len(found)} images, top-1 {np.mean(found < 1):.1%}, top-5 {np.mean(found < 5):.1%}")
    state = {"images": sides[0].data, "texts": sides[1].data, "centre": centre}
    save_file({key: value.half().contiguous() for key, value in state.items()}, args.out)
    print(f"written to {args.out}, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
