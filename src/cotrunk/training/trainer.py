"""The training loop: a LoRA on the denoiser of the user's pipeline, for shared sampling (Algorithm 2 of SAGE)."""

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from ..engine.patch import replaced
from ..errors import CotrunkError
from ..files import check_folder, remove_parts, write_bytes, write_text, writing
from ..groups import images
from ..groups.captions import Pair
from ..pipelines.hub import first_line
from ..pipelines.identity import model_digest
from ..pipelines.noise_schedule import NoiseSchedule, read_schedule
from .checkpoint import FILE, are_finite, read_checkpoint, take_checkpoint, write_tensors
from .conditions import Conditions, moved
from .encoded import Examples, Told, encode
from .latents import check_encodes, size_of
from .log import TERMS, Step, write_step
from .loss import Terms, sage_loss
from .settings import TrainSettings

LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls it
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # as diffusers calls the layers of attention
# what accelerate puts on a model; its own way back takes off diffusers' wrapper of forward, too
PREPARED = ("forward", "_original_forward", "_is_accelerate_prepared")
# trackers that take a list of pictures, and what they are to be told of its form
PICTURES: dict[str, dict[str, str]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}, "swanlab": {}}
SMALLEST_SCALE = 1e-4  # of the loss in fp16, as in fairseq: below it gradients overflow whatever the scale
PATIENCE = timedelta(days=7)  # of the processes that wait for the one that encodes or draws


class DivergenceError(CotrunkError):
    """A loss or a gradient is not finite: nothing can be learnt any more. What was kept is in the message."""


