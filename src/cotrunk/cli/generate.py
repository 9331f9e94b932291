"""`cotrunk generate`."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import CotrunkError
from ..planning.prompts import checked
from ..settings import Batching, Settings, Skipping
from .console import Bar, err, left_out, out, print_summary, say, warn_of
from .inputs import check_draws_from_text, check_numbers, check_whole, hold, out_folder, prompts_of, sharing_of
from .options import (
    MACHINE,
    OUTPUT,
    SAMPLING,
    Column,
    Compile,
    Device,
    Dtype,
    Encoder,
    Guidance,
    GuidanceInterval,
    Lora,
    MaxGroup,
    Model,
    ModeName,
    PerPrompt,
    PromptFile,
    Prompts,
    Scheduler,
    Seed,
    Share,
    Similarity,
    Skip,
    Steps,
    option,
)

if TYPE_CHECKING:
    from ..execution import Run
    from ..lock import FolderLock
    from ..planning.plan import Cost, Plan
    from ..runs.folder import Arm, RunFolder
    from ..settings import Settings
    from ..tuning.settings_file import Basis

DEFAULT_TOLERANCE = "default"  # what --skip means without a number


def generate(
    context: typer.Context,
    prompts: Prompts = None,
    prompt_file: PromptFile = None,
    column: Column = "prompt",
    out_name: Annotated[
        str | None, option(OUTPUT, "DIR", "Folder of the run; needed, and made if not there.", "--out")
    ] = None,
    resume: Annotated[
        bool, option(OUTPUT, "", "Continue the run in --out where it stopped; same settings.", "--resume")
    ] = False,
    compare: Annotated[
        bool,
        option(
            OUTPUT,
            "",
            "Also make the images independently, from the same noise: once in as many steps, once in as few as cost "
            "what sharing costs. Takes about three times as long.",
            "--compare",
        ),
    ] = False,
    share: Share = 0.3,
    similarity: Similarity = "auto",
    max_group: MaxGroup = 5,
    mode: ModeName = "flat",
    encoder: Encoder = "pipeline",
    skip: Skip = None,
    guidance_interval: GuidanceInterval = None,
    settings_file: Annotated[
        Path | None,
        option(
            SAMPLING,
            "FILE",
            "Steps, sharing and skipping as cotrunk tune found them; model and LoRA, guidance, scheduler too, "
            "where not given.",
            "--settings",
        ),
    ] = None,
    model: Model = "mini",
    lora: Lora = None,
    steps: Steps = 30,
    guidance: Guidance = 7.5,
    negative: Annotated[str | None, option(SAMPLING, "TEXT", "Negative prompt of all images.")] = None,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    images_per_prompt: PerPrompt = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compiled: Compile = False,
    max_rows: Annotated[
        int | None, option(MACHINE, "N", "Most denoiser rows at once; halves by itself when memory runs out.")
    ] = None,
) -> None:
    """Make an image of every prompt; similar prompts share their early steps.

    Writes images/, plan.json, run.json and index.html (open it in a browser) to --out.

    Examples:

        cotrunk generate --prompts prompts.txt --out run

        cotrunk generate "a red apple" "a green apple" --out apples --compare
    """
    begin = time.perf_counter()
    texts = prompts_of(prompts, prompt_file, column)
    out_dir = out_folder(out_name)
    if settings_file is not None:
        tuned, basis = _tuned(context, settings_file)
        steps, guidance_interval = tuned.steps or steps, tuned.guidance_interval
        share = tuned.sharing.share if tuned.sharing else 0.0
        similarity = str(tuned.sharing.similarity) if tuned.sharing else "auto"
        skip = str(tuned.skipping.tolerance) if tuned.skipping else None
        guidance = guidance if _is_given(context, "guidance") else basis.guidance
        scheduler = scheduler if _is_given(context, "scheduler") else basis.scheduler
        model = model if _is_given(context, "model") else basis.model
        if not _is_given(context, "lora") and _is_same(basis.model, model):  # a LoRA is of its model
            lora = basis.lora
        _warn_of_another(basis, model, lora)
    check_numbers(steps, guidance, seed, images_per_prompt)
    if max_rows is not None:
        check_whole("--max-rows", max_rows, 1)
    if negative is not None:
        checked(negative, "--negative")
    sharing = sharing_of(share, similarity, max_group, mode, encoder)
    skipping = _skipping(skip)
    asked = Settings(sharing, skipping, guidance_interval, steps, Batching(max_rows=max_rows))

    from ..pipelines.loading import check_names, load_pipeline
    from ..pipelines.schedulers import SCHEDULERS
    from ..planning.plan import Plan
    from ..runs.folder import SHARED, Arm, Facts, RunFolder

    check_names(device, dtype, scheduler)
    if scheduler is not None and scheduler.lower() in SCHEDULERS:
        scheduler = scheduler.lower()
    settings: dict[str, Any] = {
        "prompts": texts,
        "model": model,
        "lora": lora,
        "steps": steps,
        "guidance_scale": guidance,
        "share": share,
        "similarity": similarity,
        "max_group": max_group,
        "mode": mode,
        "encoder": encoder,
        "tolerance": None if skipping is None else skipping.tolerance,
        "guidance_interval": None if guidance_interval is None else list(guidance_interval),
        "scheduler": scheduler,
        "seed": seed,
        "images_per_prompt": images_per_prompt,
        "negative": negative,
        "dtype": dtype,
        "compare": compare,
    }
    lock = hold(context, out_dir, "images", "compare/*")
    folder = RunFolder(out_dir)
    resuming = folder.open(settings, resume=resume)
    if resuming and (report := folder.finished()) is not None:
        out.print("This run is finished: nothing to resume. Its page is written anew.")
        _conclude(report, out_dir)
        return
    with err.status(f"Loading {escape(model)}"):
        pipe = load_pipeline(model, device, dtype, lora=lora, scheduler=scheduler, compiled=compiled)
    check_draws_from_text(pipe)
    device, dtype = str(pipe.device), str(pipe.dtype).removeprefix("torch.")
    if resuming:
        folder.check_dtype(dtype)
    seconds = {"load": time.perf_counter() - begin}

    from ..generation import prepare, warm_up

    arguments: dict[str, Any] = {"guidance_scale": guidance}
    if negative is not None:
        arguments["negative_prompt"] = negative
    with err.status("Planning"):
        run = prepare(
            pipe,
            texts,
            asked,
            seed=seed,
            num_images_per_prompt=images_per_prompt,
            plan=Plan.load(out_dir / "plan.json") if resuming else None,
            **arguments,
        )
    warn_of(run.plan.findings, texts)
    seconds["embed"] = run.seconds["embed"]
    main = Arm(SHARED, run.plan, "images")
    facts = Facts(
        model=model if lora is None else f"{model} with {lora}",
        scheduler=type(pipe.scheduler).__name__,
        mode=mode,
        guidance_scale=guidance,
        tolerance=settings["tolerance"],
        guidance_interval=settings["guidance_interval"],
        share=share,
        similarity=run.plan.threshold,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    earlier = sum(sum(folder.journal(arm).seconds.values()) for arm in (main, *_arms(run.plan, run.plan)))
    # before the plan: without a run.json there is nothing to resume
    folder.write_report(settings, facts, [main], seconds)
    if not resuming:
        run.plan.save(out_dir / "plan.json")
    runs = [(main, run)]
    try:
        if compare or compiled:
            start = time.perf_counter()
            # whichever came first would lose the comparison, and be said to denoise while torch compiles
            with err.status("Compiling" if compiled else "Warming up"):
                # a compiled denoiser takes few rows for another shape than many, and one for a third: an image without
                # guidance has one
                half = None if guidance_interval is None else (0.0, 0.5)
                for some, each in ((texts, images_per_prompt), (texts[:1], 1)):
                    warm = Settings(None, None, half, steps, asked.batching)
                    warm_up(pipe, some, warm, num_images_per_prompt=each, **arguments)
            if not compiled:  # who asks for it waits for it
                begin += time.perf_counter() - start
        _denoise(folder, lock, runs)
        if compare:  # only now is it known what skipping spared, and so what equal cost is
            runs += _comparisons(pipe, run.plan, folder.journal(main).cost, texts, arguments, asked.batching)
            folder.write_report(settings, facts, [arm for arm, _ in runs], seconds)
            _denoise(folder, lock, runs[1:])
    except KeyboardInterrupt:
        finished = len(folder.journal(main).images)
        err.print(f"Stopped: {finished} of {len(run.plan)} images are finished. Go on with --resume.")
        raise typer.Exit(130) from None
    seconds["total"] = earlier + time.perf_counter() - begin
    lock.check()
    _conclude(folder.write_report(settings, facts, [arm for arm, _ in runs], seconds), out_dir)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _tuned(context: typer.Context, path: Path) -> tuple["Settings", "Basis"]:
    """What is in a file of `cotrunk tune`, none of it given on the command line as well."""
    from ..tuning.settings_file import read_settings

    for name in ("steps", "share", "similarity", "skip", "guidance_interval"):
        if _is_given(context, name):
            raise CotrunkError(f"--settings and --{name.replace('_', '-')} are both given: leave one of them out.")
    return read_settings(path)


def _warn_of_another(basis: "Basis", model: str, lora: str | None) -> None:
    """Settings that suit one model, or one LoRA, need not suit another."""
    for what, tuned, used in (("model", basis.model, model), ("LoRA", basis.lora, lora)):
        if not _is_same(tuned, used):
            text = f"the settings were tuned with another {what} ({tuned or 'none'}, not {used or 'none'})"
            say("yellow", "warning", f"{text}: cotrunk tune finds those that suit this one")


def _is_same(one: str | None, other: str | None) -> bool:
    # a folder has many names
    return one == other or (one is not None and other is not None and Path(one).resolve() == Path(other).resolve())


def _skipping(tolerance: str | None) -> Skipping | None:
    if tolerance is None:
        return None
    if tolerance == DEFAULT_TOLERANCE:
        return Skipping()
    try:
        number = float(tolerance)
    except ValueError:
        raise CotrunkError(f"--skip {tolerance!r} is no number: use 0.02, say, or leave it out.") from None
    return Skipping(tolerance=number)


def _arms(independent: "Plan", equal: "Plan") -> tuple["Arm", "Arm"]:
    """The arms for comparison: independent sampling from the same noise, in as many steps and at equal cost."""
    from ..runs.folder import COMPARED, Arm

    return (
        Arm("independent", independent, COMPARED["independent"]),
        Arm("equal_cost", equal, COMPARED["equal_cost"]),
    )


def _comparisons(
    pipe: Any, plan: "Plan", cost: "Cost", texts: list[str], arguments: dict[str, Any], batching: Batching
) -> list[tuple["Arm", "Run"]]:
    """What to run for comparison with a plan that took this many rows."""
    from ..generation import prepare
    from ..pipelines.cost import timesteps_of

    # the most steps that cost no more rows than the run did
    for steps in range(plan.steps, 0, -1):
        try:
            counts = timesteps_of(pipe, {**arguments, "num_inference_steps": steps})
        except CotrunkError:  # too few for this scheduler
            break
        equal = plan.independent(*counts)
        if equal.cost.used <= cost.used:
            break
    runs = []
    for arm in _arms(plan.independent(), equal):
        own = Settings(steps=arm.plan.steps, batching=batching)
        runs.append((arm, prepare(pipe, texts, own, plan=arm.plan, **arguments)))
    return runs


def _denoise(folder: "RunFolder", lock: "FolderLock", runs: Sequence[tuple["Arm", "Run"]]) -> None:
    """Run what the journal does not have yet."""
    from ..runs.folder import BATCH_SECONDS, groups_of

    finished = {arm.name: folder.journal(arm) for arm, _ in runs}
    rows, images = sum(arm.plan.cost.used for arm, _ in runs), sum(len(arm.plan) for arm, _ in runs)
    before = sum(done.cost.used + left_out(done.spared) for done in finished.values())
    with (
        Bar(rows, images, before, sum(len(done.images) for done in finished.values())) as bar,
        warnings.catch_warnings(action="ignore", category=RuntimeWarning),  # NaN to pixels; reported by us
    ):
        for arm, run in runs:
            groups = groups_of(arm.plan)
            skip = finished[arm.name].images.issuperset
            for batch in run.batches(skip=skip, on_step=bar.step, seconds=BATCH_SECONDS):
                lock.check()
                folder.write_batch(arm, batch, groups)
                bar.batch(batch.cost.used + left_out(batch.spared), len(batch.images))


def _conclude(report: dict[str, Any], folder: Path) -> None:
    """Print the summary. Exit code 1 if not every image is what was asked for: some failed, or a safety checker put a
    black picture in their place."""
    if report["status"] == "running":
        raise CotrunkError(
            f"Pictures in {folder} were removed or changed while the run went on: make them again with --resume."
        )
    print_summary(report, folder)
    count, images = len(report["images"]), report["images"]
    failed = [image["file"] for image in images if image["failed"]]
    flagged = [image["file"] for image in images if image["flagged"] and not image["failed"]]
    if failed:
        say("red", "failed", f"{len(failed)} of {count} images hold NaN: {_some(failed)}")
    if flagged:
        say(
            "red", "flagged", f"the model's safety checker blackened {len(flagged)} of {count} images: {_some(flagged)}"
        )
    if failed or flagged:
        raise typer.Exit(1)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
