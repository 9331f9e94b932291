"""Hooks act on the calls of one pipeline: calls of the same modules by others pass as if there were no hook."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from running import EVERYONE, STEPS, generate, recorded
from tiny import TinyPipeline, sd
from torch import Tensor

from cotrunk import Batching, CotrunkError, Skipping, apply

SKIPPING = Skipping(rule="fixed", every=2, tokens=0.5)


def neighbour(tiny: TinyPipeline) -> diffusers.StableDiffusionPipeline:
    """Return a second pipeline with the same modules and its own scheduler, as in a server."""
    second = diffusers.StableDiffusionPipeline(**tiny.pipe.components, requires_safety_checker=False)
    second.scheduler = type(tiny.pipe.scheduler).from_config(tiny.pipe.scheduler.config)
    second.set_progress_bar_config(disable=True)
    return second


def images_of(pipe: Any, tiny: TinyPipeline, n: int = 3) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
    return pipe(**tiny.inputs(n), num_inference_steps=8, output_type="latent", generator=generators).images


def at_step(step: int, do: Callable[[], None]) -> Callable[..., dict[str, Tensor]]:
    def callback(pipe: Any, at: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if at == step:
            do()
        return tensors

    return callback


class AsObject(PipelineCallback):
    """A callback like those of diffusers."""

    tensor_inputs = ("latents",)

    def __init__(self, step: int, do: Callable[[], None]) -> None:
        super().__init__()
        self.function = at_step(step, do)

    def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: Any) -> Any:
        return self.function(pipeline, step_index, timestep, callback_kwargs)


@pytest.mark.parametrize("make", [at_step, AsObject])
@pytest.mark.parametrize("skipping", [None, SKIPPING])
def test_another_pipeline_with_the_same_unet_gives_its_own_images(make: Any, skipping: Skipping | None) -> None:
    tiny = sd()
    second = neighbour(tiny)
    expected = images_of(second, tiny)
    call = {"sharing": EVERYONE, "seed": 1, "skipping": skipping, "num_inference_steps": 8, "output_type": "latent"}
    undisturbed = generate(tiny.pipe, **tiny.inputs(3), **call)
    seen: list[Tensor] = []
    callback = make(2, lambda: seen.append(images_of(second, tiny)))
    result = generate(tiny.pipe, **tiny.inputs(3), **call, callback_on_step_end=callback)
    assert torch.equal(seen[0], expected)
    assert torch.equal(result.images, undisturbed.images)
    assert result.cost == undisturbed.cost


def test_another_thread_gives_its_own_images() -> None:
    tiny = sd()
    second = neighbour(tiny)
    expected, seen = images_of(second, tiny), []

    def in_a_thread() -> None:
        thread = threading.Thread(target=lambda: seen.append(images_of(second, tiny)))
        thread.start()
        thread.join()

    with apply(tiny.pipe, SKIPPING):
        tiny.pipe(**tiny.inputs(3), num_inference_steps=8, callback_on_step_end=at_step(4, in_a_thread))
    assert torch.equal(seen[0], expected)


def test_a_callback_may_call_the_denoiser_and_the_decoder_itself() -> None:
    """It uses another number of rows, and values that would count as a failed image of the run."""
    tiny, seen = sd(), []
    sample, text = torch.full((3, 4, 16, 16), torch.nan), torch.zeros(3, 7, 16)

    def own_calls() -> None:
        seen.append(tiny.pipe.unet(sample, 5, text).sample)
        tiny.pipe.vae.decode(sample)

    result = generate(
        tiny.pipe,
        **tiny.inputs(2),
        sharing=EVERYONE,
        num_inference_steps=STEPS,
        callback_on_step_end=at_step(0, own_calls),
    )
    assert len(seen[0]) == 3
    assert not result.failed
    assert result.cost.used == result.plan.cost.used


# --- callbacks that change what a group has in common -------------------------------------------------------


def changing(image: int) -> Callable[..., dict[str, Tensor]]:
    def callback(pipe: Any, at: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        latents = tensors["latents"].clone()
        latents[image if at == 0 else slice(0)] += 0.5
        return {"latents": latents}

    return callback


@pytest.mark.parametrize("skipping", [None, Skipping(rule="fixed", every=2)])
@pytest.mark.parametrize("image", [0, 1])
def test_a_change_of_one_image_in_a_trunk_is_refused(image: int, skipping: Skipping | None) -> None:
    tiny = sd()
    call = {"num_inference_steps": 8, "skipping": skipping, "callback_on_step_end": changing(image)}
    with pytest.raises(CotrunkError, match=r"sample differs among them from step 1 on \(changed by a callback"):
        generate(tiny.pipe, **tiny.inputs(2), sharing=EVERYONE, **call)


def test_a_change_of_one_image_that_shares_nothing_stays_its_own() -> None:
    tiny = sd()
    call = {"sharing": None, "seed": [1, 2], "num_inference_steps": STEPS, "output_type": "latent"}
    before = generate(tiny.pipe, **tiny.inputs(2), **call).images
    after = generate(tiny.pipe, **tiny.inputs(2), **call, callback_on_step_end=changing(1)).images
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


# --- interruptions ------------------------------------------------------------------------------------------

TWO_PER_BATCH = {"sharing": None, "batching": Batching(2), "num_inference_steps": STEPS}


def test_an_interruption_ends_the_run_and_marks_unfinished_images() -> None:
    tiny, steps = sd(), []

    def stop(pipe: Any, at: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(at)
        pipe._interrupt = len(steps) == STEPS + 2
        return tensors

    with pytest.warns(UserWarning, match="2 images were stopped before their last step .* 2 of 6 were not"):
        result = generate(tiny.pipe, **tiny.inputs(6), **TWO_PER_BATCH, callback_on_step_end=stop)
    assert len(steps) == STEPS + 2  # all of the first call, two of the second, none of the third
    assert (result.made, result.failed) == ((0, 1, 2, 3), (2, 3))
    assert len(result.images) == 4


def test_an_interruption_after_the_last_step_stops_nothing() -> None:
    tiny = sd()

    def stop(pipe: Any, at: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = at == STEPS - 1
        return tensors

    result = generate(tiny.pipe, **tiny.inputs(4), **TWO_PER_BATCH, callback_on_step_end=stop)
    assert (result.made, result.failed) == ((0, 1, 2, 3), ())


# --- copies of a pipeline with skipping applied -------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_copy_of_a_pipeline_with_skipping_does_not_skip(copied: Callable[[Any], Any]) -> None:
    tiny = sd()
    expected = images_of(tiny.pipe, tiny)
    with apply(tiny.pipe, Skipping(rule="fixed", every=2)) as applied:
        other = copied(tiny.pipe)
        assert type(other) is diffusers.StableDiffusionPipeline
        assert torch.equal(images_of(other, tiny), expected)
        other.unet = copy.deepcopy(other.unet)
        for weight in other.unet.parameters():
            weight.data.zero_()
        assert not torch.allclose(images_of(other, tiny), expected)  # its own parts, not the original's
        assert applied.rows_asked == 0
        images_of(tiny.pipe, tiny)
        assert 0 < applied.rows < applied.rows_asked
    assert type(tiny.pipe) is diffusers.StableDiffusionPipeline


def test_a_pipeline_with_skipping_can_be_pickled() -> None:
    tiny = sd()
    with apply(tiny.pipe, Skipping(rule="fixed", every=2)):
        other = pickle.loads(pickle.dumps(tiny.pipe))
    assert type(other) is diffusers.StableDiffusionPipeline
    assert torch.equal(images_of(other, tiny), images_of(tiny.pipe, tiny))


def test_rows_of_the_hooked_module_are_counted_once() -> None:
    tiny = sd()
    rows = recorded(tiny.pipe.unet)
    result = generate(tiny.pipe, **tiny.inputs(3), sharing=EVERYONE, num_inference_steps=STEPS)
    assert sum(rows) == result.cost.used
