"""Metrics of sets of images: known values, correct intervals, missing networks."""

import builtins
import dataclasses
import sys
from types import ModuleType
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from experiments import Brightness
from hypothesis import given, settings
from hypothesis import strategies as st

from cotrunk import CotrunkError
from cotrunk.evaluation import metrics, networks
from cotrunk.evaluation.emoji import EmojiAlignment
from cotrunk.evaluation.networks import MetricNetworks
from cotrunk.evaluation.tables import describe_networks


def gaussian(n: int, mean: list[float], deviation: list[float], seed: int = 0) -> torch.Tensor:
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, len(mean))))
    return torch.tensor(mean) + torch.tensor(deviation) * noise


def test_the_frechet_distance_of_gaussians_is_correct() -> None:
    one = gaussian(40_000, [0.0, 1.0], [1.0, 2.0])
    two = gaussian(40_000, [3.0, 1.0], [2.0, 0.5], seed=1)
    expected = 9 + (2 - 1) ** 2 + (2 - 0.5) ** 2
    assert metrics.frechet_distance(one, two, None) == pytest.approx(expected, rel=0.02)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), n=st.integers(5, 60), dimensions=st.sampled_from([None, 2, 3]))
def test_the_frechet_distance_to_itself_is_zero_and_to_others_is_not(seed: int, n: int, dimensions: int | None) -> None:
    one, two = (
        gaussian(n, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], seed),
        gaussian(n, [1.0, 0.0, 0.0], [1.0, 1.0, 1.0], seed + 1),
    )
    assert metrics.frechet_distance(one, one, dimensions) == pytest.approx(0, abs=1e-5)
    assert metrics.frechet_distance(one, two, None) > 0


@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    real=st.integers(3, 90),
    dimensions=st.sampled_from([1, 5, 64]),
    kind=st.sampled_from([torch.float32, torch.float64]),
    twice=st.booleans(),
)
def test_a_frechet_distance_does_not_depend_on_the_order_of_the_images(
    seed: int, real: int, dimensions: int, kind: torch.dtype, twice: bool
) -> None:
    """Few real images vary along fewer axes than requested, and equal ones along even fewer."""
    draw = torch.Generator().manual_seed(seed)
    reference, features = (torch.randn(n, 100, generator=draw, dtype=kind) for n in (real, 50))
    if twice:  # as two batches of a network see equal images
        reference = torch.cat([reference, reference * (1 + torch.finfo(torch.float32).eps)])
    order = torch.randperm(len(reference), generator=draw)
    found = metrics.frechet_distance(features, reference, dimensions)
    assert metrics.frechet_distance(features, reference[order], dimensions) == pytest.approx(found, rel=1e-4)
    assert metrics.frechet_distance(features, reference, min(dimensions, real - 1)) == pytest.approx(found, rel=1e-9)


def test_intervals_and_changes_of_a_frechet_distance_use_the_same_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FRECHET_DRAWS", 3)
    draw = torch.Generator().manual_seed(0)
    reference, one, two = (torch.randn(n, 100, generator=draw) for n in (20, 50, 50))
    groups = [[i] for i in range(50)]
    first, second = (metrics.frechet_distance(features, reference, 19) for features in (one, two))
    assert metrics.frechet(one, reference, groups).value == pytest.approx(first, rel=1e-9)
    change = metrics.frechet_change(one, two, reference, groups)
    assert change.absolute.value == pytest.approx(first - second, rel=1e-9)


def test_equal_real_images_are_reported() -> None:
    """They have no variance. A distance of 0 would be wrong, but would look good."""
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(CotrunkError, match="The 5 real images are all equal"):
        metrics.frechet_distance(features, torch.ones(5, 8) / 3)
    assert metrics.frechet_distance(features, torch.ones(5, 8) / 3, None) > 0


def test_intervals_contain_the_truth_about_as_often_as_they_claim() -> None:
    hits = 0
    for seed in range(60):
        figure = metrics.mean(np.random.default_rng(seed).normal(1.0, 2.0, 80), seed=seed)
        assert figure.low < figure.value < figure.high
        hits += figure.low < 1.0 < figure.high
    assert 51 <= hits <= 60


