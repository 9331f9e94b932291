"""Load pipelines, schedulers, devices and dtypes by name, without a network."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from command import pipeline
from huggingface_hub import errors
from peft import LoraConfig, get_peft_model_state_dict
from running import generate
from tiny import sd_with_text

from cotrunk.errors import CotrunkError
from cotrunk.pipelines.loading import check_names, load_pipeline, resolve_device, resolve_dtype
from cotrunk.pipelines.lora import load_lora
from cotrunk.pipelines.schedulers import SCHEDULERS, set_scheduler

RUN_ON_MINI = {"ddim", "ddpm", "dpm++2m", "dpm++2m-sde", "euler", "euler-a", "lcm", "unipc"}


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    pipe = pipeline()
    monkeypatch.setattr(pipe, "scheduler", diffusers.DDIMScheduler.from_config(pipe.scheduler.config))
    return pipe


# Schedulers.


@pytest.mark.parametrize(
    "name", [*sorted(RUN_ON_MINI)[:3], *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(RUN_ON_MINI)[3:])]
)
def test_a_scheduler_runs(pipe: Any, name: str) -> None:
    set_scheduler(pipe, name)
    assert type(pipe.scheduler).__name__ == SCHEDULERS[name][0]
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    result = generate(pipe, ["a red apple", "a green apple"], num_inference_steps=2, output_type="np")
    assert result.failed == ()
    assert np.isfinite(result.images).all()


@pytest.mark.parametrize("name", sorted(SCHEDULERS.keys() - RUN_ON_MINI))
def test_a_scheduler_is_refused_with_those_that_run(pipe: Any, name: str) -> None:
    before = pipe.scheduler
    with pytest.raises(CotrunkError) as refusal:
        set_scheduler(pipe, name)
    assert set(str(refusal.value).rsplit(": use ", 1)[1].rstrip(".").split(", ")) == RUN_ON_MINI
    assert pipe.scheduler is before


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm"])
def test_a_scheduler_is_set_up_for_latents(name: str) -> None:
    """By default, some classes would clip latents to -1..1, or start with Runge-Kutta steps."""
    pipe = SimpleNamespace(scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear"))
    set_scheduler(pipe, name)
    assert not pipe.scheduler.config.get("clip_sample", False)
    assert pipe.scheduler.config.get("skip_prk_steps", True)
    pipe = SimpleNamespace(scheduler=diffusers.DDPMScheduler(beta_schedule="scaled_linear", clip_sample=True))
    set_scheduler(pipe, "ddim")
    assert pipe.scheduler.config.clip_sample  # the model's own setting is kept


def test_scheduler_names(pipe: Any) -> None:
    set_scheduler(pipe, "DPM++2M-SDE")
    assert pipe.scheduler.config.algorithm_type == "sde-dpmsolver++"
    set_scheduler(pipe, "EulerDiscreteScheduler")
    assert type(pipe.scheduler) is diffusers.EulerDiscreteScheduler
    for name in ("nosuch", "UNet2DModel", "NoSuchScheduler"):
        with pytest.raises(CotrunkError, match=f"Unknown scheduler '{name}': use ddim"):
            set_scheduler(pipe, name)


FLOW_BY_DPM = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


@pytest.mark.parametrize(
    ("own", "name", "fits"),
    [
        (diffusers.PNDMScheduler(), "lcm", True),  # Stable Diffusion with an LCM LoRA
        (diffusers.PNDMScheduler(), "heun", True),
        (diffusers.PNDMScheduler(), "flow-euler", False),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "flow-heun", True),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "ddim", False),
        (FLOW_BY_DPM, "unipc", True),  # Sana
        (FLOW_BY_DPM, "ddim", False),
    ],
)
def test_which_scheduler_fits_which_model(pipe: Any, own: Any, name: str, fits: bool) -> None:
    pipe.scheduler = own
    if fits:
        set_scheduler(pipe, name)
        assert type(pipe.scheduler).__name__ == SCHEDULERS[name][0]
    else:
        with pytest.raises(CotrunkError, match=f"cannot run a model made for {type(own).__name__}"):
            set_scheduler(pipe, name)


# Devices and dtypes.


def test_devices_and_dtypes() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda", "mps")
    assert resolve_dtype("auto", "cpu") is torch.float32
    assert resolve_dtype("auto", "cuda") is torch.float16
    assert resolve_dtype("auto", "cuda", {"transformer": []}) is torch.bfloat16
    assert resolve_dtype("float16", "cpu") is torch.float16
    for device in ("abacus", "meta", "cuda:99", "hpu", ""):
        with pytest.raises(CotrunkError, match="is not usable here: use auto, cpu"):
            resolve_device(device)
    with pytest.raises(CotrunkError, match="Unknown dtype 'int8': use auto, float32"):
        check_names("cpu", "int8")
    check_names("cpu", "auto", "ddim")


# Models.


def test_a_saved_folder(tmp_path: Path) -> None:
    saved = pipeline()
    saved.save_pretrained(tmp_path / "model")
    loaded = load_pipeline(str(tmp_path / "model"), "cpu")
    assert type(loaded) is type(saved)
    assert loaded.unet.dtype == torch.float32
    arguments = {"prompts": ["a red apple"], "num_inference_steps": 1, "output_type": "np"}
    assert np.array_equal(generate(loaded, **arguments).images, generate(saved, **arguments).images)

    only_text = load_pipeline(str(tmp_path / "model"), "cpu", denoiser=False)
    assert not isinstance(only_text.unet, torch.nn.Module)  # its config says whether guidance costs a row
    assert only_text.unet.config["in_channels"] == loaded.unet.config["in_channels"]
    assert only_text.vae is None
    assert only_text.text_encoder is not None


def test_the_embedded_model() -> None:
    assert load_pipeline("mini", "cpu", "bfloat16").unet.dtype == torch.bfloat16


def test_a_folder_without_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(CotrunkError, match=r"cannot be loaded as a diffusers pipeline \(.+\): use mini"):
        load_pipeline(str(tmp_path), "cpu")
    (tmp_path / "model_index.json").write_text("{broken")
    with pytest.raises(CotrunkError, match="cannot be loaded as a diffusers pipeline"):
        load_pipeline(str(tmp_path), "cpu")
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(CotrunkError, match="cannot be loaded as a diffusers pipeline"):
        load_pipeline(str(tmp_path), "cpu")


@pytest.mark.parametrize("name", ["./nowhere/at all", "/nowhere/at/all", "a b c", "a/b/c", "x" * 300])
def test_an_invalid_hub_name(name: str) -> None:
    with pytest.raises(CotrunkError, match=r"There is no model .*: use mini or mini-dit, a folder, or a hub id"):
        load_pipeline(name, "cpu")


def test_without_a_network_the_hub_is_requested_at_most_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this check the libraries repeat the request for half a minute."""
    lookups = list[Any]()

    def unknown(*args: Any, **kwargs: Any) -> Any:
        lookups.append(args)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(CotrunkError, match="There is no folder 'no/such', and the hub cannot be reached"):
        load_pipeline("no/such", "cpu")
    assert len(lookups) <= 2


