"""The command line as its first user meets it: a real run, every bad input, help."""

import contextlib
import functools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import PROMPTS, QUICK, ROUNDING, Outcome, assert_refused, cotrunk, no_model, pipeline, pixels, read
from PIL import Image

from cotrunk import CotrunkError, __version__
from cotrunk.execution import Run
from cotrunk.generation import generate
from cotrunk.planning.plan import Plan
from cotrunk.runs.folder import RunFolder
from cotrunk.runs.report import RunReport
from cotrunk.settings import Settings, Sharing, Skipping

# A real run.


def test_a_run_says_what_it_did(run: tuple[Path, Outcome]) -> None:
    folder, outcome = run
    assert outcome.code == 0, outcome.err
    assert "6 images for 30 denoiser rows instead of 36: saved 16.7%" in outcome.out
    assert f"Open {folder / 'index.html'}" in outcome.out
    assert "5 blank lines skipped" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_run_leaves_its_files_and_no_others(run: tuple[Path, Outcome]) -> None:
    folder, _ = run
    pictures = [
        f"{name}/{i:05d}.png" for name in ("images", "compare/independent", "compare/equal-cost") for i in range(6)
    ]
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"run.json", "plan.json", "journal.jsonl", "index.html", *pictures}
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert all(prompt in page for prompt in PROMPTS)


def test_pictures_carry_their_origin(run: tuple[Path, Outcome]) -> None:
    folder, _ = run
    report = read(folder)
    for image, entry in enumerate(report["images"]):
        with Image.open(folder / entry["file"]) as picture:
            picture.load()
            assert picture.size == (128, 128)
            assert picture.text["prompt"] == PROMPTS[image]
            assert picture.text["seed"] == str(entry["seed"])
            assert picture.text["group"] == str(entry["group"])
            assert float(picture.text["rows"]) == pytest.approx(entry["rows"], abs=1e-3)


def test_run_json(run: tuple[Path, Outcome]) -> None:
    report = read(run[0])
    assert json.loads(RunReport.load(run[0]).to_text()) == report
    assert (report["status"], report["steps"]) == ("done", 3)
    expected = {"prompts": PROMPTS, "guidance_scale": 3.0, "seed": 5, "model": "mini", "dtype": "auto"}
    assert {name: report["job"][name] for name in expected} == expected
    assert report["job"]["settings"] == Settings(sharing=Sharing(share=0.4), steps=3).to_json()
    assert report["pipeline"] == {"scheduler": "DDIMScheduler", "device": "cpu", "dtype": "float32"}
    assert len(report["images"]) == 6
    groups = [(group["prompts"], group["branch_step"]) for group in report["groups"]]
    assert groups == [([0, 1, 2], 1), ([3, 4], 1), ([5], 0)]
    assert all(report["threshold"] <= group["similarity"] <= 1 for group in report["groups"])
    spared = {"sharing": 6, "skipping": 0, "guidance": 0}
    saving = pytest.approx(1 / 6, abs=1e-5)
    assert report["rows"] == {"used": 30, "independent": 36, "saving": saving, "spared": spared}
    assert sum(image["rows"] for image in report["images"]) == pytest.approx(30, abs=1e-2)
    seconds = report["seconds"]
    assert set(seconds) == {"load", "embed", "denoise", "decode", "total"}
    assert 0 < seconds["denoise"] < seconds["total"]
    assert {"cotrunk", "diffusers", "torch"} <= set(report["versions"])


def test_predicted_rows_are_counted_rows(run: tuple[Path, Outcome]) -> None:
    folder, _ = run
    cost = Plan.load(folder / "plan.json").cost
    rows = read(folder)["rows"]
    assert (cost.used, cost.independent) == (rows["used"], rows["independent"])


def test_the_plan_replays_to_the_same_pictures(run: tuple[Path, Outcome], model: pytest.MonkeyPatch) -> None:
    folder, _ = run
    again = generate(pipeline(), plan=Plan.load(folder / "plan.json"), num_inference_steps=3, guidance_scale=3.0)
    for image, picture in enumerate(again.images):
        difference = np.asarray(picture).astype(int) - pixels(folder / f"images/{image:05d}.png")
        assert np.abs(difference).max() <= ROUNDING


