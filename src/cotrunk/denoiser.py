"""The hook: at every denoiser call, decide row by row where the output comes from.

A pipeline called with N prompts hands its denoiser R rows a call: N, or a multiple of N where guidance is
concatenated. `sources(step)` says which of the N images are equal now: those rows run once, under the mean of their
conditions, in chunks of `max_rows`, and their output is copied. Nothing else of the pipeline changes: all N latents
exist all the time and the pipeline's own scheduler steps every one of them, so a solver's history is right at the
branch point by construction.

Everything is attached for one call of the pipeline and taken off in `finally`, without a trace.
"""

import functools
import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks.hooks import ModelHook, StateManager
from diffusers.utils.torch_utils import unwrap_module

from .errors import CotrunkError
from .rows import Folding, assemble, pick
from .solver import Solver
from .stability import Policy
from .tokens import TokenLayers

DENOISERS = ("unet", "transformer", "transformer_2")
REFRESH = 3  # forwards of a row, one of which at least computes all its tokens
SIDE_NETWORKS = ("controlnet",)  # folded like the denoiser; their rows are not counted as its

Sources = Callable[[int], tuple[int, ...]]


@dataclass
class Meter:
    """The clock and the counters of one call of the pipeline.

    Attributes:
        timesteps: scheduler steps of the whole call.
        max_rows: largest number of rows in one forward; halves when the device runs out of memory.
        row_sizes: the numbers of rows that a forward may have: it is filled up with copies to the next of these, so
            that a compiled denoiser meets few shapes. None for any number.
        on_step: called after every scheduler step.
        step: scheduler steps taken: the clock. (Timesteps will not do, PNDM repeats one; nor calls of the denoiser,
            which some pipelines call once for each guidance branch.)
        rows, rows_asked: denoiser rows computed, and those that the pipeline asked for.
        rows_filled: copies computed beside `rows`, for `row_sizes`.
        rows_spared: the difference, by what spared them: "sharing", "guidance" (off at this step), "skipping".
        computed: for each step taken, for each of the N images, whether the denoiser computed it.
        finite: (N,) booleans, False for an image whose latents, or what the decoder made of them, hold a NaN or an
            infinity.
        started, ended: `time.perf_counter()` at the first denoiser call and after the last scheduler step.
    """

    timesteps: int
    max_rows: int | None = None
    row_sizes: Sequence[int] | None = None
    on_step: Callable[["Meter"], None] | None = None
    step: int = 0
    rows: int = 0
    rows_asked: int = 0
    rows_filled: int = 0
    rows_spared: Counter[str] = field(default_factory=Counter)
    computed: list[tuple[bool, ...]] = field(default_factory=list)
    finite: torch.Tensor | None = None
    started: float | None = None
    ended: float | None = None
    _foldings: dict[Any, Folding] = field(default_factory=dict)

    def folding(
        self,
        sources: tuple[int, ...],
        rows: int,
        device: torch.device,
        computed: tuple[bool, ...] | None,
        copy: int | None,
    ) -> Folding:
        key = (sources, rows, device, computed, copy)
        if key not in self._foldings:
            self._foldings[key] = Folding(sources, rows, device, computed=computed, copy=copy)
        return self._foldings[key]

    def watch(self, finite: torch.Tensor) -> None:
        """Note the images, (N,) booleans, that are finite here; one that once was not stays so."""
        self.finite = finite if self.finite is None else self.finite & finite.to(self.finite.device)


