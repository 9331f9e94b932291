"""The key of a trunk: another one after a change of anything that can change a row, and equal in all processes."""

import functools
import importlib
import inspect
import linecache
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers.models.attention_dispatch import attention_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cotrunk.errors import CotrunkError
from cotrunk.pipelines.loading import load_pipeline
from cotrunk.planning.request import Request
from cotrunk.settings import Batching, Settings, Sharing, Skipping
from cotrunk.trunks.digest import digest_of
from cotrunk.trunks.key import trunk_keys
from cotrunk.trunks.pipeline_state import _version, pipeline_digest

PROMPTS = ["a red apple", "a green apple"]
OWN = Sharing(noise="own", trunk_guidance=0.0)
EXACT = Settings(skipping=None)


@functools.cache
def pipeline() -> Any:
    return tiny.sd_with_text().pipe


def keys(
    pipe: Any = None, run: Settings = EXACT, sharing: Sharing = OWN, precision: Any = "float16", **call: Any
) -> list[str]:
    if pipe is None:
        return trunk_keys(Request(pipeline(), PROMPTS, call), run, sharing, precision, pipeline="known")
    return trunk_keys(Request(pipe, PROMPTS, call), run, sharing, precision)


def key(*pipe: Any, **changes: Any) -> str:
    """Return the key of two prompts that differ in nothing but their text."""
    first, second = keys(*pipe, **changes)
    assert first == second
    return first


CALLS: dict[str, tuple[Any, ...]] = {
    "num_inference_steps": (50, 20),
    "guidance_scale": (7.5, 5.0, 1.0),
    "negative_prompt": (None, "blurred", "dark"),
    "height": (None, 64, 32),
    "width": (None, 64, 32),
    "eta": (0.0, 0.5),
    "guidance_rescale": (0.0, 0.7),
    "clip_skip": (None, 1),
    "timesteps": (None, [900, 500, 1], [900, 400, 1]),
    "sigmas": (None, [9.0, 1.0], [9.0, 2.0]),
    "cross_attention_kwargs": (None, {"scale": 0.5}, {"scale": 1.0}),
    "run": (
        EXACT,
        Settings(skipping=Skipping()),
        Settings(skipping=Skipping(tolerance=0.07)),
        Settings(skipping=None, guidance_interval=(0.1, 0.8)),
        Settings(skipping=None, guidance_interval=(0.1, 0.9)),
    ),
    "sharing": (
        OWN,
        Sharing(noise="common", trunk_guidance=0.0),
        Sharing(noise="own", trunk_guidance=1.0),
        Sharing(noise="own", trunk_guidance=0.0, encoder="minilm"),
    ),
    "precision": ("float16", "float32"),
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_keys_are_equal_if_and_only_if_all_settings_are(data: st.DataObject) -> None:
    one, other = ({n: data.draw(st.sampled_from(values)) for n, values in CALLS.items()} for _ in range(2))
    changed = data.draw(st.sampled_from([*CALLS, None]))
    if changed is not None:  # often, only one of them differs
        other = {**one, changed: other[changed]}
    assert (key(**one) == key(**other)) == (one == other)


@pytest.mark.parametrize("name", CALLS)
def test_each_setting_alone_changes_the_key(name: str) -> None:
    found = [key(**{name: value}) for value in CALLS[name]]
    assert len(set(found)) == len(CALLS[name])
    assert found[0] == key()  # a default that is given is the default


@pytest.mark.parametrize("model", ["mini", "mini-dit"])
def test_defaults_are_those_of_the_call_and_not_what_a_pipeline_states(model: str) -> None:
    pipe = load_pipeline(model, "cpu")
    parameters = inspect.signature(type(pipe).__call__).parameters
    of_class = {name: parameters[name].default for name in pipe.cotrunk_defaults}
    assert of_class != pipe.cotrunk_defaults

    def of(call: dict[str, Any]) -> list[str]:
        request = Request(pipe, PROMPTS, call)
        assert request.evaluations.steps == call.get("num_inference_steps", of_class["num_inference_steps"])
        return trunk_keys(request, EXACT, OWN, pipeline="known")

    assert of({}) == of(of_class)
    for name, value in pipe.cotrunk_defaults.items():
        assert of({}) != of({**of_class, name: value})


def test_what_changes_no_row_does_not_change_the_key() -> None:
    for run in (Settings(skipping=None, batching=Batching(4)), Settings(skipping=None, sharing=None)):
        assert key(run=run) == key()
    for sharing in (Sharing(noise="own", trunk_guidance=0.0, share=0.4, similarity=0.9, max_group=3, mode="adaptive"),):
        assert key(sharing=sharing) == key()
    assert key(output_type="latent") == key()


def test_arguments_of_each_prompt_are_in_its_own_key() -> None:
    first, second = keys(negative_prompt=["dark", "blurred"])
    assert first != second
    assert first == key(negative_prompt="dark")
    pipe = tiny.sd_from_image().pipe
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]

    def of(image: Any, prompts: list[str] = PROMPTS, **call: Any) -> list[str]:
        return trunk_keys(Request(pipe, prompts, {"image": image, **call}), EXACT, OWN, pipeline="known")

    assert len({*of(images), *of(images, strength=0.5)}) == 4
    assert of(images[0]) == of([images[0], images[0]]) == [of(images)[0]] * 2
    assert of(images[0], PROMPTS[:1]) == of(images)[:1]


