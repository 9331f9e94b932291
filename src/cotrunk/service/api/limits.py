"""What a request may ask for, and how much may wait."""

from dataclasses import dataclass, fields

from ...checks import number, whole


@dataclass(frozen=True)
class Limits:
    """Bounds of requests. A request beyond one of them is refused before anything is computed.

    Attributes:
        n: images per prompt.
        steps: inference steps.
        guidance_scale: guidance scale.
        side: width or height in pixels.
        pixels: width times height.
        prompt: characters of a prompt or a negative prompt.
        prompts: prompts in one job, and requests in one batch.
        images: images of one job or one batch.
        wait_ms: how long an image may wait for similar ones.
        body_mib: size of a request in MiB.
        file_mib: size of an uploaded file in MiB.
        queued_rows: denoiser rows that may wait, of all owners together.
        key_rows: denoiser rows of one key that may wait. A larger job enters the queue in parts.
        key_plans: plans that a key may wait for at the same time.
        key_batches: batches of a key that have not ended.
        key_files_mib: size of the uploaded files of a key together, in MiB.
        requests_per_minute: requests per key; 0 for no limit.
        timeout: seconds after which a blocking request ends.
    """

    n: int = 10
    steps: int = 150
    guidance_scale: float = 50.0
    side: int = 2048
    pixels: int = 2048 * 2048
    prompt: int = 32_000
    prompts: int = 10_000
    images: int = 20_000
    wait_ms: int = 60_000
    body_mib: int = 16
    file_mib: int = 64
    queued_rows: int = 100_000
    key_rows: int = 50_000
    key_plans: int = 4
    key_batches: int = 100
    key_files_mib: int = 1024
    requests_per_minute: int = 0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in ("guidance_scale", "timeout"):
                number(f"limit {each.name}", value, above=0)
            else:
                whole(f"limit {each.name}", value, 0 if each.name in ("requests_per_minute", "wait_ms") else 1)
