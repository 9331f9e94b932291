"""The hook on real pipelines: what users do to a pipeline before, and what must be as it was after."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, ModelHook, apply_group_offloading
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from PIL import Image
from reference import count_calls
from schedulers import CALL_KWARGS, DIFFUSION, FLOW, SCHEDULERS
from tiny import TinyPipeline, flux, sd, sd3, sd_controlnet, sd_with_text, sdxl
from torch import Tensor, nn

from cotrunk import CotrunkError, Sharing, generate
from cotrunk.denoiser import FoldHook, Meter, attached, check_pipeline
from cotrunk.generation import Run, prepare

STEPS = 4
EVERYONE = Sharing(share=0.5, similarity=-1.0)  # whoever may share does, for half of the steps


@dataclass
class Ran:
    images: Tensor
    meter: Meter
    latents: list[Tensor] = field(default_factory=list)  # after every step


def denoise(
    tiny: TinyPipeline,
    inputs: dict[str, Any],
    groups: Sequence[Sequence[int]],
    branch: int,
    seeds: Sequence[int] | None = None,
    max_rows: int | None = None,
    **call: Any,
) -> Ran:
    """Groups that branch at a timestep, through the hook alone: no plan, no waves."""
    images = sum(map(len, groups))
    first = {image: group[0] for group in groups for image in group}
    trunk = tuple(first[image] for image in range(images))
    seeds = [100 + first[image] for image in range(images)] if seeds is None else seeds
    steps = call.setdefault("num_inference_steps", STEPS)
    meter, latents = Meter(count_calls(tiny, steps), max_rows), []
    if "callback_on_step_end" in inspect.signature(tiny.pipe.__call__).parameters:

        def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            latents.append(tensors["latents"].clone())
            return tensors

        call["callback_on_step_end"] = keep
    sources = lambda step: trunk if step < branch else tuple(range(images))  # noqa: E731
    with attached(tiny.pipe, sources, images, seeds, meter) as generators:
        output = tiny.pipe(**inputs, **call, output_type="latent", generator=generators)
    return Ran(output[tiny.output_field], meter, latents)


def bare(tiny: TinyPipeline, inputs: dict[str, Any], seeds: Sequence[int], **call: Any) -> Tensor:
    """The pipeline itself, called with one generator an image."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    call = {"num_inference_steps": STEPS, "output_type": "latent"} | call
    return tiny.pipe(**inputs, **call, generator=generators)[tiny.output_field]


def run(tiny: TinyPipeline, inputs: dict[str, Any], **arguments: Any) -> Any:
    arguments = {"sharing": EVERYONE, "num_inference_steps": STEPS, "output_type": "latent"} | arguments
    return generate(tiny.pipe, **inputs, **arguments)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


def recorded(module: nn.Module) -> list[int]:
    """The rows of every forward of the module, filled as it runs; an instance-level forward, as some tools leave."""
    rows: list[int] = []
    forward = module.forward

    @functools.wraps(forward)
    def recording(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(args[0] if args else next(iter(kwargs.values()))))
        return forward(*args, **kwargs)

    module.forward = recording
    return rows


class BrokenError(Exception):
    pass


# --- attached for one call ----------------------------------------------------------------------------------


def nothing(tiny: TinyPipeline) -> None:
    pass


def ran_before(tiny: TinyPipeline) -> None:
    bare(tiny, tiny.inputs(1), [0])  # leaves a registry of diffusers on a transformer


def hooked(tiny: TinyPipeline) -> None:
    class Other(ModelHook):
        def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.fn_ref.original_forward(*args, **kwargs)

    HookRegistry.check_if_exists_or_initialize(denoiser(tiny)).register_hook(Other(), "other")


def own_forward(tiny: TinyPipeline) -> None:
    recorded(denoiser(tiny))


def compiled(tiny: TinyPipeline) -> None:
    denoiser(tiny).compile(backend="eager")


def wrapped(tiny: TinyPipeline) -> None:
    """Compiled by a wrapper, which hands attributes set on it on to the module within."""
    name = "unet" if hasattr(tiny.pipe, "unet") else "transformer"
    setattr(tiny.pipe, name, torch.compile(denoiser(tiny), backend="eager"))


def denoiser(tiny: TinyPipeline) -> nn.Module:
    return tiny.pipe.unet if hasattr(tiny.pipe, "unet") else tiny.pipe.transformer


