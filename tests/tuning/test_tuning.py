"""Settings are tried within a budget, compared with independent sampling, and recommended."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from building_blocks import unet
from command import assert_refused, cotrunk
from experiments import NETWORKS, Means
from PIL import Image
from tiny import sd_with_text

from cotrunk import CotrunkError, Settings, Sharing, Skipping
from cotrunk.evaluation.metrics import mean
from cotrunk.execution import Batch, Run
from cotrunk.generation import WARM_STEPS
from cotrunk.tuning.candidates import candidate, candidates, family, neighbours
from cotrunk.tuning.equivalence import Estimate, distance_excess, estimate, spread
from cotrunk.tuning.outcome import Point, Tuned, recommend
from cotrunk.tuning.page import advice, claim, write_tuned
from cotrunk.tuning.search import tune
from cotrunk.tuning.settings_file import Basis, read_settings, write_settings
from cotrunk.tuning.trials import Trials

BASIS = Basis("a <model>", None, "ddim", 3.0)
PROMPTS = ["a red picture", "a green picture", "a blue picture", "a dog", "a cat"]
ARGUMENTS = {"height": 32, "width": 32, "guidance_scale": 3.0}


def swept(out: Path, pipe: Any = None, **more: Any) -> Tuned:
    trials = Trials(pipe or sd_with_text().pipe, PROMPTS, ARGUMENTS, out)
    return tune(trials, Means(), Means(), **{"steps": 6, "similarity": -1.0} | more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuned]:
    out = tmp_path_factory.mktemp("tuned")
    return out, swept(out)


def test_all_settings_are_tried_without_a_budget(whole: tuple[Path, Tuned]) -> None:
    _, tuned = whole
    refused = [candidate(few, 0.3, -1.0) for few in (3, 2)]
    assert [point.settings for point in tuned.points] == [s for s in candidates(6, -1.0, [0.0]) if s not in refused]
    assert tuned.refused == {
        "No step would be shared: the prompts are too different, or the steps too few.": refused,
    }
    assert tuned.over_budget == 0
    full = tuned.points[0]
    assert full.rows == 12
    assert (full.alignment_loss.value, full.distance_excess.value) == (0, 0)
    for point in tuned.points[1:]:
        assert point.rows <= full.rows
        assert (point.saved_by_sharing > 0) == (point.settings.sharing is not None)
        if not point.settings.sharing and point.settings.skipping is None:
            assert point.rows == 2 * point.settings.steps


def test_images_are_generated_only_once(whole: tuple[Path, Tuned], monkeypatch: pytest.MonkeyPatch) -> None:
    out, tuned = whole
    monkeypatch.setattr("cotrunk.execution.Run.batches", lambda *_, **__: pytest.fail("images were made"))
    assert swept(out) == tuned


def test_a_budget_is_kept(tmp_path: Path) -> None:
    budget = 4 * 12 * len(PROMPTS)
    tuned = swept(tmp_path, budget=budget)
    spent = sum(point.rows for point in tuned.points) + tuned.points[0].rows
    assert spent * len(PROMPTS) <= budget
    assert tuned.over_budget > 0
    assert len(tuned.points) + tuned.over_budget + 2 == len(list(candidates(6, -1.0, [0.0])))


def test_an_insufficient_budget_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CotrunkError, match="A budget of 100 rows is not enough"):
        swept(tmp_path, budget=100)
    with pytest.raises(CotrunkError, match=r"12\.5 rows per image are more than the 12 of 6 steps: use fewer rows, or"):
        swept(tmp_path, rows=12.5)
    assert_refused(cotrunk("tune", *PROMPTS[:3], "--out", tmp_path), "3 prompts are too few to compare settings on")


@pytest.mark.parametrize("steps", [1, 2, 3, 30])
def test_no_setting_is_tried_twice_and_none_with_more_steps(steps: int) -> None:
    found = list(candidates(steps, None, [0.4, 0.8]))
    assert len(set(found)) == len(found)
    assert max(setting.steps for setting in found) == steps


def guided_by_an_input(pipe: Any) -> None:
    """Make the model a distilled one (LCM), where guidance has no row of its own."""
    pipe.unet = unet(attention_head_dim=4, time_cond_proj_dim=8)


def unreadable(pipe: Any) -> None:
    pipe.scheduler = diffusers.EDMEulerScheduler()


@pytest.mark.parametrize(
    ("change", "count", "without", "message"),
    [
        (
            guided_by_an_input,
            4,
            "guidance_interval",
            "skipping with guidance in part (4 settings). StableDiffusionPipeline computes no extra row for guidance",
        ),
        (unreadable, 13, "skipping", "skipping (13 settings). EDMEulerScheduler does not say how noisy"),
    ],
)
def test_a_refused_setting_is_reported_and_the_sweep_continues(
    tmp_path: Path, change: Callable[[Any], None], count: int, without: str, message: str
) -> None:
    pipe = sd_with_text().pipe
    change(pipe)
    tuned = swept(tmp_path, pipe)
    assert {getattr(point.settings, without) for point in tuned.points} == {None}
    assert any(point.settings.sharing for point in tuned.points)
    assert count in [len(refused) for refused in tuned.refused.values()]
    assert f"Not possible here: {message}" in " ".join(advice(tuned))


def test_settings_are_refused_before_rows_are_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = list[str]()
    for owner, name in ((Trials, "predicted"), (Run, "batches")):
        original = getattr(owner, name)
        noted = lambda *given, original=original, name=name: done.append(name) or original(*given)  # noqa: E731
        monkeypatch.setattr(owner, name, noted)
    swept(tmp_path, budget=200)
    assert {*done} == {"predicted", "batches"}
    assert "predicted" not in done[done.index("batches") :]


@pytest.mark.slow
def test_a_setting_that_fails_only_when_it_runs_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Run.batches

    def batches(self: Run, **more: Any) -> Any:
        if self.settings.skipping is not None:
            raise CotrunkError("Rows of a UNet cannot be skipped.")
        return original(self, **more)

    monkeypatch.setattr(Run, "batches", batches)
    tuned = swept(tmp_path)
    assert len(tuned.refused["Rows of a UNet cannot be skipped."]) == 13
    assert {point.settings.skipping for point in tuned.points} == {None}


@pytest.mark.slow
def test_prompts_that_cannot_be_compared_are_tried_without_sharing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise CotrunkError("A T5Gemma is not a torch module.")

    monkeypatch.setattr("cotrunk.tuning.trials.pipeline_encoder", refuse)
    tuned = swept(tmp_path, similarity=None)
    assert list(tuned.refused) == ["A T5Gemma is not a torch module."]
    assert not any(point.settings.sharing for point in tuned.points)


def test_without_guidance_an_interval_is_refused(tmp_path: Path) -> None:
    trials = Trials(sd_with_text().pipe, PROMPTS, ARGUMENTS | {"guidance_scale": 1.0}, tmp_path)
    tuned = tune(trials, Means(), Means(), steps=2, similarity=-1.0)
    assert len(tuned.refused["Guidance is off already, so that an interval saves nothing."]) == 2


@pytest.mark.slow
def test_the_threshold_of_the_encoder_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Any]()
    for module in ("planning.request", "tuning.trials"):
        monkeypatch.setattr(f"cotrunk.{module}.auto_threshold", lambda encoder: asked.append(encoder) or 0.0)
    tuned = swept(tmp_path, similarity=None)
    assert any(point.settings.sharing for point in tuned.points)
    assert len(asked) == 1


def test_similarities_around_the_threshold_are_tried(whole: tuple[Path, Tuned]) -> None:
    assert neighbours(0.6) == [0.4, 0.8]
    assert neighbours(-1.0) == [0.0]  # the loosest similarity
    tried = {point.settings.sharing.similarity for point in whole[1].points if point.settings.sharing}
    assert tried == {-1.0, 0.0}


@pytest.mark.slow
def test_the_images_of_another_pipeline_are_generated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have the same classes of model and scheduler."""

    def made(pipe: Any) -> torch.Tensor:
        return Trials(pipe, PROMPTS, ARGUMENTS, tmp_path).of(candidate(2), 0).images

    first = made(sd_with_text().pipe)
    files = lambda: len(list((tmp_path / "tried").iterdir()))  # noqa: E731
    other = sd_with_text().pipe
    other.unet.conv_in.weight.data *= 2
    assert not torch.equal(made(other), first)
    spaced = sd_with_text().pipe
    spaced.scheduler = type(spaced.scheduler).from_config(spaced.scheduler.config, timestep_spacing="trailing")
    assert not torch.equal(made(spaced), first)
    made(sd_with_text().pipe.to(torch.bfloat16))
    assert files() == 4
    monkeypatch.setattr(Run, "batches", lambda *_, **__: pytest.fail("images were made"))
    assert torch.equal(made(sd_with_text().pipe), first)


