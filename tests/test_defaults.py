"""What `generate` does by default: skipping, and trunks with own noise and without guidance, where both work."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from running import STEPS, close
from tiny import TinyPipeline, flux, sana, sd, sd_from_image, sd_perturbed, sdxl
from torch import Tensor

from cotrunk import CotrunkError, Plan, Settings, Sharing, Skipping, generate, mini, plan, stream
from cotrunk.generation import prepare
from cotrunk.pipelines import automatic, class_tables
from cotrunk.planning.trunk_choice import chosen

ALIKE = Sharing(share=0.5, similarity=-1.0)  # how trunks are sampled is left to the pipeline
UNGUIDED = replace(ALIKE, noise="own", trunk_guidance=0.0)
GUIDED = replace(ALIKE, noise="own", trunk_guidance=1.0)
PUBLISHED = Sharing.published(share=0.5, similarity=-1.0)
LATENTS = {"num_inference_steps": 8, "output_type": "latent"}


def unreadable() -> TinyPipeline:
    tiny = sd()
    tiny.pipe.scheduler = diffusers.EDMEulerScheduler()
    return tiny


def consistent() -> TinyPipeline:
    tiny = sana()
    tiny.pipe.scheduler = diffusers.SCMScheduler()
    return tiny


def perturbed_alone() -> TinyPipeline:
    """Two rows per image, and none of them for classifier-free guidance."""
    tiny = sd_perturbed()
    return replace(tiny, inputs=lambda n, **more: tiny.inputs(n, **more) | {"guidance_scale": 1.0})


def guided(tiny: TinyPipeline, scale: float) -> TinyPipeline:
    return replace(tiny, inputs=lambda n, **more: tiny.inputs(n, **more) | {"guidance_scale": scale})


NO_LEVELS = "does not say how noisy a timestep is"
ATTENTION = "uses perturbed-attention guidance, which does not work with skipping"
CASES: dict[str, tuple[Callable[[], TinyPipeline], Sharing, str | None, str | None]] = {
    "sd": (sd, UNGUIDED, None, None),
    "without guidance": (lambda: guided(sd(), 1.0), UNGUIDED, None, None),
    "from an image": (sd_from_image, UNGUIDED, None, None),
    "sdxl": (sdxl, UNGUIDED, None, None),
    "flux": (flux, UNGUIDED, None, None),
    "perturbed": (sd_perturbed, GUIDED, "StableDiffusionPAGPipeline computes 3 rows per image", ATTENTION),
    "perturbed alone": (perturbed_alone, GUIDED, "computes a row with perturbed attention", ATTENTION),
    "edm": (unreadable, PUBLISHED, f"EDMEulerScheduler {NO_LEVELS}", f"EDMEulerScheduler {NO_LEVELS}"),
}


@pytest.mark.filterwarnings("ignore:Nothing is skipped")
@pytest.mark.parametrize("name", CASES)
def test_the_default_is_the_best_that_the_pipeline_allows(name: str) -> None:
    build, sharing, fallback, why_not_skipped = CASES[name]
    tiny = build()
    inputs = tiny.inputs(3)
    made = generate(tiny.pipe, **inputs, **LATENTS, sharing=ALIKE, seed=3)
    assert made.plan.sharing == sharing
    assert (made.plan.findings.fallback is None) == (fallback is None)
    assert (fallback or "") in (made.plan.findings.fallback or "")
    run = prepare(tiny.pipe, None, Settings(sharing=ALIKE), **inputs, **LATENTS)
    assert run.skipping == (None if why_not_skipped else Skipping())
    assert (why_not_skipped or "") in (run.why_not_skipped or "")
    assert (run.why_not_skipped is None) == (why_not_skipped is None)

    skipping = None if why_not_skipped else Skipping()
    explicit = generate(tiny.pipe, **inputs, **LATENTS, sharing=sharing, skipping=skipping, seed=3)
    assert torch.equal(made.images, explicit.images)
    assert (made.cost, made.spared) == (explicit.cost, explicit.spared)
    again = generate(tiny.pipe, **inputs, **LATENTS, plan=made.plan)
    assert close(again.images, made.images)
    assert made.failed == ()


def test_the_scheduler_of_consistency_models_gets_the_published_trunk_and_no_skipping() -> None:
    tiny = consistent()
    inputs = tiny.inputs(2) | {"num_inference_steps": 2}
    assert plan(tiny.pipe, **inputs, sharing=ALIKE).sharing == PUBLISHED
    assert f"SCMScheduler {NO_LEVELS}" in str(automatic.why_not_skipped(tiny.pipe))


@pytest.mark.parametrize("load", [mini.load, mini.load_dit])
def test_the_embedded_models_share_and_skip_by_default(load: Callable[[], Any]) -> None:
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a red apple", "a green apple"]
    made = generate(pipe, prompts, num_inference_steps=10, guidance_scale=3.0, output_type="latent")
    assert made.plan.sharing == Sharing(noise="own", trunk_guidance=0.0)
    assert made.plan.trees[0].stop == 2
    assert made.spared["sharing"] == 2 * 3  # one row of four
    assert made.spared["skipping"] > 0
    assert made.failed == ()


def test_nothing_skipped_is_said_once_and_not_if_it_was_asked_for() -> None:
    tiny = sd_perturbed()
    inputs = tiny.inputs(2)
    for call in (generate, stream):
        with pytest.warns(UserWarning, match=f"Nothing is skipped: .*{ATTENTION}") as seen:
            call(tiny.pipe, **inputs, num_inference_steps=STEPS, output_type="latent", sharing=ALIKE)
        said = [each for each in seen if "Nothing is skipped" in str(each.message)]
        assert [Path(each.filename).name for each in said] == ["test_defaults.py"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Nothing is skipped")
        generate(tiny.pipe, **inputs, num_inference_steps=STEPS, output_type="latent", sharing=None, skipping=None)
    with pytest.raises(CotrunkError, match=ATTENTION):
        generate(tiny.pipe, **inputs, skipping=Skipping())


def test_what_is_asked_for_by_name_is_refused_where_it_does_not_work() -> None:
    inputs = unreadable().inputs(2)
    with pytest.raises(CotrunkError, match=NO_LEVELS):
        generate(unreadable().pipe, **inputs, sharing=replace(ALIKE, noise="own"), skipping=None)
    for tiny in (sd_perturbed(), perturbed_alone()):
        with pytest.raises(CotrunkError, match="use trunk_guidance=1"):
            generate(tiny.pipe, **tiny.inputs(2), sharing=replace(ALIKE, trunk_guidance=0.0), skipping=None)


def test_one_choice_by_name_leaves_the_other_to_the_pipeline() -> None:
    def of(tiny: TinyPipeline, rows: int, **given: Any) -> tuple[str, Any]:
        found, _ = chosen(tiny.pipe, {}, rows, Sharing(**given))
        return found.noise, found.trunk_guidance

    assert of(sd(), 2, noise="common") == ("common", 1.0)
    assert of(sd(), 2, trunk_guidance=0.5) == ("own", 0.5)
    assert of(sd(), 2, noise="common", trunk_guidance=0.0) == ("common", 0.0)
    assert of(unreadable(), 2, trunk_guidance=0.0) == ("common", 0.0)
    assert of(sd_perturbed(), 3, noise="own") == ("own", 1.0)


@pytest.mark.parametrize(
    ("name", "noise", "guidance"),
    [
        ("FluxControlNetPipeline", "common", 1.0),
        ("FluxFillPipeline", "common", 1.0),
        ("QwenImageControlNetPipeline", "common", 1.0),
        ("StableDiffusionUpscalePipeline", "common", 1.0),
        ("IFSuperResolutionPipeline", "common", 1.0),
        ("StableDiffusionPipelineSafe", "own", 1.0),
    ],
)
def test_what_would_be_refused_while_denoising_is_decided_before(name: str, noise: str, guidance: float) -> None:
    tiny = sd()
    kind = type(name, (type(tiny.pipe),), {})
    tiny.pipe.__class__ = kind
    found, sentence = chosen(tiny.pipe, {}, 2, ALIKE)
    assert (found.noise, found.trunk_guidance) == (noise, guidance)
    assert f"because {name}" in str(sentence)


def test_a_denoiser_that_keeps_rows_skips_nothing() -> None:
    tiny = sd()
    tiny.pipe.__class__ = type("Flux2KleinKVPipeline", (type(tiny.pipe),), {})
    assert automatic.why_not_skipped(tiny.pipe) == f"Flux2KleinKVPipeline {class_tables.NOT_SKIPPED['Flux2KleinKV']}"


def test_a_fallback_is_noted_only_where_something_is_shared() -> None:
    tiny = unreadable()
    assert plan(tiny.pipe, **tiny.inputs(2), sharing=ALIKE).findings.fallback
    assert plan(tiny.pipe, **tiny.inputs(1), sharing=ALIKE).findings.fallback is None


def test_a_plan_file_holds_what_was_chosen(tmp_path: Path) -> None:
    tiny = unreadable()
    made = plan(tiny.pipe, **tiny.inputs(2), sharing=ALIKE)
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made
    content = json.loads((tmp_path / "plan.json").read_text())
    assert (content["sharing"]["noise"], content["sharing"]["trunk_guidance"]) == ("common", 1.0)
    for name in ("noise", "trunk_guidance"):  # as files had it before these options existed
        del content["sharing"][name]
    del content["findings"]["fallback"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert Plan.load(tmp_path / "old.json").sharing == made.sharing
    content["sharing"]["noise"] = "auto"
    (tmp_path / "auto.json").write_text(json.dumps(content))
    with pytest.raises(CotrunkError, match="does not say how trunks are sampled"):
        Plan.load(tmp_path / "auto.json")


@pytest.mark.parametrize("name", ["sd", "flux", "sdxl"])
def test_exact_is_the_pipeline_itself(name: str) -> None:
    tiny = CASES[name][0]()
    inputs = tiny.inputs(2)
    made = generate(tiny.pipe, **inputs, **LATENTS, sharing=None, skipping=None, seed=[1, 2])
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    bare: Tensor = tiny.pipe(**inputs, **LATENTS, generator=generators).images
    assert torch.equal(made.images, bare)


@pytest.mark.parametrize(
    "more",
    [
        {"guidance_interval": (0.25, 0.75)},
        {"num_images_per_prompt": 2},
        {"sharing": replace(ALIKE, mode="tree")},
        {"sharing": replace(ALIKE, mode="adaptive")},
        {"negative_prompt_embeds": sd().inputs(3, seed=7)["prompt_embeds"]},
    ],
    ids=str,
)
def test_the_default_trunk_goes_with_everything_else(more: dict[str, Any]) -> None:
    """Rows that were counted are those that were planned, and every image is the one that it is in a batch of its own
    group."""
    tiny = sd()
    given = {"sharing": ALIKE, **tiny.inputs(3), **LATENTS, **more}
    made = generate(tiny.pipe, **given)
    assert made.cost.used + made.spared["skipping"] + made.spared["guidance"] == made.plan.cost.used
    assert made.failed == ()
    explicit = replace(given["sharing"], noise="own", trunk_guidance=0.0)
    assert torch.equal(made.images, generate(tiny.pipe, **given | {"sharing": explicit}).images)
