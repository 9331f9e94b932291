"""The measurements of `device.py`: each takes a model in its pipeline, and returns its figures.

Times are medians. Device work is asynchronous, so steps are timed by events on the device, and calls between two
synchronisations. Every shape runs once untimed before it is timed.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from device_models import GROUP, Built
from device_settings import COMPILE, CURVE, EVERY, TOKENS, Compilation, Setting
from rivals import deep_cache, first_block_cache, taylor_seer

from cotrunk import Batching, generate

ALWAYS = 1e9  # a threshold of the first-block cache that every step meets
GRAPHS = 64  # most graphs of one block: torch's limit of 8 leaves blocks of several widths uncompiled


@dataclass(frozen=True)
class Measurement:
    """What is measured: the key of a line in `points.jsonl`."""

    what: str
    model: str
    pixels: int
    batch: int
    setting: str = ""

    @property
    def key(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scale:
    """How long the measurements are. Few seconds of a call are spent outside its steps, so `steps` need not be many."""

    steps: int = 20  # of a run that shares or skips; half of them where torch compiles
    short: int = 8  # of a run that shares and skips nothing
    runs: int = 3  # most runs behind a median
    backend: str = "inductor"  # of torch.compile


class Bench:
    """One model, ready for measurements.

    Args:
        built: the model in its pipeline.
        scale: how long the measurements are.
        seconds: about how long the runs behind one median may take.
    """

    def __init__(self, built: Built, scale: Scale, seconds: float) -> None:
        self.built, self.scale, self.seconds = built, scale, seconds
        self._inputs: dict[tuple[int, int], dict[str, Any]] = {}
        self._warm: set[tuple[int, int]] = set()

    def inputs(self, m: Measurement) -> dict[str, Any]:
        size = (m.batch, m.pixels)
        if size not in self._inputs:
            self._inputs = {size: self.built.inputs(*size)}  # only the latest, to keep memory free
        return self._inputs[size]

    def bare(self, m: Measurement, steps: int, clock: "Clock | None" = None) -> float:
        """Call the pipeline itself; return the seconds of the call."""
        generators = [torch.Generator().manual_seed(image) for image in range(m.batch)]
        called: dict[str, Any] = {} if clock is None else {self.built.model.callback: clock}
        begin = self.now()
        self.built.pipe(**self.inputs(m), **called, generator=generators, num_inference_steps=steps)
        return self.now() - begin

    def cotrunk(self, m: Measurement, steps: int, setting: "Setting", clock: "Clock | None" = None) -> Any:
        """Generate the same images with cotrunk; return its result."""
        called: dict[str, Any] = {} if clock is None else {self.built.model.callback: clock}
        return generate(
            self.built.pipe,
            plan=setting.plan(m.batch, steps, self.built.rows_per_image),
            skipping=setting.skipping,
            batching=Batching(m.batch, row_sizes=self.row_sizes(m) if setting.row_sizes else None),
            num_inference_steps=steps,
            **self.inputs(m),
            **called,
        )

    def row_sizes(self, m: Measurement) -> tuple[int, ...]:
        """Return a quarter, a half and all of the rows of a full step."""
        rows = m.batch * self.built.rows_per_image
        return tuple(sorted({max(1, rows // 4), max(1, rows // 2), rows}))

    def warm_up(self, m: Measurement) -> None:
        """Run this number of images and of pixels once in few steps, whole and shared."""
        if (m.batch, m.pixels) not in self._warm:
            self.bare(m, 2)
            if m.batch % GROUP == 0:
                self.cotrunk(m, 6, CURVE["shared + one in 3"])
            self._warm.add((m.batch, m.pixels))

    def repeated(self, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the median of every number over some runs: as many as the time allows, and the scale asks for."""
        begin, made = self.now(), [run()]
        while len(made) < self.scale.runs and (self.now() - begin) * (len(made) + 1) / len(made) < self.seconds:
            made.append(run())
        return {name: statistics.median(each[name] for each in made) for name in made[0]} | {"runs": len(made)}

    def now(self) -> float:
        if self.built.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class Clock:
    """Marks the end of every step; passed to the pipeline as its callback."""

    def __init__(self, device: torch.device) -> None:
        self.on_device, self.marks = device.type == "cuda", list[Any]()

    def __call__(self, *args: Any) -> Any:
        if self.on_device:
            mark: Any = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self.marks.append(mark)
        return args[3] if len(args) > 3 else None  # the newer form of a callback returns its arguments

    def step(self) -> float:
        """Return the median seconds of a step, without the first two."""
        pairs = list(zip(self.marks[1:], self.marks[2:], strict=False))
        if not self.on_device:
            return statistics.median(end - start for start, end in pairs)
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1000