def state(tiny: TinyPipeline) -> dict[str, dict[str, Any]]:
    module = denoiser(tiny)
    parts = {"denoiser": module, "within": getattr(module, "_orig_mod", module)}
    parts |= {"scheduler": tiny.pipe.scheduler, "pipe": tiny.pipe}
    return {name: dict(vars(part)) for name, part in parts.items()}


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("before", [nothing, ran_before, hooked, own_forward, compiled, wrapped])
@pytest.mark.parametrize("build", [sd, flux])
def test_the_pipeline_is_afterwards_as_it_was(
    build: Callable[[], TinyPipeline], before: Callable[[TinyPipeline], None], raises: bool
) -> None:
    tiny = build()
    before(tiny)
    tiny.pipe.scheduler.set_timesteps(2, mu=1.0) if build is flux else tiny.pipe.scheduler.set_timesteps(2)
    tiny.pipe.maybe_free_model_hooks()  # the end of every call; gives some models a registry of hooks
    was, seen = state(tiny), []

    def step(meter: Meter) -> None:
        seen.append(meter.step)
        if raises:
            raise BrokenError

    meter = Meter(2, on_step=step)
    try:
        with attached(tiny.pipe, lambda step: (0, 0), 2, [1, 1], meter):
            assert "step" in vars(tiny.pipe.scheduler)
            assert isinstance(denoiser(tiny)._compiled_call_impl, FoldHook)
            latents = torch.ones(2, 4, 4, 4)
            tiny.pipe.scheduler.step(latents, tiny.pipe.scheduler.timesteps[0], latents)
    except BrokenError:
        assert raises
    assert seen == [1]
    now = state(tiny)
    for part in ("denoiser", "within", "pipe"):
        assert list(now[part]) == list(was[part]), part
        assert all(now[part][name] is was[part][name] for name in was[part]), part
    assert now["scheduler"].keys() == was["scheduler"].keys()


@pytest.mark.parametrize("build", [sd, flux])
def test_a_call_that_raises_in_the_middle_leaves_a_working_pipeline(build: Callable[[], TinyPipeline]) -> None:
    tiny = build()
    inputs = tiny.inputs(2)
    expected = bare(tiny, inputs, [1, 2])
    was = state(tiny)

    def fail(meter: Meter) -> None:
        if meter.step == 2:
            raise BrokenError

    with pytest.raises(BrokenError):
        run(tiny, inputs, on_step=fail)
    now = state(tiny)
    assert {part: values.keys() for part, values in now.items()} == {part: v.keys() for part, v in was.items()}
    assert "step" not in vars(tiny.pipe.scheduler)
    assert torch.equal(bare(tiny, inputs, [1, 2]), expected)


def test_a_pipeline_in_use_is_refused_and_stays_in_use() -> None:
    tiny = sd()
    module = tiny.pipe.unet
    with attached(tiny.pipe, lambda step: (0,), 1, [0], Meter(1)):
        with (
            pytest.raises(CotrunkError, match="in use"),
            attached(tiny.pipe, lambda step: (0,), 1, [0], Meter(1)),
        ):
            pass
        assert isinstance(module._compiled_call_impl, FoldHook)
    assert module._compiled_call_impl is None


def test_hooks_that_take_themselves_off_in_a_call_do_not_take_ours() -> None:
    """As group offload with streams does at the first call, to find out the order of the layers."""
    tiny = sd()

    class Once(ModelHook):
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            module._diffusers_hook.remove_hook("once", recurse=False)
            return output

    HookRegistry.check_if_exists_or_initialize(tiny.pipe.unet).register_hook(Once(), "once")
    ran = denoise(tiny, tiny.inputs(3), [[0, 1, 2]], branch=STEPS)
    assert ran.meter.rows == 2 * STEPS
    assert torch.equal(ran.images[0], ran.images[1])


@pytest.mark.parametrize("build", [sd, sdxl, sd3, flux])
def test_without_sharing_it_is_the_bare_pipeline_bit_for_bit(build: Callable[[], TinyPipeline]) -> None:
    tiny = build()
    inputs = tiny.inputs(2)
    result = run(tiny, inputs, sharing=None)
    assert torch.equal(result.images, bare(tiny, inputs, result.plan.seeds))
    assert result.cost == result.plan.cost


def test_a_whole_run_in_the_trunk_is_the_bare_pipeline_on_the_mean() -> None:
    tiny = sdxl()  # conditions in `added_cond_kwargs`, rows of both guidance branches
    inputs = tiny.inputs(3)
    ran = denoise(tiny, inputs, [[0, 1], [2]], branch=STEPS)
    mean = {k: v[:2].mean(dim=0, keepdim=True) if torch.is_tensor(v) else v for k, v in inputs.items()}
    alone = {k: v[2:] if torch.is_tensor(v) else v for k, v in inputs.items()}
    assert close(ran.images[:1], bare(tiny, mean, [100]))
    assert torch.equal(ran.images[0], ran.images[1])
    assert close(ran.images[2:], bare(tiny, alone, [102]))


# --- the clock and the counters -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "heun", "kdpm2", "pndm", "pndm-prk", "flow-euler", "flow-heun"])
def test_the_clock_counts_steps_and_rows_are_as_predicted(name: str) -> None:
    tiny = sd3() if name in FLOW else sd()
    tiny.pipe.scheduler = SCHEDULERS[name]()
    calls, clock = count_calls(tiny, STEPS), []
    rows = recorded(denoiser(tiny))
    result = run(tiny, tiny.inputs(3), on_step=lambda meter: clock.append(meter.step))
    assert clock == list(range(1, calls + 1))
    assert result.cost == result.plan.cost
    assert result.cost.used == sum(rows) < result.cost.independent == 3 * 2 * calls
    assert len(result.plan.trees) == 1


