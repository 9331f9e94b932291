"""The reference implementation: without sharing it must equal the bare pipelines, one image at a time."""

from functools import partial

import pytest
import torch
from reference import alone, branched, count_calls, sample
from schedulers import (
    BROWNIAN,
    CALL_KWARGS,
    DIFFUSION,
    FLOW,
    REPRESENTATIVE,
    SCHEDULERS,
    STOCHASTIC,
    UNSEEDED,
    others_slow,
)
from tiny import PIPELINES, TinyPipeline, sd, sd3, sd_controlnet, sd_with_text
from torch import Tensor

STEPS = 5
SEEDS = [11, 12]


def tiny_for(name: str) -> TinyPipeline:
    tiny = sd3() if name in FLOW else sd()
    tiny.pipe.scheduler = SCHEDULERS[name]()
    return tiny


def bare(tiny: TinyPipeline, name: str, image: int, seed: int) -> Tensor:
    """Generate one image with the pipeline's own loop."""
    scheduler, generator = tiny.pipe.scheduler, torch.Generator().manual_seed(seed)
    inputs = {
        key: value[image : image + 1] if torch.is_tensor(value) else value
        for key, value in tiny.inputs(len(SEEDS)).items()
    }
    if name == BROWNIAN:
        scheduler.noise_sampler_seed = [seed]
    if name == UNSEEDED:
        scheduler.step = partial(scheduler.step, generator=generator)
    call = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "latent"}
    call |= CALL_KWARGS.get(name, {})
    return tiny.pipe(**inputs, **call, generator=[generator]).images


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_equals_the_bare_pipeline_without_sharing(name: str) -> None:
    tiny = tiny_for(name)
    kwargs = CALL_KWARGS.get(name, {})
    ours = sample(tiny, tiny.inputs(len(SEEDS)), alone(len(SEEDS)), SEEDS, STEPS, **kwargs)
    for image, seed in enumerate(SEEDS):
        assert relative(ours[image : image + 1], bare(tiny_for(name), name, image, seed)) < 1e-5


@pytest.mark.parametrize("name", ["dpm++2m", "dpm-sde", "flow-heun"])
def test_siblings_are_equal_until_they_branch(name: str) -> None:
    tiny = tiny_for(name)
    inputs, calls, seeds = tiny.inputs(3), count_calls(tiny, STEPS), [11, 11, 12]

    def shared(branch: int) -> Tensor:
        return sample(tiny, inputs, branched([[0, 1], [2]], branch), seeds, STEPS)

    independent, halfway, together = shared(0), shared(calls // 2), shared(calls)
    assert torch.equal(together[0], together[1])
    assert relative(halfway[0], halfway[1]) > 1e-3
    assert relative(halfway[0], independent[0]) > 1e-3
    assert torch.equal(halfway[2], independent[2])  # a group of one


def test_a_tree_branches_more_than_once() -> None:
    tiny, seeds = tiny_for("dpm++2m"), [11] * 3
    inputs = tiny.inputs(3)
    everyone, pair = [0, 1, 2], [0, 1]
    tree = sample(tiny, inputs, [[(2, everyone), (3, pair)]] * 2 + [[(2, everyone)]], seeds, STEPS)
    never_parted = sample(tiny, inputs, [[(2, everyone), (STEPS, pair)]] * 2 + [[(2, everyone)]], seeds, STEPS)
    two_levels = sample(tiny, inputs, branched([everyone], 2), seeds, STEPS)

    assert torch.equal(never_parted[0], never_parted[1])
    assert relative(tree[0], tree[1]) > 1e-3
    assert relative(tree[0], two_levels[0]) > 1e-3
    assert torch.equal(tree[2], two_levels[2])


@pytest.mark.parametrize("name", others_slow(DIFFUSION))
def test_with_a_stochastic_scheduler_the_seed_matters_after_the_start(name: str) -> None:
    tiny = tiny_for(name)
    call = tiny.inputs(1) | {"num_inference_steps": 4, "output_type": "latent"} | CALL_KWARGS.get(name, {})
    start = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def run(seed: int) -> Tensor:
        if name == BROWNIAN:
            tiny.pipe.scheduler.noise_sampler_seed = [seed]
        return tiny.pipe(**call, latents=start, generator=[torch.Generator().manual_seed(seed)]).images

    assert (not torch.equal(run(1), run(2))) == (name in STOCHASTIC)


EVERY_PIPELINE = PIPELINES | {
    "sd_with_text": sd_with_text,
    "sd_multi_controlnet": partial(sd_controlnet, controlnets=2),
}


@pytest.mark.parametrize(
    ("name", "ragged"), [*((name, False) for name in EVERY_PIPELINE), ("pixart", True), ("sana", True)]
)
def test_every_tiny_pipeline_depends_on_its_prompt(name: str, ragged: bool) -> None:
    tiny = EVERY_PIPELINE[name]()
    generators = [torch.Generator().manual_seed(5) for _ in range(3)]
    result = tiny.pipe(
        **tiny.inputs(3, ragged=ragged), num_inference_steps=3, output_type="latent", generator=generators
    )
    latents = getattr(result, tiny.output_field)
    assert latents.isfinite().all()
    for image in (1, 2):
        assert relative(latents[image], latents[0]) > 1e-2
