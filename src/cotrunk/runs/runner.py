"""Run a job: plan, resume, warm up, denoise, compare, report. Nothing is printed; progress goes to a callback."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..engine.call_state import StepEvent
from ..errors import CotrunkError
from ..execution import EXACT, Run
from ..generation import plan as plan_prompts
from ..generation import prepare, warm_up
from ..lock import FolderLock, held
from ..pipelines import loading
from ..pipelines.arguments import needed_arguments
from ..pipelines.compatibility import check_text_to_image
from ..pipelines.cost import timesteps_of
from ..pipelines.offload import device_of
from ..pipelines.own_defaults import own_guidance, own_steps
from ..planning.plan import Cost, Plan
from .arm import ALL_STEPS, COMPARED, EQUAL_COST, INDEPENDENT, Arm, Compared, compared_arm, main_arm
from .events import (
    AlreadyFinished,
    BatchDone,
    Denoising,
    DenoisingDone,
    Interrupted,
    Loading,
    OnEvent,
    Planned,
    Planning,
    StepDone,
    Unlocked,
    WarmingUp,
    ignore,
)
from .facts import PipelineFacts
from .folder import BATCH_SECONDS, RunFolder
from .job import Job
from .report import RunReport
from .resume import begin_or_resume, check_dtype, finished_report


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
    on_event: OnEvent = ignore,
    load: Callable[[Job], Any] = load_pipeline_of,
    begin: float | None = None,
) -> RunReport:
    """Run a job and return its report. Its images and everything else that it writes go to the folder `out`.

    Args:
        resume: continue an earlier part of the same job in `out`. Only the fields in `job.MACHINE` may differ.
        on_event: called with each event (see `events`). An exception that it raises stops the job.
        load: returns the pipeline of a job. A service that keeps its pipelines in memory passes its own.
        begin: `time.perf_counter()` when the job came in; the time from then on counts as loading.

    Raises:
        CotrunkError: bad input, or a folder that holds another run or cannot be written.
    """
    begin = time.perf_counter() if begin is None else begin
    job.check_supported()
    job.check_files()
    loading.check_names(job.device, job.dtype, job.scheduler, job.offload)
    if load is load_pipeline_of:
        loading.check_model(job.source, job.lora)
    folder = RunFolder(Path(out))
    with held(folder.path, "images", "images/**/", "compare/**/") as lock:
        if not lock.is_kept:
            on_event(Unlocked(folder.path))
        is_resumed = begin_or_resume(folder, job, resume=resume)
        if is_resumed and (report := finished_report(folder)) is not None:
            on_event(AlreadyFinished())
            return report
        on_event(Loading(job.model))
        pipe = load(job)
        check_text_to_image(pipe)
        facts = facts_of(pipe)
        if is_resumed:
            check_dtype(folder, facts.dtype)
        return _Runner(job, folder, lock, pipe, facts, on_event, begin).run(is_resumed)


def plan_job(job: Job, *, on_event: OnEvent = ignore) -> Plan:
    """Return the plan of a job: what it would share and save. Nothing is denoised and nothing is written.

    Raises:
        CotrunkError: bad input.
    """
    loading.check_names("auto", "auto", job.scheduler)
    job.check_supported()
    on_event(Loading(job.model, has_denoiser=False))
    pipe = loading.load_pipeline(
        job.model,
        "auto",
        config=job.config,
        revision=job.revision,
        variant=job.variant,
        scheduler=job.scheduler,
        denoiser=False,
    )
    on_event(Planning(len(job.prompts)))
    plan = plan_prompts(
        pipe,
        job.texts,
        settings=job.settings,
        seed=job.seed,
        num_images_per_prompt=job.images_per_prompt,
        **arguments_of(job, pipe),
    )
    on_event(Planned(plan))
    return plan


def facts_of(pipe: Any) -> PipelineFacts:
    """Return what the report says about a pipeline."""
    return PipelineFacts(type(pipe.scheduler).__name__, device_of(pipe), str(pipe.dtype).removeprefix("torch."))


def arguments_of(job: Job, pipe: Any) -> dict[str, Any]:
    """Return the arguments for the pipeline's call that a job gives or leaves to the pipeline.

    Those of its settings are not among them, except for a number of steps that the settings leave to the pipeline.
    """
    arguments: dict[str, Any] = {}
    if job.settings.steps is None:
        arguments["num_inference_steps"] = own_steps(pipe)
    scale = own_guidance(pipe) if job.guidance_scale is None else job.guidance_scale
    if scale is not None:
        arguments["guidance_scale"] = scale
    if job.negative_prompt is not None:
        arguments["negative_prompt"] = job.negative_prompt
    return arguments


@dataclass
class _Runner:
    """A job with its folder locked and its pipeline loaded."""

    job: Job
    folder: RunFolder
    lock: FolderLock
    pipe: Any
    facts: PipelineFacts
    on_event: OnEvent
    begin: float

    def run(self, is_resumed: bool) -> RunReport:
        """Make every image that is not finished yet, and write the report."""
        job, seconds = self.job, {"load": time.perf_counter() - self.begin}
        arguments = arguments_of(job, self.pipe)
        self.on_event(Planning(len(job.prompts)))
        run = prepare(
            self.pipe,
            job.texts,
            job.settings,
            seed=job.seed,
            num_images_per_prompt=job.images_per_prompt,
            plan=Plan.load(self.folder.path / "plan.json") if is_resumed else None,
            **arguments,
        )
        self.facts = replace(
            self.facts,
            guidance_scale=arguments.get("guidance_scale"),
            skipping=run.skipping,
            why_not_skipped=run.why_not_skipped,
        )
        plan, main = run.plan, main_arm(run.plan, job.output, job.ids)
        self.on_event(Planned(plan))
        seconds["embed"] = run.seconds["embed"]
        possible = (main, *(self._compared(name, plan) for name in COMPARED))
        earlier = sum(sum(self.folder.progress(arm).seconds.values()) for arm in possible)
        # The report comes before the plan: without a run.json there is nothing to resume.
        self._write_report([main], seconds)
        if not is_resumed:
            plan.save(self.folder.path / "plan.json")
        runs = [(main, run)]
        try:
            if job.compare or job.compiled:
                self._warm_up(arguments, plan)
            self._denoise(runs)
            if job.compare:  # what skipping saved, and so the rows of equal cost, are known only now
                runs += self._comparisons(plan, self.folder.progress(main).cost, arguments)
                self._write_report([arm for arm, _ in runs], seconds)
                self._denoise(runs[1:])
        except KeyboardInterrupt:
            self.on_event(Interrupted(len(self.folder.progress(main).images), len(plan)))
            raise
        seconds["total"] = earlier + time.perf_counter() - self.begin
        self.lock.check()
        report = self._write_report([arm for arm, _ in runs], seconds)
        if report.status == "running":
            raise CotrunkError(
                f"Images in {self.folder.path} were removed or changed during the run: use --resume to generate "
                "them again."
            )
        return report

    def _write_report(self, arms: Sequence[Arm], seconds: dict[str, float]) -> RunReport:
        return self.folder.write_report(self.job, self.facts, arms, seconds)

    def _warm_up(self, arguments: dict[str, Any], plan: Plan) -> None:
        """Warm up with all prompts and with a single one.

        Without it, the first arm of a comparison would seem slower, and compiling would count as denoising.
        """
        job, start = self.job, time.perf_counter()
        self.on_event(WarmingUp(job.compiled))
        # A compiled denoiser compiles once more for a single row, which an image or a trunk without guidance has.
        has_single_rows = any(plan.rows_of(tree) < plan.guidance_rows for tree in plan.trees)
        half = (0.0, 0.5) if has_single_rows or job.settings.guidance_interval is not None else None
        settings = replace(job.settings, sharing=None, skipping=None, guidance_interval=half)
        for some, images_each in ((job.texts, job.images_per_prompt), (job.texts[:1], 1)):
            warm_up(self.pipe, some, settings, num_images_per_prompt=images_each, **arguments)
        if not job.compiled:  # compiling was asked for, and counts in the total
            self.begin += time.perf_counter() - start

    def _comparisons(self, plan: Plan, cost: Cost, arguments: dict[str, Any]) -> list[tuple[Arm, Run]]:
        """Return the arms for comparison with a run of this plan, which had this cost."""
        arguments = {name: value for name, value in arguments.items() if name != "num_inference_steps"}
        needed = {**needed_arguments(self.pipe), **arguments}
        # the most steps that cost no more rows than the run did
        for steps in range(plan.steps, 0, -1):
            try:
                counts = timesteps_of(self.pipe, {**needed, "num_inference_steps": steps})
            except CotrunkError:  # too few for this scheduler
                break
            equal = plan.independent(*counts)
            if equal.cost.used <= cost.used:
                break
        own = self.folder.progress(main_arm(plan, self.job.output, self.job.ids))
        is_both = any(len(tree.images) > 1 for tree in plan.trees) and (
            own.spared["skipping"] or own.spared["guidance"]
        )
        arms = [(INDEPENDENT, plan.independent()), *([(ALL_STEPS, plan)] if is_both else []), (EQUAL_COST, equal)]
        runs = []
        for name, followed in arms:
            arm = self._compared(name, followed)
            settings = replace(EXACT, steps=arm.plan.steps, batching=self.job.settings.batching)
            runs.append((arm, prepare(self.pipe, self.job.texts, settings, plan=arm.plan, **arguments)))
        return runs

    def _compared(self, name: Compared, plan: Plan) -> Arm:
        return compared_arm(name, plan, self.job.output, self.job.ids)

    def _denoise(self, runs: Sequence[tuple[Arm, Run]]) -> None:
        """Generate the images that are not in the journal yet."""
        finished = {arm.name: self.folder.progress(arm) for arm, _ in runs}
        self.on_event(
            Denoising(
                rows=sum(arm.plan.cost.used for arm, _ in runs),
                images=sum(len(arm.plan) for arm, _ in runs),
                rows_done=sum(_planned_rows(done.cost.used, done.spared) for done in finished.values()),
                images_done=sum(len(done.images) for done in finished.values()),
            )
        )
        try:
            with warnings.catch_warnings(
                action="ignore", category=RuntimeWarning
            ):  # NaN in images, which the report shows
                for arm, run in runs:
                    is_done = finished[arm.name].images.issuperset
                    own = replace(run.settings, sharing=arm.plan.sharing, steps=arm.plan.steps)
                    job = replace(self.job, settings=own, guidance_scale=self.facts.guidance_scale)
                    for batch in run.batches(skip=is_done, on_step=self._on_step, seconds=BATCH_SECONDS):
                        self.lock.check()
                        self.folder.write_batch(arm, batch, job, self.facts)
                        self.on_event(BatchDone(arm.name, batch.images, _planned_rows(batch.cost.used, batch.spared)))
        finally:
            self.on_event(DenoisingDone())

    def _on_step(self, event: StepEvent) -> None:
        self.on_event(StepDone(_planned_rows(event.rows, event.rows_spared)))


def _planned_rows(computed: int, spared: Mapping[str, int]) -> int:
    """Return how many planned rows are done: computed and skipped ones. What sharing saves is not in the plan."""
    return computed + spared["skipping"] + spared["guidance"]