class _NotFound(errors.RepositoryNotFoundError):
    def __init__(self) -> None:
        Exception.__init__(self, "404 Client Error")


class _ForeignError(Exception):
    """Stands for the exceptions of HTTP libraries."""


def _hub(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def model_info(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (_NotFound(), "The hub has no model 'no/such', or it is private: check its name"),
        (
            errors.OfflineModeIsEnabled("offline mode is enabled."),
            r"cannot be reached \(offline mode is enabled\)",
        ),
        (_ForeignError("timed out\nand more"), r"cannot be reached \(timed out\)"),
        (_ForeignError(), r"cannot be reached \(_ForeignError\)"),
    ],
)
def test_errors_of_the_hub_give_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    _hub(monkeypatch, error)
    with pytest.raises(CotrunkError, match=message) as refusal:
        load_pipeline("no/such", "cpu")
    assert "\n" not in str(refusal.value)


def test_a_model_downloaded_before_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class StopError(Exception):
        pass

    def load_config(model: str, **options: Any) -> Any:
        asked.append((model, options))
        raise StopError

    _hub(monkeypatch, _ForeignError("no connection"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: "/cache/model_index.json")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", load_config)
    with pytest.raises(CotrunkError, match="cannot be loaded"):
        load_pipeline("owner/name", "cpu")
    assert asked == [("owner/name", {"local_files_only": True})]


def test_unsuitable_schedulers_are_reported(pipe: Any) -> None:
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++")
    with pytest.raises(CotrunkError, match="SASolverScheduler does not support the settings"):
        set_scheduler(pipe, "SASolverScheduler")
    with pytest.raises(CotrunkError, match="needs more arguments per step"):
        set_scheduler(pipe, "CogVideoXDPMScheduler")
    assert type(pipe.scheduler) is diffusers.DPMSolverMultistepScheduler


def test_missing_peft_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = sd_with_text().pipe
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CotrunkError, match="Loading a LoRA needs peft: pip install peft"):
        load_lora(pipe, tmp_path)


@pytest.mark.parametrize("is_finite", [True, False])
def test_a_lora_of_a_diverged_training_is_refused(is_finite: bool, tmp_path: Path) -> None:
    made = sd_with_text().pipe
    made.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    weights = get_peft_model_state_dict(made.unet)
    if not is_finite:
        next(iter(weights.values()))[0, 0] = torch.nan
    made.save_lora_weights(tmp_path, unet_lora_layers=weights)
    pipe = sd_with_text().pipe
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    if is_finite:
        assert load_lora(pipe, tmp_path)
        return
    with pytest.raises(CotrunkError, match="contains weights that are not finite"):
        load_lora(pipe, tmp_path)
    after = pipe.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


# Compiling.


@pytest.mark.slow
def test_a_pipeline_is_compiled_for_any_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sd_with_text().pipe.save_pretrained(tmp_path)
    graphs = list[Any]()

    def backend(graph: Any, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    in_place = torch.nn.Module.compile
    monkeypatch.setattr("cotrunk.pipelines.loading._check_compiler", lambda device: None)  # which needs a real compiler
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: in_place(self, backend=backend, **given))
    pipe, bare = load_pipeline(str(tmp_path), "cpu", compiled=True), load_pipeline(str(tmp_path), "cpu")
    run = {"num_inference_steps": 2, "output_type": "np", "height": 32, "width": 32}
    for count in (2, 3, 5, 4):
        prompts = [f"a picture of {number}" for number in range(count)]
        made, expected = (generate(own, prompts, sharing=None, **run) for own in (pipe, bare))
        assert np.allclose(made.images, expected.images, atol=1e-5)
    assert 1 <= len(graphs) <= 2  # only the first number of rows may be compiled as a constant


def test_a_missing_compiler_is_reported_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(function: Any) -> Any:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(CotrunkError, match=r"cannot compile for cpu here \(no C\+\+ compiler.*do not use --compile"):
        load_pipeline("nothing-of-this-name", "cpu", compiled=True)
