"""Models under schemes: images are generated and observed once; killed runs continue; damage is named."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiments import COUNT, GROUPS, NETWORKS, Brightness, Means, broken, experiment
from running import close, recorded
from tiny import sd_with_text

from cotrunk import Batching, CotrunkError, Settings
from cotrunk.evaluation.experiment import Experiment
from cotrunk.evaluation.networks import MetricNetworks
from cotrunk.evaluation.observation import Cell, Observation
from cotrunk.execution import Run
from cotrunk.generation import WARM_STEPS, prepare
from cotrunk.pipelines.lora import load_lora, remove_lora


def same(one: Observation, other: Observation) -> bool:
    return one.digest == other.digest and (one.rows, one.seconds) == (other.rows, other.seconds)


def test_images_are_generated_once(tmp_path: Path) -> None:
    own, cell = experiment(tmp_path), Cell("pre-trained", 0.5, 2)
    first = own.observe(cell)
    again = experiment(tmp_path)
    ran = recorded(again.pipe.unet)
    assert same(again.observe(cell), first)
    assert same(own.observe(cell), first)
    assert ran == []
    assert first.shown.shape == (COUNT, 3, 32, 32)
    # only the first images are kept
    assert [file.name for file in (tmp_path / "cells").iterdir()] == [f"{own.name(cell)}.observed.npz"]


class Others(Means):
    """A network with the same name but other weights."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return super().features(images) * torch.tensor([1.0, 2.0, 3.0])


def test_a_network_with_other_weights_observes_again(tmp_path: Path) -> None:
    own, cell = experiment(tmp_path), Cell("pre-trained", 0.5, 2)
    first = own.observe(cell)
    others = experiment(tmp_path, MetricNetworks(Others(), Brightness(), Means())).observe(cell)
    assert not same(others, first)
    assert np.array_equal(others.shown, first.shown)


def test_first_steps_of_a_model_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, runs = experiment(tmp_path), list[Run]()
    batches = Run.batches

    def spy(run: Run, **settings: Any) -> Any:
        runs.append(run)
        return batches(run, **settings)

    monkeypatch.setattr(Run, "batches", spy)
    for steps in (2, 4):
        own.observe(Cell("pre-trained", 0.5, steps))
    assert [run.plan.steps for run in runs] == [WARM_STEPS, WARM_STEPS, 2, 4]
    assert [len(run.plan) for run in runs] == [
        COUNT,
        1,
        COUNT,
        COUNT,
    ]  # many rows and few, compiled separately
    assert [bool(run.plan.cost.saving) for run in runs] == [False, False, True, True]


def test_a_shared_group_starts_with_the_noise_of_its_first_image(tmp_path: Path) -> None:
    own = experiment(tmp_path)
    shared, alone = own._plan(Cell("pre-trained", 0.5, 4)), own._plan(Cell("pre-trained", 0.0, 4))
    for group in own.groups:
        assert {shared.seeds[image] for image in group} == {alone.seeds[group[0]]}
    assert len(set(alone.seeds)) == COUNT
    assert own._plan(Cell("pre-trained", 0.5, 4, seed=1)).seeds != shared.seeds


def test_with_own_noise_every_image_starts_as_it_would_alone(tmp_path: Path) -> None:
    own = experiment(tmp_path)
    cell = Cell("pre-trained", 0.5, 4, 1, "own", 0.0)
    assert cell.alone == Cell("pre-trained", 0.0, 4, 1)
    assert own._plan(cell).seeds == own._plan(cell.alone).seeds
    # groups of 2 and 3 share two steps of four, without guidance; the last prompt is alone
    assert own.rows(cell) == COUNT * 4 * 2 - 2 * 2 * (2 + 3) + 2 * 2
    assert own.rows(Cell("pre-trained", 0.5, 4, 1, "own")) == own.rows(Cell("pre-trained", 0.5, 4, 1))
    trunks = [("common", 1.0), ("common", 0.0), ("own", 1.0), ("own", 0.0)]
    names = {own.name(Cell("pre-trained", 0.5, 4, 0, *trunk)) for trunk in trunks}  # type: ignore[arg-type]
    assert len(names) == 4
    assert own.observe(cell).rows == pytest.approx(own.rows(cell) / COUNT)
    assert own.observe(cell).digest != own.observe(Cell("pre-trained", 0.5, 4, 1)).digest


