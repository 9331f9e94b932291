"""What the worker process is started with."""

import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, Self

MODULE = "cotrunk.service.worker"


@dataclass(frozen=True)
class WorkerSettings:
    """The settings of a worker. All of them are JSON values.

    Attributes:
        database: URL of the database, as `Store` takes it.
        images: folder or fsspec URL of the images.
        data: folder for whatever else is kept, such as trunks.
        model: as for `load_pipeline`.
        loading: further keyword arguments of `load_pipeline`.
        settings: of runs: `Settings.to_json()`.
        trunks: who may use a trunk: "off", "own", "stems" or "shared".
        wait_ms: how long an image waits for similar ones.
        batch_wait_ms: how long an image of a batch waits.
        lease_seconds: how long the images of a worker that gives no sign of life stay its own.
    """

    database: str
    images: str
    data: str
    model: str
    loading: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    trunks: str = "own"
    wait_ms: int = 50
    batch_wait_ms: int = 5_000
    lease_seconds: float = 30.0

    def command(self, descriptor: int) -> list[str]:
        """Return the command line of a worker whose end of the channel is an inherited file descriptor."""
        # on the command line, and not in the environment, which child processes would inherit
        return [sys.executable, "-m", MODULE, "--settings", json.dumps(asdict(self)), "--channel", str(descriptor)]

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the settings from the value of `--settings`."""
        return cls(**json.loads(text))
