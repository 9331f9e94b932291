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
from cotrunk.training.loss import Loss, Terms, first_shared_step, noised, sage_loss, soft_target, trunk_noise

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
    is_own = loss.noise == "own"
    drawn = len(latents) if is_own else len(groups)
    shared_steps = torch.randint(first, STEPS, (len(groups),), generator=generator).tolist()
    branch_steps = torch.randint(0, first, (drawn,), generator=generator).tolist()
    noises = torch.randn(drawn, *SHAPE, generator=generator).double()

    def x0_of(z: Tensor, step: int, answer: Tensor) -> Tensor:
        alpha, sigma = own.levels[step]
        x0 = {"epsilon": lambda: (z - sigma * answer) / alpha, "sample": lambda: answer}
        x0 |= {"v_prediction": lambda: alpha * z - sigma * answer, "flow": lambda: z - sigma * answer}
        return x0[kind]()

    def output_for(z: Tensor, step: int, x0: Tensor) -> Tensor:
        alpha, sigma = own.levels[step]
        eps = (z - alpha * x0) / sigma
        return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0, "flow": eps - x0}[kind]

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
    for place, (group, t_s) in enumerate(zip(ordered, shared_steps, strict=True)):
        eps_of = {n: noises[n if is_own else place] for n in group}
        eps = eps_of[min(group)]
        z_mean = torch.stack([latents[n] for n in group]).mean(dim=0)
        c_mean = torch.zeros(TOKENS, WIDTH, dtype=torch.float64)
        for token in range(TOKENS):
            having = [n for n in group if mask[n, token]]
            if having:
                c_mean[token] = torch.stack([text[n, token] for n in having]).mean(dim=0)
        seen = torch.stack([mask[n] for n in group]).amax(dim=0)
        mine, truth, weight = output(z_mean, t_s, eps, c_mean, seen)
        shared.append(weight * (mine - truth).square().mean())
        alpha, sigma = own.levels[t_s]
        answers = {n: output(latents[n], t_s, eps_of[n], text[n], mask[n])[0] for n in group}
        if is_own:
            x0 = [x0_of(alpha * latents[n] + sigma * eps_of[n], t_s, answers[n]) for n in group]
            soft = output_for(alpha * z_mean + sigma * eps, t_s, torch.stack(x0).mean(dim=0))
        else:
            soft = torch.stack(list(answers.values())).mean(dim=0)
        target.append((mine - (soft if loss.through_target else soft.detach())).square().mean())
        errors = []
        for n in group:
            # "trunk": with this noise, the branch's own image is at the state where the trunk ends
            alpha, sigma = own.levels[first]
            left = (alpha * z_mean + sigma * eps_of[n] - alpha * latents[n]) / sigma
            met = left if loss.branch_noise == "trunk" else eps_of[n]
            t_b = branch_steps[n if is_own else place]
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
    noise=st.sampled_from(["common", "own"]),
    share=st.floats(0.05, 0.95),
    weights=st.tuples(st.floats(0, 3), st.floats(0, 3)),
)
def test_every_term_and_its_gradient_are_those_of_equation_3(
    sizes: list[int],
    kind: str,
    weighting: Any,
    through_target: bool,
    branch_noise: Any,
    noise: Any,
    share: float,
    weights: tuple[float, float],
) -> None:
    model, (latents, conditions, groups) = Small(), batch(sizes)
    loss = Loss("sage", share, *weights, through_target, weighting, branch_noise=branch_noise, noise=noise)
    fast = sage_loss(model, latents, conditions, groups, schedule(kind), loss, torch.Generator().manual_seed(7))
    slow = slowly(model, latents, conditions, groups, kind, loss)
    for name in ("shared", "target", "branch", "total"):
        torch.testing.assert_close(getattr(fast, name).double(), getattr(slow, name).double(), atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(gradients(model, fast.total), gradients(model, slow.total), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    kind=st.sampled_from(KINDS),
    branch_noise=st.sampled_from(["drawn", "trunk"]),
    share=st.floats(0.05, 0.95),
)
@settings(max_examples=30)
def test_with_own_noise_equal_members_have_the_standard_loss(
    sizes: list[int], kind: str, branch_noise: Any, share: float
) -> None:
    """Equation 2 at the same timesteps and noise; and the trunk of a single image has no other target than its own."""
    model, (latents, conditions, _) = Small(), batch([1] * len(sizes))
    copies = torch.tensor([place for place, size in enumerate(sizes) for _ in range(size)])
    named = {name: value[copies] for name, value in conditions.items()}
    groups = [torch.where(copies == place)[0].tolist() for place in range(len(sizes))]
    own, loss = schedule(kind), Loss(share=share, branch_noise=branch_noise, noise="own")
    asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def denoise(noisy: Tensor, step: Tensor, given: dict[str, Any]) -> Tensor:
        answer = model(noisy, step, given)
        asked.append((noisy, step, answer))
        return answer

    terms = sage_loss(denoise, latents[copies], named, groups, own, loss, torch.Generator().manual_seed(3))
    (noisy, steps, answers), count = asked[0], len(sizes)
    clean = latents[torch.cat([torch.arange(count), copies])]
    alpha, sigma = torch.tensor(own.levels, dtype=torch.float64)[steps].reshape(-1, 2, 1, 1, 1).unbind(1)
    seen = (noisy - alpha * clean) / sigma
    _, truth, _ = noised(own, steps, clean, seen, loss)
    errors = (answers - truth).square().flatten(1).mean(dim=1)
    branch = torch.stack([errors[count:][group].mean() for group in groups]).mean()
    assert len(set(map(str, seen[count:].flatten(1)[:, 0].tolist()))) == sum(sizes)  # every image has its own noise
    torch.testing.assert_close(terms.shared.double(), errors[:count].mean(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(terms.branch.double(), branch, atol=1e-4, rtol=1e-3)
    assert (float(terms.target) < 1e-10) == (max(sizes) == 1)


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), kind=st.sampled_from(KINDS), data=st.data())
def test_members_with_one_noise_have_the_published_target(sizes: list[int], kind: str, data: st.DataObject) -> None:
    """The x0 that members predict is shared; with the trunk at the mean of their samples this is their mean output."""
    latents, _, groups = batch(sizes)
    own = torch.empty(len(latents), dtype=torch.long)
    for place, group in enumerate(groups):
        own[group] = place
    steps = torch.tensor(data.draw(st.lists(st.integers(1, STEPS - 1), min_size=len(sizes), max_size=len(sizes))))
    outputs = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = lambda values: torch.stack([values[group].mean(dim=0) for group in groups])  # noqa: E731
    soft = soft_target(schedule(kind), steps, means(latents), latents, outputs, own)
    torch.testing.assert_close(soft, means(outputs), atol=1e-7, rtol=1e-7)


def test_common_noise_is_drawn_as_before() -> None:
    """A training that was begun with an earlier version continues to the bit."""
    model, (latents, conditions, groups) = Small(), batch([2, 3, 1])
    seen: list[Tensor] = []

    def denoise(noisy: Tensor, step: Tensor, named: dict[str, Any]) -> Tensor:
        seen.append(noisy)
        return model(noisy, step, named)

    sage_loss(denoise, latents, conditions, groups, schedule("flow"), Loss(), torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    ordered = sorted(groups, key=min)
    steps, branch_steps = (torch.randint(*limits, (3,), generator=generator) for limits in ((30, 50), (0, 30)))
    noise = torch.randn(3, *SHAPE, generator=generator).double()
    levels = schedule("flow").levels
    for place, group in enumerate(ordered):
        (alpha, sigma), (late_alpha, late_sigma) = levels[steps[place]], levels[branch_steps[place]]
        for n in group:
            torch.testing.assert_close(seen[0][3 + n], late_alpha * latents[n] + late_sigma * noise[place])
            torch.testing.assert_close(seen[1][n], alpha * latents[n] + sigma * noise[place])


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


@pytest.mark.parametrize("noise", ["common", "own"])
def test_the_pre_trained_teacher_predicts_the_soft_target_only(noise: Any) -> None:
    model, (latents, conditions, groups) = Small(), batch([2, 3, 1])
    asked: list[int] = []

    def teacher(noisy: Tensor, step: Tensor, named: dict[str, Any]) -> Tensor:
        assert not torch.is_grad_enabled()
        asked.append(len(noisy))
        return torch.zeros_like(noisy)

    def terms(name: Any) -> Terms:
        generator, loss = torch.Generator().manual_seed(0), Loss(noise=noise, teacher=name)
        return sage_loss(model, latents, conditions, groups, schedule("sample"), loss, generator, teacher)

    own, frozen = terms("self"), terms("pre-trained")
    assert asked == [6]
    assert torch.equal(own.shared, frozen.shared)
    assert torch.equal(own.branch, frozen.branch)
    assert not torch.equal(own.target, frozen.target)


@pytest.mark.parametrize("noise", ["common", "own"])
def test_the_order_of_groups_and_members_changes_nothing(noise: Any) -> None:
    model, (latents, conditions, groups) = Small(), batch([2, 3, 1])
    arguments = (schedule("epsilon"), Loss(noise=noise))
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
        ({"teacher": "other"}, "teacher 'other' is unknown: use self or pre-trained"),
        ({"teacher": "pre-trained", "through_target": True}, "through_target needs teacher 'self'"),
        ({"noise": "trunk"}, "noise 'trunk' is unknown: use common or own"),
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
