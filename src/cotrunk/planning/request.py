"""A call of a pipeline, and the plan of that call."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import CotrunkError
from ..pipelines.arguments import PerPrompt
from ..pipelines.automatic import why_guided
from ..pipelines.batch_compatibility import companions
from ..pipelines.cost import argument, guidance_rows, timesteps_of
from ..pipelines.noise_schedule import read_schedule
from ..pipelines.prompt_weights import plain_text
from ..pipelines.tokenizers import Readings, readings
from ..settings import Sharing
from .embedding import Encoder, from_prompt_embeds, pipeline_encoder, sentence_encoder
from .grouping import check_size
from .plan import Findings, Plan
from .prompt_row import checked
from .sharing import Evaluations, Item, make_plan
from .threshold import auto_threshold
from .trunk_choice import chosen
from .vector_files import VectorFiles

_NEGATIVE = re.compile(r"negative_(pooled_)?prompt_(embeds|attention_mask)(_\d)?|negative_pooled_prompt_embeds")


class Request:
    """Prompts and arguments for a pipeline, checked. Each property is computed once, when it is first needed.

    It reads the pipeline's text encoders, its scheduler, and only the config of its denoiser.

    Attributes:
        prompts: the texts; None if only `prompt_embeds` are given. If both are given, the images are those of the
            embeddings. The texts, and those of `negative_prompt`, tell which prompts may share, and their seeds.
        encoder: measures the similarity of texts; None for the one that the sharing names.
        vectors: keeps the vectors of the prompts in files; None to keep none.
        arguments: all arguments of the call, divided into those with one entry per prompt and those of the whole call.
        named: the same with texts instead of embeddings, where both are given.

    Raises:
        CotrunkError: there are no prompts; one is not a valid text; or an argument is wrong.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str] | str | None,
        arguments: dict[str, Any],
        encoder: Encoder | None = None,
        vectors: VectorFiles | None = None,
    ) -> None:
        if "prompt" in arguments:  # the name that pipelines use
            if prompts is not None:
                raise CotrunkError("prompts and prompt are both given: give one of them.")
            arguments = dict(arguments)
            prompts = arguments.pop("prompt")
        if prompts is not None:
            prompts = [prompts] if isinstance(prompts, str) else list(prompts)
            for i, prompt in enumerate(prompts):
                checked(prompt, f"prompt {i}: the prompt")
        self.has_embeddings = arguments.get("prompt_embeds") is not None
        if prompts is None and not self.has_embeddings:
            raise CotrunkError("Give prompts, or prompt_embeds and the other embeddings that the pipeline needs.")
        count = len(prompts if prompts is not None else arguments["prompt_embeds"])
        if count == 0:
            raise CotrunkError("There are no prompts: give at least one.")
        self.pipe, self.prompts, self.encoder, self._files = pipe, prompts, encoder, vectors
        self._own: tuple[str, Sequence[str], np.ndarray] | None = None  # encoder, texts, vectors (n, d) of the prompts
        self._embedded: dict[tuple[str, str], np.ndarray] = {}  # encoder and text -> (d,)
        texts = arguments if prompts is None else {"prompt": prompts, **arguments}
        if prompts is not None and self.has_embeddings:
            has_negative = arguments.get("negative_prompt_embeds") is not None and "negative_prompt" in arguments
            call = {name: each for name, each in arguments.items() if name != "negative_prompt" or not has_negative}
            texts = {name: each for name, each in texts.items() if not (has_negative and _NEGATIVE.fullmatch(name))}
            self.arguments, self.named = PerPrompt(pipe, count, call), PerPrompt(pipe, count, texts)
        else:
            self.arguments = self.named = PerPrompt(pipe, count, texts)

    @cached_property
    def evaluations(self) -> Evaluations:
        """The number of steps and rows of one image on its own."""
        call = self.arguments.arguments
        order = getattr(self.pipe.scheduler, "order", 1)
        return Evaluations(*timesteps_of(self.pipe, call), guidance_rows(self.pipe, call), order)

    @cached_property
    def keys(self) -> list[str]:
        """A digest of the other arguments of each prompt."""
        return self.named.keys()

    @cached_property
    def companions(self) -> list[Hashable]:
        """A key per prompt. Prompts with equal keys may run in one call of the pipeline."""
        return companions(self.pipe, self.arguments)

    @cached_property
    def reads(self) -> list[Hashable]:
        """The tokens of each prompt that the pipeline reads, or a digest of its embeddings; None without a text."""
        if self.prompts is None:
            return [None] * self.arguments.prompts
        if self.has_embeddings:
            return list(self.arguments.identities(None))
        return self._readings.keys

    @cached_property
    def _readings(self) -> Readings:
        return readings(self.pipe, self.prompts or (), self.arguments.arguments)

    def plan(self, sharing: Sharing | None, *, seed: int | Sequence[int] = 0, images_per_prompt: int = 1) -> Plan:
        """Decide what the prompts share.

        Raises:
            CotrunkError: the schedule cannot be made, there are too many prompts, they cannot be embedded, or their
            trunks cannot be sampled as the sharing says.
        """
        if sharing is not None:
            check_size(self.arguments.prompts)
        # tokenizing takes time, and matters only if prompts may share
        reads = [None] * self.arguments.prompts if sharing is None else self.reads
        evaluations, fallback = self.evaluations, None
        if sharing is not None:
            call = self.arguments.arguments
            sharing, fallback = chosen(self.pipe, call, evaluations.guidance_rows, sharing)
        vectors, threshold = self._vectors(sharing)
        identities = self.arguments.identities(self.prompts)
        texts = [f"prompt {i}" for i in range(len(identities))] if self.prompts is None else self.prompts
        facts = zip(texts, identities, reads, self.keys, self.companions, strict=True)
        plan = make_plan(
            [Item(*fact) for fact in facts],
            vectors,
            sharing,
            threshold,
            evaluations,
            seed=seed,
            images_per_prompt=images_per_prompt,
            from_embeddings=self.has_embeddings,
            findings=Findings() if sharing is None else self._findings(),
        )
        self.check_trunks(plan)
        if any(len(tree.images) > 1 for tree in plan.trees):
            plan = replace(plan, findings=replace(plan.findings, fallback=fallback))
        return plan

    def check_replays(self, plan: Plan) -> None:
        """Check that this call can follow a plan that was made before.

        Raises:
            CotrunkError: the prompts, the steps or the guidance differ from the plan's, another argument now differs
            between prompts that share, or the trunks cannot be sampled as the plan says.
        """
        if len(plan.prompts) != self.arguments.prompts or (
            self.prompts is not None and list(plan.prompts) != self.prompts
        ):
            raise CotrunkError("The plan is for other prompts: give the prompts it was made with, or make a new plan.")
        evaluations = self.evaluations
        if plan.timesteps != evaluations.timesteps:
            raise CotrunkError(
                f"The plan is for {plan.timesteps} timesteps, this call would take {evaluations.timesteps}: "
                f"use num_inference_steps={plan.steps} and the plan's scheduler, or make a new plan."
            )
        if plan.guidance_rows != evaluations.guidance_rows:
            raise CotrunkError(
                f"The plan counts {plan.guidance_rows} rows per evaluation, this call takes "
                f"{evaluations.guidance_rows}: use the guidance it was made with, or make a new plan."
            )
        keys = list(zip(self.keys, self.companions, strict=True))
        if any(len({keys[plan.prompt_of(image)] for image in tree.images}) > 1 for tree in plan.trees):
            raise CotrunkError(
                "The plan shares between prompts that now differ in another argument (a negative prompt, for example): "
                "make a new plan."
            )
        self.check_trunks(plan)

    def check_interval(self) -> None:
        """Check that turning guidance off at a step saves a row: that each image has two rows, one of them for it.

        Raises:
            CotrunkError: guidance takes more rows, or no row of its own.
        """
        kind, rows = type(self.pipe).__name__, self.evaluations.guidance_rows
        scale = argument(self.pipe, self.arguments.arguments, "guidance_scale")
        if rows > 2:
            raise CotrunkError(
                f"{kind} computes {rows} rows per image, and guidance_interval supports two: leave guidance_interval "
                "out."
            )
        if rows == 1 and scale is not None and scale > 1:
            raise CotrunkError(
                f"{kind} computes no extra row for guidance with these arguments: leave guidance_interval out."
            )

    def check_trunks(self, plan: Plan) -> None:
        """Raise `CotrunkError` if own noise or the guidance of trunks does not work with this pipeline."""
        sharing = plan.sharing
        if sharing is None or (not plan.trunks and all(len(tree.images) == 1 for tree in plan.trees)):
            return
        if plan.trunks and self.has_embeddings:
            raise CotrunkError(
                "The plan replays trunks, which are computed from texts, and prompt_embeds are given: give the prompts "
                "alone, or make a new plan."
            )
        if sharing.noise == "own":
            read_schedule(self.pipe.scheduler, ())
        is_weaker = not isinstance(sharing.trunk_guidance, str) and sharing.trunk_guidance < 1
        if is_weaker and (why := why_guided(self.pipe, self.arguments.arguments, plan.guidance_rows)):
            raise CotrunkError(f"{why}, and trunk_guidance supports two rows of guidance: use trunk_guidance=1.")

    def _vectors(self, sharing: Sharing | None) -> tuple[np.ndarray, float]:
        """Return unit vectors (n, d) of the prompts, and the threshold on the scale of their encoder."""
        if sharing is None:
            return np.zeros((0, 0), dtype=np.float32), 1.0
        if self.prompts is not None:
            encoder = self._encoder_of(sharing.encoder)
            threshold = auto_threshold(encoder) if sharing.similarity == "auto" else sharing.similarity
            texts = [plain_text(prompt) for prompt in self.prompts] if self.has_embeddings else self.prompts
            vectors = encoder.encode(texts)
            self._own = sharing.encoder, texts, vectors
            return vectors, float(threshold)
        if sharing.similarity == "auto":
            raise CotrunkError("similarity='auto' is measured on texts: give prompts with prompt_embeds, or a number.")
        call = self.arguments.arguments
        masks = [call.get(name) for name in ("prompt_attention_mask", "prompt_embeds_mask", "attention_mask")]
        mask = next((value for value in masks if value is not None), None)
        pooled = call.get("pooled_prompt_embeds")
        return from_prompt_embeds(call["prompt_embeds"], pooled, mask), float(sharing.similarity)

    def vectors_of(self, texts: Sequence[str], encoder: str) -> np.ndarray:
        """Return unit vectors (n, d) of texts by an encoder that `Sharing.encoder` names. Each is embedded once."""
        if self._own is not None:  # a million rows by name take memory: most plans need none
            name, own, vectors = self._own
            self._embedded |= {(name, text): row for text, row in zip(own, vectors, strict=True)}
            self._own = None
        missing = [text for text in dict.fromkeys(texts) if (encoder, text) not in self._embedded]
        if missing:
            found = self._encoder_of(encoder).encode(missing)
            self._embedded |= {(encoder, text): row for text, row in zip(missing, found, strict=True)}
        return np.stack([self._embedded[encoder, text] for text in texts])

    def _encoder_of(self, name: str) -> Encoder:
        found = encoder_of(self.pipe, name) if self.encoder is None else self.encoder
        return found if self._files is None else self._files.kept(found)

    def _findings(self) -> Findings:
        if self.prompts is None:
            return Findings()
        texts_of: dict[Hashable, dict[str, int]] = {}  # tokens -> the different texts with these tokens
        for i, (read, text) in enumerate(zip(self.reads, self.prompts, strict=True)):
            texts_of.setdefault(read, {}).setdefault(text, i)
        return Findings(
            truncated=() if self.has_embeddings else tuple(self._readings.truncated.items()),
            alike=tuple(tuple(found.values()) for found in texts_of.values() if len(found) > 1),
        )


def encoder_of(pipe: Any, name: str) -> Encoder:
    """Return the encoder that `Sharing.encoder` names."""
    return pipeline_encoder(pipe) if name == "pipeline" else sentence_encoder(name)
