"""Try variants of the trunk once each, in an independent sampling loop: which one keeps most of an image?

    python benchmarks/trunks.py --out docs/results/sharing --cells build/cells      # an hour on one core

The loop (`plain_sampling`) uses nothing of cotrunk's engine: it also checks what `benchmarks/sharing.py` measures with
`cotrunk.generate`. 20 steps (mini: DDIM, mini-dit: DPM++ 2M), 30 % of them shared, bfloat16 with float32 samples, 256
prompts in groups of four (see `similar_prompts`), two runs. Frechet distances are to independent images from other
seeds in 50 steps. Measured cells are kept in --cells; a later call continues.
"""

import functools
import json
from dataclasses import asdict
from typing import Any

import torch
from plain_sampling import GUIDANCE, Model, Sampling, Variant
from sharing_measures import Cells, Gauge, Values, common_arguments, figures, joined
from similar_prompts import KINDS, PROMPTS

from cotrunk.evaluation.metrics import Figure
from cotrunk.files import read_lines, write_text

FLAT, OFF, RAMP = ((4, 6),), (0.0, 0.0), (0.0, 1.0)
MEASURES = ("alignment", "diversity", "bleed", "frechet")
PUBLISHED, OWN = "common noise, guided (SAGE)", "own noise, unguided"
SHORT = "own noise, unguided, 25 % shared"  # as long as the longest branches of the trees
REFERENCE, FULL, EQUAL = Variant(steps=50, runs=100), Variant(), "independent, equal cost"
TAGS = {PUBLISHED: "SAGE", EQUAL: "15 steps", OWN: "own", "independent, 5 steps": "5 steps"}
VARIANTS = {
    "independent": FULL,
    EQUAL: Variant(steps=15),
    PUBLISHED: Variant(stops=FLAT, noise="common"),
    OWN: Variant(stops=FLAT, guidance=OFF),
    "own noise, unguided, representative rotates": Variant(stops=FLAT, guidance=OFF, rotate=True),
    "independent, 5 steps": Variant(steps=5),
    "independent, 5 steps, mean of 16 unconditional x0 at the first": Variant(steps=5, first=16),
    "common noise, unguided": Variant(stops=FLAT, noise="common", guidance=OFF),
    "own noise, guided": Variant(stops=FLAT),
    "own noise, guidance ramps up": Variant(stops=FLAT, guidance=RAMP),
    "own noise, unguided, medoid": Variant(stops=FLAT, guidance=OFF, condition="medoid"),
    "own noise, unguided, branch points from a probe": Variant(stops=((4, 5),), guidance=OFF, probe=True),
    SHORT: Variant(stops=((4, 5),), guidance=OFF),
    "own noise, unguided, trees of 16": Variant(stops=((16, 3), (8, 4), (4, 5)), guidance=OFF),
    "own noise, unguided, trees of 8": Variant(stops=((8, 4), (4, 5)), guidance=OFF),
    "common noise, guidance ramps up": Variant(stops=FLAT, noise="common", guidance=RAMP),
}


def measure(model: Model, variant: Variant, cells: Cells, gauge: Gauge, run: int) -> Values:
    """Return one run of a variant, from its file if there is one.

    Shared images with their own noise are also compared with the independent ones.
    """

    def make() -> dict[str, Any]:
        compare = variant.noise == "own" and bool(variant.stops)
        own = torch.from_numpy(measure(model, FULL, cells, gauge, run)["images"]) if compare else None
        sampling = Sampling(model, variant, run)
        images = sampling.images(range(len(PROMPTS)))
        largest = max((size for size, _ in variant.stops), default=1)
        facts = {"rows": sampling.rows / len(images), "largest": largest, "images": images.numpy()}
        return facts | gauge.measure(images, own)

    return cells.get({"loop": 1, "model": model.name, "run": run, **asdict(variant)}, make)


def measure_all(model: Model, variant: Variant, cells: Cells, gauge: Gauge, runs: int) -> Values:
    """Return the runs of a variant as one."""
    return joined([measure(model, variant, cells, gauge, run) for run in range(runs)])


def main() -> None:
    parser = common_arguments(__doc__, list(GUIDANCE))
    parser.add_argument("--variants", type=int, help="measure only so many of the variants, most important first")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    cells, gauge = Cells(args.cells), Gauge()
    models = [Model(name, compiled=args.compile and name == "mini") for name in args.models]
    file = args.out / "trunks.jsonl"
    points = read_lines(file) if file.exists() else []
    for name, variant in list(VARIANTS.items())[: args.variants]:
        for model in models:
            settings = json.loads(json.dumps(asdict(variant)))
            head = {"model": model.name, "variant": name, "runs": args.runs, "settings": settings}
            if not any(head.items() <= point.items() for point in points):
                get = functools.partial(measure_all, model, cells=cells, gauge=gauge, runs=args.runs)
                cell = get(variant=variant)
                others = ["independent, 5 steps"] if variant.steps == 5 else [PUBLISHED, EQUAL]
                others += [OWN] if name.startswith(f"{OWN},") else []
                known = {other: get(variant=VARIANTS[other]) for other in others if other != name}
                own = [head | {"kind": kind} | figures(cell, get(variant=REFERENCE), kind, known) for kind in KINDS]
                points += own
                with file.open("a") as log:
                    log.writelines(json.dumps(point) + "\n" for point in own)
                print(f"{model.name}, {name}: {own[0]['rows']:.2f} rows", flush=True)
            write_text(args.out / "trunks.md", table(points))


def table(points: list[dict[str, Any]]) -> str:
    """Return one line per variant: value, then changes in per cent.

    They are from SAGE, from independent sampling at equal cost, and, for variants of it, from own noise without
    guidance. Each setting is shown with the largest number of runs that it was measured with.
    """
    heads = ["model", "groups", "variant", "images", "rows", *MEASURES, "distance to its own image", "PSNR of it"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * 3 + "|---:" * (len(heads) - 3) + "|"]
    most = {(p["model"], p["kind"], p["variant"]): p for p in sorted(points, key=lambda p: p["runs"])}
    for p in sorted(most.values(), key=lambda p: (p["model"], p["kind"], list(VARIANTS).index(p["variant"]))):
        cells = [p["model"], p["kind"], p["variant"], str(p["images"]), f"{p['rows']:.2f}"]
        for name in MEASURES:
            value, how = (
                (f"{p[name]['value']:.0%}", "behind") if name == "bleed" else (f"{p[name]['value']:.3g}", "against")
            )
            changes = {
                tag: Figure(**p[f"{name} {how} {other}"]) for other, tag in TAGS.items() if f"{name} {how} {other}" in p
            }
            shown = [f"{t} {100 * c.value:+.1f} [{100 * c.low:+.1f}, {100 * c.high:+.1f}]" for t, c in changes.items()]
            cells.append("; ".join([value, *shown]))
        for name, digits in (("distance", 3), ("psnr", 1)):
            ends = [f"{p[name][end]:.{digits}f}" for end in ("value", "worst")] if name in p else []
            cells.append(", worst twentieth ".join(ends))
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        "Changes are in per cent (bleed: points). Frechet distances can be compared among equal numbers of images only."
    )
    return "\n".join([note, "", *lines]) + "\n"


if __name__ == "__main__":
    main()
