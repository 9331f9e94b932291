"""Runs that get more prompts, and images that are generated again because they had failed."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import PROMPTS, QUICK, Outcome, assert_refused, cotrunk, no_model, pipeline, pixels, read

from cotrunk.runs.folder import RunFolder
from cotrunk.runs.metadata import read_recipe

MORE = [*PROMPTS[:2], "a tiger", "a sleeping tiger", PROMPTS[0], "a pear"]


def generate(out: Path, prompts: list[str], *options: object) -> Outcome:
    """Run `cotrunk generate` with a file of these prompts."""
    file = out.parent / "prompts.txt"
    file.write_text("\n".join(prompts), encoding="utf-8")
    return cotrunk("generate", "--prompts", file, "--out", out, *QUICK, *options)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "images").iterdir()}


@pytest.fixture
def out(model: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder of a finished run of two prompts."""
    assert generate(tmp_path / "run", MORE[:2]).code == 0
    return tmp_path / "run"


def test_appended_prompts_extend_a_finished_run(out: Path, tmp_path: Path) -> None:
    before = contents(out)
    outcome = generate(out, MORE, "--resume")
    assert outcome.code == 0, outcome.err
    assert "4 prompts were appended: they share among themselves" in outcome.err
    found, report = contents(out), read(out)
    assert {name: found[name] for name in before} == before
    assert sorted(found) == [f"{i:05d}.png" for i in range(6)]
    assert report["status"] == "done"
    assert [group["images"] for group in report["groups"]] == [[0, 1], [2, 3], [4, 5]]
    assert len({image["seed"] for image in (report["images"][0], report["images"][4])}) == 2
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "Prompts appended to an earlier run: 4." in page
    assert "differ in size" not in page
    assert "nothing to resume" in generate(out, MORE, "--resume").out

    more = generate(out, [*MORE, "a green pear"], "--resume")
    assert more.code == 0
    assert {name: content for name, content in contents(out).items() if name in found} == found
    assert read(out)["groups"][-1]["images"] == [6]
    assert "1 prompt was appended" in more.err

    assert cotrunk("redo", out, "--images", "1,3", "--out", tmp_path / "again").code == 0
    for name in ("00001.png", "00003.png"):
        assert np.array_equal(pixels(tmp_path / "again" / name), pixels(out / "images" / name))


@pytest.mark.parametrize(
    "prompts", [MORE[:1], ["a pear", *MORE[:2]], [MORE[0], "a pear"], [MORE[1], MORE[0], "a pear"]]
)
def test_earlier_prompts_may_not_change(out: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[str]) -> None:
    no_model(monkeypatch)
    before = contents(out)
    assert_refused(generate(out, prompts, "--resume"), "other prompts: keep its prompts as they are, append new ones")
    assert contents(out) == before


def test_an_extension_that_was_stopped_before_its_report(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(out)

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "write_report", stop)
        assert generate(out, MORE[:3], "--resume").code == 130
    assert len(read(out)["images"]) == 2
    assert generate(out, MORE[:3], "--resume").code == 0
    found = contents(out)
    assert sorted(found) == ["00000.png", "00001.png", "00002.png"]
    assert {name: found[name] for name in before} == before


class Checker:
    """A safety checker that refuses some prompts a number of times."""

    def __init__(self, patch: pytest.MonkeyPatch, word: str, times: int) -> None:
        self.times, call = times, type(pipeline()).__call__

        @functools.wraps(call)
        def checked(pipe: Any, *args: Any, **given: Any) -> Any:
            output = call(pipe, *args, **given)
            refused = [word in prompt and self.times > 0 for prompt in given["prompt"]]
            output["nsfw_content_detected"] = refused
            self.times -= any(refused)
            return output

        patch.setattr(type(pipeline()), "__call__", checked)