def train(
    pipe: Any,
    groups: Sequence[Sequence[Pair]],
    settings: TrainSettings,
    out: Path,
    *,
    on_step: Callable[[Step], None] = lambda step: None,
    on_encoded: Told = lambda done, of: None,
    on_checkpoint: Callable[[int], Sequence[Image.Image] | None] = lambda step: None,
) -> Path:
    """Train a LoRA and write it to `out`, in diffusers' format (`pipe.load_lora_weights(out)`). Returns its file.

    A run that was killed goes on from its last checkpoint when it is called again with the same arguments, and ends
    with the same weights as one that was not: what a step draws depends on its number alone.

    Args:
        pipe: a pipeline with its decoder and text encoders; its denoiser gets the LoRA and keeps it, unless the
            training is interrupted.
        groups: of `dataset.read_groups`.
        out: a folder: `encoded-.../`, `checkpoint.pt`, `losses.jsonl`, `settings.json`, the LoRA and its card.
        on_step: told after every step.
        on_encoded: told how many of the pictures and captions are encoded.
        on_checkpoint: told after every checkpoint, when the pipeline draws with the LoRA as it would be saved then.
            Pictures of one size that it returns are shown by a tracker that can.

    Raises:
        CotrunkError: a pipeline that takes no LoRA, or has one; a scheduler that does not say how noisy a timestep is;
            a VAE of an unknown kind; a mixed precision that this machine has not; pictures that are gone; a folder with
            a run of another model, other groups or other settings, or one that cannot be written.
        DivergenceError: a loss or gradient that is not finite. The last checkpoint is kept, and no LoRA is written.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    try:
        from peft import LoraConfig
        from peft.utils import get_peft_model_state_dict
    except ImportError as error:
        raise CotrunkError("Training needs peft: pip install 'cotrunk[train]'.") from error
    if not hasattr(type(pipe), "save_lora_weights"):
        raise CotrunkError(f"{type(pipe).__name__} takes no LoRA in diffusers: train another pipeline.")
    schedule = training_schedule(pipe.scheduler)
    check_encodes(pipe)
    check_folder(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_steps=settings.accumulation,
            log_with=settings.tracker,
            project_dir=out,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except (ImportError, ValueError) as error:
        why = first_line(error)
        raise CotrunkError(
            f"mixed_precision {settings.mixed_precision!r} is not usable here ({why}): use no."
        ) from error
    pipe.to(accelerator.device)
    sizes = {name: value for name in ("height", "width") if (value := getattr(settings, name)) is not None}
    conditions = Conditions(pipe, **sizes)
    denoiser: Any = conditions.denoiser
    if getattr(denoiser, "peft_config", None):  # it would be switched off in training, and mixed up in what is saved
        raise CotrunkError(
            f"The {conditions.name} has a LoRA already: call pipe.fuse_lora() to train on top of it, "
            "and pipe.unload_lora_weights() in any case."
        )
    size = size_of(pipe, settings.height, settings.width)
    run = {"pipeline": type(pipe).__name__, "model": model_digest(pipe), "data": _digest(groups)}
    run |= {"processes": accelerator.num_processes, **json.loads(json.dumps(asdict(settings)))}
    folder = out / f"encoded-{run['data']}-{run['model']}-{size[0]}x{size[1]}-{images.WAY}"
    state = read_checkpoint(out, run)  # before encoding, which may take hours
    if accelerator.is_main_process:
        remove_parts(out)
        encode(pipe, conditions, groups, size, folder, on_encoded)
    accelerator.wait_for_everyone()
    conditions.of([""])  # every process is to know how its denoiser is called
    examples = Examples(folder, groups)
    loss = replace(settings.loss, share=trained_share(conditions, settings.loss.share))
    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank,
        init_lora_weights="gaussian",
        target_modules=ATTENTION if settings.layers == "attention" else _layers(denoiser),
    )
    with (
        _lent(pipe, denoiser, config, accelerator.device, settings.gradient_checkpointing),
        _tracked(accelerator, settings.tracker),
    ):
        weights = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        for weight in weights:
            weight.data = weight.data.float()  # what is trained stays exact, whatever the model's own type
        optimiser = torch.optim.AdamW(weights, lr=settings.learning_rate, fused=True)
        average = None if settings.ema is None else [weight.detach().clone() for weight in weights]
        first = 0 if state is None else take_checkpoint(state, out, accelerator, denoiser, optimiser, average)
        prepared, optimiser = accelerator.prepare(denoiser, optimiser)
        conditions.model = prepared
        timesteps = torch.tensor(schedule.timesteps, device=accelerator.device)

        def denoise(noisy: torch.Tensor, steps: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
            with accelerator.autocast():
                return conditions.call(noisy.to(denoiser.dtype), timesteps[steps], named).float()

        def terms_of(number: int, part: int) -> Terms:
            """The loss of a pass of this process, which depends on the numbers of step and pass alone."""
            place = accelerator.process_index * settings.accumulation + part
            generator = torch.Generator().manual_seed(_seed(settings.seed, number, place))
            chosen = _chosen(len(examples.groups), settings, number, place, accelerator.num_processes)
            without = (torch.rand(len(chosen), generator=generator) < settings.caption_dropout).tolist()
            latents, named, members = examples.batch(chosen, without)
            latents = latents.to(accelerator.device, torch.float32)
            named = moved(moved(named, accelerator.device), denoiser.dtype)
            return sage_loss(denoise, latents, named, members, schedule, loss, generator)

        kept = first
        prepared.train()
        for number in range(first, settings.steps):
            passes: list[Terms] = []
            for part in range(settings.accumulation):
                with accelerator.accumulate(prepared):
                    terms = terms_of(number, part)
                    accelerator.backward(terms.total)
                    passes.append(replace(terms, total=terms.total.detach()))
                    norm = accelerator.clip_grad_norm_(weights, settings.clip) if accelerator.sync_gradients else 0.0
                    optimiser.step()
                    optimiser.zero_grad(set_to_none=True)
            step = Step(number + 1, settings.steps, _mean(accelerator, passes), float(norm))
            _check_finite(step, accelerator.scaler, kept, settings, out)
            if average is not None and settings.ema is not None:
                for mean, weight in zip(average, weights, strict=True):
                    mean.lerp_(weight.detach(), 1 - settings.ema)
            is_due = step.number % settings.checkpoint_every == 0 or step.number == settings.steps
            if accelerator.is_main_process:
                write_step(out / "losses.jsonl", step)
                if settings.tracker is not None:
                    accelerator.log({name: float(getattr(step.terms, name)) for name in TERMS}, step=step.number)
                on_step(step)
            if not is_due:
                continue
            # or the last good checkpoint would go for one that leads to a NaN: finite weights may give an infinite loss
            if not are_finite([*weights, *(average or ())]):
                raise _divergence(f"the weights after step {step.number} are", kept, settings, out)
            with torch.no_grad():
                following = replace(step, number=number + 2, terms=_mean(accelerator, [terms_of(number + 1, 0)]))
            _check_finite(following, accelerator.scaler, kept, settings, out)
            kept = step.number
            if accelerator.is_main_process:
                state = {"step": step.number, "lora": get_peft_model_state_dict(denoiser), "average": average}
                state |= {"optimiser": optimiser.state_dict(), "run": run}
                if accelerator.scaler is not None:
                    state["scaler"] = accelerator.scaler.state_dict()
                write_tensors(out / FILE, state)
                write_text(out / "settings.json", json.dumps(run, indent=1) + "\n")
                prepared.eval()
                pipe.to(accelerator.device)
                # parts of several types go together, as in training
                with _averaged(weights, average), accelerator.autocast():
                    pictures = on_checkpoint(step.number)
                if pictures:
                    _show(accelerator, pictures, step.number)
                _park(pipe, denoiser)
                prepared.train()
        if average is not None:
            for mean, weight in zip(average, weights, strict=True):
                weight.data.copy_(mean)
        if accelerator.is_main_process:
            _save(pipe, conditions.name, get_peft_model_state_dict(denoiser), settings, out)
        accelerator.wait_for_everyone()  # whoever returns finds the file
        return out / LORA_FILE


def _check_finite(step: Step, scaler: Any, kept: int, settings: TrainSettings, out: Path) -> None:
    """That loss and gradient of a step are finite. kept: the step of the last checkpoint; 0 for none.

    In fp16 a gradient that overflows is a matter of course: accelerate leaves out that step and halves the scale of the
    loss, until no gradient overflows. Where that does not help, the gradient itself is not finite.

    Raises:
        DivergenceError: they are not.
    """
    if not are_finite(getattr(step.terms, name) for name in TERMS):
        what = "loss"
    elif not math.isfinite(step.gradient) and (scaler is None or scaler.get_scale() < SMALLEST_SCALE):
        what = "gradient"
    else:
        return
    raise _divergence(f"the {what} of step {step.number} is", kept, settings, out, is_untrained=step.number == 1)


def _divergence(
    what: str, kept: int, settings: TrainSettings, out: Path, is_untrained: bool = False
) -> DivergenceError:
    if is_untrained:
        why = "before anything was learnt: use another --dtype or --mixed-precision, or another model"
    elif not kept:
        why = f"and there is no checkpoint yet: start again with a --learning-rate below {settings.learning_rate:g}"
    else:
        why = (
            f"and the checkpoint of step {kept} is kept in {out}: --steps {kept} makes a LoRA of it; to train again, "
            f"choose another --out and a --learning-rate below {settings.learning_rate:g}"
        )
    return DivergenceError(f"Training diverged: {what} not finite, {why}.")


def _layers(denoiser: torch.nn.Module) -> list[str]:
    """Names of all layers that can have a LoRA: of grouped convolutions peft has none."""
    return [
        name
        for name, layer in denoiser.named_modules()
        if type(layer) is torch.nn.Linear or (isinstance(layer, torch.nn.Conv2d) and layer.groups == 1)
    ]


def _mean(accelerator: Any, passes: Sequence[Terms]) -> Terms:
    """Over the passes of all processes."""
    own = torch.stack([torch.stack([getattr(terms, name) for name in TERMS]) for terms in passes]).mean(dim=0)
    return Terms(**dict(zip(TERMS, accelerator.reduce(own, "mean"), strict=True)))


@contextmanager
def _tracked(accelerator: Any, tracker: str | None) -> Iterator[None]:
    """Log to a tracker too. It is closed even after an interrupt: some keep the latest steps until then."""
    if tracker is None:
        yield
        return
    accelerator.init_trackers("cotrunk")
    try:
        yield
    finally:
        # accelerator.end_training() would part the processes too, and they may train again
        for own in accelerator.trackers:
            own.finish()


def _show(accelerator: Any, pictures: Sequence[Image.Image], step: int) -> None:
    """By the tracker, where it is one that takes pictures."""
    for own in accelerator.trackers:
        if own.name in PICTURES:
            own.log_images({"validation": np.stack([*map(np.asarray, pictures)])}, step=step, **PICTURES[own.name])


@contextmanager
def _averaged(weights: Sequence[torch.Tensor], average: Sequence[torch.Tensor] | None) -> Iterator[None]:
    """Let the average, where there is one, stand in for the weights."""
    if average is None:
        yield
        return
    raw = [weight.detach().clone() for weight in weights]
    for weight, mean in zip(weights, average, strict=True):
        weight.data.copy_(mean)
    try:
        yield
    finally:
        for weight, own in zip(weights, raw, strict=True):
            weight.data.copy_(own)


@contextmanager
def _lent(pipe: Any, denoiser: Any, config: Any, device: torch.device, checkpointing: bool) -> Iterator[None]:
    """The denoiser with a new LoRA, and nothing but that to train. Afterwards the pipeline draws as before: with the
    LoRA, or, where the training was interrupted, without it, so that it can be trained again."""
    needed = {parameter: parameter.requires_grad for parameter in denoiser.parameters()}
    own = {name: vars(denoiser)[name] for name in PREPARED if name in vars(denoiser)}
    was_training, was_checkpointing = denoiser.training, denoiser.is_gradient_checkpointing
    denoiser.requires_grad_(False)
    denoiser.add_adapter(config)
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
    _park(pipe, denoiser)
    try:
        yield
    except BaseException:  # an interrupt in a notebook as well
        denoiser.unload_lora()
        raise
    finally:
        for name in PREPARED:
            vars(denoiser).pop(name, None)
        vars(denoiser).update(own)
        if checkpointing and not was_checkpointing:
            denoiser.disable_gradient_checkpointing()
        for parameter, value in needed.items():
            parameter.requires_grad_(value)
        denoiser.train(was_training)
        pipe.to(device)


def _park(pipe: Any, denoiser: torch.nn.Module) -> None:
    """What is not trained waits in the memory of the CPU: text encoders can be larger than the denoiser."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module) and part is not denoiser:
            part.to("cpu")


