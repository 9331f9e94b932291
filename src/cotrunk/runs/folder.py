"""The folder of a run: images as they finish, plan.json, the journal, run.json, index.html.

    DIR/images/00000.png ...   with metadata (see `metadata`); `Job.output` sets names and format
    DIR/compare/ARM/00000.png  for a job with `compare`: the same images, sampled independently
    DIR/plan.json              the plan; a resumed run follows it. Prompts that are appended, and images that are
                               generated again, add parts to it
    DIR/journal.jsonl          one line per finished batch; what a resumed run reads
    DIR/run.json               the report; DIR/index.html shows it to people
    DIR/.cotrunk.lock          present while a command writes to the folder (see `lock`)

What a kill, a crash or a power cut can lose:

- The batch in progress, and no more. A batch is sized to take about `BATCH_SECONDS` at the speed of the previous
  batch. The first batch is one group, because no speed is known yet. A group is never split: one that takes longer
  than that can be lost as a whole.
- No file is ever half written. Every file but the journal is written under a temporary name and renamed. An
  incomplete last line of the journal is ignored.

A resumed run treats a batch as finished if it has a line in the journal and every image file is as it was written.
The line holds a digest of each file (BLAKE2b, 128 bits). A batch with a lost, damaged or replaced file is computed
again, and so is one whose line is damaged.

Two commands never write to one folder at the same time: the second is refused at once, whether it resumes or not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CotrunkError
from ..execution import Batch
from ..files import check_folder, writing
from ..storage.files import StoredFiles
from ..storage.urls import shown_place
from . import journal
from .arm import Arm
from .build_report import build_report
from .distances import with_distances
from .facts import PipelineFacts
from .images import ImageFiles
from .job import Job
from .job_plan import JobPlan
from .journal import Journal, Line, Progress
from .large import THUMBNAILS
from .naming import FOLDERS, NUMBERED
from .page import write_page
from .report import RunReport
from .report_figures import FailedGroup
from .report_files import FORMAT, read_report

BATCH_SECONDS = 60.0  # about how long a batch takes: the most that a kill can lose
CONTENT = ("run.json", "plan.json", journal.NAME, "images", "compare", "index.html")  # what a run writes to its folder
# folders in which a killed run may leave temporary files, as patterns
WRITTEN = ("images/**/", "compare/**/", f"{THUMBNAILS}/**/", "pages/")


class RunFolder:
    """Reads and writes the folder of one run.

    Args:
        path: of the folder.
        stored: where other machines write the images of the run, if it is not this folder. What is not an image stays
            in the folder.
    """

    def __init__(self, path: Path, stored: StoredFiles | None = None) -> None:
        self.path = path
        self.stored = StoredFiles(str(path)) if stored is None else stored
        self.files = ImageFiles(path, self.stored)
        self._journal = Journal(path, self.files)

    @property
    def name(self) -> str:
        """What the user calls the folder."""
        return shown_place(self.stored.place)

    def make(self) -> bool:
        """Make the folder unless it exists. Return whether it already contains files of a run.

        Raises:
            CotrunkError: it cannot be written.
        """
        check_folder(self.path)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        return bool(self.contents())

    def contents(self) -> list[str]:
        """Return the names of the files and folders here that belong to a run."""
        found = {*self.stored.names(), *StoredFiles(str(self.path)).names()}
        return [name for name in CONTENT if name in found]

    def read(self) -> tuple[dict[str, Any], Job]:
        """Return the content of run.json, without the lists of a large run, and the job in it.

        Raises:
            CotrunkError: there is no readable report.
        """
        try:
            content = read_report(self.path, with_images=False)
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise ValueError("it is not a report")
            return content, Job.from_json(content.get("job"))
        except (OSError, ValueError):
            raise CotrunkError(f"{self.name} holds no readable run.json to resume: choose another --out.") from None

    def named(self, job: Job) -> Job:
        """Return a job with the names of its image files: those that the run in this folder began with, or new ones.

        Default names depend on the number of images, which may grow when a run is resumed.
        """
        try:
            before = self.read()[1]
        except CotrunkError:  # there is no run to resume
            return job.in_folders()
        began_in_folders = before.output.name.startswith(FOLDERS)
        return job.named(FOLDERS) if began_in_folders and job.output.name == NUMBERED else job

    def progress(self, arm: Arm) -> Progress:
        """Return what is finished of an arm."""
        return self._journal.progress(arm)

    def progress_of(self, arms: Sequence[Arm]) -> dict[str, Progress]:
        return {arm.name: self.progress(arm) for arm in arms}

    def write_batch(self, arm: Arm, batch: Batch, job: Job, pipeline: PipelineFacts) -> None:
        """Write the images of a batch, then its line in the journal.

        Args:
            job: with the settings of this arm as they were resolved, for the recipes of the images.
            pipeline: as it was loaded.

        Raises:
            CotrunkError: a file cannot be written, or the pipeline returns no images.
        """
        self._journal.append(arm, batch, self.files.write(arm, batch, job, pipeline))

    def write_lines(self, lines: Sequence[Line]) -> None:
        """Add to the journal the lines of batches whose images others wrote.

        Raises:
            CotrunkError: they cannot be written.
        """
        self._journal.write(lines)

    def write_report(
        self,
        job: Job,
        pipeline: PipelineFacts,
        plan: JobPlan,
        arms: Sequence[Arm],
        seconds: Mapping[str, float],
        failures: Sequence[FailedGroup] = (),
    ) -> RunReport:
        """Write run.json from the journal, and index.html once the run is finished.

        Arguments are as for `build_report`.
        """
        report = build_report(job, pipeline, plan, arms, self.progress_of(arms), seconds, failures)
        if report.status != "running" and report.compare:
            report = with_distances(report, self.path)
        report.save(self.path)
        if report.status != "running":
            write_page(report, self.path, self.stored)
        return report
