"""Before a large run: which setting, on a sample of the user's own prompts, gives the same quality for the fewest rows?

Settings are tried from the most telling on, until the rows are used up. Each is held against independent sampling in
all steps; fewer steps are tried first, for they are the rival that counts.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..errors import CotrunkError
from ..files import write_bytes, write_text
from ..generation import prepare
from ..sharing import Sharing
from ..skipping import Skipping
from . import metrics
from .networks import AlignmentNetwork, FeatureNetwork

SHARES, TOLERANCES, INTERVAL = (0.2, 0.3, 0.4), (0.01, 0.03, 0.1), (0.1, 0.8)
FEWER = (0.67, 0.5, 0.34, 0.25, 0.17, 0.12)  # parts of the steps that are asked for


@dataclass(frozen=True)
class Setting:
    """What `cotrunk generate --settings` takes.

    Attributes:
        steps: of the solver.
        share: part of them that groups share; 0 for independent sampling.
        similarity: at least this similar; None for the encoder's own threshold.
        tolerance: of skipping; None for none.
        guidance_interval: fractions of the steps between which guidance is on; None for all.
    """

    steps: int
    share: float = 0.0
    similarity: float | None = None
    tolerance: float | None = None
    guidance_interval: tuple[float, float] | None = None

    @property
    def family(self) -> str:
        """Its line in the figure."""
        parts = [f"shared {self.share:.0%}" if self.share else "independent"]
        parts += [f"similarity {self.similarity:g}"] if self.similarity is not None else []
        parts += ["skipping"] if self.tolerance is not None else []
        parts += ["guided in part"] if self.guidance_interval is not None else []
        return ", ".join(parts)

    def arguments(self) -> dict[str, Any]:
        """For `cotrunk.generate`."""
        similarity: float | Literal["auto"] = "auto" if self.similarity is None else self.similarity
        return {
            "sharing": Sharing(share=self.share, similarity=similarity) if self.share else None,
            "skipping": None if self.tolerance is None else Skipping(tolerance=self.tolerance),
            "guidance_interval": self.guidance_interval,
            "num_inference_steps": self.steps,
        }


@dataclass(frozen=True)
class Point:
    """A setting, what it cost for one picture, and how good it was.

    Attributes:
        alignment: of a picture with its prompt.
        behind: alignment of independent sampling in all steps, less this one's, prompt by prompt.
        distance: kernel distance to the pictures of independent sampling in all steps.
        saved_by_sharing: part of the rows.
    """

    setting: Setting
    rows: float
    seconds: float
    alignment: metrics.Figure
    behind: metrics.Figure
    distance: metrics.Figure
    saved_by_sharing: float


@dataclass(frozen=True)
class Tuned:
    """What a sweep found.

    Attributes:
        points: in the order in which they were tried; the first is independent sampling in all steps.
        floor: kernel distance between two sets of pictures by all steps from different noise.
        same_quality: the setting with the fewest rows that is not measurably worse than the first point.
        half_rows: the best setting for at most half its rows.
        sharing_pays: whether a shared point lies on the frontier.
        left_out: settings that the budget had no room for.
    """

    points: list[Point]
    floor: metrics.Figure
    same_quality: Point
    half_rows: Point | None
    sharing_pays: bool
    left_out: int


def settings(steps: int, similarity: float | None = None) -> Iterator[Setting]:
    """What is tried, the most telling first."""
    yield Setting(steps)
    fewer = list(dict.fromkeys(max(2, round(part * steps)) for part in FEWER))
    yield from (Setting(few) for few in fewer)
    yield from (Setting(steps, tolerance=tolerance) for tolerance in TOLERANCES)
    yield from (Setting(steps, share, similarity) for share in SHARES)
    yield from (Setting(steps, share, similarity, tolerance) for share in SHARES[:2] for tolerance in TOLERANCES)
    yield from (Setting(few, SHARES[1], similarity) for few in fewer[:4])
    for share, tolerance in itertools.product((0.0, SHARES[1]), TOLERANCES[:2]):
        yield Setting(steps, share, similarity if share else None, tolerance, INTERVAL)


def tune(
    pipe: Any,
    prompts: Sequence[str],
    features: FeatureNetwork,
    alignment: AlignmentNetwork,
    out: Path,
    *,
    steps: int = 30,
    similarity: float | None = None,
    budget: int | None = None,
    seed: int = 0,
    on_point: Callable[[Point], None] = lambda point: None,
    **arguments: Any,
) -> Tuned:
    """Try settings on these prompts until `budget` denoiser rows are used up; None: all of them.

    Pictures are kept in `out/tried/`, and a setting that is there is not tried again.

    Raises:
        CotrunkError: too few prompts, or a budget that is not enough for independent sampling.
    """
    if len(prompts) < 4:
        raise CotrunkError(f"{len(prompts)} prompts are too few to compare settings on: give four or more.")
    texts = alignment.of_texts(prompts)
    used, left_out = 0.0, 0
    points: list[Point] = []
    first: dict[str, Any] = {}
    for setting in settings(steps, similarity):
        cost = _predicted(pipe, prompts, setting, seed, arguments)
        if not points:
            cost *= 2  # the floor needs the same once more
            if budget is not None and cost > budget:
                raise CotrunkError(f"A budget of {budget} rows is not enough: independent sampling takes {cost:.0f}.")
        elif budget is not None and used + cost > budget:
            left_out += 1
            continue
        made = _made(pipe, prompts, setting, seed, arguments, out)
        used += made["rows"] * len(prompts) * (1 if points else 2)
        vectors = alignment.of_pictures(made["pictures"])
        scores, seen = metrics.alignment(vectors, texts), features.features(made["pictures"])
        if not points:
            other = _made(pipe, prompts, setting, seed + 1, arguments, out)
            first = {"scores": scores, "features": seen, "other": features.features(other["pictures"])}
        point = Point(
            setting=setting,
            rows=made["rows"],
            seconds=made["seconds"],
            alignment=metrics.mean(scores),
            behind=metrics.difference(first["scores"], scores),
            distance=metrics.kernel(seen, first["features"] if points else first["other"]),
            saved_by_sharing=made["shared"],
        )
        points.append(point)
        on_point(point)
    floor = points[0].distance
    return _recommended(points, floor, left_out)


def _recommended(points: list[Point], floor: metrics.Figure, left_out: int) -> Tuned:
    """The frontier's answers to the two questions that people ask."""
    full = points[0]
    as_good = [p for p in points if p.behind.low <= 0 and p.distance.low <= floor.high]
    cheap = [p for p in points if p.rows <= full.rows / 2]
    same = min(as_good, key=lambda p: p.rows, default=full)
    half = max(cheap, key=lambda p: p.alignment.value, default=None)
    alone = [p for p in points if not p.setting.share]
    pays = any(
        all(other.rows > p.rows or other.alignment.value < p.alignment.value for other in alone)
        for p in points
        if p.setting.share
    )
    return Tuned(points, floor, same, half, pays, left_out)


