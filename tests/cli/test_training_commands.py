"""`cotrunk dataset`, `train`, `evaluate` and `tune`, as a user runs them, on a tiny pipeline."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from captioned import CAPTIONS, coco, folder_of
from command import assert_refused, cotrunk, no_model, pixels
from experiments import NETWORKS
from PIL import Image
from safetensors.torch import load_file
from tiny import sd_with_text
from trainings import recorders

from cotrunk.evaluation.experiment import Experiment
from cotrunk.pipelines import loading as models
from cotrunk.runs import runner
from cotrunk.training.log import read_losses

SIMILAR = ("--similarity-min", 0.3, "--similarity-max", 0.99)


@pytest.fixture
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Load a new tiny pipeline for any model name, and metric networks without weights."""
    monkeypatch.setattr(models, "load_pipeline", lambda *_, **__: sd_with_text().pipe)
    monkeypatch.setattr(models, "check_model", lambda *_: None)
    monkeypatch.setattr(runner, "check_parts", lambda *_: None)
    for name in ("evaluate", "tune"):
        monkeypatch.setattr(f"cotrunk.cli.{name}.load_metric_networks", lambda *_: NETWORKS)
    return monkeypatch


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    outcome = cotrunk("dataset", folder_of(folder / "in", "jsonl"), "--out", folder / "set", *SIMILAR)
    assert outcome.code == 0, outcome.err
    assert "groups (" in outcome.out
    assert "similarities.png" in outcome.out
    return folder / "set"


def test_unusable_images_give_a_warning(tmp_path: Path) -> None:
    file = coco(tmp_path, [*CAPTIONS, "a red apple on a table"])
    (tmp_path / "train" / "3.png").unlink()
    outcome = cotrunk("dataset", file, "--images", tmp_path / "train", "--out", tmp_path / "set", *SIMILAR)
    assert outcome.code == 0, outcome.err
    assert "3.png is not used: there is no such file" in outcome.err
    assert json.loads((tmp_path / "set" / "summary.json").read_text())["images"] == len(CAPTIONS)


@pytest.mark.slow
def test_training_then_evaluating(groups: Path, tmp_path: Path, tiny_model: pytest.MonkeyPatch) -> None:
    settings = ("--steps", 2, "--batch", 2, "--rank", 2, "--height", 32, "--width", 16, "--checkpoint-every", 1)
    (tmp_path / "validation.txt").write_text("\n".join(CAPTIONS[:2]))
    settings += ("--validation", tmp_path / "validation.txt")
    loras = []
    for objective, own in (("standard", ()), ("sage", ("--noise", "own", "--branch-noise", "trunk"))):
        outcome = cotrunk("train", groups, "--objective", objective, "--out", tmp_path / objective, *settings, *own)
        assert outcome.code == 0, outcome.err
        assert (tmp_path / objective / "losses.png").exists()
        assert {file.name for file in (tmp_path / objective / "validation").iterdir()} == {"000001.png", "000002.png"}
        assert pixels(tmp_path / objective / "validation" / "000002.png").shape == (32, 2 * 16, 3)
        assert "The LoRA is" in outcome.out
        assert load_file(tmp_path / objective / "pytorch_lora_weights.safetensors")
        loras += ["--lora", f"{objective}={tmp_path / objective}"]
    # the similarities come from the set of groups: captions are not embedded again
    tiny_model.setattr(
        "cotrunk.planning.embedding.sentence_encoder", lambda *_: pytest.fail("captions are embedded again")
    )
    schemes = ("--shares", "0.5", "--fewer", "6", "--steps", 4, "--seeds", 2, "--guidance", 3, "--max-groups", 2)
    schemes += ("--trunks", "published,own:0")
    outcome = cotrunk("evaluate", groups, *loras, "--out", tmp_path / "results", *schemes)
    assert outcome.code == 0, outcome.err
    made = {file.name for file in (tmp_path / "results").iterdir() if file.is_file()}
    assert {
        "table1.md",
        "table1.csv",
        "results.json",
        "differences.md",
        "knee.md",
        "figure2.png",
        "figure2.svg",
    } <= made
    assert {"figure3.png", "figure3.svg", "figure4.png", "figure4.svg", "rows.png", "rows.svg"} <= made
    table = (tmp_path / "results" / "table1.md").read_text()
    for model in ("pre-trained", "standard", "sage"):
        assert f"| shared 50%, 4 steps | {model} |" in table
        assert f"| shared 50%, 4 steps, own noise, unguided trunk | {model} |" in table
    assert "| sage, shared 50%, 4 steps | standard, shared 50%, 4 steps |" in outcome.out


