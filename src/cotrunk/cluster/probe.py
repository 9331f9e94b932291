"""Look at the machines of a cluster before anything is generated: do they see the folder, the model, this version?"""

import platform
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..errors import CotrunkError
from ..pipelines.loading import resolve_device
from ..runs.facts import versions
from ..runs.found import check_found
from ..runs.input_images import check_same, digests_of
from ..storage.files import StoredFiles
from ..storage.urls import shown_place
from .connecting import PAINTER, Place
from .setup import Setup, prepared_here

NAME = ".cotrunk-probe"
SECONDS = 600.0  # until the machines must have answered: an autoscaling cluster starts them first


@dataclass(frozen=True)
class Seen:
    """What a worker found.

    Attributes:
        machine: its name.
        device: on which it would generate.
        versions: of cotrunk, diffusers and torch.
        error: a sentence about what it lacks; empty if nothing.
    """

    machine: str
    device: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    error: str = ""


def look(setup: Setup, token: str, answer: str) -> Seen:
    """Look around on a worker: it reads a file of the driver, and writes one.

    Args:
        setup: of the painters.
        token: content of both files.
        answer: name of the file to write.
    """
    machine = platform.node()
    try:
        store = StoredFiles(setup.place)
        if store.get(NAME) != token.encode():
            return Seen(
                machine, error=f"it does not see {shown_place(setup.place)}: use an --out that all machines share"
            )
        store.put(answer, token.encode())
        job = prepared_here(setup)
        check_found(job)
        check_same(digests_of(("the run", path) for path in job.digests), job.digests)
        return Seen(machine, resolve_device(job.device), tuple(versions().items()))
    except CotrunkError as error:
        return Seen(machine, error=f"{error}".rstrip("."))


def probe(setup: Setup, places: Sequence[Place], gpus: float, takes_resource: bool, seconds: float = SECONDS) -> str:
    """Let a worker on each machine look around. Return the device on which they generate.

    Args:
        setup: of the painters.
        places: the machines; an empty list for any machine that the cluster has, or starts.
        gpus: of a painter.
        takes_resource: whether painters take the resource `painter`.
        seconds: until all must have answered.

    Raises:
        CotrunkError: a machine lacks something, or does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    store, token = StoredFiles(setup.place), uuid.uuid4().hex
    store.put(NAME, token.encode())
    names = [place.name for place in places] or ["a machine of the cluster"]
    answers = [f"{NAME}-{number}" for number in range(len(names))]
    try:
        tasks = []
        for number, answer in enumerate(answers):
            where = NodeAffinitySchedulingStrategy(places[number].node, soft=False) if places else "DEFAULT"
            resources = {PAINTER: 1} if takes_resource else {}
            task = ray.remote(num_cpus=0, num_gpus=gpus, resources=resources, max_retries=0)(look)
            tasks.append(task.options(scheduling_strategy=where).remote(setup, token, answer))
        _, waiting = ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
        if waiting:
            name = names[tasks.index(waiting[0])]
            for task in waiting:
                ray.cancel(task, force=True)
            raise CotrunkError(f"{name} did not answer within {seconds:g} seconds: is a GPU free there?")
        answered = [
            (_answer(task, name), name, answer) for task, name, answer in zip(tasks, names, answers, strict=True)
        ]
        found = [(seen, name, answer) for seen, name, answer in answered if seen is not None]
        if not found:
            raise CotrunkError(f"{' and '.join(names)} went away while they were looked at: start the run again.")
        for seen, name, answer in found:
            if not seen.error and store.get(answer) != token.encode():
                raise CotrunkError(
                    f"{name} ({seen.machine}) writes to another {shown_place(setup.place)} than this machine: use an "
                    "--out that all machines share."
                )
        return device_of([seen for seen, _, _ in found], [name for _, name, _ in found])
    finally:
        for name in (NAME, *answers):
            with suppress(CotrunkError):
                store.remove(name)


def _answer(task: object, name: str) -> Seen | None:
    """Return what a worker found; None if its machine went away, which the others do not need.

    Raises:
        CotrunkError: the worker could not look.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        seen: Seen = ray.get(task)
    except RayTaskError as error:  # the machine lacks cotrunk
        why = (str(error).strip() or type(error).__name__).splitlines()[-1].rstrip(".")
        raise CotrunkError(f"{name} cannot run cotrunk ({why}): install the same version on all machines.") from None
    except RayError:  # Ray may not know yet that it is lost
        return None
    return seen


def device_of(found: Sequence[Seen], names: Sequence[str]) -> str:
    """Return the device that all machines have.

    Raises:
        CotrunkError: a machine lacks something, or they differ.
    """
    own = versions()
    for seen, name in zip(found, names, strict=True):
        if seen.error:
            raise CotrunkError(f"{name} ({seen.machine}) cannot take part: {seen.error}.")
        for package, version in seen.versions:
            if version != own[package]:
                raise CotrunkError(
                    f"{name} ({seen.machine}) has {package} {version}, and this machine {own[package]}: install the "
                    "same version on all machines."
                )
    devices = {seen.device.partition(":")[0]: name for seen, name in zip(found, names, strict=True)}
    if len(devices) > 1:
        some = " and ".join(f"{name} {device}" for device, name in devices.items())
        raise CotrunkError(f"The machines have different devices ({some}): give --device, or --gpus 1.")
    return found[0].device
