"""A LoRA says for which trunks it was trained, and a run with others says so."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import PLAN

from cotrunk.pipelines.weighted_lora import WeightedLora
from cotrunk.runs.trained_trunk import other_trunk
from cotrunk.settings import Sharing
from cotrunk.training.loss import Loss
from cotrunk.training.settings import TrainSettings

COMMON = replace(PLAN, sharing=Sharing.published())
OWN = replace(PLAN, sharing=Sharing(noise="own", trunk_guidance=0.0))


def trained(folder: Path, **loss: Any) -> tuple[WeightedLora, ...]:
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(asdict(TrainSettings(loss=Loss(**loss)))))
    return (WeightedLora("style"), WeightedLora(str(folder)))


@pytest.mark.parametrize(("noise", "fitting", "other"), [("common", COMMON, OWN), ("own", OWN, COMMON)])
def test_another_noise_is_named(tmp_path: Path, noise: str, fitting: Any, other: Any) -> None:
    loras = trained(tmp_path / "lora", noise=noise)
    assert other_trunk(loras, fitting) is None
    said = str(other_trunk(loras, other))
    assert f"lora was trained for trunks with {noise} noise" in said
    assert f"use --noise {noise}" in said


def test_nothing_is_said_where_it_does_not_matter(tmp_path: Path) -> None:
    loras = trained(tmp_path / "lora")
    assert other_trunk(loras, OWN.independent()) is None
    assert other_trunk(trained(tmp_path / "standard", objective="standard"), OWN) is None
    assert other_trunk((), OWN) is None
    for content in ("", "[]", "{}", '{"loss": 3}', '{"loss": {"objective": "sage", "noise": "mine"}}'):
        (tmp_path / "lora/settings.json").write_text(content)
        assert other_trunk(loras, OWN) is None
