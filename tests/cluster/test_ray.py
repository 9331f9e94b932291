"""A Ray cluster of two nodes on this machine: painters, nodes and the driver are killed, and no image is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import ROUNDING, cotrunk, pixels, read
from simulated import POISON, SimulatedPainter

from cotrunk.cluster.connecting import Cluster, Place, connected, places_of
from cotrunk.cluster.loop import finish
from cotrunk.cluster.probe import probe
from cotrunk.cluster.setup import Setup
from cotrunk.cluster.watchdog import Watchdog
from cotrunk.cluster.waves import Wave, write_waves
from cotrunk.errors import CotrunkError
from cotrunk.runs.job import Job
from cotrunk.storage.files import StoredFiles

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")]
COLOURS, ANIMALS = ("red", "green", "blue", "violet"), ("fox", "tiger", "lion", "owl", "cat", "horse")
PROMPTS = [f"a {colour} {animal}" for animal in ANIMALS for colour in COLOURS]
OPTIONS = ("--steps", "4", "--share", "0.5", "--guidance", "3", "--max-group", "2", "--similarity", "0.5")
DRIVER = """
import sys
from simulated import PoisonedPainter
from cotrunk.cluster import run
run.Painter = PoisonedPainter
from cotrunk.cli.app import main
sys.argv = ["cotrunk", *sys.argv[1:]]
main()
"""
PATIENCE = 900.0  # seconds until the test fails: a machine under load starts processes slowly


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Return a cluster of two nodes, on each of which one painter has room."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    os.environ.setdefault("RAY_worker_niceness", "0")  # otherwise other work on this machine comes first
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # painters of the tests are in modules of the tests
    os.environ["FSSPEC_FILE_AUTO_MKDIR"] = "true"  # as in an object store, which has no folders
    node = {"num_cpus": 2, "resources": {"painter": 1}, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    nodes = Nodes(initialize_head=True, head_node_args=node)
    nodes.second = nodes.add_node(**node)
    yield nodes
    nodes.shutdown()
    del os.environ["FSSPEC_FILE_AUTO_MKDIR"]
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def wait_for(done: Callable[[], bool], process: "subprocess.Popen[str] | None" = None) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def lines(out: Path) -> list[dict[str, Any]]:
    file = out / "journal.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines() if line] if file.exists() else []


def painters(raylet: int) -> list[int]:
    """Return the ids of the processes of painters on a node."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title, parent = (
                (folder / "cmdline").read_bytes(),
                (folder / "stat").read_text().rpartition(")")[2].split()[1],
            )
        except (OSError, IndexError):
            continue
        if int(parent) == raylet and b"Painter" in title:
            found.append(int(folder.name))
    return found


