"""The exception whose message is for users, and a way to quote the exceptions of other libraries."""


class CotrunkError(ValueError):
    """Bad input: one sentence that names the thing and the remedy. The command line prints it and exits with 2."""


def first_clause(error: CotrunkError) -> str:
    """Return what a `CotrunkError` says is the matter, without the remedy."""
    return str(error).partition(": ")[0].rstrip(".")


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or the name of its class, to quote it in a sentence.

    A line that ends with a colon goes on with the next one.
    """
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    if others and first.endswith(":"):
        first = f"{first} {others[0].strip()}"
    return first.rstrip(".:")