@dataclass(frozen=True)
class RowPlan:
    """Where the rows of one call of the pipeline come from, step by step.

    Attributes:
        sources: step -> for each image, the image whose row it takes.
        policy: which images are computed, and what stands in for the others; None to compute all.
        interval: guidance is on at the steps from the first of these to before the second; None for all steps.
        conditional_copy: of the two copies of concatenated guidance, the one with the prompts.
        tokens: share of the tokens that are computed where the policy takes that for enough; None for all, always.
    """

    sources: Sources
    policy: Policy | None = None
    interval: tuple[int, int] | None = None
    conditional_copy: int = 1
    tokens: float | None = None

    @property
    def remembers(self) -> bool:
        """Whether an answer may be needed again."""
        return self.policy is not None or self.interval is not None

    def computes(self, step: int) -> tuple[bool, ...] | None:
        if self.policy is None:
            return None
        sources, computed = self.sources(step), self.policy.computes(step)
        if not computed:
            return None
        # the decisions of one group are equal, as their outputs are; should rounding part them, the first one's holds
        return tuple(computed[source] for source in sources)

    def unguided(self, step: int) -> bool:
        return self.interval is not None and not self.interval[0] <= step < self.interval[1]


@dataclass(frozen=True)
class _Answer:
    """What a module gave last: at least the form of what it will give next."""

    output: Any
    rows: int
    step: int