def test_a_paired_difference_has_a_narrower_interval() -> None:
    draw = np.random.default_rng(0)
    prompts = draw.normal(size=200)
    one, two = prompts + 0.1 * draw.normal(size=200), prompts + 0.2 + 0.1 * draw.normal(size=200)
    paired, mine = metrics.difference(two, one), metrics.mean(two)
    assert paired.low < 0.2 < paired.high
    assert paired.high - paired.low < (mine.high - mine.low) / 4


def test_a_change_is_absolute_and_relative() -> None:
    draw = np.random.default_rng(0)
    groups = [[2 * i, 2 * i + 1] for i in range(100)]
    others = draw.normal(2.0, 0.5, 200)
    values = 1.1 * others + 0.01 * draw.normal(size=200)
    found = metrics.change(values, others, groups)
    plain = metrics.difference(values, others, groups)
    assert dataclasses.astuple(found.absolute) == pytest.approx(dataclasses.astuple(plain))
    assert found.relative.low < 0.1 < found.relative.high
    assert found.relative.high - found.relative.low < 0.01 < found.absolute.high - found.absolute.low
    values[:2] = np.nan
    assert metrics.change(values, others, [[], *groups]).relative.value == pytest.approx(0.1, abs=0.01)


def test_the_change_of_a_frechet_distance_is_that_of_the_two() -> None:
    one, two, real = (gaussian(300, [mean] * 4, [1.0] * 4, seed) for seed, mean in enumerate((0.5, 1.0, 0.0)))
    groups = [[i] for i in range(300)]
    found = metrics.frechet_change(one, two, real, groups, dimensions=None)
    mine, theirs = (metrics.frechet_distance(features, real, None) for features in (one, two))
    for figure, value in ((found.absolute, mine - theirs), (found.relative, mine / theirs - 1)):
        assert figure.low < figure.value < figure.high
        assert figure.value == pytest.approx(value)
    assert found.relative.is_clear
    assert found.relative.high - found.relative.low < 0.3


def test_an_image_resampled_twice_counts_twice() -> None:
    features, times = gaussian(6, [1.0, 2.0], [1.0, 3.0]).numpy(), np.array([0.0, 2, 1, 0, 3, 1])
    found, drawn = metrics._Gaussian.of(features, times), np.repeat(features, times.astype(int), axis=0)
    assert np.allclose(found.mean, drawn.mean(axis=0))
    assert np.allclose(found.covariance, np.cov(drawn, rowvar=False))
    assert np.allclose(found.root @ found.root, found.covariance)


def test_real_images_are_resampled_with_their_groups() -> None:
    """Groups at different positions are resampled together in both sets."""
    centres = np.repeat(np.random.default_rng(0).normal(0, 5, (20, 2)), 3, axis=0)
    one, two = (torch.from_numpy(centres) + gaussian(60, [0.0, 0.0], [0.3, 0.3], seed) for seed in (0, 1))
    groups = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(20)]
    together, alone = metrics.frechet(one, two, groups, groups), metrics.frechet(one, two, groups)
    assert together.value == alone.value
    assert together.high - together.low < (alone.high - alone.low) / 5
    itself = metrics.frechet(one, one, groups, groups)
    assert itself.high == pytest.approx(0, abs=1e-6)  # in every draw
    assert metrics.frechet(one, one, groups).high > 0.1


def test_the_interval_of_a_frechet_distance_contains_it() -> None:
    one, two = gaussian(300, [0.0] * 4, [1.0] * 4), gaussian(300, [0.5] * 4, [1.0] * 4, seed=1)
    figure = metrics.frechet(one, two, None)
    assert figure.low < figure.value < figure.high
    assert figure.value == pytest.approx(1.0, abs=0.35)


def test_diversity_is_the_mean_distance_in_a_group() -> None:
    images = torch.tensor([0.0, 0.2, 0.6, 0.5, 0.5, 0.9])[:, None, None, None].expand(6, 3, 4, 4)
    found = metrics.diversity(Brightness(), images, [[0, 1, 2], [3, 4], [5]])
    assert found == pytest.approx([(0.2 + 0.6 + 0.4) / 3, 0.0], abs=1e-6)


