"""Weights in prompts: their syntax, and the embeddings and images that they give."""

import functools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from building_blocks import byte_tokenizer, clip, quiet, sd_parts, unet
from command import assert_refused, cotrunk
from tiny import sd_with_text
from transformers import CLIPTextModelWithProjection

from cotrunk import CotrunkError, Sharing, generate, plan
from cotrunk.pipelines.prompt_weights import Piece, looks_weighted, parse_weights, plain_text
from cotrunk.pipelines.weighted_prompts import weighted_encoder
from cotrunk.planning.prompt_row import PromptRow
from cotrunk.runs.job import Job
from cotrunk.runs.report import RunReport
from cotrunk.runs.runner import run_job
from cotrunk.settings import Settings

PROMPTS = ["a small cat", "a small dog"]


@functools.cache
def sd() -> Any:
    return sd_with_text().pipe


@pytest.mark.parametrize(
    ("prompt", "parts", "plain"),
    [
        ("a cat", [[Piece("a cat")]], "a cat"),
        ("a (red:1.3) cat", [[Piece("a "), Piece("red", 1.3), Piece(" cat")]], "a red cat"),
        ("(a (b:2) c:0.5)", [[Piece("a ", 0.5), Piece("b", 1.0), Piece(" c", 0.5)]], "a b c"),
        ("a BREAK b", [[Piece("a ")], [Piece("b")]], "a b"),
        ("(a BREAK b:2)", [[Piece("a ", 2.0)], [Piece("b", 2.0)]], "a b"),
        (r"\(a\) :) b: 3) a:b", [[Piece("(a) :) b: 3) a:b")]], "(a) :) b: 3) a:b"),
        ("BREAKFAST, xBREAK", [[Piece("BREAKFAST, xBREAK")]], "BREAKFAST, xBREAK"),
        ("(a:.5) (b:1.)", [[Piece("a", 0.5), Piece(" b", 1.0)]], "a b"),
        ("", [[]], ""),
    ],
)
def test_the_syntax(prompt: str, parts: list[list[Piece]], plain: str) -> None:
    assert parse_weights(prompt) == parts
    assert plain_text(prompt) == plain


def test_brackets_without_a_number() -> None:
    assert [piece.weight for piece in parse_weights("((a)) (b) [c]")[0] if piece.text.strip()] == pytest.approx(
        [1.21, 1.1, 1 / 1.1]
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a (red:1.3", r"the bracket at '\(red:1.3' is not closed: close it, or write \\\("),
        ("a [red", r"the bracket at '\[red' is not closed"),
        ("a (red:12)", r"the weight in '\(red:12\)' is out of range: use 0 or more, at most 10"),
        ("a (red:-1)", "out of range"),
    ],
)
def test_mistakes(prompt: str, message: str) -> None:
    with pytest.raises(CotrunkError, match=message):
        parse_weights(prompt)
    assert plain_text(prompt) == prompt


@pytest.mark.parametrize(
    ("prompt", "found"), [("a (b:1.2)", True), ("a BREAK b", True), ("a (b)", False), ("b: 3", False)]
)
def test_what_looks_weighted(prompt: str, found: bool) -> None:
    assert looks_weighted(prompt) == found


def test_without_weights_the_embeddings_are_those_of_the_pipeline() -> None:
    found = weighted_encoder(sd()).arguments(PROMPTS, ["grey", "grey"])
    own, negative = sd().encode_prompt(PROMPTS, "cpu", 1, True, ["grey", "grey"])
    assert torch.equal(found["prompt_embeds"], own)
    assert torch.equal(found["negative_prompt_embeds"], negative[:1])


def test_weights_and_long_prompts(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("transformers").addHandler(caplog.handler)
    encoder = weighted_encoder(sd_with_text().pipe)
    plain, heavy = (encoder.arguments([text], [None])["prompt_embeds"] for text in ("a red cat", "a (red:1.5) cat"))
    changed = (plain != heavy).any(dim=2)[0]
    assert changed.any()
    assert not changed[0]  # the token of the beginning has no weight
    assert encoder.length("a cat", None) == 77
    assert encoder.length("a " * 60, None) == 154
    assert encoder.length("a cat", "a " * 60) == 154
    assert encoder.length("a BREAK cat", None) == 154
    both = encoder.arguments(["a " * 60, "a cat"], [None, "grey"])
    assert both["prompt_embeds"].shape == both["negative_prompt_embeds"].shape == (2, 154, plain.shape[2])
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "longer than the specified maximum" not in caplog.text  # nothing is cut off
    assert torch.equal(both["prompt_embeds"][1, :77], encoder.arguments(["a cat"], [None])["prompt_embeds"][0])


def test_embeddings_of_other_loras_are_forgotten() -> None:
    pipe = sd_with_text().pipe
    before = weighted_encoder(pipe).arguments(["a cat"], [None])["prompt_embeds"]
    with torch.no_grad():  # as a LoRA of the text encoder would
        for weights in pipe.text_encoder.parameters():
            weights.mul_(1.1)
    after = weighted_encoder(pipe, ("style",)).arguments(["a cat"], [None])["prompt_embeds"]
    assert not torch.equal(before, after)
    assert weighted_encoder(pipe, ("style",)) is weighted_encoder(pipe, ("style",))


def sdxl() -> Any:
    parts = {name: part for name, part in sd_parts().items() if name in ("vae", "scheduler")}
    return quiet(
        diffusers.StableDiffusionXLPipeline(
            **parts,
            unet=unet(
                cross_attention_dim=32,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=64,
            ),
            text_encoder=clip(77),
            tokenizer=byte_tokenizer(77),
            text_encoder_2=clip(77, CLIPTextModelWithProjection),
            tokenizer_2=byte_tokenizer(77),
        )
    )


def test_two_text_encoders() -> None:
    pipe = sdxl()
    own = pipe.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, negative_prompt=["grey", "dark"])
    found = weighted_encoder(pipe).arguments(PROMPTS, ["grey", "dark"])
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    for name, tensor in zip(names, own, strict=True):
        assert torch.allclose(found[name], tensor, atol=1e-6), name
    # the pooled embeddings have no weights
    heavy = weighted_encoder(pipe).arguments(["a (small:1.4) cat", "a (small) dog"], ["grey", "dark"])
    assert torch.equal(heavy["pooled_prompt_embeds"], found["pooled_prompt_embeds"])
    assert not torch.equal(heavy["prompt_embeds"], found["prompt_embeds"])
    # SDXL has zeros where there is no negative prompt at all
    own = pipe.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1)
    found = weighted_encoder(pipe).arguments(PROMPTS, [None, None])
    assert torch.equal(found["negative_prompt_embeds"].expand(2, -1, -1), own[1])
    assert torch.equal(found["negative_pooled_prompt_embeds"].expand(2, -1), own[3])


