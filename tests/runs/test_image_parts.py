"""Prompts with input images and LoRAs of their own: which of them run in one call, and with which arguments."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import sd_with_text

from cotrunk.pipelines.image_inputs import ImageInputs, pipeline_for
from cotrunk.pipelines.weighted_lora import WeightedLora
from cotrunk.planning.prompt_row import PromptRow
from cotrunk.runs.input_images import LazyImages
from cotrunk.runs.job import Job
from cotrunk.runs.part_run import arguments_of, divided
from cotrunk.runs.parts import parts_of


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Return images of 64 x 32, 64 x 32 and 100 x 50 pixels."""
    paths = [str(tmp_path / f"{name}.png") for name in "abc"]
    for path, size in zip(paths, ((64, 32), (64, 32), (100, 50)), strict=True):
        Image.new("RGB", size).save(path)
    return paths


def rows_of(*rows: dict[str, Any], **common: Any) -> list[tuple[int, ...]]:
    job = Job(tuple(PromptRow("a cat", **row) for row in rows), **common)
    return [part.rows for part in parts_of(job)]


def test_prompts_that_one_call_cannot_mix_run_in_parts(files: list[str]) -> None:
    a, b, c = files
    assert rows_of({"image": a}, {}, {"image": b}, {"image": a}) == [(0, 2, 3), (1,)]
    assert rows_of({"image": a}, {"image": a, "strength": 0.4}, {"image": b, "strength": 0.4}) == [(0,), (1, 2)]
    assert rows_of({"strength": 0.4}, {"strength": 0.6}, {"strength": 0.4}, image=a) == [(0, 2), (1,)]
    assert rows_of({"image": a}, {"image": a, "mask_image": b}, {"control_image": a}) == [(0,), (1,), (2,)]
    assert rows_of({"image": a}, {"image": c}, {"image": b}) == [(0, 2), (1,)]  # sizes
    assert rows_of({"image": a}, {"image": c}, width=64, height=64) == [(0, 1)]
    assert rows_of({"lora": "x:0.5"}, {}, {"lora": "x:0.5"}, {"lora": "x"}) == [(0, 2), (1,), (3,)]
    assert rows_of({"lora": "x"}, {}, lora="x") == [(0, 1)]
    assert rows_of({"strength": 0.4}, {}, image=a, strength=0.4) == [(0, 1)]


def test_a_part_has_what_its_prompts_have_in_common(files: list[str]) -> None:
    job = Job((PromptRow("a cat", image=files[2], strength=0.4, lora="x:0.5"),), lora="y")
    own = parts_of(job)[0].job
    assert (own.width, own.height, own.strength, own.lora) == (96, 48, 0.4, (WeightedLora("x", 0.5),))
    assert own.prompts == (PromptRow("a cat", image=files[2]),)
    assert parts_of(own)[0].job == own


def test_prompts_of_models_that_take_several_images_run_alone(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tuple(PromptRow("a cat", image=path) for path in (files[0], files[1], files[0])))
    pipe = sd_with_text().pipe
    assert [part.rows for part in divided(job, pipe)] == [(0, 1, 2)]
    monkeypatch.setattr("cotrunk.pipelines.image_inputs.REFERENCES", ("StableDiffusionPipeline",))
    assert [part.rows for part in divided(job, pipe)] == [(0, 2), (1,)]


def test_the_arguments_of_a_call(files: list[str]) -> None:
    pipe, a, b = sd_with_text().pipe, files[0], files[1]
    job = Job(
        (PromptRow("a cat", image=a, mask_image=b), PromptRow("a dog", image=b, mask_image=b)), width=16, height=16
    )
    (part,) = parts_of(job)
    inpaint = arguments_of(part.job, part.planned, pipeline_for(pipe, ImageInputs(image=True, mask=True)))
    assert isinstance(inpaint["image"], LazyImages)
    assert [image.size for image in inpaint["image"]] == [(16, 16)] * 2
    assert inpaint["mask_image"].mode == "L"  # one for all
    assert (inpaint["width"], inpaint["height"]) == (16, 16)
    from_image = pipeline_for(pipe, ImageInputs(image=True))
    (part,) = parts_of(Job(("a cat", "a dog"), image=a, strength=0.3))
    arguments = arguments_of(part.job, part.planned, from_image)
    assert arguments["image"].size == (64, 32)
    assert arguments["strength"] == 0.3
    assert "width" not in arguments  # its class has no such argument


def test_another_class_keeps_the_numbers_of_its_model() -> None:
    pipe = sd_with_text().pipe
    pipe.cotrunk_defaults = {"num_inference_steps": 7, "guidance_scale": 2.0}
    made = pipeline_for(pipe, ImageInputs(image=True))
    assert made.cotrunk_defaults == pipe.cotrunk_defaults
    job = Job(("a cat",))
    assert arguments_of(job, job.prompts, made) == {"num_inference_steps": 7, "guidance_scale": 2.0}