def training_schedule(scheduler: Any) -> NoiseSchedule:
    """The noise at every timestep that the model was trained on, the least noisy first.

    Raises:
        CotrunkError: a scheduler that does not say how noisy they are.
    """
    try:
        is_flow = read_schedule(scheduler, ()).kind == "flow"
    except CotrunkError as error:  # which is worded for sampling
        raise CotrunkError(
            f"{type(scheduler).__name__} does not say how noisy a timestep is: train a pipeline with another scheduler."
        ) from error
    count = int(scheduler.config.num_train_timesteps)
    # a flow at timestep 0 is the picture itself: there is nothing to learn
    return read_schedule(scheduler, [float(t) for t in (range(1, count + 1) if is_flow else range(count))])


def _seed(seed: int, step: int, place: int) -> int:
    return int(np.random.SeedSequence((seed, step, place)).generate_state(1)[0])


def _chosen(count: int, settings: TrainSettings, step: int, place: int, processes: int) -> list[int]:
    """The groups of one pass: every group once before any comes again, in an order drawn anew each time round."""
    start = (step * settings.accumulation * processes + place) * settings.batch
    orders: dict[int, np.ndarray] = {}
    chosen = []
    for at in range(start, start + settings.batch):
        round_, position = divmod(at, count)
        if round_ not in orders:
            orders[round_] = np.random.default_rng((settings.seed, round_)).permutation(count)
        chosen.append(int(orders[round_][position]))
    return chosen