class Packed(torch.Tensor):
    """A tensor with an attribute that tells what its numbers mean."""


class Quantised(torch.Tensor):
    """A wrapper of a tensor, as quantised weights are."""

    @staticmethod
    def __new__(cls, data: torch.Tensor, context: str) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)

    def __init__(self, data: torch.Tensor, context: str) -> None:
        self.inner, self.context = data, context

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, str]]:
        return ["inner"], {"context": self.context}

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise NotImplementedError


def with_lora(pipe: Any, name: str, weight: float, seed: int) -> None:
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), adapter_name=name)
    torch.manual_seed(seed)
    for parameter_name, parameter in pipe.unet.named_parameters():
        if f".{name}." in parameter_name:
            parameter.data = torch.randn(parameter.shape)
    pipe.unet.set_adapters([name], [weight])


def one_weight(pipe: Any) -> None:
    weight = max(pipe.unet.parameters(), key=lambda each: each.numel())
    weight.data.view(-1)[-1] += 1e-3


def swapped_weights(pipe: Any) -> None:
    weight = pipe.unet.conv_in.weight.data
    weight.copy_(weight.flip(0))


def freeu(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def add_token(pipe: Any) -> None:
    pipe.tokenizer.model_max_length -= 1


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a weight": one_weight,
    "the order of weights": swapped_weights,
    "a weight of the text encoder": lambda pipe: next(pipe.text_encoder.parameters()).data.mul_(1.01),
    "a weight of the decoder": lambda pipe: next(pipe.vae.parameters()).data.mul_(1.01),
    "a LoRA": lambda pipe: with_lora(pipe, "style", 1.0, 0),
    "a LoRA, its scale": lambda pipe: with_lora(pipe, "style", 0.5, 0),
    "a LoRA, its weights": lambda pipe: with_lora(pipe, "style", 1.0, 1),
    "a LoRA, its name": lambda pipe: with_lora(pipe, "other", 1.0, 0),
    "a LoRA that is off": lambda pipe: (with_lora(pipe, "style", 1.0, 0), pipe.unet.disable_adapters()),
    "dtype": lambda pipe: pipe.unet.to(torch.bfloat16),
    "the class of the scheduler": lambda pipe: setattr(
        pipe, "scheduler", diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    ),
    "the settings of the scheduler": lambda pipe: setattr(
        pipe, "scheduler", type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    ),
    "the tokenizer": add_token,
    "FreeU": freeu,
    "an attention processor": lambda pipe: pipe.unet.set_attn_processor(
        diffusers.models.attention_processor.AttnProcessor()
    ),
    "training mode": lambda pipe: pipe.unet.train(),
    "an attention backend": lambda pipe: [
        setattr(each, "_attention_backend", "_native_math") for each in pipe.unet.attn_processors.values()
    ],
    "the noise schedule, by hand": lambda pipe: pipe.scheduler.alphas_cumprod.mul_(0.9),
    "the noise schedule, its end": lambda pipe: setattr(pipe.scheduler, "final_alpha_cumprod", torch.tensor(0.5)),
    "an attribute of the pipeline": lambda pipe: setattr(pipe, "default_sample_size", 64),
    "an attribute of the pipeline, another value": lambda pipe: setattr(pipe, "default_sample_size", 32),
    "a processor of the pipeline": lambda pipe: pipe.image_processor.register_to_config(vae_scale_factor=4),
}


