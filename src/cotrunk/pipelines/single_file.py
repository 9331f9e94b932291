"""Load a pipeline from a single file, such as the checkpoints that web UIs use.

The file holds weights alone. The class of the pipeline, the sizes of its parts and its tokenizer come from a folder
that `save_pretrained` wrote, or from the hub, where diffusers knows the matching model.
"""

from pathlib import Path
from typing import Any

from ..errors import CotrunkError, first_line
from .hub import is_file, is_folder, is_here

SUFFIX = ".safetensors"
OTHER_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".gguf")  # weights that are not read: some run code when opened
V1_PREFIX = "model.diffusion_model."  # of the denoiser's weights in Stable Diffusion 1


def is_single_file(model: str) -> bool:
    """Return whether a model is named as a file of weights.

    Raises:
        CotrunkError: it is a file in a format that is not read, or one that does not exist.
    """
    suffix = Path(model).suffix.lower()
    if suffix in OTHER_SUFFIXES and is_file(model):
        raise CotrunkError(f"{model} is a {suffix} file: give a single file as {SUFFIX}, or a folder.")
    if suffix != SUFFIX or is_folder(model):
        return False
    if not is_file(model):
        raise CotrunkError(f"There is no file {model}: check its name, or use a folder or a hub id.")
    return True


def find_config(model: str, config: str | None) -> tuple[str, bool]:
    """Return the folder or hub id that has the configuration of a single file, and whether it is on disk.

    Only the names and shapes of the weights are read.

    Args:
        config: a folder or a hub id; None for the one that diffusers uses for such a file.

    Raises:
        CotrunkError: the file is damaged or not a whole model, or its configuration is nowhere.
    """
    weights = _header(model)
    if config is not None:
        return config, is_here(config, "model_index.json", embedded="a folder that save_pretrained wrote")
    if any(".lora_" in name or name.startswith("lora_") for name in weights):
        raise CotrunkError(f"{model} is a LoRA, not a model: give it with --lora, and its base model with --model.")
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, infer_diffusers_model_type

    kind = infer_diffusers_model_type(weights)
    if kind == "v1" and not any(name.startswith(V1_PREFIX) for name in weights):  # which is also diffusers' last resort
        raise CotrunkError(
            f"diffusers does not recognise the weights in {model}: give a file with a whole model, or say which model "
            "it is with --config FOLDER or hub id."
        )
    found = str(DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])
    try:
        return found, is_here(found, "model_index.json", embedded="--config DIR")
    except CotrunkError as error:
        why = f" ({first_line(error.__cause__)})" if isinstance(error.__cause__, Exception) else ""
        raise CotrunkError(
            f"{model} holds only weights, and the configuration of its model, {found}, is not on this machine"
            f"{why}: give --config DIR, a folder of this model that "
            "save_pretrained wrote (its weights are not needed), or try again with a connection."
        ) from error


def load_single_file(model: str, config: str, local: bool, parts: dict[str, Any], options: dict[str, Any]) -> Any:
    """Load the pipeline.

    Args:
        config: as from `find_config`; `local` says whether it is on disk.
        parts: the content of the configuration's `model_index.json`.
        options: for `from_single_file`.

    Raises:
        CotrunkError: the pipeline's class cannot read single files.
    """
    import diffusers

    name = str(parts.get("_class_name"))
    kind = getattr(diffusers, name, None)
    if not hasattr(kind, "from_single_file"):
        raise CotrunkError(f"diffusers cannot load {name} from a single file: give a folder or a hub id.")
    return kind.from_single_file(model, config=config, local_files_only=local, **options)  # type: ignore[union-attr]


def _header(model: str) -> dict[str, Any]:
    """Return empty tensors with the names and shapes of a file's weights."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(model, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CotrunkError(
            f"{model} is not a readable safetensors file ({first_line(error)}): download it again."
        ) from error
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
