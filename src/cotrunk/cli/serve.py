"""`cotrunk serve`."""

import logging
import os
from dataclasses import replace
from pathlib import Path

from ..checks import number, one_of, whole
from ..cluster.scale import Scale
from ..errors import CotrunkError
from ..pipelines.weighted_lora import loras_of
from ..settings import DEFAULT_SHARING, Settings
from ..storage.urls import DATABASE
from .console import out
from .inputs import check_numbers, sharing_of, skipping_of
from .model_options import Config, Loras, OffloadName, Revision, VaeTiling, Variant
from .options import (
    Compile,
    Device,
    Dtype,
    Encoder,
    FidelityName,
    GuidanceInterval,
    MaxGroup,
    MaxRows,
    Model,
    ModeName,
    NoiseName,
    Scheduler,
    Share,
    Similarity,
    Skip,
    Steps,
    Tolerance,
    TrunkGuidance,
)
from .service_options import (
    BatchWaitMs,
    Cpus,
    Data,
    Database,
    Gpus,
    Host,
    Images,
    KeepDays,
    LogPrompts,
    MostBatches,
    MostBody,
    MostCharacters,
    MostFile,
    MostImages,
    MostOfKey,
    MostPixels,
    MostPlans,
    MostPrompts,
    MostQueued,
    MostSide,
    MostSteps,
    MostStored,
    MostWait,
    PerMinute,
    Port,
    Ray,
    Replicas,
    Timeout,
    TrunkPlace,
    Trunks,
    WaitMs,
)

TRUNKS = ("own", "shared", "stems", "off")
LARGEST_PORT = 65_535
LONGEST_WAIT_MS = 600_000


def serve(
    model: Model = "mini",
    port: Port = 8000,
    host: Host = "127.0.0.1",
    data: Data = Path("cotrunk-data"),
    database: Database = None,
    images: Images = None,
    trunks: Trunks = "own",
    trunk_folder: TrunkPlace = None,
    ray: Ray = None,
    replicas: Replicas = None,
    gpus: Gpus = None,
    cpus: Cpus = None,
    steps: Steps = None,
    wait_ms: WaitMs = 50,
    batch_wait_ms: BatchWaitMs = 5_000,
    keep_days: KeepDays = 30.0,
    log_prompts: LogPrompts = False,
    max_n: MostImages = 10,
    max_steps: MostSteps = 150,
    max_side: MostSide = 2048,
    max_pixels: MostPixels = 2048 * 2048,
    max_prompt: MostCharacters = 32_000,
    max_prompts: MostPrompts = 10_000,
    max_wait_ms: MostWait = 60_000,
    max_body: MostBody = 16,
    max_file: MostFile = 64,
    max_queued_rows: MostQueued = 100_000,
    max_key_rows: MostOfKey = 50_000,
    max_key_plans: MostPlans = 4,
    max_key_batches: MostBatches = 100,
    max_key_files: MostStored = 1024,
    requests_per_minute: PerMinute = 0,
    timeout: Timeout = 600.0,
    skip: Skip = None,
    tolerance: Tolerance = None,
    fidelity: FidelityName = None,
    guidance_interval: GuidanceInterval = None,
    share: Share = DEFAULT_SHARING.share,
    similarity: Similarity = "auto",
    max_group: MaxGroup = 5,
    mode: ModeName = "flat",
    encoder: Encoder = "pipeline",
    noise: NoiseName = "auto",
    trunk_guidance: TrunkGuidance = "auto",
    config: Config = None,
    revision: Revision = None,
    variant: Variant = None,
    lora: Loras = None,
    scheduler: Scheduler = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compiled: Compile = False,
    offload: OffloadName = None,
    vae_tiling: VaeTiling = False,
    max_rows: MaxRows = None,
) -> None:
    """Serve images over HTTP: similar prompts of one key share their early steps, also when they arrive one by one.

    Speaks OpenAI's Images and Batches APIs, and shows a page. Without keys, only this machine can use it.

    Examples:

        cotrunk serve --model mini --port 8000 --data service

        cotrunk keys add anna --data service
    """
    whole("--port", port, 0, LARGEST_PORT)
    whole("--wait-ms", wait_ms, 0, LONGEST_WAIT_MS)
    whole("--batch-wait-ms", batch_wait_ms, 0, LONGEST_WAIT_MS)
    number("--keep-days", keep_days)
    one_of("--trunks", trunks, TRUNKS)
    scale = scale_of(ray, replicas, gpus, cpus)
    check_numbers(steps, None, 0, 1)
    loras = loras_of(lora)
    sharing = sharing_of(share, similarity, max_group, mode, encoder, noise, trunk_guidance)
    settings = Settings(sharing, skipping_of(skip, tolerance, fidelity), guidance_interval, steps)
    if max_rows is not None:
        whole("--max-rows", max_rows, 1)
        settings = replace(settings, batching=replace(settings.batching, max_rows=max_rows))
    check_installed()

    from ..service.api.limits import Limits
    from ..service.api.server import Serving, database_in, images_in
    from ..service.api.server import serve as run
    from ..service.launch import WorkerSettings

    worker = WorkerSettings(
        database=database_in(data, database or os.environ.get(DATABASE)),
        images=images_in(data, images),
        data=str(data.absolute()),
        keep_days=keep_days,
        model=model,
        loading={
            "device": device,
            "dtype": dtype,
            "config": config,
            "revision": revision,
            "variant": variant,
            "lora": [str(each) for each in loras] or None,
            "scheduler": scheduler,
            "offload": offload,
            "vae_tiling": vae_tiling,
            "compiled": compiled,
        },
        settings=settings.to_json(),
        trunks=trunks,
        trunk_folder=trunk_folder,
        wait_ms=wait_ms,
        batch_wait_ms=batch_wait_ms,
    )
    limits = Limits(
        n=max_n,
        steps=max_steps,
        side=max_side,
        pixels=max_pixels,
        prompt=max_prompt,
        prompts=max_prompts,
        wait_ms=max_wait_ms,
        body_mib=max_body,
        file_mib=max_file,
        queued_rows=max_queued_rows,
        key_rows=max_key_rows,
        key_plans=max_key_plans,
        key_batches=max_key_batches,
        key_files_mib=max_key_files,
        requests_per_minute=requests_per_minute,
        timeout=timeout,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)

    def started(address: str) -> None:
        out.print(f"cotrunk serves {model} at {address} (the API is described at {address}/docs)", soft_wrap=True)

    asked = Serving(worker, host, port, limits, log_prompts, keep_days)
    if ray is None:
        run(asked, started)
    else:
        from ..cluster.serving.launch import serve_on_ray

        serve_on_ray(asked, ray, scale, started)


def scale_of(ray: str | None, replicas: int | None, gpus: float | None, cpus: float | None) -> Scale:
    """Return how many copies of the model there are.

    Raises:
        CotrunkError: a value is out of its range, or has no meaning without --ray.
    """
    given = {"--replicas": replicas, "--gpus": gpus, "--cpus": cpus}
    for name, value in given.items():
        if ray is None and value is not None:
            raise CotrunkError(
                f"{name} needs --ray: add --ray local for this machine, or --ray HOST:PORT for a cluster."
            )
    return Scale(1 if replicas is None else replicas, gpus, cpus)


def check_installed() -> None:
    """Check that the packages of the extra `serve` are installed.

    Raises:
        CotrunkError: they are not.
    """
    try:
        import fastapi  # noqa: F401
        import sqlalchemy  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise CotrunkError(f"cotrunk serve needs the package {error.name}: pip install 'cotrunk[serve]'.") from None
