"""A pass on a Ray cluster: an actor hands waves to painters, which are actors too, one per GPU.

Ray places them and starts machines for them; it tells when one dies. Ray Data would do the same on top of it, but its
executor looks at its queues ten times per second, which costs a painter on two cores 6 % of its time.
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from pyarrow.parquet import ParquetFile
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..errors import CotrunkError, first_line

Wave = Mapping[str, Any]  # a row of the waves' file
# Painters that die one after another until a pass ends. Groups with which painters died are given up earlier.
DEATHS = 10


@dataclass(frozen=True)
class Pool:
    """The painters of a run.

    Attributes:
        most: how many there are; fewer while the cluster has no room for more.
        gpus: of each; 0 for a cluster without.
        resources: other resources of Ray that each takes.
    """

    most: int = 1
    gpus: float = 0.0
    resources: Mapping[str, float] | None = None


def executor() -> Any:
    """Start the actor of a pass. That takes a second, so the first one starts before its pass is known."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Execution).remote()


class RayPass:
    """A pass that runs on the connected Ray cluster.

    Args:
        files: the Parquet files of the waves, heaviest first.
        painter: a class whose instances take a wave and return an error, as `Painter` does.
        arguments: for its constructor.
        pool: how many painters, and where.
        actor: as `executor` returns it; None to start one.
        system: the file system of fsspec that has the files; None for that of the machines.
    """

    def __init__(
        self,
        files: Sequence[str],
        painter: type,
        arguments: Mapping[str, Any],
        pool: Pool,
        actor: Any = None,
        system: Any = None,
    ) -> None:
        self._actor = executor() if actor is None else actor
        make = cloudpickle.dumps(partial(painter, **arguments))
        self._result = self._actor.run.remote([*files], make, pool, system)

    def ended(self) -> str | None:
        """Return None while it runs, then why it ended; empty if it is through.

        Raises:
            CotrunkError: an error of the input, which another pass would meet too.
        """
        done, _ = ray.wait([self._result], timeout=0)
        if not done:
            return None
        try:
            error = ray.get(self._result)
        except ray.exceptions.RayTaskError as problem:  # Ray puts the error below its traceback
            return str(problem).strip().rpartition("\n")[2]
        except Exception as problem:  # lost machines, and painters that die again and again
            return first_line(problem) or "it failed"
        if error:
            raise CotrunkError(error)
        return ""

    def stop(self) -> None:
        """End it, with its painters, which belong to it."""
        with suppress(Exception):
            ray.kill(self._actor)


class PainterHere:
    """A painter that is made where it paints: the process that hands out waves never loads what painters import.

    Ray calls an actor in the thread that made it. In a second thread, OpenMP would start threads of its own in addition
    to those of the first, and torch would compute 15 % slower on a CPU.
    """

    def __init__(self, make: bytes) -> None:
        self._painter = pickle.loads(make)()

    def is_ready(self) -> None:
        """Return when the pipeline is loaded."""

    def paint(self, wave: Wave) -> str:
        """Paint a wave. Return an error of the input; empty if there is none."""
        error: str = self._painter(wave)
        return error


class _Execution:
    """Hands waves to painters. It is an actor, which can be ended whatever it waits for, and its painters with it."""

    def run(self, files: list[str], make: bytes, pool: Pool, system: Any) -> str:
        """Paint the waves of some files. Return an error of the input; empty if there is none.

        Each painter has one wave at a time: a second one would wait at a slow painter while another is idle. Ray starts
        as many painters as there is room for, and asks for machines for the others if it may.

        Raises:
            RayActorError: painters die again and again.
        """
        waves, again, deaths = _waves(files, system), list[Wave](), 0
        painter = ray.remote(num_cpus=0, num_gpus=pool.gpus, resources=dict(pool.resources or {}))(PainterHere)
        working = dict[Any, tuple[Any, Wave | None]]()  # what is awaited -> the painter and its wave, if it has one

        def start() -> None:
            one = painter.remote(make)
            working[one.is_ready.remote()] = one, None

        for _ in range(min(pool.most, _number(files, system))):
            start()
        while True:
            (done,), _ = ray.wait([*working])
            one, wave = working.pop(done)
            try:
                error = ray.get(done)
            except ray.exceptions.RayActorError:
                deaths += 1
                if deaths == DEATHS:
                    raise
                again += [] if wave is None else [wave]
                start()
                continue
            if error:
                return str(error)
            deaths = deaths if wave is None else 0
            following = again.pop() if again else next(waves, None)
            if following is not None:
                working[one.paint.remote(following)] = one, following
            elif not any(own is not None for _, own in working.values()):
                return ""  # painters that are not ready yet have nothing left to do


def _waves(files: Sequence[str], system: Any) -> Iterator[Wave]:
    """Read waves one by one: their recipes would take much memory."""
    for file in files:
        with ParquetFile(file, filesystem=system) as content:
            for batch in content.iter_batches(batch_size=1):
                yield from batch.to_pylist()


def _number(files: Sequence[str], system: Any) -> int:
    """Return the number of waves in some files."""
    found = 0
    for file in files:
        with ParquetFile(file, filesystem=system) as content:
            found += content.metadata.num_rows
    return found
