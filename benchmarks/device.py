"""Measure cotrunk on an accelerator: in one command, in at most eight minutes, without a download.

    pip install -c constraints.txt -e '.[evaluate]' DeepCache      # torch must see the accelerator: see below
    python benchmarks/device.py --out docs/results/device

    python benchmarks/device.py --rehearse --out /tmp/rehearsal    # the same on tiny shapes on the CPU, in a minute

It builds denoisers of real shapes with random weights, in the real pipelines of diffusers: SD 1.5, SDXL, SD 3.5, Flux
dev and PixArt Sigma, in bfloat16. It measures, most important first:

1. SDXL at 1024 pixels: seconds per step, what the hook costs while nothing is shared, and seconds against rows for
   sharing, skipping and both, for 1 to 16 images.
2. The same for Flux dev at 1024 pixels.
3. SD 1.5 at 512 pixels, 1 to 64 images.
4. SD 3.5 (large and medium) and PixArt Sigma.
5. Token-wise skipping at 1024 pixels: does it pay where tokens are many?
6. torch.compile with and without `Batching(row_sizes=...)`.
7. DeepCache, TaylorSeer and the first-block cache, next to cotrunk's skipping.
8. Steps at other sizes.

Every measurement is at once a line of `points.jsonl`, and `table.md` is written after each. So an interrupted run
(SIGTERM, Ctrl-C, `--seconds`) is useful, and running the command again measures what is missing. `--seconds 0` only
writes the table and the figure. Running out of memory is a result, and so is taking longer than the limit of a
measurement (`BUDGET`). What failed for another reason is measured again.

Random weights give outputs that are not smooth over the steps. So nothing here says how good images are, nor how many
steps the default rule skips on a trained model. Therefore the fixed rule, one step in three, is measured as well: what
skipping that many steps saves in time depends on the shapes alone. Latents are checked to be finite.

It needs torch for this accelerator, diffusers, transformers, accelerate, scipy and pydantic. On Linux the usual wheel
of torch brings its own CUDA. With a driver that is too old for it, first install the same version of torch built for
an older CUDA. Without matplotlib there is a table and no figure; without DeepCache two lines fail. Where all of these
are installed, `PYTHONPATH=src` replaces the installation of cotrunk.
"""

import argparse
import gc
import json
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from device_measure import KINDS, Bench, Measurement, Scale
from device_models import MODELS, Built
from device_order import measurements, rehearsed
from device_report import write_report

import cotrunk
from cotrunk.files import read_lines

# the most seconds of one measurement
BUDGET = {"step": 20.0, "hook": 20.0, "curve": 40.0, "tokens": 40.0, "compile": 60.0, "rival": 40.0}
MEDIAN_SECONDS = 4.0  # about how long the runs behind one median take
REPORT_SECONDS = 8.0  # kept for the last table and the figure


class Stopped(BaseException):
    """The run must end: by a signal, or because its time is used up."""


class TooSlow(BaseException):
    """A measurement took longer than its limit."""


