"""What `device.py` measures, most important first, and how a rehearsal shrinks it."""

from collections.abc import Iterator, Sequence

from device_measure import Measurement
from device_models import MODELS
from device_settings import CURVE, TOKENS

REHEARSED_PIXELS = {512: 64, 1024: 128}
REHEARSED_IMAGES = 4  # the most


def measurements() -> Iterator[Measurement]:
    """Yield all measurements, most important first."""
    alone = ("independent", "one in 3", "default rule")
    few = ("independent", "shared", "one in 3", "shared + one in 3")
    more = (*few, "own noise", "own noise + one in 3", "default rule")
    caches = ("TaylorSeer, interval 3", "first-block cache, always")
    half, *other_tokens = TOKENS
    yield from many("step", "sdxl", 1024, (4,))
    yield from many("hook", "sdxl", 1024, (4,))
    yield from many("curve", "sdxl", 1024, (4,), more)
    yield from many("step", "sdxl", 1024, (1, 16, 8, 2))
    yield from many("hook", "sdxl", 1024, (1,))
    yield from many("curve", "sdxl", 1024, (1,), alone)
    yield from many("curve", "sdxl", 1024, (16,), (*few, "staggered trees", "default rule"))
    yield from many("step", "flux", 1024, (1, 4))
    yield from many("hook", "flux", 1024, (1,))
    yield from many("curve", "flux", 1024, (4,), (*few, "default rule"))
    yield from many("step", "sd15", 512, (1, 4, 16, 64, 2, 8, 32))
    yield from many("hook", "sd15", 512, (1, 16))
    yield from many("curve", "sd15", 512, (1,), alone)
    yield from many("curve", "sd15", 512, (16,), tuple(CURVE))
    yield from many("curve", "sd15", 512, (4, 64), few)
    for model in ("pixart", "sd35m"):
        yield from many("step", model, 1024, (1, 4, 16))
        yield from many("hook", model, 1024, (1,))
        yield from many("curve", model, 1024, (4,), few)
    yield from many("step", "sd35l", 1024, (1, 4))
    yield from many("curve", "sd35l", 1024, (4,), ("independent", "shared + one in 3"))
    yield from many("tokens", "flux", 1024, (4,), (half,))
    yield from many("tokens", "pixart", 1024, (4,), tuple(TOKENS))
    yield from many("tokens", "sdxl", 1024, (4,), tuple(TOKENS))
    yield from many("compile", "sdxl", 1024, (8,), ("not compiled", "blocks, row_sizes", "blocks, any rows"))
    for model, pixels, batch in (("sdxl", 1024, 4), ("flux", 1024, 4), ("sd15", 512, 16), ("pixart", 1024, 4)):
        own = ("DeepCache, interval 3",) if MODELS[model].is_unet else caches
        yield from many("rival", model, pixels, (batch,), ("nothing", *own))
    # last: what takes long, and sizes between or around those above
    yield from many("compile", "sdxl", 1024, (8,), ("blocks, each number of rows",))
    yield from many("curve", "sdxl", 1024, (8,), few)
    yield from many("step", "sdxl", 512, (1, 4, 16, 64))
    yield from many("step", "sdxl", 1024, (32, 64))
    yield from many("compile", "sd15", 512, (16,), ("not compiled", "denoiser, any rows (--compile)"))
    yield from many("step", "sd15", 1024, (1, 4, 16))
    yield from many("tokens", "sd35m", 1024, (4,), tuple(TOKENS))
    yield from many("step", "sd35m", 512, (1, 4, 16))
    yield from many("step", "pixart", 512, (1, 4, 16, 64))
    yield from many("step", "flux", 512, (1, 4, 16))
    yield from many("tokens", "flux", 1024, (4,), tuple(other_tokens))
    yield from many("step", "flux", 1024, (8, 16))


def rehearsed(m: Measurement) -> Measurement:
    """Return the same measurement in tiny."""
    return Measurement(m.what, m.model, REHEARSED_PIXELS[m.pixels], min(m.batch, REHEARSED_IMAGES), m.setting)


def many(
    what: str, model: str, pixels: int, batches: Sequence[int], settings: Sequence[str] = ("",)
) -> Iterator[Measurement]:
    return (Measurement(what, model, pixels, batch, setting) for batch in batches for setting in settings)
