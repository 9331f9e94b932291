"""An independent sampling loop for variants of sharing, without cotrunk's engine: for trials, and to check the product.

It uses the embedded models' own parts and schedulers. The denoiser and the decoder may run in bfloat16; samples are
float32.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from similar_prompts import GROUP, PROMPTS

from cotrunk.evaluation.networks import as_bytes
from cotrunk.mini import TOKENS
from cotrunk.pipelines.loading import load_pipeline

GUIDANCE = {"mini": 5.0, "mini-dit": 3.0}
BATCH, ROWS = 64, 32  # images at a time; rows per forward
PROBE = 2  # steps after the probe that the calmer half of the groups shares again


@dataclass(frozen=True)
class Variant:
    """One way to sample.

    Attributes:
        stops: size of a branch -> the step at which such branches split; empty for independent sampling.
        noise: "own" shares x0, "common" the state.
        guidance: part of the pipeline's guidance at the first and the last trunk step.
        condition: "mean", or "medoid" for the member that is closest to the mean.
        rotate: whether the representative changes from step to step.
        probe: whether the half of the groups whose own first outputs differ least shares two more steps afterwards.
        first: unconditional rows whose mean x0 replaces all others at the first step; 0 for none.
        runs: the first of the runs; the reference has others.
    """

    steps: int = 20
    stops: tuple[tuple[int, int], ...] = ()
    noise: str = "own"
    guidance: tuple[float, float] = (1.0, 1.0)
    condition: str = "mean"
    rotate: bool = False
    probe: bool = False
    first: int = 0
    runs: int = 0


def convert_around(denoiser: torch.nn.Module) -> None:
    """Let a denoiser convert its inputs to its own dtype and its output to float32, as the samples are."""
    forward, inner = denoiser.forward, denoiser.dtype

    def own(value: Any) -> Any:
        return value.to(inner) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    @functools.wraps(forward)
    def converted(*args: Any, **named: Any) -> Any:
        output = forward(*map(own, args), **{name: own(value) for name, value in named.items()})
        return (output[0].float(), *output[1:])  # both pipelines ask for a tuple

    converted.rows_are_independent = True
    denoiser.forward = converted


class Model:
    """An embedded model and the conditions of all prompts; the last one is the empty prompt."""

    def __init__(self, name: str, dtype: str = "bfloat16", compiled: bool = False) -> None:
        pipe = load_pipeline(name, "cpu", "float32")
        self.name, self.pipe, self.guidance = name, pipe, GUIDANCE[name]
        self.is_flow = name == "mini-dit"
        self.denoiser = (pipe.transformer if self.is_flow else pipe.unet).to(getattr(torch, dtype))
        self.vae = pipe.vae.to(getattr(torch, dtype))
        convert_around(self.denoiser)
        if compiled:
            self.denoiser.to(memory_format=torch.channels_last).compile(dynamic=False)
        words = {"clean_caption": False, "max_sequence_length": TOKENS} if self.is_flow else {}
        encoded = pipe.encode_prompt(
            prompt=[*PROMPTS, ""],
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            **words,
        )
        self.conditions = encoded[0].float()
        # the UNet sees the padding, as in its pipeline
        self.masks = encoded[1].float() if self.is_flow else torch.ones(self.conditions.shape[:2])

    def levels(self, step: int, t: torch.Tensor) -> tuple[float, float]:
        """Return (alpha, sigma)."""
        if self.is_flow:
            sigma = float(self.pipe.scheduler.sigmas[step])
            return 1 - sigma, sigma
        signal = float(self.pipe.scheduler.alphas_cumprod[t])
        return signal**0.5, (1 - signal) ** 0.5

    def x0(self, level: tuple[float, float], x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return x - level[1] * output if self.is_flow else level[0] * x - level[1] * output

    def output(self, level: tuple[float, float], x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """Return the output that predicts this x0."""
        return (x - x0) / level[1] if self.is_flow else (level[0] * x - x0) / level[1]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return images in bytes."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        decoded = torch.cat([self.vae.decode(some, return_dict=False)[0] for some in scaled.split(16)])
        return as_bytes((decoded.float() / 2 + 0.5).clamp(0, 1))

    def condition(self, members: list[int], medoid: bool) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return condition and mask of a branch of prompts, and the place of its representative."""
        own, masks = self.conditions[members], self.masks[members]
        has = masks.any(dim=0)
        weights = torch.where(has, masks, 1.0)[..., None]  # a token that no member has: the mean over all members
        mean = (own * weights).sum(dim=0) / weights.sum(dim=0)
        if not medoid:
            return mean, masks.amax(dim=0), 0
        nearest = int(((own - mean) * masks[..., None]).square().sum(dim=(1, 2)).argmin())
        return own[nearest], masks[nearest], nearest

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Return the outputs of some rows; chunks are filled up with copies of a row, so that all have one shape."""
        found, count = [], len(x)
        for start in range(0, count, ROWS):
            rows = [min(row, count - 1) for row in range(start, start + ROWS)]
            named: dict[str, Any] = {"encoder_hidden_states": conditions[rows], "return_dict": False}
            if self.is_flow:
                named["encoder_attention_mask"] = masks[rows]
                named["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
            output = self.denoiser(x[rows], timestep=t.expand(ROWS), **named)[0]
            found.append(output[: count - start])
        return torch.cat(found)


def branches(variant: Variant, count: int, step: int, calm: set[int]) -> list[list[int]]:
    """Return the places of a batch that share a row at a step: `calm` groups share again after the probe."""
    size = next((size for size, stop in variant.stops if step < stop), 1)
    again = variant.probe and 0 < step - variant.stops[-1][1] <= PROBE
    found: list[list[int]] = []
    for start in range(0, count, max(size, GROUP)):
        own = list(range(start, min(start + max(size, GROUP), count)))
        shares = size > 1 or (again and start // GROUP in calm)
        found += [own] if shares else [[i] for i in own]
    return found


class Sampling:
    """One run of a variant over all prompts."""

    def __init__(self, model: Model, variant: Variant, run: int) -> None:
        self.model, self.variant, self.run = model, variant, run
        self.rows = 0
        self.first: torch.Tensor | None = None  # mean x0 of the unconditional rows at the first step
        self.last = max((stop for _, stop in variant.stops), default=0) + (PROBE + 1) * variant.probe - 1

    @torch.no_grad()
    def images(self, prompts: range) -> torch.Tensor:
        """Return images in bytes (n, 3, height, width)."""
        return torch.cat([self._batch(list(prompts[i : i + BATCH])) for i in range(0, len(prompts), BATCH)])

    def _noise(self, prompts: list[int]) -> torch.Tensor:
        largest = self.variant.stops[0][0] if self.variant.stops and self.variant.noise == "common" else 1
        seeds = [10_000 * (self.variant.runs + self.run) + prompt // largest * largest for prompt in prompts]
        return torch.stack([torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def _batch(self, prompts: list[int]) -> torch.Tensor:
        scheduler = self.model.pipe.scheduler
        scheduler.set_timesteps(self.variant.steps)
        x, calm = self._noise(prompts), set[int]()
        for step, t in enumerate(scheduler.timesteps):
            own = branches(self.variant, len(prompts), step, calm)
            level = self.model.levels(step, t)
            output = self._outputs(x, step, t, level, prompts, own)
            if self.variant.probe and step == self.variant.stops[-1][1]:
                x0 = self.model.x0(level, x, output).unflatten(0, (-1, GROUP))
                spread = (x0 - x0.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2, 3, 4))
                calm = set(spread.argsort()[: len(spread) // 2].tolist())
            x = scheduler.step(output, t, x, return_dict=False)[0]
        return self.model.decode(x)

    def _outputs(
        self,
        x: torch.Tensor,
        step: int,
        t: torch.Tensor,
        level: tuple[float, float],
        prompts: list[int],
        own: list[list[int]],
    ) -> torch.Tensor:
        """Return the guided output of every image of a batch."""
        model, variant = self.model, self.variant
        start, end = variant.guidance
        trunk = start + (end - start) * step / max(self.last, 1)
        parts = [1.0 if len(places) == 1 else trunk for places in own]
        made = [model.condition([prompts[i] for i in places], variant.condition == "medoid") for places in own]
        leaders = [
            places[step % len(places) if variant.rotate else leader]
            for places, (_, _, leader) in zip(own, made, strict=True)
        ]
        conditions, masks = torch.stack([c for c, _, _ in made]), torch.stack([mask for _, mask, _ in made])
        mean_first = variant.first and step == 0
        guided = [b for b, part in enumerate(parts) if part]
        alone = guided[: 0 if self.first is not None else variant.first] if mean_first else guided
        state = x[leaders]
        output = model.forward(
            torch.cat([state, state[alone]]),
            t,
            torch.cat([conditions, model.conditions[-1:].expand(len(alone), -1, -1)]),
            torch.cat([masks, model.masks[-1:].expand(len(alone), -1)]),
        )
        self.rows += len(output)
        conditional, unconditional = output[: len(own)], output[len(own) :]
        if mean_first:
            if self.first is None:
                self.first = model.x0(level, state[alone], unconditional).mean(dim=0)
            unconditional = model.output(level, state[guided], self.first)
        if guided:
            scales = torch.tensor([1 + parts[b] * (model.guidance - 1) for b in guided]).reshape(-1, 1, 1, 1)
            conditional = conditional.clone()
            conditional[guided] = unconditional + scales * (conditional[guided] - unconditional)
        source = torch.empty(len(x), dtype=torch.long)
        for number, places in enumerate(own):
            source[places] = number
        if variant.noise == "common":
            return conditional[source]
        shared = model.x0(level, state, conditional)[source]
        exact = torch.tensor([len(own[b]) == 1 for b in source]).reshape(-1, 1, 1, 1)
        return torch.where(exact, conditional[source], model.output(level, x, shared))
