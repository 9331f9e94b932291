"""`cotrunk plan`: what sharing would save, without a denoiser."""

from pathlib import Path
from typing import Any

import pytest
from command import PROMPTS, QUICK, Outcome, assert_refused, cotrunk, pipeline
from running import generate
from tiny import sd_with_text

from cotrunk.pipelines.loading import load_pipeline
from cotrunk.planning import embedding
from cotrunk.planning.plan import Plan
from cotrunk.planning.vector_files import PROBES
from cotrunk.runs.job import Job
from cotrunk.runs.job_plan import load_job_plan


@pytest.fixture
def no_denoiser(model: pytest.MonkeyPatch) -> None:
    def forward(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the denoiser was run")

    model.setattr(pipeline().unet, "forward", forward)


@pytest.mark.usefixtures("no_denoiser")
def test_plan(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS) + "\n\n")
    outcome = cotrunk("plan", "--prompts", tmp_path / "p.txt", "--save", tmp_path / "plan.json", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "1 blank line skipped" in outcome.err
    assert "6 images, 2 groups, 1 alone" in outcome.out
    assert "28 denoiser rows instead of 36, 22.2% saved" in outcome.out
    assert "a sleeping tiger" in outcome.out
    assert "a violin" not in outcome.out
    assert "1 of 3" in outcome.out
    assert "Sharing is not worth it" not in outcome.out
    assert "Skipping saves more in a run; how much depends on the images.\n" in outcome.out
    saved = Plan.load(tmp_path / "plan.json")
    assert (saved.cost.used, saved.cost.independent) == (28, 36)


@pytest.mark.usefixtures("no_denoiser")
def test_plan_with_vectors_in_a_folder_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    first = cotrunk("plan", *PROMPTS, *QUICK, "--vectors", tmp_path / "vectors", "--save", tmp_path / "plan.parquet")
    assert first.code == 0, first.err
    cotrunk("plan", *PROMPTS, *QUICK, "--save", tmp_path / "plan.json")
    job = Job(tuple(PROMPTS))
    assert load_job_plan(tmp_path / "plan.parquet", job) == load_job_plan(tmp_path / "plan.json", job)
    encoded = list[str]()
    encode = embedding._embed
    monkeypatch.setattr(embedding, "_embed", lambda *given: encoded.extend(given[2]) or encode(*given))
    second = cotrunk("plan", *PROMPTS[::-1], *QUICK, "--mode", "tree", "--vectors", tmp_path / "vectors")
    assert second.code == 0, second.err
    assert {*encoded} == {*PROBES}


def test_plan_refuses_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for option, path, says in (
        ("--save", tmp_path, "is a folder: name a file"),
        ("--save", tmp_path / "none" / "plan.json", "No such file or directory"),
        ("--vectors", tmp_path / "file", "Choose another folder for vectors"),
    ):
        assert_refused(cotrunk("plan", *PROMPTS, option, path), says)


@pytest.mark.usefixtures("no_denoiser")
def test_plan_is_the_plan_of_the_run(run: tuple[Path, Outcome], tmp_path: Path) -> None:
    cotrunk("plan", *PROMPTS, *QUICK, "--seed", 5, "--save", tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_bytes() == (run[0] / "plan.json").read_bytes()


@pytest.mark.usefixtures("no_denoiser")
@pytest.mark.parametrize(
    ("options", "said", "used", "noises", "trunk"),
    [
        ((), "Every image keeps its own noise, and trunks are sampled without guidance.", 28, 6, ("own", 0.0)),
        (("--noise", "own"), "keeps its own noise, and trunks are sampled without guidance.", 28, 6, ("own", 0.0)),
        (("--trunk-guidance", 1), "keeps its own noise, and trunks are sampled with full", 30, 6, ("own", 1.0)),
        (("--noise", "common"), "start from one noise, and trunks are sampled with full", 30, 3, ("common", 1.0)),
        (("--noise", "common", "--trunk-guidance", 0.5), "with 50% of the guidance", 30, 3, ("common", 0.5)),
    ],
)
def test_plan_says_how_trunks_are_sampled(
    tmp_path: Path, options: tuple[object, ...], said: str, used: int, noises: int, trunk: tuple[str, float]
) -> None:
    outcome = cotrunk("plan", *PROMPTS, *QUICK, *options, "--save", tmp_path / "plan.json")
    assert said in outcome.out
    assert f"{used} denoiser rows instead of 36" in outcome.out
    saved = Plan.load(tmp_path / "plan.json")
    assert saved.sharing is not None
    assert (saved.sharing.noise, saved.sharing.trunk_guidance) == trunk
    assert len(set(saved.seeds)) == noises


@pytest.mark.usefixtures("no_denoiser")
def test_plan_refuses_trunks_that_do_not_exist() -> None:
    assert_refused(cotrunk("plan", *PROMPTS, "--noise", "mine"), "noise 'mine' is unknown: use auto, common or own")
    assert_refused(cotrunk("plan", *PROMPTS, "--trunk-guidance", 1.5), "trunk_guidance", "1.5")


@pytest.mark.usefixtures("no_denoiser")
def test_plan_that_is_not_worth_it() -> None:
    outcome = cotrunk("plan", "a tiger", "a violin", "a fire engine")
    assert outcome.code == 0
    assert "0 groups, 3 alone" in outcome.out
    assert "Sharing is not worth it" in outcome.out


@pytest.mark.usefixtures("no_denoiser")
def test_plan_that_cannot_be_saved(tmp_path: Path) -> None:
    outcome = cotrunk("plan", "a tiger", "a red tiger", "--save", tmp_path / "none/plan.json")
    assert_refused(outcome, "Cannot write", "plan.json")


@pytest.mark.usefixtures("no_denoiser")
def test_plan_shows_as_many_groups_as_asked() -> None:
    outcome = cotrunk("plan", *PROMPTS, "--show", 1)
    assert "... and 1 more group (--show 2 prints them all)" in outcome.out
    assert "tiger" not in outcome.out


@pytest.mark.usefixtures("no_denoiser")
@pytest.mark.parametrize("target", ["", "."])
def test_plan_is_not_written_to_a_folder(target: str) -> None:
    assert_refused(cotrunk("plan", "a tiger", "a red tiger", "--save", target), "is a folder: name a file")


@pytest.mark.usefixtures("no_denoiser")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-group", "1"], "groups of one prompt were asked for"),
        (["--steps", "3"], "the part to share is less than one step"),
        (["--share", "0"], "the share is 0"),
        (["--similarity", "1"], "no two different prompts are similar enough."),
        (["--steps", "6", "--mode", "tree"], "similar enough to share a whole step in this mode"),
    ],
)
def test_plan_says_why_nothing_is_shared(options: list[str], said: str) -> None:
    outcome = cotrunk("plan", "a red apple", "a green apple", *options)
    assert outcome.code == 0, outcome.err
    assert said in outcome.out


