"""The loss of SAGE, compared term by term with plain loops; every target; every option."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cotrunk import CotrunkError
from cotrunk.pipelines.noise_schedule import NoiseSchedule
from cotrunk.training.loss import Loss, Terms, first_shared_step, sage_loss, trunk_noise

STEPS, SHAPE, TOKENS, WIDTH = 50, (3, 4, 4), 5, 6
KINDS = ("epsilon", "v_prediction", "flow", "sample")


def schedule(kind: str) -> NoiseSchedule:
    times = [(step + 0.5) / STEPS for step in range(STEPS)]
    levels = tuple((1 - t, t) if kind == "flow" else ((1 - t**2) ** 0.5, t) for t in times)
    return NoiseSchedule(kind, levels, tuple(range(STEPS)), STEPS, divided=False)


class Small(nn.Module):
    """A denoiser that mixes all its inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.read = nn.Linear(SHAPE[0], SHAPE[0]), nn.Linear(WIDTH, SHAPE[0])
        self.double()

    def forward(self, noisy: Tensor, step: Tensor, conditions: dict[str, Any]) -> Tensor:
        text, mask = conditions["encoder_hidden_states"], conditions["encoder_attention_mask"]
        seen = (self.read(text) * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        mixed = self.mix(noisy.movedim(1, -1)).movedim(-1, 1)
        return torch.tanh(mixed + seen[..., None, None] * (1 + step / STEPS)[:, None, None, None])


def batch(sizes: list[int]) -> tuple[Tensor, dict[str, Tensor], list[list[int]]]:
    """Return latents, conditions with masks of several lengths, and groups with scattered members."""
    count = sum(sizes)
    generator = torch.Generator().manual_seed(count)
    latents = torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)
    text = torch.randn(count, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    mask = (torch.arange(TOKENS) < torch.randint(1, TOKENS + 1, (count, 1), generator=generator)).double()
    scattered = iter(torch.randperm(count, generator=generator).tolist())
    groups = [[next(scattered) for _ in range(size)] for size in sizes]
    return latents, {"encoder_hidden_states": text, "encoder_attention_mask": mask}, groups


def slowly(
    model: Small, latents: Tensor, conditions: dict[str, Tensor], groups: list[list[int]], kind: str, loss: Loss
) -> Terms:
    """Return the terms of equation 3, computed in plain loops over groups and images."""
    own, generator = schedule(kind), torch.Generator().manual_seed(7)
    text, mask = conditions["encoder_hidden_states"], conditions["encoder_attention_mask"]
    ordered, first = sorted(groups, key=min), first_shared_step(own, loss.share)
    shared_steps = torch.randint(first, STEPS, (len(groups),), generator=generator).tolist()
    branch_steps = torch.randint(0, first, (len(groups),), generator=generator).tolist()
    noises = torch.randn(len(groups), *SHAPE, generator=generator).double()

    def output(z: Tensor, step: int, eps: Tensor, c: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, float]:
        alpha, sigma = own.levels[step]
        named = {"encoder_hidden_states": c[None], "encoder_attention_mask": seen[None]}
        answer = model((alpha * z + sigma * eps)[None], torch.tensor([step]), named)[0]
        targets = {"epsilon": eps, "sample": z, "v_prediction": alpha * eps - sigma * z, "flow": eps - z}
        weight = 1.0
        if loss.weighting == "min-snr":
            snr = min((alpha / sigma) ** 2, loss.snr_limit)
            weight = snr * {"epsilon": (sigma / alpha) ** 2, "sample": 1.0}.get(kind, sigma**2)
        return answer, targets[kind], weight

    shared, target, branch = [], [], []
    for group, t_s, t_b, eps in zip(ordered, shared_steps, branch_steps, noises, strict=True):
        z_mean = torch.stack([latents[n] for n in group]).mean(dim=0)
        c_mean = torch.zeros(TOKENS, WIDTH, dtype=torch.float64)
        for token in range(TOKENS):
            having = [n for n in group if mask[n, token]]
            if having:
                c_mean[token] = torch.stack([text[n, token] for n in having]).mean(dim=0)
        seen = torch.stack([mask[n] for n in group]).amax(dim=0)
        mine, truth, weight = output(z_mean, t_s, eps, c_mean, seen)
        shared.append(weight * (mine - truth).square().mean())
        soft = torch.stack([output(latents[n], t_s, eps, text[n], mask[n])[0] for n in group]).mean(dim=0)
        target.append((mine - (soft if loss.through_target else soft.detach())).square().mean())
        errors = []
        for n in group:
            # "trunk": with this noise, the branch's own image is at the state where the trunk ends
            alpha, sigma = own.levels[first]
            left = (alpha * z_mean + sigma * eps - alpha * latents[n]) / sigma
            met = left if loss.branch_noise == "trunk" else eps
            answer, truth, weight = output(latents[n], t_b, met, text[n], mask[n])
            errors.append(weight * (answer - truth).square().mean())
        branch.append(torch.stack(errors).mean())
    parts = [torch.stack(values).mean() for values in (shared, target, branch)]
    total = loss.shared_weight * parts[0] + loss.target_weight * parts[1] + parts[2]
    return Terms(total, *parts)


def gradients(model: Small, total: Tensor) -> Iterator[Tensor]:
    model.zero_grad()
    total.backward()
    return (parameter.grad.clone() for parameter in model.parameters())


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    kind=st.sampled_from(KINDS),
    weighting=st.sampled_from(["uniform", "min-snr"]),
    through_target=st.booleans(),
    branch_noise=st.sampled_from(["drawn", "trunk"]),
    share=st.floats(0.05, 0.95),
    weights=st.tuples(st.floats(0, 3), st.floats(0, 3)),
)
def test_every_term_and_its_gradient_are_those_of_equation_3(
    sizes: list[int],
    kind: str,
    weighting: Any,
    through_target: bool,
    branch_noise: Any,
    share: float,
    weights: tuple[float, float],
) -> None:
    model, (latents, conditions, groups) = Small(), batch(sizes)
    loss = Loss("sage", share, *weights, through_target, weighting, branch_noise=branch_noise)
    fast = sage_loss(model, latents, conditions, groups, schedule(kind), loss, torch.Generator().manual_seed(7))
    slow = slowly(model, latents, conditions, groups, kind, loss)
    for name in ("shared", "target", "branch", "total"):
        torch.testing.assert_close(getattr(fast, name).double(), getattr(slow, name).double(), atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(gradients(model, fast.total), gradients(model, slow.total), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_a_perfect_branch_sees_the_states_it_was_trained_on() -> None:
    """It runs DDIM from the end of the trunk, with a model that knows the branch's image."""
    own, first = schedule("sample"), 30
    z, z_mean, eps = torch.randn(3, 1, *SHAPE, dtype=torch.float64)
    seen = trunk_noise(own.levels[first], eps, z_mean, z)
    alpha, sigma = own.levels[first]
    state = alpha * z_mean + sigma * eps
    for step in range(first, 0, -5):
        alpha, sigma = own.levels[step]
        torch.testing.assert_close(state, alpha * z + sigma * seen)
        alpha_next, sigma_next = own.levels[step - 5]
        state = alpha_next * z + sigma_next * (state - alpha * z) / sigma


def test_the_order_of_groups_and_members_changes_nothing() -> None:
    model, (latents, conditions, groups) = Small(), batch([2, 3, 1])
    arguments = (schedule("epsilon"), Loss())
    one = sage_loss(model, latents, conditions, groups, *arguments, torch.Generator().manual_seed(0))
    turned = [group[::-1] for group in groups[::-1]]
    other = sage_loss(model, latents, conditions, turned, *arguments, torch.Generator().manual_seed(0))
    torch.testing.assert_close(one.total, other.total)


def test_a_group_of_equal_members_equals_its_soft_target() -> None:
    model, (latents, conditions, _) = Small(), batch([1])
    three = {name: value.repeat(3, *[1] * (value.ndim - 1)) for name, value in conditions.items()}
    terms = sage_loss(
        model,
        latents.repeat(3, 1, 1, 1),
        three,
        [[0, 1, 2]],
        schedule("flow"),
        Loss(),
        torch.Generator().manual_seed(1),
    )
    assert terms.target < 1e-12
    assert terms.shared > 0.01


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
def test_steps_come_from_both_sides_of_the_branch_point(share: float) -> None:
    latents, conditions, groups = batch([2] * 40)
    seen: list[Tensor] = []

    def denoise(noisy: Tensor, step: Tensor, named: dict[str, Any]) -> Tensor:
        seen.append(step)
        return noisy

    sage_loss(denoise, latents, conditions, groups, schedule("epsilon"), Loss(share=share), torch.Generator())
    first = round((1 - share) * STEPS)
    shared, branch = seen[0][:40], seen[0][40:]
    assert shared.min() >= first > branch.max()
    assert torch.equal(seen[1].sort().values, shared.repeat_interleave(2).sort().values)


def test_the_standard_objective_is_equation_2() -> None:
    latents, conditions, groups = batch([1, 3])
    asked: list[int] = []

    def denoise(noisy: Tensor, step: Tensor, named: dict[str, Any]) -> Tensor:
        asked.append(len(noisy))
        return torch.zeros_like(noisy)

    generator = torch.Generator().manual_seed(2)
    terms = sage_loss(denoise, latents, conditions, groups, schedule("epsilon"), Loss("standard"), generator)
    generator = torch.Generator().manual_seed(2)
    torch.randint(0, STEPS, (4,), generator=generator)
    size = torch.randn(latents.shape, generator=generator).double().flatten(1).square().mean(dim=1)
    expected = (size[groups[0]].mean() + size[groups[1]].mean()) / 2
    assert terms.total == pytest.approx(float(expected), rel=1e-5)
    assert asked == [4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "best"}, "objective 'best' is unknown: use sage or standard"),
        ({"weighting": "snr"}, "weighting 'snr' is unknown: use uniform or min-snr"),
        ({"branch_noise": "own"}, "branch_noise 'own' is unknown: use drawn or trunk"),
        ({"share": 0}, "share 0 is out of range"),
        ({"share": 1.0}, r"share 1\.0 is out of range"),
        ({"target_weight": -1}, "target_weight -1 is out of range"),
    ],
)
def test_bad_values_are_reported(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CotrunkError, match=message):
        Loss(**arguments)


@pytest.mark.parametrize("groups", [[[0, 1]], [[0, 1], [1, 2]], [[0, 1, 2, 3]]])
def test_groups_must_contain_every_image_once(groups: list[list[int]]) -> None:
    latents, conditions, _ = batch([3])
    with pytest.raises(CotrunkError, match="give each of the 3 images exactly once"):
        sage_loss(Small(), latents, conditions, groups, schedule("flow"), Loss(), torch.Generator())
