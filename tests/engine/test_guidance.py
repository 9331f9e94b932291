"""Guidance in a part of the steps: which of two rows is skipped, and between which evaluations."""

from typing import Any

import diffusers
import pytest
import torch
from building_blocks import omnigen_transformer, quiet
from diffusers.pipelines.omnigen import pipeline_omnigen
from running import EVERYONE, STEPS, bare, close, run
from schedulers import SCHEDULERS
from tiny import TinyPipeline, sd

from cotrunk.execution import Batch


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