@functools.cache
def digest_after(change: str | None) -> str:
    pipe = tiny.sd_with_text().pipe
    if change is not None:
        CHANGES[change](pipe)
    return pipeline_digest(pipe)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_pipeline_changes_its_digest(change: str) -> None:
    similar = [other for other in CHANGES if other.partition(",")[0] == change.partition(",")[0] and other != change]
    for other in (None, *similar):
        assert digest_after(change) != digest_after(other), other


def test_equal_pipelines_have_equal_keys() -> None:
    one, other = tiny.sd_with_text().pipe, tiny.sd_with_text().pipe
    assert key(one) == key(other)
    one_weight(one)
    assert key(one) != key(other)


def test_a_call_does_not_change_the_digest() -> None:
    pipe = tiny.sd_with_text().pipe
    pipe(PROMPTS, num_inference_steps=2, output_type="latent")
    assert pipeline_digest(pipe) == digest_after(None)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_shift_of_a_schedule_counts_and_a_schedule_of_a_call_does_not(dynamic: bool) -> None:
    pipe = tiny.sd3().pipe
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic)
    before = pipeline_digest(pipe)
    pipe.scheduler.set_timesteps(3, **({"mu": 2.0} if dynamic else {}))
    assert pipeline_digest(pipe) == before
    pipe.scheduler.set_shift(6.0)
    assert pipeline_digest(pipe) != before


def test_numerics_of_the_process_count() -> None:
    before = key()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        brain = key()
    with torch.autocast("cpu", dtype=torch.float16):
        half = key()
    assert len({before, brain, half, key()}) == 3
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert key() != before
    finally:
        torch.set_float32_matmul_precision(precision)
    with attention_backend("_native_math"):
        assert key() != before
    assert key() == before


def test_the_version_of_the_libraries_and_the_format_count(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny.sd_with_text().pipe
    before = key(pipe)
    with monkeypatch.context() as patch:
        patch.setattr("cotrunk.trunks.key.FORMAT", 99)
        assert key(pipe) != before
    for library in ("torch", "diffusers", "transformers", "peft", "accelerate", "cotrunk", "tokenizers", "numpy"):
        with monkeypatch.context() as patch:
            patch.setattr(
                "cotrunk.trunks.pipeline_state._version",
                lambda name, library=library: "99.0" if name == library else _version(name),
            )
            assert key(pipe) != before, library


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda pipe: pipe.unet.conv_in.register_forward_hook(lambda *_: None), "unet.conv_in has a hook"),
        (lambda pipe: pipe.unet.register_forward_pre_hook(lambda *_: None), "unet has a hook"),
        (lambda pipe: setattr(pipe.unet, "forward", lambda *_, **__: torch.zeros(1)), "unet has another forward"),
        (lambda pipe: setattr(pipe.unet, "extra", lambda x: x), "unet.extra is the function"),
        (lambda pipe: setattr(pipe.unet, "extra", object()), "unet.extra is a object"),
        (lambda pipe: setattr(pipe, "encode_prompt", lambda *_, **__: None), "the pipeline has another encode_prompt"),
        (lambda pipe: setattr(pipe, "extra", lambda: None), "the pipeline.extra is the function"),
        (lambda pipe: setattr(pipe.scheduler, "step", lambda *_: None), "scheduler has another step"),
        (lambda pipe: setattr(pipe.unet, "get_time_embed", lambda *_: None), "unet has another get_time_embed"),
    ],
)
def test_what_cannot_be_read_is_refused(spoil: Callable[[Any], Any], message: str) -> None:
    pipe = tiny.sd_with_text().pipe
    spoil(pipe)
    with pytest.raises(CotrunkError, match=f"^Trunks are not stored: {message}.*without a trunk cache.$"):
        key(pipe)


