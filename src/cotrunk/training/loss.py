"""The objective of shared diffusion training: equation 3 and Algorithm 2 of SAGE."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from ..engine.rows import Folding
from ..errors import CotrunkError
from ..pipelines.denoiser_arguments import SHARED
from ..pipelines.noise_schedule import NoiseSchedule

Weighting = Literal["uniform", "min-snr"]
Objective = Literal["sage", "standard"]
BranchNoise = Literal["drawn", "trunk"]
# (noisy latents (rows, ...), step of the schedule of each row (rows,), conditions with one entry a row) -> outputs
Denoiser = Callable[[torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]


@dataclass(frozen=True)
class Loss:
    """What a training step minimises.

    Attributes:
        objective: "sage", or "standard": equation 2 on the same pictures, the paper's baseline.
        share: beta, the part of the trajectory that is shared; T* = (1 - share) T.
        shared_weight: lambda_1, of the prediction on the mean latents under the mean condition. The paper does not give
            it.
        target_weight: lambda_2, of that prediction's distance to the mean of the members' own (the soft target). The
            paper does not give it.
        through_target: whether the gradient flows through the soft target as well. False makes it a teacher.
        weighting: w_t: "uniform", or "min-snr" (Hang et al. 2023).
        snr_limit: gamma of min-snr.
        branch_noise: what branches of "sage" learn to take away: "drawn", the noise alone, as published; "trunk": what
            a branch meets in sampling, where the trunk has already drawn the mean of the group (see `trunk_noise`).

    Raises:
        CotrunkError: a value out of its range.
    """

    objective: Objective = "sage"
    share: float = 0.4
    shared_weight: float = 1.0
    target_weight: float = 1.0
    through_target: bool = False
    weighting: Weighting = "uniform"
    snr_limit: float = 5.0
    branch_noise: BranchNoise = "drawn"

    def __post_init__(self) -> None:
        names = {"objective": Objective, "weighting": Weighting, "branch_noise": BranchNoise}
        for name, known in names.items():
            value = getattr(self, name)
            if value not in get_args(known):
                raise CotrunkError(f"{name} {value!r} is unknown: use {' or '.join(get_args(known))}.")
        if not 0 < self.share < 1:
            raise CotrunkError(f"share {self.share!r} is out of range: use a part of the steps between 0 and 1.")
        for name in ("shared_weight", "target_weight", "snr_limit"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise CotrunkError(f"{name} {value!r} is out of range: use 0 or more.")


@dataclass(frozen=True)
class Terms:
    """The parts of the loss, each averaged over the groups; `total` is what to minimise."""

    total: torch.Tensor
    shared: torch.Tensor
    target: torch.Tensor
    branch: torch.Tensor


def sage_loss(
    denoise: Denoiser,
    latents: torch.Tensor,
    conditions: dict[str, Any],
    groups: Sequence[Sequence[int]],
    schedule: NoiseSchedule,
    loss: Loss,
    generator: torch.Generator,
) -> Terms:
    """The loss of one batch of groups.

    Args:
        denoise: the model. It is called twice: with the rows of the means and of the branches, and with those of the
            soft target.
        latents: (N, ...) of the pictures, z^n.
        conditions: of the prompts, c^n, named as the denoiser names them (`encoder_hidden_states`, ...), one entry a
            picture. Their means are taken as shared sampling takes them.
        groups: the pictures of each group, by their place in `latents`; every picture in one group. A group of one is
            its own mean.
        schedule: of the model's training timesteps, `levels[0]` the least noisy.
        loss: weights and ranges.
        generator: on the CPU; what is drawn from it does not depend on the device.

    Raises:
        CotrunkError: groups that do not hold every picture once.
    """
    members = sorted(image for group in groups for image in group)
    if members != list(range(len(latents))):
        raise CotrunkError(f"groups hold the pictures {members}, and not each of the {len(latents)} once.")
    if loss.objective == "standard":
        return _standard(denoise, latents, conditions, groups, schedule, loss, generator)
    sources = [0] * len(latents)
    group_of = [0] * len(latents)
    ordered = sorted(groups, key=min)  # the order in which `Folding` lists the rows that stand for groups
    for number, group in enumerate(ordered):
        for image in group:
            sources[image], group_of[image] = min(group), number
    own = torch.tensor(group_of, device=latents.device)
    folding = Folding(sources, len(latents), latents.device)
    mean_latents, mean_conditions = folding.mean(latents), folding.fold(conditions)

    # Algorithm 2, lines 6 and 7: timesteps and noise are drawn once a group
    steps, first_shared = len(schedule.levels), first_shared_step(schedule, loss.share)
    shape = (len(ordered),)
    shared_step = torch.randint(first_shared, steps, shape, generator=generator).to(latents.device)
    branch_step = torch.randint(0, max(1, first_shared), shape, generator=generator).to(latents.device)
    noise = torch.randn((len(ordered), *latents.shape[1:]), generator=generator).to(latents)
    branch_noise = noise[own]
    if loss.branch_noise == "trunk":
        branch_noise = trunk_noise(schedule.levels[first_shared], noise[own], mean_latents[own], latents)

    def predicted(parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]]) -> list[torch.Tensor]:
        """Weighted squared errors and outputs of rows given as (latents, steps, noise, conditions)."""
        clean, at, eps = (torch.cat(tensors) for tensors in zip(*(part[:3] for part in parts), strict=True))
        noisy, target, weight = noised(schedule, at, clean, eps, loss)
        outputs = denoise(noisy, at, _joined([part[3] for part in parts]))
        return [outputs, weight * _squared(outputs - target)]

    outputs, errors = predicted(
        [(mean_latents, shared_step, noise, mean_conditions), (latents, branch_step[own], branch_noise, conditions)]
    )
    with torch.set_grad_enabled(loss.through_target and torch.is_grad_enabled()):
        apart, _ = predicted([(latents, shared_step[own], noise[own], conditions)])
    count = len(ordered)
    shared = errors[:count].mean()
    target = _squared(outputs[:count] - _group_mean(apart, own, count)).mean()
    branch = _group_mean(errors[count:], own, count).mean()
    total = loss.shared_weight * shared + loss.target_weight * target + branch
    return Terms(total, shared.detach(), target.detach(), branch.detach())


def first_shared_step(schedule: NoiseSchedule, share: float) -> int:
    """T*: the training step from which on, towards noise, sampling is shared."""
    return min(len(schedule.levels) - 1, max(1, round((1 - share) * len(schedule.levels))))


def trunk_noise(
    branch_point: tuple[float, float], noise: torch.Tensor, mean_latents: torch.Tensor, latents: torch.Tensor
) -> torch.Tensor:
    """What is noise to a branch that starts from its trunk. All (rows, ...).

    At the branch point, with levels (alpha, sigma), a trunk that drew the mean picture z-bar under the noise eps is at
    alpha z-bar + sigma eps. Seen from the branch's own picture z that is alpha z + sigma eps', with
    eps' = eps + alpha / sigma (z-bar - z); and a deterministic solver that predicts z from there keeps this eps' up to
    the end. So the states that a branch meets are those of its own picture under eps'. Equation 3 noises it with eps,
    which no branch ever meets.
    """
    alpha, sigma = branch_point
    return noise + alpha / sigma * (mean_latents - latents)


def noised(
    schedule: NoiseSchedule, steps: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor, loss: Loss
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the model sees (rows, ...), what it should answer (rows, ...), and the weights w_t (rows,) of its errors.

    steps: (rows,) of the schedule.
    """
    levels = torch.tensor(schedule.levels, device=latents.device, dtype=torch.float32)[steps]
    alpha, sigma = (column.reshape(-1, *[1] * (latents.ndim - 1)).to(latents.dtype) for column in levels.unbind(1))
    noisy = alpha * latents + sigma * noise
    targets = {
        "epsilon": lambda: noise,
        "sample": lambda: latents,
        "v_prediction": lambda: alpha * noise - sigma * latents,
        "flow": lambda: noise - latents,
    }
    return noisy, targets[schedule.kind](), _weights(schedule.kind, levels, loss)


