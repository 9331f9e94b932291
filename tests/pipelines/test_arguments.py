"""The pipeline's own arguments pass through; those that do not fit are refused before denoising."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from PIL import Image
from running import EVERYONE, STEPS, bare, close, denoiser, generate, recorded, run
from tiny import TinyPipeline, sd, sd_controlnet, sd_from_image, sd_with_text, sdxl
from torch import Tensor, nn

from cotrunk import Batching, CotrunkError, Plan, Settings, Skipping
from cotrunk.generation import warm_up
from cotrunk.pipelines.arguments import PerPrompt
from cotrunk.pipelines.compatibility import check_pipeline
from cotrunk.pipelines.cost import guidance_rows, timesteps_of


def test_callbacks_pass_through() -> None:
    tiny, seen = sd(), []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((pipe is tiny.pipe, step, sorted(tensors), len(tensors["latents"])))
        return {"latents": tensors["latents"] * 0} if step == STEPS - 1 else {}

    result = run(
        tiny,
        tiny.inputs(3),
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    assert seen == [(True, step, ["latents", "prompt_embeds"], 3) for step in range(STEPS)]
    assert not result.images.any()  # what it returns counts


@pytest.mark.parametrize("kind", ["latent", "pt", "np", "pil"])
def test_output_types_pass_through(kind: str) -> None:
    tiny = sd()
    inputs = tiny.inputs(3)
    result = run(tiny, inputs, sharing=None, output_type=kind, batching=Batching(2))
    generators = [torch.Generator().manual_seed(seed) for seed in result.plan.seeds]
    expected = tiny.pipe(**inputs, num_inference_steps=STEPS, output_type=kind, generator=generators)
    assert type(result.output) is type(expected)
    assert type(result.images) is type(expected.images)
    for ours, theirs in zip(result.images, expected.images, strict=True):
        if kind == "pil":
            assert ours.size == theirs.size
            assert max(abs(a - b) for a, b in zip(ours.tobytes(), theirs.tobytes(), strict=True)) <= 1
        else:
            assert abs(ours - theirs).max() <= 1e-4 * abs(theirs).max()


# --- control images, one per prompt or one for all ------------------------------------------------------


def images_of(n: int, shift: int = 0) -> list[Image.Image]:
    return [Image.new("RGB", (32, 32), (40 * i + shift, 10, 200 - 40 * i)) for i in range(n)]


ALIKE = [0, 1, 0, 1]  # which prompts have the same control image
CONTROLS: dict[str, tuple[int, Callable[[list[Image.Image], list[Image.Image]], Any], bool]] = {
    # name: (networks, the argument, whether its images differ among prompts)
    "one image": (1, lambda edges, poses: edges[0], False),
    "a list of one": (1, lambda edges, poses: edges[:1], False),
    "an image per prompt": (1, lambda edges, poses: edges, True),
    "an image per network": (2, lambda edges, poses: [edges[0], poses[0]], False),
    "lists a prompt": (2, lambda edges, poses: [[e, p] for e, p in zip(edges, poses, strict=True)], True),
    "a list for all prompts": (2, lambda edges, poses: [[edges[0], poses[0]]], False),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_prompts_with_different_images_do_not_share(name: str) -> None:
    nets, make, differ = CONTROLS[name]
    tiny = sd_controlnet(nets)
    edges, poses = ([own[i] for i in ALIKE] for own in (images_of(2), images_of(2, shift=30)))
    inputs = tiny.inputs(4) | {"image": make(edges, poses)}
    groups = [[0, 2], [1, 3]] if differ else [[0, 1, 2, 3]]
    result = run(tiny, inputs, batching=Batching(2))
    assert [list(tree.images) for tree in result.plan.trees] == groups
    assert result.cost == result.plan.cost
    independent = run(tiny, inputs, sharing=None, batching=Batching(2))  # each batch has the images of its own prompts
    assert close(independent.images, bare(tiny, inputs, independent.plan.seeds))


def test_each_network_may_take_its_own_tensor_of_images() -> None:
    tiny = sd_controlnet(2)
    inputs = tiny.inputs(4)
    inputs["image"] = [inputs["image"][0], inputs["image"][1].clone()]
    inputs["image"][1][[1, 3]] += 0.5
    assert [list(tree.images) for tree in run(tiny, inputs).plan.trees] == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("nets", "image", "message"),
    [
        (1, images_of(2), "2 entries for 3 prompts"),
        (2, [images_of(2)] * 2, "2 entries for 3 prompts"),
        (2, [images_of(1)] * 3, "a list of 2"),
        (2, [torch.zeros(2, 3, 32, 32)] * 2, "2 entries for 3 prompts"),
    ],
)
def test_a_wrong_number_of_images_is_refused(nets: int, image: Any, message: str) -> None:
    tiny = sd_controlnet(nets)
    rows = recorded(tiny.pipe.unet)
    with pytest.raises(CotrunkError, match=message):
        run(tiny, tiny.inputs(3) | {"image": image})
    assert rows == []


class Flux2Pipeline:
    """A pipeline whose `image`, one or several, applies to every prompt."""

    def __call__(self, prompt: Any, image: Any, control_image: Any) -> None: ...


@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_reference_images_are_for_all_prompts(count: int) -> None:
    arguments = {"prompt": ["a", "b"], "image": images_of(count), "control_image": images_of(2)}
    own = PerPrompt(Flux2Pipeline(), 2, arguments)
    call = own.of([1])
    assert call["image"] == arguments["image"]
    assert call["control_image"] == arguments["control_image"][1:]
    del arguments["control_image"]
    assert len(set(PerPrompt(Flux2Pipeline(), 2, arguments).keys())) == 1


# --- the number of steps ------------------------------------------------------------------------------------


def test_arguments_that_a_pipeline_passes_to_its_scheduler_count() -> None:
    pipe = diffusers.SanaSprintPipeline.__new__(diffusers.SanaSprintPipeline)
    vars(pipe).update(scheduler=diffusers.SCMScheduler())
    assert timesteps_of(pipe, {}) == (2, 2)  # over a timestep of its own between
    with pytest.raises(CotrunkError, match="SCMScheduler cannot make a schedule of 4 steps"):
        timesteps_of(pipe, {"num_inference_steps": 4})
    assert timesteps_of(pipe, {"num_inference_steps": 4, "intermediate_timesteps": None}) == (4, 4)


@pytest.mark.parametrize("given", [{"timesteps": [900, 500, 100]}, {"sigmas": [9.0, 3.0, 1.0]}])
def test_a_schedule_given_by_the_user(given: dict[str, Any]) -> None:
    tiny = sdxl()
    assert timesteps_of(tiny.pipe, given)[0] == 3
    assert timesteps_of(tiny.pipe, {**given, "num_inference_steps": 7}) == timesteps_of(tiny.pipe, given)


@pytest.mark.parametrize(
    ("build", "arguments", "steps"),
    [
        (sd, {"num_inference_steps": 30}, 4),
        (sd, {"num_inference_steps": 2}, 2),
        (sd_from_image, {"num_inference_steps": 30, "strength": 0.2}, 6),  # of 4 steps none would remain
    ],
)
def test_warming_up_takes_few_steps_where_it_can(
    build: Callable[[], TinyPipeline], arguments: dict[str, Any], steps: int
) -> None:
    tiny = build()
    rows = recorded(tiny.pipe.unet)
    warm_up(tiny.pipe, None, **tiny.inputs(2), **arguments)
    assert len(rows) == steps


# --- refused ------------------------------------------------------------------------------------------------


def refused(tiny: TinyPipeline, arguments: dict[str, Any], message: str) -> None:
    rows = recorded(denoiser(tiny))
    with pytest.raises(CotrunkError, match=message):
        generate(tiny.pipe, **arguments)
    assert rows == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": torch.Generator()}, "generator is set by cotrunk: use seed="),
        ({"latents": torch.zeros(2, 4, 4, 4)}, "latents is set by cotrunk"),
        ({"return_dict": False}, "return_dict is set by cotrunk"),
        ({"guidance": 3.0}, "StableDiffusionPipeline takes no argument 'guidance'"),
        ({"negative_prompt": ["a", "b", "c"]}, "negative_prompt has 3 entries for 2 prompts"),
        ({"negative_prompt_embeds": torch.zeros(3, 77, 16)}, "negative_prompt_embeds has 3 entries for 2 prompts"),
        ({"num_inference_steps": 0}, "num_inference_steps 0 is out of range"),
        ({"batching": {"max_rows": 2}}, r"batching is a dict: give Batching\("),
        ({"settings": Settings(), "sharing": None}, "settings is given, and sharing as well"),
        ({"settings": {"steps": 4}}, r"settings is a dict: give Settings\("),
        ({"seed": -1}, "seed -1"),
        ({"seed": [1, 2, 3]}, "3 seeds for 2 prompts"),
        ({"sharing": {"share": 0.3}}, r"sharing is a dict: give Sharing\("),
        ({"sharing": True}, "sharing is a bool"),
        ({"plan": "plan.json"}, r"plan is a str: give Plan.load\(path\)"),
    ],
)
def test_bad_arguments_are_reported_before_denoising(arguments: dict[str, Any], message: str) -> None:
    tiny = sd_with_text()
    refused(tiny, {"prompts": ["one", "two"], "sharing": None} | arguments, message)


def test_settings_give_the_steps_and_everything_else_at_once() -> None:
    tiny = sd()
    settings = Settings(EVERYONE, Skipping(tolerance=1.0), (0.0, 0.5), STEPS, Batching(2))
    call = {"output_type": "latent", "seed": 3, "guidance_scale": 5.0}
    result = generate(tiny.pipe, **tiny.inputs(4), settings=settings, **call)
    one_by_one = {"sharing": EVERYONE, "skipping": Skipping(tolerance=1.0), "guidance_interval": (0.0, 0.5)}
    expected = generate(
        tiny.pipe, **tiny.inputs(4), **one_by_one, batching=Batching(2), num_inference_steps=STEPS, **call
    )
    assert torch.equal(result.images, expected.images)
    assert (result.plan, result.cost, result.spared) == (expected.plan, expected.cost, expected.spared)
    twice = {"settings": settings, "num_inference_steps": 3}
    refused(tiny, tiny.inputs(2) | twice, "settings.steps and num_inference_steps are both given")


def test_cache_dit_is_refused() -> None:
    for owner in ("pipe", "module"):
        tiny = sd()
        (tiny.pipe if owner == "pipe" else tiny.pipe.unet)._is_cached = True
        refused(tiny, tiny.inputs(1), "cache_dit.disable_cache")


class Bare:
    """A pipeline with parts, which does nothing when called."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)

    def __call__(self, prompt: str, generator: Any = None) -> None:
        raise AssertionError("never called")