def trained_share(conditions: Conditions, share: float, steps: int = 1000) -> float:
    """The part of the training timesteps that lies above the branch point of a sampling run that shares `share` of its
    steps. Where sampling steps lie evenly among the training timesteps these are the same; a shifted flow spends more
    of its steps on much noise, and how many depends on the size of the pictures: the pipeline itself is asked."""
    pipe, scheduler = conditions.pipe, copy.deepcopy(conditions.pipe.scheduler)
    with replaced(pipe, "scheduler", scheduler):
        try:
            Conditions(pipe, **conditions.arguments | {"num_inference_steps": steps}).of([""])
        except Exception:  # a scheduler that makes no schedule of so many steps (LCM): its few lie evenly
            return share
    timesteps = scheduler.timesteps
    branch = float(timesteps[min(len(timesteps) - 1, int(share * len(timesteps)))])
    return min(0.999, max(0.001, 1 - branch / scheduler.config.num_train_timesteps))


def _digest(groups: Sequence[Sequence[Pair]]) -> str:
    """Of captions and pictures: a picture that was changed has another size or time."""
    found, known = hashlib.sha256(), dict[Pair, str]()
    for group in groups:
        for pair in group:
            if pair not in known:
                known[pair] = f"{pair.caption}\n{pair.image.name} {_stamp(pair.image)}\n"
            found.update(known[pair].encode())
        found.update(b"\n")
    return found.hexdigest()[:12]


