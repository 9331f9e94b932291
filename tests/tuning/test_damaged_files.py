"""Files that `cotrunk tune` reads again: damaged ones are made again or named."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import spoils
from tiny import sd_with_text

from cotrunk import CotrunkError, Settings
from cotrunk.tuning.candidates import candidate
from cotrunk.tuning.settings_file import read_settings
from cotrunk.tuning.trials import Trials


@pytest.mark.slow
def test_damaged_images_of_a_sweep_are_made_again(tmp_path: Path) -> None:
    pipe, setting = sd_with_text().pipe, candidate(2)
    arguments = {"height": 32, "width": 32, "guidance_scale": 3.0}
    prompts = ["a red picture", "a dog"]
    first = Trials(pipe, prompts, arguments, tmp_path).of(setting, 0)
    (path,) = (tmp_path / "tried").iterdir()
    with np.load(path) as found:
        kept = dict(found)
    facts = json.loads(str(kept["facts"]))

    def foreign() -> Iterator[str]:
        yield from spoils(path, ["null"])
        for name, arrays in {
            "another number of images": {"images": kept["images"][:1]},
            "no bytes": {"images": kept["images"].astype(np.float32)},
            "another place": {"facts": json.dumps(facts | {"good": [0, 7]})},
            "no place": {"facts": json.dumps(facts | {"good": 3})},
            "no number": {"facts": json.dumps(facts | {"rows": float("nan")})},
            "another entry": {"facts": json.dumps(facts | {"more": 1})},
        }.items():
            np.savez(path, **kept | arrays)
            yield name

    for _ in foreign():
        if path.is_dir():
            with pytest.raises(CotrunkError, match="is a folder"):
                Trials(pipe, prompts, arguments, tmp_path).of(setting, 0)
            continue
        again = Trials(pipe, prompts, arguments, tmp_path).of(setting, 0)
        assert torch.equal(again.images, first.images)
        assert (again.good, again.rows) == (first.good, first.rows)


TUNED = {"settings": Settings(steps=3).to_json(), "model": "mini", "lora": None, "scheduler": None, "guidance": 3.0}


@pytest.mark.parametrize(
    "changed",
    [
        *({"settings": wrong} for wrong in (None, 3, [], "x", {"more": 1}, {"sharing": None})),
        *({"settings": {"steps": steps}} for steps in (0, -3, True, 3.0, "3", [3])),
        *({"settings": {"steps": 3, "sharing": {"share": wrong}}} for wrong in ("1", True, [], {}, 1e999)),
        *({"settings": {"steps": 3, "guidance_interval": wrong}} for wrong in ([0.1], [0.1, "x"], 3, {"a": 1})),
        *({"guidance": wrong} for wrong in ("1", True, [], {}, 1e999)),
        {"model": None},
        *({name: 7} for name in ("model", "lora", "scheduler")),
        {"more": 1},
    ],
)
def test_settings_of_other_types_are_reported(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(TUNED))
    assert read_settings(path)[0].steps == 3
    path.write_text(json.dumps(TUNED | changed))
    with pytest.raises(CotrunkError, match=r"a\.json(: | is not a file of settings| gives no number of steps)"):
        read_settings(path)


def test_damaged_settings_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(TUNED))
    for _ in spoils(tmp_path / "a.json"):
        with pytest.raises(CotrunkError, match=r"a\.json(: | is not a file of settings| gives no number of steps)"):
            read_settings(tmp_path / "a.json")
