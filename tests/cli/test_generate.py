"""`cotrunk generate`: a real run, what it prints and what it writes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import PROMPTS, QUICK, ROUNDING, Outcome, cotrunk, pipeline, pixels, read
from PIL import Image
from running import generate

from cotrunk import CotrunkError
from cotrunk.planning.plan import Plan
from cotrunk.runs.report import RunReport
from cotrunk.settings import Settings, Sharing, Skipping


def test_a_run_says_what_it_did(run: tuple[Path, Outcome]) -> None:
    folder, outcome = run
    assert outcome.code == 0, outcome.err
    assert "6 images for 28 denoiser rows instead of 36: saved 22.2%" in outcome.out
    assert f"Open {folder / 'index.html'}" in outcome.out
    assert "5 blank lines skipped" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_run_with_common_noise_has_full_guidance_in_trunks(
    tmp_path: Path, model: pytest.MonkeyPatch, run: tuple[Path, Outcome]
) -> None:
    how = ("--noise", "common", "--seed", 5)
    outcome = cotrunk("generate", *PROMPTS, *QUICK, *how, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "6 images for 30 denoiser rows instead of 36" in outcome.out
    report, own = read(tmp_path / "run"), read(run[0])
    assert report["rows"]["spared"] == {"sharing": 6, "skipping": 0, "guidance": 0, "replay": 0}
    assert [image["steps"] for image in own["images"]] == ["sCC"] * 5 + ["CCC"]
    assert [image["steps"] for image in report["images"]] == ["SCC"] * 5 + ["CCC"]
    assert len({image["seed"] for image in own["images"]}) == 6
    assert len({image["seed"] for image in report["images"]}) == 3
    page = (run[0] / "index.html").read_text(encoding="utf-8")
    assert "Every image keeps its own noise, and trunks are sampled without guidance." in page
    page = (tmp_path / "run" / "index.html").read_text(encoding="utf-8")
    assert "start from one noise, and trunks are sampled with full guidance." in page
    for options, says in (
        (("--noise", "own"), "noise 'common', not 'own'"),
        (("--noise", "common", "--trunk-guidance", 0), "trunk guidance 'auto', not 0.0"),
    ):
        refused = cotrunk("generate", *PROMPTS, *QUICK, *options, "--seed", 5, "--out", tmp_path / "run", "--resume")
        assert says in refused.err
    assert cotrunk("generate", *PROMPTS, *QUICK, *how, "--out", tmp_path / "run", "--resume").code == 0


def test_a_run_leaves_its_files_and_no_others(run: tuple[Path, Outcome]) -> None:
    folder, _ = run
    files = [
        f"{name}/{i:05d}.png" for name in ("images", "compare/independent", "compare/equal-cost") for i in range(6)
    ]
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"run.json", "plan.json", "journal.jsonl", "index.html", *files}
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert all(prompt in page for prompt in PROMPTS)


def test_images_carry_their_origin(run: tuple[Path, Outcome]) -> None:
    folder, _ = run
    report = read(folder)
    for image, entry in enumerate(report["images"]):
        with Image.open(folder / entry["file"]) as opened:
            opened.load()
            assert opened.size == (128, 128)
            assert opened.text["prompt"] == PROMPTS[image]
            assert opened.text["seed"] == str(entry["seed"])
            assert opened.text["group"] == str(entry["group"])
            assert float(opened.text["rows"]) == pytest.approx(entry["rows"], abs=1e-3)


def test_run_json(run: tuple[Path, Outcome]) -> None:
    report = read(run[0])
    assert json.loads(RunReport.load(run[0]).to_text()) == report
    assert (report["status"], report["steps"]) == ("done", 3)
    expected = {"prompts": PROMPTS, "guidance_scale": 3.0, "seed": 5, "model": "mini", "dtype": "auto"}
    assert {name: report["job"][name] for name in expected} == expected
    assert report["job"]["settings"] == Settings(sharing=Sharing(share=0.4), steps=3).to_json()
    assert report["pipeline"] == {
        "scheduler": "DDIMScheduler",
        "device": "cpu",
        "dtype": "float32",
        "guidance_scale": 3.0,
        "skipping": asdict(Skipping()),
        "why_not_skipped": None,
        "other_trunk": None,
    }
    assert (report["sharing"]["noise"], report["sharing"]["trunk_guidance"]) == ("own", 0.0)
    assert report["fallbacks"] == []
    assert len(report["images"]) == 6
    groups = [(group["prompts"], group["branch_step"]) for group in report["groups"]]
    assert groups == [([0, 1, 2], 1), ([3, 4], 1), ([5], 0)]
    assert all(report["threshold"] <= group["similarity"] <= 1 for group in report["groups"])
    spared = {"sharing": 8, "skipping": 0, "guidance": 0, "replay": 0}
    saving = pytest.approx(2 / 9, abs=1e-5)
    assert report["rows"] == {"used": 28, "independent": 36, "saving": saving, "spared": spared}
    assert sum(image["rows"] for image in report["images"]) == pytest.approx(28, abs=1e-2)
    seconds = report["seconds"]
    assert set(seconds) == {"load", "embed", "denoise", "decode", "total"}
    assert 0 < seconds["denoise"] < seconds["total"]
    assert {"cotrunk", "diffusers", "torch"} <= set(report["versions"])


def test_predicted_rows_are_counted_rows(run: tuple[Path, Outcome]) -> None:
    folder, _ = run
    cost = Plan.load(folder / "plan.json").cost
    rows = read(folder)["rows"]
    assert (cost.used, cost.independent) == (rows["used"], rows["independent"])


def test_the_plan_replays_to_the_same_images(run: tuple[Path, Outcome], model: pytest.MonkeyPatch) -> None:
    folder, _ = run
    again = generate(pipeline(), plan=Plan.load(folder / "plan.json"), num_inference_steps=3, guidance_scale=3.0)
    for index, image in enumerate(again.images):
        difference = np.asarray(image).astype(int) - pixels(folder / f"images/{index:05d}.png")
        assert np.abs(difference).max() <= ROUNDING


def test_compare(run: tuple[Path, Outcome]) -> None:
    folder, outcome = run
    report = read(folder)
    independent, equal = report["compare"]["independent"], report["compare"]["equal_cost"]
    assert (independent["steps"], independent["rows"]) == (3, 36)
    assert (equal["steps"], equal["rows"]) == (2, 24)  # 3 steps would be 36 rows, sharing took 28
    assert "equal cost: 2 steps, 24 rows" in outcome.out
    assert set(report["compare"]) == {"independent", "equal_cost"}  # nothing was skipped: there is no third arm
    assert report["distances"]["independent"]["median"] >= report["distances"]["independent"]["worst"] > 0
    for arm in (independent, equal):
        assert len(list((folder / arm["folder"]).glob("*.png"))) == 6
    # A prompt that shares nothing gives the same image in both ways, apart from the rounding of a batch.
    shared, alone = pixels(folder / "images/00005.png"), pixels(folder / "compare/independent/00005.png")
    assert np.abs(shared.astype(int) - alone.astype(int)).max() <= 2


@pytest.mark.parametrize(
    ("options", "skipping"),
    [
        ((), "auto"),
        (("--no-skip",), None),
        (("--exact",), None),
        (("--fidelity", "fast"), Skipping(tolerance=0.07)),
        (("--skip",), Skipping()),
        (("--tolerance", 0.3), Skipping(tolerance=0.3)),
        (("--skip", "--tolerance", 0.3), Skipping(tolerance=0.3)),
    ],
)
def test_skip_and_tolerance(
    model: pytest.MonkeyPatch, tmp_path: Path, options: tuple[object, ...], skipping: Skipping | str | None
) -> None:
    out = tmp_path / "run"
    assert cotrunk("generate", *options, *PROMPTS[:1], "--out", out, "--steps", 2).code == 0
    report = RunReport.load(out)
    assert report.job.settings.skipping == skipping
    assert report.pipeline.skipping == (Skipping() if skipping == "auto" else skipping)
    assert (report.job.settings.sharing is None) == ("--exact" in options)


def test_options_have_the_names_of_diffusers_too(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    named = ("--num-inference-steps", 2, "--guidance-scale", 3, "--negative-prompt", "grey")
    assert cotrunk("generate", *PROMPTS[:1], "--out", out, *named).code == 0
    job = RunReport.load(out).job
    assert (job.settings.steps, job.guidance_scale, job.negative_prompt) == (2, 3.0, "grey")


def test_skipping_is_reported_per_image(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("--steps", 12, "--share", 0.4, "--guidance", 3, "--guidance-interval", 0.2, 0.8)
    outcome = cotrunk("generate", *PROMPTS[:3], "--tolerance", "1", "--out", out, *settings, "--compare")
    assert outcome.code == 0, outcome.err
    report = read(out)
    spared = report["rows"]["spared"]
    assert all(spared[way] > 0 for way in ("sharing", "skipping", "guidance"))
    assert sum(spared.values()) == report["rows"]["independent"] - report["rows"]["used"]
    assert sum(image["rows"] for image in report["images"]) == pytest.approx(report["rows"]["used"], abs=1e-2)
    for image in report["images"]:
        assert len(image["steps"]) == 12
        assert "p" in image["steps"].lower()
    assert f"by skipping {spared['skipping']}" in outcome.out
    planned = report["rows"]["independent"] - spared["sharing"]
    assert f"{planned}/{planned} rows, 3/3 images" in outcome.err  # skipped rows are done too
    assert report["compare"]["equal_cost"]["rows"] <= report["rows"]["used"]
    sharing_alone = report["compare"]["all_steps"]
    assert (sharing_alone["rows"], sharing_alone["steps"]) == (planned, 12)
    assert set(report["distances"]) == {"independent", "all_steps"}
    assert report["job"]["settings"]["skipping"]["tolerance"] == 1


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


def test_prompts_that_look_identical_give_different_images(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = cotrunk("generate", "\N{RED APPLE}", "\N{OWL}", "--out", out, *QUICK)
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith(
        "warning: prompts 0 ('\N{RED APPLE}'), 1 ('\N{OWL}') look identical to the text encoder"
    )
    assert "Nothing was shared: no two different prompts are similar enough" in outcome.out
    assert not np.array_equal(pixels(out / "images/00000.png"), pixels(out / "images/00001.png"))


@pytest.mark.slow
def test_compare_with_a_scheduler_that_cannot_take_as_few_steps(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The comparison then takes the fewest steps of the scheduler, although they cost more than the run."""

    def timesteps_of(pipe: Any, arguments: dict[str, Any]) -> tuple[int, int]:
        steps = arguments["num_inference_steps"]
        if steps < 4:
            raise CotrunkError("too few")
        return steps, steps

    model.setattr("cotrunk.runs.part_run.timesteps_of", timesteps_of)
    settings = ("--steps", 5, "--share", 0.9, "--similarity", -1, "--max-group", 0)
    outcome = cotrunk("generate", *PROMPTS, *settings, "--out", tmp_path / "run", "--compare")
    assert outcome.code == 0, outcome
    assert read(tmp_path / "run")["compare"]["equal_cost"]["rows"] > read(tmp_path / "run")["rows"]["used"]
