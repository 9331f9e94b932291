"""The command line: one module per command.

Heavy modules are imported inside the commands, so that `cotrunk --help` answers at once.
"""

import io
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import CotrunkError
from .console import out, say
from .dataset import dataset
from .evaluate import evaluate
from .export import export
from .files import check_files
from .generate import generate
from .help import HelpCommand, HelpGroup
from .keys import add as add_key
from .keys import ls as list_keys
from .keys import rm as remove_key
from .merge import merge
from .options import COMMON, option
from .plan import plan
from .redo import redo
from .serve import serve
from .train import train
from .trunks import ls as list_trunks
from .trunks import rm as remove_trunks
from .trunks import verify as verify_trunks
from .tune import tune
from .warm import warm


class _Command(HelpCommand):
    """A command that accepts each option once, where Typer would silently keep the last value, and no URL as a file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: Counter[Any] = Counter(self.make_parser(ctx).parse_args(args=list(args))[2])  # one entry per occurrence
        for parameter, count in given.items():
            is_single = parameter.param_type_name == "option" and not parameter.multiple and not parameter.is_flag
            if is_single and count > 1:
                raise CotrunkError(f"{parameter.opts[0]} is given {count} times: give it once.")
        left = super().parse_args(ctx, args)
        check_files(ctx)
        return left


app = typer.Typer(
    cls=HelpGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Generate many images from many prompts with fewer denoiser evaluations: similar prompts share early steps.",
)


@app.callback(invoke_without_command=True)
def cotrunk(
    version: Annotated[bool, option(COMMON, "", "Print the version and stop.", "--version")] = False,
) -> None:
    """Print the version, or leave the work to the command."""
    if version:
        out.print(f"cotrunk {__version__}")
        raise typer.Exit


def _group(name: str, text: str, **commands: Callable[..., None]) -> None:
    """Add commands of two words, such as `cotrunk keys add`."""
    group = typer.Typer(
        cls=HelpGroup,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
        help=text,
    )
    for second, command in commands.items():
        group.command(second, cls=_Command)(command)
    app.add_typer(group, name=name)


for command in (generate, redo, merge, export, plan, tune, serve, dataset, train, evaluate):
    app.command(cls=_Command)(command)
_group("keys", "Say who may use a service: add, list and remove keys.", add=add_key, ls=list_keys, rm=remove_key)
_group(
    "trunks",
    "Look after a trunk cache: fill it, and list, verify and remove the trunks that late prompts share.",
    warm=warm,
    ls=list_trunks,
    verify=verify_trunks,
    rm=remove_trunks,
)


def main() -> None:
    """Entry point: a `CotrunkError` is one sentence on standard error and exit code 2."""
    # These libraries comment on loading and on long prompts, which does not help users or is said better here.
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack some characters: spell them out
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except CotrunkError as error:
        say("red", "error", str(error))
        sys.exit(2)
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not be imported yet
            raise
        say(
            "red",
            "error",
            "There is too little memory, even for one group at a time: use --dtype float16 or a smaller --model.",
        )
        sys.exit(2)