def test_a_diverged_training_is_not_a_success(groups: Path, tmp_path: Path, tiny_model: pytest.MonkeyPatch) -> None:
    settings = ("--steps", 4, "--batch", 2, "--rank", 2, "--height", 32, "--width", 16, "--learning-rate", 1e9)
    for _ in range(2):  # a second run reports the same
        outcome = cotrunk("train", groups, "--out", tmp_path, *settings, "--checkpoint-every", 2)
        assert outcome.code == 1
        assert outcome.out == ""
        assert (
            "error: Training diverged: the loss of step 2 is not finite, and there is no checkpoint yet" in outcome.err
        )
        assert "--learning-rate below 1e+09" in outcome.err
        assert not (tmp_path / "pytorch_lora_weights.safetensors").exists()
        assert not (tmp_path / "checkpoint.pt").exists()


def test_what_cannot_be_compared_is_refused_before_the_first_image(
    groups: Path, tmp_path: Path, tiny_model: pytest.MonkeyPatch
) -> None:
    tiny_model.setattr(Experiment, "observe", lambda *_: pytest.fail("images are made"))
    outcome = cotrunk("evaluate", groups, "--out", tmp_path, "--max-groups", 1)
    assert outcome.code == 2
    assert "use two or more that share no image" in outcome.err
    with tiny_model.context() as patch:
        patch.setattr("cotrunk.groups.images.read_image", lambda path: Image.new("RGB", (8, 8), "red"))
        outcome = cotrunk("evaluate", groups, "--out", tmp_path, "--height", 32, "--width", 32)
    assert outcome.code == 2
    assert "real images are all equal: Frechet distances need different ones" in outcome.err
    sizes = ("--height", 32, "--width", 32)
    outcome = cotrunk("evaluate", groups, "--out", tmp_path, "--shares", "0.3,0.02", "--steps", 30, *sizes)
    assert outcome.code == 2
    assert "--shares 0.02 of 30 steps rounds down to no shared step" in outcome.err
    assert "groups, which share no image:" in outcome.err


@pytest.mark.slow
def test_a_tracker_gets_what_is_logged(groups: Path, tmp_path: Path, tiny_model: pytest.MonkeyPatch) -> None:
    made = recorders(tiny_model)
    settings = ("--steps", 3, "--batch", 2, "--rank", 2, "--height", 32, "--width", 16)
    (tmp_path / "validation.txt").write_text("\n".join(CAPTIONS[:2]))
    settings += ("--validation", tmp_path / "validation.txt", "--checkpoint-every", 2)
    outcome = cotrunk("train", groups, "--out", tmp_path, *settings, "--tracker", "tensorboard")
    assert outcome.code == 0, outcome.err
    (tracker,) = made
    assert list(tracker.shown) == [2, 3]
    for step, shown in tracker.shown.items():
        row = pixels(tmp_path / "validation" / f"{step:06d}.png")
        assert np.array_equal(np.concatenate([*shown], axis=1), row)
    assert tracker.folder == tmp_path
    assert tracker.is_closed
    for line in read_losses(tmp_path / "losses.jsonl"):
        step, gradient = line.pop("step"), line.pop("gradient")
        assert gradient > 0
        assert tracker.logged.pop(step) == pytest.approx(line, abs=1e-6)
    assert not tracker.logged


@pytest.mark.parametrize(
    ("model", "alignment"), [("mini", "emoji"), pytest.param("other", "clip", marks=pytest.mark.slow)]
)
def test_images_have_the_requested_size_and_a_suitable_network_measures_them(
    groups: Path, tmp_path: Path, tiny_model: pytest.MonkeyPatch, model: str, alignment: str
) -> None:
    asked: list[tuple[str, ...]] = []
    tiny_model.setattr("cotrunk.cli.evaluate.load_metric_networks", lambda *names: asked.append(names) or NETWORKS)
    sizes = ("--height", 16, "--width", 24, "--steps", 2, "--shares", "0.5", "--max-groups", 2)
    outcome = cotrunk("evaluate", groups, "--model", model, "--out", tmp_path, *sizes)
    assert outcome.code == 0, outcome.err
    assert asked[0][2] == alignment
    for file in (tmp_path / "cells").glob("*.observed.npz"):
        with np.load(file) as seen:
            assert seen["shown"].shape[2:] == (16, 24)


def blackened(images: Any, clip_input: Any) -> tuple[Any, list[bool]]:
    return torch.zeros_like(images), [True] * len(images)


