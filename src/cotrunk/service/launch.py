"""What the worker process is started with."""

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, Self

MODULE = "cotrunk.service.worker"
VARIABLE = "COTRUNK_WORKER"  # the environment variable with the settings


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
        trunk_folder: folder or URL of the trunks, if several machines share them: then `database`, which must be
            PostgreSQL, holds their index. None keeps them in `data`, on each machine.
        wait_ms: how long an image waits for similar ones.
        batch_wait_ms: how long an image of a batch waits.
        lease_seconds: how long the images of a worker that gives no sign of life stay its own.
        keep_days: after which trunks, and the prompts that they hold, are removed; 0 keeps them.
        is_routed: whether it is one of several workers: then it takes the images that are assigned to it, and while it
            is idle, those that it may adopt.
    """

    database: str
    images: str
    data: str
    model: str
    loading: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    trunks: str = "own"
    trunk_folder: str | None = None
    wait_ms: int = 50
    batch_wait_ms: int = 5_000
    lease_seconds: float = 30.0
    keep_days: float = 0
    is_routed: bool = False

    def command(self, descriptor: int) -> list[str]:
        """Return the command line of a worker whose end of the channel is an inherited file descriptor."""
        return [sys.executable, "-m", MODULE, "--settings", f"${VARIABLE}", "--channel", str(descriptor)]

    def environment(self) -> dict[str, str]:
        """Return the environment of a worker.

        It holds the settings, because other users of the machine can read command lines, and the URL of a database may
        have a password.
        """
        return {**os.environ, VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the settings from the value of `--settings`: JSON, or $ and the name of an environment variable."""
        return cls(**json.loads(os.environ.pop(text[1:]) if text.startswith("$") else text))
