"""The options of `cotrunk serve` and `cotrunk keys`."""

from pathlib import Path
from typing import Annotated

from .options import COMMON, option

SERVICE, LIMITS = "Service", "Limits"

Data = Annotated[
    Path,
    option(COMMON, "DIR", "Folder for the database, images and trunks, unless other options say where they are."),
]
Database = Annotated[
    str | None,
    option(
        COMMON,
        "URL",
        "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME; by default a file in --data. Also read from the "
        "environment variable COTRUNK_DATABASE.",
        "--database",
    ),
]
Images = Annotated[
    str | None,
    option(COMMON, "URL", "Where images are written: a folder, or a URL that fsspec knows, such as s3://BUCKET/PATH."),
]
Host = Annotated[
    str, option(COMMON, "ADDRESS", "Address to listen at; one that other machines reach needs keys (cotrunk keys add).")
]
Port = Annotated[int, option(COMMON, "N", "Port to listen at; 0 for a free one.")]
Ray = Annotated[
    str | None,
    option(
        COMMON,
        "ADDRESS",
        "Serve on a Ray cluster: HOST:PORT of its head node, auto on one of its machines, or local to start Ray here.",
        "--ray",
    ),
]
Replicas = Annotated[
    int | None, option(SERVICE, "N", "With --ray: how many copies of the model generate; by default 1.")
]
Gpus = Annotated[
    float | None, option(SERVICE, "N", "With --ray: GPUs of each copy; by default 1, or 0 with --device cpu.")
]
Cpus = Annotated[
    float | None, option(SERVICE, "N", "With --ray: cores of each copy; by default 1 without a GPU, else 0.")
]
Trunks = Annotated[
    str,
    option(
        COMMON,
        "WHO",
        "Whose trunks a prompt may use: own (of the same key), shared (of all), stems (the operator's list), or off.",
    ),
]
TrunkPlace = Annotated[
    str | None,
    option(
        SERVICE,
        "PLACE",
        "With PostgreSQL: a folder or URL where all machines share trunks; by default each has its own in --data.",
        "--trunk-folder",
    ),
]
WaitMs = Annotated[int, option(SERVICE, "N", "Milliseconds that a request waits for similar prompts at most.")]
BatchWaitMs = Annotated[int, option(SERVICE, "N", "Milliseconds that an image of a batch waits at most.")]
KeepDays = Annotated[
    float, option(SERVICE, "N", "Remove jobs, images and files so many days after they have ended; 0 keeps them.")
]
LogPrompts = Annotated[bool, option(SERVICE, "", "Write prompts to the log, which it does not hold otherwise.")]

MostImages = Annotated[int, option(LIMITS, "N", "Images per prompt.", "--max-n")]
MostSteps = Annotated[int, option(LIMITS, "N", "Inference steps.", "--max-steps")]
MostSide = Annotated[int, option(LIMITS, "N", "Width or height in pixels.", "--max-side")]
MostPixels = Annotated[int, option(LIMITS, "N", "Width times height.", "--max-pixels")]
MostCharacters = Annotated[int, option(LIMITS, "N", "Characters of a prompt.", "--max-prompt")]
MostPrompts = Annotated[int, option(LIMITS, "N", "Prompts in one job, or requests in one batch.", "--max-prompts")]
MostWait = Annotated[int, option(LIMITS, "N", "Milliseconds of wait_ms in a request.", "--max-wait-ms")]
MostBody = Annotated[int, option(LIMITS, "N", "Size of a request in MiB.", "--max-body")]
MostFile = Annotated[int, option(LIMITS, "N", "Size of an uploaded file in MiB.", "--max-file")]
MostQueued = Annotated[
    int, option(LIMITS, "N", "Denoiser rows that may wait; further requests get 429.", "--max-queued-rows")
]
MostOfKey = Annotated[
    int, option(LIMITS, "N", "Denoiser rows of one key that may wait; larger jobs wait in parts.", "--max-key-rows")
]
MostPlans = Annotated[int, option(LIMITS, "N", "Plans that a key may wait for at once.", "--max-key-plans")]
MostBatches = Annotated[int, option(LIMITS, "N", "Batches of a key that have not ended.", "--max-key-batches")]
MostStored = Annotated[int, option(LIMITS, "N", "Size of the files of a key together in MiB.", "--max-key-files")]
PerMinute = Annotated[int, option(LIMITS, "N", "Requests per key and minute; 0 for no limit.", "--requests-per-minute")]
Timeout = Annotated[float, option(LIMITS, "SECONDS", "Longest time that a request waits for its images.", "--timeout")]
