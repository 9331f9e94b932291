"""Measure how much of the saving in rows arrives as a saving in time, for 1, 4, 16 and 64 prompts.

    python benchmarks/seconds.py --out docs/results/seconds      # 12 minutes on one core; continues where it stopped

Both embedded models, 50 steps. Runs in all steps and runs with fewer rows alternate in one process on one thread, so
that drift affects both. A run is a call of `generate` up to the latents, with everything but decoding. Times are CPU
times, which other processes hardly change; the table has the ratio in wall-clock time beside them. Writes `table.md`
and `points.jsonl`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from cotrunk import Batching, Plan, Sharing, Skipping, generate
from cotrunk.engine.denoiser_hook import parameters_of
from cotrunk.engine.rows import pick
from cotrunk.files import read_lines, write_text
from cotrunk.pipelines.loading import load_pipeline
from cotrunk.pipelines.schedulers import set_scheduler
from cotrunk.planning.tree import flat_tree

SUBJECTS = (
    "red apple", "owl", "pizza", "sunflower", "rocket", "guitar", "snowman", "cat", "fire engine", "house", "bicycle",
    "crown", "fish", "cactus", "teddy bear", "umbrella",
)  # fmt: skip
STYLES = ("noto", "twemoji", "flat", "glossy")
PROMPTS = [f"{subject}, {style} style" for subject in SUBJECTS for style in STYLES]
STEPS = 50
MODELS = {"mini": ("mini", None, 5.0), "mini, DPM++ 2M": ("mini", "dpm++2m", 5.0), "mini-dit": ("mini-dit", None, 3.0)}
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)  # rows of a forward
PAIRS = {1: 7, 4: 5, 16: 3, 64: 2}  # prompts -> runs of each kind
OWN = Sharing(share=0.2, noise="own", trunk_guidance=0.0)
COMMON = Sharing.published(share=0.3)
WAYS: dict[str, tuple[Sharing | None, Skipping | None]] = {
    "skipping": (None, Skipping()),
    "20 % shared, own noise": (OWN, None),
    "20 % shared, own noise, skipping": (OWN, Skipping()),
    "30 % shared, published": (COMMON, None),
    "30 % shared, published, skipping": (COMMON, Skipping()),
}


def plan(prompts: int, sharing: Sharing | None) -> Plan:
    """Return a plan with groups of four."""
    stop = int((sharing.share if sharing else 0) * STEPS + 1e-9)
    groups = [range(first, min(first + 4, prompts)) for first in range(0, prompts, 4)]
    trees = tuple(tree for group in groups for tree in flat_tree(group, stop, STEPS))
    is_common = sharing is not None and sharing.noise == "common"
    seeds = tuple(i // 4 * 4 if is_common else i for i in range(prompts))
    return Plan(tuple(PROMPTS[:prompts]), seeds, trees, STEPS, STEPS, sharing=sharing, threshold=0.0)


class Forwards:
    """Counts the forwards of a denoiser, and their rows."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module, self.rows = module, list[int]()

    def __enter__(self) -> "Forwards":
        self.hook = self.module.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _note(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        self.rows.append(len(args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))))


def run(pipe: Any, prompts: int, guidance: float, way: str | None, batching: Batching) -> dict[str, float]:
    """Run once, and return rows, CPU and wall-clock seconds, and the mean rows of a forward."""
    sharing, skipping = WAYS[way] if way else (None, None)
    with Forwards(getattr(pipe, "unet", None) or pipe.transformer) as forwards:
        begin, begin_wall = time.process_time(), time.perf_counter()
        result = generate(
            pipe,
            plan=plan(prompts, sharing),
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            skipping=skipping,
            batching=batching,
            output_type="latent",
        )
        spent, wall = time.process_time() - begin, time.perf_counter() - begin_wall
    return {
        "rows": result.cost.used,
        "cpu": spent,
        "wall": wall,
        "forwards": len(forwards.rows),
        "rows_of_forward": statistics.mean(forwards.rows),
    }