class WithoutGenerator(Bare):
    def __call__(self, prompt: str) -> None:
        raise AssertionError("never called")


@pytest.mark.parametrize(
    ("pipe", "message"),
    [
        (Bare(scheduler=diffusers.DDIMScheduler()), "Bare has no denoiser that cotrunk knows"),
        (Bare(unet=None, prior=nn.Linear(1, 1), scheduler=diffusers.DDIMScheduler()), "no denoiser"),
        (Bare(unet=nn.Linear(1, 1)), "no scheduler"),
        (WithoutGenerator(unet=nn.Linear(1, 1), scheduler=diffusers.DDIMScheduler()), "takes no generator"),
    ],
)
def test_pipelines_that_cannot_share_are_reported(pipe: Any, message: str) -> None:
    with pytest.raises(CotrunkError, match=message):
        check_pipeline(pipe, max_rows=None)


class Takes:
    """A pipeline that only has arguments."""

    def __call__(self, prompt: Any, depth_map: Any, reference: Any, timesteps: Any, image: Any) -> None: ...


def test_tensors_with_one_row_per_prompt_are_divided_whatever_their_name() -> None:
    depth = torch.arange(3.0)[:, None, None].expand(3, 2, 2)
    own = PerPrompt(Takes(), 3, {"prompt": ["a", "b", "c"], "depth_map": depth, "timesteps": [9, 5, 1]})
    call = own.of([2, 0])
    assert torch.equal(call["depth_map"], depth[[2, 0]])
    assert call["timesteps"] == [9, 5, 1]
    assert len(set(own.keys())) == 3
    with pytest.raises(CotrunkError, match="depth_map has 2 rows for 3 prompts"):
        PerPrompt(Takes(), 3, {"prompt": ["a", "b", "c"], "depth_map": depth[:2]})


