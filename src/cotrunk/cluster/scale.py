"""How many Painters there are, and what each of them takes from its machine."""

from dataclasses import dataclass

from ..checks import number, whole


@dataclass(frozen=True)
class Scale:
    """How much of a cluster the service takes.

    Attributes:
        replicas: how many Painters there are.
        gpus: of each Painter; None for one if the cluster has any.
        cpus: cores of each Painter; None for none with a GPU, else one.

    Raises:
        CotrunkError: a value is out of its range.
    """

    replicas: int = 1
    gpus: float | None = None
    cpus: float | None = None

    def __post_init__(self) -> None:
        whole("--replicas", self.replicas, 1)
        for name, value in (("--gpus", self.gpus), ("--cpus", self.cpus)):
            if value is not None:
                number(name, value)

    def actor(self, *, has_gpus: bool) -> dict[str, float]:
        """Return what a Painter takes.

        Args:
            has_gpus: whether the cluster has GPUs that the model may use.
        """
        gpus = float(has_gpus) if self.gpus is None else self.gpus
        cpus = float(not gpus) if self.cpus is None else self.cpus
        return {"num_cpus": cpus, "num_gpus": gpus}