@pytest.mark.usefixtures("model")
def test_pipelines_that_are_not_supported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outcome = cotrunk("generate", "a (red:1.3) cat", "--weights", "--out", tmp_path / "run")
    assert_refused(outcome, "This StableDiffusionPipeline has a BertModel, and weighted prompts need CLIP")
    flux = type("FluxPipeline", (), {})()
    with pytest.raises(CotrunkError, match="FluxPipeline takes no weighted prompts: use Stable Diffusion 1, 2 or XL"):
        weighted_encoder(flux)
    monkeypatch.setitem(__import__("sys").modules, "compel", None)
    with pytest.raises(CotrunkError, match=r"pip install 'cotrunk\[weights\]'"):
        weighted_encoder(sd_with_text().pipe)


def test_the_command_line_checks_weights_before_loading(tmp_path: Path, model: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.csv").write_text("prompt,negative_prompt\na cat,(grey:99)\n")
    refusal = cotrunk("generate", "--prompts", tmp_path / "p.csv", "--weights", "--out", tmp_path / "run")
    assert_refused(refusal, "p.csv, line 2: the weight in '(grey:99)' is out of range")
    outcome = cotrunk("plan", "a (red:1.3) cat", "a dog", "--steps", 2)
    assert "hint: prompt 0 looks like a weighted prompt: --weights reads (word:1.3) and BREAK" in outcome.err


JOB = Job(
    (
        PromptRow("a (small:1.3) cat"),
        PromptRow("a small dog, " * 8),
        PromptRow("a small dog"),
        PromptRow("a small BREAK cow", negative_prompt="(grey:0.5)"),
    ),
    Settings(Sharing(share=0.5, similarity=-1.0), skipping=None, steps=2),
    guidance_scale=3.0,
    negative_prompt="dark",
    width=32,
    height=32,
    weights=True,
)


def test_a_run_with_weights(tmp_path: Path) -> None:
    report = run_job(JOB, tmp_path, load=lambda job: sd())
    assert report == RunReport.load(tmp_path)
    assert report.status == "done"
    # images of prompts with another number of tokens would change with the padding
    assert [part.prompts for part in report.parts] == [(0, 2), (1, 3)]
    assert sorted(group.prompts for group in report.groups) == [(0, 2), (1,), (3,)]
    plain = run_job(
        replace(JOB, weights=False, prompts=("a small cat", "a small dog")), tmp_path / "plain", load=lambda job: sd()
    )
    assert plain.images[1].seed == report.images[2].seed  # seeds depend on the texts, not on their embeddings


def test_texts_beside_embeddings() -> None:
    own, negative = sd().encode_prompt(PROMPTS, "cpu", 1, True, ["grey", "grey"])
    given = {"prompt_embeds": own, "negative_prompt_embeds": negative, "negative_prompt": ["grey", "grey"]}
    how = {"sharing": Sharing(share=0.5), "num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np"}
    texts = generate(sd(), PROMPTS, negative_prompt="grey", skipping=None, **how)
    both = generate(sd(), PROMPTS, skipping=None, **given, **how)
    assert np.abs(texts.images - both.images).max() < 1e-5
    assert both.plan.from_embeddings
    assert (both.plan.prompts, both.plan.seeds) == (texts.plan.prompts, texts.plan.seeds)
    assert both.plan.trees == texts.plan.trees
    again = generate(sd(), PROMPTS, plan=both.plan, skipping=None, **given, **{**how, "sharing": None})
    assert np.array_equal(again.images, both.images)
    with pytest.raises(CotrunkError, match="give prompts with prompt_embeds, or a number"):
        plan(sd(), **{name: each for name, each in given.items() if name != "negative_prompt"}, num_inference_steps=2)
    with pytest.raises(CotrunkError, match="pass the same prompt_embeds"):
        generate(sd(), plan=both.plan, **how)
    with pytest.raises(CotrunkError, match="prompt_embeds has 2 entries for 3 prompts"):
        plan(sd(), [*PROMPTS, "a cow"], prompt_embeds=own, num_inference_steps=2)


def test_embeddings_decide_which_prompts_look_identical() -> None:
    texts = ["a cat", "a tom cat", "a dog"]
    own, negative = sd().encode_prompt(["a cat", "a cat", "a dog"], "cpu", 1, True)
    everyone = Sharing(share=0.5, similarity=-1.0)
    given = {"prompt_embeds": own, "negative_prompt_embeds": negative, "num_inference_steps": 2}
    made = plan(sd(), texts, sharing=everyone, **given)
    assert made.findings.alike == ((0, 1),)
    assert not any({0, 1} <= {*tree.images} for tree in made.trees)
    assert any(len(tree.images) == 2 for tree in made.trees)