@pytest.mark.parametrize("build", [sd, flux])
def test_on_step_sees_the_wave_whatever_the_pipeline(build: Callable[[], TinyPipeline]) -> None:
    tiny, seen = build(), []
    run(tiny, tiny.inputs(2), on_step=lambda meter: seen.append((meter.step, meter.timesteps, meter.rows)))
    assert [step for step, _, _ in seen] == [1, 2, 3, 4]
    per_image = tiny.rows_per_step
    assert [rows for _, _, rows in seen] == [per_image * n for n in (1, 2, 4, 6)]


@pytest.mark.parametrize("guided", [False, True])
def test_guidance_in_two_calls_a_step_is_counted_as_predicted(guided: bool) -> None:
    tiny = flux()
    inputs = tiny.inputs(3)
    rows = recorded(tiny.pipe.transformer)
    if guided:
        inputs["negative_prompt_embeds"] = torch.zeros_like(inputs["prompt_embeds"])
        inputs["negative_pooled_prompt_embeds"] = torch.zeros_like(inputs["pooled_prompt_embeds"])
    result = run(tiny, inputs, true_cfg_scale=3.0)
    assert result.cost == result.plan.cost
    assert result.cost.used == sum(rows)
    assert result.plan.guidance_rows == (2 if guided else 1)
    assert rows == [1] * (len(rows) // 2) + [3] * (len(rows) // 2)  # two calls a step do not advance the clock


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_guidance_rows_are_counted_as_predicted(scale: float) -> None:
    tiny = sd3()
    result = run(tiny, tiny.inputs(2), guidance_scale=scale)
    assert result.cost == result.plan.cost
    assert result.plan.guidance_rows == (2 if scale > 1 else 1)


# --- noise --------------------------------------------------------------------------------------------------

FORGOTTEN = [("flow-euler-stochastic", sd3), ("flow-euler-stochastic", flux), ("dpm-sde", sd)]
DRAWING = [*FORGOTTEN, ("ddim-eta", sd), ("euler-ancestral", sd), ("dpm++2m-sde", sd), ("sasolver", sd), ("lcm", sd)]


def with_scheduler(name: str, build: Callable[[], TinyPipeline]) -> TinyPipeline:
    tiny = build()
    tiny.pipe.scheduler = SCHEDULERS[name]()
    return tiny


@pytest.mark.parametrize(("name", "build"), DRAWING)
def test_a_group_is_equal_in_the_trunk_and_not_after(name: str, build: Callable[[], TinyPipeline]) -> None:
    tiny = with_scheduler(name, build)
    branch = count_calls(tiny, STEPS) // 2
    ran = denoise(tiny, tiny.inputs(3), [[0, 1], [2]], branch, **CALL_KWARGS.get(name, {}))
    assert len(ran.latents) == count_calls(tiny, STEPS)
    for step, latents in enumerate(ran.latents):
        assert torch.equal(latents[0], latents[1]) == (step < branch)
        assert not close(latents[2], latents[0], 1e-2)


@pytest.mark.parametrize(("name", "build"), FORGOTTEN)
def test_noise_depends_on_the_seed_alone(name: str, build: Callable[[], TinyPipeline]) -> None:
    def images(rows: int, groups: Sequence[Sequence[int]], noise: int, seed: int = 2**47 + 1) -> Tensor:
        tiny = with_scheduler(name, build)
        torch.manual_seed(noise)
        seeds = [seed + (row // 2) for row in range(rows)]
        return denoise(tiny, tiny.inputs(rows), groups, 2, seeds).images

    together = images(4, [[0, 1], [2, 3]], noise=1)
    assert torch.equal(together, images(4, [[0, 1], [2, 3]], noise=2))
    assert close(images(2, [[0, 1]], noise=3), together[:2])
    assert not close(images(4, [[0, 1], [2, 3]], noise=1, seed=7), together, 1e-2)


def test_the_scheduler_keeps_its_own_seed_for_the_brownian_tree() -> None:
    tiny = with_scheduler("dpm-sde", sd)
    tiny.pipe.scheduler.noise_sampler_seed = 5
    run(tiny, tiny.inputs(2))
    assert tiny.pipe.scheduler.noise_sampler_seed == 5


def test_the_wrapped_step_keeps_its_signature() -> None:
    """Pipelines read it to decide on `eta` and `generator`."""
    for name in DIFFUSION:
        tiny = with_scheduler(name, sd)
        expected = inspect.signature(tiny.pipe.scheduler.step)
        with attached(tiny.pipe, lambda step: (0,), 1, [0], Meter(1)):
            assert inspect.signature(tiny.pipe.scheduler.step) == expected


# --- one list entry a row -----------------------------------------------------------------------------------


class ListTransformer(nn.Module):
    """Z-Image's arguments: lists of pictures and of captions of different lengths; it returns a list as well."""

    def __init__(self, as_output: bool) -> None:
        super().__init__()
        self.as_output, self.rows = as_output, []

    def forward(self, x: list[Tensor], t: Tensor, cap_feats: list[Tensor], return_dict: bool = True) -> Any:
        assert len(x) == len(t) == len(cap_feats)
        self.rows.append(len(x))
        sample = [torch.tanh(a * c.mean() + c.sum() + b) for a, b, c in zip(x, t, cap_feats, strict=True)]
        return Transformer2DModelOutput(sample=sample) if self.as_output else (sample,)


class RowListTransformer(nn.Module):
    """Qwen-Image's arguments: tensors, and plain lists with one entry a row."""

    rows: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.rows = []

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor,
        timestep: Tensor,
        img_shapes: list[tuple[int, int, int]],
        txt_seq_lens: list[int],
        return_dict: bool = True,
    ) -> Any:
        assert len(hidden_states) == len(timestep) == len(img_shapes) == len(txt_seq_lens)
        assert encoder_hidden_states_mask.sum(dim=1).tolist() == txt_seq_lens
        self.rows.append(len(hidden_states))
        mask = encoder_hidden_states_mask[..., None]
        text = (encoder_hidden_states * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))
        scale = torch.tensor([float(shape[2]) for shape in img_shapes])
        level = (text * scale + timestep)[:, None, None, None]
        return (torch.tanh(hidden_states * level),)


class ListPipeline:
    """As little of a pipeline as there can be: a loop over a real scheduler."""

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)

    def __call__(self, captions: list[Tensor], generator: list[torch.Generator], guided: bool) -> Tensor:
        self.scheduler.set_timesteps(STEPS)
        latents = torch.cat([torch.randn(1, 2, 1, 3, generator=g) for g in generator])
        captions = captions + [torch.zeros(2, 4) for _ in captions] if guided else captions
        for t in self.scheduler.timesteps:
            model_input = torch.cat([latents, latents]) if guided else latents
            output = self.denoised(model_input, t.expand(len(model_input)) / 1000, captions)
            if guided:
                conditional, unconditional = output.chunk(2)
                output = unconditional + 2.0 * (conditional - unconditional)
            latents = self.scheduler.step(output, t, latents, return_dict=False)[0]
        return latents

    def denoised(self, latents: Tensor, timestep: Tensor, captions: list[Tensor]) -> Tensor:
        if isinstance(self.transformer, ListTransformer):
            return torch.stack(self.transformer(list(latents.unbind()), timestep, captions)[0])
        lengths = [len(caption) for caption in captions]
        padded = nn.utils.rnn.pad_sequence(captions, batch_first=True)
        mask = torch.tensor([[token < length for token in range(max(lengths))] for length in lengths]).long()
        shapes = [(1, 1, 3)] * len(latents)
        return self.transformer(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states_mask=mask,
            encoder_hidden_states=padded,
            img_shapes=shapes,
            txt_seq_lens=lengths,
        )[0]