def test_flagged_images_are_generated_again_on_request(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, prompts = tmp_path / "run", ["a violin", "a tiger"]
    Checker(model, "tiger", 1)
    assert generate(out, prompts).code == 1
    before, first = contents(out), read(out)
    outcome = generate(out, prompts, "--resume", "--retry-failed")
    assert outcome.code == 0, outcome.err
    found, report = contents(out), read(out)
    assert found["00000.png"] == before["00000.png"]
    assert found["00001.png"] != before["00001.png"]
    assert report["images"][1]["seed"] != first["images"][1]["seed"]
    assert report["images"][0] == first["images"][0]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "after they had failed or had been flagged: 1." in page
    assert page.count('href="images/00001.png"') == 1  # its first group is not shown


@pytest.mark.slow
def test_images_that_are_refused_twice(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, prompts = tmp_path / "run", PROMPTS[2:5]
    checker = Checker(model, "tiger", 2)
    assert generate(out, prompts, "--images-per-prompt", 1).code == 1
    before, first = contents(out), read(out)
    assert [image["flagged"] for image in first["images"]] == [False, True, True]
    assert generate(out, prompts, "--resume").code == 1
    assert contents(out) == before

    outcome = generate(out, prompts, "--resume", "--retry-failed")  # refused once more
    assert outcome.code == 1
    assert "Generating 2 images again with new seeds." in outcome.err
    assert checker.times == 0
    outcome = generate(out, prompts, "--resume", "--retry-failed")
    assert outcome.code == 0, outcome.err
    found, report = contents(out), read(out)
    assert report["status"] == "done"
    assert [image["flagged"] for image in report["images"]] == [False] * 3
    assert [image["retries"] for image in report["images"]] == [0, 2, 2]
    assert found["00000.png"] == before["00000.png"]
    for name, image, earlier in zip(sorted(found)[1:], report["images"][1:], first["images"][1:], strict=True):
        assert image["seed"] != earlier["seed"]
        recipe = read_recipe(out / "images" / name)
        assert recipe["plan"]["seeds"][recipe["image"]] == image["seed"]
        assert found[name] != before[name]
        assert report["groups"][image["group"]]["images"] == [1, 2]  # they share again
    assert "generated again" in (out / "index.html").read_text(encoding="utf-8")
    for options in ([], ["--retry-failed"]):
        outcome = generate(out, prompts, "--resume", *options)
        assert outcome.code == 0
        assert "nothing to resume" in outcome.out
    assert contents(out) == found

    assert cotrunk("redo", out, "--images", "2", "--out", tmp_path / "again").code == 0
    assert np.array_equal(pixels(tmp_path / "again/00002.png"), pixels(out / "images/00002.png"))
    (out / "images/00001.png").unlink()
    assert generate(out, prompts, "--resume").code == 0
    assert contents(out) == found
    assert generate(out, [*prompts, "a pear"], "--resume").code == 0
    assert {name: content for name, content in contents(out).items() if name in found} == found


def test_images_with_nan_are_generated_again_in_the_same_run(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unet = pipeline().unet
    forward, spoiled = unet.forward, []

    @functools.wraps(forward)
    def once(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if not spoiled:
            spoiled.append(True)
            (output[0] if isinstance(output, tuple) else output.sample)[-1] = torch.nan
        return output

    model.setattr(unet, "forward", once)
    outcome = generate(tmp_path / "run", ["a violin"], "--retry-failed")
    assert outcome.code == 0, outcome.err
    assert "Generating 1 image again with new seeds." in outcome.err
    report = read(tmp_path / "run")
    assert (report["status"], report["images"][0]["retries"]) == ("done", 1)
    assert [group["images"] for group in report["groups"]] == [[0], [0]]
    assert report["rows"]["independent"] == 2 * 6  # both attempts count


def test_nothing_is_generated_again_if_nothing_failed(out: Path) -> None:
    outcome = generate(out, MORE[:2], "--resume", "--retry-failed")
    assert "nothing to resume" in outcome.out
