"""Tools and pipelines that cotrunk does not know: what may keep rows between calls, or does not step its scheduler, is
refused before the first row; what only counts or wraps is not."""

import inspect
import types
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from running import EVERYONE, STEPS, bare, denoiser, generate, recorded, run
from tiny import TinyPipeline, flux, sd, sd_controlnet
from torch import Tensor, nn

from cotrunk import Batching, CotrunkError, Skipping, apply
from cotrunk.pipelines.compatibility import remembering_part, steps_scheduler
from cotrunk.pipelines.cost import _cuts_schedule

FIXED = Skipping(rule="fixed", every=2)


# --- tools that keep what a module gave --------------------------------------------------------------------


def caches_a_block(unet: nn.Module) -> None:
    """Reuse the output of a block at every other step, from a helper outside it, as DeepCache does."""
    kept: dict[str, Any] = {}
    block = unet.mid_block
    forward = block.forward

    def cached(*args: Any, **kwargs: Any) -> Any:
        kept["calls"] = kept.get("calls", 0) + 1
        if kept["calls"] % 2:
            kept["output"] = forward(*args, **kwargs)
        return kept["output"]

    helper = types.SimpleNamespace(cached=cached)
    block.forward = lambda *args, **kwargs: helper.cached(*args, **kwargs)


