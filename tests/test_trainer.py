"""Training a LoRA: exact resume, every family of denoisers, what is written, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import close, denoiser
from safetensors.torch import load_file
from tiny import TinyPipeline, flux, pixart, sd, sd3, sd_with_text, sdxl
from torch import Tensor

from cotrunk import CotrunkError
from cotrunk.training.conditions import Conditions
from cotrunk.training.dataset import Pair
from cotrunk.training.loss import Loss
from cotrunk.training.trainer import Step, TrainSettings, losses, train, trained_share, training_schedule

SIZE = {"height": 32, "width": 32}
QUICK = TrainSettings(steps=6, groups=2, rank=2, learning_rate=1e-2, checkpoint_every=2, caption_dropout=0.3, **SIZE)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[list[Pair]]:
    """Four groups of two or three pictures."""
    folder, draw, made = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for number, size in enumerate((2, 3, 2, 2)):
        made.append([])
        for member in range(size):
            path = folder / f"{number}{member}.png"
            Image.fromarray(draw.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(path)
            made[-1].append(Pair(f"a small picture {number}.{member}", path))
    return made


def trained(
    groups: list[list[Pair]], out: Path, settings: TrainSettings = QUICK, **arguments: Any
) -> tuple[TinyPipeline, dict[str, Tensor]]:
    pipeline = sd_with_text()
    return pipeline, load_file(train(pipeline.pipe, groups, settings, out, **arguments))


@pytest.mark.parametrize("build", [sd, sdxl, sd3, flux, pixart])
def test_the_denoiser_is_called_as_its_pipeline_calls_it(build: Callable[[], TinyPipeline]) -> None:
    """The first output of a run, and the output for the same latents under the conditions that were caught."""
    pipeline = build()
    inputs = {k: v for k, v in pipeline.inputs(3).items() if "negative" not in k or k == "negative_prompt"}
    seen: list[Any] = []
    module = denoiser(pipeline)
    hook = module.register_forward_hook(lambda *call: seen.append(call[1:]), with_kwargs=True)
    pipeline.pipe(**inputs, num_inference_steps=2, guidance_scale=1.0, output_type="latent")
    hook.remove()
    args, kwargs, output = seen[0]
    sample = args[0] if args else next(iter(kwargs.values()))
    conditions = Conditions(pipeline.pipe, **{k: v for k, v in inputs.items() if "prompt" not in k})
    named = conditions.of(**{k: v for k, v in inputs.items() if "prompt" in k})
    timestep = pipeline.pipe.scheduler.timesteps[0].expand(3)
    if conditions.packed:
        factor = pipeline.pipe.vae_scale_factor
        sample, expected = (
            pipeline.pipe._unpack_latents(x, inputs["height"], inputs["width"], factor) for x in (sample, output[0])
        )
    else:
        expected = output[0][:, : sample.shape[1]]
    with torch.no_grad():
        assert close(conditions.call(sample, timestep, named), expected)


@pytest.mark.parametrize("objective", ["sage", "standard"])
def test_training_changes_the_lora_and_nothing_else(groups: list[list[Pair]], tmp_path: Path, objective: Any) -> None:
    fresh, steps = sd_with_text().pipe.unet.state_dict(), list[Step]()
    settings = TrainSettings(**vars(QUICK) | {"loss": Loss(objective)})
    pipeline, weights = trained(groups, tmp_path, settings, on_step=steps.append)
    assert all("lora" in name for name in weights)
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name or "lora.up" in name)
    for name, tensor in pipeline.pipe.unet.state_dict().items():
        if "lora" not in name:
            assert torch.equal(tensor, fresh[name.replace(".base_layer", "")]), name
    assert [step.number for step in steps] == list(range(1, 7))
    assert [line["step"] for line in losses(tmp_path / "losses.jsonl")] == list(range(1, 7))
    kept = {"checkpoint.pt", "losses.jsonl", "settings.json", "README.md", "pytorch_lora_weights.safetensors"}
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == kept


def test_the_pipeline_takes_what_was_trained(groups: list[list[Pair]], tmp_path: Path) -> None:
    pipeline, _ = trained(groups, tmp_path)
    inputs = pipeline.inputs(1) | {"num_inference_steps": 2, "output_type": "latent"}
    generator = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    expected = pipeline.pipe(**inputs, generator=generator()).images
    other = sd_with_text()
    before = other.pipe(**inputs, generator=generator()).images
    other.pipe.load_lora_weights(tmp_path)
    assert close(other.pipe(**inputs, generator=generator()).images, expected)
    assert not close(before, expected, 1e-3)


@pytest.mark.parametrize("killed_after", [1, 2, 5])
@pytest.mark.parametrize("changed", [{}, {"ema": 0.5, "accumulation": 2}])
def test_a_killed_training_ends_with_the_same_weights(
    groups: list[list[Pair]], tmp_path: Path, killed_after: int, changed: dict[str, Any]
) -> None:
    settings = TrainSettings(**vars(QUICK) | changed)

    def kill(step: Step) -> None:
        if step.number == killed_after:
            raise KeyboardInterrupt

    _, whole = trained(groups, tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        trained(groups, tmp_path / "killed", settings, on_step=kill)
    _, resumed = trained(groups, tmp_path / "killed", settings)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_a_folder_of_another_training_is_refused(groups: list[list[Pair]], tmp_path: Path) -> None:
    trained(groups, tmp_path)
    other = TrainSettings(**vars(QUICK) | {"rank": 4})
    with pytest.raises(CotrunkError, match=r"holds a training with another rank \(2, not 4\)"):
        trained(groups, tmp_path, other)
    assert json.loads((tmp_path / "settings.json").read_text())["rank"] == 2
    with pytest.raises(CotrunkError, match="holds a training with another data"):
        trained(groups[:2], tmp_path)
    with pytest.raises(CotrunkError, match="holds 6 steps already"):
        trained(groups, tmp_path, TrainSettings(**vars(QUICK) | {"steps": 3}))


def test_what_failed_before_its_first_checkpoint_is_no_training(groups: list[list[Pair]], tmp_path: Path) -> None:
    with pytest.raises(Exception, match="divisible"):
        trained(groups, tmp_path, TrainSettings(**vars(QUICK) | {"height": 30}))
    trained(groups, tmp_path)


def test_the_branch_point_of_a_training_is_that_of_sampling() -> None:
    assert trained_share(sd().pipe.scheduler, 0.4) == pytest.approx(0.4, abs=0.01)
    shifted = sd3().pipe.scheduler
    assert trained_share(shifted, 0.4) == pytest.approx(0.4, abs=0.01)
    shifted = type(shifted).from_config(shifted.config, shift=3.0)
    sigma = 3 * 0.6 / (1 + 2 * 0.6)  # after 40 % of the steps
    assert trained_share(shifted, 0.4) == pytest.approx(1 - sigma, abs=0.01)


@pytest.mark.parametrize("build", [sdxl, sd3, flux])
def test_other_families_train_too(build: Callable[[], TinyPipeline], groups: list[list[Pair]], tmp_path: Path) -> None:
    """Their texts are embeddings made by a stand-in: the tiny pipelines have no text encoders."""
    pipeline = build()

    def of(self: Conditions, captions: list[str], **_: Any) -> dict[str, Any]:
        inputs = pipeline.inputs(len(captions))
        prompts = {k: v for k, v in inputs.items() if "prompt" in k and "negative" not in k}
        return original(self, **prompts)

    original = Conditions.of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conditions, "of", of)
        size = {"height": inputs["height"], "width": inputs["width"]} if (inputs := pipeline.inputs(1)) else {}
        settings = TrainSettings(**vars(QUICK) | {"steps": 2} | size)
        weights = load_file(train(pipeline.pipe, groups, settings, tmp_path))
    assert weights
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_pipeline_without_loras_is_named(groups: list[list[Pair]], tmp_path: Path) -> None:
    with pytest.raises(CotrunkError, match="PixArtAlphaPipeline takes no LoRA"):
        train(pixart().pipe, groups, QUICK, tmp_path)


def test_the_schedule_of_a_training_goes_from_data_to_noise() -> None:
    for build in (sd, sd3):
        schedule = training_schedule(build().pipe.scheduler)
        sigmas = [sigma for _, sigma in schedule.levels]
        assert len(sigmas) == 1000
        assert sigmas == sorted(sigmas)
        assert 0 < sigmas[0] < 0.1
        assert sigmas[-1] > 0.99


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"steps": 0}, "steps 0 is out of range"), ({"rank": 2.5}, "rank 2.5"), ({"ema": 1.0}, "ema 1.0")],
)
def test_bad_settings_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(CotrunkError, match=said):
        TrainSettings(**arguments)
