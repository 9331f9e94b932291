"""Interpolation and extrapolation by the polynomial through some points."""


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
