"""A pass on a Ray cluster: one execution of Ray Data, in an actor that can be ended whatever it hangs in."""

import logging
import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..errors import CotrunkError, first_line


@dataclass(frozen=True)
class Pool:
    """The painters of a run.

    Attributes:
        least, most: how many there are; between the two, as many as the cluster has room for.
        gpus: of each; 0 for a cluster without.
        resources: other resources of Ray that each takes.
    """

    least: int = 1
    most: int = 1
    gpus: float = 0.0
    resources: Mapping[str, float] | None = None


def executor() -> Any:
    """Start the actor of a pass. That takes seconds, so the first one starts before its pass is known."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Execution).remote()


class RayPass:
    """A pass that runs on the connected Ray cluster.

    Args:
        files: the Parquet files of the waves, heaviest first.
        painter: a class whose instances take a batch of waves, as `Painter` does.
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
        except Exception as problem:  # lost machines, and what Ray Data cannot heal by itself
            return first_line(problem) or "it failed"
        if error:
            raise CotrunkError(error)
        return ""

    def stop(self) -> None:
        """End it, with its painters, which belong to it."""
        with suppress(Exception):
            ray.kill(self._actor)


class PainterHere:
    """A painter that is made where it paints: the process that runs Ray Data never loads what painters import."""

    def __init__(self, make: bytes) -> None:
        self._painter = pickle.loads(make)()

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Paint the waves of a batch of Ray Data, and return what `Painter` does."""
        painted: dict[str, list[Any]] = self._painter(batch)
        return painted


class _Execution:
    """Runs Ray Data. It is an actor."""

    def __init__(self) -> None:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def run(self, files: list[str], make: bytes, pool: Pool, system: Any) -> str:
        """Paint the waves of some files. Return an error of the input; empty if there is none."""
        import ray.data

        waves = ray.data.read_parquet(files, filesystem=system).repartition(target_num_rows_per_block=1)
        done = waves.map_batches(
            PainterHere,
            batch_size=1,
            fn_constructor_kwargs={"make": make},
            num_cpus=0,
            num_gpus=pool.gpus,
            resources=dict(pool.resources or {}),
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.least,
                max_size=pool.most,
                # one wave at a time: a second one would wait at a slow painter while another is idle
                max_tasks_in_flight_per_actor=1,
                max_concurrent_calls_per_actor=1,
                # Calls are made in the thread that loaded the pipeline. In a second thread, OpenMP starts threads of
                # its own in addition to those of the first, and torch computes 15 % slower on a CPU.
                enable_true_multi_threading=True,
            ),
        )
        for row in done.iter_rows():
            if row["error"]:
                return str(row["error"])
        return ""