def test_distances_are_to_images_from_other_noise(whole: tuple[Path, Tuned]) -> None:
    """Then a setting with exactly the reference's images has a distance of zero, as would one with other noise."""
    out, tuned = whole
    pipe, network = sd_with_text().pipe, Means()
    same, other = (
        network.features(Trials(pipe, PROMPTS, ARGUMENTS, out).of(candidate(6), seed).images) for seed in (0, 1)
    )
    fewer = next(point for point in tuned.points if point.settings == candidate(4))
    images = Trials(pipe, PROMPTS, ARGUMENTS, out).of(fewer.settings, 0).images
    assert fewer.distance_excess == estimate(distance_excess(network.features(images), same, other))
    assert tuned.margins[1] == 0.1 * spread(same, other) > 0


def test_prompts_that_share_steps_count_as_one(whole: tuple[Path, Tuned]) -> None:
    """Chance affects all of their images in the same way."""
    _, tuned = whole
    for point in tuned.points:
        groups = [group for group in point.groups if len(group) > 1]
        assert bool(groups) == (point.settings.sharing is not None)
        assert not point.is_compared or point.alignment_loss.freedom == len(point.groups) - 1


def test_the_first_denoising_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, original = list[Run](), Run.batches

    def batches(self: Run, **more: Any) -> Any:
        runs.append(self)
        return original(self, **more)

    monkeypatch.setattr(Run, "batches", batches)
    trials = Trials(sd_with_text().pipe, PROMPTS, ARGUMENTS, tmp_path)
    for steps_asked in (6, 2):
        trials.of(candidate(steps_asked), 0)
    assert [run.plan.steps for run in runs] == [WARM_STEPS, WARM_STEPS, 6, 2]
    # many rows and one row, which a compiled denoiser treats as another shape
    assert [len(run.plan) for run in runs] == [len(PROMPTS), 1, len(PROMPTS), len(PROMPTS)]
    assert [run.settings.guidance_interval is not None for run in runs] == [False, True, False, False]


