"""Token-wise skipping: which tokens and layers, and that nothing else changes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from running import close, denoiser
from skipped import pixels, skipped
from tiny import TinyPipeline, flux, pixart, sd, sd3, sdxl
from torch import Tensor

from cotrunk import CotrunkError, Skipping
from cotrunk.skipping.tokens import REFRESH, TokenChoice, TokenLayers, chosen_tokens

BUILDS = pytest.mark.parametrize("build", [sd, sdxl, sd3, flux, pixart])


def rule(tokens: float | None) -> Skipping:
    return Skipping(rule="fixed", every=2, tokens=tokens)


@BUILDS
def test_a_share_of_one_computes_all_tokens(build: Callable[[], TinyPipeline]) -> None:
    pipeline = build()
    inputs = pipeline.inputs(2)
    whole, every = skipped(pipeline, inputs, rule(None)), skipped(pipeline, inputs, rule(1.0))
    assert close(pixels(pipeline, every), pixels(pipeline, whole))
    assert every.cost == whole.cost


@BUILDS
def test_layers_see_the_share_that_was_asked_for(build: Callable[[], TinyPipeline]) -> None:
    pipeline = build()
    module = denoiser(pipeline)
    layers = dict(module.named_modules())
    names = TokenLayers(module, TokenChoice(0.5)).names
    assert names
    seen: dict[str, list[int]] = {name: [] for name in names}
    hooks = [
        layers[name].register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].shape[1]))
        for name in names
    ]
    half = skipped(pipeline, pipeline.inputs(2), rule(0.5))
    for hook in hooks:
        hook.remove()
    assert any(min(tokens) < max(tokens) for tokens in seen.values())
    for name, tokens in seen.items():
        assert tokens[:3] == [max(tokens)] * 3, name  # the first steps, whole
        assert tokens[-1] == max(tokens), name  # and the last one
    whole = skipped(pipeline, pipeline.inputs(2), rule(None))
    assert pixels(pipeline, half).isfinite().all()
    assert not torch.equal(pixels(pipeline, half), pixels(pipeline, whole))


@pytest.mark.parametrize("build", [sd, sd3, flux])
def test_an_image_does_not_depend_on_its_batch(build: Callable[[], TinyPipeline]) -> None:
    pipeline, skipping = build(), Skipping(tolerance=0.05, tokens=0.5)
    inputs = pipeline.inputs(4)
    third = {key: value[2:3] if isinstance(value, Tensor) else value for key, value in inputs.items()}
    together = skipped(pipeline, inputs, skipping, seed=[1, 2, 3, 4])
    alone = skipped(pipeline, third, skipping, seed=[3])
    assert close(pixels(pipeline, alone)[0], pixels(pipeline, together)[2])


def test_layers_are_restored_afterwards() -> None:
    pipeline = sd3()
    before = {name: dict(vars(module)) for name, module in pipeline.pipe.transformer.named_modules()}
    skipped(pipeline, pipeline.inputs(1), rule(0.5))
    after = {name: vars(module) for name, module in pipeline.pipe.transformer.named_modules()}
    assert all(after[name].keys() == attributes.keys() for name, attributes in before.items())


def test_layers_of_text_tokens_are_not_skipped() -> None:
    names = set(TokenLayers(sd3().pipe.transformer, TokenChoice(0.5)).names)
    assert not [name for name in names if "context" in name or "add_" in name]
    assert any(name.endswith("ff") for name in names)
    crossing = set(TokenLayers(sd().pipe.unet, TokenChoice(0.5)).names)
    assert not [name for name in crossing if "attn2.to_k" in name or "attn2.to_v" in name]
    assert any(name.endswith("attn2.to_q") for name in crossing)


@given(
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    side=st.sampled_from([1, 2, 4]),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_the_tokens_with_the_highest_scores_are_computed(
    height: int, width: int, side: int, share: float, seed: int
) -> None:
    scores = torch.from_numpy(np.random.default_rng(seed).random((2, height * side, width * side)))
    kept = chosen_tokens(scores, height * width, share)
    assert kept is not None
    assert kept.shape == (2, max(1, round(share * (height * width))))
    pooled = torch.nn.functional.adaptive_avg_pool2d(scores[:, None], (height, width)).flatten(1)
    for own, chosen in zip(pooled, kept, strict=True):
        assert (chosen[1:] > chosen[:-1]).all()
        rest = own[~torch.isin(torch.arange(len(own)), chosen)]
        assert not len(rest) or rest.max() <= own[chosen].min()


def test_text_before_packed_tokens_is_always_computed() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.8]])
    assert chosen_tokens(scores, 7, 0.5).tolist() == [[0, 1, 2, 4, 6]]  # type: ignore[union-attr]
    assert chosen_tokens(scores, 3, 0.5) is None


def test_every_row_is_computed_whole_after_a_few_forwards() -> None:
    choice = TokenChoice(0.5)
    layers = TokenLayers(sd().pipe.unet, choice)
    with layers.forward([(0, 0), (0, 1)]):
        pass
    choice.errors, choice.partial = torch.ones(2, 4, 4), (True, False)
    for forward in range(1, REFRESH + 1):
        assert layers.parts(0, [0, 1], 2) == [[1], [0]]
        with layers.forward([(0, 1)]):
            pass
        with layers.forward([(0, 0), (0, 0)]):  # a copy of a row fills the forward pass up
            pass
        assert layers.ages == {(0, 0): forward, (0, 1): 0}
    assert layers.parts(0, [0, 1], 2) == [[0, 1]]


@pytest.mark.parametrize("tokens", [0, -0.5, 1.5, "half", True])
def test_bad_shares_are_reported(tokens: object) -> None:
    with pytest.raises(CotrunkError, match=r"skipping tokens .* is out of range"):
        Skipping(tokens=tokens)  # type: ignore[arg-type]
