"""The objective of shared diffusion training: equation 3 and Algorithm 2 of SAGE."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from ..checks import number, one_of
from ..engine.rows import Folding
from ..errors import CotrunkError
from ..pipelines.denoiser_arguments import SHARED
from ..pipelines.noise_schedule import NoiseSchedule

Weighting = Literal["uniform", "min-snr"]
Objective = Literal["sage", "standard"]
BranchNoise = Literal["drawn", "trunk"]
Noise = Literal["common", "own"]
Teacher = Literal["self", "pre-trained"]
# (noisy latents (rows, ...), schedule step of each row (rows,), conditions with one entry per row) -> outputs
Denoiser = Callable[[torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]


@dataclass(frozen=True)
class Loss:
    """The training objective.

    Attributes:
        objective: "sage", or "standard": equation 2 on the same images, the paper's baseline.
        share: beta, the fraction of the trajectory that is shared; T* = (1 - share) T.
        shared_weight: lambda_1, the weight of the prediction for the mean latents under the mean condition. The paper
            does not give it.
        target_weight: lambda_2, the weight of that prediction's distance to the soft target, which is the mean of the
            members' predictions. The paper does not give it.
        through_target: whether the gradient also flows through the soft target. False treats it as a teacher.
        weighting: w_t: "uniform", or "min-snr" (Hang et al. 2023).
        snr_limit: gamma of min-snr.
        branch_noise: the noise that branches of "sage" learn to remove. "drawn" is the drawn noise, as published.
            "trunk" is what a branch sees in sampling, where the trunk has moved to the mean of its group (see
            `trunk_noise`).
        noise: "common", as published: the images of a group get the same noise and timesteps. "own": every image gets
            its own, for sampling with `Sharing(noise="own", trunk_guidance=0)`. The trunk gets the noise of its
            representative, and learns the mean of the x0 that its members predict.
        teacher: which model predicts for the members in the soft target: "self", the one that is trained, as published;
            or "pre-trained", the model without the LoRA, which does not move. With a `shared_weight` of 0 nothing else
            holds the trunk in place, and a model that is its own teacher may drift away.

    Raises:
        CotrunkError: a value is out of its range, or the gradient should flow through a teacher that is not trained.
    """

    objective: Objective = "sage"
    share: float = 0.4
    shared_weight: float = 1.0
    target_weight: float = 1.0
    through_target: bool = False
    weighting: Weighting = "uniform"
    snr_limit: float = 5.0
    branch_noise: BranchNoise = "drawn"
    noise: Noise = "common"
    teacher: Teacher = "self"

    def __post_init__(self) -> None:
        names = {"objective": Objective, "weighting": Weighting, "branch_noise": BranchNoise, "noise": Noise}
        names |= {"teacher": Teacher}
        for name, known in names.items():
            one_of(name, getattr(self, name), get_args(known))
        number("share", self.share, above=0, below=1)
        for name in ("shared_weight", "target_weight", "snr_limit"):
            number(name, getattr(self, name))
        if self.through_target and self.teacher == "pre-trained":
            raise CotrunkError("through_target needs teacher 'self': the pre-trained teacher is not trained.")


@dataclass(frozen=True)
class Terms:
    """The terms of the loss, each averaged over the groups. `total` is minimised."""

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
    pre_trained: Denoiser | None = None,
) -> Terms:
    """Return the loss of one batch of groups.

    Args:
        denoise: the model. It is called twice: with the rows of means and branches, and with those of the soft target.
        latents: z^n, (N, ...), one entry per image.
        conditions: c^n, by the denoiser's argument names (`encoder_hidden_states`, ...), one entry per image. They are
            averaged as in shared sampling.
        groups: indices of the images of each group; every image is in exactly one group. A group of one is its own
            mean.
        schedule: the noise levels of the model's training timesteps; `levels[0]` is the least noisy.
        loss: the objective.
        generator: on the CPU, so that the random numbers do not depend on the device.
        pre_trained: the model without the LoRA, which is called for the soft target if it is the teacher.

    Raises:
        CotrunkError: the groups do not contain every image exactly once.
    """
    members = sorted(image for group in groups for image in group)
    if members != list(range(len(latents))):
        raise CotrunkError(f"groups contain the images {members}: give each of the {len(latents)} images exactly once.")
    if loss.objective == "standard":
        return _standard(denoise, latents, conditions, groups, schedule, loss, generator)
    sources = [0] * len(latents)
    group_of = [0] * len(latents)
    ordered = sorted(groups, key=min)  # the order of the groups' rows in `Folding`
    for place, group in enumerate(ordered):
        for image in group:
            sources[image], group_of[image] = min(group), place
    own = torch.tensor(group_of, device=latents.device)
    folding = Folding(sources, len(latents), latents.device)
    mean_latents, mean_conditions = folding.mean(latents), folding.fold(conditions)

    # Algorithm 2, lines 6 and 7: timesteps and noise are drawn once per group
    steps, first_shared = len(schedule.levels), first_shared_step(schedule, loss.share)
    count = len(ordered)
    drawn = len(latents) if loss.noise == "own" else count
    shared_step = torch.randint(first_shared, steps, (count,), generator=generator).to(latents.device)
    branch_step = torch.randint(0, max(1, first_shared), (drawn,), generator=generator).to(latents.device)
    noise = torch.randn((drawn, *latents.shape[1:]), generator=generator).to(latents)
    representative_noise = noise
    if loss.noise == "own":
        representative_noise = folding.first(noise)
    else:
        branch_step, noise = branch_step[own], noise[own]
    branch_noise = noise
    if loss.branch_noise == "trunk":
        branch_noise = trunk_noise(schedule.levels[first_shared], noise, mean_latents[own], latents)

    def predicted(
        parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]], model: Denoiser = denoise
    ) -> list[torch.Tensor]:
        """Return samples, outputs and weighted squared errors of rows given as (latents, steps, noise, conditions)."""
        clean, at, eps = (torch.cat(tensors) for tensors in zip(*(part[:3] for part in parts), strict=True))
        noisy, target, weight = noised(schedule, at, clean, eps, loss)
        outputs = model(noisy, at, _joined([part[3] for part in parts]))
        return [noisy, outputs, weight * _squared(outputs - target)]

    samples, outputs, errors = predicted(
        [
            (mean_latents, shared_step, representative_noise, mean_conditions),
            (latents, branch_step, branch_noise, conditions),
        ]
    )
    teacher = denoise if loss.teacher == "self" or pre_trained is None else pre_trained
    with torch.set_grad_enabled(loss.through_target and torch.is_grad_enabled()):
        own_samples, own_outputs, _ = predicted([(latents, shared_step[own], noise, conditions)], teacher)
        if loss.noise == "own":
            soft = soft_target(schedule, shared_step, samples[:count], own_samples, own_outputs, own)
        else:  # the same, because the trunk's sample is the mean of its members' samples
            soft = _group_mean(own_outputs, own, count)
    shared = errors[:count].mean()
    target = _squared(outputs[:count] - soft).mean()
    branch = _group_mean(errors[count:], own, count).mean()
    total = loss.shared_weight * shared + loss.target_weight * target + branch
    return Terms(total, shared.detach(), target.detach(), branch.detach())


def first_shared_step(schedule: NoiseSchedule, share: float) -> int:
    """Return T*: sampling is shared from pure noise down to this training step."""
    return min(len(schedule.levels) - 1, max(1, round((1 - share) * len(schedule.levels))))


def trunk_noise(
    branch_point: tuple[float, float], noise: torch.Tensor, mean_latents: torch.Tensor, latents: torch.Tensor
) -> torch.Tensor:
    """Return the noise that a branch sees if it starts from its trunk. All tensors are (rows, ...).

    The branch point has the noise levels (alpha, sigma). There, the trunk of the mean latents z-bar under the noise eps
    is at alpha z-bar + sigma eps. For a branch with its own latents z this is alpha z + sigma eps', where
    eps' = eps + alpha / sigma (z-bar - z). A deterministic solver that predicts z from there keeps eps' to the end. So
    in sampling a branch sees its own latents under eps', whereas equation 3 trains it under eps.
    """
    alpha, sigma = branch_point
    return noise + alpha / sigma * (mean_latents - latents)


def soft_target(
    schedule: NoiseSchedule,
    steps: torch.Tensor,
    trunks: torch.Tensor,
    samples: torch.Tensor,
    outputs: torch.Tensor,
    own: torch.Tensor,
) -> torch.Tensor:
    """Return the outputs of the trunks that predict the mean of the x0 that their members predict, (groups, ...).

    If the sample of a trunk is the mean of its members' samples, this is the mean of their outputs, because x0 is
    linear in sample and output.

    Args:
        steps: (groups,) steps of the schedule.
        trunks: (groups, ...) samples of the trunks.
        samples, outputs: (members, ...) of the members.
        own: (members,) the group of each member.
    """
    at = steps.tolist()
    places = [at[group] for group in own.tolist()]
    x0 = [schedule.x0_of(*row) for row in zip(places, samples, outputs, strict=True)]
    means = _group_mean(torch.stack(x0), own, len(trunks))
    return torch.stack([schedule.output_for(*row) for row in zip(at, trunks, means, strict=True)])


def noised(
    schedule: NoiseSchedule, steps: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor, loss: Loss
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the noisy latents (rows, ...), the target output (rows, ...), and the weights w_t (rows,).

    Args:
        steps: (rows,) steps of the schedule.
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
    """Return w_t for each row.

    Min-SNR limits the weight of an error of x0 at low noise. An error of epsilon counts sigma / alpha times in x0, an
    error of a velocity sigma times.
    """
    if loss.weighting == "uniform":
        return torch.ones(len(levels), device=levels.device)
    alpha, sigma = levels.unbind(1)
    limited = (alpha / sigma.clamp(min=1e-6)).square().clamp(max=loss.snr_limit)
    x0_per_output = {"epsilon": sigma / alpha.clamp(min=1e-6), "sample": torch.ones_like(sigma)}.get(kind, sigma)
    return limited * x0_per_output.square()


def _squared(difference: torch.Tensor) -> torch.Tensor:
    """Return the mean square of each row, (rows,), in float32."""
    return difference.float().flatten(1).square().mean(dim=1)


def _group_mean(values: torch.Tensor, own: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the mean over the members of each group, (groups, ...).

    Args:
        own: (members,) the group of each member.
    """
    sums = torch.zeros((groups, *values.shape[1:]), device=values.device, dtype=values.dtype)
    sizes = torch.bincount(own, minlength=groups).reshape(-1, *[1] * (values.ndim - 1))
    return sums.index_add(0, own, values) / sizes


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Concatenate the conditions of several calls into those of one."""

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
    """Return equation 2: each image has its own timestep and noise; averaged like the branch term."""
    steps = torch.randint(0, len(schedule.levels), (len(latents),), generator=generator).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy, target, weight = noised(schedule, steps, latents, noise, loss)
    errors = weight * _squared(denoise(noisy, steps, conditions) - target)
    own = torch.empty(len(latents), dtype=torch.long, device=latents.device)
    for place, group in enumerate(groups):
        own[list(group)] = place
    branch = _group_mean(errors, own, len(groups)).mean()
    zero = torch.zeros((), device=latents.device)
    return Terms(branch, zero, zero, branch.detach())
