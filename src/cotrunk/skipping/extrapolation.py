"""Lagrange extrapolation of denoiser outputs, and the limit on how much it may amplify their noise."""

MOST_AMPLIFICATION = 7.0  # limit on the sum of the absolute weights of a prediction


def lagrange(support: list[float], time: float) -> list[float]:
    """Return the weights of the values at the support points in their interpolating polynomial at `time`."""
    weights = []
    for i, own in enumerate(support):
        weight = 1.0
        for j, other in enumerate(support):
            if j != i:
                weight *= (time - other) / (own - other)
        weights.append(weight)
    return weights


def is_bounded(support: list[float], time: float) -> bool:
    """Return whether a prediction at `time` amplifies the noise of the values at the support points only moderately.

    A damped trend counts as if it were not damped, because its damping is not known yet.
    """
    return sum(map(abs, lagrange(support, time))) <= MOST_AMPLIFICATION
