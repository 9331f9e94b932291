"""Where a model comes from: it is embedded, a folder, a single file, or on the hub."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ..checks import text
from ..errors import CotrunkError, first_line
from .hub import is_folder, is_here
from .single_file import find_config, is_single_file, load_single_file

EMBEDDED = {"mini": "load", "mini-dit": "load_dit"}  # name of a model that comes with cotrunk -> function in `mini`


@dataclass(frozen=True)
class Source:
    """Where a model comes from, as a user names it.

    Attributes:
        model: "mini", "mini-dit", a folder that `save_pretrained` wrote, a `.safetensors` file, or an id on the hub.
        config: of a single file: the folder or hub id that has its configuration; None if diffusers knows it.
        revision: of a model on the hub: a branch, tag or commit.
        variant: of the weights, such as "fp16".

    Raises:
        CotrunkError: a value that is not a text.
    """

    model: str
    config: str | None = None
    revision: str | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        text("model", self.model)
        for name in ("config", "revision", "variant"):
            if getattr(self, name) is not None:
                text(name, getattr(self, name))

    @property
    def function(self) -> str | None:
        """The function in `mini` that loads an embedded model; None for any other model."""
        return EMBEDDED.get(self.model)

    def find(self) -> tuple[str, bool]:
        """Return the folder or hub id with the configuration of a model, and whether it is on this machine.

        Raises:
            CotrunkError: there is no such model, or an option that does not apply to it is given.
        """
        if self.function is not None:
            self._refuse("comes with cotrunk", "config", "revision", "variant")
            return self.model, True
        if is_single_file(self.model):
            self._refuse("is a single file", "revision", "variant")
            return find_config(self.model, self.config)
        self._refuse("is not a single file", "config")
        if is_folder(self.model):
            self._refuse("is a folder", "revision")
        return self.model, is_here(
            self.model, "model_index.json", embedded=" or ".join(EMBEDDED), revision=self.revision
        )

    def pipeline_class(self) -> type | None:
        """Return the class of the model's pipeline, from its configuration alone; None if diffusers has no such class.

        Raises:
            CotrunkError: there is no such model.
        """
        import diffusers

        if self.function is not None:
            from .. import mini

            return mini.CLASSES[self.function]
        where, local = self.find()
        revision = {} if self.revision is None else {"revision": self.revision}
        try:
            name = diffusers.DiffusionPipeline.load_config(where, local_files_only=local, **revision)["_class_name"]
        except Exception:  # loading says what is wrong
            return None
        found = getattr(diffusers, str(name), None)
        return found if isinstance(found, type) else None

    def unet_channels(self) -> int | None:
        """Return the input channels of the model's UNet, from its configuration alone; None if it has no UNet."""
        from diffusers import UNet2DConditionModel

        try:
            if self.function is not None:
                from ..mini import WEIGHTS

                config = UNet2DConditionModel.load_config(WEIGHTS / "unet") if self.model == "mini" else {}
            else:
                where, local = self.find()
                revision = {} if self.revision is None else {"revision": self.revision}
                config = UNet2DConditionModel.load_config(where, subfolder="unet", local_files_only=local, **revision)
        except (OSError, ValueError):
            return None
        return config.get("in_channels")

    def _refuse(self, why: str, *names: str) -> None:
        for name in names:
            if (value := getattr(self, name)) is not None:
                raise CotrunkError(f"{self.model} {why}, so it has no {name} {value!r}: leave --{name} out.")

    def load(self, dtype: Any, *, denoiser: bool) -> Any:
        """Load a pipeline that is not embedded.

        Args:
            dtype: returns the torch dtype for the content of `model_index.json`.
            denoiser: as for `loading.load_pipeline`.

        Raises:
            CotrunkError: there is no such model, or it is damaged.
        """
        where, local = self.find()
        from diffusers import DiffusionPipeline

        revision = {} if self.revision is None else {"revision": self.revision}
        try:
            parts = DiffusionPipeline.load_config(where, local_files_only=local, **revision)
            without = {} if denoiser else {n: None for n in ("unet", "transformer", "vae", "controlnet") if n in parts}
            options: dict[str, Any] = {"torch_dtype": dtype(parts), **without}
            if where != self.model:
                pipe = load_single_file(self.model, where, local, parts, options)
            else:
                options |= revision if self.variant is None else {**revision, "variant": self.variant}
                pipe = DiffusionPipeline.from_pretrained(self.model, local_files_only=local, **options)
            if not denoiser:
                _describe_denoisers(pipe, where, parts, local, revision)
        except CotrunkError:
            raise
        except Exception as error:  # the libraries raise many types for a folder with other contents
            embedded = " or ".join(EMBEDDED)
            use = f"use {embedded}, another hub id, or a folder that save_pretrained wrote"
            if where != self.model:
                use = "give --config DIR, a folder of the same model that has the parts that this file lacks"
            raise CotrunkError(
                f"{self.model} cannot be loaded as a diffusers pipeline ({first_line(error)}): {use}."
            ) from error
        return pipe


def _describe_denoisers(pipe: Any, model: str, parts: dict[str, Any], local: bool, revision: dict[str, str]) -> None:
    """Put the configs of its denoisers into a pipeline that was loaded without them."""
    from diffusers import AutoModel
    from diffusers.configuration_utils import FrozenDict

    from .compatibility import DENOISERS

    for name in DENOISERS:
        # a denoiser that this model does not have is None in its config too
        if getattr(pipe, name, pipe) is not None or parts.get(name, [None])[0] is None:
            continue
        try:
            config = AutoModel.load_config(model, subfolder=name, local_files_only=local, **revision)
        except (OSError, ValueError) as error:
            raise CotrunkError(
                f"The config of {model}'s {name} cannot be read ({first_line(error)}): download the whole model again."
            ) from error
        setattr(pipe, name, SimpleNamespace(config=FrozenDict(config)))
