"""The settings of a run: how to share, skip, guide and batch.

They are frozen, checked when they are made, and can be written to JSON and read from it.

One file: everything that a user can ask of a run, and what the parts have in common.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

from .checks import entries_of, flag, number, one_of, shown, text, whole, wholes, window
from .errors import CotrunkError

Mode = Literal["flat", "adaptive", "tree"]
TrunkNoise = Literal["common", "own"]
Noise = Literal["auto", "common", "own"]
Rule = Literal["error", "fixed", "paper", "released"]
Prediction = Literal["reuse", "linear", "quadratic"]

Fidelity = Literal["high", "balanced", "fast"]

# names for tolerances of skipping; docs/skipping.md says how close the images are to those of a full run
FIDELITIES: Mapping[Fidelity, float] = MappingProxyType({"high": 0.012, "balanced": 0.03, "fast": 0.07})

# the options that each rule reads; the published rules fix their prediction and limits themselves
READ: Mapping[Rule, tuple[str, ...]] = MappingProxyType(
    {
        "error": ("tolerance", "correct", "tokens"),
        "fixed": ("every", "prediction", "correct", "tokens"),
        "paper": (),
        "released": (),
    }
)


def _set(instance: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass in its `__post_init__`, to checked plain values that JSON can hold."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def _number_or_auto(name: str, value: Any, least: float, most: float) -> float | Literal["auto"]:
    """Return a number in a range, or "auto".

    Raises:
        CotrunkError: it is neither.
    """
    if isinstance(value, str):
        if value != "auto":
            raise CotrunkError(
                f"{name} {shown(value)} is neither 'auto' nor a number: use 'auto', or a number from {least:g} to "
                f"{most:g}."
            )
        return "auto"
    return number(name, value, least, most, remark=", or 'auto'")


@dataclass(frozen=True)
class Sharing:
    """How prompts share their early steps (SAGE). `published` gives the sharing of the paper.

    Attributes:
        share: fraction of the timesteps that a group may share (the paper's beta), 0 to below 1. The saving never
            exceeds it. 0.2 is mild; each further step costs more than the one before, and beyond 0.4 the images of a
            group look much alike.
        similarity: prompts share if every pair of their group has at least this cosine. A number belongs to one
            encoder; "auto" finds one for the encoder in use.
        max_similarity: pairs at or above this cosine do not share (the paper's tau_max); None for no limit.
        max_group: largest group; None for no limit.
        mode: "flat": every group branches at `share`. "adaptive": the looser the group, the earlier it branches.
            "tree": a group branches in several stages, by a dendrogram.
        encoder: the text encoder that measures similarity: "pipeline" (the pipeline's own), "minilm", or any model
            that sentence-transformers loads.
        noise: "own": every image keeps its own noise, and shares only the x0 that the trunk predicts at each step. So
            it approximates the image that its prompt gives alone. "common": a group starts from one noise and shares
            the trunk's latents, so its images have one layout. "auto": own noise where pipeline and scheduler allow it,
            else common noise. The plan holds which one it is, and why.
        trunk_guidance: the fraction of the pipeline's guidance that is used in trunks. 1 is as in the pipeline. 0 is
            none: a trunk step takes one row instead of two. It has no effect where guidance takes no row. "auto": 0
            with own noise where the pipeline allows it, else 1.

    Raises:
        CotrunkError: a value out of its range.
    """

    share: float = 0.2
    similarity: float | Literal["auto"] = "auto"
    max_similarity: float | None = None
    max_group: int | None = 5
    mode: Mode = "flat"
    encoder: str = "pipeline"
    noise: Noise = "auto"
    trunk_guidance: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _set(
            self,
            share=number("share", self.share, 0, below=1),
            similarity=_number_or_auto("similarity", self.similarity, -1, 1),
            trunk_guidance=_number_or_auto("trunk_guidance", self.trunk_guidance, 0, 1),
        )
        if self.max_similarity is not None:
            _set(self, max_similarity=number("max_similarity", self.max_similarity, -1))
            if not isinstance(self.similarity, str) and self.max_similarity <= self.similarity:
                raise CotrunkError(
                    f"max_similarity {self.max_similarity} is not above similarity {self.similarity}, so nothing could "
                    "share: choose a larger max_similarity."
                )
        if self.max_group is not None:
            _set(self, max_group=whole("max_group", self.max_group))
        one_of("mode", self.mode, get_args(Mode))
        text("encoder", self.encoder)
        one_of("noise", self.noise, get_args(Noise))

    @classmethod
    def published(cls, **options: Any) -> Self:
        """Return the sharing of the paper: common noise, full guidance in trunks, and 30 % of the steps shared.

        Args:
            **options: other values of the other fields, such as `share`.
        """
        return cls(**{"share": 0.3, "noise": "common", "trunk_guidance": 1.0, **options})

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return the sharing from JSON values. Absent keys take their defaults.

        Raises:
            CotrunkError: an unknown key, a value of another type, or one out of its range.
        """
        return cls(**entries_of("sharing", data, cls))


@dataclass(frozen=True)
class Skipping:
    """How images skip denoiser evaluations where their own trajectory is smooth (SADA).

    An option is refused under a rule that does not read it. "paper" and "released" read none.

    Attributes:
        tolerance: for the rule "error": how far skipped steps may be expected to shift an image before a step is
            computed again (docs/skipping.md gives the unit). 0 computes all.
        rule: "error", an error estimate per image (the default); "fixed", one evaluation in `every`; "paper", the
            criterion of SADA as published (Criterion 3.4, Theorems 3.5 and 3.7); "released", the criterion in its code.
        every: for the rule "fixed": one step in this many is computed.
        prediction: for the rule "fixed": how a skipped output is predicted. "reuse", "linear" (the default) or
            "quadratic": the polynomial through the last one, two or three computed outputs.
        correct: at each computed step, correct the latents for the predictions since the last computed step, now that
            the outputs on both sides are known.
        tokens: at computed steps, the fraction of the tokens that transformer blocks compute per image: those whose
            outputs were predicted worst. The others come from the blocks' caches. None computes all.
            On the embedded `mini` it saves no time when whole evaluations are skipped as well (docs/skipping.md). It
            has not been measured on larger models.

    Raises:
        CotrunkError: a value out of its range, or one that the rule does not read.
    """

    tolerance: float = 0.03
    rule: Rule = "error"
    every: int = 3
    prediction: Prediction = "linear"
    correct: bool = True
    tokens: float | None = None

    def __post_init__(self) -> None:
        one_of("skipping rule", self.rule, get_args(Rule))
        one_of("skipping prediction", self.prediction, get_args(Prediction))
        flag("skipping correct", self.correct)
        _set(
            self,
            tolerance=number("skipping tolerance", self.tolerance),
            every=whole("skipping every", self.every, 1, 1000),
        )
        if self.tokens is not None:
            _set(self, tokens=number("skipping tokens", self.tokens, 0, 1, above=0))
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name not in ("rule", *READ[self.rule]) and value != option.default:
                readers = " or ".join(repr(rule) for rule, read in READ.items() if option.name in read)
                raise CotrunkError(
                    f"skipping {option.name} {value!r} has no effect under the rule {self.rule!r}: leave it out, or "
                    f"use the rule {readers}."
                )

    @classmethod
    def with_fidelity(cls, name: Fidelity) -> Self:
        """Return the rule "error" with a named tolerance: "high" (closest to a full run), "balanced" or "fast".

        Raises:
            CotrunkError: another name.
        """
        one_of("fidelity", name, get_args(Fidelity))
        return cls(tolerance=FIDELITIES[name])


@dataclass(frozen=True)
class Batching:
    """How much runs at once. It changes memory and speed; images change only by rounding.

    Attributes:
        batch_size: largest number of images in one call of the pipeline; memory for latents, text states and decoding
            grows with it. Groups are never cut.
        max_rows: largest number of denoiser rows in one forward; None for no limit. It is halved automatically when the
            device runs out of memory.
        row_sizes: the numbers of rows that a forward may have, (2, 4, 8, 16, 32) for example. Copies fill a forward up
            to the next size, and count as computed. So a compiled denoiser sees few shapes, although sharing and
            skipping change the number of rows from step to step. None for any number.

    Raises:
        CotrunkError: a value out of its range.
    """

    batch_size: int = 32
    max_rows: int | None = None
    row_sizes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        _set(self, batch_size=whole("batch_size", self.batch_size))
        if self.max_rows is not None:
            _set(self, max_rows=whole("max_rows", self.max_rows))
        if self.row_sizes is not None:
            _set(self, row_sizes=wholes("row_sizes", self.row_sizes, "(2, 4, 8, 16, 32)"))


DEFAULT_SHARING, DEFAULT_BATCHING = Sharing(), Batching()
SKIPPING_VALUES = "Skipping(tolerance=0.03), 'auto', or None to compute everything"


@dataclass(frozen=True)
class Settings:
    """Everything that a user asks of a run, apart from the prompts and the pipeline's own arguments.

    Attributes:
        sharing: how prompts share; None for independent sampling.
        skipping: how images skip evaluations; None computes all. "auto" is `Skipping()` where pipeline and scheduler
            allow it, else None.
        guidance_interval: guidance is on between these fractions of the steps, and off (one row instead of two) before
            and after (Kynkaanniemi et al. 2024). None for all steps.
        steps: the pipeline's `num_inference_steps`; None for the number in the call, or the pipeline's default.
        batching: how much runs at once.

    Raises:
        CotrunkError: a value of another type, or out of its range.
    """

    sharing: Sharing | None = DEFAULT_SHARING
    skipping: Skipping | Literal["auto"] | None = "auto"
    guidance_interval: tuple[float, float] | None = None
    steps: int | None = None
    batching: Batching = DEFAULT_BATCHING

    def __post_init__(self) -> None:
        for name, value, kind, use in (
            ("sharing", self.sharing, Sharing | None, "Sharing(share=0.2), or None for independent sampling"),
            ("skipping", self.skipping, Skipping | str | None, SKIPPING_VALUES),
            ("batching", self.batching, Batching, "Batching(batch_size=8), for example"),
        ):
            if not isinstance(value, kind):
                raise CotrunkError(f"{name} is a {type(value).__name__}: give {use}.")
        if isinstance(self.skipping, str) and self.skipping != "auto":
            raise CotrunkError(f"skipping {shown(self.skipping)} is unknown: give {SKIPPING_VALUES}.")
        if self.guidance_interval is not None:
            _set(self, guidance_interval=window("guidance_interval", self.guidance_interval))
        if self.steps is not None:
            _set(self, steps=whole("steps", self.steps))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, which `from_json` reads."""
        return {name: _json_value(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return the settings from JSON values. Absent keys take their defaults.

        Raises:
            CotrunkError: an unknown key, a value of another type, or one out of its range.
        """
        values = entries_of("settings", data, cls)
        for name, kind in (("sharing", Sharing), ("skipping", Skipping), ("batching", Batching)):
            if values.get(name) is not None and not (name == "skipping" and isinstance(values[name], str)):
                values[name] = kind(**entries_of(name, values[name], kind))
        return cls(**values)


DEFAULT_SETTINGS = Settings()


def settings_of(
    settings: Settings | None,
    sharing: Sharing | None = DEFAULT_SHARING,
    skipping: Skipping | Literal["auto"] | None = "auto",
    guidance_interval: tuple[float, float] | None = None,
    batching: Batching = DEFAULT_BATCHING,
) -> Settings:
    """Return the settings of a call that gives them in one object or one by one.

    Raises:
        CotrunkError: both are given, or a value of another type or out of its range.
    """
    if settings is None:
        return Settings(sharing, skipping, guidance_interval, batching=batching)
    if not isinstance(settings, Settings):
        raise CotrunkError(f"settings is a {type(settings).__name__}: give Settings(sharing=..., skipping=...).")
    given = {
        "sharing": sharing is not DEFAULT_SHARING,
        "skipping": skipping != "auto",
        "guidance_interval": guidance_interval is not None,
        "batching": batching is not DEFAULT_BATCHING,
    }
    if twice := [name for name, is_given in given.items() if is_given]:
        raise CotrunkError(f"settings is given, and {' and '.join(twice)} as well: put everything into settings.")
    return settings


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_value(each) for name, each in value.items()}
    return list(value) if isinstance(value, tuple) else value
