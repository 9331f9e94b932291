"""Guidance in a part of the steps, and in trunks: which of two rows is skipped, and between which evaluations."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from building_blocks import omnigen_transformer, quiet
from diffusers.pipelines.omnigen import pipeline_omnigen
from running import EVERYONE, STEPS, bare, close, run
from schedulers import SCHEDULERS
from tiny import TinyPipeline, flux, sd, sd3, sd_controlnet, sd_perturbed, wan
from torch import Tensor

from cotrunk import CotrunkError, Sharing
from cotrunk.execution import Batch
from cotrunk.pipelines import automatic, compatibility
from cotrunk.planning import request

PAIRS = replace(EVERYONE, max_group=2)


class Processor:
    """OmniGen itself needs torchvision. As in OmniGen, the rows with the prompts come first."""

    max_image_size = 1024

    def __init__(self, tokenizer: Any, max_image_size: int) -> None:
        pass

    def __call__(self, prompts: list[str], images: Any, height: int, **options: Any) -> dict[str, Any]:
        tokens = 1 + (height // 4) ** 2  # of the time and of the latents
        texts = torch.stack([torch.full((3,), len(prompt)) for prompt in [*prompts, *[""] * len(prompts)]])
        rows, length = len(texts), texts.shape[1] + tokens
        return {
            "input_ids": texts,
            "attention_mask": torch.ones(rows, length, length),
            "position_ids": torch.arange(length).expand(rows, length),
            "input_pixel_values": [],
            "input_image_sizes": {},
        }


def omnigen(monkeypatch: pytest.MonkeyPatch) -> TinyPipeline:
    monkeypatch.setattr(pipeline_omnigen, "OmniGenMultiModalProcessor", Processor, raising=False)
    pipe = diffusers.OmniGenPipeline(
        transformer=omnigen_transformer(vocab_size=100, pad_token_id=99),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        vae=sd().pipe.vae,
        tokenizer=None,
    )

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return {"prompt": ["a" * (row + 1) for row in range(n)], "height": 32, "width": 32}

    return TinyPipeline(quiet(pipe), inputs)


def test_without_guidance_the_row_with_the_prompt_is_used_even_if_it_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = omnigen(monkeypatch)
    inputs = tiny.inputs(2)
    never = run(tiny, inputs, sharing=None, guidance_interval=(0, 0), guidance_scale=3.0)
    assert never.cost.used == 2 * STEPS
    assert close(never.images, bare(tiny, inputs, never.plan.seeds, guidance_scale=1.0))
    assert not close(never.images, bare(tiny, inputs, never.plan.seeds, guidance_scale=3.0), 1e-3)


@pytest.mark.parametrize(("name", "steps"), [("heun", 10), ("heun", 9), ("kdpm2", 10), ("ddim", 10)])
def test_guidance_switches_between_whole_scheduler_steps(name: str, steps: int) -> None:
    tiny = sd()
    tiny.pipe.scheduler = SCHEDULERS[name]()
    order = tiny.pipe.scheduler.order
    batches: list[Batch] = []
    arguments = {"sharing": EVERYONE, "num_inference_steps": steps, "on_batch": batches.append}
    for interval, guided in (((0.1, 0.8), range(1, round(0.8 * steps))), ((0, 1), range(steps)), ((1, 1), range(0))):
        run(tiny, tiny.inputs(1), guidance_interval=interval, **arguments)
        letters = batches.pop().steps[0]
        assert [letter.isupper() for letter in letters] == [at // order in guided for at in range(len(letters))]


# --- in trunks ----------------------------------------------------------------------------------------------


def values(tiny: TinyPipeline, result: Any) -> Tensor:
    return torch.as_tensor(result.output[tiny.output_field])


def strength(part: float, scale: float) -> float:
    """Return the scale of a pipeline whose strength beyond 1 is this part of another's."""
    return 1 + part * (scale - 1)


