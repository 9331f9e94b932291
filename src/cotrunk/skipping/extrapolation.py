"""Lagrange extrapolation of denoiser outputs, and when it is moderate."""

STEEPEST = 7.0  # most that an extrapolation may amplify noise in the outputs: the sum of its weights' sizes


def lagrange(knots: list[float], time: float) -> list[float]:
    """Weights of the values at `knots` in the polynomial through them, at `time`."""
    weights = []
    for i, own in enumerate(knots):
        weight = 1.0
        for j, other in enumerate(knots):
            if j != i:
                weight *= (time - other) / (own - other)
        weights.append(weight)
    return weights


def is_moderate(knots: list[float], time: float) -> bool:
    """Whether a prediction from nodes at these times can hardly amplify noise in them. Of a damped one the trend counts
    in full: how much of it will be left is not known."""
    return sum(map(abs, lagrange(knots, time))) <= STEEPEST
