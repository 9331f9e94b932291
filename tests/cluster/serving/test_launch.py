"""`cotrunk serve --ray`: what cannot work is refused in one sentence, before anything is started."""

import builtins
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import assert_refused, cotrunk

from cotrunk.cluster.scale import Scale
from cotrunk.cluster.serving import Arguments
from cotrunk.cluster.serving.machine import probe_in, why_not
from cotrunk.errors import CotrunkError
from cotrunk.service.api.server import Serving
from cotrunk.settings import Settings


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("COTRUNK_DATABASE", raising=False)
    return tmp_path / "data"


@pytest.fixture
def serving(data: Path) -> Serving:
    return Arguments(data=str(data)).serving()


def test_a_number_of_replicas_that_is_not_one(data: Path) -> None:
    assert_refused(cotrunk("serve", "--ray", "local", "--replicas", 0, "--data", data), "--replicas 0")
    assert_refused(cotrunk("serve", "--ray", "local", "--gpus", -1, "--data", data), "--gpus -1")
    assert not data.exists()


@pytest.mark.parametrize("option", ["--replicas", "--gpus", "--cpus"])
def test_replicas_without_ray(data: Path, option: str) -> None:
    assert_refused(cotrunk("serve", option, 1, "--data", data), f"{option} needs --ray")


