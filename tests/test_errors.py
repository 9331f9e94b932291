"""How exceptions of libraries are quoted."""

import pytest

from cotrunk.errors import first_line


@pytest.mark.parametrize(
    ("message", "quoted"),
    [
        ("Access Denied.", "Access Denied"),
        ("no room\nat all", "no room"),
        ("Parameter validation failed:\n  Bad name\nmore", "Parameter validation failed: Bad name"),
        ("it failed:", "it failed"),
        ("", "ValueError"),
    ],
)
def test_an_exception_is_quoted_in_one_line(message: str, quoted: str) -> None:
    assert first_line(ValueError(message)) == quoted