def test_pipelines_without_guidance_rows_are_warmed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, counts, original = sd_with_text().pipe, list[int](), Run.batches
    guided_by_an_input(pipe)
    monkeypatch.setattr(Run, "batches", lambda self, **more: counts.append(len(self.plan)) or original(self, **more))
    Trials(pipe, PROMPTS, ARGUMENTS, tmp_path).of(candidate(2), 0)
    assert counts == [len(PROMPTS), 1, len(PROMPTS)]


def test_failed_images_are_counted_and_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Run.batches

    def batches(self: Run, **more: Any) -> Any:
        for batch in original(self, **more):
            lost = (4,) if self.plan.steps == 3 else batch.images if self.plan.steps == 2 else ()
            for image in lost:
                batch.output.images[batch.images.index(image)] = float("nan")
            yield Batch(**vars(batch) | {"failed": lost})

    monkeypatch.setattr(Run, "batches", batches)
    tuned = swept(tmp_path, budget=230)
    found = {point.settings.steps: point for point in tuned.points if not point.settings.sharing}
    assert (found[6].failed, found[3].failed, found[2].failed) == (0, 1, 5)
    assert np.isfinite(found[3].alignment.value)
    assert np.isnan(found[3].scores).tolist() == [False, False, False, False, True]
    assert np.isnan(found[2].alignment.value)
    assert not tuned.same_quality.failed