def row_times(pipe: Any, runs: int = 7) -> dict[int, float]:
    """Return the milliseconds of CPU time per row of forwards with so many rows: the median of some runs."""
    module, calls = getattr(pipe, "unet", None) or pipe.transformer, list[dict[str, Any]]()

    def note(_: torch.nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(dict(zip(parameters_of(module), args, strict=False)) | kwargs)

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    generate(pipe, PROMPTS[:1], sharing=None, skipping=None, num_inference_steps=2, output_type="latent")
    hook.remove()
    inputs, times = {rows: pick(calls[0], 2, [0] * rows) for rows in SIZES}, dict[int, list[float]]()
    for _ in range(runs):
        for rows, named in inputs.items():
            begin = time.process_time()
            module(**named)
            times.setdefault(rows, []).append(1000 * (time.process_time() - begin) / rows)
    return {rows: statistics.median(own) for rows, own in times.items()}


def table(points: list[dict[str, Any]]) -> str:
    """Return one line per model, number of prompts and way to save: medians, with the range of the ratios."""
    heads = ["model", "prompts", "images in a call", "saving by", "rows saved", "time saved", "time / rows"]
    heads += ["range", "in wall-clock time", "rows in a forward"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---:|---:|---|" + "---:|" * (len(heads) - 4)]
    for p in points:
        pairs = list(zip(p["full"], p["fewer"], strict=True))
        rows = 1 - p["fewer"][0]["rows"] / p["full"][0]["rows"]
        saved, wall = ([1 - few[kind] / full[kind] for full, few in pairs] for kind in ("cpu", "wall"))
        ratios = [value / rows for value in saved]
        cells = [p["model"], str(p["prompts"]), str(min(p["batch_size"], p["prompts"])), p["way"], f"{rows:.1%}"]
        cells += [f"{statistics.median(saved):.1%}", f"{statistics.median(ratios):.3f}"]
        cells += [f"{min(ratios):.3f} to {max(ratios):.3f}", f"{statistics.median(wall) / rows:.2f}"]
        cells += [f"{p['fewer'][0]['rows_of_forward']:.1f} of {p['full'][0]['rows_of_forward']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--prompts", nargs="+", type=int, default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--ways", nargs="+", default=["skipping"], choices=list(WAYS))
    parser.add_argument("--forwards", action="store_true", help="only print the time of a row by the rows of a forward")
    parser.add_argument("--batch-size", type=int, default=Batching().batch_size, help="images in one call")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    file = args.out / "points.jsonl"
    points = read_lines(file) if file.exists() else []
    batching = Batching(args.batch_size)
    for model in args.models:
        name, scheduler, guidance = MODELS[model]
        pipe = load_pipeline(name, "cpu")
        pipe.set_progress_bar_config(disable=True)
        if scheduler is not None:
            set_scheduler(pipe, scheduler)
        run(pipe, 1, guidance, args.ways[0], batching)  # warm-up
        if args.forwards:
            print(f"{model}, ms per row:", ", ".join(f"{ms:.1f} ({n} rows)" for n, ms in row_times(pipe).items()))
            continue
        for prompts in args.prompts:
            keys = [
                {"model": model, "prompts": prompts, "batch_size": args.batch_size, "way": way} for way in args.ways
            ]
            new = [key for key in keys if not any(key.items() <= point.items() for point in points)]
            if not new:
                continue
            found: dict[str | None, list[dict[str, float]]] = {None: [], **{key["way"]: [] for key in new}}
            for _ in range(PAIRS[prompts]):
                for way, own in found.items():
                    own.append(run(pipe, prompts, guidance, way, batching))
            for key in new:
                points.append(key | {"full": found[None], "fewer": found[key["way"]]})
                with file.open("a") as log:
                    log.write(json.dumps(points[-1]) + "\n")
            print(table(points[-len(new) :]).splitlines()[2:], flush=True)
            write_text(args.out / "table.md", table(points))


if __name__ == "__main__":
    main()
