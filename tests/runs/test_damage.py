"""Files that `dataset`, `train`, `evaluate` and `tune` read again: damaged ones are made again or named."""

import json
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from experiments import NETWORKS, Means
from PIL import Image
from tiny import sd_with_text
from trainings import QUICK, SIZE, same_weights, trained

from cotrunk import CotrunkError, Settings
from cotrunk.evaluation.experiment import Experiment
from cotrunk.evaluation.measuring import Measures
from cotrunk.evaluation.observation import Cell
from cotrunk.groups.captions import Pair
from cotrunk.groups.dataset import read_groups, read_similarities
from cotrunk.training.checkpoint import FILE
from cotrunk.training.conditions import Conditions
from cotrunk.training.encoded import EncodedGroups, encode
from cotrunk.training.log import plot_losses, read_losses
from cotrunk.training.lora import LORA_FILE
from cotrunk.training.settings import TrainSettings
from cotrunk.training.trainer import train
from cotrunk.tuning.candidates import candidate
from cotrunk.tuning.settings_file import read_settings
from cotrunk.tuning.trials import Trials

# what a hostile or a damaged JSON file may hold
JSONS = ["", "null", "[]", "7", "NaN", "[" * 100_000, '{"filled": Infinity, "names": 3}', '{"filled": true}', "\ud800"]
TWO = TrainSettings(**vars(QUICK) | {"steps": 2})


def spoils(path: Path, contents: Sequence[str] = JSONS) -> Iterator[str]:
    """This file damaged in every way, what was done by its name; then as it was."""
    whole = path.read_bytes()
    path.unlink()
    yield "missing"
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        yield f"{length} bytes"
    for content in contents:
        path.write_bytes(content.encode(errors="surrogatepass"))
        yield content[:40]
    path.unlink()
    path.mkdir()
    yield "a folder"
    path.rmdir()
    path.write_bytes(whole)


@pytest.mark.parametrize(
    "name", ["images.json", "latents.npy", "captions.json", "common.pt", "encoder_hidden_states.npy"]
)
def test_what_is_damaged_of_encoded_pictures_is_encoded_again(
    groups: list[list[Pair]],
    tmp_path: Path,
    name: str,
) -> None:
    pipe = sd_with_text().pipe

    def encoded() -> dict[str, bytes]:
        encode(pipe, Conditions(pipe, **SIZE), groups, (32, 32), tmp_path)
        EncodedGroups(tmp_path, groups).batch([0, 1], [False, True])
        return {file.name: file.read_bytes().strip() for file in tmp_path.iterdir()}

    whole = encoded()
    for _ in spoils(tmp_path / name):
        if (tmp_path / name).is_dir():
            with pytest.raises(CotrunkError, match=r"is a folder|Is a directory"):
                encoded()
        else:
            assert encoded() == whole


@pytest.mark.slow
def test_a_checkpoint_of_any_other_content_is_named(groups: list[list[Pair]], tmp_path: Path) -> None:
    settings, pipe = TrainSettings(**vars(TWO) | {"ema": 0.5}), sd_with_text().pipe
    trained(groups, tmp_path, settings)
    lora, state = (tmp_path / LORA_FILE).read_bytes(), torch.load(tmp_path / FILE)
    first = next(iter(state["lora"]))
    moments = state["optimiser"]["state"]

    def changed(**entries: Any) -> Any:
        return state | entries

    hostile = [
        7,
        [],
        {},
        *(changed(step=step) for step in (None, "2", 2.0, -1, 0, torch.tensor(2))),
        *(changed(run=run) for run in (None, [], {}, state["run"] | {"loss": 3}, {"loss": {}, "seed": torch.ones(2)})),
        *(changed(lora=lora) for lora in (None, [], {}, state["lora"] | {first: "x"}, {1: 2})),
        changed(lora=state["lora"] | {first: state["lora"][first][:1]}),
        *(changed(average=average) for average in (None, 3, [], state["average"][:-1], [torch.ones(1)] * 99)),
        *(changed(optimiser=optimiser) for optimiser in (None, [], {}, {"state": 3, "param_groups": [{}]})),
        changed(optimiser=state["optimiser"] | {"state": {}}),
        changed(optimiser=state["optimiser"] | {"state": moments | {0: moments[0] | {"exp_avg": torch.zeros(1)}}}),
        changed(optimiser=state["optimiser"] | {"state": moments | {0: {"step": 3}}}),
    ]
    for content in hostile:
        torch.save(content, tmp_path / FILE)
        with pytest.raises(
            CotrunkError,
            match=r"\.pt (is not a checkpoint|belongs to another model)|contains a training run",
        ):
            trained(groups, tmp_path, settings)
    torch.save(state, tmp_path / FILE)
    for done in spoils(tmp_path / FILE):
        if done != "missing":
            with pytest.raises(
                CotrunkError, match=r"checkpoint\.pt is not a checkpoint of cotrunk train: choose another"
            ):
                train(pipe, groups, settings, tmp_path)
    assert (tmp_path / LORA_FILE).read_bytes() == lora
    train(pipe, groups, settings, tmp_path)