def replaces_the_forward_of_a_layer(unet: nn.Module) -> None:
    """Bind a function to the module as its forward, as T-GATE and reference-only attention do."""

    def own(self: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states

    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    layer.forward = types.MethodType(own, layer)


class Storing:
    """An attention processor that stores maps, as in prompt-to-prompt and Attend-and-Excite."""

    def __init__(self) -> None:
        self.store: list[Tensor] = []

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.store.append(hidden_states)
        return AttnProcessor()(attn, hidden_states, *args, **kwargs)


def stores_attention(unet: nn.Module) -> None:
    unet.set_attn_processor(Storing())


def fills_a_list(unet: nn.Module) -> None:
    """Keep the outputs of a module in a list. Before the first step the list is empty, so this looks like a counter."""
    bank: list[Any] = []
    forward = unet.forward

    def kept(*args: Any, **kwargs: Any) -> Any:
        bank.append(forward(*args, **kwargs))
        return bank[-1]

    unet.forward = kept


TOOLS = [caches_a_block, replaces_the_forward_of_a_layer, stores_attention]
LEFT_OUT = [
    {"sharing": EVERYONE},
    {"sharing": None, "skipping": FIXED},
    {"sharing": None, "batching": Batching(max_rows=2)},
]


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("what", LEFT_OUT, ids=["sharing", "skipping", "max_rows"])
def test_a_tool_that_may_keep_rows_is_refused_by_name_before_any_row(tool: Any, what: dict[str, Any]) -> None:
    tiny = sd()
    rows: list[int] = []
    tiny.pipe.unet.register_forward_pre_hook(lambda module, args, kwargs: rows.append(len(args[0])), with_kwargs=True)
    tool(tiny.pipe.unet)
    with pytest.raises(CotrunkError, match=r"UNet2DConditionModel\.\w+.* has (its forward replaced by|the attention) "):
        run(tiny, tiny.inputs(2), **what)
    assert not rows


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_may_keep_rows_works_if_every_row_is_computed(tool: Any) -> None:
    tiny, alone = sd(), sd()
    tool(tiny.pipe.unet)
    tool(alone.pipe.unet)
    result = run(tiny, tiny.inputs(2), sharing=None, seed=[1, 2])
    assert torch.equal(result.images, bare(alone, alone.inputs(2), [1, 2]))


def test_a_list_that_turns_out_to_keep_rows_is_refused_after_a_step() -> None:
    tiny = sd()
    fills_a_list(tiny.pipe.unet)
    with pytest.raises(CotrunkError, match=r"has its forward replaced by .*test_foreign_parts.fills_a_list"):
        run(tiny, tiny.inputs(2))


def test_a_forward_set_on_the_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts of TeaCache do so."""
    tiny = flux()

    def teacache(self: nn.Module, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor]:
        return (hidden_states,)

    monkeypatch.setattr(diffusers.FluxTransformer2DModel, "forward", teacache)
    with pytest.raises(CotrunkError, match=r"FluxTransformer2DModel has its forward replaced by .*teacache"):
        run(tiny, tiny.inputs(2))


def test_functions_that_count_time_or_declare_independence_are_not_refused() -> None:
    tiny = sd()
    calls = recorded(tiny.pipe.unet)
    inner = recorded(tiny.pipe.unet.mid_block)
    tiny.pipe.unet.set_attn_processor(AttnProcessor())
    processor = Storing()
    processor.rows_are_independent = True  # type: ignore[attr-defined]
    tiny.pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(processor)
    assert remembering_part(tiny.pipe.unet) is None
    result = run(tiny, tiny.inputs(2))
    assert result.cost.used == sum(calls)
    assert calls == inner


class Adapter(nn.Module):
    """A LoRA of another trainer, which replaces the forward of one module by that of another."""

    def __init__(self, below: nn.Module) -> None:
        super().__init__()
        self.below = below.forward

    def forward(self, x: Tensor) -> Tensor:
        return self.below(x)


@pytest.mark.parametrize("attached", ["adapter", "offloaded", "layerwise", "compiled", "controlnet"])
def test_ordinary_attachments_are_not_refused(attached: str) -> None:
    tiny: TinyPipeline = sd_controlnet() if attached == "controlnet" else sd()
    unet = denoiser(tiny)
    if attached == "adapter":
        layer = unet.mid_block.attentions[0].proj_in
        layer.forward = Adapter(layer).forward
    elif attached == "offloaded":
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module

        add_hook_to_module(unet, AlignDevicesHook(execution_device="cpu"))
    elif attached == "layerwise":
        unet.enable_layerwise_casting(storage_dtype=torch.float32, compute_dtype=torch.float32)
    elif attached == "compiled":
        tiny.pipe.unet = unet = torch.compile(unet, backend="eager")
    assert remembering_part(unet) is None


# --- pipelines with a step function of their own -----------------------------------------------------------


class WithOwnStep(diffusers.StableDiffusionPipeline):
    """A sampler for reinforcement learning, which uses only the timesteps of its scheduler."""

    @torch.no_grad()
    def __call__(
        self,
        prompt_embeds: Tensor,
        num_inference_steps: int = STEPS,
        guidance_scale: float = 1.0,
        generator: Any = None,
        output_type: str = "latent",
    ) -> Any:
        self.scheduler.set_timesteps(num_inference_steps)
        shape = (len(prompt_embeds), 4, 16, 16)
        latents = diffusers.utils.torch_utils.randn_tensor(shape, generator=generator)
        for t in self.scheduler.timesteps:
            latents = self.walk(latents, self.unet(latents, t, encoder_hidden_states=prompt_embeds).sample)
        return diffusers.pipelines.stable_diffusion.StableDiffusionPipelineOutput(latents, None)

    def walk(self, latents: Tensor, noise: Tensor) -> Tensor:
        return latents - 0.1 * noise


class HiddenStep(WithOwnStep):
    """A pipeline whose code mentions the scheduler's step but does not call it."""

    def walk(self, latents: Tensor, noise: Tensor) -> Tensor:
        return latents - 0.1 * noise if latents is not None else self.scheduler.step(noise, 0, latents)


def pipeline_of(kind: type) -> TinyPipeline:
    tiny = sd()
    pipe = kind(**tiny.pipe.components, requires_safety_checker=False)
    return TinyPipeline(pipe, lambda n: {"prompt_embeds": tiny.inputs(n)["prompt_embeds"]}, rows_per_step=1)


@pytest.mark.parametrize("what", [{"sharing": EVERYONE}, {"sharing": None, "skipping": FIXED}])
def test_a_pipeline_with_its_own_step_function_is_refused_before_any_row(what: dict[str, Any]) -> None:
    tiny = pipeline_of(WithOwnStep)
    rows = recorded(tiny.pipe.unet)
    with pytest.raises(CotrunkError, match="WithOwnStep has its own step function"):
        run(tiny, tiny.inputs(2), **what)
    with pytest.raises(CotrunkError, match="WithOwnStep has its own step function"):
        apply(tiny.pipe, FIXED)
    assert not rows


def test_a_hidden_step_function_is_refused_after_one_evaluation() -> None:
    tiny = pipeline_of(HiddenStep)
    rows = recorded(tiny.pipe.unet)
    with pytest.raises(CotrunkError, match=r"to another timestep without a call of scheduler\.step"):
        run(tiny, tiny.inputs(2))
    assert sum(rows) == 1  # of the two that share it


@pytest.mark.parametrize("kind", [WithOwnStep, HiddenStep])
def test_a_pipeline_with_its_own_step_function_works_if_every_row_is_computed(kind: type) -> None:
    tiny = pipeline_of(kind)
    result = run(tiny, tiny.inputs(2), sharing=None, seed=[1, 2])
    assert torch.equal(result.images, bare(tiny, tiny.inputs(2), [1, 2]))
    assert result.cost.used == 2 * STEPS


def test_every_pipeline_with_a_prompt_is_known_to_step_its_scheduler() -> None:
    """Combined pipelines step their schedulers only in their parts, which the tests of objects below check."""
    combined = ("Combined", "VersatileDiffusionPipeline", "VisualCloze")
    kinds = [getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Pipeline")]
    kinds = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)]
    drawing = [kind for kind in kinds if "num_inference_steps" in inspect.signature(kind.__call__).parameters]
    without = {kind.__name__ for kind in drawing if not steps_scheduler(object.__new__(kind))}
    assert len(drawing) > 200
    assert {name for name in without if not any(part in name for part in combined)} == {"ScoreSdeVePipeline"}


