"""The hook together with what users add to a denoiser: caches, torch.compile, offload, adapters, ControlNets."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, apply_group_offloading
from running import EVERYONE, STEPS, BrokenError, bare, close, denoise, recorded, run, state
from tiny import TinyPipeline, flux, sd, sd_controlnet
from torch import Tensor, nn
from versions import IS_OLD

from cotrunk import Batching, CotrunkError
from cotrunk.engine.attach import attached
from cotrunk.engine.call_state import CallState, StepEvent
from cotrunk.engine.step_plan import RowPlan

# --- caches of diffusers ------------------------------------------------------------------------------------


@pytest.mark.skipif(IS_OLD, reason="diffusers before 0.42 does not find a cache that is enabled after a first call")
def test_a_first_block_cache_works_across_the_branch_point() -> None:
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
        run(tiny, tiny.inputs(3), batching=Batching(max_rows=2))
    assert rows == []
    tiny.pipe.transformer.disable_cache()
    run(tiny, tiny.inputs(3), batching=Batching(max_rows=2))
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


@pytest.mark.slow
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
def test_later_batches_compile_nothing_again(form: str, backend: Counting) -> None:
    """It runs more batches than torch's limit of recompilations (8), after which a function stays uncompiled."""
    pipe = SimpleNamespace(unet=SmallDenoiser(), scheduler=diffusers.DDIMScheduler())
    COMPILED[form](pipe, backend)
    sample, condition = torch.ones(2, 3), torch.randn(2, 3)
    for batch in range(12):
        with torch.no_grad(), attached(pipe, CallState(RowPlan(lambda step: (0, 0)), 1), [0, 0]):
            output = pipe.unet(sample, torch.tensor(1), encoder_hidden_states=condition)
        assert torch.equal(output[0], output[1])
        assert (backend.graphs, backend.calls) == (1, batch + 1)


# --- offload, adapters, ControlNets --------------------------------------------------------------------------


def test_model_offload_keeps_working_and_can_be_removed() -> None:
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


def raise_it(event: StepEvent) -> None:
    raise BrokenError


@pytest.mark.skipif(IS_OLD, reason="diffusers before 0.42 cannot offload groups on a machine without an accelerator")
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload(kind: str) -> None:
    tiny = flux()
    inputs = tiny.inputs(3)
    expected = run(tiny, inputs)
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(tiny.pipe.transformer, onload_device=torch.device("cpu"), offload_type=kind, **blocks)
    offloaded = run(
        tiny, inputs, batching=Batching(max_rows=2)
    )  # its hooks keep nothing between steps: chunks are fine
    assert close(offloaded.images, expected.images)
    assert offloaded.cost == expected.cost
    modules = tiny.pipe.transformer.modules()
    assert any(m._diffusers_hook.hooks for m in modules if hasattr(m, "_diffusers_hook")), "its hooks must stay"


@pytest.mark.parametrize("wrapped", [False, True])
def test_lora(wrapped: bool) -> None:
    """The LoRA is an adapter of the model, or peft's model around it, which hides the names of the arguments."""
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


def test_conditions_are_known_by_name_where_a_wrapper_hides_the_names() -> None:
    peft = pytest.importorskip("peft")
    module = peft.get_peft_model(SmallDenoiser(), peft.LoraConfig(r=1, target_modules=["linear"]))
    pipe = SimpleNamespace(unet=module, scheduler=diffusers.DDIMScheduler())
    sample, condition, time = torch.ones(2, 3), torch.randn(2, 3), torch.tensor(1)
    with torch.no_grad(), attached(pipe, CallState(RowPlan(lambda step: (0, 0)), 1), [0, 0]):
        output = pipe.unet(sample, time, condition)
    assert close(output, module(sample, time, condition.mean(dim=0).expand(2, 3)))


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
    chunked = run(tiny, inputs, batching=Batching(max_rows=4))
    assert close(chunked.images, result.images)
    assert rows[-6:] == [2, 2, 4, 2, 4, 2]


def with_ip_adapter(tiny: TinyPipeline) -> TinyPipeline:
    """Add an IP-Adapter for two images, with projection and attention as `load_ip_adapter` leaves them."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    unet = tiny.pipe.unet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projection = ImageProjection(image_embed_dim=8, cross_attention_dim=16, num_image_text_embeds=2)
        unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
        unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
        processors = dict(unet.attn_processors)
        for name in [name for name in processors if ".attn2." in name]:
            width = unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
            processors[name] = IPAdapterAttnProcessor2_0(width, cross_attention_dim=16, num_tokens=(2,), scale=0.9)
        unet.set_attn_processor(processors)
    return tiny


@pytest.mark.parametrize("masks", [1, 2])
def test_ip_adapters_and_their_masks_share_like_a_mean_prompt(masks: int) -> None:
    """There are as many masks as rows in the batch, so that a mask could be mistaken for a row."""
    tiny = with_ip_adapter(sd())
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, masks, 8, generator=generator)  # without and with guidance; `masks` input images
    regions = (torch.rand(1, masks, 32, 32, generator=generator) > 0.5).float()
    call = {"ip_adapter_image_embeds": [images], "cross_attention_kwargs": {"ip_adapter_masks": [regions]}}
    inputs = tiny.inputs(2)
    shared = denoise(tiny, inputs, [[0, 1]], STEPS, seeds=[5, 5], **call).images
    mean = {name: v.mean(dim=0, keepdim=True) if isinstance(v, Tensor) else v for name, v in inputs.items()}
    alone = bare(tiny, mean, [5], **call)
    assert close(shared[:1], alone)
    assert close(shared[1:], alone)
    call["cross_attention_kwargs"] = {"ip_adapter_masks": [1 - regions]}
    assert not close(bare(tiny, mean, [5], **call), alone)  # the masks do matter