def mean_caption(captions: list[Tensor]) -> Tensor:
    """At each token the mean over the captions that reach it."""
    longest = max(map(len, captions))
    return torch.stack(
        [torch.stack([c[token] for c in captions if len(c) > token]).mean(dim=0) for token in range(longest)]
    )


@pytest.mark.parametrize("max_rows", [None, 1, 2])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", ["list", "list in an output", "row lists"])
def test_lists_with_an_entry_a_row(kind: str, guided: bool, max_rows: int | None) -> None:
    module = RowListTransformer() if kind == "row lists" else ListTransformer(kind == "list in an output")
    pipe = ListPipeline(module)
    captions = [torch.randn(length, 4, generator=torch.Generator().manual_seed(length)) for length in (3, 5, 2, 4)]
    groups, seeds = (0, 0, 2, 0), [1, 1, 2, 1]

    def sampled(captions: list[Tensor], seeds: list[int], branch: int) -> tuple[Tensor, Meter]:
        meter = Meter(STEPS, max_rows)
        identity = tuple(range(len(captions)))
        with attached(pipe, lambda step: groups if step < branch else identity, len(captions), seeds, meter) as noise:
            return pipe(captions, noise, guided), meter

    def alone(caption: Tensor, seed: int) -> Tensor:
        return pipe([caption], [torch.Generator().manual_seed(seed)], guided)[0]

    together, meter = sampled(captions, seeds, branch=STEPS)
    per_image = 2 if guided else 1
    assert meter.rows == sum(module.rows) == 2 * STEPS * per_image
    assert meter.rows_asked == 4 * STEPS * per_image
    assert max(module.rows) <= (max_rows or 2 * per_image)
    trunk = mean_caption([captions[0], captions[1], captions[3]])
    for image in (0, 1, 3):
        assert close(together[image], alone(trunk, 1))
    assert close(together[2], alone(captions[2], 2))

    module.rows.clear()
    branched, meter = sampled(captions, seeds, branch=2)
    assert meter.rows == sum(module.rows) == (2 * 2 + 2 * 4) * per_image
    assert not close(branched[0], branched[1], 1e-3)
    independent, _ = sampled(captions, seeds, branch=0)
    for image, (caption, seed) in enumerate(zip(captions, seeds, strict=True)):
        assert close(independent[image], alone(caption, seed))