def test_alignment_and_bleed() -> None:
    texts = torch.eye(4, dtype=torch.float64)
    images = texts[[0, 2, 2, 3]]  # the second image shows what the third prompt says
    assert metrics.alignment(images, texts).tolist() == [1, 0, 1, 1]
    assert np.array_equal(metrics.bleed(images, texts, [[0, 1, 2], [3]]), [0, 1, 0, np.nan], equal_nan=True)
    assert np.array_equal(metrics.bleed(images, texts, [[0, 3], [1], [2]]), [0, np.nan, np.nan, 0], equal_nan=True)
    assert metrics.mean(metrics.bleed(images, texts, [[0, 1, 2], [3]]), [[0, 1, 2], [3]]).value == pytest.approx(1 / 3)


def test_equal_images_of_a_group_count_as_one() -> None:
    draw = np.random.default_rng(0)
    hits = {"groups": 0, "images": 0}
    groups = [list(range(3 * i, 3 * i + 3)) for i in range(40)]
    for seed in range(60):
        values = np.repeat(draw.normal(1.0, 1.0, 40), 3)
        for name, own in (("groups", groups), ("images", None)):
            figure = metrics.mean(values, own, seed)
            hits[name] += figure.low < 1.0 < figure.high
    assert hits["groups"] >= 51 > hits["images"]


@pytest.mark.parametrize(
    "measure",
    [
        lambda: metrics.mean(np.ones(1)),
        lambda: metrics.frechet_distance(torch.ones(1, 3), torch.ones(5, 3)),
        lambda: metrics.diversity(Brightness(), torch.ones(2, 3, 4, 4), [[0], [1]]),
        lambda: metrics.bleed(torch.ones(2, 3), torch.ones(2, 3), [[0], [1]]),
    ],
)
def test_too_few_images_are_reported(measure: Any) -> None:
    with pytest.raises(CotrunkError, match=r"too few|No group has two images"):
        measure()


@pytest.mark.parametrize(
    ("network", "package", "message"),
    [
        (networks.EfficientNetLite0, "efficientnet_lite_pytorch", r"pip install 'cotrunk\[evaluate\]'"),
        (networks.Lpips, "lpips", "pip install lpips"),
        (networks.Inception, "torch_fidelity.feature_extractor_inceptionv3", "pip install torch-fidelity"),
    ],
)
def test_a_network_that_is_not_installed_names_its_remedy(
    network: Any, package: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(package.partition(".")[0]):
            raise ImportError(name)
        return own(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CotrunkError, match=message):
        network()


IMAGES = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()  # several batches


class Distance(torch.nn.Module):
    """Has the interface of the lpips package."""

    def __init__(self, net: str, verbose: bool) -> None:
        assert net == "alex"
        super().__init__()

    def forward(self, one: torch.Tensor, other: torch.Tensor, normalize: bool) -> torch.Tensor:
        assert normalize  # from [0, 1]
        assert 0 <= float(one.min()) <= float(one.max()) <= 1
        return (one - other).abs().mean(dim=(1, 2, 3), keepdim=True)


class Extractor(torch.nn.Module):
    """Has the interface of torch-fidelity."""

    INPUT_IMAGE_SIZE = 12

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None) -> None:
        assert features_list == ["2048"]
        super().__init__()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        assert images.dtype is torch.uint8
        return (images.float().mean(dim=(2, 3)),)


def stand_in(patch: pytest.MonkeyPatch, lpips: Any = Distance, inception: Any = Extractor) -> None:
    """Replace packages that are not installed."""
    contents = {"lpips": {"LPIPS": lpips}, "torch_fidelity": {}}
    contents["torch_fidelity.feature_extractor_inceptionv3"] = {"FeatureExtractorInceptionV3": inception}
    for name, own in contents.items():
        module = ModuleType(name)
        vars(module).update(own)
        patch.setitem(sys.modules, name, module)


def test_lpips_gets_images_in_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    network, count = networks.Lpips(), len(IMAGES)
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count))
    expected = (IMAGES[pairs[:, 0]] / 255 - IMAGES[pairs[:, 1]] / 255).abs().mean(dim=(1, 2, 3))
    assert torch.allclose(network.distances(IMAGES, pairs), expected)
    assert torch.allclose(network.distances(IMAGES / 255, pairs), expected)


