"""Denoisers that take a list with one entry per row: Z-Image, Qwen-Image."""

from typing import Any

import diffusers
import pytest
import torch
from building_blocks import flow_scheduler, quiet, z_image_transformer
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from running import STEPS, bare, close, denoise, run
from tiny import TinyPipeline
from torch import Tensor, nn

from cotrunk.engine.attach import attached
from cotrunk.engine.call_state import CallState
from cotrunk.engine.step_plan import RowPlan


class ListTransformer(nn.Module):
    """Z-Image's arguments: lists of images and captions of different lengths; it returns a list as well."""

    def __init__(self, as_output: bool) -> None:
        super().__init__()
        self.as_output, self.rows = as_output, []

    def forward(self, x: list[Tensor], t: Tensor, cap_feats: list[Tensor], return_dict: bool = True) -> Any:
        assert len(x) == len(t) == len(cap_feats)
        self.rows.append(len(x))
        sample = [torch.tanh(a * c.mean() + c.sum() + b) for a, b, c in zip(x, t, cap_feats, strict=True)]
        return Transformer2DModelOutput(sample=sample) if self.as_output else (sample,)


class RowListTransformer(nn.Module):
    """Qwen-Image's arguments: tensors, and plain lists with one entry per row."""

    rows: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.rows = []

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor,
        timestep: Tensor,
        img_shapes: list[tuple[int, int, int]],
        txt_seq_lens: list[int],
        return_dict: bool = True,
    ) -> Any:
        assert len(hidden_states) == len(timestep) == len(img_shapes) == len(txt_seq_lens)
        assert encoder_hidden_states_mask.sum(dim=1).tolist() == txt_seq_lens
        self.rows.append(len(hidden_states))
        mask = encoder_hidden_states_mask[..., None]
        text = (encoder_hidden_states * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))
        scale = torch.tensor([float(shape[2]) for shape in img_shapes])
        level = (text * scale + timestep)[:, None, None, None]
        return (torch.tanh(hidden_states * level),)


class ListPipeline:
    """The smallest pipeline: a loop over a real scheduler."""

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)

    def __call__(self, captions: list[Tensor], generator: list[torch.Generator], guided: bool) -> Tensor:
        self.scheduler.set_timesteps(STEPS)
        latents = torch.cat([torch.randn(1, 2, 1, 3, generator=g) for g in generator])
        captions = captions + [torch.zeros(2, 4) for _ in captions] if guided else captions
        for t in self.scheduler.timesteps:
            model_input = torch.cat([latents, latents]) if guided else latents
            output = self.denoised(model_input, t.expand(len(model_input)) / 1000, captions)
            if guided:
                conditional, unconditional = output.chunk(2)
                output = unconditional + 2.0 * (conditional - unconditional)
            latents = self.scheduler.step(output, t, latents, return_dict=False)[0]
        return latents

    def denoised(self, latents: Tensor, timestep: Tensor, captions: list[Tensor]) -> Tensor:
        if isinstance(self.transformer, ListTransformer):
            return torch.stack(self.transformer(list(latents.unbind()), timestep, captions)[0])
        lengths = [len(caption) for caption in captions]
        padded = nn.utils.rnn.pad_sequence(captions, batch_first=True)
        mask = torch.tensor([[token < length for token in range(max(lengths))] for length in lengths]).long()
        shapes = [(1, 1, 3)] * len(latents)
        return self.transformer(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states_mask=mask,
            encoder_hidden_states=padded,
            img_shapes=shapes,
            txt_seq_lens=lengths,
        )[0]


def mean_caption(captions: list[Tensor]) -> Tensor:
    """Return the mean at each token over the captions that have it."""
    longest = max(map(len, captions))
    return torch.stack(
        [torch.stack([c[token] for c in captions if len(c) > token]).mean(dim=0) for token in range(longest)]
    )


@pytest.mark.parametrize("max_rows", [None, 1, 2])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", ["list", "list in an output", "row lists"])
def test_lists_with_one_entry_per_row(kind: str, guided: bool, max_rows: int | None) -> None:
    module = RowListTransformer() if kind == "row lists" else ListTransformer(kind == "list in an output")
    pipe = ListPipeline(module)
    captions = [torch.randn(length, 4, generator=torch.Generator().manual_seed(length)) for length in (3, 5, 2, 4)]
    groups, seeds = (0, 0, 2, 0), [1, 1, 2, 1]

    def sampled(captions: list[Tensor], seeds: list[int], branch: int) -> tuple[Tensor, CallState]:
        identity = tuple(range(len(captions)))
        rows = RowPlan(lambda step: groups if step < branch else identity)
        call = CallState(rows, STEPS, max_rows)
        with attached(pipe, call, seeds) as noise:
            return pipe(captions, noise, guided), call

    def alone(caption: Tensor, seed: int) -> Tensor:
        return pipe([caption], [torch.Generator().manual_seed(seed)], guided)[0]

    together, call = sampled(captions, seeds, branch=STEPS)
    per_image = 2 if guided else 1
    assert call.rows == sum(module.rows) == 2 * STEPS * per_image
    assert call.rows_asked == 4 * STEPS * per_image
    assert max(module.rows) <= (max_rows or 2 * per_image)
    trunk = mean_caption([captions[0], captions[1], captions[3]])
    for image in (0, 1, 3):
        assert close(together[image], alone(trunk, 1))
    assert close(together[2], alone(captions[2], 2))

    module.rows.clear()
    branched, call = sampled(captions, seeds, branch=2)
    assert call.rows == sum(module.rows) == (2 * 2 + 2 * 4) * per_image
    assert not close(branched[0], branched[1], 1e-3)
    independent, _ = sampled(captions, seeds, branch=0)
    for image, (caption, seed) in enumerate(zip(captions, seeds, strict=True)):
        assert close(independent[image], alone(caption, seed))


def z_image() -> TinyPipeline:
    pipe = diffusers.ZImagePipeline(
        scheduler=flow_scheduler(shift=3.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=z_image_transformer(n_layers=1, axes_lens=[64, 16, 16]),
    )

    def inputs(n: int) -> dict[str, Any]:
        captions = [torch.randn(3 + row, 16, generator=torch.Generator().manual_seed(row)) for row in range(n)]
        return {"prompt_embeds": captions, "height": 32, "width": 32}

    return TinyPipeline(quiet(pipe), inputs)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_a_z_image_pipeline_shares(scale: float) -> None:
    tiny = z_image()
    inputs = tiny.inputs(3)
    captions = inputs.pop("prompt_embeds")
    call = {"guidance_scale": scale}

    def embeds(captions: list[Tensor]) -> dict[str, Any]:
        return inputs | {"prompt_embeds": captions, "negative_prompt_embeds": [torch.zeros(2, 16) for _ in captions]}

    ran = denoise(tiny, embeds(captions), [[0, 1], [2]], branch=STEPS, **call)
    trunk = mean_caption(captions[:2])
    assert close(ran.images[:1], bare(tiny, embeds([trunk]), [100], **call))
    assert torch.equal(ran.images[0], ran.images[1])
    assert close(ran.images[2:], bare(tiny, embeds(captions[2:]), [102], **call))
    assert ran.call.rows == 2 * STEPS * (2 if scale else 1)
    result = run(tiny, embeds(captions), sharing=None, **call)
    assert result.cost == result.plan.cost  # guidance begins at 0 here, not at 1
