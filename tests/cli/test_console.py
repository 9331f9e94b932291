"""What reaches the terminal: text of others is shown, and cannot control the terminal."""

import io
import json
import re
import unicodedata
from pathlib import Path

import pytest
from command import assert_refused, cotrunk, pipeline
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape
from rich.progress import Progress, TextColumn
from rich.table import Table

from cotrunk.cli import console
from cotrunk.cli.console import visible

# set the title, the clipboard, a link; erase the screen; C1 controls; bell, backspace; text direction; zero width;
# half a surrogate pair; a tag character
HOSTILE = [
    *("\x1b]0;pwned\x1b\\", "\x1b]52;c;cHduZWQ=\x07", "\x1b]8;;http://x\x1b\\", "\x1b[2J"),
    *("\x9b2J", "\x9d0;x\x9c", "\x07", "\x08", "\x7f", "\r", "\x0b", "\x0c", "\x00"),
    *("\u202e", "\u2066", "\u061c", "\u200b", "\u200d", "\u2060", "\ufeff", "\xad", "\u2028"),
    *("\udcff", "\U000e0041", "\ue000"),
]
MARKUP = ["[b]", "[/]", "\\", "[link=x]", "[\x1b]", "[red\x1b[0m]"]
ALLOWED = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # what rich itself writes to a terminal


def unsafe(text: str) -> list[str]:
    return [c for c in text if c != "\n" and unicodedata.category(c) in console.UNSAFE]


def test_control_and_invisible_characters_are_spelled_out() -> None:
    assert visible("\x1b[2J \x9b \u202e \udcff \U000e0041") == r"\x1b[2J \x9b \u202e \udcff \U000e0041"
    kept = "a red cat, naïve café, 日本\u3000の庭, 🦊, e\u0301, قطة, \tx\n"
    assert visible(kept) == kept


@given(st.lists(st.sampled_from([*HOSTILE, *MARKUP, "cat", " ", "é"]) | st.characters(), max_size=12).map("".join))
def test_no_print_writes_a_character_that_controls_the_terminal(text: str) -> None:
    for terminal in (False, True):
        stream = io.StringIO()
        shown = console._Console(file=stream, highlight=False, force_terminal=terminal, width=60)
        shown.print(escape(text), soft_wrap=True)
        shown.print(text, markup=False)
        table = Table("name", box=None)
        table.add_row(escape(text))
        shown.print(table)
        with shown.status(escape(text)):
            pass
        with Progress(TextColumn("{task.description}"), console=shown) as bar:
            bar.add_task(escape(text), total=1)
        written = ALLOWED.sub("", stream.getvalue()) if terminal else stream.getvalue()
        assert unsafe(written.replace("\r", "")) == []


def test_tables_leave_room_for_characters_that_are_spelled_out() -> None:
    stream = io.StringIO()
    table = Table("name", "rows", box=None)
    table.add_row("\u200b" * 6 + " cat", "7")
    console._Console(file=stream, width=60).print(table)
    assert r"\u200b" * 6 + " cat" in stream.getvalue()


@given(st.lists(st.sampled_from([*HOSTILE, *MARKUP, "\n", "\t", "cat "]), max_size=8).map("".join))
def test_a_message_is_printed_on_one_line(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stream = io.StringIO()
        patch.setattr(console, "err", console._Console(file=stream, highlight=False, width=40))
        console.say("red", "error", text)
    spelled = visible(text.translate(console.MARKS_OF_LINES))
    assert stream.getvalue() == f"error: {spelled}\n"


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_name_in_an_error(hostile: str, tmp_path: Path) -> None:
    if hostile != "\x00":  # no argument holds it
        for given in (("--model", f"a{hostile}b"), ("--prompts", f"a{hostile}b.txt"), ("--mode", hostile)):
            outcome = cotrunk("plan", *given, *(["a cat"] if given[0] != "--prompts" else []))
            assert_refused(outcome)
            assert unsafe(outcome.err) == []


def test_hostile_prompts_in_a_table_and_in_warnings(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model.setattr(pipeline().unet, "forward", lambda *_, **__: pytest.fail("denoised"))
    prompts = [f"a red{hostile}cat" for hostile in HOSTILE if hostile not in ("\udcff", "\x00")]
    prompts += [f"a red cat {hostile} " + "very " * 99 for hostile in ("\x1b[2J", "\u202e")]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, prompts)), encoding="utf-8")
    outcome = cotrunk("plan", "--prompts", tmp_path / "p.jsonl", "--similarity", "-1", "--max-group", 0)
    assert outcome.code == 0, outcome.err
    assert unsafe(outcome.out + outcome.err) == []
    assert r"\x1b]0;pwned\x1b\cat" in outcome.out
    assert r"a red cat \u202e very" in outcome.err
    assert "warning" in outcome.err