def test_inception_gets_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    network = networks.Inception()
    expected = IMAGES.double().mean(dim=(2, 3))
    assert torch.allclose(network.features(IMAGES), expected)
    assert torch.allclose(network.features(IMAGES / 255), expected)


def test_a_distance_does_not_depend_on_the_other_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = networks.EfficientNetLite0(), IMAGES[:5]
    pairs = torch.combinations(torch.arange(5))
    apart = torch.cat([network.distances(images[pair], torch.tensor([[0, 1]])) for pair in pairs])
    computed = list[int]()
    network._net._conv_stem.register_forward_pre_hook(lambda _, inputs: computed.append(len(inputs[0])))
    together = network.distances(images, pairs)
    assert sum(computed) == 5  # each image once, although it is in several pairs
    assert torch.allclose(together, apart, rtol=1e-4)
    assert (together > 0.01).all()
    assert network.distances(images, torch.tensor([[1, 1]])).item() == 0
    monkeypatch.setattr(networks, "PAIRS", 2)
    assert torch.allclose(network.distances(images, pairs), together, rtol=1e-4)


def test_features_of_the_same_images_are_computed_once() -> None:
    network, computed = networks.EfficientNetLite0(), list[int]()
    network._net._conv_stem.register_forward_pre_hook(lambda _, inputs: computed.append(len(inputs[0])))
    images = IMAGES[:2].clone()
    first = network.features(images)
    EmojiAlignment(network).image_vectors(images)
    assert sum(computed) == 2
    images[0] = 255  # the same tensor with other content
    assert not torch.equal(network.features(images), first)
    assert sum(computed) == 4


def test_tables_say_how_images_are_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text follows the networks' own attributes."""
    stand_in(monkeypatch)
    lite0, seen = networks.EfficientNetLite0(), list[torch.Size]()
    lite0._net._conv_stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    lite0.features(IMAGES[:1])
    height, width = seen[0][2:]
    expected = f"EfficientNet-Lite0 (images resized to {height} x {width} pixels, bicubic, antialiased; the first 64"
    assert expected in describe_networks(MetricNetworks(lite0, lite0, lite0))
    message = describe_networks(MetricNetworks(networks.Inception(), networks.Lpips(), lite0))
    assert "Inception-v3 (FID) (images resized to 12 x 12 pixels, bilinear" in message
    assert "; all dimensions); diversity by LPIPS (AlexNet);" in message


def test_weights_that_cannot_be_downloaded_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise URLError("no network")

    stand_in(monkeypatch, unreachable, unreachable)
    with pytest.raises(CotrunkError, match=r"cannot be downloaded: put alexnet-owt-7be5be79\.pth into .*checkpoints"):
        networks.Lpips()
    given = r"give --features inception:FILE with .* weights-inception-2015-12-05-6726825d\.pth\.$"
    with pytest.raises(CotrunkError, match=f"weights of Inception cannot be downloaded: {given}"):
        networks.Inception()
    with pytest.raises(CotrunkError, match=rf"weights of Inception are not in other\.pth: {given}"):
        networks.Inception(weights="other.pth")


def test_a_missing_clip_is_reported(tmp_path: Any) -> None:
    with pytest.raises(CotrunkError, match=r"CLIP cannot be loaded from .*: give a folder"):
        networks.Clip(str(tmp_path))


def test_any_clip_scores_images_and_texts(tmp_path: Any) -> None:
    """Real classes with random weights, loaded from a folder."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3, "a": 4, "b": 5}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], unk_token="<|endoftext|>")
    text = {
        "vocab_size": 6,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=text | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config=sizes | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, tokenizer).save_pretrained(tmp_path)
    clip = networks.Clip(str(tmp_path))
    images, texts = clip.image_vectors(torch.rand(3, 3, 20, 20)), clip.text_vectors(["a", "b", "a b"])
    assert images.shape == texts.shape == (3, 8)
    assert torch.allclose(images.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert not torch.allclose(texts[0], texts[1])
