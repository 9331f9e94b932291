"""The folder of a run: images as they finish, plan.json, the journal, run.json, index.html; and how a run resumes.

    DIR/images/00000.png ...   prompt, seed, group and rows are in the text of the PNG
    DIR/compare/ARM/00000.png  for a job with `compare`: the same images made independently
    DIR/plan.json              what is shared; decides everything that follows
    DIR/journal.jsonl          one line per finished batch; what a resumed run reads
    DIR/run.json               the report; DIR/index.html shows it to people
    DIR/.cotrunk.lock          present while a command writes to the folder (see `lock`)

What a kill, a crash or a power cut can lose:

- The batch in progress, and no more. A batch is sized to take about `BATCH_SECONDS`, by the speed of the batch before
  it. The first batch is one group, because no speed is known yet. A group is never cut: one that takes longer than
  that can be lost as a whole.
- No file is ever half written. Every file but the journal is written under a temporary name and renamed. A torn last
  line of the journal is ignored.

A resumed run takes a batch as finished if it has a line in the journal and if every image file is as it was written.
The line holds a digest of each file (BLAKE2b, 128 bits). A batch with a lost, damaged or replaced file is computed
again, and so is one whose line is damaged.

Two commands never write to one folder at a time: the second is refused at once, whether it resumes or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from ..errors import CotrunkError
from ..execution import Batch
from ..files import check_folder, read_json, write_text, writing
from ..planning.plan import Plan
from ..planning.tree import Real, Steps, Text
from . import journal
from .arm import Arm, compared_arm, main_arm
from .images import ImageFiles
from .job import Job
from .journal import Journal, Progress
from .page import write_page
from .report import FORMAT, PipelineFacts, RunReport, Seconds, build_report

BATCH_SECONDS = 60.0  # about how long a batch takes: the most that a kill can lose
CONTENT = ("run.json", "plan.json", journal.NAME, "images", "compare", "index.html")  # what a run writes to its folder


@dataclass(frozen=True)
class _Compared:
    steps: Steps


@dataclass(frozen=True)
class _Head:
    """The part of run.json that is read again; the rest follows from the plan and the journal."""

    status: Text
    pipeline: PipelineFacts
    seconds: dict[Literal["load", "embed", "denoise", "decode", "total"], Real]
    versions: dict[Text, Text]
    compare: dict[Literal["independent", "equal_cost"], _Compared] = field(default_factory=dict)


_HEAD = TypeAdapter(_Head)


class RunFolder:
    """Reads and writes the folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = ImageFiles(path)
        self._journal = Journal(path, self.files)

    def open(self, job: Job, *, resume: bool) -> bool:
        """Make the folder, or check that it holds an earlier part of this very job. Return whether there is a plan to
        resume.

        Raises:
            CotrunkError: it cannot be written, or holds another run.
        """
        check_folder(self.path)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        found = [name for name in CONTENT if (self.path / name).exists()]
        if not found:
            return False
        if not resume:
            raise CotrunkError(
                f"{self.path} already holds a run ({', '.join(found)}): choose another --out, or continue that run "
                "with --resume."
            )
        _, before = self._read()
        for name, then, now in before.differences(job):
            short = name.rpartition(".")[2].replace("_", " ")
            if isinstance(then, dict) or isinstance(now, dict):  # a group of settings, and None for no such group
                then, now = ("off" if value is None else "on" for value in (then, now))
            else:
                then, now = repr(then), repr(now)
            what = "other prompts" if name == "prompts" else f"{short} {then}, not {now}"
            raise CotrunkError(
                f"The run in {self.path} was started with {what}: resume it with the same settings, or choose another "
                "--out."
            )
        return (self.path / "plan.json").exists()

    def check_dtype(self, dtype: str) -> None:
        """Check that a resumed run continues in the precision it began in. Otherwise its images would differ.

        Raises:
            CotrunkError: the precision is another.
        """
        pipeline = self._read()[0].get("pipeline")
        before = pipeline.get("dtype", dtype) if isinstance(pipeline, dict) else dtype
        if before != dtype:
            raise CotrunkError(
                f"The run in {self.path} was started in {before} and would continue in {dtype}: add --dtype {before}, "
                "or choose another --out."
            )

    def finished(self) -> RunReport | None:
        """Return the report of a run that is finished, after writing its page again.

        Returns None if anything is left to do. This includes a run.json that is damaged: resuming writes it again.
        """
        content, job = self._read()
        try:
            head = _HEAD.validate_python(content)
        except ValidationError:
            return None
        if head.status == "running" or (job.compare and not head.compare):
            return None
        plan = Plan.load(self.path / "plan.json")
        arms = [main_arm(plan)]
        arms += [compared_arm(name, plan.independent(arm.steps)) for name, arm in head.compare.items()]
        report = build_report(job, head.pipeline, arms, self._progress(arms), {})
        if report.status == "running":
            return None
        report = replace(report, seconds=Seconds(**head.seconds), versions=head.versions)
        write_page(report, self.path)
        return report

    def _read(self) -> tuple[dict[str, Any], Job]:
        """Return the content of run.json, and the job in it."""
        try:
            content = read_json(self.path / "run.json")
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise ValueError("it is not a report")
            return content, Job.from_json(content.get("job"))
        except (OSError, ValueError):
            raise CotrunkError(f"{self.path} holds no readable run.json to resume: choose another --out.") from None

    def progress(self, arm: Arm) -> Progress:
        """Return what is finished of an arm."""
        return self._journal.progress(arm)

    def _progress(self, arms: Sequence[Arm]) -> dict[str, Progress]:
        return {arm.name: self.progress(arm) for arm in arms}

    def write_batch(self, arm: Arm, batch: Batch) -> None:
        """Write the images of a batch, then its line in the journal.

        Raises:
            CotrunkError: a file cannot be written, or the pipeline makes no images.
        """
        self._journal.append(arm, batch, self.files.write(arm, batch))

    def write_report(
        self, job: Job, pipeline: PipelineFacts, arms: Sequence[Arm], seconds: Mapping[str, float]
    ) -> RunReport:
        """Write run.json from the journal, and index.html once the run is finished. Arguments as of `build_report`."""
        report = build_report(job, pipeline, arms, self._progress(arms), seconds)
        write_text(self.path / "run.json", report.to_text())
        if report.status != "running":
            write_page(report, self.path)
        return report
