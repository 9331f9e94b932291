"""What can be wrong with a cluster is said in one sentence, before anything is generated or written."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from command import assert_refused, cotrunk, no_model
from PIL import Image

from cotrunk.cluster import connecting, probe
from cotrunk.cluster.connecting import Cluster, places_of
from cotrunk.cluster.probe import Seen, look
from cotrunk.cluster.run import setup_of
from cotrunk.cluster.setup import Setup
from cotrunk.errors import CotrunkError
from cotrunk.pipelines.weighted_lora import WeightedLora
from cotrunk.planning.prompt_row import PromptRow
from cotrunk.runs.input_images import digests_of
from cotrunk.runs.job import Job
from cotrunk.storage.files import StoredFiles

VERSIONS = tuple(probe.versions().items())


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_model(monkeypatch)
    monkeypatch.setattr(connecting, "find_spec", lambda name: None)
    out = tmp_path / "run"
    outcome = cotrunk("generate", "a cat", "--out", out, "--ray", "local")
    assert_refused(outcome, "A run on a cluster needs ray: pip install 'cotrunk[ray]'.")
    assert not out.exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "The Ray cluster at 127.0.0.1:1 cannot be reached (Connection refused): check the address"),
        ("nowhere.invalid:6379", "The Ray cluster at nowhere.invalid:6379 cannot be reached"),
        ("head", "'head' is not the address of a Ray cluster: use local, auto or HOST:PORT."),
        ("head:0", "'head:0' is not the address of a Ray cluster"),
        (":6379", "':6379' is not the address of a Ray cluster"),
        ("ray://head:10001", "ray://head:10001 is an address for Ray Client"),
        (" ", "The address of the Ray cluster ' ' is empty"),
    ],
)
def test_a_cluster_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, said: str
) -> None:
    pytest.importorskip("ray")
    no_model(monkeypatch)
    out = tmp_path / "run"
    assert_refused(cotrunk("generate", "a cat", "--out", out, "--ray", address), said)
    assert not out.exists()


def looked(tmp_path: Path, model: str = "mini", place: str | None = None, token: str = "token") -> Seen:
    """Let a worker look, after the driver wrote its file."""
    StoredFiles(str(tmp_path)).put(probe.NAME, b"token")
    return look(
        Setup(Job(("a cat",), model=model, device="cpu"), place or str(tmp_path), str(tmp_path)), token, "answer"
    )


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the process in its folder, with its threads."""
    monkeypatch.setattr(probe, "prepared_here", lambda setup: setup.job)


def test_what_a_worker_finds(kept: None, tmp_path: Path) -> None:
    seen = looked(tmp_path)
    assert (seen.device, seen.versions, seen.error) == ("cpu", VERSIONS, "")
    assert (tmp_path / "answer").read_bytes() == b"token"
    (tmp_path / "answer").unlink()
    other = tmp_path / "other"
    assert looked(tmp_path, place=str(other)).error == f"it does not see {other}: use an --out that all machines share"
    assert not other.exists()
    assert "does not see" in looked(tmp_path, token="that of another run").error
    assert not (tmp_path / "answer").exists()
    assert str(tmp_path / "none") in looked(tmp_path, model=str(tmp_path / "none")).error


def test_a_worker_looks_for_all_that_a_job_names(kept: None, tmp_path: Path) -> None:
    StoredFiles(str(tmp_path)).put(probe.NAME, b"token")
    image = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    lost, job = str(tmp_path / "lost"), Job(("a cat",), device="cpu", image=str(image))
    for change, said in (
        ({"lora": (WeightedLora(f"{lost}.safetensors"),)}, "There is no LoRA"),
        ({"prompts": (PromptRow("a cat", lora=f"{lost}.safetensors"),)}, "There is no LoRA"),
        ({"controlnet": (lost,)}, "ControlNet"),
        ({"digests": {lost: "0" * 16}}, f"{lost} of the run cannot be used: there is no such file"),
        ({"digests": {str(image): "0" * 16}}, f"{image} is another one than before"),
    ):
        seen = look(Setup(replace(job, **change), str(tmp_path), str(tmp_path)), "token", "answer")  # type: ignore[arg-type]
        assert said in seen.error, seen.error
    good = replace(job, digests=digests_of([("prompt 0", str(image))]))
    assert look(Setup(good, str(tmp_path), str(tmp_path)), "token", "answer").error == ""


