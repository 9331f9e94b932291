"""`cotrunk generate --shard` and `cotrunk merge`: several processes make one run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import PROMPTS, QUICK, ROUNDING, Outcome, assert_refused, cotrunk, no_model, one_model, pixels, read
from hypothesis import given
from hypothesis import strategies as st

from cotrunk.errors import CotrunkError
from cotrunk.runs.job import Job
from cotrunk.runs.job_plan import load_job_plan
from cotrunk.runs.shard import Shard


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a plan of the prompts."""
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    with pytest.MonkeyPatch.context() as patch:
        one_model(patch)
        outcome = cotrunk("plan", *PROMPTS, *QUICK, "--save", file)
    assert outcome.code == 0, outcome.err
    return file


@pytest.fixture(scope="module")
def shares(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the folders of both shares of a run."""
    folder = tmp_path_factory.mktemp("shares")
    with pytest.MonkeyPatch.context() as patch:
        one_model(patch)
        for number in (1, 2):
            outcome = share(f"{number}/2", folder / str(number), "--plan", plan)
            assert outcome.code == 0, outcome.err
            assert f"share {number}/2" in outcome.err
    return [folder / "1", folder / "2"]


def share(shard: str, out: Path, *options: object) -> Outcome:
    return cotrunk("generate", *PROMPTS, *QUICK, "--out", out, "--shard", shard, *options)


def test_shares_join_to_the_run_of_one_machine(
    model: pytest.MonkeyPatch, plan: Path, shares: list[Path], tmp_path: Path
) -> None:
    whole, merged = tmp_path / "whole", tmp_path / "merged"
    assert cotrunk("generate", *PROMPTS, *QUICK, "--out", whole, "--plan", plan).code == 0
    names = [sorted(path.name for path in (folder / "images").iterdir()) for folder in shares]
    assert sorted(names[0] + names[1]) == [f"{i:05}.png" for i in range(6)]
    assert all(not (folder / "index.html").exists() for folder in shares)

    outcome = cotrunk("merge", *reversed(shares), "--out", merged)

    assert outcome.code == 0, outcome.err
    assert "6 images for" in outcome.out
    for i in range(6):
        one, other = (pixels(folder / f"images/{i:05}.png").astype(int) for folder in (whole, merged))
        assert np.abs(one - other).max() <= ROUNDING
    assert without_times(read(whole)) == without_times(read(merged))
    assert (merged / "index.html").exists()
    assert (merged / "plan.json").read_bytes() == plan.read_bytes()
    again = cotrunk("generate", *PROMPTS, *QUICK, "--out", merged, "--resume")  # nothing is left to do
    assert again.code == 0, again.err


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name != "seconds"}


def test_there_may_be_more_shares_than_groups(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = [tmp_path / "1", tmp_path / "2"]
    for number, folder in enumerate(folders, 1):
        options = ("--out", folder, "--shard", f"{number}/2")
        assert cotrunk("generate", *PROMPTS[:2], *QUICK, *options).code == 0
    outcome = cotrunk("merge", *folders, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "2 images for" in outcome.out


def test_a_merge_that_was_stopped_is_started_again(shares: list[Path], tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    assert cotrunk("merge", *shares, "--out", merged).code == 0
    (merged / "run.json").unlink()
    (merged / "images/00001.png").unlink()
    (merged / "images/.00002.png.7.cotrunk-part").write_bytes(b"half")
    assert cotrunk("merge", *shares, "--out", merged).code == 0
    assert sorted(path.name for path in (merged / "images").iterdir()) == [f"{i:05}.png" for i in range(6)]
    assert_refused(cotrunk("merge", *shares, "--out", merged), f"{merged} already holds a run: choose another --out.")


def test_shares_that_do_not_belong_together(
    model: pytest.MonkeyPatch, plan: Path, shares: list[Path], tmp_path: Path
) -> None:
    one, _ = shares
    out = tmp_path / "merged"

    def refused(*folders: Path, said: str) -> None:
        assert_refused(cotrunk("merge", *folders, "--out", out), said)
        assert not out.exists()

    refused(one, said="1 share missing (2/2): give the folders of all shares.")
    refused(one, one, said="hold the same share 1/2: give one of them.")
    refused(one, tmp_path, said=f"{tmp_path} holds no run: give the folder of a share")
    third = tmp_path / "third"
    assert share("2/3", third, "--plan", plan).code == 0
    refused(one, third, said="are of different divisions")
    whole = tmp_path / "whole"
    assert cotrunk("generate", *PROMPTS[:2], *QUICK, "--out", whole).code == 0
    refused(one, whole, said=f"The run in {whole} is not a share of a run")
    other = tmp_path / "other"
    assert share("2/2", other, "--plan", plan, "--negative", "fog").code == 0
    refused(one, other, said="differ in negative_prompt (None and 'fog'): they are not one run.")
    seeds = tmp_path / "seeds"
    assert share("2/2", seeds).code == 0
    changed = json.loads((seeds / "plan.json").read_text())
    changed["seeds"] = [seed + 1 for seed in changed["seeds"]]
    (seeds / "plan.json").write_text(json.dumps(changed))
    refused(one, seeds, said="follow different plans: make one with cotrunk plan --save PLAN")


def test_a_share_that_is_not_finished(shares: list[Path], plan: Path, tmp_path: Path) -> None:
    lost = sorted((shares[1] / "images").iterdir())[0]
    content = lost.read_bytes()
    lost.write_bytes(b"damaged")
    try:
        outcome = cotrunk("merge", *shares, "--out", tmp_path / "merged")
    finally:
        lost.write_bytes(content)
    assert_refused(outcome, f"share 2/2 in {shares[1]} lacks", "finish it with --resume.")


def test_bad_shares(monkeypatch: pytest.MonkeyPatch, plan: Path, tmp_path: Path) -> None:
    no_model(monkeypatch)
    out = tmp_path / "run"
    assert_refused(share("3", out), "shard '3' is not a share: use I/N, such as 3/16 for the third of 16.")
    assert_refused(share("0/4", out), "shard (of 4) 0 is out of range: use a whole number from 1 to 4.")
    assert_refused(share("5/4", out), "shard (of 4) 5 is out of range")
    assert_refused(share("1/0", out), "the number of shards 0 is out of range")
    assert_refused(share("1/2", out, "--compare"), "A share of a run cannot be compared")
    assert_refused(share("1/2", out, "--retry-failed"), "merge them, then retry")
    given = ("--out", out, "--plan", plan)
    assert_refused(cotrunk("generate", "a cat", *given), "is for more prompts than there are")
    assert_refused(cotrunk("generate", *PROMPTS[:5], "a cat", *given), f"The plan {plan} is for other prompts")
    assert_refused(cotrunk("generate", *PROMPTS, "a cat", *given), f"The plan {plan} is for other prompts")
    assert_refused(share("1/2", out, "--plan", tmp_path / "none.json"), "Cannot read the plan")
    assert not out.exists()


def test_a_share_is_resumed_as_the_same_share(model: pytest.MonkeyPatch, plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "share"
    assert share("1/2", out, "--plan", plan).code == 0
    lost = sorted((out / "images").iterdir())[0]
    before = pixels(lost).astype(int)
    lost.unlink()
    assert_refused(share("2/2", out, "--resume"), "was started with shard")
    assert share("1/2", out, "--resume").code == 0
    assert np.abs(pixels(lost).astype(int) - before).max() <= ROUNDING


@given(st.integers(1, 12))
def test_shares_divide_whole_groups_evenly(plan: Path, of: int) -> None:
    whole = load_job_plan(plan, Job(tuple(PROMPTS)))
    [part] = whole.parts
    shares = [whole.images_of(Shard(number, of))[0] for number in range(1, of + 1)]
    assert sorted(image for share in shares for image in share) == list(range(6))
    for share in shares:
        part.plan.select(share)  # refuses a part of a group
    rows = sorted(part.plan.cost_of(part.plan.select(share)).used for share in shares)
    assert rows[-1] - rows[0] <= max(part.plan.cost_of([tree]).used for tree in part.plan.trees)


def test_shards_in_json() -> None:
    job = Job(("a cat",), shard=Shard(2, 3))
    assert Job.from_json(job.to_json()) == job
    for wrong in ({"number": 4, "of": 3}, {"of": 3}, {"number": 1}, {"number": 1, "of": 3, "more": 1}):
        with pytest.raises(CotrunkError, match="shard"):
            Job.from_json({**job.to_json(), "shard": wrong})