def test_a_list_that_may_or_may_not_have_one_entry_per_prompt_is_refused() -> None:
    with pytest.raises(CotrunkError, match="reference is a list of 2, and there are 2 prompts"):
        PerPrompt(Takes(), 2, {"prompt": ["a", "b"], "reference": [1, 2]})
    assert PerPrompt(Takes(), 3, {"prompt": ["a", "b", "c"], "reference": [1, 2]}).of([1])["reference"] == [1, 2]


def test_images_with_a_palette_differ_by_their_colours() -> None:
    image = images_of(1)[0].convert("P")
    other = image.copy()
    other.putpalette([255 - value for value in image.getpalette()])
    red, blue = PerPrompt(Takes(), 2, {"prompt": ["a", "b"], "image": [image, other]}).keys()
    assert red != blue


def test_prompt_is_accepted_for_prompts() -> None:
    tiny = sd_with_text()
    texts = ["a cat", "a dog"]
    by_name = run(tiny, {"prompt": texts}, sharing=None)
    assert by_name.plan.prompts == tuple(texts)
    assert torch.equal(by_name.images, run(tiny, {"prompts": (text for text in texts)}, sharing=None).images)
    refused(tiny, {"prompts": texts, "prompt": texts, "sharing": None}, "both given")
    assert torch.equal(run(tiny, {"prompt": texts}, plan=by_name.plan).images, by_name.images)
    refused(tiny, {"prompt": texts[::-1], "plan": by_name.plan}, "plan is for other prompts")


