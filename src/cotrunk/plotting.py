"""Figures without a screen, and axes in common."""

from typing import Any

from .errors import CotrunkError


def log_axis(panel: Any) -> None:
    """A horizontal axis of ratios with plain numbers on it."""
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())


def new_figure(**settings: Any) -> Any:
    """A figure of matplotlib, which draws to files alone."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CotrunkError("Figures need matplotlib: pip install 'cotrunk[evaluate]'.") from error
    return Figure(**settings)