def raylet_of(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


@pytest.fixture
def start(cluster: Any) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Return a function that starts a driver; it is killed at the end of the test."""
    started = list[subprocess.Popen[str]]()

    def begin(out: "str | Path", *options: str) -> "subprocess.Popen[str]":
        where = ("--out", str(out), "--ray", cluster.address, "--wave", "2")
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, "generate", *PROMPTS, *OPTIONS, *where, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        started.append(driver)
        return driver

    yield begin
    for driver in started:
        driver.kill()
        driver.communicate()


def test_painters_nodes_and_the_driver_are_killed_and_no_image_is_lost(
    cluster: Any, start: Callable[..., "subprocess.Popen[str]"], model: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    driver = start(out)
    wait_for(lambda: len(lines(out)) >= 1, driver)
    [painter] = painters(raylet_of(cluster.head_node))
    os.kill(painter, signal.SIGKILL)
    wait_for(lambda: len(lines(out)) >= 3, driver)
    os.kill(raylet_of(cluster.second), signal.SIGKILL)
    wait_for(lambda: len(lines(out)) >= 5, driver)
    driver.kill()
    driver.communicate()
    before = {
        path: path.stat().st_mtime_ns for line in lines(out) for path in [out / f"images/{line['images'][0]:05}.png"]
    }
    assert len(before) >= 5
    assert len({image for line in lines(out) for image in line["images"]}) < len(PROMPTS)

    driver = start(out, "--resume")
    _, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 3, said
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was finished is not painted again
    [record] = (out / "failed").iterdir()
    poisoned = json.loads(record.read_text())
    assert POISON in poisoned["prompts"]
    made = sorted(image for line in lines(out) for image in line["images"])
    assert made == sorted({*range(len(PROMPTS))} - {*poisoned["images"]})  # each once

    finished = cotrunk("generate", *PROMPTS, *OPTIONS, "--out", out, "--resume")
    assert finished.code == 0, finished.err
    assert cotrunk("generate", *PROMPTS, *OPTIONS, "--out", whole).code == 0
    reports = [{name: value for name, value in read(each).items() if name != "seconds"} for each in (whole, out)]
    assert reports[0] == reports[1]
    for path in sorted((whole / "images").iterdir()):
        difference = pixels(path).astype(int) - pixels(out / "images" / path.name)
        assert np.abs(difference).max() <= ROUNDING, path.name
    names = sorted(path.name for path in (out / "images").iterdir())
    assert names == [f"{i:05}.png" for i in range(len(PROMPTS))]


def test_a_run_at_a_url_is_resumed_after_its_driver_was_killed(
    start: Callable[..., "subprocess.Popen[str]"], model: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("fsspec")
    url = f"dir::file://{tmp_path}/bucket"  # a file system of fsspec that processes share, and that is not a folder
    files = StoredFiles(url)
    assert files.folder is None
    driver = start(url)
    wait_for(lambda: len(files.names("manifest")) >= 3, driver)
    driver.kill()
    driver.communicate()
    made = {name: files.get(name) for name in files.names("images")}
    driver = start(url, "--resume")
    _, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 3, said
    assert {name: files.get(name) for name in made} == made
    copy = tmp_path / "copy"
    for name in ("plan.json", "journal.jsonl", "run.json", "index.html", *files.names("images")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(files.get(name) or b"")
    assert files.names() == ["failed", "images", "index.html", "journal.jsonl", "plan.json", "run.json"]
    [failure] = read(copy)["failures"]
    assert json.loads(files.get(failure["file"]) or b"")["images"] == failure["images"]
    done = sorted(image for line in lines(copy) for image in line["images"])
    assert done == sorted({*range(len(PROMPTS))} - {*failure["images"]})  # each once
    assert (copy / "index.html").read_text().count("<img ") == len(done)
    finished = cotrunk("generate", *PROMPTS, *OPTIONS, "--out", copy, "--resume")
    assert finished.code == 0, finished.err


def test_a_cluster_is_looked_at_before_a_run_and_paints_waves(cluster: Any, tmp_path: Path) -> None:
    from cotrunk.cluster.passes import Pool, RayPass

    (tmp_path / "run").mkdir()
    setup = Setup(Job(("a cat",)), str(tmp_path / "run"), str(tmp_path))
    with connected(Cluster(cluster.address)):
        gpus, takes_resource, places = places_of(Cluster(cluster.address))
        assert (gpus, takes_resource) == (0.0, True)
        assert {place.painters for place in places} == {1}
        looked: list[Place] = places[:1]  # the other node may be dead
        assert probe(setup, looked, gpus, takes_resource) == "cpu"
        assert not any((tmp_path / "run").iterdir())
        with pytest.raises(
            CotrunkError, match=r"cannot take part: it does not see memory://nowhere: use an --out that"
        ):
            probe(Setup(Job(("a cat",)), "memory://nowhere", str(tmp_path)), looked, gpus, takes_resource)
        lost = Setup(Job(("a cat",), model=str(tmp_path / "model")), str(tmp_path / "run"), str(tmp_path))
        with pytest.raises(CotrunkError, match=r"cannot take part: .*model"):
            probe(lost, looked, gpus, takes_resource)

        waves = [Wave(f"wave{i}", 10 - i, 1) for i in range(6)]
        [(file, _)] = write_waves(waves, StoredFiles(str(tmp_path)))
        order, machines = list[str](), set[str]()
        arguments = {"place": str(tmp_path / "run"), "rows_per_second": 50.0}
        pool = Pool(1, 0.0, {"painter": 1})
        failed = finish(
            waves,
            lambda left: RayPass([file], SimulatedPainter, arguments, pool),
            StoredFiles(str(tmp_path / "run")),
            Watchdog(time.monotonic),
            on_finished=lambda found: (
                order.extend(one.wave for one in found),
                machines.update(one.machine for one in found),
            ),
        )
        assert failed == []
        assert {machine.split()[-1] for machine in machines} == {"MainThread"}  # in another one, torch is slower
        assert order == [wave.id for wave in waves]