def _predicted(pipe: Any, prompts: Sequence[str], setting: Setting, seed: int, arguments: dict[str, Any]) -> float:
    """Rows of a setting before it runs; what skipping and guidance spare is not known before."""
    return prepare(pipe, prompts, seed=seed, **{**arguments, **setting.arguments()}).plan.cost.used


def _made(
    pipe: Any, prompts: Sequence[str], setting: Setting, seed: int, arguments: dict[str, Any], out: Path
) -> dict[str, Any]:
    """Pictures (n, 3, height, width) in [0, 1] of a setting, and what one cost."""
    facts = [list(prompts), asdict(setting), seed, type(pipe.scheduler).__name__, arguments]
    mark = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]
    path = out / "tried" / f"{mark}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        run = prepare(pipe, prompts, seed=seed, **{**arguments, **setting.arguments(), "output_type": "pt"})
        made: dict[int, np.ndarray] = {}
        rows, seconds, shared = 0, 0.0, 0
        for wave in run.waves():
            for image, picture in zip(wave.images, wave.output.images, strict=True):
                made[image] = (picture.float().clamp(0, 1) * 255).round().byte().cpu().numpy()
            rows += wave.cost.used
            seconds += wave.seconds["denoise"]
            shared += wave.spared["sharing"]
        count = len(prompts)
        costs = {"rows": rows / count, "seconds": seconds / count, "shared": shared / run.plan.cost.independent}
        stacked = np.stack([made[image] for image in range(count)])
        write_bytes(path, lambda file: np.savez(file, pictures=stacked, costs=json.dumps(costs)))
    with np.load(path) as found:
        return {"pictures": torch.from_numpy(found["pictures"]).float() / 255, **json.loads(str(found["costs"]))}


def pictures_of(
    pipe: Any, prompts: Sequence[str], setting: Setting, seed: int, arguments: dict[str, Any], out: Path
) -> np.ndarray:
    """(n, 3, height, width) bytes of a setting that has been tried."""
    made = _made(pipe, prompts, setting, seed, arguments, out)["pictures"]
    return (made * 255).round().byte().numpy()


def write_settings(point: Point, path: Path) -> None:
    """A file for `cotrunk generate --settings`."""
    write_text(path, json.dumps(asdict(point.setting), indent=1) + "\n")


def read_settings(path: Path) -> Setting:
    """What `write_settings` wrote.

    Raises:
        CotrunkError: no such file, or one with other entries.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if entries.get("guidance_interval") is not None:
            entries["guidance_interval"] = tuple(entries["guidance_interval"])
        return Setting(**entries)
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise CotrunkError(f"{path} is no file of settings: give one that cotrunk tune wrote.") from error
