"""Pipelines that cannot read LoRAs in diffusers' format, such as PixArt's: train, save, load and remove one by peft."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import cotrunk
from peft import PeftModel
from running import close
from safetensors.torch import load_file, save_file
from tiny import TinyPipeline, pixart, sd_with_text
from torch import Tensor
from trainings import QUICK, same_weights

from cotrunk import CotrunkError, mini
from cotrunk.groups.captions import Pair
from cotrunk.pipelines import lora
from cotrunk.pipelines.compatibility import denoisers_of
from cotrunk.pipelines.lora import load_lora, remove_lora
from cotrunk.training.conditions import Conditions
from cotrunk.training.log import Step
from cotrunk.training.settings import TrainSettings
from cotrunk.training.trainer import train

FILES = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(params=[pixart, sd_with_text])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], TinyPipeline]:
    """Return a function that makes a pipeline without diffusers' LoRA methods.

    The denoiser of the first has no such methods either. Another class stands for pipelines whose denoiser has them.
    """
    if request.param is sd_with_text:
        for module in (lora, "cotrunk.training.lora", "cotrunk.training.trainer"):
            path = module if isinstance(module, str) else module.__name__
            monkeypatch.setattr(f"{path}.reads_diffusers_loras", lambda pipe: False)
    else:  # it has no text encoder

        def of(self: Conditions, captions: list[str] | None = None, **prompts: Any) -> dict[str, Any]:
            inputs = pixart().inputs(len(captions or ()))
            return original(
                self, **{k: v for k, v in inputs.items() if "prompt" in k and "negative" not in k} | prompts
            )

        original = Conditions.of
        monkeypatch.setattr(Conditions, "of", of)
    return request.param


def latents(pipeline: TinyPipeline) -> Tensor:
    inputs = pipeline.inputs(1) | {"num_inference_steps": 2, "output_type": "latent"}
    return pipeline.pipe(**inputs, generator=torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize("layers", ["attention", pytest.param("all", marks=pytest.mark.slow)])
def test_a_trained_lora_is_loaded_and_removed(
    build: Callable[[], TinyPipeline], groups: list[list[Pair]], tmp_path: Path, layers: Any
) -> None:
    pipeline, own, users = build(), build(), build()
    name = denoisers_of(pipeline.pipe)[0]
    file = train(pipeline.pipe, groups, TrainSettings(**vars(QUICK) | {"layers": layers}), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= FILES
    assert file == tmp_path / "adapter_model.safetensors"
    expected, before = latents(pipeline), latents(own)
    assert not close(before, expected, 1e-3)
    fresh = {key: value.clone() for key, value in getattr(own.pipe, name).state_dict().items()}
    changed = load_lora(own.pipe, tmp_path)
    assert close(latents(own), expected)
    assert getattr(own.pipe, name).state_dict().keys() == fresh.keys()
    remove_lora(own.pipe, changed)
    assert same_weights(getattr(own.pipe, name).state_dict(), fresh)
    assert torch.equal(latents(own), before)
    # as the card says
    assert (
        f'pipe.{name} = PeftModel.from_pretrained(pipe.{name}, "{tmp_path.name}")'
        in (tmp_path / "README.md").read_text()
    )
    merged = PeftModel.from_pretrained(getattr(users.pipe, name), str(tmp_path)).merge_and_unload()
    setattr(users.pipe, name, merged)
    assert close(latents(users), expected)
    with pytest.raises(CotrunkError, match=f"The {name} has a LoRA already: load the pipeline again"):
        train(pipeline.pipe, groups, QUICK, tmp_path)


def test_a_killed_training_ends_with_the_same_weights(
    build: Callable[[], TinyPipeline], groups: list[list[Pair]], tmp_path: Path
) -> None:
    def kill(step: Step) -> None:
        if step.number == 3:
            raise KeyboardInterrupt

    pipeline = build()
    before, name = latents(pipeline), denoisers_of(pipeline.pipe)[0]
    fresh = {key: value.clone() for key, value in getattr(pipeline.pipe, name).state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        train(pipeline.pipe, groups, QUICK, tmp_path / "killed", on_step=kill)
    assert same_weights(getattr(pipeline.pipe, name).state_dict(), fresh)
    assert torch.equal(latents(pipeline), before)
    resumed = load_file(train(pipeline.pipe, groups, QUICK, tmp_path / "killed"))
    assert same_weights(resumed, load_file(train(build().pipe, groups, QUICK, tmp_path / "whole")))


def test_a_lora_that_does_not_fit_leaves_nothing_behind(
    build: Callable[[], TinyPipeline], groups: list[list[Pair]], tmp_path: Path
) -> None:
    made = tmp_path / "made"
    file = train(build().pipe, groups, TrainSettings(**vars(QUICK) | {"steps": 1}), made)
    pipeline, weights = build(), load_file(file)
    denoiser = getattr(pipeline.pipe, denoisers_of(pipeline.pipe)[0])
    fresh = {key: value.clone() for key, value in denoiser.state_dict().items()}
    first = next(iter(weights))
    for damaged, message in (
        ({name: weight for name, weight in weights.items() if name != first}, "is a LoRA for another model"),
        (weights | {first.replace("blocks", "towers"): weights[first].clone()}, "is a LoRA for another model"),
        (weights | {first: weights[first][:, :-1].contiguous()}, "cannot be loaded as a LoRA for this"),
        (weights | {first: weights[first] * torch.nan}, "contains weights that are not finite"),
    ):
        save_file(damaged, file)
        with pytest.raises(CotrunkError, match=message):
            load_lora(pipeline.pipe, made)
        assert same_weights(denoiser.state_dict(), fresh)
        assert not getattr(denoiser, "peft_config", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CotrunkError, match="cannot be loaded as a LoRA for this"):
        load_lora(pipeline.pipe, tmp_path / "empty")


def test_a_denoiser_without_attention_layers_is_reported(groups: list[list[Pair]], tmp_path: Path) -> None:
    pipe = sd_with_text().pipe
    for block in pipe.unet.modules():
        for name in ("to_q", "to_k", "to_v", "to_out"):
            if hasattr(block, name):
                setattr(block, f"{name}_renamed", getattr(block, name))
                delattr(block, name)
    with pytest.raises(CotrunkError, match="attention layers of the UNet2DConditionModel have other names"):
        train(pipe, groups, QUICK, tmp_path)


@pytest.mark.slow
def test_mini_dit_generates_with_its_lora(tmp_path: Path, groups: list[list[Pair]]) -> None:
    settings = TrainSettings(steps=2, batch=1, rank=2, learning_rate=1e-2, layers="all", checkpoint_every=2)
    train(mini.load_dit(), groups, settings, tmp_path / "lora")
    (tmp_path / "prompts.txt").write_text("red apple, noto style\ngreen apple, noto style\n")
    words = ("generate", "--prompts", tmp_path / "prompts.txt", "--model", "mini-dit", "--steps", 2)
    made = cotrunk(*words, "--lora", tmp_path / "lora", "--out", tmp_path / "run")
    assert made.code == 0, made.err
    assert cotrunk(*words, "--out", tmp_path / "plain").code == 0
    images = [sorted((tmp_path / name / "images").glob("*.png")) for name in ("run", "plain")]
    assert [len(files) for files in images] == [2, 2]
    assert images[0][0].read_bytes() != images[1][0].read_bytes()