def test_compare(run: tuple[Path, Outcome]) -> None:
    folder, outcome = run
    report = read(folder)
    independent, equal = report["compare"]["independent"], report["compare"]["equal_cost"]
    assert (independent["steps"], independent["rows"]) == (3, 36)
    assert (equal["steps"], equal["rows"]) == (2, 24)  # 3 steps would be 36 rows, sharing took 30
    assert "equal cost: 2 steps, 24 rows" in outcome.out
    for arm in (independent, equal):
        assert len(list((folder / arm["folder"]).glob("*.png"))) == 6
    # the prompt that shares with nobody is the same picture by both ways, but for the last digits of a batch
    shared, alone = pixels(folder / "images/00005.png"), pixels(folder / "compare/independent/00005.png")
    assert np.abs(shared.astype(int) - alone.astype(int)).max() <= 2


@pytest.mark.parametrize(
    ("options", "skipping"),
    [
        ((), None),
        (("--skip",), Skipping()),
        (("--tolerance", 0.3), Skipping(tolerance=0.3)),
        (("--skip", "--tolerance", 0.3), Skipping(tolerance=0.3)),
    ],
)
def test_skip_and_tolerance(
    model: pytest.MonkeyPatch, tmp_path: Path, options: tuple[object, ...], skipping: Skipping | None
) -> None:
    out = tmp_path / "run"
    assert cotrunk("generate", *options, *PROMPTS[:1], "--out", out, "--steps", 2).code == 0
    assert RunReport.load(out).job.settings.skipping == skipping


