"""Runs that do not give the images that were asked for."""

import functools
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import PROMPTS, QUICK, assert_refused, cotrunk, pipeline, read

from cotrunk.runs.folder import RunFolder


def test_latents_that_are_not_finite(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unet = pipeline().unet
    forward = unet.forward

    @functools.wraps(forward)
    def spoiled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        sample = output[0] if isinstance(output, tuple) else output.sample
        sample[-1] = float("nan")  # the row of the last image, which shares nothing
        return output

    model.setattr(unet, "forward", spoiled)
    model.setattr("cotrunk.runs.runner.BATCH_SECONDS", math.inf)  # one batch
    out = tmp_path / "run"
    outcome = cotrunk("generate", *PROMPTS, "--out", out, *QUICK)
    assert outcome.code == 1
    assert "failed: 1 of 6 images contain NaN: images/00005.png" in outcome.err
    assert "Traceback" not in outcome.err
    report = read(out)
    assert report["status"] == "failed images"
    assert [image["failed"] for image in report["images"]] == [False] * 5 + [True]
    assert sorted(path.name for path in (out / "images").iterdir()) == [f"{i:05d}.png" for i in range(5)]
    assert "failed" in (out / "index.html").read_text(encoding="utf-8")


def test_images_that_a_safety_checker_blackens(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The run is done, but some images are not what the user asked for. So the exit code is 1, as for failed images."""
    out, call = tmp_path / "run", type(pipeline()).__call__

    @functools.wraps(call)
    def checked(self: Any, *args: Any, **given: Any) -> Any:
        output = call(self, *args, **given)
        output["nsfw_content_detected"] = ["tiger" in prompt for prompt in given["prompt"]]
        return output

    model.setattr(type(pipeline()), "__call__", checked)
    arguments = ("generate", *PROMPTS, "--out", out, *QUICK)
    for outcome in (cotrunk(*arguments), cotrunk(*arguments, "--resume")):
        assert outcome.code == 1, outcome.err
        said = "flagged: the model's safety checker blackened 2 of 6 images: images/00003.png, images/00004.png"
        assert said in outcome.err
        report = read(out)
        assert report["status"] == "flagged images"
        assert [image["flagged"] for image in report["images"]] == [False] * 3 + [True] * 2 + [False]
        page = (out / "index.html").read_text(encoding="utf-8")
        assert page.count(">flagged</a>") == 2
        assert "not complete" not in page


@pytest.mark.parametrize("kind", ["replaced", "an image"])
def test_a_folder_that_is_cleaned_up_during_the_run(model: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    out, write, batches = tmp_path / "run", RunFolder.write_batch, list[Any]()

    def clean_up(self: RunFolder, *given: Any) -> None:
        write(self, *given)
        batches.append(given)
        if len(batches) > 1:
            return
        if kind == "an image":
            (out / "images/00001.png").unlink()
        elif kind == "the journal":
            (out / "journal.jsonl").unlink()
        else:
            shutil.rmtree(out)
            if kind == "replaced":
                out.mkdir()

    model.setattr(RunFolder, "write_batch", clean_up)
    outcome = cotrunk("generate", *PROMPTS, "--out", out, *QUICK)
    assert outcome.code == 2, outcome
    last = outcome.err.splitlines()[-1]
    if kind in ("removed", "replaced"):
        assert f"{out} or its .cotrunk.lock was removed" in last
        assert out.exists() == (kind == "replaced")
        assert not out.exists() or list(out.iterdir()) == []
    else:
        assert "were removed or changed during the run: use --resume to generate them again" in last
        assert cotrunk("generate", *PROMPTS, "--out", out, *QUICK, "--resume").code == 0
        assert read(out)["status"] == "done"


@pytest.mark.parametrize("command", ["generate", "plan"])
def test_a_model_that_does_not_fit_in_memory(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("cotrunk.pipelines.loading.load_pipeline", load)
    out = ["--out", tmp_path / "run"] if command == "generate" else []
    assert_refused(cotrunk(command, "a cat", *out), "too little memory", "--dtype float16 or a smaller --model")
