"""Weights in the prompts of rows: find them, and check that they can be read."""

from collections.abc import Iterable, Sequence

from ..errors import CotrunkError
from ..pipelines.prompt_weights import looks_weighted, parse_weights
from .prompt_row import PromptRow


def first_weighted(rows: Sequence[PromptRow]) -> int | None:
    """Return the index of the first prompt that looks weighted; None if there is none."""
    return next((i for i, row in enumerate(rows) if looks_weighted(row.prompt)), None)


def check_weights(rows: Iterable[tuple[str, PromptRow]]) -> None:
    """Check that weights in prompts and negative prompts can be read.

    Args:
        rows: where each row stands, for messages, and the row.

    Raises:
        CotrunkError: they cannot.
    """
    for where, row in rows:
        for text in filter(None, (row.prompt, row.negative_prompt)):
            try:
                parse_weights(text)
            except CotrunkError as error:
                raise CotrunkError(f"{where}: {error}") from None