@contextmanager
def signals() -> Iterator[None]:
    """Turn the signals that end a process into `Stopped`, until the end of the block."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped(signal.Signals(number).name)

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def limited(seconds: float, error: BaseException) -> Iterator[None]:
    """Raise the error in this block if it takes longer."""

    def expire(number: int, frame: Any) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Points:
    """The measured points in `points.jsonl`, after a first line about the device. Points of earlier runs count."""

    def __init__(self, out: Path, header: dict[str, Any]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.file, self.header = out / "points.jsonl", header
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        if text and not text.endswith("\n"):  # a killed run may leave half a line
            self.file.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
        lines = read_lines(self.file) if self.file.exists() else []
        if lines and lines[0] != header:
            sys.exit(
                f"{self.file} is from {json.dumps(lines[0])}, and here is {json.dumps(header)}: use another --out."
            )
        self.all = {self.key(point): point for point in lines[1:]}
        if not lines:
            self._append(header)

    @staticmethod
    def key(point: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(point[name] for name in ("what", "model", "pixels", "batch", "setting"))

    def has(self, m: Measurement) -> bool:
        """Return whether it is measured. What failed is measured again: its reason may be gone."""
        return self.all.get(self.key(m.key), {}).get("status", "failed") != "failed"

    def add(self, point: dict[str, Any]) -> None:
        self.all[self.key(point)] = point
        self._append(point)

    def _append(self, line: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


class Runner:
    """Builds one model after another, and measures.

    Args:
        device, dtype: of the models.
        is_rehearsal: whether the shapes are tiny.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, *, is_rehearsal: bool) -> None:
        self.device, self.dtype, self.is_rehearsal = device, dtype, is_rehearsal
        self.scale = Scale(steps=10, short=4, runs=1, backend="eager") if is_rehearsal else Scale()
        self.bench: Bench | None = None

    def point(self, m: Measurement, left: float) -> dict[str, Any]:
        """Return the line of a measurement, whatever becomes of it.

        Raises:
            Stopped: the `left` seconds of the whole run are over, or a signal came.
        """
        begin = time.monotonic()
        own = BUDGET[m.what]
        try:
            with limited(min(own, left), TooSlow() if own <= left else Stopped("--seconds")):
                found = self.measured(m)
        except TooSlow:
            found = {"status": "too slow", "limit": own}
        except torch.OutOfMemoryError:
            found = {"status": "out of memory"}
        except Exception as error:
            if "CUDA error" in str(error):  # the device is of no more use to this process
                raise
            found = {"status": "failed", "why": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300]}
        if found["status"] != "ok":  # not inside `except`: the exception holds frames, and they hold tensors
            self.free()
        found = {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in found.items()}
        return m.key | found | {"took": round(time.monotonic() - begin, 2)}

    def measured(self, m: Measurement) -> dict[str, Any]:
        model = MODELS[m.model]
        if self.bench is None or self.bench.built.model is not model:
            self.free()
            built = Built.of(model, self.device, self.dtype, is_tiny=self.is_rehearsal)
            self.bench = Bench(built, self.scale, MEDIAN_SECONDS)
        if self.device.type != "cuda":
            return {"status": "ok"} | KINDS[m.what](self.bench, m)
        torch.cuda.reset_peak_memory_stats()
        halvings = torch.cuda.memory_stats().get("num_ooms", 0)
        figures = KINDS[m.what](self.bench, m)
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        # cotrunk runs fewer rows at once when memory runs out
        figures["halvings"] = torch.cuda.memory_stats().get("num_ooms", 0) - halvings
        return {"status": "ok"} | figures

    def free(self) -> None:
        """Free the model."""
        self.bench = None
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def described(device: torch.device, dtype: torch.dtype, is_rehearsal: bool) -> dict[str, Any]:
    """Return the first line of `points.jsonl`."""
    on_device = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_device else f"CPU ({platform.machine()})",
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30) if on_device else None,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "cotrunk": cotrunk.__version__,
        "rehearsal": is_rehearsal,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of points.jsonl, table.md and figure.png")
    parser.add_argument("--seconds", type=float, default=480.0, help="end after so many (480)")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="only these")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU, to try the command")
    args = parser.parse_args(arguments)
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here: install torch for your GPU, or use --rehearse on a CPU.")
    device = torch.device("cpu" if args.rehearse else "cuda")
    dtype = torch.float32 if args.rehearse else torch.bfloat16
    points = Points(args.out, described(device, dtype, args.rehearse))
    asked = (m for m in measurements() if m.model in args.models)
    todo = dict.fromkeys(map(rehearsed, asked) if args.rehearse else asked)
    runner = Runner(device, dtype, is_rehearsal=args.rehearse)
    end = begin + args.seconds - REPORT_SECONDS
    with signals(), torch.no_grad():
        try:
            for m in todo:
                if points.has(m):
                    continue
                if time.monotonic() >= end:
                    raise Stopped("--seconds")
                points.add(point := runner.point(m, end - time.monotonic()))
                print(f"{time.monotonic() - begin:5.0f} s  {json.dumps(point)}", flush=True)
                write_report(args.out, points.header, list(points.all.values()), figure=False)
        except Stopped as why:
            left = sum(not points.has(m) for m in todo)
            print(f"stopped by {why} with {left} of {len(todo)} left: run it again to measure them", flush=True)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the table comes first
            write_report(args.out, points.header, list(points.all.values()))


if __name__ == "__main__":
    main()
