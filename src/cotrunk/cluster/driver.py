"""The driver of a run on a cluster: it plans, lets the cluster paint, and writes what a single machine writes."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..errors import CotrunkError
from ..files import read_lines
from ..pipelines import loading
from ..pipelines.own_defaults import own_guidance
from ..planning.tree import Branch
from ..runs.arm import Arm, main_arms
from ..runs.events import (
    BatchDone,
    Denoising,
    DenoisingDone,
    Extended,
    Interrupted,
    Machines,
    OnEvent,
    Planned,
    Planning,
    Retrying,
)
from ..runs.facts import PipelineFacts
from ..runs.job import Job
from ..runs.job_plan import JobPlan, PartPlan, load_job_plan
from ..runs.journal import NAME as JOURNAL
from ..runs.journal import Line, valid_lines
from ..runs.part_pipelines import PartPipelines
from ..runs.plan_job import load_for_planning
from ..runs.report import RunReport
from ..runs.report_figures import FailedGroup
from ..runs.resume import Head, check_dtype
from ..runs.run_parts import planned, planned_retries, prompts_of
from ..runs.runner import planned_rows
from ..runs.trained_trunk import other_trunk
from . import attempts, failed, manifest
from .loop import POLL, Pass, finish
from .manifest import Finished
from .run_place import RunPlace
from .setup import Setup
from .watchdog import Watchdog
from .waves import FOLDER as WAVES
from .waves import Cut, Wave, cut, wave_of, write_waves

ROUNDS = 3  # how often images are painted whose files are lost during the run
StartPass = Callable[[Sequence[str], Setup], Pass]


@dataclass(frozen=True)
class ClusterReport:
    """What came of a run.

    Attributes:
        report: as of a single machine.
        failed: records of the groups that could not be generated, relative to the folder of the run.
    """

    report: RunReport
    failed: tuple[str, ...]


@dataclass
class Driver:
    """A run on a cluster, with its place held.

    Attributes:
        job, place: of the run.
        setup: of its painters.
        device: on which they generate.
        start: starts a pass over the waves in some files.
        on_event, begin: as for `run_on_cluster`.
        wave: most images of a wave.
        poll: seconds between two looks at the manifest.
    """

    job: Job
    place: RunPlace
    setup: Setup
    device: str
    start: StartPass
    on_event: OnEvent
    begin: float
    wave: int
    poll: float = POLL
    facts: PipelineFacts = field(init=False)
    plan: JobPlan = field(init=False)
    arms: list[Arm] = field(init=False)  # of the run, one per part
    seconds: dict[str, float] = field(default_factory=dict)
    machines: set[str] = field(default_factory=set)
    joined: dict[str, dict[int, str | None]] = field(default_factory=dict)  # arm -> image -> digest, as in the journal
    joined_parts: list[str] = field(default_factory=list)  # parts of the manifest that are still there
    failures: list[FailedGroup] = field(default_factory=list)
    knows_pipeline: bool = False  # whether `facts` come from a painter

    def __post_init__(self) -> None:
        self.folder, self.files = self.place.folder, self.place.files

    def run(self, given: Sequence[PartPlan], is_resumed: bool, retry_failed: bool) -> ClusterReport:
        """Make every image that is not finished yet, and write the report.

        Args:
            given: the parts of a plan to follow.
            is_resumed: whether the folder holds an earlier part of the run.
            retry_failed: as for `run_on_cluster`.
        """
        pipelines = self._planned(given, is_resumed)
        self.on_event(Planned(self.plan, self.facts.other_trunk))
        file = self.folder.path / "plan.json"
        if is_resumed:  # in this order for the same reasons as in `runner`
            self.plan.save(file)
        self._write_report()
        if not is_resumed:
            self.plan.save(file)
        self.place.keep(at_once=True)
        failed.clear(self.files)
        self._join_earlier()
        for arm in self.arms:
            self.folder.files.write_records(arm, range(len(arm.plan)))
        try:
            self._paint(self.arms)
            if retry_failed:
                images = self._write_report().images
                again = [number for number, image in enumerate(images) if image.failed or image.flagged]
                if again:
                    self.on_event(Retrying(len(again)))
                    first = len(self.plan.parts)
                    self._follow(planned_retries(pipelines, self.job, self.plan, again))
                    self.plan.save(file)
                    self._paint(self.arms[first:])
        except KeyboardInterrupt:
            self.on_event(Interrupted(sum(len(self.folder.progress(arm).images) for arm in self.arms), len(self.plan)))
            raise
        self.seconds["total"] = time.perf_counter() - self.begin
        self.place.check()
        report = self._write_report(self.failures)
        self.place.keep(at_once=True)
        for name in (WAVES, manifest.FOLDER, attempts.FOLDER):
            self.files.remove_folder(name)
        return ClusterReport(report, tuple(each.file for each in self.failures))

    def _follow(self, plan: JobPlan) -> None:
        """Follow this plan from now on."""
        self.plan, self.arms = plan, main_arms(plan, self.job.naming, self.job.ids)

    def _planned(self, given: Sequence[PartPlan], is_resumed: bool) -> PartPipelines:
        """Plan the run, without a denoiser, and say what is known about the pipeline."""
        job = self.job
        pipe = load_for_planning(job, self.on_event)
        self.seconds["load"] = time.perf_counter() - self.begin
        self.on_event(Planning(len(job.prompts)))
        begin = time.perf_counter()
        saved = load_job_plan(self.folder.path / "plan.json", job).parts if is_resumed else given
        if saved and (appended := len(job.prompts) - prompts_of(saved)):
            self.on_event(Extended(appended))
        pipelines = PartPipelines(pipe, job, denoiser=False)
        self._follow(planned(pipelines, job, saved))
        self.seconds["embed"] = time.perf_counter() - begin
        parts = None if job.source.function is not None else dict.fromkeys(pipe.components)
        dtype = str(loading.resolve_dtype(job.dtype, self.device, parts)).removeprefix("torch.")
        self.setup = replace(self.setup, dtype=dtype)
        head = Head.read(self.folder.read()[0]) if is_resumed else None
        if head is not None:
            check_dtype(self.folder, dtype)
        scale = own_guidance(pipe) if job.guidance_scale is None else job.guidance_scale
        trunks = (other_trunk(part.part(job).job.lora, part.plan) for part in self.plan.parts)
        fresh = PipelineFacts(type(pipe.scheduler).__name__, self.device, dtype, scale)
        self.facts = replace(
            fresh if head is None else head.pipeline, guidance_scale=scale, other_trunk=next(filter(None, trunks), None)
        )
        return pipelines

    def _paint(self, arms: Sequence[Arm]) -> None:
        """Let the cluster generate the images of these arms that are not in the journal."""
        done = {arm.name: self.folder.progress(arm).images for arm in arms}
        self._begin_progress(arms)
        try:
            for _ in range(ROUNDS):
                if not (cuts := cut(arms, self.wave, partial(_is_left, done))):
                    break
                for name, images in done.items():  # an image whose file was lost is joined again, even with its digest
                    known = self.joined.get(name, {})
                    self.joined[name] = {image: digest for image, digest in known.items() if image in images}
                self.failures += [failed.read(self.files, name) for name in self._paint_cuts(cuts)]
                given_up = {image for each in self.failures for image in each.images}
                done = {
                    arm.name: self.folder.progress(arm).images
                    | {image for image, number in enumerate(arm.part.images) if number in given_up}
                    for arm in arms
                }
        finally:
            self.on_event(DenoisingDone())
        if any(len(done[arm.name]) < len(arm.plan) for arm in arms):
            raise CotrunkError(
                f"Images in {self.folder.name} were removed or changed during the run: use --resume to generate "
                "them again."
            )

    def _begin_progress(self, arms: Sequence[Arm]) -> None:
        finished = [self.folder.progress(arm) for arm in arms]
        self.on_event(
            Denoising(
                rows=sum(arm.plan.cost.used for arm in arms),
                images=sum(len(arm.plan) for arm in arms),
                rows_done=sum(planned_rows(own.cost.used, own.spared) for own in finished),
                images_done=sum(len(own.images) for own in finished),
            )
        )

    def _paint_cuts(self, cuts: Sequence[Cut]) -> list[str]:
        """Let the cluster generate some waves. Return the records of the groups that failed."""
        self._remove((), at_once=True)  # what an earlier part says about these waves is not true any more
        used = {each.arm.number: each.arm for each in cuts}
        jobs = {number: arm.part.part(self.job).aligned() for number, arm in used.items()}
        by_id, waves, first = dict[str, Cut](), list[Wave](), list[str]()

        def made() -> Iterator[Wave]:
            for each in cuts:
                wave = wave_of(each, jobs[each.arm.number])
                by_id[wave.id] = each
                yield wave

        for path, some in write_waves(made(), self.files):
            first.append(path)
            waves += some

        def begin(left: Sequence[str]) -> Pass:
            files = first
            if len(left) < len(waves):
                again = (wave_of(by_id[wave], jobs[by_id[wave].arm.number]) for wave in left)
                files = [path for path, _ in write_waves(again, self.files)]
            return self.start(files, self.setup)

        return finish(
            waves,
            begin,
            self.files,
            Watchdog(time.monotonic),
            on_finished=self._painted,
            remove=self._remove,
            poll=self.poll,
        )

    def _join_earlier(self) -> None:
        """Read what is in the journal, and move to it what a driver that was killed left in the manifest."""
        file = self.folder.path / JOURNAL
        for line in valid_lines(read_lines(file) if file.exists() else []):
            self.joined.setdefault(line.arm, {}).update(zip(line.images, line.digests, strict=True))
        names = manifest.parts(self.files)
        self._join([one for name in names if (one := manifest.read_part(self.files, name)) is not None])
        self._remove(names)

    def _remove(self, names: Sequence[str], *, at_once: bool = False) -> Sequence[str]:
        """Remove parts of the manifest if the journal holds their lines wherever it is kept. Return the removed."""
        self.joined_parts += names
        if not self.place.keep(at_once=at_once):
            return ()
        manifest.remove_parts(self.files, self.joined_parts)
        removed, self.joined_parts = self.joined_parts, []
        return removed

    def _painted(self, found: Sequence[Finished]) -> None:
        """Move waves to the journal whose images were written just now: at a URL, they are not in the listing."""
        arms = {arm.name: arm for arm in self.arms}
        for line in (line for one in found for line in one.lines):
            for image, _ in line.files():
                self.folder.files.listing.add(arms[line.arm].file(image))
        self._join(found)

    def _join(self, found: Sequence[Finished]) -> None:
        """Move finished waves to the journal."""
        self.place.check()
        lines, arms = list[Line](), {arm.name: arm for arm in self.arms}
        for line in (line for one in found for line in one.lines):
            known, new = self.joined.setdefault(line.arm, {}), dict(zip(line.images, line.digests, strict=True))
            # what was painted twice, or joined just before the driver was killed, is joined again if its files changed
            if not new.items() <= known.items():
                known |= new
                lines.append(line)
        if lines:
            self.folder.write_lines(lines)
        if not self.knows_pipeline and (own := next((one.pipeline for one in found if one.pipeline), None)) is not None:
            self.facts = replace(own, other_trunk=self.facts.other_trunk, guidance_scale=self.facts.guidance_scale)
            self.knows_pipeline = True
            self._write_report()  # a resumed run reads it there
        self.machines |= {one.machine for one in found}
        self.on_event(Machines(len(self.machines)))
        for line in lines:
            images = tuple(arms[line.arm].part.images[image] for image in line.images)
            spared = {f"{way}": count for way, count in line.spared.items()}
            self.on_event(BatchDone("shared", images, planned_rows(line.rows[0], spared)))

    def _write_report(self, failures: Sequence[FailedGroup] = ()) -> RunReport:
        return self.folder.write_report(self.job, self.facts, self.plan, self.arms, self.seconds, failures)


def _is_left(done: Mapping[str, Collection[int]], arm: Arm, tree: Branch) -> bool:
    """Return whether images of a group are not done."""
    return any(image not in done[arm.name] for image in tree.images)