@pytest.mark.parametrize(
    ("module", "loaded"), [("passes", []), pytest.param("probe", ["torch"], marks=pytest.mark.slow)]
)
def test_processes_that_do_not_paint_start_without_what_painters_load(module: str, loaded: list[str]) -> None:
    code = (
        f"import sys, cotrunk.cluster.{module}; print([name for name in ('torch', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{loaded}"


def test_workers_that_cannot_take_part() -> None:
    good = Seen("one", "cuda", VERSIONS)
    names = ["10.0.0.1", "10.0.0.2"]
    assert probe.device_of([good, good], names) == "cuda"
    with pytest.raises(CotrunkError, match=r"^10\.0\.0\.2 \(two\) cannot take part: it has no model\.$"):
        probe.device_of([good, Seen("two", error="it has no model")], names)
    old = Seen("two", "cuda", (("cotrunk", "0.0.1"), *VERSIONS[1:]))
    with pytest.raises(CotrunkError, match=r"10\.0\.0\.2 \(two\) has cotrunk 0\.0\.1, and this machine .*: install"):
        probe.device_of([good, old], names)
    with pytest.raises(CotrunkError, match=r"different devices \(10\.0\.0\.1 cuda and 10\.0\.0\.2 cpu\)"):
        probe.device_of([good, Seen("two", "cpu", VERSIONS)], names)


def test_a_machine_that_is_lost_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    good = Seen("one", "cpu", VERSIONS)
    lost = ray.exceptions.TaskUnschedulableError("the node does not exist any more")
    broken = ray.exceptions.RayTaskError(
        "look", "ray::look()\nModuleNotFoundError: No module named 'cotrunk'.", KeyError()
    )

    class Remote:
        def __init__(self, **how: Any) -> None:
            pass

        def __call__(self, function: Any) -> "Remote":
            return self

        def options(self, **how: Any) -> "Remote":
            return self

        def remote(self, setup: Setup, token: str, answer: str) -> object:
            StoredFiles(setup.place).put(answer, token.encode())
            asked.append(answer)
            return outcomes[len(asked) - 1]

    def get(outcome: object) -> object:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(ray, "remote", Remote)
    monkeypatch.setattr(ray, "wait", lambda tasks, **how: (tasks, []))
    monkeypatch.setattr(ray, "get", get)
    setup = Setup(Job(("a cat",)), str(tmp_path), str(tmp_path))
    places = [connecting.Place("ab" * 28, f"10.0.0.{i}", 1) for i in (1, 2)]
    asked, outcomes = list[str](), [good, lost]
    assert probe.probe(setup, places, 0, False) == "cpu"
    assert not any(tmp_path.iterdir())
    asked, outcomes = [], [lost, lost]
    with pytest.raises(CotrunkError, match=r"10\.0\.0\.1 and 10\.0\.0\.2 went away"):
        probe.probe(setup, places, 0, False)
    asked, outcomes = [], [good, broken]
    with pytest.raises(
        CotrunkError, match=r"10\.0\.0\.2 cannot run cotrunk \(ModuleNotFoundError: .*\): install the same"
    ):
        probe.probe(setup, places, 0, False)


def nodes(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float]) -> None:
    found = [
        {"Alive": True, "NodeID": f"{i}", "NodeManagerAddress": f"10.0.0.{i}", "Resources": own}
        for i, own in enumerate(resources)
    ]
    fake: Any = SimpleNamespace(nodes=lambda: [*found, {"Alive": False}])
    monkeypatch.setitem(sys.modules, "ray", fake)


def test_painters_go_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def room(cluster: Cluster) -> tuple[float, bool, list[tuple[str, int]]]:
        gpus, takes_resource, places = places_of(cluster)
        return gpus, takes_resource, [(place.name, place.painters) for place in places]

    nodes(monkeypatch, {"CPU": 0}, {"CPU": 8, "GPU": 4}, {"CPU": 8})
    assert room(Cluster()) == (1.0, False, [("10.0.0.1", 4)])
    assert room(Cluster(gpus=0.5)) == (0.5, False, [("10.0.0.1", 8)])
    assert room(Cluster(gpus=0)) == (0.0, False, [("10.0.0.1", 1), ("10.0.0.2", 1)])
    nodes(monkeypatch, {"CPU": 2}, {"CPU": 2, "painter": 2})
    assert room(Cluster()) == (0.0, True, [("10.0.0.1", 2)])
    nodes(monkeypatch, {"CPU": 0})
    with pytest.raises(
        CotrunkError, match=r"No machine of the cluster \(it has 1\) has room for a painter: .*--painters N"
    ):
        room(Cluster())
    with pytest.raises(CotrunkError, match=r"with 1 GPU"):
        room(Cluster(gpus=1))
    assert room(Cluster(painters=4, gpus=1)) == (1.0, False, [])  # machines that an autoscaler starts


def test_examples_of_a_job_say_what_a_painter_must_find(tmp_path: Path) -> None:
    rows = [PromptRow("a cat"), PromptRow("a dog", lora="style"), PromptRow("an owl", image="owl.png")]
    job = Job(
        (*rows, *(PromptRow(f"fox {i}", image=f"{i}.png") for i in range(100))), digests={"owl.png": "1", "99.png": "2"}
    )
    setup = setup_of(job, str(tmp_path))
    assert [row.prompt for row in setup.job.prompts[:3]] == ["a dog", "an owl", "fox 0"]
    assert len(setup.job.prompts) == 21
    assert setup.job.digests == {"owl.png": "1"}
    assert setup_of(Job(("a cat", "a dog")), "run").job.texts == ["a cat"]


@pytest.mark.parametrize(("device", "gpus", "used"), [("auto", None, "auto"), ("auto", 0, "cpu"), ("mps", 0, "mps")])
def test_painters_without_gpus_use_the_cpu(device: str, gpus: float | None, used: str) -> None:
    assert setup_of(Job(("a cat",), device=device), "run", gpus).job.device == used


@pytest.mark.skipif(os.name != "posix", reason="priorities of POSIX")
def test_the_processes_of_ray_give_way_to_painters() -> None:
    def started(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *arguments])

    helper, painter = started("log_monitor.py"), started("default_worker.py")
    try:
        found = [psutil.Process(each.pid) for each in (helper, painter)]
        assert {*found} <= connecting._children()
        connecting._let_painters_go_first(found)
        assert [each.nice() for each in found] == [19, psutil.Process().nice()]
    finally:
        for each in (helper, painter):
            each.kill()
            each.wait()
