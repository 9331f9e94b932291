"""Which prompts run in one call: only those that do not change each other's images."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from running import EVERYONE, STEPS, generate
from tiny import TinyPipeline, flux, sd_from_image, sd_with_text, sdxl

from cotrunk import CotrunkError
from cotrunk.engine.attach import attached
from cotrunk.engine.call_state import CallState
from cotrunk.engine.step_plan import RowPlan
from cotrunk.pipelines import batch_compatibility as companions
from cotrunk.pipelines.arguments import PerPrompt


def random_image(seed: int, width: int = 32, height: int = 32) -> Any:
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def mask() -> torch.Tensor:
    return (torch.arange(32) < 16).float().expand(1, 32, 32)


def inpainting() -> tuple[Any, dict[str, Any]]:
    tiny = sd_from_image()
    pipe = diffusers.StableDiffusionInpaintPipeline(**tiny.pipe.components, requires_safety_checker=False)
    return pipe, {"height": 32, "width": 32, "mask_image": mask()}


def from_image() -> tuple[Any, dict[str, Any]]:
    return sd_from_image().pipe, {}


def flux_from_image() -> tuple[Any, dict[str, Any]]:
    parts = {k: v for k, v in flux().pipe.components.items() if k not in ("image_encoder", "feature_extractor")}
    return diffusers.FluxImg2ImgPipeline(**parts), {"height": 16, "width": 16}


def xl_inpainting() -> tuple[Any, dict[str, Any]]:
    pipe = diffusers.StableDiffusionXLInpaintPipeline(**sdxl().pipe.components, add_watermarker=False)
    return pipe, {"height": 32, "width": 32, "mask_image": mask(), "denoising_start": 0.3}


KINDS = {"inpaint": inpainting, "img2img": from_image, "flux": flux_from_image, "xl": xl_inpainting}
BARE = {"inpaint": sd_from_image, "img2img": sd_from_image, "flux": flux, "xl": sdxl}


def texts_of(name: str, n: int) -> dict[str, Any]:
    inputs = BARE[name]().inputs(n)
    return {key: value for key, value in inputs.items() if "prompt" in key}


@pytest.mark.parametrize(
    ("name", "held"),
    [
        *((name, "image") for name in KINDS),
        *(("img2img", held) for held in ("list of one", "tensor", "batch of one")),
    ],
)
def test_one_image_for_all_prompts_acts_as_for_each_prompt_alone(name: str, held: str) -> None:
    """Pipelines encode a single image with the first generator: an image would depend on its place in the batch."""
    pipe, extra = KINDS[name]()
    pipe.set_progress_bar_config(disable=True)
    one = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    image = {"image": random_image(1), "list of one": [random_image(1)], "tensor": one, "batch of one": one[None]}[held]
    call = extra | {"image": image, "num_inference_steps": 5, "output_type": "latent"}
    call = call if name == "xl" else {"strength": 0.8} | call
    texts = texts_of(name, 3)
    together = generate(pipe, **texts, sharing=None, seed=[7, 8, 9], **call).images
    for i in range(3):
        mine = {key: value[i : i + 1] for key, value in texts.items()}
        alone = pipe(**mine, generator=[torch.Generator().manual_seed(7 + i)], **call).images
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-4)
    shared = generate(pipe, **texts, sharing=EVERYONE, seed=5, **call)
    assert shared.cost.saving > 0


def test_images_of_different_sizes_keep_their_sizes() -> None:
    pipe, _ = from_image()
    call = {**texts_of("img2img", 3), "strength": 0.6, "num_inference_steps": STEPS, "sharing": EVERYONE}
    images = [random_image(1), random_image(2, 64, 32), random_image(1)]
    result = generate(pipe, **call, image=images, seed=[1, 2, 3])
    assert [image.size for image in result.images] == [(32, 32), (64, 32), (32, 32)]
    assert {tree.images for tree in result.plan.trees} == {(0, 2), (1,)}
    with pytest.raises(CotrunkError, match=r"different sizes \(32 x 32, 64 x 32\)"):
        generate(pipe, **call, image=images, output_type="np")


def test_a_crop_around_the_mask_takes_one_image_per_call() -> None:
    pipe, extra = inpainting()
    call = extra | texts_of("inpaint", 2) | {"image": random_image(1), "mask_image": random_image(2).convert("L")}
    call |= {"padding_mask_crop": 4, "num_inference_steps": STEPS, "strength": 0.9, "sharing": EVERYONE}
    with pytest.warns(UserWarning, match="takes one image per call with padding_mask_crop: each image runs by itself"):
        result = generate(pipe, **call, seed=[1, 2])
    assert result.cost.saving == 0
    assert len(result.images) == 2


def unmasked(monkeypatch: pytest.MonkeyPatch) -> TinyPipeline:
    """Return a pipeline whose denoiser reads padding, which goes up to the longest text of the call."""
    tiny = sd_with_text()
    monkeypatch.setattr(companions, "UNMASKED", ("StableDiffusion",))
    tokenize = tiny.pipe.tokenizer.__class__.__call__

    def to_the_longest(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        return tokenize(self, text, *args, **kwargs | ({"padding": "longest"} if "padding" in kwargs else {}))

    monkeypatch.setattr(tiny.pipe.tokenizer.__class__, "__call__", to_the_longest)
    return tiny


def test_the_length_of_another_prompt_changes_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = unmasked(monkeypatch)
    call = {"num_inference_steps": STEPS, "output_type": "latent", "guidance_scale": 1.0, "height": 32, "width": 32}
    prompts = ["a cat", "a very long-haired dog", "a hen", "a cow"]
    together = generate(tiny.pipe, prompts, sharing=None, seed=[1, 2, 3, 4], **call).images
    alone = [
        generate(tiny.pipe, prompt, sharing=None, seed=[i + 1], **call).images[0] for i, prompt in enumerate(prompts)
    ]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)
    plan = generate(tiny.pipe, prompts, sharing=EVERYONE, **call).plan
    assert {tree.images for tree in plan.trees} == {(0, 2, 3), (1,)}


def test_prompt_lengths_separate_batches_only_where_padding_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = sd_with_text()
    own = PerPrompt(tiny.pipe, 2, {"prompt": ["a cat", "a cat on a mat"]})
    assert len(set(companions.companions(tiny.pipe, own))) == 1
    monkeypatch.setattr(companions, "UNMASKED", ("StableDiffusion",))
    assert len(set(companions.companions(tiny.pipe, own))) == 2


def test_seeds_do_not_depend_on_which_prompts_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = sd_with_text()
    call = {"num_inference_steps": 2, "sharing": None, "height": 32, "width": 32}
    before = generate(tiny.pipe, ["a cat", "a cat on a mat"], **call).plan
    monkeypatch.setattr(companions, "UNMASKED", ("StableDiffusion",))
    assert generate(tiny.pipe, ["a cat", "a cat on a mat"], **call).plan == before
    monkeypatch.setattr(companions, "APART", {"StableDiffusion": "takes one prompt per call"})
    assert generate(tiny.pipe, ["a cat", "a cat on a mat"], **call).plan == before


def test_an_encoder_without_a_generator_draws_from_the_seed_of_each_image() -> None:
    """Some ControlNet pipelines do not pass on their generator; with the global one, images depend on their batch."""
    tiny = sd_from_image()
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).repeat(2, 1, 1, 1)

    def drawn(seeds: list[int], pixels: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(len(seeds))  # must not matter
        with torch.no_grad(), attached(tiny.pipe, CallState(RowPlan(lambda step: tuple(range(len(seeds)))), 1), seeds):
            return tiny.pipe.vae.encode(pixels).latent_dist.sample()

    together = drawn([3, 4], x)
    assert not torch.allclose(together[0], together[1])
    torch.testing.assert_close(together[:1], drawn([3], x[:1]))
    torch.testing.assert_close(together[1:], drawn([4], x[:1]))
    torch.testing.assert_close(drawn([3, 4], torch.cat([x, x]))[2:], together)  # two copies, for guidance
    torch.testing.assert_close(*drawn([5, 5], x).split(1))
    outside = tiny.pipe.vae.encode(x).latent_dist
    assert "draw" not in getattr(outside.sample, "__qualname__", "")
