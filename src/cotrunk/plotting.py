"""Figures that are written to files, and the logarithmic axis that several of them use."""

from typing import Any

from .errors import CotrunkError


def log_axis(panel: Any) -> None:
    """Give a panel a logarithmic horizontal axis with plain numbers on it."""
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())


def new_figure(**settings: Any) -> Any:
    """Return a matplotlib figure that needs no screen.

    Raises:
        CotrunkError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CotrunkError("Figures need matplotlib: pip install 'cotrunk[evaluate]'.") from error
    return Figure(**settings)
