"""Digests of a fixed set of runs: images, plans and rows. Equal before and after a change that must change nothing.

    PYTHONPATH=tests python benchmarks/digests.py > before.txt

Digests hold on one machine with one version of torch; between machines rounding differs.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import schedulers
import tiny
import torch
from PIL import Image

import cotrunk
from cotrunk import Batching, Sharing, Skipping, generate, mini

STEPS = 8
EVERYONE = Sharing.published(share=0.5, similarity=-1.0)
FIXED: dict[str, Any] = {"sharing": Sharing.published(), "skipping": None}  # whatever the defaults are
TINY = ("sd", "sd_controlnet", "sdxl", "sd3", "flux", "pixart", "sana", "wan", "sd_perturbed")
PROMPTS = ["a red apple", "a green apple", "a yellow apple", "a tiger", "a sleeping tiger", "a violin"]


def digest(*values: Any) -> str:
    found = hashlib.blake2b(digest_size=8)
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach().float().contiguous().numpy()
        found.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return found.hexdigest()


def tree_of(branch: Any) -> Any:
    return (
        branch.images,
        branch.start,
        branch.stop,
        round(branch.similarity, 12),
        [tree_of(b) for b in branch.children],
    )


def facts_of(result: Any) -> str:
    plan = result.plan
    images = next(iter(result.output.values()))
    pixels = images if isinstance(images, torch.Tensor) else np.stack([np.asarray(image) for image in images])
    plan_digest = digest(plan.prompts, plan.seeds, [tree_of(tree) for tree in plan.trees])
    rows = (result.cost.used, result.cost.independent, sorted(result.spared.items()))
    return f"images {digest(pixels)} plan {plan_digest} rows {rows}"


def run(name: str, pipe: Any, *arguments: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            outcome = facts_of(generate(pipe, *arguments, **FIXED | options))
        except cotrunk.CotrunkError:  # its sentence may change
            outcome = "refused"
    print(f"{name:44} {outcome}", flush=True)


def tiny_pipelines() -> None:
    skipping = Skipping(tolerance=0.5)
    for name in TINY:
        made = getattr(tiny, name)()
        inputs = made.inputs(4)
        limits: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "latent"}
        run(f"{name} alone", made.pipe, **inputs, **limits, sharing=None)
        run(f"{name} shared", made.pipe, **inputs, **limits, sharing=EVERYONE, batching=Batching(max_rows=3), seed=1)
        own = {"sharing": replace(EVERYONE, noise="own", trunk_guidance=0.0 if made.rows_per_step == 2 else 1.0)}
        run(f"{name} own noise", made.pipe, **inputs, **limits, **own, skipping=skipping)
        run(f"{name} skipped", made.pipe, **inputs, **limits, sharing=EVERYONE, skipping=skipping)


def solvers() -> None:
    made = tiny.sd()
    for name, scheduler in schedulers.DIFFUSION.items():
        made.pipe.scheduler = scheduler()
        limits = {"num_inference_steps": STEPS, "output_type": "latent", **schedulers.CALL_KWARGS.get(name, {})}
        both = {"sharing": EVERYONE, "skipping": Skipping(tolerance=0.3), "guidance_interval": (0.2, 0.8)}
        run(f"sd {name}", made.pipe, **made.inputs(3), **limits, **both)


def embedded() -> None:
    rules = {
        "error": Skipping(),
        "uncorrected": Skipping(correct=False),
        "reuse": Skipping(rule="fixed", prediction="reuse"),
        "fixed": Skipping(rule="fixed", every=3),
        "paper": Skipping(rule="paper"),
        "released": Skipping(rule="released"),
        "tokens": Skipping(tolerance=0.01, tokens=0.5),
    }
    for model, load in (("mini", mini.load), ("mini-dit", mini.load_dit)):
        pipe = load()
        pipe.set_progress_bar_config(disable=True)
        limits: dict[str, Any] = {"num_inference_steps": 16, "guidance_scale": 4.0}
        for mode in ("flat", "adaptive", "tree"):
            run(f"{model} {mode}", pipe, PROMPTS, **limits, sharing=Sharing.published(mode=mode, share=0.4))
        run(f"{model} two each", pipe, PROMPTS, **limits, num_images_per_prompt=2)
        for name, rule in rules.items():
            interval = (0.1, 0.8) if name == "error" else None
            run(f"{model} {name}", pipe, PROMPTS, **limits, skipping=rule, guidance_interval=interval)
        applied(model, pipe, limits)


def applied(model: str, pipe: Any, limits: dict[str, Any]) -> None:
    """Skipping alone, in an ordinary call."""
    handle = getattr(cotrunk, "accelerate", None) or cotrunk.apply
    attached = handle(pipe, Skipping())
    try:
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        called = attached.pipe if hasattr(attached, "pipe") else pipe
        size = {"use_resolution_binning": False, "max_sequence_length": 64} if model == "mini-dit" else {}
        images = called(PROMPTS[:3], **limits, **size, generator=generators).images
    finally:
        with contextlib.suppress(AttributeError):
            attached.remove()
        if hasattr(cotrunk, "remove"):
            with contextlib.suppress(cotrunk.CotrunkError):
                cotrunk.remove(pipe)
    print(f"{model + ' accelerated':44} images {digest(*(np.asarray(image) for image in images))}", flush=True)


def command_line() -> None:
    """`cotrunk generate`: pictures on disk and what run.json says of them."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for model in ("mini", "mini-dit"):
            out = Path(folder) / model
            options = ["--steps", "12", "--guidance", "4", "--tolerance", "0.04", "--compare"]
            options += ["--mode", "tree", "--share", "0.4", "--noise", "common"]
            command = [sys.executable, "-m", "cotrunk", "generate", *PROMPTS, "--model", model, "--out", str(out)]
            subprocess.run([*command, *options], check=True, capture_output=True, env=one_thread)
            found = [digest(np.asarray(Image.open(path))) for path in sorted(out.rglob("*.png"))]
            report = json.loads((out / "run.json").read_text(encoding="utf-8"))
            images = [(i["file"], i["prompt"], i["seed"], i["group"], i["rows"], i["steps"]) for i in report["images"]]
            rows = {name: value for name, value in report["rows"].items() if name != "saving"}
            told = f"images {digest(images)} rows {re.sub(' ', '', str(rows))}"
            print(f"{model + ' command':44} pictures {digest(*found)} {told}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny_pipelines()
    solvers()
    embedded()
    command_line()