def test_options_have_the_names_of_diffusers_too(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    named = ("--num-inference-steps", 2, "--guidance-scale", 3, "--negative-prompt", "grey")
    assert cotrunk("generate", *PROMPTS[:1], "--out", out, *named).code == 0
    job = RunReport.load(out).job
    assert (job.settings.steps, job.guidance_scale, job.negative_prompt) == (2, 3.0, "grey")


def test_skipping_is_reported_picture_by_picture(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("--steps", 12, "--share", 0.4, "--guidance", 3, "--guidance-interval", 0.2, 0.8)
    outcome = cotrunk("generate", *PROMPTS[:3], "--tolerance", "1", "--out", out, *settings, "--compare")
    assert outcome.code == 0, outcome.err
    report = read(out)
    spared = report["rows"]["spared"]
    assert min(spared.values()) > 0
    assert sum(spared.values()) == report["rows"]["independent"] - report["rows"]["used"]
    assert sum(image["rows"] for image in report["images"]) == pytest.approx(report["rows"]["used"], abs=1e-2)
    for image in report["images"]:
        assert len(image["steps"]) == 12
        assert "p" in image["steps"].lower()
    assert f"by skipping {spared['skipping']}" in outcome.out
    planned = report["rows"]["independent"] - spared["sharing"]
    assert f"{planned}/{planned} rows, 3/3 images" in outcome.err  # what was left out is done too
    assert report["compare"]["equal_cost"]["rows"] <= report["rows"]["used"]
    assert report["job"]["settings"]["skipping"]["tolerance"] == 1


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--tolerance", "-0.1"), "tolerance -0.1 is out of range"),
        (("--guidance-interval", "0.2", "1.5"), "guidance_interval (0.2, 1.5) is out of range"),
    ],
)
def test_bad_skipping_is_refused(model: pytest.MonkeyPatch, tmp_path: Path, option: tuple[str, ...], said: str) -> None:
    assert_refused(cotrunk("generate", *PROMPTS[:2], "--out", tmp_path / "run", *option), said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("share", ["0", "0.9"])
def test_equal_cost_never_costs_more(model: pytest.MonkeyPatch, tmp_path: Path, share: str) -> None:
    out = tmp_path / "run"
    outcome = cotrunk(
        "generate", *PROMPTS[:3], "--out", out, "--steps", 3, "--share", share, "--guidance", 1, "--compare"
    )
    assert outcome.code == 0, outcome.err
    report = read(out)
    assert report["compare"]["equal_cost"]["rows"] <= report["rows"]["used"]
    assert ("the share is 0" in outcome.out) == (share == "0")


@pytest.mark.parametrize(
    ("options", "said", "interval"),
    [
        (("--compile",), "Compiling", None),
        (("--compile", "--guidance-interval", 0.1, 0.9), "Compiling", (0.0, 0.5)),
        (("--compare",), "Warming up", None),
    ],
)
def test_nothing_is_compiled_while_the_clock_of_denoising_runs(
    model: pytest.MonkeyPatch, tmp_path: Path, options: tuple[object, ...], said: str, interval: Any
) -> None:
    """Many rows and a single one, which an image without guidance has, are two shapes to a compiled denoiser."""
    runs, stati, original = list[Run](), list[str](), Run.batches
    model.setattr(Run, "batches", lambda self, **more: runs.append(self) or original(self, **more))
    model.setattr("cotrunk.pipelines.loading._check_compiler", lambda device: None)
    model.setattr(torch.nn.Module, "compile", lambda self, **how: None)
    model.setattr("cotrunk.cli.progress.err.status", lambda text: stati.append(text) or contextlib.nullcontext())
    outcome = cotrunk("generate", *PROMPTS[:3], "--out", tmp_path / "run", *QUICK, *options)
    assert outcome.code == 0, outcome.err
    assert [len(run.plan) for run in runs][:3] == [3, 1, 3]
    assert [run.settings.guidance_interval for run in runs[:2]] == [interval, interval]
    assert said in stati


def test_what_is_not_compiled_is_not_warmed_up(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model.setattr("cotrunk.runs.runner.warm_up", lambda *_, **__: pytest.fail("warmed up"))
    assert cotrunk("generate", *PROMPTS[:2], "--out", tmp_path / "run", *QUICK).code == 0


def test_compiling_is_done_before_denoising_is_timed(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    began, batches = list[int](), Run.batches
    model.setattr("cotrunk.pipelines.loading._check_compiler", lambda device: None)
    model.setattr(torch.nn.Module, "compile", lambda self, **how: None)
    model.setattr("cotrunk.runs.runner.warm_up", lambda pipe, texts, *_, **__: began.append(len(texts)))
    model.setattr(Run, "batches", lambda run, **given: began.append(0) or batches(run, **given))
    outcome = cotrunk("generate", *PROMPTS[:2], "--out", tmp_path / "run", *QUICK, "--compile")
    assert outcome.code == 0, outcome.err
    assert began == [2, 1, 0]  # many rows and one, which may be another shape; then what is timed


def test_the_shapes_that_are_compiled_are_those_of_the_run(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts, batches = list[int](), Run.batches
    model.setattr("cotrunk.pipelines.loading._check_compiler", lambda device: None)
    model.setattr(torch.nn.Module, "compile", lambda self, **how: None)
    model.setattr(Run, "batches", lambda run, **given: counts.append(len(run.plan)) or batches(run, **given))
    several = ("--images-per-prompt", 3, *QUICK, "--compile")
    outcome = cotrunk("generate", *PROMPTS[:2], "--out", tmp_path / "run", *several)
    assert outcome.code == 0, outcome.err
    assert counts == [6, 1, 6]


def test_images_of_a_prompt_and_a_scheduler(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--images-per-prompt", 2, "--scheduler", "EULER", "--negative", "grey", "--max-rows", 3, *QUICK)
    outcome = cotrunk("generate", *PROMPTS[:2], "--out", out, *options)
    assert outcome.code == 0, outcome.err
    report = read(out)
    assert [image["prompt"] for image in report["images"]] == [0, 0, 1, 1]
    assert [group["images"] for group in report["groups"]] == [[0, 2], [1, 3]]
    assert report["pipeline"]["scheduler"] == "EulerDiscreteScheduler"


def test_a_long_prompt_is_named_with_what_is_cut(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = "a red apple " + "very " * 30 + "near a [bold] volcano"
    outcome = cotrunk("generate", "a tiger", long, "--out", tmp_path / "run", "--steps", 1)
    assert outcome.code == 0, outcome.err
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "prompt 1" in warnings[0]
    assert "volcano" in warnings[0]


def test_prompts_that_read_alike_give_different_pictures(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = cotrunk("generate", "\N{RED APPLE}", "\N{OWL}", "--out", out, *QUICK)
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith(
        "warning: prompts 0 ('\N{RED APPLE}'), 1 ('\N{OWL}') look identical to the text encoder"
    )
    assert "Nothing was shared: no two different prompts are similar enough" in outcome.out
    assert not np.array_equal(pixels(out / "images/00000.png"), pixels(out / "images/00001.png"))


def test_latents_that_are_not_finite(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unet = pipeline().unet
    forward = unet.forward

    @functools.wraps(forward)
    def spoiled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        sample = output[0] if isinstance(output, tuple) else output.sample
        sample[-1] = float("nan")  # the last image's, which is alone
        return output

    model.setattr(unet, "forward", spoiled)
    model.setattr("cotrunk.runs.runner.BATCH_SECONDS", math.inf)  # one batch
    out = tmp_path / "run"
    outcome = cotrunk("generate", *PROMPTS, "--out", out, *QUICK)
    assert outcome.code == 1
    assert "failed: 1 of 6 images hold NaN: images/00005.png" in outcome.err
    assert "Traceback" not in outcome.err
    report = read(out)
    assert report["status"] == "failed images"
    assert [image["failed"] for image in report["images"]] == [False] * 5 + [True]
    assert sorted(path.name for path in (out / "images").iterdir()) == [f"{i:05d}.png" for i in range(5)]
    assert "failed" in (out / "index.html").read_text(encoding="utf-8")


def test_images_that_a_safety_checker_blackens(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The run is done, and some of its images are not what was asked for: as with images that failed, exit code 1."""
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


@pytest.mark.parametrize("kind", ["removed", "replaced", "a picture", "the journal"])
def test_a_folder_that_is_cleaned_up_during_the_run(model: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    out, write, batches = tmp_path / "run", RunFolder.write_batch, list[Any]()

    def clean_up(self: RunFolder, *given: Any) -> None:
        write(self, *given)
        batches.append(given)
        if len(batches) > 1:
            return
        if kind == "a picture":
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
        assert f"{out} was removed" in last
        assert out.exists() == (kind == "replaced")
        assert not out.exists() or list(out.iterdir()) == []
    else:
        assert "were removed or changed while the run went on: make them again with --resume" in last
        assert cotrunk("generate", *PROMPTS, "--out", out, *QUICK, "--resume").code == 0
        assert read(out)["status"] == "done"


# Bad input: exit code 2 and one sentence, before a model is loaded and before anything is written.

FILES = {
    "empty.txt": (b"", ["holds no prompt"]),
    "blank.txt": (b"\n  \n", ["holds no prompt"]),
    "picture.txt": (b"\x89PNG\r\n\x1a\n\0\0\0", ["is binary"]),
    "latin1.txt": ("caf\u00e9".encode("latin-1"), ["not UTF-8"]),
    "broken.jsonl": (b'{"prompt": "a"}\n\n{"prompt": \n', ["line 3", "invalid JSON"]),
    "column.csv": (b"id,caption\n1,a cat\n", ["no column 'prompt'", "'caption'"]),
    "column.jsonl": (b'{"text": "a"}\n', ["line 1", "no column 'prompt'"]),
    "number.json": (b"[3]", ["item 1", "must be a string"]),
}


@pytest.mark.parametrize("verb", ["generate", "plan"])
@pytest.mark.parametrize("name", FILES)
def test_bad_prompt_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str, name: str) -> None:
    no_model(monkeypatch)
    content, said = FILES[name]
    (tmp_path / name).write_bytes(content)
    out = ("--out", tmp_path / "run") if verb == "generate" else ()
    assert_refused(cotrunk(verb, "--prompts", tmp_path / name, *out), name, *said)
    assert not (tmp_path / "run").exists()


OPTIONS = [
    (["--share", "nan"], "share nan is out of range"),
    (["--share", "1"], "share 1.0 is out of range"),
    (["--share", "-0.1"], "share -0.1 is out of range"),
    (["--similarity", "nan"], "similarity nan is out of range"),
    (["--similarity", "1.5"], "similarity 1.5 is out of range"),
    (["--similarity", "high"], "--similarity 'high' is neither auto nor a number"),
    (["--guidance", "nan"], "--guidance nan is out of range"),
    (["--guidance", "inf"], "--guidance inf is out of range"),
    (["--guidance", "-1"], "--guidance -1.0 is out of range"),
    (["--steps", "0"], "--steps 0 is out of range"),
    (["--seed", "-1"], "--seed -1 is out of range"),
    (["--seed", str(2**63)], f"--seed {2**63} is out of range"),
    (["--max-group", "-1"], "--max-group -1 is out of range"),
    (["--images-per-prompt", "0"], "--images-per-prompt 0 is out of range"),
    (["--mode", "round"], "mode 'round' is unknown: use flat, adaptive or tree"),
    (["--scheduler", "nosuch"], "Unknown scheduler 'nosuch': use ddim"),
    (["--scheduler", "StableDiffusionPipeline"], "Unknown scheduler"),
    (["--max-rows", "0"], "--max-rows 0 is out of range"),
    (["--device", "abacus"], "Device 'abacus' is not usable here"),
    (["--device", "meta"], "Device 'meta' is not usable here"),
    (["--dtype", "float8"], "Unknown dtype 'float8'"),
]


@pytest.mark.parametrize(("options", "said"), OPTIONS)
def test_bad_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], said: str) -> None:
    no_model(monkeypatch)
    assert_refused(cotrunk("generate", "a cat", "--out", tmp_path / "run", *options), said)
    assert not (tmp_path / "run").exists()
    if options[0] not in ("--max-rows", "--device", "--dtype"):
        assert_refused(cotrunk("plan", "a cat", *options), said)


@pytest.mark.parametrize("options", [["--steps", "many"], ["--sheep", "3"]])
def test_options_that_cannot_be_read(options: list[str], tmp_path: Path) -> None:
    outcome = cotrunk("generate", "a cat", "--out", tmp_path / "run", *options)
    assert outcome.code == 2
    assert options[0] in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("generate", "a cat", "--lora", "one", "--lora", "two"), "--lora"),
        (("generate", "a cat", "--steps", "3", "--seed", "1", "--steps=4"), "--steps"),
        (("generate", "a cat", "--tolerance", "0.2", "--tolerance", "0.1"), "--tolerance"),
        (("generate", "a cat", "--steps", "3", "--num-inference-steps", "4"), "--steps"),
        (
            ("generate", "a cat", "--guidance-interval", "0", "1", "--guidance-interval", "0", "0.5"),
            "--guidance-interval",
        ),
        (("plan", "--prompts", "a.txt", "--prompts", "b.txt"), "--prompts"),
        (("tune", "a cat", "--budget", "3", "--budget", "3"), "--budget"),
        (("dataset", "x", "--images", "a", "--images", "b"), "--images"),
        (("train", "x", "--rank", "2", "--rank", "4"), "--rank"),
        (("evaluate", "x", "--shares", "0.1", "--lora", "a=b", "--shares", "0.2", "--lora", "c=d"), "--shares"),
    ],
)
def test_an_option_is_given_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...], option: str
) -> None:
    no_model(monkeypatch)
    out = () if arguments[0] == "plan" else ("--out", tmp_path / "run")
    assert_refused(cotrunk(*arguments, *out), f"{option} is given 2 times: give it once.")
    assert not (tmp_path / "run").exists()


def test_options_that_add_up_may_be_given_again() -> None:
    assert_refused(cotrunk("evaluate", "x", "--lora", "a=b", "--lora", "a=c", "--out", "y"), "a name that is taken")
    assert_refused(cotrunk("generate", "a cat", "--compare", "--compare", "--steps", 0, "--out", "y"), "--steps 0")


def test_prompts_come_one_way(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    out = ("--out", tmp_path / "run")
    assert_refused(cotrunk("generate", "a dog", "--prompts", tmp_path / "p.txt", *out), "either as arguments or with")
    assert_refused(cotrunk("generate", *out), "either as arguments or with")
    assert_refused(cotrunk("generate", "a dog", " ", *out), "A prompt is empty")
    assert_refused(cotrunk("generate", tmp_path / "p.txt", *out), "is a file", "--prompts")
    assert_refused(cotrunk("generate", "--prompts", tmp_path / "none.txt", *out), "There is no file")
    assert_refused(cotrunk("generate", "--prompts", tmp_path, *out), "is a folder")


def test_no_out() -> None:
    assert_refused(cotrunk("generate", "a cat"), "--out DIR")
    assert_refused(cotrunk("generate", "a cat", "--out", ""), "--out DIR")  # an unset variable of a shell


def test_an_unknown_model(tmp_path: Path) -> None:
    outcome = cotrunk("generate", "a cat", "--out", tmp_path / "run", "--model", "./no such folder")
    assert_refused(outcome, "There is no model './no such folder'", "use mini")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = cotrunk("generate", "a cat", "--out", tmp_path / "run", "--model", tmp_path / "empty")
    assert_refused(outcome, "cannot be loaded as a diffusers pipeline")


def test_out_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_model(monkeypatch)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/run"):
        assert_refused(cotrunk("generate", "a cat", "--out", out), "Cannot write to", "Choose another --out")
    assert (tmp_path / "file").read_text() == "mine"


def test_out_that_holds_something(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_model(monkeypatch)
    for name in ("index.html", "run.json", "plan.json"):
        out = tmp_path / f"with-{name}"
        out.mkdir()
        (out / name).write_text("mine")
        assert_refused(cotrunk("generate", "a cat", "--out", out), "already holds a run", name, "--resume")
        assert_refused(cotrunk("generate", "a cat", "--out", out, "--resume"), "no readable run.json")
        assert [path.name for path in out.iterdir()] == [name]
        assert (out / name).read_text() == "mine"


def test_a_command_of_its_own(tmp_path: Path) -> None:
    """The exit code and the streams as a shell sees them."""
    (tmp_path / "empty.txt").write_bytes(b"")
    command = [sys.executable, "-m", "cotrunk", "generate", "--prompts", "empty.txt", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), "empty.txt holds no prompt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["generate", "plan"])
def test_a_model_that_does_not_fit_in_memory(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("cotrunk.pipelines.loading.load_pipeline", load)
    out = ["--out", tmp_path / "run"] if command == "generate" else []
    assert_refused(cotrunk(command, "a cat", *out), "too little memory", "smaller --dtype or --model")


def test_a_video_pipeline_is_refused_before_denoising(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model.setattr(pipeline(), "video_processor", object(), raising=False)
    assert_refused(cotrunk("generate", "a cat", "--out", tmp_path / "run"), "makes video: use cotrunk.generate")


def test_a_pipeline_that_wants_a_picture_is_refused_before_denoising(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    model.setattr(type(pipeline()), "__call__", StableDiffusionImg2ImgPipeline.__call__)
    said = "needs an input image (image): use cotrunk.generate"
    assert_refused(cotrunk("generate", "a cat", "--out", tmp_path / "run"), said)


def test_compare_with_a_scheduler_that_cannot_take_as_few_steps(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What costs more than the run is then the nearest there is."""

    def timesteps_of(pipe: Any, arguments: dict[str, Any]) -> tuple[int, int]:
        steps = arguments["num_inference_steps"]
        if steps < 4:
            raise CotrunkError("too few")
        return steps, steps

    model.setattr("cotrunk.runs.runner.timesteps_of", timesteps_of)
    settings = ("--steps", 5, "--share", 0.9, "--similarity", -1, "--max-group", 0)
    outcome = cotrunk("generate", *PROMPTS, *settings, "--out", tmp_path / "run", "--compare")
    assert outcome.code == 0, outcome
    assert read(tmp_path / "run")["compare"]["equal_cost"]["rows"] > read(tmp_path / "run")["rows"]["used"]


def test_brackets_in_a_model_name_are_no_markup(tmp_path: Path) -> None:
    assert_refused(cotrunk("generate", "a cat", "--out", tmp_path / "run", "--model", "[/foo]"), "no model '[/foo]'")


def test_a_negative_prompt_that_is_no_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_model(monkeypatch)
    refusal = cotrunk("generate", "a cat", "--negative", "a \udcff dog", "--out", tmp_path / "run")
    assert_refused(refusal, "negative_prompt: the prompt contains an invalid surrogate")


def test_closed_streams_and_other_encodings(tmp_path: Path) -> None:
    """As a shell closes them and as a terminal may have them."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = f"{sys.executable} -m cotrunk plan"
    done = subprocess.run(f"{command} --prompts - <&-", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), "Standard input is closed")
    (tmp_path / "äpple").mkdir()
    done = subprocess.run(
        f"{command} --prompts äpple", shell=True, cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), r"\xe4pple is a folder")


def test_an_argument_that_is_no_text(tmp_path: Path) -> None:
    refusal = cotrunk("generate", "a cat", "a \udcff dog", "--out", tmp_path / "run")
    assert_refused(refusal, "prompt 1: the prompt contains an invalid surrogate")


# Help.


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from cotrunk.cli import app\n"
        "sys.argv = ['cotrunk', 'generate', '--help']\n"
        "try: app.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'scipy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert done.returncode == 0, done.stderr
    assert "--similarity" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_version() -> None:
    assert cotrunk("--version") == Outcome(0, f"cotrunk {__version__}\n", "")
