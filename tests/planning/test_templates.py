"""Templates: the prompts that each gives, and one clear sentence for each mistake."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotrunk.errors import CotrunkError
from cotrunk.planning import templates
from cotrunk.planning.prompt_row import PromptRow
from cotrunk.planning.template_syntax import Choice, Template, parse
from cotrunk.planning.templates import expanded, first_template


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "animals.txt").write_text("# of the forest\nfox\nowl\n\nfox\n")
    (tmp_path / "birds.txt").write_text("{red|blue} __more/small__\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "small.txt").write_text("wren\n")
    (tmp_path / "endless.txt").write_text("a __round__\n")
    (tmp_path / "round.txt").write_text("b __endless__\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    return tmp_path


def prompts(template: str, wildcards: Path | None = None) -> list[str]:
    return [row.prompt for row in expanded([PromptRow(template)], ["p.txt, line 3"], wildcards)]


# what dynamicprompts 0.31.0 gives, but for spaces around options and its special characters
@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{red|green} {fox|owl}", ["red fox", "red owl", "green fox", "green owl"]),
        ("a {b|{c|d}} e", ["a b e", "a c e", "a d e"]),
        ("{a|b|a}", ["a", "b"]),
        ("{2$$a|b|c}", ["a,b", "a,c", "b,a", "b,c", "c,a", "c,b"]),
        ("{2$$a|{b|c}}", ["a,b", "a,c", "b,a", "c,a"]),
        ("{2$$ and $$a|b}", ["a and b", "b and a"]),
        ("{1-2$$+$$a|b}", ["a", "b", "a+b", "b+a"]),
        ("{-2$$a|b}", ["a", "b", "a,b", "b,a"]),
        ("{2-$$a|b}", ["a,b", "b,a"]),
        ("{0-1$$a|b} c", ["c", "a c", "b c"]),
        ("x {0.5::a|2::b}", ["x a", "x b"]),
        (
            "{|very }big { red | blue } cat",
            [f"{much}big {hue} cat" for much in ("", "very ") for hue in ("red", "blue")],
        ),
        ("50% of $5 # a__b _ a} | {a|b}", ["50% of $5 # a__b _ a} | a", "50% of $5 # a__b _ a} | b"]),
        (r"\{a\|b\} \\ \__c__ {d\|e|f}", [r"{a|b} \ __c__ d|e", r"{a|b} \ __c__ f"]),
        (r"two  spaces, \n", [r"two  spaces, \n"]),
        ("{a}" * 2000, ["a" * 2000]),
        ("(a:1.3) [b] {c|d}", ["(a:1.3) [b] c", "(a:1.3) [b] d"]),
    ],
)
def test_the_prompts_of_a_template(template: str, found: list[str]) -> None:
    assert prompts(template) == found


def test_wildcards(folder: Path) -> None:
    assert prompts("a __animals__", folder) == ["a fox", "a owl"]
    assert prompts("{2$$__animals__}", folder) == ["fox,owl", "owl,fox"]
    assert prompts("__birds__", folder) == ["red wren", "blue wren"]
    assert prompts("__more/*__ {a|__animals__}", folder) == ["wren a", "wren fox", "wren owl"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a {red", r"the brace at '\{red' is not closed; add \} or write \\\{"),
        ("a {red|{b} c", r"the brace at '\{red|\{b\} c' is not closed"),
        ("{3$$a|b}", r"takes 3 to 3 of 2 options; correct the count"),
        ("{2-1$$a|b}", r"takes 2 to 1 of 2 options"),
        ("__fish__", r"there is no file .*fish.txt for __fish__"),
        ("__../animals__", r"there is no file"),
        ("__endless__", r"the wildcard __endless__ contains itself"),
        ("__empty__", r"empty.txt holds no line for __empty__"),
        ("__latin__", r"latin.txt cannot be read .it is not UTF-8"),
        ("{|}", "the template has an empty prompt"),
        ("${x=a} {a|b}", r"variables such as '\$\{x=a\}"),
        ("{a|b}" * 17, r"the template has 131,072 prompts, and at most 100,000"),
        ("{a|b}" * 5000, r"prompts, and at most 100,000"),
        ("{9$$" + "|".join("abcdefghij") + "}", r"3,628,800 prompts"),
        ("{" * 40 + "a" + "}" * 40, "nested more than 30 times"),
    ],
)
def test_mistakes_name_the_line(folder: Path, template: str, message: str) -> None:
    with pytest.raises(CotrunkError, match=message) as caught:
        prompts(template, folder)
    assert str(caught.value).startswith("p.txt, line 3: ")
    assert "\n" not in str(caught.value)


def test_wildcards_need_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        CotrunkError, match=r"__animals__ is a wildcard; name the folder of animals.txt with --wildcards"
    ):
        prompts("__animals__")
    with pytest.raises(CotrunkError, match=r"there is no folder .*none; name the one"):
        prompts("__animals__", tmp_path / "none")


def test_the_limit_counts_all_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MOST", 5)
    rows = [PromptRow("{a|b|c}"), PromptRow("{a|b|c}")]
    assert len(expanded(rows[:1] * 1, ["line 1"], None)) == 3
    with pytest.raises(CotrunkError, match=r"^line 2: the template has 3 prompts, and at most 5"):
        expanded(rows, ["line 1", "line 2"], None)


def test_a_row_keeps_its_other_fields() -> None:
    rows = [PromptRow("{a|b} cat", "grey", seed=3, id="cat", steps=12), PromptRow("a dog", id="dog")]
    assert expanded(rows, ["line 2", "line 3"], None) == [
        PromptRow("a cat", "grey", seed=3, id="cat-1", steps=12),
        PromptRow("b cat", "grey", seed=3, id="cat-2", steps=12),
        PromptRow("a dog", id="dog"),
    ]
    assert [row.id for row in expanded([PromptRow("{1|2|3|4|5|6|7|8|9|10}", id="x")], ["line 1"], None)][:2] == [
        "x-01",
        "x-02",
    ]
    with pytest.raises(CotrunkError, match=r"line 2: id 'a-1' is also that of line 1"):
        expanded([PromptRow("{a|b}", id="a"), PromptRow("c", id="a-1")], ["line 1", "line 2"], None)


@pytest.mark.parametrize("prompt", ["{red|green} fox", "a __animals__", "{2$$a, b}"])
def test_what_looks_like_a_template(prompt: str) -> None:
    assert first_template([PromptRow("a fox"), PromptRow(prompt)]) == 1


@pytest.mark.parametrize("prompt", ["a {fox}", "a | b", "__init", "a__b", "__ a __", "{a} | {b}", "(a:1.3)"])
def test_what_does_not_look_like_a_template(prompt: str) -> None:
    assert first_template([PromptRow(prompt)]) is None


LEAVES = st.builds(lambda text: Template((text,)), st.sampled_from(["a", "b", "c", ""]))


@st.composite
def choices(draw, options):
    some = draw(st.lists(options, min_size=1, max_size=4))
    least = draw(st.integers(0, len(some)))
    return Choice(tuple(some), least, draw(st.integers(least, len(some))))


@given(st.recursive(LEAVES, lambda inner: st.builds(lambda part: Template(("x", part)), choices(inner)), max_leaves=6))
def test_the_count_is_that_of_the_texts(template: Template) -> None:
    count = template.count()
    if count <= 3000:
        assert count == sum(1 for _ in template.texts())


@given(st.text(alphabet="ab{}|$\\_2-. ", max_size=25))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with suppress(CotrunkError):
        assert parse(text, lambda name: ["line"]).count() >= 1
