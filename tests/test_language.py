"""Words that CONTRIBUTING.md rules out stay out of code, tests and documents."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# pattern -> what to write instead
BANNED = {
    r"\banew\b": "again",
    r"\bmend(s|ed|ing)?\b": "correct",
    r"\bkin\b": "similar prompts",
    r"\bforetells?\b": "predicts",
    r"\bnobody('s)?\b": "name the subject, or use the passive",
    r"\bwhoever\b": "users, or name the subject",
    r"\bdear(er|est)\b": "more expensive",
    r"\bbeside\b": "next to, or in addition to",
    r"\b(for|in) want of\b": "because there is no",
    r"\bat hand\b": "available",
    r"\bit is told\b|\bis told\b|\bare told\b": "is called with",
    r"(?<!there )\b(is|are) no(?! longer\b| other\b)\b": "is not a",
    r"(?<!there )(?<!that )\bare none\b": "do not exist",
    r"\bput right\b": "corrected",
    r"\b(rows|seconds|step|steps|images|entry|forwards) an? (prompt|image|row|step|group|forward|cell|side)\b": "per",
    r"\bpictures?\b": "image",
    r"\bjudges?\b": "metric network",
}
# where such a word is right: the rules themselves, prompts and the names of others
ALLOWED = {
    "CONTRIBUTING.md": r".",
    "tests/test_language.py": r".",
}
PROMPT = re.compile(r"\b(a|an|small|red|green|blue|the) pictures? ?(of|0|\"|\{|in|')|[\"'][^\"']*\bpicture[^\"']*[\"']")
FILES = [
    *(ROOT / "src").rglob("*.py"),
    *(ROOT / "src").rglob("*.html"),
    *(ROOT / "tests").rglob("*.py"),
    *(
        each
        for kind in ("ts", "svelte", "css")
        for each in (ROOT / "page/src").rglob(f"*.{kind}")
        if ".d." not in each.name
    ),
    *(ROOT / "page/tests").glob("*.ts"),
    ROOT / "page/npm.sh",
    ROOT / "hatch_build.py",
    *(ROOT / "docs").glob("*.md"),
    ROOT / "docs" / "results" / "README.md",
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]


def banned_words(path: Path) -> list[str]:
    allowed = ALLOWED.get(str(path.relative_to(ROOT)))
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if allowed is not None and re.search(allowed, line):
            continue
        text = PROMPT.sub("", line)
        found += [
            f"line {number}: {match.group()!r} (write: {better})"
            for pattern, better in BANNED.items()
            if (match := re.search(pattern, text, re.IGNORECASE))
        ]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_english(path: Path) -> None:
    assert not banned_words(path)
