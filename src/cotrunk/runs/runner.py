"""Run a job: plan, resume, warm up, denoise, compare, report. Nothing is printed; progress goes to a callback."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..engine.call_state import StepEvent
from ..errors import CotrunkError
from ..execution import Run
from ..lock import FolderLock, held
from ..pipelines import loading
from ..pipelines.offload import device_of
from ..pipelines.own_defaults import own_guidance
from ..trunks.access import Trunks
from .arm import COMPARED, Arm
from .events import (
    BatchDone,
    Denoising,
    DenoisingDone,
    Extended,
    Interrupted,
    Loading,
    OnEvent,
    Planned,
    Planning,
    Retrying,
    StepDone,
    WarmingUp,
    ignore,
)
from .facts import PipelineFacts
from .folder import BATCH_SECONDS, WRITTEN, RunFolder
from .job import Job
from .job_plan import JobPlan, PartPlan, load_job_plan
from .part_pipelines import PartPipelines, check_parts, has_own_loras
from .part_run import compared_runs, warm_up_part
from .parts import Part, check_rows
from .report import RunReport
from .resume import begun, check_dtype
from .row_inputs import checked_inputs
from .run_parts import PartRun, prepared, prompts_of, with_retries
from .trained_trunk import other_trunk
from .trunk_cache import trunks_of


def load_pipeline_of(job: Job) -> Any:
    """Load the pipeline of a job."""
    return loading.load_pipeline(
        job.model,
        job.device,
        job.dtype,
        config=job.config,
        revision=job.revision,
        variant=job.variant,
        lora=job.lora,
        scheduler=job.scheduler,
        offload=job.offload,
        vae_tiling=job.vae_tiling,
        compiled=job.compiled,
    )


def run_job(
    job: Job,
    out: str | Path,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    on_event: OnEvent = ignore,
    load: Callable[[Job], Any] = load_pipeline_of,
    begin: float | None = None,
    plan: str | Path | None = None,
) -> RunReport:
    """Run a job and return its report. Its images and everything else that it writes go to the folder `out`.

    The report of a share of a run (`Job.shard`) stays "running": `merge` joins the folders of all shares.

    Args:
        resume: continue an earlier part of the same job in `out`. Only the fields in `job.MACHINE` may differ, and
            prompts may be appended. These share only among themselves, so that finished images stay as they are.
        retry_failed: generate images that contain NaN, or that a safety checker replaced, once more with new seeds.
        on_event: called with each event (see `events`). An exception that it raises stops the job.
        load: returns the pipeline of a job. A service that keeps its pipelines in memory passes its own.
        begin: `time.perf_counter()` when the job came in; the time from then on counts as loading.
        plan: file of a plan that `cotrunk plan --save` wrote for this job; None to make one.

    Raises:
        CotrunkError: bad input, or a folder that holds another run or cannot be written.
    """
    begin = time.perf_counter() if begin is None else begin
    check_rows(job)
    folder = RunFolder(Path(out))
    job = folder.named(job)
    job.check_files()
    loading.check_names(job.device, job.dtype, job.scheduler, job.offload)
    job = checked_inputs(job)
    if load is load_pipeline_of:
        check_parts(job)
    given = () if plan is None else given_parts(Path(plan), job)
    if job.shard is not None and retry_failed:
        raise CotrunkError("A share of a run does not know what failed in the others: merge them, then retry.")
    trunks = trunks_of(job)
    with held(folder.path, *WRITTEN) as lock:
        is_resumed, report = begun(folder, lock, job, on_event, resume=resume, retry_failed=retry_failed)
        if report is not None:
            return report
        on_event(Loading(job.model))
        pipe = load(replace(job, lora=()) if has_own_loras(job) else job)
        pipelines, facts = PartPipelines(pipe, job), facts_of(pipe)
        if is_resumed:
            check_dtype(folder, facts.dtype)
        runner = _Runner(job, folder, lock, pipelines, facts, on_event, begin, given, trunks)
        return runner.run(is_resumed, retry_failed)


def given_parts(path: Path, job: Job) -> Sequence[PartPlan]:
    """Return the parts of a plan that a run is to follow.

    Raises:
        CotrunkError: it cannot be read, or is for other prompts.
    """
    parts = load_job_plan(path, job).parts
    planned = {
        own.prompts[image]: own.plan.prompts[own.plan.prompt_of(image)]
        for own in parts
        for image in range(len(own.plan))
    }
    if planned != dict(enumerate(job.texts)):
        raise CotrunkError(f"The plan {path} is for other prompts: give those it was made with, or make a new plan.")
    return parts


def facts_of(pipe: Any) -> PipelineFacts:
    """Return what the report says about a pipeline."""
    return PipelineFacts(type(pipe.scheduler).__name__, device_of(pipe), str(pipe.dtype).removeprefix("torch."))


@dataclass
class _Runner:
    """A job with its folder locked and its pipeline loaded."""

    job: Job
    folder: RunFolder
    lock: FolderLock
    pipelines: PartPipelines
    facts: PipelineFacts
    on_event: OnEvent
    begin: float
    given: Sequence[PartPlan] = ()  # the parts of a plan that was made before, to be followed
    trunks: Trunks | None = None
    own: list[frozenset[int]] = field(default_factory=list)  # per part of the plan, the images of this share

    def run(self, is_resumed: bool, retry_failed: bool) -> RunReport:
        """Make every image that is not finished yet, and write the report."""
        job, seconds = self.job, {"load": time.perf_counter() - self.begin}
        self.on_event(Planning(len(job.prompts)))
        plan, parts = self._prepared(is_resumed)
        self.facts = replace(
            self.facts,
            guidance_scale=own_guidance(self.pipelines.base) if job.guidance_scale is None else job.guidance_scale,
            skipping=parts[0].run.skipping,
            why_not_skipped=parts[0].run.why_not_skipped,
            other_trunk=next(filter(None, (other_trunk(each.part.job.lora, each.run.plan) for each in parts)), None),
        )
        self.on_event(Planned(plan, self.facts.other_trunk))
        seconds["embed"] = sum(each.run.seconds["embed"] for each in parts)
        self.own = plan.images_of(job.shard)
        mains = [each.arm for each in parts]
        possible = [*mains, *(main.compared(name, main.plan) for main in mains for name in COMPARED)]
        earlier = sum(sum(self.folder.progress(arm).seconds.values()) for arm in possible)
        # The report of a new run comes before its plan: without a run.json there is nothing to resume. A plan of more
        # prompts comes before the report: a run of fewer prompts than its plan can be resumed.
        if is_resumed:
            plan.save(self.folder.path / "plan.json")
        self._write_report(plan, mains, seconds)
        if not is_resumed:
            plan.save(self.folder.path / "plan.json")
        runs = [(each.arm, each.part, each.run) for each in parts]
        try:
            if job.compare or job.compiled:
                self._warm_up(parts)
            self._denoise(runs)
            failed = self._failed(plan, mains, seconds) if retry_failed else []
            if failed:
                self.on_event(Retrying(len(failed)))
                first = len(parts)
                plan, parts = with_retries(self.pipelines, job, plan, parts, failed)
                plan.save(self.folder.path / "plan.json")
                self.own = plan.images_of(job.shard)
                mains = [each.arm for each in parts]
                runs = [(each.arm, each.part, each.run) for each in parts]
                self._denoise(runs[first:])
            if job.compare:  # what skipping saved, and so the rows of equal cost, are known only now
                others = list(self._comparisons(parts))
                runs += others
                self._write_report(plan, [arm for arm, _, _ in runs], seconds)
                self._denoise(others)
        except KeyboardInterrupt:
            done = sum(len(self.folder.progress(arm).images) for arm in mains)
            self.on_event(Interrupted(done, len(plan)))
            raise
        seconds["total"] = earlier + time.perf_counter() - self.begin
        self.lock.check()
        report = self._write_report(plan, [arm for arm, _, _ in runs], seconds)
        if any(not self.folder.progress(arm).images >= self.own[arm.number] for arm, _, _ in runs):
            raise CotrunkError(
                f"Images in {self.folder.path} were removed or changed during the run: use --resume to generate "
                "them again."
            )
        return report

    def _prepared(self, is_resumed: bool) -> tuple[JobPlan, list[PartRun]]:
        """Return the plan of the job, and its parts ready to denoise."""
        saved = load_job_plan(self.folder.path / "plan.json", self.job).parts if is_resumed else self.given
        if saved and (appended := len(self.job.prompts) - prompts_of(saved)):
            self.on_event(Extended(appended))
        return prepared(self.pipelines, self.job, saved, self.trunks)

    def _failed(self, plan: JobPlan, arms: Sequence[Arm], seconds: dict[str, float]) -> list[int]:
        """Return the images that contain NaN, or that a safety checker replaced."""
        images = self._write_report(plan, arms, seconds).images
        return [number for number, image in enumerate(images) if image.failed or image.flagged]

    def _write_report(self, plan: JobPlan, arms: Sequence[Arm], seconds: dict[str, float]) -> RunReport:
        return self.folder.write_report(self.job, self.facts, plan, arms, seconds)

    def _warm_up(self, parts: Sequence[PartRun]) -> None:
        start = time.perf_counter()
        self.on_event(WarmingUp(self.job.compiled))
        for each in parts:
            warm_up_part(self.pipelines.of(each.part.job), each.part, each.arm.plan)
        if not self.job.compiled:  # compiling was asked for, and counts in the total
            self.begin += time.perf_counter() - start

    def _comparisons(self, parts: Sequence[PartRun]) -> Iterator[tuple[Arm, Part, Run]]:
        """Yield the arms for comparison with parts that are finished."""
        done = [self.folder.progress(each.arm) for each in parts]
        spared = any(own.spared["skipping"] or own.spared["guidance"] for own in done)
        # without this, what sharing and what skipping changed cannot be told apart
        plans = [each.arm.plan for each in parts]
        is_both = spared and any(plan.trunks or any(len(tree.images) > 1 for tree in plan.trees) for plan in plans)
        for each, own in zip(parts, done, strict=True):
            pipe = self.pipelines.of(each.part.job)
            for kind, run in compared_runs(pipe, each.part, each.arm.plan, own.cost, all_steps=is_both).items():
                yield each.arm.compared(kind, run.plan), each.part, run

    def _denoise(self, runs: Sequence[tuple[Arm, Part, Run]]) -> None:
        """Generate the images that are not in the journal yet."""
        finished = {arm.name: self.folder.progress(arm) for arm, _, _ in runs}
        shares = {arm.name: self.own[arm.number] for arm, _, _ in runs}
        self.on_event(
            Denoising(
                rows=sum(arm.plan.cost_of(arm.plan.select(shares[arm.name])).used for arm, _, _ in runs),
                images=sum(len(images) for images in shares.values()),
                rows_done=sum(planned_rows(done.cost.used, done.spared) for done in finished.values()),
                images_done=sum(len(done.images) for done in finished.values()),
            )
        )
        try:
            with warnings.catch_warnings(
                action="ignore", category=RuntimeWarning
            ):  # NaN in images, which the report shows
                for arm, part, run in runs:
                    left = shares[arm.name] - finished[arm.name].images
                    self.pipelines.of(part.job)  # exchanges LoRAs
                    job = part.aligned()
                    own = replace(run.settings, sharing=arm.plan.sharing, steps=arm.plan.steps)
                    scale = self.facts.guidance_scale if job.guidance_scale is None else job.guidance_scale
                    job = replace(job, settings=own, guidance_scale=scale)
                    facts = replace(self.facts, guidance_scale=scale)
                    for batch in run.batches(skip=left.isdisjoint, on_step=self._on_step, seconds=BATCH_SECONDS):
                        self.lock.check()
                        self.folder.write_batch(arm, batch, job, facts)
                        images = tuple(arm.part.images[image] for image in batch.images)
                        self.on_event(BatchDone(arm.kind, images, planned_rows(batch.cost.used, batch.spared)))
        finally:
            self.on_event(DenoisingDone())

    def _on_step(self, event: StepEvent) -> None:
        self.on_event(StepDone(planned_rows(event.rows, event.rows_spared)))


def planned_rows(computed: int, spared: Mapping[str, int]) -> int:
    """Return how many planned rows are done: computed and skipped ones. What sharing saves is not in the plan."""
    return computed + spared["skipping"] + spared["guidance"]