def z_image() -> TinyPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[64, 16, 16],
        ).eval()
        for weight in transformer.parameters():  # some begin as zeros, some as nothing at all
            nn.init.normal_(weight, std=0.2)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.ZImagePipeline(
        scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=transformer
    )
    pipe.set_progress_bar_config(disable=True)

    def inputs(n: int) -> dict[str, Any]:
        captions = [torch.randn(3 + row, 16, generator=torch.Generator().manual_seed(row)) for row in range(n)]
        return {"prompt_embeds": captions, "height": 32, "width": 32}

    return TinyPipeline(pipe, inputs)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_z_image_itself(scale: float) -> None:
    tiny = z_image()
    inputs = tiny.inputs(3)
    captions = inputs.pop("prompt_embeds")
    call = {"guidance_scale": scale}

    def embeds(captions: list[Tensor]) -> dict[str, Any]:
        return inputs | {"prompt_embeds": captions, "negative_prompt_embeds": [torch.zeros(2, 16) for _ in captions]}

    ran = denoise(tiny, embeds(captions), [[0, 1], [2]], branch=STEPS, **call)
    trunk = mean_caption(captions[:2])
    assert close(ran.images[:1], bare(tiny, embeds([trunk]), [100], **call))
    assert torch.equal(ran.images[0], ran.images[1])
    assert close(ran.images[2:], bare(tiny, embeds(captions[2:]), [102], **call))
    assert ran.meter.rows == 2 * STEPS * (2 if scale else 1)
    result = run(tiny, embeds(captions), sharing=None, **call)
    assert result.cost == result.plan.cost  # guidance begins at 0 here, not at 1


# --- caches of diffusers ------------------------------------------------------------------------------------


def test_a_first_block_cache_outlives_the_branch() -> None:
    tiny = flux()
    inputs = tiny.inputs(5)
    plain = run(tiny, inputs)
    tail, rows = recorded(tiny.pipe.transformer.single_transformer_blocks[-1]), []  # below the cache's own hook
    tiny.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))  # nothing is near enough
    assert close(run(tiny, inputs).images, plain.images)

    tiny.pipe.transformer.disable_cache()
    tiny.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e6))  # everything is
    for sharing in (EVERYONE, None):
        tail.clear()
        result = run(tiny, inputs, sharing=sharing)
        assert result.cost == result.plan.cost
        rows.append(list(tail))
    # once for each partition of the rows, then never again
    assert rows == [[1, 5], [5]]


def test_chunks_and_a_cache_are_refused_before_denoising() -> None:
    tiny = flux()
    tiny.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    rows = recorded(tiny.pipe.transformer)
    with pytest.raises(CotrunkError, match="disable_cache"):
        run(tiny, tiny.inputs(3), max_rows=2)
    assert rows == []
    tiny.pipe.transformer.disable_cache()
    run(tiny, tiny.inputs(3), max_rows=2)
    assert max(rows) == 2


# --- torch.compile ------------------------------------------------------------------------------------------


