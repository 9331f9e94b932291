"""Out of memory, NaN and infinity."""

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig
from running import EVERYONE, STEPS, close, run
from schedulers import SCHEDULERS
from tiny import flux, sd
from torch import Tensor, nn

from cotrunk import Batching, Branch, Plan, Settings, Sharing
from cotrunk.execution import Run
from cotrunk.generation import prepare
from cotrunk.planning.tree import flat_tree

# --- out of memory ------------------------------------------------------------------------------------------


def limit(module: nn.Module, name: str, rows: int) -> list[int]:
    """Raise out-of-memory for more rows than this, and return a list of the rows that ran."""
    method, seen = getattr(module, name), []

    @functools.wraps(method)
    def limited(*args: Any, **kwargs: Any) -> Any:
        n = len(args[0] if args else next(iter(kwargs.values())))
        if n > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(n)
        return method(*args, **kwargs)

    setattr(module, name, limited)
    return seen


def test_out_of_memory_halves_the_chunks_and_the_run_continues() -> None:
    tiny = sd()
    inputs = tiny.inputs(5)
    expected = run(tiny, inputs)
    seen = limit(tiny.pipe.unet, "forward", 3)
    job: Run = prepare(
        tiny.pipe, **inputs, settings=Settings(EVERYONE), num_inference_steps=STEPS, output_type="latent"
    )
    (batch,) = job.batches()
    assert job.batching.max_rows == 3  # 10, 5, 3
    assert seen == [2, 2, 3, 3, 3, 1, 3, 3, 3, 1]  # nothing is computed twice
    assert batch.cost == expected.cost
    assert close(batch.output.images, expected.images)
    assert torch.equal(batch.output.images, run(tiny, inputs, batching=Batching(max_rows=3)).images)


def test_out_of_memory_at_one_row_is_raised() -> None:
    tiny = sd()
    limit(tiny.pipe.unet, "forward", 0)
    with pytest.raises(torch.OutOfMemoryError):
        run(tiny, tiny.inputs(2))
    assert "step" not in vars(tiny.pipe.scheduler)


def test_out_of_memory_with_a_cache_is_raised() -> None:
    tiny = flux()
    tiny.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    limit(tiny.pipe.transformer, "forward", 2)
    with pytest.raises(torch.OutOfMemoryError):
        run(tiny, tiny.inputs(3))


def test_out_of_memory_in_the_decoder_halves_the_batch() -> None:
    tiny = sd()
    inputs = tiny.inputs(4)
    pairs = Sharing.published(share=0.5, similarity=-1.0, max_group=2)
    expected = run(tiny, inputs, sharing=pairs, output_type="pt")
    assert len(expected.plan.trees) == 2
    decoded = limit(tiny.pipe.vae, "decode", 2)
    batches = []
    result = run(tiny, inputs, sharing=pairs, output_type="pt", on_batch=batches.append)
    assert [len(batch.images) for batch in batches] == decoded == [2, 2]
    assert close(result.images, expected.images)
    assert result.cost == expected.cost  # only batches that finished


def test_a_row_limit_found_by_running_out_of_memory_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of several sizes are packed up to the new limit; halving the list of groups might not fit it."""
    trees, first = [], 0
    for size in [1, 4, 2, 5, 3] * 8:
        trees += flat_tree(range(first, first + size), 1, STEPS)
        first += size
    called, refused = [], []

    def call(run: Run, trees: Sequence[Branch], on_step: Any) -> tuple[int, ...]:
        images = tuple(image for tree in trees for image in tree.images)
        if len(images) > 24:
            refused.append(len(images))
            raise torch.OutOfMemoryError
        called.append(images)
        return images

    monkeypatch.setattr(Run, "_call", call)
    plan = Plan(("a",) * first, (0,) * first, tuple(trees), STEPS, STEPS)
    assert list(Run(sd().pipe, plan, None).batches()) == called
    assert len(refused) == 1
    assert [image for images in called for image in images] == list(range(first))
    # but for what is left of a batch of the plan
    assert len(called) <= 2 * len(list(plan.batches(refused[0] // 2)))


# --- images that fail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", [None, Sharing.published(share=0.5, similarity=0.9)])
def test_a_nan_in_one_image_does_not_affect_the_others(sharing: Sharing | None) -> None:
    tiny = sd()
    inputs = tiny.inputs(4)
    inputs["prompt_embeds"][2] = inputs["prompt_embeds"][0] + 0.01  # these two share
    good = run(tiny, inputs, sharing=sharing)
    assert good.failed == ()
    inputs["prompt_embeds"] = inputs["prompt_embeds"].clone()
    inputs["prompt_embeds"][1, 0, 0] = torch.nan
    result = run(tiny, inputs, sharing=sharing)
    assert result.failed == (1,)
    for image in (0, 2, 3):
        assert close(result.images[image], good.images[image])


def test_an_infinity_at_one_step_marks_the_image_as_failed() -> None:
    tiny = sd()
    tiny.pipe.scheduler = SCHEDULERS["ddim"]()

    def spoil(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step in (1, 2):  # and corrected later: the following steps look good
            tensors["latents"][2] = torch.inf if step == 1 else 0.0
        return tensors

    assert run(tiny, tiny.inputs(3), callback_on_step_end=spoil).failed == (2,)


@pytest.mark.parametrize("kind", ["pt", "np", "pil"])
def test_an_image_with_nan_from_the_decoder_has_failed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = sd()
    decode = tiny.pipe.vae.decode

    def overflowing(*args: Any, **kwargs: Any) -> Any:
        output = decode(*args, **kwargs)
        (output[0] if isinstance(output, tuple) else output.sample)[1, 0, 0, 0] = torch.inf
        return output

    monkeypatch.setattr(tiny.pipe.vae, "decode", overflowing)
    result = run(tiny, tiny.inputs(3), sharing=None, output_type=kind)
    assert result.failed == (1,)
    assert tiny.pipe.vae.decode is overflowing