@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("noise", ["common", "own"])
@pytest.mark.parametrize(
    "build", [sd, wan, pytest.param(sd3, marks=pytest.mark.slow), pytest.param(sd_controlnet, marks=pytest.mark.slow)]
)
def test_a_part_of_the_guidance_in_the_trunk_equals_a_smaller_scale(
    build: Callable[[], TinyPipeline], noise: Any, part: float
) -> None:
    """A callback sees the same latents in the trunk as with the smaller scale. Images alone keep the full scale."""
    tiny, steps = build(), 6
    inputs, seen = tiny.inputs(3), list[list[Tensor]]()
    for scale, fraction in ((4.0, part), (strength(part, 4.0), 1.0)):
        samples: list[Tensor] = []
        sharing = replace(PAIRS, noise=noise, trunk_guidance=fraction)
        made = run(
            tiny,
            inputs,
            sharing=sharing,
            num_inference_steps=steps,
            guidance_scale=scale,
            on_step=lambda event, samples=samples: samples.append(event.prev_sample),
        )
        assert sorted(len(tree.images) for tree in made.plan.trees) == [1, 2]
        assert made.cost == made.plan.cost or scale == 1
        seen.append(samples)
        if scale == 4.0:
            alone = run(tiny, inputs, plan=made.plan.independent(), num_inference_steps=steps, guidance_scale=4.0)
            single = next(tree.images[0] for tree in made.plan.trees if len(tree.images) == 1)
            assert close(values(tiny, made)[single], values(tiny, alone)[single], 1e-5)
            places = [
                place for place, image in enumerate(i for t in made.plan.trees for i in t.images) if image != single
            ]
    assert close(seen[0][2][places], seen[1][2][places], 1e-4)
    assert close(seen[0][-1][places], seen[1][-1][places], 1e-4) == (part == 1)


@pytest.mark.parametrize("build", [sd, sd3, wan, sd_controlnet])
def test_a_trunk_without_guidance_takes_one_row(build: Callable[[], TinyPipeline]) -> None:
    tiny, batches = build(), list[Batch]()
    result = run(
        tiny,
        tiny.inputs(3),
        sharing=replace(PAIRS, trunk_guidance=0.0),
        guidance_scale=3.0,
        on_batch=batches.append,
    )
    assert result.cost == result.plan.cost
    # a pair: two steps of one row and two of four; the other image: four steps of two rows
    assert result.cost.used == 2 * 1 + 2 * 4 + 4 * 2
    assert result.spared == {"sharing": 24 - 18, "guidance": 0, "skipping": 0, "replay": 0}
    assert sorted(batches[0].steps) == ["CCCC", "ssCC", "ssCC"]
    assert sorted(batches[0].rows) == [5.0, 5.0, 8.0]
    assert result.plan.image_rows() == [batches[0].rows[batches[0].images.index(image)] for image in range(3)]


def test_in_a_trunk_without_guidance_the_row_with_the_prompt_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = omnigen(monkeypatch)
    inputs = {"prompt": ["abc", "abd"], "height": 32, "width": 32}
    seen: list[Tensor] = []
    for scale, part in ((3.0, 0.0), (1.0, 1.0), (3.0, 1.0)):
        sharing = replace(EVERYONE, share=0.9, encoder="minilm", trunk_guidance=part)
        samples: list[Tensor] = []
        run(tiny, inputs, sharing=sharing, guidance_scale=scale, on_step=lambda e, to=samples: to.append(e.prev_sample))
        seen.append(samples[2])  # at the end of the trunk
    assert close(seen[0], seen[1])
    assert not close(seen[0], seen[2], 1e-3)


def test_three_rows_of_guidance_are_refused() -> None:
    tiny = sd_perturbed()
    arguments = {"sharing": Sharing.published(share=0.5, similarity=-1.0, trunk_guidance=0.5)}
    with pytest.raises(CotrunkError, match="computes 3 rows per image, and trunk_guidance supports two"):
        run(tiny, tiny.inputs(2), **arguments)
    assert run(tiny, tiny.inputs(1), **arguments).cost.used == 3 * STEPS  # nothing is shared


@pytest.mark.parametrize(
    "arguments", [{"sharing": replace(PAIRS, trunk_guidance=0.0)}, {"guidance_interval": (0, 0.5)}]
)
def test_guidance_that_takes_more_rows_than_predicted_is_refused(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = sd_perturbed()
    monkeypatch.setattr(request, "guidance_rows", lambda pipe, arguments: 2)
    for module in (compatibility, automatic):
        monkeypatch.setattr(module, "is_perturbed", lambda pipe: False)
    with pytest.raises(
        CotrunkError, match="with 3 rows per image, and guidance_interval and trunk_guidance support two"
    ):
        run(tiny, tiny.inputs(2), **arguments)


def test_guidance_that_takes_no_row_stays() -> None:
    tiny = flux()
    inputs = tiny.inputs(2)
    with_it, without = (run(tiny, inputs, sharing=replace(EVERYONE, trunk_guidance=part)) for part in (1.0, 0.0))
    assert torch.equal(with_it.images, without.images)
    assert with_it.cost == without.cost == without.plan.cost