@pytest.mark.parametrize("prompts", [["a cat", None], ["a cat", 3], ["a cat", "half \ud83d"]])
def test_prompts_that_are_not_text_are_refused(prompts: Any) -> None:
    refused(sd_with_text(), {"prompts": prompts, "sharing": None}, "prompt 1: the prompt (is|contains)")


def test_a_plan_that_would_share_too_much_is_not_replayed() -> None:
    tiny = sd_with_text()
    prompts = ["one", "two", "six"]
    plan = run(tiny, {"prompts": prompts}).plan
    assert len(plan.trees) == 1
    again = {"prompts": prompts, "plan": plan, "num_inference_steps": STEPS}
    refused(tiny, again | {"negative_prompt": ["a", "b", "c"]}, "now differ in another argument")
    refused(tiny, again | {"guidance_scale": 1.0}, "counts 2 rows per evaluation, this call takes 1")


@pytest.mark.parametrize("again", [{}, {"prompts": ["prompt 0", "prompt 1"]}])
def test_a_plan_of_embeddings_is_not_replayed_without_them(again: dict[str, Any], tmp_path: Path) -> None:
    tiny = sd_with_text()
    texts = {"prompts": ["a cat", "a dog"]}
    assert not run(tiny, texts, sharing=None).plan.from_embeddings
    inputs = sd().inputs(2)
    made = run(tiny, inputs)
    made.plan.independent().save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    refused(tiny, {"plan": plan, "num_inference_steps": STEPS, **again}, "made from prompt_embeds, which are not in it")
    run(tiny, inputs, plan=plan)


@pytest.mark.parametrize(("scale", "image_scale", "rows"), [(7.5, 1.5, 3), (1.0, 1.5, 1), (7.5, 0.5, 1)])
def test_rows_of_guidance_by_text_and_image(scale: float, image_scale: float, rows: int) -> None:
    """InstructPix2Pix."""

    class Pipeline:
        def __call__(self, prompt: str, guidance_scale: float = 7.5, image_guidance_scale: float = 1.5) -> None: ...

    arguments = {"guidance_scale": scale, "image_guidance_scale": image_scale}
    assert guidance_rows(Pipeline(), arguments) == rows


