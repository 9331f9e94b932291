"""Several LoRAs with weights: how they are named, checked before loading, and added up."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from running import close
from tiny import TinyPipeline, pixart, sd_with_text
from torch import Tensor

from cotrunk import CotrunkError
from cotrunk.pipelines.loading import check_model, load_pipeline
from cotrunk.pipelines.lora import check_lora, load_lora, remove_lora
from cotrunk.pipelines.source import Source
from cotrunk.pipelines.weighted_lora import WeightedLora, loras_of

# Names.


@given(name=st.from_regex(r"[a-z]+(/[a-z]+)?", fullmatch=True), weight=st.floats(-10, 10))
def test_a_name_and_a_weight_survive_as_text(name: str, weight: float) -> None:
    assert WeightedLora.parse(f"{name}:{weight!r}") == WeightedLora(name, weight)
    assert WeightedLora.parse(name) == WeightedLora(name, 1.0)
    assert str(WeightedLora(name)) == name
    assert WeightedLora.parse(str(WeightedLora(name, round(weight, 3)))).weight == pytest.approx(round(weight, 3))


def test_a_path_may_contain_a_colon(tmp_path: Path) -> None:
    path = tmp_path / "style:0.5"
    assert WeightedLora.parse(str(path)) == WeightedLora(str(tmp_path / "style"), 0.5)
    path.mkdir()
    assert WeightedLora.parse(str(path)) == WeightedLora(str(path), 1.0)
    assert WeightedLora.parse(f"{path}:2") == WeightedLora(str(path), 2.0)
    assert WeightedLora.parse(r"C:\loras\style") == WeightedLora(r"C:\loras\style", 1.0)
    with pytest.raises(CotrunkError, match=r"The weight of the LoRA .*style:0.5, 'much', is not a number"):
        WeightedLora.parse(f"{path}:much")


@pytest.mark.parametrize("weight", ["10.1", "-11", "nan", "inf"])
def test_a_weight_out_of_range(weight: str) -> None:
    with pytest.raises(CotrunkError, match=f"LoRA style, {float(weight)} is out of range: use -10 or more"):
        WeightedLora.parse(f"style:{weight}")


def test_every_form_of_loras() -> None:
    style, detail = WeightedLora("style", 0.5), WeightedLora("detail")
    assert loras_of(None) == loras_of([]) == ()
    for one in ("style:0.5", ["style:0.5"], {"name": "style", "weight": 0.5}, style):
        assert loras_of(one) == (style,)
    assert loras_of(Path("detail")) == (detail,)
    assert loras_of(["style:0.5", {"name": "detail"}]) == (style, detail)
    for wrong in (3, [3], {"file": "x"}, {"name": "x", "scale": 1}, ""):
        with pytest.raises(CotrunkError, match=r"^lora "):
            loras_of(wrong)


def test_missing_loras_are_reported_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (
        ("no such lora", "There is no LoRA 'no such lora': use a file, a folder, or a hub id"),
        ("owner/lora", "There is no folder 'owner/lora', and the hub cannot be reached"),
        (str(tmp_path / "style.safetensors"), r"There is no LoRA .*style\.safetensors: check the name of the file"),
    ):
        with pytest.raises(CotrunkError, match=message):
            check_model(Source("mini"), [WeightedLora(name)])
    check_lora(WeightedLora(str(tmp_path)))
    in_cache = "adapter_config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, file: "x" if file == in_cache else None)
    check_lora(WeightedLora("owner/lora"))


# Images.


def latents(tiny: TinyPipeline) -> Tensor:
    inputs = tiny.inputs(1) | {"num_inference_steps": 2, "output_type": "latent"}
    return tiny.pipe(**inputs, generator=torch.Generator().manual_seed(0)).images


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two LoRAs, of which only the first is also for the text encoder."""
    folders = [tmp_path_factory.mktemp(name) for name in ("style", "detail")]
    for number, folder in enumerate(folders):
        pipe, layers = sd_with_text().pipe, {}
        for name, target in (("unet", "to_q"), ("text_encoder", "q_proj"))[: 2 - number]:
            part = getattr(pipe, name)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)
                part.add_adapter(LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
            layers[f"{name}_lora_layers"] = {k: 4 * v for k, v in get_peft_model_state_dict(part).items()}
        pipe.save_lora_weights(folder, **layers)
    return folders


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.4), (0.0, 2.0)])
def test_fused_loras_give_the_images_of_diffusers(made: list[Path], weights: tuple[float, float]) -> None:
    own, theirs = sd_with_text(), sd_with_text()
    before = latents(own)
    changed = load_lora(own.pipe, [WeightedLora(str(made[0]), weights[0]), f"{made[1]}:{weights[1]}"])
    for name, folder in zip("ab", made, strict=True):
        theirs.pipe.load_lora_weights(folder, adapter_name=name)
    theirs.pipe.set_adapters(["a", "b"], list(weights))
    expected = latents(theirs)
    assert close(latents(own), expected)
    assert not close(expected, before, 1e-3)
    remove_lora(own.pipe, changed)
    assert torch.equal(latents(own), before)


