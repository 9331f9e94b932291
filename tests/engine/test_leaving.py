"""Images that leave a call while it runs."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from running import close, denoiser, recorded
from tiny import TinyPipeline, pixart, sd, sd3

from cotrunk import Batch, Settings, Sharing, Skipping, StepEvent
from cotrunk.engine.leaving import Leaving
from cotrunk.execution import Run
from cotrunk.generation import prepare

STEPS = 8
BRANCH = 4
SHARED = Sharing.published(share=BRANCH / STEPS, similarity=-1.0)
OWN = Sharing(share=BRANCH / STEPS, similarity=-1.0, noise="own", trunk_guidance=1.0)


def prepared(tiny: TinyPipeline, images: int = 3, **settings: Any) -> Run:
    settings = {"sharing": None, "skipping": None} | settings
    inputs = tiny.inputs(images) | {"num_inference_steps": STEPS, "output_type": "latent"}
    return prepare(tiny.pipe, None, Settings(**settings), **inputs)


def ran(run: Run, leaves: dict[int, Sequence[int]]) -> Batch:
    """Run all trees; some images leave after a number of steps."""
    leaving = Leaving()
    run.leaving = leaving

    def leave(event: StepEvent) -> None:
        images = leaves.get(event.step + 1, ())
        if images:  # from another thread, as a service does it
            thread = threading.Thread(target=leaving.leave, args=images)
            thread.start()
            thread.join()

    leaving.leave(*leaves.get(0, ()))
    return run.run(run.plan.trees, on_step=leave)


@pytest.mark.parametrize("build", [sd, sd3, pixart])
def test_an_image_that_left_takes_no_row_and_changes_no_other(build: Callable[[], TinyPipeline]) -> None:
    tiny = build()
    whole = prepared(tiny).run(prepared(tiny).plan.trees)
    rows = recorded(denoiser(tiny))
    batch = ran(prepared(tiny), {3: [1]})
    assert batch.left == batch.failed == (1,)
    assert sum(rows) == batch.cost.used == whole.cost.used - (STEPS - 3) * tiny.rows_per_step
    assert batch.spared["left"] == (STEPS - 3) * tiny.rows_per_step
    assert batch.cost.used + sum(batch.spared.values()) == batch.cost.independent
    assert [letters.lower() for letters in batch.steps] == ["c" * STEPS, "cccxxxxx", "c" * STEPS]
    assert sum(batch.rows) == batch.cost.used
    made, wanted = (torch.as_tensor(each.output[tiny.output_field]) for each in (batch, whole))
    assert all(close(made[image], wanted[image], 1e-5) for image in (0, 2))
    assert made[1].isfinite().all()


@pytest.mark.parametrize("sharing", [SHARED, OWN])
def test_a_row_that_others_take_is_still_computed(sharing: Sharing) -> None:
    tiny = sd()
    run = prepared(tiny, sharing=sharing)
    whole = run.run(run.plan.trees)
    first = min(range(3), key=run.plan.seeds.__getitem__)  # its row is that of the trunk
    batch = ran(prepared(tiny, sharing=sharing), {1: [first]})
    assert batch.spared["left"] == (STEPS - BRANCH) * 2
    others = [image for image in range(3) if image != first]
    assert all(close(batch.output.images[i], whole.output.images[i], 1e-5) for i in others)
    everyone = ran(prepared(tiny, sharing=sharing), {1: others, 2: [first]})
    assert everyone.cost.used == 2 * 2
    assert everyone.left == (0, 1, 2)


@pytest.mark.parametrize("skipping", [Skipping(rule="fixed", every=2), Skipping(0.05), Skipping(rule="paper")])
def test_it_changes_no_image_that_skips(skipping: Skipping) -> None:
    tiny = sd()
    whole = prepared(tiny, skipping=skipping).run(prepared(tiny).plan.trees)
    batch = ran(prepared(tiny, skipping=skipping), {2: [0]})
    assert batch.cost.used + sum(batch.spared.values()) == batch.cost.independent
    assert batch.steps[1:] == whole.steps[1:]
    assert all(close(batch.output.images[i], whole.output.images[i], 1e-5) for i in (1, 2))


def test_all_may_leave_before_the_first_step() -> None:
    tiny = sd()
    rows = recorded(denoiser(tiny))
    batch = ran(prepared(tiny), {0: [0, 1, 2]})
    assert not rows
    assert batch.cost.used == 0
    assert batch.failed == (0, 1, 2)


def test_images_of_other_batches_are_not_touched() -> None:
    leaving = Leaving()
    leaving.leave(7, 9)
    assert leaving.left([1, 2]) == frozenset()
    assert leaving.left([9, 2]) == {9}
    run = prepared(sd())
    run.leaving = leaving
    batch = run.run(run.plan.trees)
    assert batch.left == () == batch.failed
    assert "left" not in batch.spared