def test_ray_is_not_installed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    own = builtins.__import__

    def without_ray(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return own(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    assert_refused(cotrunk("serve", "--ray", "local", "--data", data), "ray is not installed", "pip install")
    assert not data.exists()


@pytest.mark.parametrize("address", ["nowhere", "ray://127.0.0.1:1", "127.0.0.1:x"])
def test_an_address_that_is_not_one_of_a_cluster(data: Path, address: str) -> None:
    pytest.importorskip("ray.serve")
    assert_refused(
        cotrunk("serve", "--ray", address, "--data", data), address, "--ray auto" if "//" in address else "HOST:PORT"
    )


def test_an_address_where_nothing_answers(data: Path) -> None:
    pytest.importorskip("ray.serve")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    assert_refused(
        cotrunk("serve", "--ray", address, "--data", data), f"The Ray cluster at {address} cannot be reached"
    )


def test_what_one_machine_refuses_is_refused_before_ray_starts(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.serve")
    from cotrunk.cluster.serving import launch

    @contextmanager
    def connected(cluster: object) -> Iterator[None]:
        pytest.fail("Ray was started")
        yield

    monkeypatch.setattr(launch, "connected", connected)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    on_ray = ("serve", "--ray", "local", "--data", data)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(cotrunk(*on_ray, "--port", port), f"port {port}", "in use")
    assert_refused(cotrunk(*on_ray, "--model", "no/model"), "no/model")
    assert_refused(cotrunk(*on_ray, "--host", "0.0.0.0"), "Without keys", "cotrunk keys add")


def nodes(*machines: str) -> list[dict[str, Any]]:
    return [
        {"Alive": True, "NodeManagerHostname": name, "NodeID": name, "Resources": {"CPU": 2.0}} for name in machines
    ]


def test_a_cluster_that_cannot_run_the_service(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from cotrunk.cluster.serving import launch

    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(launch, "_asked_everywhere", lambda *_: [None, "The machine b is tired."])
    monkeypatch.setattr(ray, "nodes", lambda: nodes("a", "b"))
    with pytest.raises(CotrunkError, match=r"2 machines, and SQLite works on one only: .*--database postgresql://"):
        launch.check_cluster(serving, Scale())
    elsewhere = replace(serving, worker=replace(serving.worker, database="postgresql://x@y/z"))
    with pytest.raises(CotrunkError, match="The machine b is tired"):
        launch.check_cluster(elsewhere, Scale())
    monkeypatch.setattr(ray, "nodes", lambda: nodes("a", "a"))
    with pytest.raises(CotrunkError, match="--replicas 5 takes 5 of the cluster's CPUs, and it has 4: use a smaller"):
        launch.check_cluster(serving, Scale(5))
    with pytest.raises(CotrunkError, match="--replicas 1 takes 1 of the cluster's GPUs, and it has 0"):
        launch.check_cluster(serving, Scale(1, gpus=1))
    monkeypatch.setattr(launch, "_asked_everywhere", lambda *_: [None, None])
    launch.check_cluster(serving, Scale(4))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RuntimeError("Deploying failed\n  x.CotrunkError: The LoRA is wrong.\n"), "^The LoRA is wrong.$"),
        (TimeoutError("too slow\nmore"), "^Ray Serve does not start the service: TimeoutError, too slow"),
    ],
)
def test_an_application_that_does_not_start(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    serve = pytest.importorskip("ray.serve")
    from cotrunk.cluster.serving import application, launch

    def start(**_: object) -> None:
        raise raised

    monkeypatch.setattr(serve, "start", start)
    monkeypatch.setattr(serve, "delete", lambda name: None)
    monkeypatch.setattr(application, "has_gpus", lambda asked: False)
    with pytest.raises(CotrunkError, match=said) as refused:
        launch._run(serving, Scale())
    assert "\n" not in str(refused.value)


def test_a_machine_that_does_not_see_the_images(serving: Serving, tmp_path: Path) -> None:
    probe = probe_in(serving.worker)
    assert why_not(serving.worker, probe) is None
    elsewhere = replace(serving.worker, images=str(tmp_path / "elsewhere"))
    assert "does not see the images" in (why_not(elsewhere, probe) or "")
    assert "does not see" in (why_not(serving.worker, replace(probe, content=b"other")) or "")
    assert "install the same version" in (why_not(serving.worker, replace(probe, version="0")) or "")
    assert "no-such-model" in (why_not(replace(serving.worker, model="./no-such-model"), probe) or "")


def test_trunks_that_machines_share_need_postgresql(data: Path) -> None:
    serving = Arguments(data=str(data), trunk_folder="memory://bucket/trunks").serving()
    reason = why_not(serving.worker, probe_in(serving.worker)) or ""
    assert "is on one machine, and several share these trunks: name a database of PostgreSQL" in reason
    for way in ((), ("--ray", "local")):
        refused = cotrunk("serve", *way, "--data", data, "--trunk-folder", "memory://bucket/trunks")
        assert_refused(refused, "--trunk-folder shares trunks among machines")
    assert_refused(cotrunk("serve", "--data", data, "--trunk-folder", "nothing://x"), "with --trunk-folder")
    assert why_not(replace(serving.worker, trunks="off"), probe_in(serving.worker)) is None


@pytest.mark.slow
def test_a_machine_that_does_not_see_the_trunks(data: Path, tmp_path: Path, postgresql: str) -> None:
    from databases import new_database

    shared = Arguments(data=str(data), database=new_database(postgresql), trunk_folder=str(tmp_path / "shared"))
    worker = shared.serving().worker
    probe = probe_in(worker)
    assert why_not(worker, probe) is None
    reason = why_not(replace(worker, trunk_folder=str(tmp_path / "own")), probe) or ""
    assert "name the folder or URL that all machines share" in reason
    assert why_not(worker, probe) is None


def test_what_a_painter_takes() -> None:
    assert Scale().actor(has_gpus=False) == {"num_cpus": 1, "num_gpus": 0}
    assert Scale().actor(has_gpus=True) == {"num_cpus": 0, "num_gpus": 1}
    assert Scale(gpus=0.5, cpus=2).actor(has_gpus=True) == {"num_cpus": 2, "num_gpus": 0.5}
    assert Scale(gpus=0).actor(has_gpus=True) == {"num_cpus": 1, "num_gpus": 0}
    with pytest.raises(CotrunkError, match="--replicas"):
        Scale(0)


def test_the_arguments_of_a_configuration_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTRUNK_DATABASE", "postgresql://a@b/c")
    found = Arguments(data=str(tmp_path), settings={"steps": 7}, limits={"n": 3}, replicas=2).serving()
    assert found.worker.database == "postgresql://a@b/c"
    assert found.worker.images == str(tmp_path / "images")
    assert found.limits.n == 3
    assert Settings.from_json(found.worker.settings) == Settings(steps=7)
    with pytest.raises(CotrunkError, match=r"limits: .*'colour'"):
        Arguments(limits={"colour": 1}).serving()
    with pytest.raises(ValueError, match="Extra inputs"):
        Arguments.model_validate({"modle": "mini"})


def test_the_application_has_one_builder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    from cotrunk.cluster.serving import app

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 4.0})
    ingress = app(Arguments(data=str(data), replicas=3))._bound_deployment
    dispatcher = ingress.init_args[1]._bound_deployment
    painters = dispatcher.init_args[1]._bound_deployment
    assert (ingress.name, dispatcher.name, painters.name) == ("Ingress", "Dispatcher", "Painter")
    assert painters.num_replicas == 3
    assert painters.ray_actor_options["num_gpus"] == 1
    assert painters.init_args[0].is_routed
    router = painters._deployment_config.request_router_config
    assert router.get_request_router_class().__name__ == "ConsistentHashRouter"