@pytest.mark.parametrize("command", ["evaluate", pytest.param("tune", marks=pytest.mark.slow)])
def test_images_are_measured_without_a_safety_checker(
    groups: Path, tmp_path: Path, tiny_model: pytest.MonkeyPatch, command: str
) -> None:
    pipe = sd_with_text().pipe
    pipe.safety_checker = blackened
    pipe.feature_extractor = lambda images, return_tensors: SimpleNamespace(
        to=lambda device: SimpleNamespace(pixel_values=torch.zeros(1))
    )
    tiny_model.setattr(models, "load_pipeline", lambda *_, **__: pipe)
    if command == "tune":
        outcome = cotrunk("tune", *CAPTIONS[:4], "--out", tmp_path, "--steps", 4, "--budget", 200)
        made = [np.load(file)["images"] for file in (tmp_path / "tried").glob("*.npz")]
    else:
        schemes = ("--steps", 2, "--shares", "0.5", "--max-groups", 2)
        outcome = cotrunk("evaluate", groups, "--out", tmp_path, *schemes)
        made = [np.load(file)["shown"] for file in (tmp_path / "cells").glob("*.observed.npz")]
    assert outcome.code == 0, outcome.err
    assert made
    assert all(images.any() for images in made)


@pytest.mark.slow
def test_tuning_then_generating(tmp_path: Path, tiny_model: pytest.MonkeyPatch) -> None:
    tuning = ("--steps", 4, "--budget", 200, "--guidance", 3, "--scheduler", "ddim")
    outcome = cotrunk("tune", *CAPTIONS[:4], "--out", tmp_path / "tuned", *tuning)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "tuned" / "index.html").exists()
    hint = outcome.out.splitlines()[-1].removeprefix("Use it: cotrunk ")
    tiny_model.chdir(tmp_path)
    assert cotrunk(*shlex.split(hint)).code == 0
    assert (tmp_path / "run" / "images" / "00003.png").exists()
    found = json.loads((tmp_path / "tuned" / "same-quality.json").read_text())
    file = tmp_path / "tuned" / "same-quality.json"
    outcome = cotrunk("generate", *CAPTIONS[:2], "--settings", file, "--out", tmp_path / "own")
    assert outcome.code == 0, outcome.err
    assert "warning" not in outcome.err
    made = json.loads((tmp_path / "own" / "run.json").read_text())
    assert (made["steps"], made["job"]["guidance_scale"], made["job"]["scheduler"]) == (
        found["settings"]["steps"],
        3,
        "ddim",
    )
    file.write_text(json.dumps(found | {"model": "their-model", "lora": "their-lora"}))
    outcome = cotrunk("generate", *CAPTIONS[:2], "--settings", file, "--out", tmp_path / "theirs")
    assert outcome.code == 0, outcome.err
    assert "tuned with another" not in outcome.err
    made = json.loads((tmp_path / "theirs" / "run.json").read_text())["job"]
    assert (made["model"], [lora["name"] for lora in made["lora"]]) == ("their-model", ["their-lora"])
    for given, model, lora in (
        (("--lora", "mine"), "their-model", ["mine"]),
        (("--model", "./their-model"), "./their-model", ["their-lora"]),
        (("--model", "mine"), "mine", []),  # a LoRA belongs to its model
    ):
        folder = tmp_path / "-".join([model, *lora]).replace("/", "-")
        outcome = cotrunk("generate", *CAPTIONS[:2], "--settings", file, "--out", folder, *given)
        assert outcome.code == 0, outcome.err
        assert ("tuned with another" in outcome.err) == ("mine" in given)
        made = json.loads((folder / "run.json").read_text())["job"]
        assert (made["model"], [each["name"] for each in made["lora"]]) == (model, lora)
    file.write_text(json.dumps(found))
    another = ("--model", "other", "--guidance", 2, "--lora", "lora")
    outcome = cotrunk("generate", *CAPTIONS[:2], "--settings", file, "--out", tmp_path / "another", *another)
    assert outcome.code == 0, outcome.err
    assert "the settings were tuned with another model (mini, not other): cotrunk tune finds those" in outcome.err
    assert "the settings were tuned with another LoRA (none, not lora)" in outcome.err
    made = json.loads((tmp_path / "another" / "run.json").read_text())["job"]
    assert (made["guidance_scale"], made["scheduler"]) == (2, "ddim")
    both = cotrunk("generate", *CAPTIONS[:2], "--settings", file, "--steps", 3, "--out", tmp_path / "other")
    assert_refused(both, "--settings and --steps are both given")