def test_settings_of_a_training_are_not_read_again(groups: list[list[Pair]], tmp_path: Path) -> None:
    trained(groups, tmp_path, TWO)
    (tmp_path / "settings.json").write_text("[" * 100_000)
    trained(groups, tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text())["steps"] == QUICK.steps


def test_lines_of_a_log_that_no_training_wrote_are_passed_over(
    groups: list[list[Pair]],
    tmp_path: Path,
) -> None:
    terms = {"total": 1, "shared": 1, "target": 1, "branch": 1}
    hostile = [
        "7",
        "[1]",
        "null",
        *(json.dumps({"step": step} | terms) for step in ("1", None, 2.5, True, [1])),
        *(json.dumps({"step": 1} | terms | {"total": total}) for total in ("1", None, float("nan"), float("inf"), {})),
        '{"step": 1, "total": 3}',
        "torn",
    ]
    log = tmp_path / "losses.jsonl"
    log.write_text("\n".join(hostile))
    plot_losses(log, tmp_path / "empty.png")
    trained(groups, tmp_path, TWO)
    assert [line["step"] for line in read_losses(log)] == [1, 2]
    plot_losses(log, tmp_path / "losses.png")


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file can be longer than this: what is said is that of a full disk, but for its number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(groups: list[list[Pair]], tmp_path: Path) -> None:
    trained(groups, tmp_path, TWO)
    kept = {name: (tmp_path / name).read_bytes() for name in (FILE, LORA_FILE)}
    for room, file in ((5_000, FILE), (100, "losses.jsonl")):
        with full_disk(room), pytest.raises(CotrunkError, match=rf"^Cannot write .*{file}: .*\. Make room or choose"):
            trained(groups, tmp_path)
        assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
        assert not list(tmp_path.glob(".*part"))
    _, went_on = trained(groups, tmp_path)
    assert same_weights(went_on, trained(groups, tmp_path / "whole")[1])


def test_a_disk_that_fills_up_while_pictures_are_encoded(groups: list[list[Pair]], tmp_path: Path) -> None:
    """Through a memory map it would end the process."""
    for room in (100, 1000):
        with (
            full_disk(room),
            pytest.raises(CotrunkError, match=r"^Cannot write .*\.(npy|pt): .*\. Make room or choose"),
        ):
            trained(groups, tmp_path, TWO)
    _, went_on = trained(groups, tmp_path, TWO)
    assert same_weights(went_on, trained(groups, tmp_path / "whole", TWO)[1])


def test_a_training_that_was_killed_while_its_lora_was_written_ends(
    groups: list[list[Pair]],
    tmp_path: Path,
) -> None:
    _, whole = trained(groups, tmp_path, TWO)
    for name in (LORA_FILE, "README.md"):
        (tmp_path / name).unlink()
    _, again = trained(groups, tmp_path, TWO)
    assert same_weights(again, whole)
    assert (tmp_path / "README.md").exists()


def test_a_full_disk_leaves_the_last_lora(groups: list[list[Pair]], tmp_path: Path) -> None:
    trained(groups, tmp_path, TWO)
    size = (tmp_path / LORA_FILE).stat().st_size
    kept = (tmp_path / LORA_FILE).read_bytes()
    with full_disk(size - 1), pytest.raises(CotrunkError, match=rf"^Cannot write .*{LORA_FILE}: "):
        trained(groups, tmp_path, TWO)
    assert (tmp_path / LORA_FILE).read_bytes() == kept
    assert not list(tmp_path.glob(".*part"))


WHOLE = {"captions": [["a dog", "a cat"]], "images": [["1.png", "2.png"]], "smallest_similarity": [0.7]}


