"""Train a LoRA: exact resume, every family of denoisers, files, refusals."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderTiny, EDMEulerScheduler, LCMScheduler
from running import close, denoiser, generate
from safetensors.torch import load_file
from tiny import TinyPipeline, flux, pixart, sana, sd, sd3, sd_with_text, sdxl, wan
from torch import Tensor
from trainings import OBJECTIVES, QUICK, SIZE, few, recorders, same_weights, trained

from cotrunk import CotrunkError, mini
from cotrunk.groups.captions import Pair
from cotrunk.groups.images import read_scaled
from cotrunk.pipelines.lora import load_lora
from cotrunk.training.conditions import Conditions
from cotrunk.training.latents import latents_of
from cotrunk.training.log import Step, plot_losses, read_losses, write_step
from cotrunk.training.loss import Loss, Terms, sage_loss
from cotrunk.training.schedule import trained_share, training_schedule
from cotrunk.training.settings import TrainSettings
from cotrunk.training.trainer import train


@pytest.mark.parametrize("build", [sd, sdxl, sd3, flux, pixart])
def test_the_denoiser_is_called_as_its_pipeline_calls_it(build: Callable[[], TinyPipeline]) -> None:
    """The first output of a run equals the output for the same latents and the caught conditions."""
    pipeline = build()
    inputs = {k: v for k, v in pipeline.inputs(3).items() if "negative" not in k or k == "negative_prompt"}
    seen: list[Any] = []
    module = denoiser(pipeline)
    hook = module.register_forward_hook(lambda *call: seen.append(call[1:]), with_kwargs=True)
    pipeline.pipe(**inputs, num_inference_steps=2, guidance_scale=1.0, output_type="latent")
    hook.remove()
    args, kwargs, output = seen[0]
    sample = args[0] if args else next(iter(kwargs.values()))
    conditions = Conditions(pipeline.pipe, **{k: v for k, v in inputs.items() if "prompt" not in k})
    named = conditions.of(**{k: v for k, v in inputs.items() if "prompt" in k})
    timestep = pipeline.pipe.scheduler.timesteps[0].expand(3)
    if conditions.packed:
        factor = pipeline.pipe.vae_scale_factor
        sample, expected = (
            pipeline.pipe._unpack_latents(x, inputs["height"], inputs["width"], factor) for x in (sample, output[0])
        )
    else:
        expected = output[0][:, : sample.shape[1]]
    with torch.no_grad():
        assert close(conditions.call(sample, timestep, named), expected)


@pytest.mark.parametrize("objective", ["sage", "standard"])
def test_training_changes_the_lora_and_nothing_else(groups: list[list[Pair]], tmp_path: Path, objective: Any) -> None:
    fresh, steps = sd_with_text().pipe.unet.state_dict(), list[Step]()
    settings = TrainSettings(**vars(QUICK) | {"loss": Loss(objective)})
    pipeline, weights = trained(groups, tmp_path, settings, on_step=steps.append)
    assert all("lora" in name for name in weights)
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name or "lora.up" in name)
    for name, tensor in pipeline.pipe.unet.state_dict().items():
        if "lora" not in name:
            assert torch.equal(tensor, fresh[name.replace(".base_layer", "")]), name
    assert [step.number for step in steps] == list(range(1, 7))
    assert [line["step"] for line in read_losses(tmp_path / "losses.jsonl")] == list(range(1, 7))
    kept = {"checkpoint.pt", "losses.jsonl", "settings.json", "README.md", "pytorch_lora_weights.safetensors"}
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == kept


def test_the_pre_trained_teacher_is_the_model_without_its_lora(groups: list[list[Pair]], tmp_path: Path) -> None:
    """With a learning rate that ruins the model, its soft target stays where it was."""
    given, taught = dict[str, list[Tensor]](self=[], fresh=[]), list[Tensor]()
    fresh = sd_with_text().pipe.unet

    def watched(*arguments: Any) -> Terms:
        *rest, pre_trained = arguments

        def teacher(noisy: Tensor, steps: Tensor, named: dict[str, Any]) -> Tensor:
            taught.append(pre_trained(noisy, steps, named))
            given["fresh"].append(fresh(noisy, steps.float(), **named, return_dict=False)[0])
            given["self"].append(rest[0](noisy, steps, named))
            return taught[-1]

        return sage_loss(*rest, teacher)

    settings = TrainSettings(**vars(QUICK) | {"steps": 3, "loss": Loss(teacher="pre-trained", shared_weight=0)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cotrunk.training.trainer.sage_loss", watched)
        trained(groups, tmp_path, settings)
    assert all(close(mine, theirs) for mine, theirs in zip(taught, given["fresh"], strict=True))
    assert not close(taught[-1], given["self"][-1], 1e-3)


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("mixed_precision", [pytest.param("no", marks=pytest.mark.slow), "bf16"])
def test_an_interrupted_training_restores_the_pipeline(
    groups: list[list[Pair]], tmp_path: Path, mixed_precision: Any, fresh_accelerator: None
) -> None:
    """In a notebook, the same pipeline can then continue the training."""
    pipeline = sd_with_text()
    unet, inputs = pipeline.pipe.unet, pipeline.inputs(1) | {"num_inference_steps": 2, "output_type": "latent"}
    draw = lambda: pipeline.pipe(**inputs, generator=torch.Generator().manual_seed(0)).images  # noqa: E731
    settings = TrainSettings(**vars(QUICK) | {"mixed_precision": mixed_precision, "gradient_checkpointing": True})
    before, forward = draw(), unet.forward

    def interrupt(step: Step) -> None:
        if step.number == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(pipeline.pipe, groups, settings, tmp_path, on_step=interrupt)
    assert torch.equal(draw(), before)
    assert not unet.training
    assert not unet.is_gradient_checkpointing
    assert unet.forward.__func__ is forward.__func__
    assert all(parameter.requires_grad for parameter in unet.parameters())
    done = list[Step]()
    train(pipeline.pipe, groups, settings, tmp_path, on_step=done.append)
    assert [step.number for step in done] == [3, 4, 5, 6]  # its last checkpoint was at 2
    assert not unet.training
    assert not close(draw(), before, 1e-3)
    assert {parameter.requires_grad for name, parameter in unet.named_parameters() if "lora" not in name} == {True}
    with pytest.raises(CotrunkError, match="has a LoRA already"):
        train(pipeline.pipe, groups, settings, tmp_path)


def test_a_tracker_is_closed_when_a_training_is_interrupted(
    groups: list[list[Pair]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some trackers write their last steps only then."""

    def interrupt(step: Step) -> None:
        if step.number == 3:
            raise Interrupted

    made, settings = recorders(monkeypatch), TrainSettings(**vars(QUICK) | {"tracker": "tensorboard"})
    with pytest.raises(Interrupted):
        trained(groups, tmp_path, settings, on_step=interrupt)
    trained(groups, tmp_path, settings)
    assert [list(one.logged) for one in made] == [[1, 2, 3], [3, 4, 5, 6]]
    assert [one.is_closed for one in made] == [True, True]


