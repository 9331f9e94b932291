"""Files that `cotrunk evaluate` reads again: damaged ones are made again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import JSONS, spoils
from experiments import NETWORKS, Means
from tiny import sd_with_text

from cotrunk import CotrunkError
from cotrunk.evaluation.experiment import Experiment
from cotrunk.evaluation.measuring import Measures
from cotrunk.evaluation.observation import Cell


def experiment(out: Path) -> Experiment:
    arguments = {"height": 16, "width": 16}
    return Experiment(
        sd_with_text().pipe,
        [["a dog", "a cat"], ["a tree", "a bush"]],
        {"base": None},
        NETWORKS,
        out,
        arguments=arguments,
    )


@pytest.mark.slow
def test_damaged_features_and_measures_are_made_again(tmp_path: Path) -> None:
    cell, other = Cell("base", steps=2), Cell("base", steps=1)
    real = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()

    def measured() -> Any:
        measures = Measures(experiment(tmp_path), real, [[0, 1], [2, 3]])
        result = measures.of([cell])
        return result.figures, result.rows, measures.compare([cell], [other])

    first = measured()
    files = [*(tmp_path / "cells").glob("*.npz"), *(tmp_path / "cells").glob("*/*.json")]
    assert len(files) == 4
    for path in files:
        for _ in spoils(path, JSONS if path.suffix == ".json" else ["null"]):
            if path.is_dir():
                with pytest.raises(CotrunkError, match="is a folder"):
                    measured()
            else:
                assert repr(measured()) == repr(first)
    seen = next(path for path in files if "2steps" in path.name)
    with np.load(seen) as kept:
        arrays = dict(kept)
    np.savez(seen, **arrays | {"diversity": arrays["diversity"] * 2})  # in the right form, but with wrong values
    assert repr(measured()) == repr(first)


def test_a_damaged_batch_of_a_cell_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("base", steps=2)
    whole = experiment(tmp_path / "whole").observe(cell)
    with monkeypatch.context() as patch:
        patch.setattr(Means, "features", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            experiment(tmp_path).observe(cell)
    (path,) = (tmp_path / "cells").glob("*.batches/*.npz")
    content = path.read_bytes()
    with np.load(path) as kept:
        arrays = dict(kept)

    def saved(**changed: Any) -> Callable[[], None]:
        return lambda: np.savez(path, **arrays | changed)

    for damage in (
        lambda: path.write_bytes(content[: len(content) // 2]),
        lambda: path.write_bytes(b"no batch"),
        saved(indices=np.array([0, 99, 2, 3])),
        saved(indices=np.array(["a"] * 4)),
        saved(pixels=arrays["pixels"][:1]),
        saved(costs=np.array([np.nan, 1])),
    ):
        damage()
        assert torch.equal(experiment(tmp_path).observe(cell).features, whole.features)
        path.parent.mkdir()
        for seen in (tmp_path / "cells").glob("*.observed.npz"):
            seen.unlink()
