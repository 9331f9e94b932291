"""The training loop: a LoRA on the denoiser of the user's pipeline, for shared sampling (Algorithm 2 of SAGE)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import CotrunkError, first_line
from ..files import check_folder, remove_parts, write_text, writing
from ..groups import images
from ..groups.captions import Pair
from ..pipelines.identity import model_digest
from ..pipelines.image_size import image_size
from ..pipelines.lora import reads_diffusers_loras
from .batches import data_digest, groups_of_pass, pass_seed
from .checkpoint import FILE, read_checkpoint, restore_checkpoint, write_tensors
from .conditions import Conditions, moved
from .divergence import are_finite, check_finite, divergence
from .drift import warn_of_drift
from .encoded import EncodedGroups, Progress, encode
from .latents import check_vae
from .log import TERMS, Step, write_step
from .lora import averaged, lora_config, lora_file, move_rest_to_cpu, save_lora, with_new_lora, without_lora
from .loss import Terms, sage_loss
from .schedule import trained_share, training_schedule
from .settings import TrainSettings
from .tracking import log_images, tracked

PATIENCE = timedelta(days=7)  # how long processes wait for the one that encodes or generates


def train(
    pipe: Any,
    groups: Sequence[Sequence[Pair]],
    settings: TrainSettings,
    out: Path,
    *,
    on_step: Callable[[Step], None] = lambda step: None,
    on_encoded: Progress = lambda done, total: None,
    on_checkpoint: Callable[[int], Sequence[Image.Image] | None] = lambda step: None,
) -> Path:
    """Train a LoRA, write it to `out`, and return its file.

    The format is diffusers' (`pipe.load_lora_weights(out)`), or peft's for a pipeline that cannot read that.

    A run that was killed continues from its last checkpoint when it is called again with the same arguments. It ends
    with the same weights as an uninterrupted run, because the random numbers of a step depend only on its number.

    Args:
        pipe: a pipeline with its decoder and text encoders. Its denoiser gets the LoRA, and keeps it unless the
            training is interrupted.
        groups: from `dataset.read_groups`.
        out: a folder for `encoded-.../`, `checkpoint.pt`, `losses.jsonl`, `settings.json`, the LoRA and its card.
        on_step: called after every step.
        on_encoded: called with the number of images and captions encoded so far, and with their total number.
        on_checkpoint: called after every checkpoint with the number of its step. The pipeline then has the LoRA as it
            would be saved. The callback may return images of one size, which the tracker shows if it can.

    Raises:
        CotrunkError: the pipeline has a LoRA already, or no layer for one; the noise levels of its scheduler are
            unknown, or its VAE is not supported; this machine does not support the mixed precision; images are missing;
            or the folder has a run of another model, other groups or other settings, or cannot be written.
        DivergenceError: a loss or gradient is not finite. The last checkpoint is kept, and no LoRA is written.
    """
    try:
        from peft.utils import get_peft_model_state_dict
    except ImportError as error:
        raise CotrunkError("Training needs peft: pip install 'cotrunk[train]'.") from error
    schedule = training_schedule(pipe.scheduler)
    check_vae(pipe)
    check_folder(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    accelerator = _accelerator(settings, out)
    pipe.to(accelerator.device)
    sizes = {name: value for name in ("height", "width") if (value := getattr(settings, name)) is not None}
    conditions = Conditions(pipe, **sizes)
    denoiser: Any = conditions.denoiser
    if getattr(denoiser, "peft_config", None):  # training would switch it off, and saving would mix the two
        unload = "call pipe.unload_lora_weights() first, and pipe.fuse_lora() before that to train on top of it"
        remedy = unload if reads_diffusers_loras(pipe) else "load the pipeline again"
        raise CotrunkError(f"The {conditions.name} has a LoRA already: {remedy}.")
    size = image_size(pipe, settings.height, settings.width)
    run = {"pipeline": type(pipe).__name__, "model": model_digest(pipe), "data": data_digest(groups)}
    run |= {"processes": accelerator.num_processes, **json.loads(json.dumps(asdict(settings)))}
    folder = out / f"encoded-{run['data']}-{run['model']}-{size[0]}x{size[1]}-{images.READER_VERSION}"
    state = read_checkpoint(out, run)  # before encoding, which may take hours
    if accelerator.is_main_process:
        remove_parts(out)
        encode(pipe, conditions, groups, size, folder, on_encoded)
    accelerator.wait_for_everyone()
    conditions.of([""])  # every process has to learn how its pipeline calls the denoiser
    encoded = EncodedGroups(folder, groups)
    loss = replace(settings.loss, share=trained_share(conditions, settings.loss.share))
    torch.manual_seed(settings.seed)
    config = lora_config(denoiser, settings)
    with (
        with_new_lora(pipe, denoiser, config, accelerator.device, settings.gradient_checkpointing),
        tracked(accelerator, settings.tracker),
    ):
        weights = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        for weight in weights:
            weight.data = weight.data.float()  # the trained weights stay in float32 for any dtype of the model
        optimiser = torch.optim.AdamW(weights, lr=settings.learning_rate, fused=True)
        average = None if settings.ema is None else [weight.detach().clone() for weight in weights]
        first = 0 if state is None else restore_checkpoint(state, out, accelerator, denoiser, optimiser, average)
        prepared, optimiser = accelerator.prepare(denoiser, optimiser)
        conditions.model = prepared
        timesteps = torch.tensor(schedule.timesteps, device=accelerator.device)

        def denoise(noisy: torch.Tensor, steps: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
            with accelerator.autocast():
                return conditions.call(noisy.to(denoiser.dtype), timesteps[steps], named).float()

        def pre_trained(*given: Any) -> torch.Tensor:
            with without_lora(denoiser):
                return denoise(*given)

        def terms_of(number: int, part: int) -> Terms:
            """Return the loss of one pass of this process, which depends only on the numbers of step and pass."""
            place = accelerator.process_index * settings.accumulation + part
            generator = torch.Generator().manual_seed(pass_seed(settings.seed, number, place))
            chosen = groups_of_pass(len(encoded.groups), settings, number, place, accelerator.num_processes)
            is_uncaptioned = (torch.rand(len(chosen), generator=generator) < settings.caption_dropout).tolist()
            latents, named, members = encoded.batch(chosen, is_uncaptioned)
            latents = latents.to(accelerator.device, torch.float32)
            named = moved(moved(named, accelerator.device), denoiser.dtype)
            return sage_loss(denoise, latents, named, members, schedule, loss, generator, pre_trained)

        last_checkpoint = first
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
            check_finite(step, accelerator.scaler, last_checkpoint, settings, out)
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
            # a checkpoint that leads to a NaN must not replace a good one: even finite weights may give infinite losses
            if not are_finite([*weights, *(average or ())]):
                raise divergence(f"the weights after step {step.number} are", last_checkpoint, settings, out)
            with torch.no_grad():
                following = replace(step, number=number + 2, terms=_mean(accelerator, [terms_of(number + 1, 0)]))
            check_finite(following, accelerator.scaler, last_checkpoint, settings, out)
            last_checkpoint = step.number
            if accelerator.is_main_process:
                warn_of_drift(loss, out / "losses.jsonl")
                state = {"step": step.number, "lora": get_peft_model_state_dict(denoiser), "average": average}
                state |= {"optimiser": optimiser.state_dict(), "run": run}
                if accelerator.scaler is not None:
                    state["scaler"] = accelerator.scaler.state_dict()
                write_tensors(out / FILE, state)
                write_text(out / "settings.json", json.dumps(run, indent=1) + "\n")
                prepared.eval()
                pipe.to(accelerator.device)
                # autocast, because parts of several dtypes work together, as in training
                with averaged(weights, average), accelerator.autocast():
                    validation = on_checkpoint(step.number)
                if validation:
                    log_images(accelerator, validation, step.number)
                move_rest_to_cpu(pipe, denoiser)
                prepared.train()
        if average is not None:
            for mean, weight in zip(average, weights, strict=True):
                weight.data.copy_(mean)
        if accelerator.is_main_process:
            save_lora(pipe, conditions.name, get_peft_model_state_dict(denoiser), config, settings, out)
        accelerator.wait_for_everyone()  # every process returns a file that exists
        return out / lora_file(pipe)


def _accelerator(settings: TrainSettings, out: Path) -> Any:
    """Return an `Accelerator` of Hugging Face's package.

    Raises:
        CotrunkError: this machine does not support the mixed precision.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    try:
        return Accelerator(
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_steps=settings.accumulation,
            log_with=settings.tracker,
            project_dir=out,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except (ImportError, ValueError) as error:
        raise CotrunkError(
            f"mixed_precision {settings.mixed_precision!r} is not usable here ({first_line(error)}): use 'no'."
        ) from error


def _mean(accelerator: Any, passes: Sequence[Terms]) -> Terms:
    """Return the mean of the terms over the passes of all processes."""
    own = torch.stack([torch.stack([getattr(terms, name) for name in TERMS]) for terms in passes]).mean(dim=0)
    return Terms(**dict(zip(TERMS, accelerator.reduce(own, "mean"), strict=True)))
