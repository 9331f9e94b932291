"""The pipeline's own arguments: which of them have one entry per prompt."""

import hashlib
import inspect
import re
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
import torch

from ..errors import CotrunkError
from .class_tables import ONE_IMAGE_PER_PROMPT, REFERENCES, REPEATS_ITSELF

# prompt, negative_prompt_2, pooled_prompt_embeds, negative_prompt_attention_mask, prompt_embeds_t5, ...
_TEXT = re.compile(r"(negative_)?prompt(_\d)?")
_PER_PROMPT = re.compile(
    r"(negative_)?((pooled_|generated_)?prompt(_\d)?(_embeds)?(_[a-z]*\d?)?(_attention_mask|_mask)?(_\d)?|attention_mask)"
    r"|(control_|mask_|original_)?image|control_mask|transcription"
)
# these have one value for the whole call, even if it is a list or a tensor
_COMMON = re.compile(
    r"timesteps|sigmas|.*_size|.*crops_coords.*|callback.*|controlnet_.*|control_(mode|guidance).*|ip_adapter_.*|.*layers.*"
)
# parts of the prompt itself, in its several encodings
_PROMPT = re.compile(
    r"(pooled_|generated_)?prompt(_embeds)?(_[a-z]*\d?)?|(prompt_|prompt_embeds_)?(attention_)?mask(_\d)?"
)
_REPEATED = ("image", "mask_image", "masked_image_latents", "original_image")
_SET_BY_COTRUNK = {
    "generator": "seed=",
    "latents": "seed= (a group starts from one noise, made from its seed)",
    "num_images_per_prompt": "num_images_per_prompt= of generate",
    "num_waveforms_per_prompt": "num_images_per_prompt=",
    "num_videos_per_prompt": "num_images_per_prompt=",
    "return_dict": "result.output",
}