def test_failed_images_are_generated_again_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the meantime the decoder may have been set to another precision."""
    original = Run.batches

    def failing(self: Run, **more: Any) -> Any:
        return (Batch(**vars(batch) | {"failed": (1,)}) for batch in original(self, **more))

    pipe, full = sd_with_text().pipe, candidate(2)
    monkeypatch.setattr(Run, "batches", failing)
    first = Trials(pipe, PROMPTS, ARGUMENTS, tmp_path)
    assert first.of(full, 0).good == [0, 2, 3, 4]
    monkeypatch.setattr(Run, "batches", original)
    assert first.of(full, 0).good == [0, 2, 3, 4]
    assert Trials(pipe, PROMPTS, ARGUMENTS, tmp_path).of(full, 0).good == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_a_prompt_that_fails_in_every_setting_leaves_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Run.batches

    def failing(self: Run, **more: Any) -> Any:
        return (Batch(**vars(batch) | {"failed": (0,)}) for batch in original(self, **more))

    monkeypatch.setattr(Run, "batches", failing)
    monkeypatch.setattr("cotrunk.pipelines.loading.load_pipeline", lambda *_, **__: sd_with_text().pipe)
    monkeypatch.setattr("cotrunk.cli.tune.load_metric_networks", lambda *_: NETWORKS)
    outcome = cotrunk("tune", *PROMPTS, "--steps", 4, "--budget", 200, "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "index.html").exists()


def test_a_safety_checker_changes_the_stored_images(tmp_path: Path) -> None:
    pipe = sd_with_text().pipe
    pipe.safety_checker = lambda images, clip_input: (torch.zeros_like(images), [True] * len(images))
    pipe.feature_extractor = lambda images, return_tensors: SimpleNamespace(
        to=lambda device: SimpleNamespace(pixel_values=torch.zeros(1))
    )
    assert not Trials(pipe, PROMPTS, ARGUMENTS, tmp_path).of(candidate(2), 0).images.any()
    pipe.safety_checker = None
    assert Trials(pipe, PROMPTS, ARGUMENTS, tmp_path).of(candidate(2), 0).images.any()


def test_a_pipeline_that_generates_only_nan_is_reported(tmp_path: Path) -> None:
    pipe = sd_with_text().pipe
    pipe.unet.conv_in.weight.data.fill_(float("nan"))
    with pytest.raises(CotrunkError, match="Nearly all images of independent sampling contain NaN"):
        swept(tmp_path, pipe, steps=2)


DRAWN = np.random.default_rng(0).normal(0, 1, 400)


def point(
    rows: float,
    alignment: float,
    *,
    share: float = 0.0,
    steps: int = 30,
    distance: float = 0.0,
    failed: int = 0,
    prompts: int = 100,
    noise: float = 0.02,
) -> Point:
    """Return a point with this mean score, with noise per point in addition to noise per prompt."""
    number = int(rows)
    own, prompt = np.roll(DRAWN, number)[:prompts], DRAWN[-prompts:]
    scores = alignment + 0.05 * prompt + noise * (own - own.mean())
    behind = estimate(0.5 + 0.05 * prompt - scores)
    apart = Estimate(distance, 0.1 / prompts**0.5 if noise else 0.0, prompts - 1, prompts)
    groups = tuple((i,) for i in range(prompts))
    measured = (mean(scores), behind, apart, 0.2 if share else 0, failed, tuple(scores.tolist()), groups)
    return Point(candidate(steps, share), rows, 1.0, *measured)


FULL = point(60, 0.5, noise=0)
MARGINS = (0.02, 0.05)


def test_recommendations_are_the_cheapest_equivalent_and_the_best_for_half_the_rows() -> None:
    points = [
        FULL,
        point(40, 0.5, steps=20),
        point(30, 0.495, share=0.3),
        point(20, 0.4, steps=10),
        point(28, 0.496, share=0.4, distance=1.0),
        point(26, 0.496, steps=13, failed=1),
    ]
    tuned = recommend(points, MARGINS, 0)
    assert tuned.same_quality is points[2]  # the last two are cheaper, but have a large distance or a failed image
    assert tuned.best_in_rows is points[2]  # not the better aligned one, which has a large distance
    assert tuned.sharing_pays
    assert "Sharing was not shown to pay" not in " ".join(advice(tuned))
    alone = recommend([points[0], points[4]], MARGINS, 0)
    assert alone.best_in_rows is points[4]
    assert alone.same_quality is points[0]


def test_the_row_limit_can_be_set() -> None:
    points = [FULL, point(40, 0.5, steps=20), point(30, 0.495, steps=15), point(20, 0.49, steps=10)]
    tuned = recommend(points, MARGINS, rows=25)
    assert tuned.best_in_rows is points[3]
    best = "Best alignment for at most 25 rows per image: independent, 10 steps, 20.0 rows"
    assert f"{best}. It was shown to be as good as all steps." in advice(tuned)
    nothing = recommend(points, MARGINS, rows=10)
    assert nothing.best_in_rows is None
    assert "No setting that was tried needs at most 10 rows per image." in advice(nothing)


def test_the_defaults_and_the_published_trunk_are_tried() -> None:
    assert candidate(6, 0.2, tolerance=0.03) == Settings(skipping=Skipping(), steps=6)  # the defaults of a run
    assert candidate(6, 0.2, tolerance=0.03) in candidates(6)
    assert candidate(6, 0.3, is_published=True).sharing == Sharing.published()
    assert candidate(6, 0.3, is_published=True) in candidates(6)
    assert family(candidate(6, 0.3, is_published=True)) == "shared 30%, published trunk"


def test_independent_steps_at_the_row_limit_are_tried(tmp_path: Path) -> None:
    assert candidate(5) not in candidates(6)
    budget = 400  # rows: enough for the independent settings
    tried = [point.settings for point in swept(tmp_path, rows=11, budget=budget).points if not point.settings.sharing]
    assert candidate(5) in tried
    assert list(candidates(6, equal_cost=3)) == list(candidates(6))  # already among them
    assert list(candidates(6, equal_cost=6)) == list(candidates(6))


def test_the_frontier_is_the_pareto_front() -> None:
    points = [
        FULL,
        point(40, 0.51, steps=20),
        point(30, 0.4, steps=15),
        point(25, 0.45, share=0.3),
        point(20, 0.6, failed=1),
        point(10, 0.3, steps=5),
    ]
    assert recommend(points, MARGINS).frontier == [points[1], points[3], points[5]]


def test_fewer_prompts_recommend_less() -> None:
    """The same loss within the margin is shown with many prompts, and is undecided with few."""
    few = 12
    for prompts, expected in ((300, 20), (few, 60)):
        points = [point(60, 0.5, noise=0, prompts=prompts), point(20, 0.49, steps=10, noise=0.05, prompts=prompts)]
        tuned = recommend(points, MARGINS, 0)
        assert tuned.same_quality.rows == expected
        assert bool(tuned.undecided) == (expected == 60)
    (sentence,) = (message for message in advice(tuned) if "Undecided" in message)
    needed = tuned.prompts_to_decide(points[1])
    assert few < needed <= 400
    assert sentence.startswith("Undecided: independent, 10 steps, 20.0 rows per image; about ")
    assert sentence.endswith("prompts would decide whether it is as good (12 were tried).")
    stated = int(sentence.split("about ")[1].split(" ")[0].replace(",", ""))
    assert needed <= stated <= 1.1 * needed + 1
    enough = [point(60, 0.5, noise=0, prompts=400), point(20, 0.49, steps=10, noise=0.05, prompts=400)]
    assert recommend(enough, MARGINS, 0).same_quality is enough[1]


def test_an_unproven_difference_is_not_an_equivalence() -> None:
    """This holds for alignment and distance, and for any number of settings."""
    loud = [point(rows, 0.5, steps=int(rows), noise=0.05, prompts=12) for rows in range(10, 59)]
    tuned = recommend([point(60, 0.5, noise=0, prompts=12), *loud], MARGINS, 0)
    assert tuned.same_quality is tuned.points[0]
    assert all(one.alignment_loss.interval().low < 0 < one.alignment_loss.interval().high for one in loud)
    assert len([message for message in advice(tuned) if "Undecided" in message]) == 3
    assert "46 more cheap settings are undecided: see the table." in advice(tuned)
    far = replace(
        point(20, 0.5, steps=10), distance_excess=Estimate(0.0, 0.05, 99, 100)
    )  # shown to be neither far nor near
    assert recommend([FULL, far], MARGINS, 0).same_quality is FULL
    near = replace(far, distance_excess=Estimate(0.0, 0.01, 99, 100))
    assert recommend([FULL, near], MARGINS, 0).same_quality is near
    # one of many settings needs more prompts than a single one
    alone, among = (recommend([FULL, near, *[point(30, 0.4, steps=9)] * more], MARGINS, 0) for more in (0, 27))
    assert alone.confidence == 0.95 < among.confidence
    assert alone.prompts_to_decide(far) < among.prompts_to_decide(far)


def test_a_setting_shown_to_be_worse_is_not_undecided() -> None:
    worse = [point(20, 0.4, steps=10), point(28, 0.5, steps=14, distance=1.0)]
    tuned = recommend([FULL, *worse], MARGINS, 0)
    assert [tuned.is_as_good(one) for one in worse] == [False, False]
    assert not tuned.undecided
    assert not any("Undecided" in message for message in advice(tuned))


def test_sharing_pays_only_where_it_is_measurably_better() -> None:
    """A tiny advantage is due to chance."""
    alone = point(40, 0.48, steps=20)
    assert not recommend([FULL, alone, point(42, 0.4801, share=0.3)], MARGINS, 0).sharing_pays
    assert recommend([FULL, alone, point(42, 0.495, share=0.3)], MARGINS, 0).sharing_pays
    # no independent setting is as cheap, so there is no comparison
    assert not recommend([FULL, alone, point(30, 0.495, share=0.3)], MARGINS, 0).sharing_pays


def test_the_advice_says_when_sharing_or_nothing_pays() -> None:
    points = [FULL, point(20, 0.499, steps=10), point(42, 0.4, share=0.3)]
    message = " ".join(advice(recommend(points, MARGINS, 3)))
    assert "Sharing was not shown to pay on these prompts" in message
    assert "3 settings were not tried" in message
    fewer = recommend(points[:2], MARGINS, 1)
    assert claim(fewer) == (
        "Independent, 10 steps: 20.0 rows per image instead of 60, and shown to be as good as 30 independent steps: "
        "it loses less than 0.02 of alignment and 0.05 of kernel distance."
    )
    assert advice(fewer)[0] == "Sharing was not tried."  # no claim about settings that were not tried
    assert "1 setting was not tried" in " ".join(advice(fewer))
    nothing = recommend([FULL, point(20, 0.1, steps=10)], MARGINS, 0)
    assert claim(nothing) == "No setting was shown to be as good as 30 independent steps for fewer rows."


def test_the_page_and_the_settings(whole: tuple[Path, Tuned]) -> None:
    out, tuned = whole
    kept = Trials(sd_with_text().pipe, PROMPTS, ARGUMENTS, out).of(tuned.points[0].settings, 0).images.numpy()
    shown = {tuned.points[0]: kept}
    write_tuned(tuned, shown, "networks", BASIS, out)
    page = (out / "index.html").read_text()
    assert "a &lt;model&gt;" in page
    assert page.count("<tr") == 1 + len(tuned.points)
    assert page.count("<img") == 1 + len(PROMPTS)
    assert "://" not in page
    with Image.open(out / "frontier.png") as image:
        assert image.width > 600
    assert read_settings(out / "same-quality.json") == (tuned.same_quality.settings, BASIS)
    assert tuned.best_in_rows is not None
    assert read_settings(out / "best-in-rows.json") == (tuned.best_in_rows.settings, BASIS)
    write_tuned(replace(tuned, best_in_rows=None), shown, "networks", BASIS, out)
    assert not (out / "best-in-rows.json").exists()  # from another number of rows


def test_settings_survive_their_file(tmp_path: Path) -> None:
    one = candidate(12, 0.3, 0.7, 0.02, (0.1, 0.8))
    write_settings(one, BASIS, tmp_path / "a.json")
    assert read_settings(tmp_path / "a.json") == (one, BASIS)
    assert one.sharing == Sharing(share=0.3, similarity=0.7)
    assert one.skipping == Skipping(tolerance=0.02)
    assert candidate(4) == Settings(sharing=None, skipping=None, steps=4)


def test_settings_files_have_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "lora", "mini"):
        Path(name).mkdir()
    write_settings(candidate(4), Basis("model", "lora", None, 3.0), Path("a.json"))
    assert read_settings(Path("a.json"))[1] == Basis(str(tmp_path / "model"), str(tmp_path / "lora"), None, 3.0)
    write_settings(candidate(4), Basis("mini", "owner/lora", None, 3.0), Path("a.json"))
    assert read_settings(Path("a.json"))[1] == Basis("mini", "owner/lora", None, 3.0)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "no json", {"step": 3}, {"model": 1}, {"guidance": "x"}]
    + [
        {"settings": wrong}
        for wrong in (None, {"steps": "x"}, {"steps": None}, {"sharing": {"share": 2}}, {"share": 0.3})
    ],
)
def test_a_file_without_settings_is_reported(tmp_path: Path, content: Any) -> None:
    whole = {"settings": {"steps": 3}, "model": "mini", "lora": None, "scheduler": None, "guidance": 3.0}
    (tmp_path / "a.json").write_text(content if isinstance(content, str) else json.dumps(whole | content))
    with pytest.raises(CotrunkError, match=r"a\.json(: | is not a file of settings| gives no number of steps)"):
        read_settings(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps(whole))
    assert read_settings(tmp_path / "a.json")[0] == Settings(steps=3)
