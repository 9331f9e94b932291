"""The page is written for the service as it is."""

from page_types import FILE, schemas


def test_the_types_of_the_page_are_those_of_the_service() -> None:
    assert FILE.read_text(encoding="utf-8") == schemas(), "run PYTHONPATH=tests python tests/page_types.py"