class PerPrompt:
    """The arguments of a run, divided into those with one entry per prompt and those of the whole call.

    Args:
        prompts: number of prompts.
        arguments: the user's arguments for the pipeline. A list or tensor with one entry per prompt is divided among
            the prompts; a single text, image or (1, ...) tensor belongs to all of them. An input image and its mask are
            passed once per prompt: pipelines encode a single one with the first generator, so a result would depend on
            its place in the batch.

    Attributes:
        own, common: the arguments with one entry per prompt, and those of the whole call.
        repeated: names among `own` with the same entry for all prompts.

    Raises:
        CotrunkError: cotrunk sets an argument itself, or the pipeline does not take it; its length is not the number of
            prompts; or it holds several numbers where a call takes one.
    """

    def __init__(self, pipe: Any, prompts: int, arguments: dict[str, Any]) -> None:
        parameters = inspect.signature(pipe.__call__).parameters
        for name in arguments:
            if name in _SET_BY_COTRUNK:
                raise CotrunkError(f"{name} is set by cotrunk: use {_SET_BY_COTRUNK[name]} instead.")
            if name not in parameters:
                raise CotrunkError(f"{type(pipe).__name__} takes no argument {name!r}.")
        # several ControlNets: a list with one entry per network, in the form for a single network; or, as in diffusers,
        # one list per prompt with one image per network
        nets = getattr(getattr(pipe, "controlnet", None), "nets", None)
        self.networks = len(nets) if nets is not None else 0
        self.references = type(pipe).__name__ in REFERENCES
        self.control = "control_image" if "control_image" in parameters else "image"
        starts_from_image = not parameters.keys().isdisjoint({"strength", "mask_image"})
        kind = type(pipe).__name__
        self.repeats = kind in ONE_IMAGE_PER_PROMPT or (starts_from_image and kind not in REPEATS_ITSELF)
        self.prompts = prompts
        self.arguments = {name: _plain_number(value) for name, value in arguments.items()}
        self.own: dict[str, Any] = {}
        self.common: dict[str, Any] = {}
        self.repeated: set[str] = set()
        for name, value in self.arguments.items():
            _check_is_one_number(name, value, parameters[name])
            known = _PER_PROMPT.fullmatch(name) is not None
            if self.repeats and name in _REPEATED and (one := self._one_image(name, value)) is not None:
                self.own[name] = one
                self.repeated.add(name)
            else:
                is_own = self._check(name, value) if known else self._is_batch(name, value)
                (self.own if is_own else self.common)[name] = value

    def _one_image(self, name: str, value: Any) -> Any:
        """Return a single image or mask as a list or batch of one; None if there are several, or none."""
        is_array = isinstance(value, torch.Tensor | np.ndarray)
        if self.prompts == 1 or value is None or (self.networks and name == self.control) or self.references:
            return None
        if is_array:
            # latents and pixels: (1, channels, height, width), (channels, height, width), a mask's (height, width)
            return value if value.ndim > 2 and len(value) == 1 else value[None] if value.ndim <= 3 else None
        if isinstance(value, list | tuple):
            return list(value) if len(value) == 1 else None
        return [value]

    def _is_batch(self, name: str, value: Any) -> bool:
        """Return whether an argument that cotrunk does not know by name has one entry per prompt.

        A tensor with that many rows does. A list of that length is ambiguous, so it is refused.
        """
        if self.prompts == 1 or _COMMON.fullmatch(name) or not isinstance(value, list | torch.Tensor | np.ndarray):
            return False
        if isinstance(value, list):
            if len(value) == self.prompts:
                raise CotrunkError(
                    f"{name} is a list of {len(value)}, and there are {self.prompts} prompts: cotrunk cannot tell "
                    "whether it has one entry per prompt. Give a tensor with one row per prompt, or run the prompts "
                    "in two parts."
                )
            return False
        if value.ndim > 1 and len(value) not in (1, self.prompts):
            raise CotrunkError(f"{name} has {len(value)} rows for {self.prompts} prompts: give one per prompt, or one.")
        return value.ndim > 0 and len(value) == self.prompts

    def _check(self, name: str, value: Any) -> bool:
        """Return whether the value has one entry per prompt, or can be repeated to have one; refuse other lengths."""
        if self.references and name == "image" and isinstance(value, list | tuple):
            return False
        if self.networks and name == self.control:
            if not isinstance(value, list | tuple):
                return False
            if not _is_nested(value):
                return any(self._is_list(name, v) for v in value)
            if any(not isinstance(v, list) or len(v) != self.networks for v in value):
                raise CotrunkError(f"{name} is a list of lists: give each prompt a list of {self.networks} images.")
        if isinstance(value, str):
            # pipelines need as many negative or second prompts as prompts
            return _TEXT.fullmatch(name) is not None
        if isinstance(value, torch.Tensor | np.ndarray) and value.ndim > 1 and len(value) == 1:
            return "image" not in name
        return self._is_list(name, value)

    def _is_list(self, name: str, value: Any) -> bool:
        if not isinstance(value, list | tuple | torch.Tensor | np.ndarray):
            return False
        if isinstance(value, np.ndarray | torch.Tensor) and value.ndim <= 3 and "image" in name:
            return False  # one image
        if "image" in name and len(value) == 1:
            return False
        if _TEXT.fullmatch(name) and isinstance(value, list | tuple) and len(value) == 1:
            return True  # one text for all, held in a list
        if len(value) != self.prompts:
            raise CotrunkError(
                f"{name} has {len(value)} entries for {self.prompts} prompts: give one per prompt, or one."
            )
        return True

    def of(self, prompts: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of a call for these prompts."""
        index = list(prompts)

        def pick(name: str, value: Any) -> Any:
            if isinstance(value, str):
                return [value] * len(index)
            if isinstance(value, torch.Tensor | np.ndarray):
                return value[[0] * len(index)] if len(value) == 1 else value[index]
            if self.networks and name == self.control and not _is_nested(value):
                return [pick("", v) if self._is_list(name, v) else v for v in value]
            if isinstance(value, list | tuple):
                return [value[0]] * len(index) if len(value) == 1 else [value[i] for i in index]
            return value

        own = {name: pick(name, value) for name, value in self.own.items()}
        if self.common.get("padding_mask_crop") is not None and len(index) == 1:
            # with this argument, a pipeline takes an image but not a list of one
            own |= {name: own[name][0] for name in _REPEATED if isinstance(own.get(name), list)}
        return self.common | own

    def keys(self) -> list[str]:
        """Return per prompt a digest of its other arguments: prompts that differ in it never share."""
        others = {name for name in self.own if not _PROMPT.fullmatch(name)} - self.repeated
        others |= {name for name in self.own if re.fullmatch(r"prompt_\d", name)}  # texts for further encoders
        if not others:
            return [""] * self.prompts
        return [self._digest(self.of([i]), sorted(others)) for i in range(self.prompts)]

    def identities(self, prompts: Sequence[str] | None) -> list[str]:
        """Return the identity of each prompt: its text, or a digest of its embeddings."""
        if prompts is not None:
            return list(prompts)
        embeds = sorted(name for name in self.own if name.endswith("prompt_embeds") and "negative" not in name)
        return [self._digest(self.of([i]), embeds) for i in range(self.prompts)]

    @staticmethod
    def _digest(values: dict[str, Any], names: Sequence[str]) -> str:
        digest = hashlib.blake2b(digest_size=16)

        def feed(value: Any) -> None:
            if isinstance(value, list | tuple):
                for item in value:
                    feed(item)
            elif isinstance(value, torch.Tensor):
                digest.update(value.detach().cpu().float().numpy().tobytes())
            elif isinstance(value, np.ndarray):
                digest.update(value.tobytes())
            elif hasattr(value, "tobytes"):  # a PIL image
                if value.mode == "P":  # its bytes mean nothing without the palette
                    value = value.convert("RGBA")
                digest.update(repr((value.mode, value.size)).encode() + value.tobytes())
            else:
                digest.update(repr(value).encode())
            digest.update(b"\0")

        for name in names:
            digest.update(name.encode())
            feed(values[name])
        return digest.hexdigest()


def _plain_number(value: Any) -> Any:
    """Return a number of numpy as a Python number, because some pipelines refuse numpy's."""
    return value.item() if isinstance(value, np.generic) else value


def _check_is_one_number(name: str, value: Any, parameter: inspect.Parameter) -> None:
    """Check that an argument does not hold several numbers if the pipeline takes one for the whole call.

    Raises:
        CotrunkError: it holds several.
    """
    several = isinstance(value, list | tuple) or (isinstance(value, torch.Tensor | np.ndarray) and value.ndim > 0)
    if not several:
        return
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        takes_one = isinstance(parameter.default, int | float)
    else:
        # a list[int] has an origin, and int | None is a union
        parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        takes_one = {*parts} - {NoneType} <= {bool, int, float}
    if takes_one:
        raise CotrunkError(
            f"{name} is one number for all prompts of a run, and {len(value)} are given: run the prompts with other "
            "numbers separately."
        )


def _is_nested(value: Any) -> bool:
    return any(isinstance(entry, list) for entry in value)


def needed_arguments(pipe: Any) -> dict[str, Any]:
    """Return the arguments that a pipeline with small images needs, because its defaults are made for larger models.

    PixArt and Sana round image sizes to a table that begins at 256 pixels, and pad prompts to more tokens than a small
    tokenizer takes. Their `clean_caption` rewrites prompts, but only if another package is installed.
    """
    takes = inspect.signature(pipe.__call__).parameters
    sample_size = getattr(getattr(pipe, "transformer", None), "config", {}).get("sample_size")
    if "use_resolution_binning" not in takes or sample_size is None or sample_size * pipe.vae_scale_factor >= 256:
        return {}
    needed: dict[str, Any] = {"use_resolution_binning": False}
    if "clean_caption" in takes:
        needed["clean_caption"] = False
    if "max_sequence_length" in takes and getattr(pipe, "tokenizer", None) is not None:
        needed["max_sequence_length"] = min(takes["max_sequence_length"].default, pipe.tokenizer.model_max_length)
    return needed