@pytest.mark.parametrize(
    ("changed", "summary"),
    [
        ({}, "["),
        ({}, "7"),
        ({}, "[" * 100_000),
        ({}, None),
        ({"captions": [["a dog", None]]}, "{}"),
        ({"captions": [["a dog"]]}, "{}"),
        ({"captions": [None]}, "{}"),
        ({"captions": ["a dog"]}, "{}"),
        ({"captions": [[]], "images": [[]]}, "{}"),
        ({"images": [[1, 2]]}, "{}"),
        ({"images": [[["1.png"], ["2.png"]]]}, "{}"),
        ({"captions": pa.array([], pa.list_(pa.string())), "images": pa.array([], pa.list_(pa.string()))}, "{}"),
    ],
)
def test_a_set_of_groups_that_is_damaged_is_named(tmp_path: Path, changed: dict[str, Any], summary: str | None) -> None:
    columns = {**WHOLE, **changed}
    if not len(columns["captions"]):
        columns["smallest_similarity"] = pa.array([], pa.float64())
    table = pa.table(columns)
    if summary is not None:
        table = table.replace_schema_metadata({"cotrunk": summary})
    pq.write_table(table, tmp_path / "groups.parquet")
    with pytest.raises(CotrunkError, match="make one with cotrunk dataset"):
        read_groups(tmp_path)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.7"])
def test_a_set_of_groups_without_its_similarities_is_named(tmp_path: Path, value: Any) -> None:
    table = pa.table({**WHOLE, "smallest_similarity": [value]}).replace_schema_metadata({"cotrunk": "{}"})
    pq.write_table(table, tmp_path / "groups.parquet")
    with pytest.raises(CotrunkError, match="make one with cotrunk dataset"):
        read_similarities(tmp_path)


def test_a_set_of_groups_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "groups.parquet"
    pq.write_table(pa.table(WHOLE).replace_schema_metadata({"cotrunk": "{}"}), path)
    assert read_groups(tmp_path)[0] == [[Pair("a dog", Path("1.png")), Pair("a cat", Path("2.png"))]]
    for _ in spoils(path):
        with pytest.raises(CotrunkError, match="is not a set of groups: make one with cotrunk dataset"):
            read_groups(tmp_path)


def test_pictures_of_a_sweep_that_are_damaged_are_made_again(tmp_path: Path) -> None:
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
def test_what_was_seen_and_measured_and_is_damaged_is_seen_and_measured_again(tmp_path: Path) -> None:
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
    np.savez(seen, **arrays | {"diversity": arrays["diversity"] * 2})  # in the right form, and not what was seen
    assert repr(measured()) == repr(first)


def test_a_batch_of_a_cell_that_is_damaged_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


TUNED = {"settings": Settings(steps=3).to_json(), "model": "mini", "lora": None, "scheduler": None, "guidance": 3.0}


@pytest.mark.parametrize(
    "changed",
    [
        *({"settings": wrong} for wrong in (None, 3, [], "x", {"more": 1}, {"sharing": None})),
        *({"settings": {"steps": steps}} for steps in (0, -3, True, 3.0, "3", [3])),
        *({"settings": {"steps": 3, "sharing": {"share": wrong}}} for wrong in ("1", True, [], {}, 1e999, None)),
        *({"settings": {"steps": 3, "guidance_interval": wrong}} for wrong in ([0.1], [0.1, "x"], 3, {"a": 1})),
        *({"guidance": wrong} for wrong in ("1", True, [], {}, 1e999, None)),
        {"model": None},
        *({name: 7} for name in ("model", "lora", "scheduler")),
        {"more": 1},
    ],
)
def test_settings_of_other_types_are_named(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(TUNED))
    assert read_settings(path)[0].steps == 3
    path.write_text(json.dumps(TUNED | changed))
    with pytest.raises(CotrunkError, match="is not a file of settings: give one that cotrunk tune wrote"):
        read_settings(path)


def test_settings_that_are_damaged_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(TUNED))
    for _ in spoils(tmp_path / "a.json"):
        with pytest.raises(CotrunkError, match="is not a file of settings: give one that cotrunk tune wrote"):
            read_settings(tmp_path / "a.json")


def test_a_group_with_a_name_that_no_file_has_is_named(groups: list[list[Pair]], tmp_path: Path) -> None:
    odd = [[Pair("a dog", Path("a\0b.png")), *groups[0]]]
    with pytest.raises(CotrunkError, match="cannot be read any more: make the groups again"):
        trained(odd, tmp_path)


def test_an_image_file_with_a_name_that_no_file_has_is_left_out(tmp_path: Path) -> None:
    from cotrunk.groups.images import unreadable

    assert unreadable(tmp_path / "a\0b.png")
    assert unreadable(tmp_path)
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    assert unreadable(tmp_path / "a.png") is None
