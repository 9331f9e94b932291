"""Files and folders that options name: they are of this machine, and what is at a URL must be downloaded first."""

from typing import Any

from ..checks import shown
from ..errors import CotrunkError
from ..storage.urls import is_url, mended_url, shown_place

FILES = {"FILE", "DIR", "DIR...", "FILE|DIR", "SOURCE", "GROUPS"}  # the metavars of options that name them


def check_files(context: Any) -> None:
    """Check that no file or folder is a URL. `inputs.out_folder` checks --out, which may be one with --ray.

    Args:
        context: of a command, with the values of its options.

    Raises:
        CotrunkError: one is a URL.
    """
    for parameter in context.command.params:
        if parameter.metavar not in FILES or parameter.name == "out_name":
            continue
        value = context.params.get(parameter.name)
        for each in value if isinstance(value, list | tuple) else (value,):
            if is_url(url := mended_url(f"{each}")):
                name = f"{parameter.opts[0]} " if parameter.param_type_name == "option" else ""
                raise CotrunkError(
                    f"{name}{shown(shown_place(url))} is a URL: download what is there, and name the file or folder on "
                    "this machine."
                )