class Counting:
    """A backend that runs the graph as it is and counts."""

    def __init__(self) -> None:
        self.graphs, self.calls = 0, 0

    def __call__(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable:
        self.graphs += 1

        def counted(*args: Any) -> Any:
            self.calls += 1
            return graph.forward(*args)

        return counted


@pytest.fixture
def backend() -> Any:
    torch._dynamo.reset()
    yield Counting()
    torch._dynamo.reset()


COMPILED: dict[str, Callable[[Any, Counting], None]] = {
    "wrapped": lambda pipe, backend: setattr(pipe, "unet", torch.compile(pipe.unet, backend=backend)),
    "in place": lambda pipe, backend: pipe.unet.compile(backend=backend),
    "regional": lambda pipe, backend: pipe.unet.compile_repeated_blocks(backend=backend, fullgraph=True),
}


@pytest.mark.parametrize("form", COMPILED)
def test_a_compiled_denoiser_stays_compiled(form: str, backend: Counting) -> None:
    tiny = sd()
    inputs = tiny.inputs(3)
    expected = run(tiny, inputs)
    COMPILED[form](tiny.pipe, backend)
    compiled = run(tiny, inputs)
    assert close(compiled.images, expected.images, 1e-5)
    assert compiled.cost == expected.cost == expected.plan.cost
    # the trunk's and the branch's number of rows, and where the model breaks its graph itself
    assert 0 < backend.graphs <= 4
    assert backend.calls >= STEPS
    graphs, calls = backend.graphs, backend.calls
    again = run(tiny, inputs)
    assert close(again.images, expected.images)
    assert (backend.graphs, backend.calls) == (graphs, 2 * calls)


class SmallDenoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, sample: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return torch.tanh(self.linear(sample) * encoder_hidden_states)


@pytest.mark.parametrize("form", ["wrapped", "in place"])
def test_wave_after_wave_compiles_nothing_anew(form: str, backend: Counting) -> None:
    """More waves than torch has patience for recompiling (8), after which it leaves a function uncompiled."""
    pipe = SimpleNamespace(unet=SmallDenoiser(), scheduler=diffusers.DDIMScheduler())
    COMPILED[form](pipe, backend)
    sample, condition = torch.ones(2, 3), torch.randn(2, 3)
    for wave in range(12):
        with torch.no_grad(), attached(pipe, lambda step: (0, 0), 2, [0, 0], Meter(1)):
            output = pipe.unet(sample, torch.tensor(1), encoder_hidden_states=condition)
        assert torch.equal(output[0], output[1])
        assert (backend.graphs, backend.calls) == (1, wave + 1)


# --- offload, adapters, control -----------------------------------------------------------------------------


def test_model_offload_comes_and_goes() -> None:
    tiny = sd()
    inputs = tiny.inputs(3)
    expected, plain = run(tiny, inputs), bare(tiny, inputs, [1, 2, 3])
    tiny.pipe.enable_model_cpu_offload(device="cpu")  # accelerate's hooks; what it moves where does not matter
    hooks = [type(hook) for hook in tiny.pipe._all_hooks]
    was = state(tiny)
    assert "_hf_hook" in was["denoiser"]

    offloaded = run(tiny, inputs)
    assert torch.equal(offloaded.images, expected.images)
    assert offloaded.cost == expected.cost
    with pytest.raises(BrokenError):
        run(tiny, inputs, on_step=raise_it)

    now = state(tiny)
    assert now["denoiser"].keys() == was["denoiser"].keys()
    assert [type(hook) for hook in tiny.pipe._all_hooks] == hooks
    assert tiny.pipe.unet._old_forward.__func__ is type(tiny.pipe.unet).forward  # one hook, not one under another
    assert torch.equal(bare(tiny, inputs, [1, 2, 3]), plain)
    tiny.pipe.remove_all_hooks()
    assert torch.equal(bare(tiny, inputs, [1, 2, 3]), plain)


def raise_it(meter: Meter) -> None:
    raise BrokenError


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload(kind: str) -> None:
    tiny = flux()
    inputs = tiny.inputs(3)
    expected = run(tiny, inputs)
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(tiny.pipe.transformer, onload_device=torch.device("cpu"), offload_type=kind, **blocks)
    offloaded = run(tiny, inputs, max_rows=2)  # its hooks keep nothing between steps: chunks are fine
    assert close(offloaded.images, expected.images)
    assert offloaded.cost == expected.cost
    modules = tiny.pipe.transformer.modules()
    assert any(m._diffusers_hook.hooks for m in modules if hasattr(m, "_diffusers_hook")), "its hooks must stay"


@pytest.mark.parametrize("wrapped", [False, True])
def test_lora(wrapped: bool) -> None:
    """As adapter of the model, or as peft's model around it, which hides the names of the arguments."""
    peft = pytest.importorskip("peft")
    tiny = sd()
    inputs = tiny.inputs(3)
    plain = run(tiny, inputs)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if wrapped:
            tiny.pipe.unet = peft.get_peft_model(tiny.pipe.unet, config)
        else:
            tiny.pipe.unet.add_adapter(config)
    adapted = run(tiny, inputs)
    assert adapted.cost == plain.cost
    assert not close(adapted.images, plain.images, 1e-3)
    mean = {k: v.mean(dim=0, keepdim=True) if torch.is_tensor(v) else v for k, v in inputs.items()}
    assert close(denoise(tiny, inputs, [[0, 1, 2]], branch=STEPS).images[:1], bare(tiny, mean, [100]))


@pytest.mark.parametrize("nets", [1, 2])
def test_controlnets_are_folded_like_the_denoiser(nets: int) -> None:
    tiny = sd_controlnet(nets)
    inputs = tiny.inputs(3)
    module = tiny.pipe.controlnet
    seen = [recorded(net) for net in (module.nets if nets > 1 else [module])] + [recorded(module)]
    rows = recorded(tiny.pipe.unet)
    result = run(tiny, inputs)
    assert rows == [2, 2, 6, 6]
    assert all(own == rows for own in seen[:nets])
    assert result.cost == result.plan.cost
    mean = {k: v.mean(dim=0, keepdim=True) if "embeds" in k else v for k, v in inputs.items()}
    mean["image"] = [image[:1] for image in inputs["image"]] if nets > 1 else inputs["image"][:1]
    assert close(denoise(tiny, inputs, [[0, 1, 2]], branch=STEPS).images[:1], bare(tiny, mean, [100]))
    chunked = run(tiny, inputs, max_rows=4)
    assert close(chunked.images, result.images)
    assert rows[-6:] == [2, 2, 4, 2, 4, 2]


def pictures(n: int, shift: int = 0) -> list[Image.Image]:
    return [Image.new("RGB", (32, 32), (40 * i + shift, 10, 200 - 40 * i)) for i in range(n)]


ALIKE = [0, 1, 0, 1]  # which prompts have the same control picture
CONTROLS: dict[str, tuple[int, Callable[[list[Image.Image], list[Image.Image]], Any], bool]] = {
    # name: (networks, the argument, whether its pictures differ among prompts)
    "one picture": (1, lambda edges, poses: edges[0], False),
    "a list of one": (1, lambda edges, poses: edges[:1], False),
    "a picture a prompt": (1, lambda edges, poses: edges, True),
    "a picture a network": (2, lambda edges, poses: [edges[0], poses[0]], False),
    "lists a prompt": (2, lambda edges, poses: [[e, p] for e, p in zip(edges, poses, strict=True)], True),
    "a list for all prompts": (2, lambda edges, poses: [[edges[0], poses[0]]], False),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_pictures_that_differ_do_not_share(name: str) -> None:
    nets, make, differ = CONTROLS[name]
    tiny = sd_controlnet(nets)
    edges, poses = ([own[i] for i in ALIKE] for own in (pictures(2), pictures(2, shift=30)))
    inputs = tiny.inputs(4) | {"image": make(edges, poses)}
    groups = [[0, 2], [1, 3]] if differ else [[0, 1, 2, 3]]
    result = run(tiny, inputs, wave_size=2)
    assert [list(tree.images) for tree in result.plan.trees] == groups
    assert result.cost == result.plan.cost
    independent = run(tiny, inputs, sharing=None, wave_size=2)  # each wave has its own prompts' pictures
    assert close(independent.images, bare(tiny, inputs, independent.plan.seeds))


def test_tensors_of_pictures_a_network() -> None:
    tiny = sd_controlnet(2)
    inputs = tiny.inputs(4)
    inputs["image"] = [inputs["image"][0], inputs["image"][1].clone()]
    inputs["image"][1][[1, 3]] += 0.5
    assert [list(tree.images) for tree in run(tiny, inputs).plan.trees] == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("nets", "image", "message"),
    [
        (1, pictures(2), "2 entries for 3 prompts"),
        (2, [pictures(2)] * 2, "2 entries for 3 prompts"),
        (2, [pictures(1)] * 3, "a list of 2"),
        (2, [torch.zeros(2, 3, 32, 32)] * 2, "2 entries for 3 prompts"),
    ],
)
def test_the_wrong_number_of_pictures_is_refused(nets: int, image: Any, message: str) -> None:
    tiny = sd_controlnet(nets)
    rows = recorded(tiny.pipe.unet)
    with pytest.raises(CotrunkError, match=message):
        run(tiny, tiny.inputs(3) | {"image": image})
    assert rows == []


# --- out of memory ------------------------------------------------------------------------------------------


def limit(module: nn.Module, name: str, rows: int) -> list[int]:
    """Out of memory for more rows; returns the rows that it ran."""
    method, seen = getattr(module, name), []

    @functools.wraps(method)
    def limited(*args: Any, **kwargs: Any) -> Any:
        n = len(args[0] if args else next(iter(kwargs.values())))
        if n > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(n)
        return method(*args, **kwargs)

    setattr(module, name, limited)
    return seen


def test_out_of_memory_halves_the_chunks_and_goes_on() -> None:
    tiny = sd()
    inputs = tiny.inputs(5)
    expected = run(tiny, inputs)
    seen = limit(tiny.pipe.unet, "forward", 3)
    job: Run = prepare(tiny.pipe, **inputs, sharing=EVERYONE, num_inference_steps=STEPS, output_type="latent")
    (wave,) = job.waves()
    assert job.max_rows == 3  # 10, 5, 3
    assert seen == [2, 2, 3, 3, 3, 1, 3, 3, 3, 1]  # nothing is computed twice
    assert wave.cost == expected.cost
    assert close(wave.output.images, expected.images)
    assert torch.equal(wave.output.images, run(tiny, inputs, max_rows=3).images)


def test_out_of_memory_at_one_row_is_the_users() -> None:
    tiny = sd()
    limit(tiny.pipe.unet, "forward", 0)
    with pytest.raises(torch.OutOfMemoryError):
        run(tiny, tiny.inputs(2))
    assert "step" not in vars(tiny.pipe.scheduler)


def test_out_of_memory_with_a_cache_is_the_users() -> None:
    tiny = flux()
    tiny.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    limit(tiny.pipe.transformer, "forward", 2)
    with pytest.raises(torch.OutOfMemoryError):
        run(tiny, tiny.inputs(3))


def test_out_of_memory_in_the_decoder_halves_the_wave() -> None:
    tiny = sd()
    inputs = tiny.inputs(4)
    pairs = Sharing(share=0.5, similarity=-1.0, max_group=2)
    expected = run(tiny, inputs, sharing=pairs, output_type="pt")
    assert len(expected.plan.trees) == 2
    decoded = limit(tiny.pipe.vae, "decode", 2)
    waves = []
    result = run(tiny, inputs, sharing=pairs, output_type="pt", on_wave=waves.append)
    assert [len(wave.images) for wave in waves] == decoded == [2, 2]
    assert close(result.images, expected.images)
    assert result.cost == expected.cost  # of the waves that came to an end


# --- images that fail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", [None, Sharing(share=0.5, similarity=0.9)])
def test_a_prompt_that_is_not_a_number_fails_alone(sharing: Sharing | None) -> None:
    tiny = sd()
    inputs = tiny.inputs(4)
    inputs["prompt_embeds"][2] = inputs["prompt_embeds"][0] + 0.01  # these two share
    good = run(tiny, inputs, sharing=sharing)
    assert good.failed == ()
    inputs["prompt_embeds"] = inputs["prompt_embeds"].clone()
    inputs["prompt_embeds"][1, 0, 0] = torch.nan
    result = run(tiny, inputs, sharing=sharing)
    assert result.failed == (1,)
    for image in (0, 2, 3):
        assert close(result.images[image], good.images[image])


def test_an_infinity_at_one_step_is_remembered() -> None:
    tiny = sd()
    tiny.pipe.scheduler = SCHEDULERS["ddim"]()

    def spoil(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step in (1, 2):  # and mended: what comes after looks good
            tensors["latents"][2] = torch.inf if step == 1 else 0.0
        return tensors

    assert run(tiny, tiny.inputs(3), callback_on_step_end=spoil).failed == (2,)


# --- the pipeline's own arguments ---------------------------------------------------------------------------


def test_callbacks_pass_through() -> None:
    tiny, seen = sd(), []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((pipe is tiny.pipe, step, sorted(tensors), len(tensors["latents"])))
        return {"latents": tensors["latents"] * 0} if step == STEPS - 1 else {}

    result = run(
        tiny,
        tiny.inputs(3),
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    assert seen == [(True, step, ["latents", "prompt_embeds"], 3) for step in range(STEPS)]
    assert not result.images.any()  # what it returns counts


@pytest.mark.parametrize("kind", ["latent", "pt", "np", "pil"])
def test_output_types_pass_through(kind: str) -> None:
    tiny = sd()
    inputs = tiny.inputs(3)
    result = run(tiny, inputs, sharing=None, output_type=kind, wave_size=2)
    generators = [torch.Generator().manual_seed(seed) for seed in result.plan.seeds]
    expected = tiny.pipe(**inputs, num_inference_steps=STEPS, output_type=kind, generator=generators)
    assert type(result.output) is type(expected)
    assert type(result.images) is type(expected.images)
    for ours, theirs in zip(result.images, expected.images, strict=True):
        if kind == "pil":
            assert ours.size == theirs.size
            assert max(abs(a - b) for a, b in zip(ours.tobytes(), theirs.tobytes(), strict=True)) <= 1
        else:
            assert abs(ours - theirs).max() <= 1e-4 * abs(theirs).max()


# --- refused ------------------------------------------------------------------------------------------------


def refused(tiny: TinyPipeline, arguments: dict[str, Any], message: str) -> None:
    rows = recorded(denoiser(tiny))
    with pytest.raises(CotrunkError, match=message):
        generate(tiny.pipe, **arguments)
    assert rows == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": torch.Generator()}, "generator is set by cotrunk: use seed="),
        ({"latents": torch.zeros(2, 4, 4, 4)}, "latents is set by cotrunk"),
        ({"return_dict": False}, "return_dict is set by cotrunk"),
        ({"guidance": 3.0}, "StableDiffusionPipeline takes no argument 'guidance'"),
        ({"negative_prompt": ["a", "b", "c"]}, "negative_prompt has 3 entries for 2 prompts"),
        ({"negative_prompt_embeds": torch.zeros(3, 77, 16)}, "negative_prompt_embeds has 3 entries for 2 prompts"),
        ({"num_inference_steps": 0}, "num_inference_steps 0 is out of range"),
        ({"max_rows": 0}, "max_rows 0 is out of range"),
        ({"seed": -1}, "seed -1"),
        ({"seed": [1, 2, 3]}, "3 seeds for 2 prompts"),
    ],
)
def test_bad_arguments_are_named_before_denoising(arguments: dict[str, Any], message: str) -> None:
    tiny = sd_with_text()
    refused(tiny, {"prompts": ["one", "two"], "sharing": None} | arguments, message)


def test_a_cache_dit_is_refused() -> None:
    for owner in ("pipe", "module"):
        tiny = sd()
        (tiny.pipe if owner == "pipe" else tiny.pipe.unet)._is_cached = True
        refused(tiny, tiny.inputs(1), "cache_dit.disable_cache")


class Bare:
    """Something with parts, to be called."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)

    def __call__(self, prompt: str, generator: Any = None) -> None:
        raise AssertionError("never called")


class WithoutGenerator(Bare):
    def __call__(self, prompt: str) -> None:
        raise AssertionError("never called")


@pytest.mark.parametrize(
    ("pipe", "message"),
    [
        (Bare(scheduler=diffusers.DDIMScheduler()), "Bare has no denoiser that cotrunk knows"),
        (Bare(unet=None, prior=nn.Linear(1, 1), scheduler=diffusers.DDIMScheduler()), "no denoiser"),
        (Bare(unet=nn.Linear(1, 1)), "no scheduler"),
        (WithoutGenerator(unet=nn.Linear(1, 1), scheduler=diffusers.DDIMScheduler()), "takes no generator"),
    ],
)
def test_pipelines_that_cannot_share_are_named(pipe: Any, message: str) -> None:
    with pytest.raises(CotrunkError, match=message):
        check_pipeline(pipe, max_rows=None)
