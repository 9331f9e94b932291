"""Where a model comes from: a single file, a revision or a variant; and what keeps it small in memory."""

from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from accelerate import cpu_offload
from huggingface_hub import errors
from running import run
from safetensors.torch import save_file
from single_files import save_single_file
from tiny import sd_with_text
from versions import IS_OLD

from cotrunk import CotrunkError
from cotrunk.pipelines import hub, source
from cotrunk.pipelines.identity import weights_digest
from cotrunk.pipelines.loading import check_names, load_pipeline
from cotrunk.pipelines.offload import check_offload, device_of, offload, tile_vae
from cotrunk.pipelines.source import Source

SDXL_KEY = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"  # by which diffusers recognises it


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same model as `model.safetensors`, and as a folder `config` without weights."""
    folder, pipe = tmp_path_factory.mktemp("saved"), sd_with_text().pipe
    save_single_file(pipe, folder / "model.safetensors")
    pipe.save_pretrained(folder / "config")
    for file in (folder / "config").rglob("*.safetensors"):
        file.unlink()
    return folder


# Single files.


def test_a_single_file_has_the_weights_of_the_pipeline(saved: Path) -> None:
    file, config = str(saved / "model.safetensors"), str(saved / "config")
    loaded, expected = load_pipeline(file, "cpu", config=config), sd_with_text().pipe
    assert type(loaded) is diffusers.StableDiffusionPipeline
    for name in ("unet", "vae", "text_encoder"):
        weights = getattr(loaded, name).state_dict()
        assert weights.keys() == getattr(expected, name).state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in getattr(expected, name).state_dict().items())
    for_planning = load_pipeline(file, "cpu", config=config, denoiser=False)
    assert for_planning.unet.config.in_channels == 4
    assert for_planning.vae is None


def test_a_single_file_without_a_configuration_names_the_model_that_has_it(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CotrunkError, match=r"of its model, stable-diffusion-v1-5/.*give --config DIR"):
        Source(str(saved / "model.safetensors")).find()
    save_file({SDXL_KEY: torch.zeros(1)}, tmp_path / "xl.safetensors")
    with pytest.raises(CotrunkError, match="of its model, stabilityai/stable-diffusion-xl"):
        Source(str(tmp_path / "xl.safetensors")).find()


def test_the_configuration_of_a_single_file_may_be_in_the_cache(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "/cache/model_index.json")
    assert Source(str(saved / "model.safetensors")).find() == ("stable-diffusion-v1-5/stable-diffusion-v1-5", True)


def test_a_single_file_of_another_class(saved: Path, tmp_path: Path) -> None:
    """The class comes from the configuration."""
    for name, message in (
        ("PixArtSigmaPipeline", "cannot load PixArtSigmaPipeline from a single file"),
        ("StableDiffusionXLPipeline", r"cannot be loaded as a diffusers pipeline .*give --config DIR"),
    ):
        (tmp_path / "model_index.json").write_text(f'{{"_class_name": "{name}", "scheduler": ["diffusers", "No"]}}')
        with pytest.raises(CotrunkError, match=message):
            load_pipeline(str(saved / "model.safetensors"), "cpu", config=str(tmp_path))


def test_files_that_are_not_models(tmp_path: Path) -> None:
    for name, weights in (("lora", {"unet.to_q.lora_A.weight": 1}), ("part", {"a.weight": 1})):
        save_file({key: torch.zeros(size) for key, size in weights.items()}, tmp_path / f"{name}.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"")
    (tmp_path / "old.ckpt").write_bytes(b"")
    (tmp_path / "note.txt").write_bytes(b"")
    for name, message in (
        ("lora.safetensors", "is a LoRA, not a model: give it with --lora"),
        ("part.safetensors", "diffusers does not recognise the weights in .*part.safetensors"),
        ("damaged.safetensors", "damaged.safetensors is not a readable safetensors file"),
        ("old.ckpt", "is a .ckpt file: give a single file as .safetensors"),
        ("note.txt", "is a file: give the folder that save_pretrained wrote"),
        ("missing.safetensors", "There is no file .*missing.safetensors"),
    ):
        with pytest.raises(CotrunkError, match=message):
            load_pipeline(str(tmp_path / name), "cpu")


# Revisions and variants.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "mini", "revision": "main"}, "mini comes with cotrunk, so it has no revision 'main'"),
        ({"model": "mini-dit", "variant": "fp16"}, "mini-dit comes with cotrunk, so it has no variant 'fp16'"),
        ({"model": "mini", "config": "x"}, "so it has no config 'x': leave --config out"),
        ({"model": "FILE", "variant": "fp16"}, "is a single file, so it has no variant"),
        ({"model": "FILE", "revision": "main"}, "is a single file, so it has no revision"),
        ({"model": "FOLDER", "revision": "main"}, "is a folder, so it has no revision"),
        ({"model": "owner/name", "config": "FOLDER"}, "is not a single file, so it has no config"),
        ({"model": "FILE", "config": "no such"}, "There is no model 'no such'"),
        ({"model": "mini", "variant": ""}, "variant '' is not a name"),
    ],
)
def test_options_that_do_not_apply(saved: Path, given: dict[str, str], message: str) -> None:
    names = {"FILE": str(saved / "model.safetensors"), "FOLDER": str(saved / "config")}
    with pytest.raises(CotrunkError, match=message):
        Source(**{key: names.get(value, value) for key, value in given.items()}).find()


def test_a_revision_is_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class StopError(Exception):
        pass

    def note(name: str, result: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            asked.append((name, args[-1], options.get("revision"), options.get("variant")))
            if isinstance(result, Exception):
                raise result
            return result

        return call

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", note("info", None))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", note("config", {}))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", note("weights", StopError("stop")))
    with pytest.raises(CotrunkError, match=r"cannot be loaded as a diffusers pipeline \(stop\)"):
        load_pipeline("owner/name", "cpu", revision="v2", variant="fp16")
    assert asked == [
        ("info", "owner/name", "v2", None),
        ("config", "owner/name", "v2", None),
        ("weights", "owner/name", "v2", "fp16"),
    ]


def test_a_revision_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotFoundError(errors.RevisionNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404 Client Error")

    def model_info(*args: Any, **options: Any) -> Any:
        raise NotFoundError

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    with pytest.raises(CotrunkError, match="'owner/name' has no revision 'v9' on the hub: use a branch"):
        Source("owner/name", revision="v9").find()


def test_a_variant_is_read_from_a_folder(tmp_path: Path) -> None:
    sd_with_text().pipe.save_pretrained(tmp_path, variant="fp16")
    assert isinstance(load_pipeline(str(tmp_path), "cpu", variant="fp16"), diffusers.StableDiffusionPipeline)
    with pytest.raises(CotrunkError, match="cannot be loaded as a diffusers pipeline"):
        load_pipeline(str(tmp_path), "cpu", variant="bf16")


def test_long_names_and_null_characters_are_not_paths() -> None:
    for name in ("x" * 5000, "a\0b"):
        assert not hub.is_file(name)
        assert not hub.is_folder(name)
    assert not source.is_folder("")


# Memory.


def test_offloading_needs_an_accelerator() -> None:
    for how in ("model", "sequential", "group"):
        with pytest.raises(CotrunkError, match=f"--offload {how} moves weights .* this run is on the CPU"):
            check_names("cpu", "auto", offload=how)
        check_offload(how, "cuda:1")
    check_offload(None, "cpu")
    with pytest.raises(CotrunkError, match="offload 'disk' is unknown: use model, sequential or group"):
        check_names("cpu", "auto", offload="disk")
    with pytest.raises(CotrunkError, match="this run is on the CPU"):
        load_pipeline("mini", "cpu", offload="model")


class _Recorder:
    """Stands for a pipeline whose device this machine lacks."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.calls.append((name, args, options))