def _weights(kind: str, levels: torch.Tensor, loss: Loss) -> torch.Tensor:
    """w_t. Min-SNR limits what an error of the data prediction counts for at low noise; an error of noise is
    sigma / alpha of it in the data, an error of a velocity sigma."""
    if loss.weighting == "uniform":
        return torch.ones(len(levels), device=levels.device)
    alpha, sigma = levels.unbind(1)
    limited = (alpha / sigma.clamp(min=1e-6)).square().clamp(max=loss.snr_limit)
    in_data = {"epsilon": sigma / alpha.clamp(min=1e-6), "sample": torch.ones_like(sigma)}.get(kind, sigma)
    return limited * in_data.square()


def _squared(difference: torch.Tensor) -> torch.Tensor:
    """(rows,) mean squares, in float32."""
    return difference.float().flatten(1).square().mean(dim=1)


def _group_mean(values: torch.Tensor, own: torch.Tensor, groups: int) -> torch.Tensor:
    """(groups, ...) means over the members of each group. own: (members,) the group of each."""
    sums = torch.zeros((groups, *values.shape[1:]), device=values.device, dtype=values.dtype)
    sizes = torch.bincount(own, minlength=groups).reshape(-1, *[1] * (values.ndim - 1))
    return sums.index_add(0, own, values) / sizes


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Conditions of several calls as those of one."""

    def joined(name: str, values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return _joined(values)
        is_common = name in SHARED or not isinstance(values[0], torch.Tensor) or not values[0].ndim
        return values[0] if is_common else torch.cat(values)

    return {name: joined(name, [part[name] for part in parts]) for name in parts[0]}


def _standard(
    denoise: Denoiser,
    latents: torch.Tensor,
    conditions: dict[str, Any],
    groups: Sequence[Sequence[int]],
    schedule: NoiseSchedule,
    loss: Loss,
    generator: torch.Generator,
) -> Terms:
    """Equation 2: every picture at a timestep and under noise of its own, averaged as the branch term is."""
    steps = torch.randint(0, len(schedule.levels), (len(latents),), generator=generator).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy, target, weight = noised(schedule, steps, latents, noise, loss)
    errors = weight * _squared(denoise(noisy, steps, conditions) - target)
    own = torch.empty(len(latents), dtype=torch.long, device=latents.device)
    for number, group in enumerate(groups):
        own[list(group)] = number
    branch = _group_mean(errors, own, len(groups)).mean()
    nothing = torch.zeros((), device=latents.device)
    return Terms(branch, nothing, nothing, branch.detach())