def test_equal_cost_is_the_most_steps_that_cost_no_more(tmp_path: Path) -> None:
    own = experiment(tmp_path)
    cell = Cell("pre-trained", 0.5, 8)
    equal = own.equal_cost(cell)
    rows = own._plan(cell).cost.used
    assert own._plan(equal).cost.used <= rows < own._plan(Cell("pre-trained", 0.0, equal.steps + 1)).cost.used


def test_an_unknown_model_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CotrunkError, match="There is no model 'sage' here: use one of pre-trained"):
        experiment(tmp_path).observe(Cell("sage"))


def test_a_folder_without_a_lora_is_reported_before_the_first_image(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CotrunkError, match="cannot be loaded as a LoRA for this StableDiffusionPipeline"):
        experiment(tmp_path, sage=tmp_path / "empty")


def test_a_lora_is_removed_again(tmp_path: Path, trained_lora: Path) -> None:
    own = experiment(tmp_path, tuned=trained_lora)
    before = own.observe(Cell("pre-trained", 0.0, 2))
    tuned = own.observe(Cell("tuned", 0.0, 2))
    for file in (tmp_path / "cells").glob("pre-trained*"):
        file.unlink()
    again = own.observe(Cell("pre-trained", 0.0, 2))
    assert again.digest == before.digest != tuned.digest
    assert experiment(tmp_path / "alone").observe(Cell("pre-trained", 0.0, 2)).digest == before.digest


def test_another_model_in_the_same_folder_is_another_cell(tmp_path: Path) -> None:
    one, other = experiment(tmp_path), experiment(tmp_path)
    assert one.name(Cell("pre-trained")) == other.name(Cell("pre-trained"))
    pipe = sd_with_text().pipe
    pipe.unet.conv_in.weight.data += 1
    changed = Experiment(pipe, GROUPS, {"pre-trained": None}, NETWORKS, tmp_path, guidance=3.0)
    assert changed.name(Cell("pre-trained")) != one.name(Cell("pre-trained"))
    assert one.name(Cell("pre-trained", 0.12)) != one.name(Cell("pre-trained", 0.125))


@pytest.mark.slow
def test_another_process_finds_the_same_cells(tmp_path: Path) -> None:
    """Sets have another order in another process."""
    script = "import sys, pathlib, experiments as t; print(t.experiment(pathlib.Path(sys.argv[1])).mark)"
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    other = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == experiment(tmp_path).mark


def test_without_shared_steps_every_image_has_its_own_noise(tmp_path: Path) -> None:
    assert len(set(experiment(tmp_path)._plan(Cell("pre-trained", 0.2, 3)).seeds)) == COUNT


def test_a_lora_of_another_model_is_refused(tmp_path: Path, trained_lora: Path) -> None:
    from safetensors.torch import load_file, save_file
    from tiny import sd3

    state = load_file(trained_lora / "pytorch_lora_weights.safetensors")
    (tmp_path / "other").mkdir()
    other = {name.replace("unet.", "transformer."): tensor for name, tensor in state.items()}
    save_file(other, tmp_path / "other" / "pytorch_lora_weights.safetensors")
    with pytest.raises(CotrunkError, match="is a LoRA for another model, not for this StableDiffusionPipeline"):
        load_lora(sd_with_text().pipe, tmp_path / "other")
    with pytest.raises(CotrunkError, match="is a LoRA for another model, not for this StableDiffusion3Pipeline"):
        load_lora(sd3().pipe, trained_lora)


def test_a_lora_leaves_nothing_behind(tmp_path: Path, trained_lora: Path) -> None:
    own, fresh = experiment(tmp_path, tuned=trained_lora, other=trained_lora), sd_with_text().pipe.unet.state_dict()
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    for model in ("tuned", "other", "pre-trained", "tuned", "pre-trained"):
        own._load(model)
        found = own.pipe.unet.state_dict()
        assert found.keys() == fresh.keys()
        assert torch.equal(found[name], fresh[name]) == (model == "pre-trained")
        if model == "pre-trained":
            assert all(torch.equal(found[name], weight) for name, weight in fresh.items())


