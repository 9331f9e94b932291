"""What comes out of a call: the file of each image, and what the database says about it."""

import logging
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from ...errors import first_line
from ...pipelines.own_defaults import own_guidance
from ...pipelines.schedulers import SAMPLERS
from ...planning.plan import Plan
from ...runs.metadata import SOFTWARE, encoded, parameters_text
from ...runs.output import SUFFIXES
from ..images import ImageFiles
from ..shapes import ImageResult, Rows
from ..store import Store
from .asked import output_of
from .formed import Formed
from .wave import Finished, reason_of

log = logging.getLogger("cotrunk.worker")
NOT_FINITE = "The image contains NaN or infinite values: ask for it with another seed, or run the service in float32."


def rows_of(plan: Plan, letters: str, computed: float, *, hit: bool) -> Rows:
    """Return the rows of one image, and those that it saved, by way.

    Args:
        plan: of the image.
        letters: one per step, as `Batch.steps` has them.
        computed: rows that it took, with its part of a trunk that was computed for its group.
        hit: whether its trunk was stored. What it replays of a new trunk counts as shared.
    """
    each = plan.guidance_rows
    independent = float(plan.timesteps * each)
    skipping = float(sum(letter in "pP" for letter in letters) * each)
    replay = float(sum(letter in "rR" for letter in letters) * each) if hit else 0.0
    guidance = float(sum(letter == "c" for letter in letters) * (each - 1))
    sharing = max(0.0, independent - computed - skipping - replay - guidance)
    return {
        "independent": independent,
        "computed": computed,
        "sharing": sharing,
        "skipping": skipping,
        "guidance": guidance,
        "replay": replay,
    }


class Delivery:
    """Writes finished images.

    Args:
        store: the database.
        files: the folder of images.
        worker: the name of this worker.
        pipe: the pipeline.
        model: its name.
    """

    def __init__(self, store: Store, files: ImageFiles, worker: str, pipe: Any, model: str) -> None:
        self._store, self._files, self._worker = store, files, worker
        self._model, self._scheduler = Path(model).name, type(pipe.scheduler).__name__
        self._guidance = own_guidance(pipe)

    def deliver(self, finished: Finished, cancelled: set[str]) -> float:
        """Write the images of a finished call, and then say so in the database, once for all of them.

        Returns:
            The rows that were computed for images that are done now.

        Args:
            finished: the call.
            cancelled: ids of images that were cancelled.
        """
        images: Sequence[Any] | None = getattr(finished.batch.output, "images", None)
        place = {member.id: i for i, member in enumerate(finished.call.members)}
        done, failed = list[tuple[str, dict[str, Any]]](), list[tuple[str, str]]()
        for group in finished.groups:
            for image, member in enumerate(group.members):
                at = place[member.id]
                if member.id in cancelled or not member.is_wanted:
                    continue
                if images is None:
                    failed.append((member.id, "The pipeline returned no images."))
                elif finished.batch.images[at] in finished.batch.failed:
                    failed.append((member.id, NOT_FINITE))
                else:
                    try:
                        done.append((member.id, {**self._written(group, image, finished, at, images[at])}))
                    except Exception as error:  # the disk is full, or the format cannot hold the image
                        log.error("%s: %s", member.id, first_line(error))
                        failed.append((member.id, reason_of(error)))
        self._store.finish_all(self._worker, done)
        for member_id, reason in failed:
            self._store.fail(self._worker, member_id, reason)
        return float(sum(finished.batch.rows[place[member_id]] for member_id, _ in done))

    def _written(self, group: Formed, image: int, finished: Finished, at: int, painted: Any) -> ImageResult:
        member, plan, batch = group.members[image], group.plan, finished.batch
        output = output_of(member.request)
        tree = next(tree for tree in plan.trees if image in tree.images)
        trunk = finished.trunks.get(group.id)
        rows = rows_of(plan, batch.steps[at], batch.rows[at], hit=trunk is not None and trunk["hit"])
        scale = member.request.settings.get("guidance_scale")
        scale = self._guidance if scale is None else scale
        facts = {
            "Steps": plan.steps,
            "Sampler": SAMPLERS.get(self._scheduler, self._scheduler),
            "CFG scale": None if scale is None else f"{scale:g}",
            "Seed": plan.seeds[image],
            "Size": f"{painted.size[0]}x{painted.size[1]}",
            "Model": self._model,
            "Version": SOFTWARE,
        }
        parameters = parameters_text(member.request.prompt, member.request.settings.get("negative_prompt"), facts)
        # its own words only: those of its group's other images are in the database
        texts = {
            "prompt": member.request.prompt,
            "seed": str(plan.seeds[image]),
            "image": member.id,
            "group": group.id,
            "rows": f"{rows['computed']:g}",
            "software": SOFTWARE,
        }
        content = encoded(painted, output, parameters, "", texts)
        name = f"{member.id}.{SUFFIXES[output.format]}"
        self._files.write(name, content)
        result: ImageResult = {
            "file": name,
            "bytes": len(content),
            "width": painted.size[0],
            "height": painted.size[1],
            "seed": plan.seeds[image],
            "steps": plan.steps,
            "guidance_scale": scale,
            "group": group.id,
            "shared_with": [group.members[other].id for other in tree.images if other != image],
            "rows": rows,
            "trunk": trunk,
            "waited": max(0.0, group.formed - member.accepted),
            "seconds": time.time() - group.formed,
        }
        if batch.images[at] in batch.flagged:
            result["flagged"] = True
        return result


def png(painted: Any) -> bytes:
    """Return a preview as the content of a PNG file."""
    buffer = BytesIO()
    painted.save(buffer, format="PNG")
    return buffer.getvalue()