class FoldHook:
    """Folds the rows of one module as a `RowPlan` says.

    It stands where torch puts the compiled call of a module: `module(...)` runs `module._compiled_call_impl` if there
    is one. So it is outside of everything else, whatever is hooked, compiled or offloaded below it. (A hook on
    `forward` is not: within a module compiled in place each new hook compiles anew, and a hook of diffusers that
    takes itself off during a call, as group offload with streams does, takes off those above it.)
    """

    def __init__(
        self,
        module: torch.nn.Module,
        rows: "RowPlan",
        meter: Meter,
        *,
        counted: bool,
        divisible: bool,
        tokens: TokenLayers | None = None,
    ) -> None:
        self.module, self.rows, self.meter = module, rows, meter
        self.counted, self.divisible, self.tokens = counted, divisible, tokens
        self.call: Callable[..., Any] = module._compiled_call_impl or module._call_impl
        self.parameters = parameters_of(module)
        self.before: tuple[int, ...] | None = None
        self.fitting: set[tuple[tuple[int, ...], int]] = set()
        self.last: _Answer | None = None
        self.at, self.calls = -1, 0  # the step at hand, and the calls in it before this one

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        named = dict(zip(self.parameters, args, strict=False)) | kwargs
        if len(named) < len(args) + len(kwargs):  # more positional arguments than names
            return self.call(*args, **kwargs)
        meter = self.meter
        self.calls = self.calls + 1 if self.at == meter.step else 0
        self.at = meter.step
        sample = next(iter(named.values())) if args else named.get(self.parameters[0], next(iter(named.values())))
        rows, device = len(sample), sample[0].device
        sources = self.rows.sources(meter.step) or tuple(range(rows))
        if meter.started is None:
            meter.started = _now(device)
        if rows % len(sources):  # not a batch of these images: none of our business
            return self.call(*args, **kwargs)
        if self.before not in (None, sources):
            _clear_caches(self.module)  # what other hooks remember are the rows of another partition
        self.before = sources
        copies, copy = rows // len(sources), None
        if self.rows.unguided(meter.step):
            if self.last is not None and copies == 1 and (self.last.step, self.last.rows) == (meter.step, rows):
                # the pipeline calls for each guidance branch: this is the unconditional one
                self._count(rows, 0, {"guidance": rows})
                return self.last.output
            copy = self.rows.conditional_copy if copies == 2 else None
        # before the first answer nobody knows what form one has
        computed = self.rows.computes(meter.step) if self.last is not None else None
        folding = meter.folding(sources, rows, device, computed, copy)
        if not folding.is_identity and (sources, rows) not in self.fitting:
            if folding.live and (why := folding.unfit(named)):
                kind = type(unwrap_module(self.module)).__name__
                if not folding.shared:
                    raise CotrunkError(
                        f"No rows can be left out of a {kind}: {why}. Use neither skipping nor an interval."
                    )
                raise CotrunkError(
                    f"Prompts cannot share steps in a {kind}: {why}. Use sharing=None, or give what differs the same "
                    "for all of a group."
                )
            self.fitting.add((sources, rows))
        spared = {"sharing": folding.shared, "guidance": folding.unguided, "skipping": folding.predicted}
        self._count(rows, len(folding.live), spared)
        listed = isinstance(sample, list)
        if folding.live:
            if not folding.is_identity:
                named = folding.fold(named)
            outputs: list[Any] = []
            sizes: list[int] = []
            order: list[int] = []
            for part, scores in self._parts(folding.live, len(sources)):
                own = named if len(part) == len(folding.live) else pick(named, len(folding.live), part)
                done = [folding.live[i] for i in part]
                made, counts = self._in_chunks(own, len(args), done, scores, device, listed)
                outputs, sizes, order = outputs + made, sizes + counts, order + part
            inverse = None if folding.is_identity else folding.inverse
            if order != sorted(order):
                place = torch.tensor(order, device=device).argsort()
                inverse = place if inverse is None else torch.where(inverse < 0, inverse, place[inverse])
            if folding.predicted:
                # a row that is not computed keeps its last output, which a pipeline may look at: the solver does not
                inverse = self._with_last(inverse, outputs, sizes, rows)
            whole = inverse is None and len(outputs) == 1
            output = outputs[0] if whole else assemble(outputs, sizes, inverse, listed=listed)
        else:
            assert self.last is not None
            same = torch.arange(rows, device=device) % self.last.rows
            output = assemble([self.last.output], [self.last.rows], same, listed=listed)
        if self.rows.remembers:
            self.last = _Answer(output, rows, meter.step)
        return output

    def _with_last(self, inverse: torch.Tensor | None, outputs: list[Any], sizes: list[int], rows: int) -> torch.Tensor:
        assert inverse is not None
        if self.last is None or self.last.rows != rows:
            return inverse.clamp(min=0)
        own = sum(sizes) + torch.arange(rows, device=inverse.device)
        outputs.append(self.last.output)
        sizes.append(rows)
        return torch.where(inverse < 0, own, inverse)

    def _count(self, asked: int, live: int, spared: dict[str, int]) -> None:
        if self.counted:
            self.meter.rows += live
            self.meter.rows_asked += asked
            self.meter.rows_spared.update(spared)

    def _filled(self, rows: int) -> int:
        """The number of rows that a forward has in place of `rows`."""
        larger = [size for size in self.meter.row_sizes or () if size >= rows]
        return min(larger) if larger and self.divisible else rows

    def _parts(self, live: list[int], images: int) -> list[tuple[list[int], torch.Tensor | None]]:
        """The live rows, by their place among them, that run together: whole ones, and those of which only some tokens
        are computed, with the scores of their tokens."""
        everyone = list(range(len(live)))
        if self.tokens is None or self.rows.policy is None:
            return [(everyone, None)]
        scores = self.rows.policy.unstable
        if scores is None:
            return [(everyone, None)]
        partial = self.rows.policy.partial(self.meter.step)
        young = [self.tokens.age.get((self.calls, row), REFRESH) < REFRESH for row in live]
        places = [i for i in everyone if young[i] and partial[live[i] % images]]
        if not places:
            return [(everyone, None)]
        rest = [i for i in everyone if i not in set(places)]
        parts = [(rest, None)] if rest else []
        return [*parts, (places, scores[[live[i] % images for i in places]])]

    def _in_chunks(
        self,
        named: dict[str, Any],
        positional: int,
        live: list[int],
        scores: torch.Tensor | None,
        device: torch.device,
        listed: bool,
    ) -> tuple[list[Any], list[int]]:
        """Run these rows, at most `max_rows` at once; out of memory halves the chunk and goes on from there."""
        meter, outputs, sizes, rows, done = self.meter, list[Any](), list[int](), len(live), 0
        while done < rows:
            size = min(meter.max_rows or rows, rows - done)
            filled = self._filled(size)
            which = [*range(done, done + size), *[done + size - 1] * (filled - size)]
            part = named if size == filled == rows else pick(named, rows, which)
            values = list(part.items())
            try:
                if self.tokens is not None:
                    some = None if scores is None else scores[which]
                    self.tokens.begin([(self.calls, live[place]) for place in which], some)
                output = self.call(*(v for _, v in values[:positional]), **dict(values[positional:]))
                if filled > size:
                    output = assemble([output], [filled], torch.arange(size, device=device), listed=listed)
                    meter.rows_filled += (filled - size) * self.counted
                outputs.append(output)
                sizes.append(size)
                done += size
                continue
            except torch.OutOfMemoryError:
                if size == 1 or not self.divisible:
                    raise
            # not inside `except`: the exception holds the frames, and these the tensors, that are to be freed
            meter.max_rows = math.ceil(size / 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return outputs, sizes


@contextmanager
def attached(
    pipe: Any, rows: RowPlan, seeds: Sequence[int] | None, meter: Meter
) -> Iterator[list[torch.Generator] | None]:
    """Attach the hook for one call of the pipeline; yields the generators, one an image, to call it with.

    Generators live on the CPU, so that noise does not depend on the device. Images of one group have equal seeds:
    they start from equal noise and a stochastic scheduler keeps them equal. With None for seeds, generators and the
    number of images are the caller's business.
    """
    generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
    parts: dict[str, Any] = {name: getattr(pipe, name, None) for name in (*DENOISERS, *SIDE_NETWORKS)}
    modules = {name: module for name, module in parts.items() if isinstance(module, torch.nn.Module)}
    for name, module in modules.items():
        if isinstance(module._compiled_call_impl, FoldHook):
            raise CotrunkError(f"{type(pipe).__name__}.{name} is in use by another call of cotrunk.")
    with ExitStack() as stack:
        # This call ends the pipeline's: it moves offloaded models back and empties caches. Put off until our hooks are
        # gone, it happens also when the pipeline raises.
        if hasattr(pipe, "maybe_free_model_hooks"):
            stack.callback(pipe.maybe_free_model_hooks)
            stack.enter_context(replaced(pipe, "maybe_free_model_hooks", lambda: None))
        for name, module in modules.items():
            divisible = not (has_caches(module) or _is_perturbed(pipe))
            counted = name in DENOISERS
            tokens = None
            if rows.tokens is not None and counted:
                tokens = TokenLayers(module, rows.tokens)
                for layer in tokens.layers.values():
                    stack.enter_context(replaced(layer.module, "_compiled_call_impl", layer))
            hook = FoldHook(module, rows, meter, counted=counted, divisible=divisible, tokens=tokens)
            stack.enter_context(replaced(module, "_compiled_call_impl", hook))
        stack.enter_context(_clock(pipe.scheduler, rows, generators, meter))
        if seeds is not None and isinstance(getattr(pipe, "vae", None), torch.nn.Module):
            stack.enter_context(replaced(pipe.vae, "decode", _watched(pipe.vae.decode, len(seeds), meter)))
        if seeds is not None and hasattr(pipe.scheduler, "noise_sampler_seed"):
            # DPMSolverSDE draws from a Brownian tree of its own, not from the generator: give it a seed an image
            stack.enter_context(replaced(pipe.scheduler, "noise_sampler_seed", list(seeds)))
        yield generators


def parameters_of(module: torch.nn.Module) -> list[str]:
    """The names of a module's arguments. Wrappers hide them behind *args: torch.compile, and peft's model."""
    module = unwrap_module(module)
    base = getattr(module, "get_base_model", lambda: module)()
    return list(inspect.signature(base.forward).parameters)


@contextmanager
def _clock(scheduler: Any, rows: RowPlan, generators: list[torch.Generator] | None, meter: Meter) -> Iterator[None]:
    """Count `scheduler.step`, let the policy stand in for outputs that were not computed, and see to it that images
    which share a row stay equal through the step."""
    step = scheduler.step
    takes_generator = "generator" in inspect.signature(step).parameters
    solver = None if rows.policy is None else Solver(scheduler, step)

    def counted(*args: Any, **kwargs: Any) -> Any:
        if takes_generator and generators is not None and kwargs.get("generator") is None:
            kwargs["generator"] = generators  # Flux, SD 3 and Qwen-Image forget it
        output = _take_step(step, args, kwargs, rows, len(generators or ()), meter, solver)
        sample = output[0] if isinstance(output, tuple) else output.prev_sample
        # waiting for the device at every step would cost more than the hook itself
        is_last = meter.step >= meter.timesteps and isinstance(sample, torch.Tensor)
        meter.ended = _now(sample.device) if is_last else time.perf_counter()
        if meter.on_step is not None:
            meter.on_step(meter)
        return output

    with replaced(scheduler, "step", _Counted(step, counted)):
        yield


class _Counted:
    """`scheduler.step`, counted. An object, because the copy of a function is the function itself: a pipeline that
    copies its scheduler while it runs (LTX-2, for the sound of its video) would step the original with the copy."""

    def __init__(self, step: Callable[..., Any], call: Callable[..., Any]) -> None:
        # pipelines read its signature to see whether it takes `eta` or `generator`
        functools.update_wrapper(self, step)
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Counted":
        raise CotrunkError("A pipeline that copies its scheduler while it runs cannot be counted: call it by itself.")


def _take_step(
    step: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rows: RowPlan,
    images: int,
    meter: Meter,
    solver: Solver | None,
) -> Any:
    """One step of the scheduler, around `step`, its own method: returns its output.

    images: N, or 0 where only the sample tells.
    """
    policy = rows.policy
    if policy is not None and solver is not None:
        named = dict(zip(inspect.signature(step).parameters, args, strict=False)) | kwargs
        images = images or len(named["sample"])
        if not all(_has_images(named.get(name), images) for name in ("model_output", "sample")):
            raise CotrunkError(
                f"{type(solver.scheduler).__name__}.step gets no tensor with one entry an image: "
                "run it without skipping."
            )
        computed = rows.computes(meter.step) or (True,) * images
        meter.computed.append(computed)
        solver.timestep = named["timestep"]
        if policy.correcting:
            others = {name: value for name, value in named.items() if name not in ("model_output", "sample")}
            solver.mark(meter.step, named["sample"], others)
        output, sample = policy.observe(meter.step, computed, solver, named["model_output"], named["sample"])
        args, kwargs = (), named | {"model_output": output, "sample": sample}
    before = _random_states(kwargs.get("generator"), sample.device) if solver is not None and meter.step == 0 else []
    taken: Any = step(*args, **kwargs)
    if policy is not None and before and _draws(solver, before, _random_states(kwargs.get("generator"), sample.device)):
        policy.correcting = False  # with other noise the solver would lead elsewhere
    is_tuple = isinstance(taken, tuple)
    sample = taken[0] if is_tuple else taken.prev_sample
    if _has_images(sample, images):
        meter.watch(sample.flatten(1).isfinite().all(dim=1))
        shared = rows.sources(meter.step)
        if shared != tuple(range(images)):
            # equal already, unless the scheduler draws noise from elsewhere
            sample = sample.index_select(0, torch.tensor(shared, device=sample.device))
            if is_tuple:
                taken = (sample, *taken[1:])
            else:
                taken.prev_sample = sample
        if policy is not None and solver is not None:
            solver.returned = sample
            policy.after(meter.step, sample)
    meter.step += 1
    return taken


def _random_states(generators: Any, device: torch.device) -> list[torch.Tensor]:
    """The states of everything that a scheduler may draw from."""
    own = generators if isinstance(generators, list) else [generators]
    states = [generator.get_state() for generator in own[:1] if generator is not None]
    states.append(torch.get_rng_state())
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _draws(solver: Solver | None, before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    """Whether a step of the scheduler drew noise. A Brownian tree (DPMSolverSDE) has a seed of its own."""
    changed = any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    return changed or hasattr(getattr(solver, "scheduler", None), "noise_sampler_seed")


def _has_images(value: Any, images: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == images


def _watched(decode: Callable[..., Any], images: int, meter: Meter) -> Callable[..., Any]:
    """The decoder, which may overflow where the latents are finite (float16): those images have failed too."""

    @functools.wraps(decode)
    def watched(*args: Any, **kwargs: Any) -> Any:
        output = decode(*args, **kwargs)
        sample = output[0] if isinstance(output, tuple) else getattr(output, "sample", None)
        if isinstance(sample, torch.Tensor) and sample.ndim:
            if sample.shape[0] == images:
                meter.watch(sample.flatten(1).isfinite().all(dim=1))
            else:  # a part of the batch, or frames: whose, the decoder does not know
                meter.watch(sample.isfinite().all().expand(images))
        return output

    return watched


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of the instance; afterwards the instance is as it was."""
    had, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _now(device: torch.device) -> float:
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _stateful_hooks(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, ModelHook]]:
    for part in unwrap_module(module).modules():
        registry = getattr(unwrap_module(part), "_diffusers_hook", None)
        for hook in registry.hooks.values() if registry is not None else ():
            if hook._is_stateful:
                yield part, hook


def has_caches(module: torch.nn.Module) -> bool:
    """Whether the module has a feature cache of diffusers (`enable_cache`) on it."""
    return any(True for _ in _stateful_hooks(module))


def _is_perturbed(pipe: Any) -> bool:
    """Whether attention of the pipeline takes the batch apart itself (perturbed-attention guidance)."""
    return bool(getattr(pipe, "pag_applied_layers", None))


def _clear_caches(module: torch.nn.Module) -> None:
    """Forget the tensors that other hooks keep between steps, but not the context of the call in progress."""
    for part, hook in _stateful_hooks(module):
        managers = [value for value in vars(hook).values() if isinstance(value, StateManager)]
        for manager in managers:
            manager._state_cache.clear()
        if not managers:
            hook.reset_state(part)


def check_pipeline(pipe: Any, *, max_rows: int | None, alone: bool = False) -> None:
    """Raise `CotrunkError` that names the part of the pipeline that cotrunk cannot handle, before any denoising.

    alone: rows will be left out, which caches and perturbed attention cannot live with.
    """
    kind = type(pipe).__name__
    denoisers = [n for n in DENOISERS if isinstance(getattr(pipe, n, None), torch.nn.Module)]
    if not denoisers:
        raise CotrunkError(
            f"{kind} has no denoiser that cotrunk knows ({', '.join(DENOISERS)}): call the pipeline itself."
        )
    if not hasattr(getattr(pipe, "scheduler", None), "step"):
        raise CotrunkError(f"{kind} has no scheduler with a step method to count: call the pipeline itself.")
    if "generator" not in inspect.signature(pipe.__call__).parameters:
        raise CotrunkError(f"{kind} takes no generator, so images of a group cannot start from one noise.")
    for name in denoisers:
        module = getattr(pipe, name)
        if getattr(module, "_is_cached", False) or getattr(pipe, "_is_cached", False):
            raise CotrunkError(f"cache-dit is enabled on {kind}.{name}: call cache_dit.disable_cache(pipe) first.")
        if alone and (has_caches(module) or _is_perturbed(pipe)):
            what = "has a cache enabled" if has_caches(module) else "guides by perturbed attention"
            raise CotrunkError(f"{kind}.{name} {what}, which cannot go with skipping: choose one of them.")
        if max_rows is not None and _is_perturbed(pipe):
            raise CotrunkError(
                f"{kind} guides by perturbed attention, which cannot work in chunks: leave max_rows out."
            )
        if max_rows is not None and has_caches(module):
            raise CotrunkError(
                f"{kind}.{name} has a cache enabled, which cannot work in chunks: leave max_rows out, or call "
                f"pipe.{name}.disable_cache() first."
            )
