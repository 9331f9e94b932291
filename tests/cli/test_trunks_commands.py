"""`cotrunk trunks`: fill, list, verify and remove."""

from pathlib import Path
from typing import Any

import pytest
from command import PROMPTS, QUICK, assert_refused, cotrunk, read
from trunk_caches import KEY, directions, put

from cotrunk.trunks.access import Trunks
from cotrunk.trunks.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a cache with trunks of two owners, a stem, and remembered prompts."""
    folder = tmp_path / "trunks"
    ann = Trunks(folder, owner="ann")
    put(ann, "a red fox", "a grey fox", at=(0, 5))
    put(ann.for_owner("bob"), "a [bold] owl\x1b[31m", at=(30,), seed=1)
    put(ann.for_stems(), "a tree", "an oak", at=(60, 65), seed=2)
    ann.remember(KEY, "ann's prompt", directions(90)[0])
    ann.for_owner("bob").remember(KEY, "bob's prompt", directions(120)[0])
    ann.load(KEY, ann.find(KEY, directions(2), 0.9).recipe)
    ann.backing.index.close()
    return folder


def members(folder: Path) -> list[str]:
    return [entry.recipe.members[0] for entry in Trunks(folder).backing.index.entries()]


def test_ls_shows_trunks_of_most_worth_first(folder: Path) -> None:
    outcome = cotrunk("trunks", "ls", "--trunks", folder)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["trunk", "owner", "prompts", "steps", "size", "uses", "stored"]
    assert lines[1].split()[1:5] == ["ann", "a", "red", "fox"]
    assert lines[2].split() == ["a", "grey", "fox"]
    assert "\\x1b[31m" in outcome.out
    assert "(stems)" in outcome.out
    assert lines[-1].startswith("3 trunks, ")
    assert lines[-1].endswith("used 1 time; 2 prompts without a similar one are remembered.")


def test_ls_of_one_owner_and_of_few_trunks(folder: Path) -> None:
    outcome = cotrunk("trunks", "ls", "--trunks", folder, "--owner", "bob")
    assert "owl" in outcome.out
    assert "fox" not in outcome.out
    assert (
        "... and 2 more trunks (--show 3 prints them all)"
        in cotrunk("trunks", "ls", "--trunks", folder, "--show", 1).out
    )


def test_verify_removes_what_is_damaged(folder: Path) -> None:
    whole = cotrunk("trunks", "verify", "--trunks", folder)
    assert (whole.code, whole.out) == (0, "3 trunks are whole.\n")
    path = min(folder.glob("*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    outcome = cotrunk("trunks", "verify", "--trunks", folder)
    assert (outcome.code, outcome.out) == (1, "2 trunks are whole.\n")
    assert outcome.err.startswith(f"removed: trunk {path.name[:12]} of '")
    assert outcome.err.endswith("its file is damaged\n")
    assert not path.exists()
    assert cotrunk("trunks", "verify", "--trunks", folder).code == 0


@pytest.mark.parametrize(
    ("options", "left", "prompts"),
    [
        (("--owner", "ann"), ["a [bold] owl\x1b[31m", "a tree"], 1),
        (("--stems",), ["a red fox", "a [bold] owl\x1b[31m"], 2),
        (("--all",), [], 0),
        (("--older-than", "1"), ["a red fox", "a [bold] owl\x1b[31m", "a tree"], 2),
        (("--older-than", "0"), [], 0),
    ],
)
def test_rm_removes_what_is_named(folder: Path, options: tuple[str, ...], left: list[str], prompts: int) -> None:
    outcome = cotrunk("trunks", "rm", "--trunks", folder, *options)
    assert outcome.code == 0
    assert outcome.out.startswith(f"{3 - len(left)} trunk")
    assert members(folder) == left
    assert Trunks(folder).backing.index.count_ghosts() == prompts
    assert len([*folder.glob("*/*.safetensors")]) == len(left)


def test_rm_of_an_owner_removes_trunks_of_others_with_its_words(tmp_path: Path) -> None:
    ann = Trunks(tmp_path, owner="ann", mode="shared")
    ann.remember(KEY, "ann's prompt", directions(0)[0])
    put(ann.for_owner("bob"), "ann's prompt", "bob's prompt", at=(0, 5))
    put(ann.for_owner("bob"), "bob's other prompt", at=(30,), seed=1)
    assert cotrunk("trunks", "rm", "--trunks", tmp_path, "--owner", "ann").code == 0
    assert members(tmp_path) == ["bob's other prompt"]


def test_rm_of_one_trunk(folder: Path) -> None:
    digest = Trunks(folder).backing.index.entries()[1].digest
    outcome = cotrunk("trunks", "rm", digest[:12], "--trunks", folder)
    assert outcome.out.endswith("and 0 remembered prompts was removed.\n")
    assert members(folder) == ["a red fox", "a tree"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ls",), "Missing --trunks DIR"),
        (("verify",), "Missing --trunks DIR"),
        (("rm", "--all"), "Missing --trunks DIR"),
        (("ls", "--trunks", "absent"), "There is no trunk cache in absent: name the folder of one"),
        (("verify", "--trunks", "absent"), "There is no trunk cache in absent"),
        (("rm", "--all", "--trunks", "absent"), "There is no trunk cache in absent"),
        (("rm", "--trunks", "absent"), "Nothing to remove is named"),
        (("rm", "--older-than", "-1", "--trunks", "absent"), "--older-than -1.0 is out of range"),
        (("ls", "--show", "-1", "--trunks", "absent"), "--show -1 is out of range"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, monkeypatch: Any, words: tuple[str, ...], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(cotrunk("trunks", *words), said)
    assert not [*tmp_path.iterdir()]


def test_a_digest_that_names_no_trunk_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(cotrunk("trunks", "rm", "ffffffff", "--trunks", folder), "ffffffff names no trunk")
    assert_refused(cotrunk("trunks", "rm", "f", "--trunks", folder), "f names no trunk")
    monkeypatch.setattr(Store, "digest", lambda self, space, key, recipe: f"abcd{recipe.seed:060}")
    for seed in (5, 6):
        put(Trunks(folder), "x", at=(0,), seed=seed)
    assert_refused(cotrunk("trunks", "rm", "abcd", "--trunks", folder), "abcd names 2 trunks: give more of it")
    assert len(members(folder)) == 5


def test_warm_makes_trunks_for_later_runs_and_continues(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "trunks"
    warm = ("trunks", "warm", *PROMPTS, *QUICK, "--trunks", folder)
    first = cotrunk(*warm)
    assert first.code == 0, first.err
    assert first.out.startswith(
        "3 trunks stored, 0 were there (2 of similar prompts, 1 of single ones): 3 denoiser rows"
    )
    assert "Similar prompts replay up to 1 of 3 steps." in first.out
    assert {entry.space for entry in Trunks(folder).backing.index.entries()} == {"stems"}
    min(folder.glob("*/*.safetensors")).unlink()
    again = cotrunk(*warm)
    assert again.out.startswith(
        "1 trunk stored, 2 were there (2 of similar prompts, 1 of single ones): 1 denoiser rows"
    )
    assert cotrunk(*warm).out.startswith("0 trunks stored, 3 were there")

    run = ("generate", "a blue apple", "a big violin", *QUICK, "--out", tmp_path / "run", "--trunks", folder)
    assert cotrunk(*run).code == 0
    report = read(tmp_path / "run")
    assert report["rows"]["spared"]["replay"] > 0
    replayed = [group["trunk"] for group in report["groups"]]
    assert all(trunk["is_stored"] for trunk in replayed)
    assert ["a violin"] in [trunk["recipe"]["members"] for trunk in replayed]


def test_warm_of_other_settings_makes_other_trunks(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    warm = ("trunks", "warm", *PROMPTS[:2], *QUICK, "--trunks", tmp_path / "trunks")
    for options in ((), ("--negative", "dark"), ("--no-skip",), ("--scheduler", "euler"), ("--steps", "5")):
        given = (
            (*warm[:-2], *options, *warm[-2:])
            if "--steps" not in options
            else ("trunks", "warm", *PROMPTS[:2], "--steps", "5", "--share", "0.4", "--guidance", "3", *warm[-2:])
        )
        outcome = cotrunk(*given)
        assert outcome.out.startswith("1 trunk stored, 0 were there"), (options, outcome)


def test_warm_says_what_it_cannot_do(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing = cotrunk("trunks", "warm", *PROMPTS[:2], "--steps", "3", "--trunks", tmp_path / "a")
    assert (nothing.code, nothing.out.splitlines()[1]) == (0, "No step is shared: raise --share or --steps.")
    assert_refused(cotrunk("trunks", "warm", *PROMPTS[:2]), "Missing --trunks DIR")
    assert_refused(cotrunk("trunks", "warm", "--trunks", tmp_path / "b"), "Give prompts either as arguments or with")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert_refused(cotrunk("trunks", "warm", *PROMPTS[:2], "--trunks", tmp_path / "file"), "Choose another --trunks")
    assert not (tmp_path / "b").exists()