def test_a_fused_lora_gives_the_images_of_diffusers(trained_lora: Path) -> None:
    """Fused weights give the same images, and another LoRA can be added."""
    pipeline, theirs = sd_with_text(), sd_with_text()
    inputs = pipeline.inputs(1) | {"num_inference_steps": 2, "output_type": "latent"}

    def latents(pipe: Any) -> torch.Tensor:
        return pipe(**inputs, generator=torch.Generator().manual_seed(0)).images

    before = latents(pipeline.pipe)
    changed = load_lora(pipeline.pipe, trained_lora)
    theirs.pipe.load_lora_weights(trained_lora)
    assert close(latents(pipeline.pipe), latents(theirs.pipe))
    assert not close(latents(pipeline.pipe), before, 1e-3)
    once = {name: weight.clone() for name, weight in pipeline.pipe.unet.state_dict().items()}
    load_lora(pipeline.pipe, trained_lora)
    assert once.keys() == pipeline.pipe.unet.state_dict().keys()
    remove_lora(pipeline.pipe, changed)
    assert torch.equal(latents(pipeline.pipe), before)


def killed_after(batches: int) -> Any:
    """Return a callback for `observe` that interrupts, and the numbers of images it was called with."""
    counts: list[int] = []

    def on_batch(images: int) -> None:
        counts.append(images)
        if len(counts) == batches:
            raise KeyboardInterrupt

    return on_batch, counts


def prepare_threes(pipe: Any, prompts: Any, settings: Settings, **more: Any) -> Any:
    return prepare(pipe, prompts, replace(settings, batching=Batching(batch_size=3)), **more)


def test_a_killed_cell_continues_with_the_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("pre-trained", 0.5, 2)
    whole = experiment(tmp_path / "whole").observe(cell)
    own, (kill, counts) = experiment(tmp_path / "killed"), killed_after(1)
    monkeypatch.setattr("cotrunk.evaluation.experiment.prepare", prepare_threes)
    with pytest.raises(KeyboardInterrupt):
        own.observe(cell, kill)
    resumed = own.observe(cell, kill)
    assert sum(counts) == COUNT
    assert resumed.rows == whole.rows
    assert np.abs(resumed.shown.astype(int) - whole.shown.astype(int)).max() <= 1


def test_a_batch_in_parts_keeps_images_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory was too small for a batch, the run was killed after a part of it, and then memory sufficed."""
    cell = Cell("pre-trained", 0.5, 2)
    whole = experiment(tmp_path / "whole").observe(cell)
    own, (kill, counts) = experiment(tmp_path / "killed"), killed_after(1)
    call = Run._call

    def crowded(run: Run, trees: Any, on_step: Any) -> Any:
        if sum(len(tree.images) for tree in trees) == COUNT:
            raise torch.OutOfMemoryError
        return call(run, trees, on_step)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_call", crowded)
        with pytest.raises(KeyboardInterrupt):
            own.observe(cell, kill)
    resumed = own.observe(cell, kill)
    assert counts[0] < COUNT == sum(counts)
    assert resumed.rows == whole.rows
    assert np.abs(resumed.shown.astype(int) - whole.shown.astype(int)).max() <= 1


def test_a_batch_stored_in_parts_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, own = Cell("pre-trained", 0.5, 2), experiment(tmp_path)
    kill, counts = killed_after(3)
    with monkeypatch.context() as patch:
        patch.setattr("cotrunk.evaluation.experiment.prepare", prepare_threes)
        with pytest.raises(KeyboardInterrupt):
            own.observe(cell, kill)
    assert sum(counts) == COUNT
    own.observe(cell, lambda images: pytest.fail("images were made again"))


def test_images_with_a_nan_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = experiment(tmp_path)
    broken(own, monkeypatch, 0, 3)
    seen = own.observe(Cell("pre-trained", 0.5, 2))
    assert seen.failed.tolist() == [True, False, False, True, False, False]
    assert np.isnan(seen.diversity).tolist() == [True, False, True]  # one image of the first group is left
    broken(own, monkeypatch, *range(COUNT))
    with pytest.raises(CotrunkError, match=r"All images of pre-trained-independent-2steps.* contain NaN"):
        own.observe(Cell("pre-trained", 0.0, 2))
