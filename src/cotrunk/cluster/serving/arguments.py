"""What the application is started with by `serve run` or a configuration file of Serve, as JSON values."""

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...errors import CotrunkError
from ...service.api.limits import Limits
from ...service.api.server import Serving, database_in, images_in
from ...service.launch import WorkerSettings
from ...settings import Settings
from ...storage.urls import DATABASE
from ..scale import Scale


class Arguments(BaseModel):
    """The arguments of the application.

    Attributes:
        model: as for `cotrunk serve`.
        data: folder for trunks, and for the database and the images unless those are named; on each machine.
        database: URL of the database; without it, the environment variable COTRUNK_DATABASE, or a file in `data`.
        images: folder or URL of the images, which all machines must reach.
        replicas: how many Painters there are.
        gpus: GPUs of each Painter; without it, one if the cluster has any.
        cpus: CPU cores of each Painter; without it, none with a GPU, else one.
        trunks: who may use a trunk.
        trunk_folder: folder or URL where all machines share their trunks; without it, each has its own in `data`.
        wait_ms: how long an image waits for similar ones.
        batch_wait_ms: how long an image of a batch waits.
        lease_seconds: how long the images of a machine that gives no sign of life stay its own.
        loading: further arguments of `load_pipeline`, such as device and dtype.
        settings: of runs, as `Settings.to_json` writes them.
        limits: of requests, by the names of `Limits`.
        log_prompts: write prompts to the log.
        keep_days: remove jobs, images and files so many days after they have ended; 0 keeps them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "mini"
    data: str = "cotrunk-data"
    database: str | None = None
    images: str | None = None
    replicas: int = 1
    gpus: float | None = None
    cpus: float | None = None
    trunks: str = "own"
    trunk_folder: str | None = None
    wait_ms: int = 50
    batch_wait_ms: int = 5_000
    lease_seconds: float = 30.0
    loading: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    log_prompts: bool = False
    keep_days: float = 30.0

    def serving(self) -> Serving:
        """Return what the parts of the service are started with.

        Raises:
            CotrunkError: a value is out of its range.
        """
        settings = Settings.from_json(self.settings)
        try:
            limits = Limits(**self.limits)
        except TypeError as error:
            raise CotrunkError(f"limits: {str(error).removeprefix('Limits.__init__() ')}.") from None
        data = Path(self.data)
        worker = WorkerSettings(
            database=database_in(data, self.database or os.environ.get(DATABASE)),
            images=images_in(data, self.images),
            data=str(data.absolute()),
            model=self.model,
            loading=self.loading,
            settings=settings.to_json(),
            trunks=self.trunks,
            trunk_folder=self.trunk_folder,
            wait_ms=self.wait_ms,
            batch_wait_ms=self.batch_wait_ms,
            lease_seconds=self.lease_seconds,
            keep_days=self.keep_days,
        )
        return Serving(worker, limits=limits, logs_prompts=self.log_prompts, keep_days=self.keep_days)

    def scale(self) -> Scale:
        """Return how much of the cluster the service takes.

        Raises:
            CotrunkError: a value is out of its range.
        """
        return Scale(self.replicas, self.gpus, self.cpus)