@pytest.mark.usefixtures("no_denoiser")
def test_plan_of_one_prompt() -> None:
    assert "one prompt has no other to share with" in cotrunk("plan", "a red apple").out


@pytest.mark.usefixtures("no_denoiser")
def test_prompts_that_look_identical_are_reported_and_do_not_share(tmp_path: Path) -> None:
    prompts = ("\N{RED APPLE}", "a tiger", "\N{OWL}", "A  TIGER", "a tiger")
    outcome = cotrunk("plan", *prompts, "--save", tmp_path / "plan.json")
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 2
    assert "prompts 0 ('\N{RED APPLE}'), 2 ('\N{OWL}') look identical to the text encoder" in warnings[0]
    assert "prompts 1 ('a tiger'), 3 ('A TIGER') look identical" in warnings[1]
    plan = Plan.load(tmp_path / "plan.json")
    assert len(set(plan.seeds)) == 5
    assert all(len(tree.images) == 1 for tree in plan.trees)


@pytest.mark.usefixtures("no_denoiser")
def test_long_prompts_are_cut_in_the_table() -> None:
    outcome = cotrunk("plan", "a red apple " * 99, "a red apple")
    assert outcome.out.count("a red apple") < 20


@pytest.mark.usefixtures("no_denoiser")
def test_a_long_prompt_without_spaces_keeps_its_beginning() -> None:
    outcome = cotrunk("plan", "\N{CJK UNIFIED IDEOGRAPH-82F9}" * 90, "a red apple")
    assert "prompt 0 ('" + "\N{CJK UNIFIED IDEOGRAPH-82F9}" * 39 + "…') is too long" in outcome.err


