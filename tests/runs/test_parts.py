"""A job whose prompts have settings of their own: divided into parts, run in one folder, resumed, compared, shown."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import ROUNDING, assert_refused, cotrunk, pipeline, pixels
from PIL import Image

from cotrunk import CotrunkError
from cotrunk.generation import generate
from cotrunk.planning.plan import Plan
from cotrunk.planning.prompt_row import PromptRow
from cotrunk.planning.tree import leaf
from cotrunk.runs import events
from cotrunk.runs.job import Job
from cotrunk.runs.job_plan import job_plan, load_job_plan
from cotrunk.runs.output import Output
from cotrunk.runs.parts import parts_of
from cotrunk.runs.plan_job import plan_job
from cotrunk.runs.report import RunReport
from cotrunk.runs.runner import run_job
from cotrunk.settings import Settings, Sharing

SETTINGS = Settings(Sharing(share=0.4), skipping=None, steps=3)
ROWS = (
    PromptRow("a red apple"),
    PromptRow("a tiger", steps=5),
    PromptRow("a green apple", images=2),
    PromptRow("a sleeping tiger", steps=5, seed=11),
    PromptRow("a violin", width=48, height=32, guidance_scale=1.0),
    PromptRow("a yellow apple", negative_prompt="grey"),
)
JOB = Job(ROWS, SETTINGS, guidance_scale=3.0, negative_prompt="dark", seed=5)


def test_the_parts_of_a_job() -> None:
    parts = parts_of(JOB)
    assert [part.rows for part in parts] == [(0, 2, 5), (1, 3), (4,)]
    assert [part.copies for part in parts] == [(1, 2, 1), (1, 1), (1,)]
    assert [part.job.settings.steps for part in parts] == [3, 5, 3]
    assert [(part.job.width, part.job.height, part.job.guidance_scale) for part in parts] == [
        *[(None, None, 3.0)] * 2,
        (48, 32, 1.0),
    ]
    assert [row.prompt for row in parts[0].planned] == ["a red apple", *["a green apple"] * 2, "a yellow apple"]
    plain = Job(("a cat", "a dog"), SETTINGS, width=64)
    (whole,) = parts_of(plain)
    assert whole.job == plain
    # what a prompt gives may be what the pipeline does without it
    rows = (PromptRow("a cat"), PromptRow("a dog", steps=30, guidance_scale=5.0))
    assert len(parts_of(Job(rows, guidance_scale=5.0), steps=30)) == 1
    for name, value in (("width", 48), ("height", 48), ("steps", 2), ("guidance_scale", 2.0)):
        rows = (PromptRow("a cat"), PromptRow("a dog", **{name: value}))
        assert len(parts_of(Job(rows))) == 2, name
    # without a negative prompt for all, some have none at all
    assert [part.rows for part in parts_of(replace(JOB, negative_prompt=None))] == [(0, 2), (1, 3), (4,), (5,)]


def test_ids_name_the_files() -> None:
    rows = (PromptRow("a cat", id="cat"), PromptRow("a dog", id="dog"))
    assert Job(rows).naming.name == "{id}"
    assert Job((rows[0], replace(rows[1], images=2))).naming.name == "{id}_{copy}"
    assert Job(rows, output=Output(name="{index}")).naming.name == "{index}"
    assert Job(("a cat",)).naming.name == "{image:05}"


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_a_run_in_parts(tmp_path: Path) -> None:
    found = list[events.Event]()
    report = run_job(JOB, tmp_path / "run", on_event=found.append)
    assert report == RunReport.load(tmp_path / "run")
    assert report.status == "done"
    assert [image.prompt for image in report.images] == [0, 1, 2, 2, 3, 4, 5]
    assert [image.file for image in report.images] == [f"images/{number:05d}.png" for number in range(7)]
    assert [len(image.steps) for image in report.images] == [3, 5, 3, 3, 5, 3, 3]
    assert [(part.prompts, part.steps) for part in report.parts] == [((0, 2, 5), 3), ((1, 3), 5), ((4,), 3)]
    assert report.parts[2].guidance_scale == 1.0
    assert report.images[4].seed == 11
    groups = [group.images for group in report.groups if len(group.images) > 1]
    assert groups == [(0, 2), (1, 4)]
    assert [group.part for group in report.groups] == [0, 0, 0, 1, 2]
    assert all(
        image.group == number
        for number, group in enumerate(report.groups)
        for image in map(report.images.__getitem__, group.images)
    )
    assert report.rows.used == sum(group.rows.used for group in report.groups)
    done = [event.images for event in found if isinstance(event, events.BatchDone)]
    assert sorted(image for images in done for image in images) == list(range(7))
    with Image.open(tmp_path / "run" / "images/00005.png") as image:
        assert image.size == (48, 32)
    with Image.open(tmp_path / "run" / "images/00004.png") as image:
        assert (image.info["seed"], image.info["group"], image.info["prompt"]) == ("11", "3", "a sleeping tiger")
    page = (tmp_path / "run" / "index.html").read_text()
    assert "so they ran in 3 parts" in page
    assert "3 to 5" in page
    # each part is what its prompts give alone
    alone = generate(
        pipeline(),
        ["a tiger", "a sleeping tiger"],
        settings=replace(SETTINGS, steps=5),
        plan=load_job_plan(tmp_path / "run" / "plan.json", JOB).parts[1].plan,
        guidance_scale=3.0,
        negative_prompt="dark",
    )
    for image, number in zip(alone.images, (1, 4), strict=True):
        difference = np.asarray(image).astype(int) - pixels(tmp_path / "run" / report.images[number].file)
        assert np.abs(difference).max() <= ROUNDING


def test_copies_of_a_prompt_are_those_of_images_per_prompt(model: pytest.MonkeyPatch) -> None:
    few, many = plan_job(JOB).parts[0].plan, plan_job(replace(JOB, images_per_prompt=2)).parts[0].plan
    assert plan_job(JOB).parts[1].plan.seeds[1] == 11
    assert few.seeds == (many.seeds[0], many.seeds[2], many.seeds[3], many.seeds[4])


@pytest.mark.usefixtures("model")
def test_a_plan_of_parts_is_the_same_from_json_and_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for job in (JOB, replace(JOB, images_per_prompt=2), Job(("a cat", "a kitten"), SETTINGS, images_per_prompt=3)):
        plan = plan_job(job)
        if job is JOB:  # an image is generated again
            again = Plan(("a tiger",), (99,), (leaf(0, 0, 5),), 5, 5)
            parts = [*((part.rows, part.plan) for part in plan.parts), ((1,), again)]
            plan = job_plan(job, parts, {len(plan.parts): (1,)})
        for name in ("plan.json", "plan.parquet"):
            plan.save(tmp_path / name)
            assert load_job_plan(tmp_path / name, job) == plan
            with pytest.raises(CotrunkError, match=r"more prompts than there are|not a usable plan of this run"):
                load_job_plan(tmp_path / name, Job(("a cat",)))
            with pytest.raises(CotrunkError, match="not a usable plan of this run"):
                load_job_plan(tmp_path / name, replace(job, prompts=(PromptRow("x", images=9), *job.prompts[1:])))


def stop_after_first(event: events.Event) -> None:
    if isinstance(event, events.BatchDone):
        raise RuntimeError


@pytest.mark.usefixtures("model")
def test_a_run_in_parts_resumes(tmp_path: Path) -> None:
    rows = (PromptRow("a tiger", steps=1), PromptRow("a violin", steps=2), PromptRow("a lion", steps=1))
    job = replace(JOB, prompts=rows, settings=replace(SETTINGS, sharing=None))
    with pytest.raises(RuntimeError):
        run_job(job, tmp_path, on_event=stop_after_first)
    assert RunReport.load(tmp_path).status == "running"
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    assert list(kept) == [tmp_path / "images/00000.png"]
    report = run_job(job, tmp_path, resume=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (report.status, len(list((tmp_path / "images").iterdir()))) == ("done", 3)
    found = list[events.Event]()
    assert run_job(job, tmp_path, resume=True, on_event=found.append) == report
    assert found == [events.AlreadyFinished()]
    with pytest.raises(CotrunkError, match="holds the plans of several parts"):
        Plan.load(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    data["parts"] = data["parts"][:1]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(CotrunkError, match=r"plan\.json is not a usable plan of this run: its parts do not hold each"):
        run_job(job, tmp_path, resume=True)


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_a_run_in_parts_compares(tmp_path: Path) -> None:
    job = replace(JOB, compare=True)
    with pytest.raises(RuntimeError):
        run_job(job, tmp_path, on_event=stop_after_first)
    report = run_job(job, tmp_path, resume=True)
    assert report.compare["independent"].rows == report.rows.independent
    assert report.compare["equal_cost"].rows <= report.rows.used
    assert [part.compare["independent"] for part in report.parts] == [3, 5, 3]
    assert [part.compare["equal_cost"] for part in report.parts] == [2, 3, 3]
    # images that share nothing are their independent twins
    for number in (3, 5, 6):
        twin = pixels(tmp_path / "compare/independent" / f"{number:05d}.png")
        assert np.abs(pixels(tmp_path / "images" / f"{number:05d}.png").astype(int) - twin).max() <= ROUNDING
    assert pixels(tmp_path / "compare/equal-cost/00005.png").shape == (32, 48, 3)
    assert "<td>3 to 5</td>" in (tmp_path / "index.html").read_text()
    assert run_job(job, tmp_path, resume=True) == report


@pytest.mark.usefixtures("model")
def test_the_command_line_runs_rows(tmp_path: Path) -> None:
    rows = "Key,Text,steps,images\na,a red apple,2,\nb,a green apple,2,2\nc,a tiger,1,1\n"
    (tmp_path / "p.csv").write_text(rows)
    asked = ("--prompts", tmp_path / "p.csv", "--columns", "prompt=Text,id=Key", "--share", 0.5, "--guidance", 3)
    outcome = cotrunk("generate", *asked, "--width", 64, "--height", 64, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    names = sorted(path.name for path in (tmp_path / "run/images").iterdir())
    assert names == ["a_0.png", "b_0.png", "b_1.png", "c_0.png"]
    outcome = cotrunk("plan", *asked)
    assert outcome.code == 0, outcome.err
    assert "2 parts run one after another" in outcome.out
    assert "2 prompts with 2 steps, 1 prompt with 1 step." in outcome.out
    assert "4 images, 1 group, 2 alone" in outcome.out
    for option in ("--width", "--height"):
        assert_refused(cotrunk("plan", "a cat", option, 0), f"{option} 0 is out of range")