def step(bench: Bench, m: Measurement) -> dict[str, Any]:
    """Measure a step of the pipeline itself."""
    bench.bare(m, 2)
    clock, rows = Clock(bench.built.device), m.batch * bench.built.rows_per_image
    bench.bare(m, bench.scale.short, clock)
    seconds = clock.step()
    return {"rows": rows, "seconds": seconds, "rows_per_second": rows / seconds}


def hook(bench: Bench, m: Measurement) -> dict[str, Any]:
    """Measure what cotrunk adds while it shares and skips nothing: per step, and once per call."""
    bench.warm_up(m)
    steps = bench.scale.short

    def pair() -> dict[str, Any]:
        bare, hooked = Clock(bench.built.device), Clock(bench.built.device)
        call = bench.bare(m, steps, bare)
        begin = bench.now()
        bench.cotrunk(m, steps, CURVE["independent"], hooked)
        extra = bench.now() - begin - call
        per_step = hooked.step() - bare.step()
        return {"bare": bare.step(), "hooked": hooked.step(), "extra": per_step, "once": extra - steps * per_step}

    return bench.repeated(pair)


def generated(bench: Bench, m: Measurement, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Measure rows and seconds of one setting."""
    bench.warm_up(m)
    return bench.repeated(partial(_run, bench, m, settings[m.setting], bench.scale.steps))


def _run(bench: Bench, m: Measurement, setting: Setting, steps: int) -> dict[str, Any]:
    result = bench.cotrunk(m, steps, setting)
    return {
        "rows": result.cost.used,
        "rows_full": result.cost.independent,
        "steps": steps,
        "seconds": result.seconds["denoise"],
        "failed": len(result.failed),
    }


def compiled(bench: Bench, m: Measurement) -> dict[str, Any]:
    """Measure the first run of staggered trees, which compiles, and later ones."""
    how = COMPILE[m.setting]
    setting = Setting(staggered=True, row_sizes=how is not None and how.row_sizes)
    bench.warm_up(m)
    run = partial(_run, bench, m, setting, bench.scale.steps // 2)
    with nullcontext() if how is None else _compiled(bench.built.denoiser, how, bench.scale.backend):
        first = run()["seconds"]
        later = bench.repeated(run)
        graphs = 0 if how is None else torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return later | {"first": first, "graphs": graphs}


@contextmanager
def _compiled(denoiser: Any, how: Compilation, backend: str) -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_it = denoiser.compile if how.whole else denoiser.compile_repeated_blocks
    compile_it(dynamic=how.dynamic, backend=backend)
    try:
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):
            yield
    finally:
        for module in denoiser.modules():
            module._compiled_call_impl = None
        torch._dynamo.reset()


RIVALS: Mapping[str, Callable[[Any], AbstractContextManager[None]]] = {
    "nothing": nullcontext,
    "DeepCache, interval 3": partial(deep_cache, interval=EVERY),
    "TaylorSeer, interval 3": partial(taylor_seer, interval=EVERY, dtype=torch.bfloat16),
    "first-block cache, always": partial(first_block_cache, threshold=ALWAYS),
}


def rival(bench: Bench, m: Measurement) -> dict[str, Any]:
    """Measure another method on the pipeline itself, and count the steps that compute the middle of the denoiser."""
    bench.bare(m, 2)
    with RIVALS[m.setting](bench.built.pipe):
        return bench.repeated(lambda: _rival_run(bench, m))


def _rival_run(bench: Bench, m: Measurement) -> dict[str, Any]:
    calls: list[None] = []
    deep = _middle(bench.built.denoiser).register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        seconds = bench.bare(m, bench.scale.steps)
    finally:
        deep.remove()
    return {"seconds": seconds, "steps": bench.scale.steps, "computed": len(calls)}


def _middle(denoiser: Any) -> torch.nn.Module:
    """Return a layer in the middle of the denoiser, which runs when its blocks are computed and not when cached."""
    if hasattr(denoiser, "mid_block"):
        return denoiser.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    block = denoiser.transformer_blocks[len(denoiser.transformer_blocks) // 2]
    return (block.attn if hasattr(block, "attn") else block.attn1).to_q


KINDS: Mapping[str, Callable[[Bench, Measurement], dict[str, Any]]] = {
    "step": step,
    "hook": hook,
    "curve": partial(generated, settings=CURVE),
    "tokens": partial(generated, settings=TOKENS),
    "compile": compiled,
    "rival": rival,
}