class HandsOn(diffusers.StableDiffusionImg2ImgPipeline):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def test_a_subclass_that_passes_its_call_on_counts_as_its_parent() -> None:
    pipe = object.__new__(HandsOn)
    assert steps_scheduler(pipe)
    assert _cuts_schedule(pipe)
    assert not steps_scheduler(object.__new__(WithOwnStep))


def test_a_combined_pipeline_steps_through_its_parts() -> None:
    pipe = types.SimpleNamespace()

    class Combined(diffusers.DiffusionPipeline):
        def __call__(self) -> Any:
            return self.decoder_pipe()

    pipe = object.__new__(Combined)
    vars(pipe)["decoder_pipe"] = sd().pipe
    assert steps_scheduler(pipe)
    vars(pipe)["decoder_pipe"] = pipeline_of(WithOwnStep).pipe
    assert not steps_scheduler(pipe)


# --- denoisers that are called with other rows -------------------------------------------------------------


class WithAnExtraRow(WithOwnStep):
    """Calls its denoiser with one row more than it has images."""

    def __call__(self, prompt_embeds: Tensor, num_inference_steps: int = STEPS, generator: Any = None) -> Any:
        self.scheduler.set_timesteps(num_inference_steps)
        more = torch.cat([prompt_embeds, prompt_embeds[:1]])
        latents = torch.zeros(len(more), 4, 16, 16)
        for t in self.scheduler.timesteps:
            latents = self.scheduler.step(self.unet(latents, t, more).sample, t, latents).prev_sample
        return diffusers.pipelines.stable_diffusion.StableDiffusionPipelineOutput(latents[:-1], None)


def test_rows_that_belong_to_no_image_are_refused_before_they_run() -> None:
    tiny = pipeline_of(WithAnExtraRow)
    rows = recorded(tiny.pipe.unet)
    with pytest.raises(CotrunkError, match="with 3 rows for 2 images"):
        generate(tiny.pipe, **tiny.inputs(2), sharing=EVERYONE)
    assert not rows
    assert generate(tiny.pipe, **tiny.inputs(2), sharing=None).made == (0, 1)