@pytest.mark.parametrize("layers", ["attention", pytest.param("all", marks=pytest.mark.slow)])
def test_the_pipeline_loads_the_trained_lora(groups: list[list[Pair]], tmp_path: Path, layers: Any) -> None:
    pipeline, _ = trained(groups, tmp_path, TrainSettings(**vars(QUICK) | {"layers": layers}))
    inputs = pipeline.inputs(1) | {"num_inference_steps": 2, "output_type": "latent"}
    generator = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    expected = pipeline.pipe(**inputs, generator=generator()).images
    other = sd_with_text()
    before = other.pipe(**inputs, generator=generator()).images
    other.pipe.load_lora_weights(tmp_path)
    assert close(other.pipe(**inputs, generator=generator()).images, expected)
    assert not close(before, expected, 1e-3)


@pytest.mark.slow
def test_all_layers_are_loaded_under_any_name(groups: list[list[Pair]], tmp_path: Path) -> None:
    """`mini` pools its prompt in layers that the older names in LoRA files do not cover."""
    sizes = {"height": 128, "width": 128}
    settings = TrainSettings(steps=1, batch=1, rank=1, learning_rate=1e-2, layers="all", **sizes)
    pipe, other = mini.load(), mini.load()
    weights = load_file(train(pipe, groups, settings, tmp_path))
    load_lora(other, tmp_path)
    trained_ones = {name for name, part in pipe.unet.named_modules() if hasattr(part, "lora_A")}
    assert len(trained_ones) == len(weights) / 2
    pooled = "add_embedding.pool.q_proj"
    assert pooled in trained_ones
    assert not torch.equal(other.unet.get_submodule(pooled).weight, mini.load().unet.get_submodule(pooled).weight)


