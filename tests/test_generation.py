"""`plan`, `stream` and `generate`; a plan that runs in several parts; how results are printed."""

import subprocess
import sys
from collections import Counter
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from running import EVERYONE, STEPS, close, denoiser, generate, recorded, run
from tiny import sd, sd_with_text, sdxl

import cotrunk
from cotrunk import Batching, CotrunkError, Plan, Settings, Sharing, Skipping, StepEvent, plan, stream
from cotrunk.generation import prepare

PROMPTS = ["a red apple", "a green apple", "a red apple, drawn", "a dog"]
CALL = {"num_inference_steps": STEPS, "seed": 3}


def test_plan_is_the_plan_of_generate_and_runs_nothing() -> None:
    tiny = sd_with_text()
    rows = recorded(tiny.pipe.unet)
    made = plan(tiny.pipe, PROMPTS, sharing=EVERYONE, num_images_per_prompt=2, **CALL)
    assert rows == []
    result = generate(tiny.pipe, PROMPTS, sharing=EVERYONE, num_images_per_prompt=2, output_type="latent", **CALL)
    assert made == result.plan
    assert made.cost.saving > 0
    assert plan(tiny.pipe, PROMPTS, settings=Settings(EVERYONE, steps=STEPS), seed=3, num_images_per_prompt=2) == made
    again = generate(tiny.pipe, plan=made, output_type="latent", num_inference_steps=STEPS)
    assert torch.equal(again.images, result.images)


def test_plan_needs_no_denoiser() -> None:
    tiny = sd_with_text()
    whole = plan(tiny.pipe, PROMPTS, sharing=EVERYONE, **CALL)
    vars(tiny.pipe)["unet"] = SimpleNamespace(config=tiny.pipe.unet.config)  # what load_pipeline(denoiser=False) leaves
    assert plan(tiny.pipe, PROMPTS, sharing=EVERYONE, **CALL) == whole


def test_plan_says_which_prompts_are_cut_and_which_read_alike() -> None:
    tiny = sd_with_text()
    long = " ".join(["apple"] * 99)
    findings = plan(tiny.pipe, [long, "a dog", "a dog", f"{long} pie"], sharing=EVERYONE, **CALL).findings
    assert [prompt for prompt, _ in findings.truncated] == [0, 3]
    assert findings.truncated[1][1].endswith("pie")
    assert findings.alike == ((0, 3),)  # duplicates give no warning


def test_stream_yields_the_batches_of_generate() -> None:
    tiny = sdxl()
    call: dict[str, Any] = {**tiny.inputs(5), "output_type": "latent", "batching": Batching(2), "sharing": None, **CALL}
    received: list[Any] = []
    result = generate(tiny.pipe, **call, on_batch=received.append)
    batches = list(stream(tiny.pipe, **call))
    assert [batch.images for batch in batches] == [batch.images for batch in received] == [(0, 1), (2, 3), (4,)]
    assert torch.equal(torch.cat([batch.output.images for batch in batches]), result.images)


def test_stream_refuses_before_the_first_batch_is_asked_for() -> None:
    with pytest.raises(CotrunkError, match="takes no argument 'guidance'"):
        stream(sd_with_text().pipe, PROMPTS, guidance=3.0)


@pytest.mark.parametrize("skipping", [None, Skipping(tolerance=1.0)])
def test_parts_of_a_plan_give_the_images_of_the_whole(skipping: Skipping | None) -> None:
    tiny = sd()
    inputs, sharing = tiny.inputs(6), Sharing.published(share=0.5, similarity=-1.0, max_group=2)
    settings = Settings(sharing, skipping, steps=STEPS)
    whole = generate(tiny.pipe, **inputs, settings=settings, seed=3, output_type="latent")
    assert len(whole.plan.trees) > 2
    images: dict[int, torch.Tensor] = {}
    used = 0
    for part in (whole.plan.trees[:1], whole.plan.trees[1:]):  # as two processes would
        half = prepare(tiny.pipe, **inputs, settings=settings, plan=whole.plan, output_type="latent")
        wanted = [image for tree in part for image in tree.images]
        batch = half.run(half.plan.select(wanted))
        assert sorted(batch.images) == sorted(wanted)
        images |= dict(zip(batch.images, batch.output.images, strict=True))
        used += batch.cost.used
    assert close(torch.stack([images[image] for image in range(6)]), whole.images)
    assert used == whole.cost.used


def test_only_trees_of_the_plan_run() -> None:
    tiny = sd()
    job = prepare(tiny.pipe, **tiny.inputs(3), settings=Settings(EVERYONE, steps=STEPS), output_type="latent")
    rows = recorded(denoiser(tiny))
    (tree,) = job.plan.trees
    other = job.plan.independent().trees
    for trees in ((), (tree, tree), other, (tree, other[0])):
        with pytest.raises(CotrunkError, match="not different trees of the plan"):
            job.run(trees)
    with pytest.raises(CotrunkError, match=r"The images \[0, 1, 2\] share a trunk: select \[1\] too, or none"):
        job.plan.select([0, 2])
    with pytest.raises(CotrunkError, match="has the images 0 to 2, and not 7"):
        job.plan.select([0, 7])
    assert rows == []
    assert job.plan.select([]) == ()


def test_values_that_users_print_are_short() -> None:
    tiny = sd()
    result = run(tiny, tiny.inputs(5))
    events: list[StepEvent] = []
    call = {"sharing": EVERYONE, "output_type": "latent", "on_step": events.append, **CALL}
    (batch,) = stream(tiny.pipe, **tiny.inputs(5), **call)
    for value in (result, batch, result.plan, result.cost, result.plan.trees[0], events[-1]):
        assert len(repr(value)) < 100, repr(value)
    assert repr(result).startswith("<Result: 5 images, 24 of 40 denoiser rows (40 % saved), ")
    assert repr(result.plan) == "<Plan: 5 images in 1 group, 24 of 40 denoiser rows (40 % saved)>"
    assert repr(result.cost) == "<Cost: 24 of 40 denoiser rows (40 % saved)>"


@pytest.mark.parametrize("sharing", [EVERYONE, None])
def test_each_fact_of_a_call_is_computed_once(sharing: Sharing | None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Counter[str]()

    def counted(home: str, name: str) -> None:
        original = getattr(import_module(home), name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(f"{home}.{name}", counting)

    for name in ("readings", "companions", "timesteps_of", "guidance_rows"):
        counted("cotrunk.planning.request", name)
    counted("cotrunk.generation", "needed_arguments")
    prepare(sd_with_text().pipe, PROMPTS, Settings(sharing, Skipping(), (0.1, 0.8), STEPS), guidance_scale=3.0)
    assert set(calls.values()) == {1}
    assert len(calls) == (5 if sharing else 4)  # without sharing, it does not matter which prompts read alike


def test_settings_load_without_torch_and_numpy() -> None:
    code = "import cotrunk.settings, sys; print(*{'torch', 'numpy', 'diffusers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_public_names_are_exported_and_documented() -> None:
    assert sorted(cotrunk.__all__) == sorted(set(cotrunk.__all__)) == sorted(cotrunk._HOME)
    for name, home in cotrunk._HOME.items():
        value = getattr(cotrunk, name)
        assert value.__module__ == f"cotrunk.{home}", name
        assert value.__doc__, name
        assert getattr(import_module(value.__module__), name) is value
    assert callable(cotrunk.plan)
    assert isinstance(plan(sd_with_text().pipe, PROMPTS, sharing=None, **CALL), Plan)