@pytest.mark.parametrize("command", ["dataset", "train", "evaluate", "tune"])
@pytest.mark.parametrize("out", ["file", "file/out"])
def test_out_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, out: str) -> None:
    no_model(monkeypatch)
    (tmp_path / "file").write_text("mine")
    assert_refused(cotrunk(command, "nothing", "--out", tmp_path / out), "Cannot write to", "Choose another --out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("dataset", "in"), "Missing --out DIR"),
        (("dataset", "in", "--out", "set", "--similarity-min", 0.9, "--similarity-max", 0.6), "are not a range"),
        (("dataset", "in", "--out", "set", "--min-group", 1), "min_group 1 is out of range"),
        (("dataset", "in", "--out", "set", "--per-caption", 0), "per_caption 0 is out of range"),
        (("dataset", "in", "--out", "set", "--max-groups", -1), "max_groups -1 is out of range"),
        (("dataset", "in", "--out", "set", "--encoder", "pipeline"), "--encoder pipeline needs a pipeline"),
        (("train", "nothing", "--out", "lora"), "is not a set of groups"),
        (("train", "nothing", "--out", "lora", "--share", 1.5), "share 1.5 is out of range"),
        (("train", "nothing", "--out", "lora", "--seed", -1), "seed -1 is out of range"),
        (("tune", "a", "b", "c", "d", "--out", "tuned", "--rows", 0), "--rows 0.0 is out of range"),
        (("train", "nothing", "--out", "lora", "--batch", 0), "batch 0 is out of range"),
        (("train", "nothing", "--out", "lora", "--tracker", "paper"), "tracker 'paper' is unknown: use "),
        (("evaluate", "nothing", "--out", "results", "--lora", "sage"), "--lora 'sage' is not a name and a folder"),
        (("evaluate", "nothing", "--out", "results", "--shares", "0.2,2"), "--shares 0.2,2 is out of range"),
        (("evaluate", "nothing", "--out", "results", "--seeds", 0), "--seeds 0 is out of range"),
        (("evaluate", "nothing", "--out", "results", "--guidance", "nan"), "--guidance nan is out of range"),
        (
            ("evaluate", "nothing", "--out", "results", "--trunks", "own"),
            "'own' is not published or noise:g",
        ),
        (
            ("evaluate", "nothing", "--out", "results", "--trunks", "mine:0"),
            "noise 'mine' is unknown: use common",
        ),
        (("evaluate", "nothing", "--out", "results", "--trunks", "own:2"), "--trunks guidance 2.0 is out of range"),
        (("evaluate", "nothing", "--out", "results", "--trunks", ","), "--trunks is empty"),
        (("evaluate", "nothing", "--out", "results", "--more-shares", "0"), "--more-shares 0 is out of range"),
        (("evaluate", "nothing", "--out", "results", "--fewer", "x"), "--fewer 'x' is not a list of numbers"),
        (("evaluate", "nothing", "--out", "results", "--fewer", "4,0"), "--fewer 4,0 is out of range"),
        (("evaluate", "nothing", "--out", "results", "--max-groups", -1), "--max-groups -1 is out of range"),
        (("evaluate", "nothing", "--out", "results", "--height", 30), "--height 30 is not a valid size of an image"),
        (("evaluate", "nothing", "--out", "results", "--lora", "a=b", "--lora", "a=c"), "has a name that is taken"),
        (("tune", "a", "b", "--out", "tuned", "--sample", 2), "--sample 2 is too small"),
        (("tune", "a", "b", "--out", "tuned", "--margin", -1), "--margin -1.0 is out of range"),
        (("tune", *"abcde", "--out", "tuned", "--sample", 4, "--seed", -1), "--seed -1 is out of range"),
        (("tune", "a", "b", "--out", "tuned", "--steps", 0), "--steps 0 is out of range"),
        (("tune", "a", "b", "--out", "tuned", "--guidance", "nan"), "--guidance nan is out of range"),
    ],
)
def test_bad_input_gives_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    no_model(monkeypatch)
    folder_of(tmp_path / "in", "jsonl")
    assert_refused(cotrunk(*arguments), said)


def test_only_the_first_of_several_processes_prints(
    groups: Path, tmp_path: Path, tiny_model: pytest.MonkeyPatch
) -> None:
    tiny_model.setenv("RANK", "1")
    settings = ("--steps", 1, "--batch", 2, "--rank", 2, "--height", 32, "--width", 16)
    outcome = cotrunk("train", groups, "--out", tmp_path, *settings)
    assert outcome.code == 0, outcome.err
    assert "The LoRA is" not in outcome.out
    assert "Training" not in outcome.err