# --- numbers as people hold them ----------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [range(2), (0, 1), np.arange(2), list(np.arange(2)), torch.arange(2)])
def test_seeds_may_come_in_any_container(seeds: Any) -> None:
    tiny = sd()
    assert run(tiny, tiny.inputs(2), sharing=None, seed=seeds).plan.seeds == (0, 1)


@pytest.mark.parametrize("seed", [np.int64(5), torch.tensor(5), np.uint8(5)])
def test_a_seed_may_be_of_any_integer_type(seed: Any) -> None:
    tiny = sd()
    assert run(tiny, tiny.inputs(2), seed=seed).plan == run(tiny, tiny.inputs(2), seed=5).plan


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "5", None, [1.5, 2], [[1, 2]], np.float32(3)])
def test_a_bad_seed_is_reported(seed: Any) -> None:
    tiny = sd()
    with pytest.raises(CotrunkError, match=r"seed .* is out of range: use a whole number from 0 to"):
        run(tiny, tiny.inputs(2), seed=seed)


def test_numpy_numbers_are_accepted() -> None:
    tiny = sd()
    call = {"num_inference_steps": np.int64(STEPS), "guidance_scale": np.float32(5), "seed": 1}
    more = {"batching": Batching(np.int32(1), np.int16(2)), "num_images_per_prompt": np.int8(2)}
    result = run(tiny, tiny.inputs(2), **call, **more)
    expected = run(tiny, tiny.inputs(2), num_inference_steps=STEPS, guidance_scale=5.0, seed=1, num_images_per_prompt=2)
    assert close(result.images, expected.images)
    assert json.dumps(asdict(result.plan))  # a plan holds nothing of numpy's


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("guidance_scale", [5.0, 6.0]),
        ("guidance_scale", torch.tensor([5.0, 6.0])),
        ("guidance_rescale", (0.5, 0.6)),
        ("height", [32, 32]),
        ("eta", np.array([0.0, 1.0])),
    ],
)
def test_several_numbers_for_an_argument_that_takes_one_are_refused(name: str, several: Any) -> None:
    tiny = sd()
    rows = recorded(tiny.pipe.unet)
    with pytest.raises(CotrunkError, match=f"{name} is one number for all prompts of a run, and 2 are given"):
        run(tiny, tiny.inputs(2) | {name: several})
    assert not rows


def test_a_pipeline_may_take_several_numbers() -> None:
    tiny = sd_controlnet(controlnets=2)
    scales = {"controlnet_conditioning_scale": [0.5, 0.6], "control_guidance_end": [0.5, 1.0]}
    assert run(tiny, tiny.inputs(2) | scales, sharing=None).made == (0, 1)


def test_one_negative_prompt_in_a_list_applies_to_all() -> None:
    tiny = sd_with_text()
    call = {"sharing": None, "seed": [1, 2, 3], "num_inference_steps": 2, "height": 32, "width": 32}
    prompts = ["a cat", "a dog", "a hen"]
    one = generate(tiny.pipe, prompts, negative_prompt="x", output_type="latent", **call)
    listed = generate(tiny.pipe, prompts, negative_prompt=["x"], output_type="latent", **call)
    assert torch.equal(one.images, listed.images)
    with pytest.raises(CotrunkError, match="negative_prompt has 2 entries for 3 prompts"):
        generate(tiny.pipe, prompts, negative_prompt=["x", "y"], **call)


# --- schedules that a pipeline cuts ------------------------------------------------------------------------


def pipeline(scheduler: Any = None, **methods: Any) -> Any:
    """Return a pipeline that has only these methods and arguments."""
    kind = type("SomePipeline", (), methods)
    made = kind()
    made.scheduler = scheduler or diffusers.DDIMScheduler()
    return made


def last_part(self: Any, num_inference_steps: int, timesteps: Any, strength: float, device: Any) -> Any:
    """Cut the schedule as video-to-video pipelines do."""
    return timesteps[num_inference_steps - int(num_inference_steps * strength) :], 0


