"""What a user says about skipping: which rule decides, how far it may go."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from .errors import CotrunkError

Rule = Literal["error", "fixed", "paper", "released"]
Prediction = Literal["damped", "reuse", "linear", "quadratic"]

# the options that a rule reads; the published ones have a window, a prediction and a longest gap of their own
READ: dict[Rule, tuple[str, ...]] = {
    "error": ("tolerance", "prediction", "correct", "window", "longest", "tokens"),
    "fixed": ("every", "prediction", "correct", "window", "tokens"),
    "paper": (),
    "released": (),
}


@dataclass(frozen=True)
class Skipping:
    """How images leave out evaluations of the denoiser where their own trajectory is smooth (SADA).

    An option is refused under a rule that does not read it. "paper" and "released" read none.

    Attributes:
        tolerance: for the rule "error": how far an image may be expected to drift while evaluations are left out,
            before one is computed again (docs/skipping.md says in which units). 0 computes all.
        rule: "error", an error estimate for each image (the default); "fixed", one evaluation in `every`; "paper", the
            criterion of SADA as published (Criterion 3.4, Theorems 3.5 and 3.7); "released", what its code does.
        every: for the rule "fixed".
        prediction: what stands in for an output: "damped", the linear trend of the last two computed outputs, as far as
            the image has been following its trend (the default); "reuse", "linear" or "quadratic", the polynomial
            through the last one, two or three.
        correct: at each computed step put right what the predictions before it did to the latents, now that the output
            is known on both sides of them.
        window: skipping starts and ends at these fractions of the steps.
        longest: for the rule "error": most evaluations left out in a row.
        tokens: at steps that are computed, the share of the tokens that transformer blocks compute for an image, those
            whose outputs were predicted worst; the others come from the blocks' caches. None computes all.
            On the embedded `mini` it does not pay beside leaving out whole evaluations (docs/skipping.md); on models
            of a usual size it has not been measured.

    Raises:
        CotrunkError: a value out of its range, or one that the rule does not read.
    """

    tolerance: float = 0.02
    rule: Rule = "error"
    every: int = 3
    prediction: Prediction = "damped"
    correct: bool = True
    window: tuple[float, float] = (0.0, 1.0)
    longest: int = 12
    tokens: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise CotrunkError(f"skipping rule {self.rule!r} is unknown: use {', '.join(get_args(Rule))}.")
        if not _is_number(self.tolerance) or not 0 <= self.tolerance < float("inf"):
            raise CotrunkError(f"skipping tolerance {self.tolerance!r} is out of range: use 0 (compute all) or more.")
        if self.prediction not in get_args(Prediction):
            known = ", ".join(get_args(Prediction))
            raise CotrunkError(f"skipping prediction {self.prediction!r} is unknown: use {known}.")
        for name, low, high in (("every", 1, 1000), ("longest", 1, 1000)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise CotrunkError(f"skipping {name} {value!r} is out of range: use a whole number, {low} to {high}.")
        if self.tokens is not None and not (_is_number(self.tokens) and 0 < self.tokens <= 1):
            raise CotrunkError(f"skipping tokens {self.tokens!r} is out of range: use a share above 0, at most 1.")
        check_fractions("skipping window", self.window)
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name not in ("rule", *READ[self.rule]) and value != option.default:
                readers = " or ".join(repr(rule) for rule, read in READ.items() if option.name in read)
                raise CotrunkError(
                    f"skipping {option.name} {value!r} has no effect under the rule {self.rule!r}: leave it out, or "
                    f"use the rule {readers}."
                )


def check_fractions(name: str, pair: object) -> None:
    """Raise `CotrunkError` unless this is the start and the end of a part of the steps."""
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(_is_number, pair)):
        raise CotrunkError(f"{name} {pair!r} is no pair of numbers: use (0.1, 0.8), say.")
    if not 0 <= pair[0] <= pair[1] <= 1:
        raise CotrunkError(f"{name} {pair!r} is out of range: use 0 <= start <= end <= 1.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