def test_each_way_of_offloading_is_its_method_of_diffusers() -> None:
    pipe = _Recorder()
    for how, device in (("model", "cuda:1"), ("sequential", "cuda"), ("group", "cuda"), ("group", "mps")):
        offload(pipe, how, device)
    assert pipe.calls == [
        ("enable_model_cpu_offload", (), {"device": "cuda:1"}),
        ("enable_sequential_cpu_offload", (), {"device": "cuda"}),
        ("enable_group_offload", (torch.device("cuda"),), {"offload_type": "leaf_level", "use_stream": True}),
        ("enable_group_offload", (torch.device("mps"),), {"offload_type": "leaf_level", "use_stream": False}),
    ]


NO_GROUPS = pytest.mark.skipif(IS_OLD, reason="diffusers before 0.42 cannot offload groups without an accelerator")


@pytest.mark.parametrize("how", ["model", pytest.param("group", marks=NO_GROUPS)])
def test_offloaded_pipelines_share(how: str) -> None:
    """What is moved where does not matter: the hooks are the same for the CPU."""
    own, expected = sd_with_text(), sd_with_text()
    offload(own.pipe, how, "cpu")
    assert device_of(own.pipe).partition(":")[0] == "cpu"
    made, alone = (run(tiny, tiny.inputs(2)) for tiny in (own, expected))
    assert torch.equal(made.images, alone.images)
    assert made.cost.saving > 0


def test_the_pipeline_is_not_moved_before_it_is_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that needs offloading does not fit on the device."""
    happened: list[Any] = []
    monkeypatch.setattr("cotrunk.pipelines.loading.check_offload", lambda *_: None)
    monkeypatch.setattr("cotrunk.pipelines.loading.keep_on_cpu", lambda _, how, device: happened.append((how, device)))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", lambda *args, **_: happened.append(args[1:]))
    load_pipeline("mini", "cpu", offload="group")
    assert happened == [("group", "cpu")]


def test_a_pipeline_that_cannot_be_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = sd_with_text().pipe
    monkeypatch.setattr(type(pipe), "model_cpu_offload_seq", None)
    with pytest.raises(CotrunkError, match=r"cannot be offloaded by model \(.*use --offload seq"):
        offload(pipe, "model", "cpu")


def test_offloaded_weights_have_the_same_digest() -> None:
    own, expected = sd_with_text().pipe.unet, sd_with_text().pipe.unet
    cpu_offload(own, torch.device("cpu"))
    assert next(own.parameters()).is_meta
    assert weights_digest(own) == weights_digest(expected)


def test_tiling() -> None:
    pipe = load_pipeline("mini", "cpu", vae_tiling=True)
    assert pipe.vae.use_tiling
    assert not load_pipeline("mini", "cpu").vae.use_tiling
    for other in (torch.nn.Linear(1, 1), diffusers.VQModel()):
        pipe.vae = other
        with pytest.raises(CotrunkError, match=f"has a {type(other).__name__}, which cannot work in tiles"):
            tile_vae(pipe)
    pipe.vae = None
    with pytest.raises(CotrunkError, match="has no autoencoder: leave --vae-tiling out"):
        tile_vae(pipe)