def test_a_single_lora_has_a_weight(made: list[Path]) -> None:
    images = []
    for weight in (0, 0.5, 1):
        own = sd_with_text()
        load_lora(own.pipe, f"{made[0]}:{weight}")
        images.append(latents(own))
    assert close(images[0], latents(sd_with_text()))
    assert not close(images[1], images[0], 1e-3)
    assert not close(images[2], images[1], 1e-3)


def test_the_last_of_several_loras_may_be_wrong(made: list[Path], tmp_path: Path) -> None:
    """Nothing of the first one stays."""
    own = sd_with_text()
    before = latents(own)
    with pytest.raises(CotrunkError, match="cannot be loaded as a LoRA for this StableDiffusionPipeline"):
        load_lora(own.pipe, [made[0], tmp_path])
    assert not any(own.pipe.get_list_adapters().values())
    assert torch.equal(latents(own), before)


def in_peft_format(folder: Path, seed: int) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
        get_peft_model(pixart().pipe.transformer, config).save_pretrained(folder)
    return str(folder)


def test_loras_in_the_format_of_peft_add_up(tmp_path: Path) -> None:
    style, detail = (in_peft_format(tmp_path / name, seed) for seed, name in enumerate(("style", "detail")))

    def change(*loras: Any) -> dict[str, Tensor]:
        pipe, fresh = pixart().pipe, pixart().pipe.transformer.state_dict()
        load_lora(pipe, loras)
        return {name: weight - fresh[name] for name, weight in pipe.transformer.state_dict().items()}

    one, other, both = change(style), change(detail), change(f"{style}:0.5", f"{detail}:-2")
    name = next(name for name, weight in one.items() if "to_q" in name and weight.abs().max() > 0)
    assert close(both[name], 0.5 * one[name] - 2 * other[name], 1e-3)
    assert {name for name, weight in both.items() if weight.abs().max() > 0} == {
        name for name in both if "to_q.weight" in name
    }
    own = pixart()
    before = latents(own)
    changed = load_lora(own.pipe, [style, detail])
    assert not close(latents(own), before, 1e-4)
    remove_lora(own.pipe, changed)
    assert torch.equal(latents(own), before)
    with pytest.raises(CotrunkError, match="cannot be loaded as a LoRA for this PixArt"):
        load_lora(own.pipe, [style, tmp_path])
    assert torch.equal(latents(own), before)


def test_a_saved_model_with_loras(made: list[Path], tmp_path: Path) -> None:
    sd_with_text().pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(str(tmp_path), "cpu", lora=[f"{made[0]}:0.5", made[1]])
    own = sd_with_text()
    load_lora(own.pipe, [f"{made[0]}:0.5", made[1]])
    weights = own.pipe.unet.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.unet.state_dict().items())