def _stamp(path: Path) -> str:
    try:
        state = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise CotrunkError(f"{path} cannot be read any more: make the groups again with cotrunk dataset.") from error
    return f"{state.st_size} {state.st_mtime_ns}"


def _save(pipe: Any, name: str, state: dict[str, torch.Tensor], settings: TrainSettings, out: Path) -> None:
    """The LoRA in diffusers' format, and a card that says how it was made."""
    shutil.rmtree(out / ".lora.part", ignore_errors=True)  # an earlier version wrote there, and may have been killed

    def write(weights: dict[str, torch.Tensor], _: str) -> None:
        content = safetensors.torch.save(weights, metadata={"format": "pt"})  # the entry that diffusers asks for
        write_bytes(out / LORA_FILE, lambda file: file.write(content))

    # as peft names them: not every layer has a name in the older style
    type(pipe).save_lora_weights(save_directory=out, save_function=write, **{f"{name}_lora_layers": state})
    loss = settings.loss
    names = {"sage": "shared sampling (SAGE, arXiv 2509.15865, equation 3)", "standard": "single pictures"}
    purpose = names[loss.objective]
    how = f"rank {settings.rank} ({settings.layers}), learning rate {settings.learning_rate:g}"
    if loss.objective == "sage":
        how += (
            f", {loss.share:.0%} of the steps shared, lambda_1 {loss.shared_weight:g}, "
            f"lambda_2 {loss.target_weight:g}, branch noise {loss.branch_noise}"
        )
        if loss.branch_noise == "trunk":
            purpose += ", with branches that start from their trunk"
    write_text(
        out / "README.md",
        f"""---
library_name: diffusers
tags: [lora, text-to-image, cotrunk]
---
# A LoRA for {type(pipe).__name__}, trained for {purpose}

Trained with cotrunk for {settings.steps} steps of {settings.batch * settings.accumulation} groups; {how}.
All settings are in `settings.json`, the losses in `losses.jsonl`.

```python
pipe.load_lora_weights("{out.name}")
```
""",
    )
