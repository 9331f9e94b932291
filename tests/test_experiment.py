"""Models under schemes: pictures made once, cells that cost what they say, tables and figures."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import recorded
from test_metrics import Brightness
from tiny import sd_with_text

from cotrunk import CotrunkError
from cotrunk.evaluation.experiment import Cell, Experiment, Judges, Result
from cotrunk.evaluation.figures import write_curves, write_differences, write_grid, write_table
from cotrunk.evaluation.metrics import Figure
from cotrunk.evaluation.paper import Design

GROUPS = [["a red picture", "a green picture"], ["a dog", "a cat", "a cow"], ["alone"]]
COUNT = 6


class Means:
    """Features and alignment that are known: mean colours, and lengths of texts."""

    name = "mean colours"

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.double().mean(dim=(2, 3))

    def of_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.features(pictures), dim=1)

    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        vectors = torch.tensor([[len(text), text.count("a") + 1, 3.0] for text in texts], dtype=torch.float64)
        return torch.nn.functional.normalize(vectors, dim=1)


JUDGES = Judges(Means(), Brightness(), Means())


def experiment(out: Path, **loras: Path) -> Experiment:
    real = torch.randint(0, 255, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    models: dict[str, Path | None] = {"pre-trained": None, **loras}
    sizes = {"height": 32, "width": 32}
    return Experiment(sd_with_text().pipe, GROUPS, real, models, JUDGES, out, guidance=3.0, arguments=sizes)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Cell, Result]:
    own = experiment(tmp_path_factory.mktemp("cells"))
    cells = [*Design(["pre-trained"], [0.25, 0.5], 4).table(), Cell("pre-trained", 0.0, 2)]
    return {cell: own.measure([cell]) for cell in cells}


def test_cells_cost_what_their_schemes_say(results: dict[Cell, Result]) -> None:
    rows = {(cell.share, cell.steps): result.rows for cell, result in results.items()}
    assert rows[0.0, 4] == 8
    assert rows[0.0, 2] == 4
    # groups of 2 and 3 share one step of four, or two; the last prompt is alone
    assert rows[0.25, 4] == pytest.approx(2 * (COUNT * 4 - 1 * 1 - 2 * 1) / COUNT)
    assert rows[0.5, 4] == pytest.approx(2 * (COUNT * 4 - 1 * 2 - 2 * 2) / COUNT)


def test_every_figure_lies_in_its_interval(results: dict[Cell, Result]) -> None:
    for result in results.values():
        assert set(result.figures) == {"frechet", "alignment", "diversity", "bleed"}
        for figure in result.figures.values():
            assert figure.low - 1e-9 <= figure.value <= figure.high + 1e-9


def test_pictures_are_made_once(tmp_path: Path) -> None:
    own, cell = experiment(tmp_path), Cell("pre-trained", 0.5, 2)
    ran = recorded(own.pipe.unet)
    first = own.measure([cell])
    count = len(ran)
    again = experiment(tmp_path)
    assert again.measure([cell]) == first
    assert np.array_equal(again.pictures(cell), own.pictures(cell))
    assert len(ran) == count > 0
    assert own.pictures(cell).shape == (COUNT, 3, 32, 32)


def test_a_group_that_shares_begins_as_its_first_picture_alone(tmp_path: Path) -> None:
    own = experiment(tmp_path)
    shared, alone = own._plan(Cell("pre-trained", 0.5, 4)), own._plan(Cell("pre-trained", 0.0, 4))
    for group in own.groups:
        assert {shared.seeds[image] for image in group} == {alone.seeds[group[0]]}
    assert len(set(alone.seeds)) == COUNT
    assert own._plan(Cell("pre-trained", 0.5, 4, seed=1)).seeds != shared.seeds


def test_equal_cost_is_the_most_steps_that_cost_no_more(tmp_path: Path) -> None:
    own = experiment(tmp_path)
    cell = Cell("pre-trained", 0.5, 8)
    equal = own.equal_cost(cell)
    rows = own._plan(cell).cost.used
    assert own._plan(equal).cost.used <= rows < own._plan(Cell("pre-trained", 0.0, equal.steps + 1)).cost.used


def test_tables_and_figures(results: dict[Cell, Result], tmp_path: Path) -> None:
    text = write_table(list(results.values()), JUDGES, tmp_path)
    assert "| shared 25%, 4 steps | pre-trained |" in text
    assert "mean colours" in text
    assert "FID" not in text
    assert "CLIP" not in text
    with (tmp_path / "table1.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + len(results)
    kept = json.loads((tmp_path / "table1.json").read_text())["results"]
    assert [entry["rows"] for entry in kept] == [result.rows for result in results.values()]
    lines = {"independent": [result for cell, result in results.items() if not cell.share]}
    write_curves(lines, "rows", tmp_path, "rows", label="rows")
    better, same = Figure(0.2, 0.1, 0.3), Figure(0.0, -0.1, 0.1)
    said = write_differences([("a", "b", {"alignment": better, "diversity": same})], JUDGES, tmp_path)
    assert "| a | b | **0.2 [0.1, 0.3]** | 0 [-0.1, 0.1] |" in said
    write_grid({"one": np.zeros((2, 3, 32, 32), np.uint8)}, ["a", "b"], tmp_path)
    for name in ("rows.png", "figure2.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 100
    assert (tmp_path / "rows.svg").read_text().startswith("<?xml")


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CotrunkError, match="There is no model 'sage' here: pre-trained are"):
        experiment(tmp_path).look(Cell("sage"))


def test_a_folder_without_a_lora_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CotrunkError, match="holds no LoRA for this StableDiffusionPipeline"):
        experiment(tmp_path, sage=tmp_path / "empty").look(Cell("sage", 0.0, 2))


def test_a_lora_is_taken_off_again(tmp_path: Path, trained_lora: Any) -> None:
    own = experiment(tmp_path, tuned=trained_lora)
    before = own.measure([Cell("pre-trained", 0.0, 2)])
    tuned = own.measure([Cell("tuned", 0.0, 2)])
    for file in (tmp_path / "cells").glob("pre-trained*"):
        file.unlink()
    again = own.measure([Cell("pre-trained", 0.0, 2)])
    assert again.figures == before.figures != tuned.figures


@pytest.fixture(scope="module")
def trained_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA with random weights, as `cotrunk train` would write it."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    folder, pipe = tmp_path_factory.mktemp("lora"), sd_with_text().pipe
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    type(pipe).save_lora_weights(save_directory=folder, unet_lora_layers=layers)
    return folder


def test_another_model_in_the_same_folder_is_another_cell(tmp_path: Path) -> None:
    one, other = experiment(tmp_path), experiment(tmp_path)
    assert one._name(Cell("pre-trained")) == other._name(Cell("pre-trained"))
    pipe = sd_with_text().pipe
    pipe.unet.conv_in.weight.data += 1
    real = torch.zeros(4, 3, 32, 32).byte()
    changed = Experiment(pipe, GROUPS, real, {"pre-trained": None}, JUDGES, tmp_path, guidance=3.0)
    assert changed._name(Cell("pre-trained")) != one._name(Cell("pre-trained"))
    assert changed.judged_by != one.judged_by
    assert one._name(Cell("pre-trained", 0.12)) != one._name(Cell("pre-trained", 0.125))


def test_another_process_finds_the_same_cells(tmp_path: Path) -> None:
    script = "import sys, pathlib, test_experiment as t; print(t.experiment(pathlib.Path(sys.argv[1])).mark)"
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    one, other = (run.communicate()[0] for run in runs)
    assert one == other != ""


def test_where_no_step_is_shared_everybody_has_noise_of_their_own(tmp_path: Path) -> None:
    assert len(set(experiment(tmp_path)._plan(Cell("pre-trained", 0.2, 3)).seeds)) == COUNT


def test_a_lora_of_another_model_is_refused(tmp_path: Path, trained_lora: Path) -> None:
    from safetensors.torch import load_file, save_file
    from tiny import sd3

    from cotrunk.models import load_lora

    state = load_file(trained_lora / "pytorch_lora_weights.safetensors")
    (tmp_path / "other").mkdir()
    other = {name.replace("unet.", "transformer."): tensor for name, tensor in state.items()}
    save_file(other, tmp_path / "other" / "pytorch_lora_weights.safetensors")
    with pytest.raises(CotrunkError, match="holds no LoRA for this StableDiffusionPipeline"):
        load_lora(sd_with_text().pipe, tmp_path / "other")
    with pytest.raises(CotrunkError, match="holds no LoRA for this StableDiffusion3Pipeline"):
        load_lora(sd3().pipe, trained_lora)


def test_seeds_are_pooled_and_groups_may_be_chosen(tmp_path: Path) -> None:
    own = experiment(tmp_path)
    cells = [Cell("pre-trained", 0.5, 2, seed) for seed in (0, 1)]
    one, other, both = own.measure(cells[:1]), own.measure(cells[1:]), own.measure(cells)
    assert both.seeds == 2
    assert both.figures["alignment"].value == pytest.approx(
        (one.figures["alignment"].value + other.figures["alignment"].value) / 2
    )
    assert one.figures["frechet"] != other.figures["frechet"]
    chosen = own.measure(cells, [0, 1])
    assert chosen.figures["alignment"].value != both.figures["alignment"].value
    assert np.isnan(own.look(cells[0]).diversity[2])


def test_a_cell_is_no_better_than_itself_and_differences_are_paired(tmp_path: Path) -> None:
    own = experiment(tmp_path)
    cell, other = Cell("pre-trained", 0.5, 2), Cell("pre-trained", 0.0, 2)
    for figure in own.compare([cell], [cell]).values():
        assert figure.value == pytest.approx(0, abs=1e-9)
    found = own.compare([cell], [other])
    apart = own.measure([cell]).figures["alignment"].value - own.measure([other]).figures["alignment"].value
    assert found["alignment"].value == pytest.approx(apart, abs=1e-6)


def test_a_killed_cell_goes_on_with_the_next_wave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = experiment(tmp_path / "whole").pictures(Cell("pre-trained", 0.5, 2))
    own = experiment(tmp_path / "killed")
    calls: list[int] = []

    def kill(pictures: int) -> None:
        calls.append(pictures)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cotrunk.evaluation.experiment.WAVE", 3)
        with pytest.raises(KeyboardInterrupt):
            own.look(Cell("pre-trained", 0.5, 2), kill)
        own.look(Cell("pre-trained", 0.5, 2), kill)
    assert sum(calls) == COUNT
    assert np.abs(own.pictures(Cell("pre-trained", 0.5, 2)).astype(int) - whole.astype(int)).max() <= 1
