"""Folding, chunking and joining the rows of a call, compared with plain loops."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import BaseOutput
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cotrunk.engine.rows import Folding, assemble, pick
from cotrunk.pipelines.denoiser_arguments import CONDITIONS, MASKS, SHARED

CPU = torch.device("cpu")
Sources = tuple[int, ...]


@st.composite
def partitions(draw: Callable) -> Sources:
    """Draw, for each of up to 6 images, the first image of its set."""
    labels = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    return tuple(labels.index(label) for label in labels)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def sets(sources: Sources, copies: int) -> list[list[int]]:
    """Return the rows that each live row stands for, found by a plain loop."""
    images = len(sources)
    return [
        [copy * images + image for image in range(images) if sources[image] == first]
        for copy in range(copies)
        for first in sorted(set(sources))
    ]


copies = st.sampled_from([1, 2, 3])
few = settings(max_examples=20)


# --- folding ------------------------------------------------------------------------------------------------


@few
@given(partitions(), copies)
def test_unfold_of_fold_is_the_identity_for_equal_members(sources: Sources, copies: int) -> None:
    rows = len(sources) * copies
    folding = Folding(sources, rows, CPU)
    distinct = random(rows, 3, 2)
    equal = distinct.clone()
    for own in sets(sources, copies):
        equal[own] = distinct[own[0]]
    for name in ("hidden_states", "encoder_hidden_states"):
        folded = folding.fold({name: equal})[name]
        assert len(folded) == len(folding.live) == len(set(sources)) * copies
        assert torch.equal(assemble([folded], [len(folded)], folding.inverse), equal)
    assert folding.is_identity == (sources == tuple(range(len(sources))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@few
@given(sources=partitions(), copies=copies, masked=st.booleans())
def test_the_mean_of_equal_members_is_the_member_to_the_last_bit(
    sources: Sources, copies: int, masked: bool, dtype: torch.dtype
) -> None:
    rows = len(sources) * copies
    folding = Folding(sources, rows, CPU)
    values = random(rows, 4, 3, dtype=dtype)
    for own in sets(sources, copies):
        values[own] = values[own[0]].clone()
    mask = (random(rows, 4, seed=1) > 0).long() if masked else None
    mean = folding.mean(values, mask)
    assert mean.dtype == dtype
    assert torch.equal(mean, values[folding.live])


@few
@given(partitions(), copies)
def test_the_mean_equals_that_of_a_plain_loop(sources: Sources, copies: int) -> None:
    rows = len(sources) * copies
    values = random(rows, 4, 3)
    expected = torch.stack([sum(values[row] for row in own) / len(own) for own in sets(sources, copies)])
    folded = Folding(sources, rows, CPU).fold({"encoder_hidden_states": values, "text_embeds": values[:, 0]})
    torch.testing.assert_close(folded["encoder_hidden_states"], expected)
    torch.testing.assert_close(folded["text_embeds"], expected[:, 0])


@few
@given(partitions(), copies, st.integers(1, 6))
def test_rows_in_the_second_dimension_fold_as_in_the_first(sources: Sources, copies: int, layers: int) -> None:
    rows = len(sources) * copies
    values = random(rows, layers, 4, 3)
    folding, name = Folding(sources, rows, CPU), "encoder_hidden_states_llama3"  # (layers, rows, tokens, channels)
    folded = folding.fold({"encoder_hidden_states": values, name: values.transpose(0, 1)})
    assert torch.equal(folded[name].transpose(0, 1), folded["encoder_hidden_states"])
    picked = pick({name: values.transpose(0, 1)}, rows, [0])[name]
    assert torch.equal(picked.transpose(0, 1), values[:1])
    assert folding.misshapen({name: values.transpose(0, 1)}) is None


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("name", MASKS)
@few
@given(sources=partitions(), copies=copies, seed=st.integers(0, 9))
def test_a_masked_mean_is_over_the_members_that_have_the_token(
    sources: Sources, copies: int, seed: int, name: str, additive: bool
) -> None:
    rows, tokens = len(sources) * copies, 5
    values, visible = random(rows, tokens, 3, seed=seed), random(rows, tokens, seed=seed + 1) > -0.3
    mask = torch.where(visible, 0.0, -10000.0) if additive and not visible.all() else visible.long()
    folded = Folding(sources, rows, CPU).fold({MASKS[name]: values, name: mask})
    for i, own in enumerate(sets(sources, copies)):
        for token in range(tokens):
            having = [row for row in own if visible[row, token]]
            union = mask[own, token].max()
            assert folded[name][i, token] == union
            if having:
                expected = sum(values[row, token] for row in having) / len(having)
                torch.testing.assert_close(folded[MASKS[name]][i, token], expected)


def test_padding_has_no_effect_even_if_it_is_nan() -> None:
    values, mask = random(2, 3, 4), torch.tensor([[1, 1, 1], [1, 1, 0]])
    values[1, 2] = torch.nan
    folded = Folding((0, 0), 2, CPU).fold({"encoder_hidden_states": values, "encoder_attention_mask": mask})
    assert torch.equal(folded["encoder_hidden_states"][0, 2], values[0, 2])


def test_a_mask_over_text_and_image_applies_to_the_text() -> None:
    values = random(2, 3, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 1]])  # three tokens of text, two of the image
    folded = Folding((0, 0), 2, CPU).fold({"encoder_hidden_states": values, "attention_mask": mask})
    assert torch.equal(folded["encoder_hidden_states"][0, 2], values[0, 2])
    assert folded["attention_mask"].tolist() == [[1, 1, 1, 1, 1]]


def test_arguments_that_are_not_conditions_take_the_first_member() -> None:
    folding = Folding((0, 0, 2), 6, CPU)
    named = {"sample": random(6, 4, 2, 2), "timestep": random(6), "residuals": (random(6, 2), [random(6, 3)])}
    folded = folding.fold(named)
    assert folding.live == [0, 2, 3, 5]
    assert torch.equal(folded["sample"], named["sample"][[0, 2, 3, 5]])
    assert torch.equal(folded["timestep"], named["timestep"][[0, 2, 3, 5]])
    assert torch.equal(folded["residuals"][1][0], named["residuals"][1][0][[0, 2, 3, 5]])
    assert isinstance(folded["residuals"], tuple)


def test_class_labels_that_are_numbers_are_not_averaged() -> None:
    folded = Folding((0, 0), 2, CPU).fold({"class_labels": torch.tensor([3, 5])})
    assert folded["class_labels"].tolist() == [3]


def test_arguments_common_to_all_rows_are_unchanged() -> None:
    named: dict[str, Any] = {name: random(4, 3) for name in SHARED}
    named |= {"image_rotary_emb": (random(4, 2), random(4, 2)), "scale": 1.0, "timestep": torch.tensor(7), "flag": None}
    named |= {"conditioning_scale": [1.0, 2.0, 3.0, 4.0], "return_dict": False}  # a list of plain numbers
    for result in (Folding((0, 0), 4, CPU).fold(named), pick(named, 4, [0, 1])):
        assert result.keys() == named.keys()
        assert all(result[name] is named[name] for name in SHARED - {"image_rotary_emb"})
        for ours, given_ in zip(result["image_rotary_emb"], named["image_rotary_emb"], strict=True):
            assert torch.equal(ours, given_)
        assert result["conditioning_scale"] == [1.0, 2.0, 3.0, 4.0]
        assert result["timestep"] is named["timestep"]


def test_nested_conditions_are_folded_by_their_own_names() -> None:
    added = {"text_embeds": random(4, 3), "time_ids": random(4, 6, seed=1), "image_embeds": [random(4, 1, 2)]}
    named = {"added_cond_kwargs": added, "cross_attention_kwargs": {"scale": 0.5, "gligen": {"boxes": random(4, 2)}}}
    folded = Folding((0, 0), 4, CPU).fold(named)
    text = added["text_embeds"]
    expected = torch.stack([(text[0] + text[1]) / 2, (text[2] + text[3]) / 2])
    torch.testing.assert_close(folded["added_cond_kwargs"]["text_embeds"], expected)
    assert torch.equal(folded["added_cond_kwargs"]["time_ids"], added["time_ids"][[0, 2]])
    assert torch.equal(folded["added_cond_kwargs"]["image_embeds"][0], added["image_embeds"][0][[0, 2]])
    assert len(folded["cross_attention_kwargs"]["gligen"]["boxes"]) == 2
    assert folded["cross_attention_kwargs"]["scale"] == 0.5
    part = pick(named, 4, [1, 2])
    assert torch.equal(part["added_cond_kwargs"]["text_embeds"], text[1:3])
    assert torch.equal(part["cross_attention_kwargs"]["gligen"]["boxes"], random(4, 2)[1:3])


# --- lists with one entry per row -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ragged_captions_are_averaged_where_they_have_tokens(dtype: torch.dtype) -> None:
    captions = [random(length, 4, seed=i, dtype=dtype) for i, length in enumerate([2, 5, 3])]
    (mean,) = Folding((0, 0, 0), 3, CPU).fold({"cap_feats": captions})["cap_feats"]
    assert mean.shape == (5, 4)
    assert mean.dtype == dtype
    for token in range(5):
        having = [caption[token].double() for caption in captions if len(caption) > token]
        tolerance = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(mean[token].double(), sum(having) / len(having), atol=tolerance, rtol=tolerance)


def test_equal_captions_average_to_themselves_to_the_last_bit() -> None:
    for seed in range(20):
        caption = random(3, 4, seed=seed)
        (mean,) = Folding((0,) * 7, 7, CPU).fold({"cap_feats": [caption.clone() for _ in range(7)]})["cap_feats"]
        assert torch.equal(mean, caption)


def test_lists_of_rows_fold_and_lists_of_tensors_do_not() -> None:
    named = {
        "x": [random(2, 1, 2, 2, seed=i) for i in range(4)],
        "img_shapes": [[(1, 2, 2)], [(1, 2, 2)], [(1, 4, 4)], [(1, 4, 4)]],
        "txt_seq_lens": [3, 5, 4, 2],
        "block_samples": [random(4, 2, seed=i) for i in range(4)],
    }
    folded = Folding((0, 0), 4, CPU).fold(named)
    assert folded["x"] == [named["x"][0], named["x"][2]]
    assert folded["img_shapes"] == [[(1, 2, 2)], [(1, 4, 4)]]
    assert folded["txt_seq_lens"] == [5, 4]  # as long as the longest member
    assert [len(tensor) for tensor in folded["block_samples"]] == [2] * 4
    part = pick(named, 4, [1])
    assert part["x"] == [named["x"][1]]
    assert part["txt_seq_lens"] == [5]
    assert [len(tensor) for tensor in part["block_samples"]] == [1] * 4


# --- chunks -------------------------------------------------------------------------------------------------


@dataclass
class Output(BaseOutput):
    sample: Any
    extra: Any = None


SHAPES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "tensor": lambda named: named["sample"] * 2,
    "tuple": lambda named: (named["sample"] * 2,),
    "residuals": lambda named: ([named["sample"], named["sample"] * 3], named["sample"].sum(dim=1)),
    "output": lambda named: Transformer2DModelOutput(sample=named["sample"] * 2),
    "output with more": lambda named: Output(sample=named["sample"], extra=(named["sample"] + 1, "text", None)),
    "dict": lambda named: {"sample": named["sample"] * 2, "scale": torch.tensor(2.0)},
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def chunks(size: int, rows: int) -> list[list[int]]:
    return [list(range(rows))[start : start + size] for start in range(0, rows, size)]


@pytest.mark.parametrize("shape", SHAPES)
@few
@given(sources=partitions(), copies=copies, size=st.integers(1, 5))
def test_chunks_joined_are_the_whole(sources: Sources, copies: int, size: int, shape: str) -> None:
    module, rows = SHAPES[shape], len(sources) * copies
    folding = Folding(sources, rows, CPU)
    folded = folding.fold({"sample": random(rows, 3, 2)})
    parts = chunks(size, len(folding.live))
    outputs = [module(pick(folded, len(folding.live), part)) for part in parts]
    sizes = [len(part) for part in parts]
    tiled = [copy * len(sources) + source for copy in range(copies) for source in sources]
    assert same(assemble(outputs, sizes, folding.inverse), module({"sample": random(rows, 3, 2)[tiled]}))
    assert same(assemble(outputs, sizes, None), module(folded))


@pytest.mark.parametrize("wrapped", [False, True])
@few
@given(sources=partitions(), size=st.integers(1, 5))
def test_lists_of_rows_joined_are_the_whole(sources: Sources, size: int, wrapped: bool) -> None:
    """Z-Image: images of different sizes, so that no tensor can hold them."""
    rows = len(sources)
    folding = Folding(sources, rows, CPU)
    images = [random(2, 1, source + 1, 2, seed=source) for source in sources]
    folded = folding.fold({"x": images})
    parts = chunks(size, len(folding.live))
    outputs = [pick(folded, len(folding.live), part)["x"] for part in parts]
    if wrapped:
        outputs = [(output,) for output in outputs]
    joined = assemble(outputs, [len(part) for part in parts], folding.inverse, listed=True)
    assert same(joined[0] if wrapped else joined, images)


def test_the_tables_name_each_argument_once() -> None:
    assert not SHARED & CONDITIONS
    assert not SHARED & MASKS.keys()
    assert set(MASKS.values()) <= CONDITIONS


def apart(folding: Folding, **named: Any) -> set[str]:
    return {name for name, flag in folding.differences(named).items() if flag}


def test_an_argument_that_differs_and_is_not_a_condition_is_reported() -> None:
    folding = Folding((0, 0, 2), 6, CPU)
    equal = 1 + torch.arange(3.0)[[0, 0, 2] * 2][:, None]
    different = torch.arange(6.0)[:, None]
    assert not apart(folding, sample=equal, encoder_hidden_states=different)
    assert not apart(folding, sample=equal * (1 + 1e-7 * different))  # rounding
    assert not apart(folding, sample=(equal * (1 + 1e-3 * different)).bfloat16())
    assert apart(folding, sample=equal * (1 + 1e-4 * different)) == {"sample"}
    assert apart(folding, sample=different, img_ids=different) == {"sample"}
    assert apart(folding, added={"extra": (different,)}) == {"extra"}
    assert apart(folding, x=list(different)) == {"x"}  # a list with one tensor per row
    assert apart(folding, img_shapes=[(1, 2, 3)] * 5 + [(1, 2, 4)]) == set()  # the last row stands alone
    assert apart(folding, img_shapes=[(1, 2, 3), (1, 2, 4)] + [(1, 2, 3)] * 4) == {"img_shapes"}
    assert not apart(Folding((0, 1, 2), 6, CPU), sample=different)


@pytest.mark.parametrize("name", ["input_ids", "class_labels", "encoder_hidden_states"])
def test_whole_numbers_must_be_equal(name: str) -> None:
    """Token ids 20000 and 20020 of a vocabulary are different words, however close the numbers are."""
    folding = Folding((0, 0), 4, CPU)
    ids = torch.tensor([[20000, 7], [20020, 7]] * 2)
    assert apart(folding, **{name: ids}) == {name}
    assert apart(folding, **{name: ids > 20010}) == {name}
    assert not apart(folding, **{name: ids[[0, 0, 1, 1]]})


def test_a_mask_without_its_condition_must_be_equal() -> None:
    mask = torch.tensor([[1, 1], [1, 0]])
    assert apart(Folding((0, 0), 2, CPU), attention_mask=mask) == {"attention_mask"}
    assert not apart(Folding((0, 0), 2, CPU), attention_mask=mask, encoder_hidden_states=torch.ones(2, 2, 3))


class Cache:
    """Stands for what keeps keys and values between calls."""


def test_an_argument_that_cannot_be_split_into_rows_is_reported() -> None:
    folding = Folding((0, 0, 2), 6, CPU)
    assert "has 12 rows" in str(folding.misshapen({"encoder_hidden_states": torch.ones(12, 4)}))
    assert "memory holds a Cache" in str(folding.misshapen({"added": {"memory": [Cache()]}}))
    assert "kv_cache_mode keeps" in str(folding.misshapen({"kv_cache_mode": "extract"}))
    assert folding.misshapen({"kv_cache": None, "kv_cache_mode": None}) is None


@pytest.mark.parametrize("mask_dtype", [torch.float32, torch.int64, torch.bool])
@few
@given(sources=partitions(), seed=st.integers(0, 9))
def test_a_token_that_no_member_has_is_the_mean_of_all(sources: Sources, seed: int, mask_dtype: torch.dtype) -> None:
    """Models may read what a mask seems to hide: HunyuanDiT pools it, Chroma adds its mask. So nothing may come from
    the first member alone, and the order of the members must not matter."""
    rows = len(sources)
    values = random(rows, 5, 3, seed=seed)
    mask = torch.zeros(rows, 5).to(mask_dtype)
    mask[:, :2] = 1
    arguments = {"encoder_hidden_states": values, "encoder_attention_mask": mask}
    folded = Folding(sources, rows, CPU).fold(arguments)["encoder_hidden_states"]
    torch.testing.assert_close(folded, torch.stack([values[own].mean(dim=0) for own in sets(sources, 1)]))


def test_lengths_mark_padding_as_masks_do() -> None:
    values, lengths = random(2, 3, 4), torch.tensor([1, 3])
    folded = Folding((0, 0), 2, CPU).fold({"text_bth": values, "text_lens": lengths})
    assert folded["text_lens"].tolist() == [3]
    torch.testing.assert_close(folded["text_bth"][0, 0], values[:, 0].mean(dim=0))
    torch.testing.assert_close(folded["text_bth"][0, 1:], values[1, 1:])