def test_a_saved_plan_replays_where_guidance_is_distilled_into_the_denoiser(tmp_path: Path) -> None:
    tiny = sd_with_text()
    tiny.pipe.unet = type(tiny.pipe.unet).from_config(tiny.pipe.unet.config, time_cond_proj_dim=8)
    tiny.pipe.save_pretrained(tmp_path / "model")
    options = ("--model", tmp_path / "model", "--similarity", "-1", "--steps", 4, "--share", "0.5")
    outcome = cotrunk("plan", "a cat", "a dog", *options, "--save", tmp_path / "plan.json")
    assert outcome.code == 0, outcome.err
    assert "6 denoiser rows instead of 8" in outcome.out  # one row per evaluation
    plan = Plan.load(tmp_path / "plan.json")
    arguments = {"num_inference_steps": 4, "height": 32, "width": 32, "output_type": "latent"}
    result = generate(load_pipeline(str(tmp_path / "model"), "cpu"), plan=plan, **arguments)
    assert result.cost == plan.cost

    (tmp_path / "model/unet/config.json").write_text("{broken")
    outcome = cotrunk("plan", "a cat", *options)
    assert outcome.code == 2
    assert "model's unet cannot be read" in outcome.err.splitlines()[-1]


@pytest.mark.usefixtures("no_denoiser")
def test_more_prompts_than_can_be_grouped_are_refused_before_they_are_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("prompts were embedded")

    monkeypatch.setattr("cotrunk.planning.grouping.DENSE_LIMIT", 2)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(pipeline().text_encoder, "forward", forward)
    assert_refused(cotrunk("plan", "a cat", "a dog", "a cow"), "More than 2 prompts need faiss")


@pytest.mark.usefixtures("no_denoiser")
def test_plan_of_a_template(tmp_path: Path) -> None:
    (tmp_path / "fruit.txt").write_text("apple\npear\n")
    how = ("--templates", "--wildcards", tmp_path, *QUICK)
    outcome = cotrunk("plan", "a {red|green} __fruit__", *how)
    assert outcome.code == 0, outcome.err
    assert "4 images" in outcome.out
    assert "a green pear" in outcome.out
    outcome = cotrunk("plan", "a {red|green} apple", "a pear", *QUICK)
    assert "hint: prompt 0 looks like a template: --templates expands it" in outcome.err
    assert "2 images" in outcome.out
    assert_refused(cotrunk("plan", "a {red apple", "--templates"), "prompt 0: the brace at '{red apple' is not closed")
    assert_refused(cotrunk("plan", "a pear", "--wildcards", tmp_path), "--wildcards is for templates: add --templates")
    (tmp_path / "p.csv").write_text("prompt,style\na cat,flat\na __fish__,flat\n")
    refusal = cotrunk("plan", "--prompts", tmp_path / "p.csv", *how)
    assert "warning: the column 'style' is not used" in refusal.err
    assert "p.csv, line 3: there is no file" in refusal.err
    assert refusal.code == 2
    assert_refused(cotrunk("plan", "a pear", "--columns", "prompt=x"), "--columns is for the file of --prompts")