@pytest.mark.parametrize(("part", "name"), [("unet", "forward"), (None, "check_inputs"), ("scheduler", "step")])
def test_a_method_that_is_set_on_a_class_is_refused(
    part: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny.sd_with_text().pipe
    kind = type(pipe if part is None else getattr(pipe, part))

    def other(*_: Any, **__: Any) -> None: ...

    other.rows_are_independent = True  # type: ignore[attr-defined]
    monkeypatch.setattr(kind, name, other, raising=False)
    with pytest.raises(CotrunkError, match=rf"^Trunks are not stored: .*{kind.__name__}.{name} is the function"):
        key(pipe)


def test_the_source_of_a_base_class_and_of_its_module_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def digest(base: str, helper: str) -> str:
        (tmp_path / "base_of_user.py").write_text(f"class Base:\n    factor = {base}\n", encoding="utf-8")
        (tmp_path / "class_of_user.py").write_text(
            f"from base_of_user import Base\ndef helper(): return {helper}\nclass Own(Base): ...\n", encoding="utf-8"
        )
        linecache.clearcache()
        importlib.invalidate_caches()
        for name in ("base_of_user", "class_of_user"):
            sys.modules.pop(name, None)
        for cached in tmp_path.glob("__pycache__/*"):
            cached.unlink()
        return digest_of("x", importlib.import_module("class_of_user").Own())

    assert digest("1", "1") == digest("1", "1")
    assert len({digest("1", "1"), digest("2", "1"), digest("1", "2")}) == 3


def test_the_context_of_a_quantised_tensor_counts() -> None:
    data = torch.zeros(4, 4)
    found = {digest_of("x", Quantised(data, context)) for context in ("per token", "per tensor", "per token")}
    assert len(found) == 2
    kinds = []
    for kind in (1, 2):
        packed = torch.zeros(4).as_subclass(Packed)
        packed.kind = kind  # type: ignore[attr-defined]
        kinds.append(digest_of("x", packed))
    assert kinds[0] != kinds[1]


def test_arguments_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(CotrunkError, match=r"callback_on_step_end is the function .*without a trunk cache"):
        key(callback_on_step_end=lambda *_: {})
    with pytest.raises(CotrunkError, match=r"cross_attention_kwargs.x is a Generator"):
        key(cross_attention_kwargs={"x": torch.Generator()})


def test_embeddings_have_no_key() -> None:
    small = tiny.sd()
    with pytest.raises(CotrunkError, match="prompt_embeds hold no texts"):
        trunk_keys(Request(small.pipe, None, small.inputs(2)), EXACT, OWN)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.builds(np.array, st.lists(st.integers(-9, 9)))
    | st.builds(torch.tensor, st.lists(st.integers(-9, 9))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_digests_are_equal_if_and_only_if_values_are(one: Any, other: Any) -> None:
    assert (digest_of("value", one) == digest_of("value", other)) == (typed(one) == typed(other))


def typed(value: Any) -> Any:
    """Return the value in a form whose repr shows its type and all of it."""
    if isinstance(value, dict):
        return {"dict": sorted((name, repr(typed(each))) for name, each in value.items())}
    if isinstance(value, list):
        return [typed(each) for each in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        return (type(value).__name__, str(value.dtype), value.tolist())
    return (type(value).__name__, repr(value))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70_000), st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int8]), st.data())
def test_each_value_of_a_tensor_counts(size: int, dtype: torch.dtype, data: st.DataObject) -> None:
    tensor = torch.arange(size).remainder(97).to(dtype)
    place = data.draw(st.integers(0, size - 1))
    changed = tensor.clone()
    changed[place] += 1
    assert digest_of("x", tensor) == digest_of("x", tensor.clone())
    assert digest_of("x", tensor) != digest_of("x", changed)
    padded = torch.cat([torch.zeros(1, dtype=dtype), tensor])
    assert digest_of("x", padded[1:]) == digest_of("x", tensor)  # a view whose bytes begin elsewhere


def test_objects_that_hold_themselves_are_read() -> None:
    rings = []
    for _ in range(2):
        ring: list[Any] = [1]
        ring.append(ring)
        rings.append(ring)
    assert digest_of("ring", rings[0]) == digest_of("ring", rings[1]) != digest_of("ring", [1, [1]])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mini", "mini-dit"])
def test_equal_settings_give_equal_keys_in_all_processes(model: str) -> None:
    code = (
        "from cotrunk.pipelines.loading import load_pipeline; from cotrunk.planning.request import Request;"
        "from cotrunk.settings import Settings, Sharing; from cotrunk.trunks.key import trunk_keys;"
        f"request = Request(load_pipeline('{model}', 'cpu'), ['a', 'b'], {{'negative_prompt': ['x', 'y']}});"
        "print(*trunk_keys(request, Settings(skipping=None), Sharing(noise='own', trunk_guidance=0.0)))"
    )
    environments = [{"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"}]
    found = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **each}
        )
        for each in environments
    ]
    request = Request(load_pipeline(model, "cpu"), ["a", "b"], {"negative_prompt": ["x", "y"]})
    here = trunk_keys(request, EXACT, OWN)
    assert [each.stdout.split() for each in found] == [here, here]
