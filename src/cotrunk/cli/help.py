"""The help of a command: the most needed options with `-h`, all of them with `--help-all`.

An option states where it belongs by its panel (`options.option`). `-h` shows the panel of common options. A command
with few options shows them all.
"""

import copy
from typing import Any

from typer.core import TyperCommand, TyperGroup

from .options import COMMON

FEW = 12  # a command with at most so many options has one help
ALL = "--help-all"


class PlainHelp:
    """Help without the types of Python: `<bool>` for a flag, `<list[str]>` for prompts."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = lambda ctx: None
            elif parameter.name == "help":
                parameter.metavar, parameter.rich_help_panel = "", COMMON
        return parameters


class HelpGroup(PlainHelp, TyperGroup):
    """The list of commands."""


class HelpCommand(PlainHelp, TyperCommand):
    """A command with a short help and one of all options."""

    _shows_all: Any = None

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with `--help-all` where the command has many options."""
        parameters = super().get_params(ctx)
        if not (rare := _rare(parameters)):
            return parameters
        if self._shows_all is None:  # made once, because the parser compares options by identity
            self._shows_all = self._all_of(ctx, len(rare))
        return [*parameters, self._shows_all]

    def _all_of(self, ctx: Any, rare: int) -> Any:
        shows_all: Any = copy.copy(self.get_help_option(ctx))
        shows_all.name, shows_all.opts, shows_all.secondary_opts = "help_all", [ALL], []
        shows_all.help = f"Show all options, {rare} more, and exit."
        shows_all.metavar, shows_all.rich_help_panel = "", COMMON
        shows_all.callback = _show_all
        return shows_all

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; the short one unless `--help-all` is given."""
        hidden = [] if ctx.meta.get(ALL) else _rare(super().get_params(ctx))
        for parameter in hidden:
            parameter.hidden = True
        try:
            super().format_help(ctx, formatter)
        finally:
            for parameter in hidden:
                parameter.hidden = False


def _rare(parameters: list[Any]) -> list[Any]:
    """Return the options that the short help leaves out."""
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    return [option for option in options if option.rich_help_panel != COMMON] if len(options) > FEW else []


def _show_all(ctx: Any, _: Any, is_given: bool) -> None:
    if is_given and not ctx.resilient_parsing:
        ctx.meta[ALL] = True
        print(ctx.get_help(), end="")
        ctx.exit()