def last_part_of_both(self: Any, sigmas: Any, timesteps: Any, num_inference_steps: int, strength: float) -> Any:
    """Cut the schedule as LTX does."""
    start = num_inference_steps - int(num_inference_steps * strength)
    return sigmas[start:], timesteps[start:], num_inference_steps - start


def call_of_video(self: Any, num_inference_steps: int = 10, strength: float = 0.8) -> Any:
    return self.get_timesteps(num_inference_steps, None, strength, None)


def call_of_ltx(self: Any, num_inference_steps: int = 10, denoise_strength: float = 1.0, strength: Any = None) -> Any:
    return self.get_timesteps(None, None, num_inference_steps, denoise_strength)


def call_of_diffedit(self: Any, num_inference_steps: int = 10, inpaint_strength: float = 0.8) -> Any:
    return self.get_timesteps(num_inference_steps, None, inpaint_strength, None)


def call_of_lcm(
    self: Any, num_inference_steps: int = 4, strength: float = 0.5, original_inference_steps: int = 8
) -> Any:
    return self.scheduler.set_timesteps(num_inference_steps, None, original_inference_steps, strength)


def test_every_way_of_cutting_a_schedule_is_followed() -> None:
    video = pipeline(__call__=call_of_video, get_timesteps=last_part)
    assert timesteps_of(video, {}) == (10, 8)
    assert timesteps_of(video, {"strength": 0.3}) == (10, 3)
    ltx = pipeline(diffusers.FlowMatchEulerDiscreteScheduler(), __call__=call_of_ltx, get_timesteps=last_part_of_both)
    assert timesteps_of(ltx, {}) == (10, 10)
    assert timesteps_of(ltx, {"denoise_strength": 0.4, "strength": [1.0]}) == (10, 4)
    diffedit = pipeline(__call__=call_of_diffedit, get_timesteps=last_part)
    assert timesteps_of(diffedit, {"inpaint_strength": 0.5}) == (10, 5)


def test_a_strength_that_the_scheduler_takes_is_passed_to_it() -> None:
    scheduler = diffusers.LCMScheduler(original_inference_steps=50)
    lcm = pipeline(scheduler, __call__=call_of_lcm, get_timesteps=last_part)  # and does not call get_timesteps
    assert timesteps_of(lcm, {}) == (4, 4)
    with pytest.raises(CotrunkError, match="cannot make a schedule of 4 steps"):  # 2 of 8 steps are left
        timesteps_of(lcm, {"strength": 0.25})


def test_a_part_of_a_combined_pipeline_cuts_the_schedule() -> None:
    combined = pipeline(__call__=lambda self, num_inference_steps=10, strength=0.3: None)
    part = object.__new__(type("Decoder", (diffusers.DiffusionPipeline,), {"get_timesteps": last_part}))
    type(part).__call__ = call_of_video
    combined.decoder_pipe = part
    assert timesteps_of(combined, {}) == (10, 3)


def test_a_schedule_that_cannot_be_cut_is_reported_before_anything_runs() -> None:
    def odd(self: Any, num_inference_steps: int, mood: str) -> Any:
        raise AssertionError("never called without a mood")

    strange = pipeline(__call__=call_of_video, get_timesteps=odd)
    with pytest.raises(CotrunkError, match=r"SomePipeline cannot say which of 10 steps it takes at strength 0\.8"):
        timesteps_of(strange, {})


def test_a_model_without_a_guidance_input_and_without_negative_prompts_is_not_guided() -> None:
    """Flux Fill on a transformer that takes no guidance: one row, whatever its scale."""

    def call(self: Any, prompt: Any = None, num_inference_steps: int = 4, guidance_scale: float = 30.0) -> Any: ...

    fill = pipeline(__call__=call)
    for embeds in (False, True):
        fill.transformer = SimpleNamespace(config=FrozenDict(guidance_embeds=embeds))
        assert guidance_rows(fill, {}) == 1
    del fill.transformer
    assert guidance_rows(fill, {}) == 2
