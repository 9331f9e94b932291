"""Numbers, durations and lists as words for the page."""

from html import escape


def safe(value: object) -> str:
    """Return a value as escaped text."""
    return escape(str(value))


def count(number: int, noun: str) -> str:
    """Return "1 image" or "1,234 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def amount(value: float) -> str:
    """Return a number with one decimal, unless it is whole or large."""
    return f"{value:,.0f}" if value >= 1000 or value == round(value) else f"{value:,.1f}"


def percent(share: float) -> str:
    """Return a fraction in percent, with a narrow space."""
    return f"{100 * share:.1f}".removesuffix(".0") + "\u202f%"


def listed(words: list[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} hours {minutes % 60} minutes"