@pytest.mark.parametrize(
    ("changed", "kills"),
    [
        ({}, (1, 2)),
        ({"loss": Loss(noise="own", branch_noise="trunk")}, (3,)),
        pytest.param({"ema": 0.5, "accumulation": 2}, (5,), marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_ends_with_the_same_weights(
    groups: list[list[Pair]], tmp_path: Path, changed: dict[str, Any], kills: tuple[int, ...]
) -> None:
    settings = TrainSettings(**vars(QUICK) | changed)
    _, whole = trained(groups, tmp_path / "whole", settings)
    for last in kills:

        def kill(step: Step, last: int = last) -> None:
            if step.number == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trained(groups, tmp_path / str(last), settings, on_step=kill)
        _, resumed = trained(groups, tmp_path / str(last), settings)
        assert same_weights(resumed, whole), last


def process(script: str, groups: list[list[Pair]], *arguments: object, **environment: str) -> subprocess.Popen[bytes]:
    """Start another Python, with this module as `t`, these groups as `groups`, and arguments in `sys.argv`."""
    head = "import pickle, sys, pathlib, trainings as t\ngroups = pickle.load(sys.stdin.buffer)\n"
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    # one thread, as in this process, because the number of threads changes rounding
    own = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    words = [sys.executable, "-c", head + script, *map(str, arguments)]
    started = subprocess.Popen(words, env=own, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdin is not None
    with started.stdin as stdin:
        pickle.dump(groups, stdin)
    started.stdin = None  # or it would be flushed again
    return started


KILLED = """
import os, signal
def kill(step):
    if step.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
t.trained(groups, pathlib.Path(sys.argv[1]), on_step=kill)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_training_whose_process_was_killed_ends_with_the_same_weights(
    groups: list[list[Pair]], tmp_path: Path
) -> None:
    """No cleanup runs, and another process continues."""
    killed = process(KILLED, groups, tmp_path / "killed")
    _, message = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, message
    log = tmp_path / "killed" / "losses.jsonl"
    assert [line["step"] for line in read_losses(log)] == [1, 2, 3]
    assert torch.load(tmp_path / "killed" / "checkpoint.pt")["step"] == 2
    assert not (tmp_path / "killed" / "pytorch_lora_weights.safetensors").exists()
    done = list[Step]()
    _, resumed = trained(groups, tmp_path / "killed", on_step=done.append)
    assert [step.number for step in done] == [3, 4, 5, 6]
    _, whole = trained(groups, tmp_path / "whole")
    assert same_weights(resumed, whole)
    assert list(read_losses(log)) == list(read_losses(tmp_path / "whole" / "losses.jsonl"))


ONE_OF_TWO = """
t.recorders(t.pytest.MonkeyPatch())
for objective in t.OBJECTIVES:
    t.trained(groups, pathlib.Path(sys.argv[1]) / objective, t.few(objective, tracker="tensorboard"))
"""


@pytest.mark.slow
def test_two_processes_train_one_lora(groups: list[list[Pair]], tmp_path: Path) -> None:
    """Processes as `accelerate launch` starts them. Each takes half of a step's groups, like one process in two passes.

    They train a second time, although the tracker of the first training is closed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    both = [process(ONE_OF_TWO, groups, tmp_path, RANK=rank, LOCAL_RANK=rank, **common) for rank in ("0", "1")]
    try:
        alone = {name: trained(groups, tmp_path / "alone" / name, few(name, accumulation=2))[1] for name in OBJECTIVES}
        message = [one.communicate(timeout=120)[1].decode() for one in both]
    finally:
        for one in both:
            one.kill()
    assert [one.returncode for one in both] == [0, 0], "\n".join(message)
    for objective, expected in alone.items():
        weights = load_file(tmp_path / objective / "pytorch_lora_weights.safetensors")
        assert weights.keys() == expected.keys()
        assert all(torch.allclose(weights[name], tensor, atol=1e-5) for name, tensor in expected.items())
        assert json.loads((tmp_path / objective / "settings.json").read_text())["processes"] == 2
        logs = (read_losses(folder / objective / "losses.jsonl") for folder in (tmp_path, tmp_path / "alone"))
        for mine, theirs in zip(*logs, strict=True):
            assert mine == pytest.approx(theirs, abs=2e-6)


def test_the_folder_of_another_training_is_refused(groups: list[list[Pair]], tmp_path: Path) -> None:
    trained(groups, tmp_path)
    other = TrainSettings(**vars(QUICK) | {"rank": 4})
    with pytest.raises(CotrunkError, match=r"contains a training run with another rank \(2, not 4\)"):
        trained(groups, tmp_path, other)
    assert json.loads((tmp_path / "settings.json").read_text())["rank"] == 2
    with pytest.raises(CotrunkError, match="contains a training run with another data"):
        trained(groups[:2], tmp_path)
    with pytest.raises(CotrunkError, match="contains 6 steps already"):
        trained(groups, tmp_path, TrainSettings(**vars(QUICK) | {"steps": 3}))


@pytest.mark.slow
def test_a_training_continues_only_with_the_same_model_and_images(groups: list[list[Pair]], tmp_path: Path) -> None:
    """Encodings by another text encoder, or of other images, are not used."""
    trained(groups, tmp_path / "one")
    for part in ("unet", "vae", "text_encoder"):
        pipe = sd_with_text().pipe
        next(getattr(pipe, part).parameters()).data.mul_(2)
        with pytest.raises(CotrunkError, match="contains a training run with another model"):
            train(pipe, groups, QUICK, tmp_path / "one")
    with pytest.raises(CotrunkError, match="contains a training run with another model"):
        train(sd_with_text().pipe.to(torch.bfloat16), groups, QUICK, tmp_path / "one")
    path = groups[0][0].image
    kept, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(kept + b" ")  # still an image, but another file
    with pytest.raises(CotrunkError, match="contains a training run with another data"):
        trained(groups, tmp_path / "one")
    assert len(list((tmp_path / "one").glob("encoded-*"))) == 1  # it is refused before anything is encoded
    path.write_bytes(kept)
    os.utime(path, ns=times)
    trained(groups, tmp_path / "one")
    (tmp_path / "one" / "checkpoint.pt").unlink()
    pipe = sd_with_text().pipe
    next(pipe.text_encoder.parameters()).data.mul_(2)
    train(pipe, groups, QUICK, tmp_path / "one")
    assert len(list((tmp_path / "one").glob("encoded-*"))) == 2
    elsewhere = [[Pair(pair.caption, tmp_path / "gone.png") for pair in group] for group in groups]
    with pytest.raises(CotrunkError, match=r"gone\.png cannot be read any more"):
        trained(elsewhere, tmp_path / "one")


def test_a_checkpoint_of_another_configuration_is_reported(groups: list[list[Pair]], tmp_path: Path) -> None:
    trained(groups, tmp_path)
    for changed, message in (
        ({"loss": Loss(share=0.3)}, r"another share \(0.4, not 0.3\): use the same value"),
        ({"ema": 0.9}, r"another ema \(None, not 0.9\): use the same value"),
        ({"batch": 4}, r"another batch \(2, not 4\): use the same value"),
    ):
        with pytest.raises(CotrunkError, match=message):
            trained(groups, tmp_path, TrainSettings(**vars(QUICK) | changed))
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for content in (whole[:1000], b"", b"no checkpoint"):
        path.write_bytes(content)
        with pytest.raises(CotrunkError, match=r"checkpoint.pt is not a checkpoint of cotrunk train: choose another"):
            trained(groups, tmp_path)
    path.write_bytes(whole)
    state = torch.load(path, weights_only=True)
    for changed in ({"lora": {}}, {"lora": {name: x[:1] for name, x in state["lora"].items()}}, {"optimiser": {}}):
        torch.save(state | changed, path)
        with pytest.raises(CotrunkError, match=r"checkpoint\.pt belongs to another model or another configuration"):
            trained(groups, tmp_path)


def test_a_vae_that_overflows_in_half_precision_encodes_in_float32(groups: list[list[Pair]]) -> None:
    pipe = sd_with_text().pipe
    pipe.vae.encoder.conv_in.weight.data.fill_(6e4)
    pipe.vae.half()
    pipe.vae.register_to_config(force_upcast=True)
    assert latents_of(pipe, groups[0], 32, 32).isfinite().all()
    assert pipe.vae.dtype == torch.float16
    pipe.vae.register_to_config(force_upcast=False)
    with pytest.raises(CotrunkError, match=r"The latents of .*00\.png are not finite: use another dtype, such"):
        latents_of(pipe, groups[0], 32, 32)


def sdxl_with_statistics() -> TinyPipeline:
    """Return SDXL with latent statistics per channel, as some of its VAEs have."""
    pipeline = sdxl()
    pipeline.pipe.vae.register_to_config(latents_mean=[-1.5, 0.5, 2, 0.1], latents_std=[8.0, 5, 6, 4])
    return pipeline


@pytest.mark.parametrize("build", [sd_with_text, sdxl, sdxl_with_statistics, sd3, sana])
def test_a_pipeline_decodes_what_was_encoded(build: Callable[[], TinyPipeline], groups: list[list[Pair]]) -> None:
    """The result is that of the VAE alone: latents are normalised as the pipeline expects."""
    pipeline, pairs = build(), groups[0]
    pipe, inputs = pipeline.pipe, pipeline.inputs(len(pairs))
    latents = latents_of(pipe, pairs, inputs["height"], inputs["width"]).float()
    last = lambda pipe, step, timestep, tensors: {"latents": latents}  # noqa: E731
    arguments = inputs | {"num_inference_steps": 1, "output_type": "pt", "callback_on_step_end": last}
    made = 2 * torch.as_tensor(pipe(**arguments).images) - 1
    images = torch.stack([read_scaled(pair.image, inputs["height"], inputs["width"]) for pair in pairs])
    with torch.no_grad():
        found = pipe.vae.encode(images)
        own = pipe.vae.decode(found.latent if build is sana else found.latent_dist.mode()).sample
    assert close(made, own.clamp(-1, 1), 1e-2)


def sd_with_another_vae() -> TinyPipeline:
    pipeline = sd_with_text()
    pipeline.pipe.vae = AutoencoderTiny(encoder_block_out_channels=[8] * 4, decoder_block_out_channels=[8] * 4)
    return pipeline


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            sd_with_another_vae,
            "StableDiffusionPipeline has the VAE AutoencoderTiny: train a pipeline that has an Autoenc",
        ),
        (wan, "WanPipeline has no VAE: train a pipeline that has an AutoencoderKL or an AutoencoderDC"),
    ],
)
def test_a_vae_of_another_kind_is_reported_before_encoding(
    groups: list[list[Pair]], tmp_path: Path, build: Callable[[], TinyPipeline], message: str
) -> None:
    with pytest.raises(CotrunkError, match=message):
        train(build().pipe, groups, QUICK, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("place", "error"), [(35, SyntaxError), (11, ValueError)])
def test_an_image_that_was_damaged_since_is_reported(
    groups: list[list[Pair]], tmp_path: Path, place: int, error: type[Exception]
) -> None:
    """The file has a wrong length, for which Pillow does not raise OSError."""
    content, path = bytearray(groups[0][0].image.read_bytes()), tmp_path / "broken.png"
    content[place] = 0
    path.write_bytes(content)
    with pytest.raises(CotrunkError, match=r"broken\.png cannot be read any more: make the groups again") as raised:
        read_scaled(path, 32, 32)
    assert type(raised.value.__cause__) is error


def test_the_model_card_describes_the_objective(groups: list[list[Pair]], tmp_path: Path) -> None:
    card = {}
    for name, loss in {
        "standard": Loss("standard", share=0.3),
        "sage": Loss(share=0.3, shared_weight=0.5, target_weight=2),
        "trunk": Loss(shared_weight=0, branch_noise="trunk", noise="own", teacher="pre-trained"),
    }.items():
        trained(groups, tmp_path / name, TrainSettings(**vars(QUICK) | {"steps": 1, "accumulation": 2, "loss": loss}))
        card[name] = (tmp_path / name / "README.md").read_text()
    made = "Trained with cotrunk for 1 steps of 4 groups; rank 2 (attention), learning rate 0.01"
    assert f"{made}.\n" in card["standard"]
    assert "Sharing" not in card["standard"]
    assert '`cotrunk.Sharing(share=0.3, noise="common", trunk_guidance=1)`' in card["sage"]
    assert '`cotrunk.Sharing(share=0.4, noise="own", trunk_guidance=0)`' in card["trunk"]
    assert (
        f"{made}, 30% of the steps shared, lambda_1 0.5, lambda_2 2, teacher self, common noise, branch noise drawn.\n"
        in card["sage"]
    )
    how = "lambda_1 0, lambda_2 1, teacher pre-trained, own noise, branch noise trunk"
    assert f"{made}, 40% of the steps shared, {how}.\n" in card["trunk"]


@pytest.mark.parametrize("killed_at", [13])
def test_encoding_continues_where_it_was_killed(
    groups: list[list[Pair]], tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cotrunk.training.encoded.CHUNK", 2)
    _, whole = trained(groups, tmp_path / "whole")
    counts: list[int] = []

    def kill(done: int, of: int) -> None:
        assert of == 9 + 10  # images, captions and the empty caption
        counts.append(done)
        if done >= killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(groups, tmp_path / "killed", on_encoded=kill)
    again: list[int] = []
    _, resumed = trained(groups, tmp_path / "killed", on_encoded=lambda done, of: again.append(done))
    assert counts + again == [2, 4, 6, 8, 9, 11, 13, 15, 17, 19]
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_processes_wait_for_the_one_that_encodes(
    groups: list[list[Pair]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding may take hours, but by default processes wait only ten minutes."""

    def made(**arguments: Any) -> None:
        (handler,) = arguments["kwargs_handlers"]
        assert handler.timeout >= timedelta(days=1)
        raise KeyboardInterrupt

    monkeypatch.setattr("accelerate.Accelerator", made)
    with pytest.raises(KeyboardInterrupt):
        trained(groups, tmp_path)


def test_the_losses_of_a_step_are_the_mean_of_its_passes(
    groups: list[list[Pair]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Terms] = []

    def recorded(*arguments: Any) -> Terms:
        passes.append(sage_loss(*arguments))
        return passes[-1]

    monkeypatch.setattr("cotrunk.training.trainer.sage_loss", recorded)
    trained(groups, tmp_path, TrainSettings(**vars(QUICK) | {"steps": 2, "accumulation": 3}))
    for number, line in enumerate(read_losses(tmp_path / "losses.jsonl")):
        for name in ("total", "shared", "target", "branch"):
            own = [float(getattr(terms, name).detach()) for terms in passes[3 * number : 3 * number + 3]]
            assert line[name] == pytest.approx(np.mean(own), abs=2e-6)
            assert len(set(own)) == 3


def test_an_incomplete_line_of_losses_is_ignored(tmp_path: Path) -> None:
    log = tmp_path / "losses.jsonl"
    terms = Terms(*(torch.tensor(0.5) for _ in range(4)))
    for number in (1, 2):
        write_step(log, Step(number, 3, terms, 1.0))
    log.write_bytes(log.read_bytes()[:-9])
    write_step(log, Step(3, 3, terms, 1.0))
    assert [line["step"] for line in read_losses(log)] == [1, 3]
    plot_losses(log, tmp_path / "losses.png")
    write_step(log, Step(2, 3, terms, 1.0))
    assert [line["step"] for line in read_losses(log)] == [1, 2, 3]


@pytest.mark.slow
def test_images_at_a_checkpoint_use_the_weights_that_would_be_saved(groups: list[list[Pair]], tmp_path: Path) -> None:
    """With an average, it is the average; then training continues with the weights."""
    pipeline, drawn = sd_with_text(), list[dict[str, Tensor]]()

    def look(step: int) -> None:
        drawn.append({name: x.clone() for name, x in pipeline.pipe.unet.named_parameters() if "lora" in name})

    settings = TrainSettings(**vars(QUICK) | {"ema": 0.9, "steps": 4})
    train(pipeline.pipe, groups, settings, tmp_path / "seen", on_checkpoint=look)
    saved = {name: x for name, x in pipeline.pipe.unet.named_parameters() if "lora" in name}
    assert all(torch.equal(drawn[-1][name], x) for name, x in saved.items())
    unseen = sd_with_text()
    train(unseen.pipe, groups, TrainSettings(**vars(settings) | {"checkpoint_every": 4}), tmp_path / "unseen")
    assert all(torch.equal(x, saved[name]) for name, x in unseen.pipe.unet.named_parameters() if "lora" in name)


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Reset accelerate, which remembers the mixed precision of the first training in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_half_precision_weights_generate_at_a_checkpoint(
    groups: list[list[Pair]], tmp_path: Path, fresh_accelerator: None
) -> None:
    pipeline, made = sd_with_text(), list[Any]()
    pipeline.pipe.to(torch.bfloat16)
    settings = TrainSettings(**vars(QUICK) | {"steps": 2, "mixed_precision": "bf16"})

    def draw(step: int) -> None:
        made.append(generate(pipeline.pipe, ["a dog", "a cat"], num_inference_steps=2, output_type="np", **SIZE))

    train(pipeline.pipe, groups, settings, tmp_path, on_checkpoint=draw)
    assert len(made) == 1
    assert np.isfinite(made[0].images).all()


def test_an_unsupported_precision_is_reported(
    groups: list[list[Pair]], tmp_path: Path, fresh_accelerator: None
) -> None:
    with pytest.raises(CotrunkError, match=r"mixed_precision 'fp17' is not usable here \(.*\): use 'no'\.$"):
        trained(groups, tmp_path, TrainSettings(**vars(QUICK) | {"mixed_precision": "fp17"}))


@pytest.mark.slow
def test_a_run_that_failed_before_its_first_checkpoint_starts_again(groups: list[list[Pair]], tmp_path: Path) -> None:
    def kill(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(groups, tmp_path, TrainSettings(**vars(QUICK) | {"rank": 4}), on_encoded=kill)
    trained(groups, tmp_path)


def share_of(pipeline: TinyPipeline, share: float, **sizes: int) -> float:
    """Return `trained_share` of a pipeline that takes embeddings."""
    inputs = pipeline.inputs(1) | sizes
    return trained_share(Conditions(pipeline.pipe, **inputs), share)


def test_the_branch_point_of_a_training_is_that_of_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Conditions.of
    monkeypatch.setattr(Conditions, "of", lambda self, captions: original(self, None))
    assert share_of(sd(), 0.4) == pytest.approx(0.4, abs=0.01)
    plain, shifted = sd3(), sd3()
    assert share_of(plain, 0.4) == pytest.approx(0.4, abs=0.01)
    scheduler = shifted.pipe.scheduler
    shifted.pipe.scheduler = type(scheduler).from_config(scheduler.config, shift=3.0)
    sigma = 3 * 0.6 / (1 + 2 * 0.6)  # after 40 % of the steps
    assert share_of(shifted, 0.4) == pytest.approx(1 - sigma, abs=0.01)
    quick = sd()
    quick.pipe.scheduler = LCMScheduler.from_config(quick.pipe.scheduler.config)  # refuses a thousand steps
    assert share_of(quick, 0.4) == 0.4


@pytest.mark.parametrize("side", [16, 64])
def test_the_branch_point_of_flux_depends_on_the_size(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flux shifts its flow by more for more tokens; one token is 2 x 2 pixels here."""
    original = Conditions.of
    monkeypatch.setattr(Conditions, "of", lambda self, captions: original(self, None))
    mu = 0.5 + (1.15 - 0.5) * ((side // 2) ** 2 - 256) / (4096 - 256)
    sigma = np.exp(mu) / (np.exp(mu) + 1 / 0.6 - 1)  # after 40 % of the steps
    pipeline = flux()
    own = pipeline.pipe.scheduler
    assert share_of(pipeline, 0.4, height=side, width=side) == pytest.approx(1 - sigma, abs=0.001)
    assert pipeline.pipe.scheduler is own


@pytest.mark.parametrize("build", [sdxl, sd3, flux, sana, pixart])
def test_other_families_train_too(build: Callable[[], TinyPipeline], groups: list[list[Pair]], tmp_path: Path) -> None:
    """A stand-in makes their text embeddings, because the tiny pipelines have no text encoders."""
    pipeline = build()

    def of(self: Conditions, captions: list[str], **_: Any) -> dict[str, Any]:
        inputs = pipeline.inputs(len(captions))
        prompts = {k: v for k, v in inputs.items() if "prompt" in k and "negative" not in k}
        return original(self, **prompts)

    original = Conditions.of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conditions, "of", of)
        size = {"height": inputs["height"], "width": inputs["width"]} if (inputs := pipeline.inputs(1)) else {}
        settings = TrainSettings(**vars(QUICK) | {"steps": 2} | size)
        weights = load_file(train(pipeline.pipe, groups, settings, tmp_path))
    assert weights
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_an_output_folder_that_is_a_file_is_reported(groups: list[list[Pair]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CotrunkError, match=r"Cannot write to .*file: .*\. Choose another --out"):
        trained(groups, tmp_path / "file")


def test_a_scheduler_without_a_schedule_is_reported_before_encoding(groups: list[list[Pair]], tmp_path: Path) -> None:
    pipe = sd_with_text().pipe
    pipe.scheduler = EDMEulerScheduler()
    with pytest.raises(CotrunkError, match=r"EDMEulerScheduler does not say how noisy a timestep is: train a pipeline"):
        train(pipe, groups, QUICK, tmp_path, on_encoded=lambda done, of: pytest.fail("encoded"))


def test_the_training_schedule_goes_from_x0_to_noise() -> None:
    for build in (sd, sd3):
        schedule = training_schedule(build().pipe.scheduler)
        sigmas = [sigma for _, sigma in schedule.levels]
        assert len(sigmas) == 1000
        assert sigmas == sorted(sigmas)
        assert 0 < sigmas[0] < 0.1
        assert sigmas[-1] > 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps 0 is out of range"),
        ({"batch": 0}, "batch 0 is out of range"),
        ({"rank": 2.5}, "rank 2.5"),
        ({"ema": 1.0}, "ema 1.0"),
        ({"height": 30}, "height 30 is not an image size: use a multiple of 8"),
        ({"width": 0}, "width 0 is out of range"),
        ({"width": -8}, "width -8"),
        ({"layers": "some"}, "layers 'some' is unknown: use attention or all"),
        ({"tracker": "paper"}, "tracker 'paper' is unknown: use .*tensorboard"),
    ],
)
def test_bad_settings_are_reported(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CotrunkError, match=message):
        TrainSettings(**arguments)


def test_a_tracker_without_its_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(CotrunkError, match="tracker 'tensorboard' needs its package: pip install tensorboard"):
        TrainSettings(tracker="tensorboard")
