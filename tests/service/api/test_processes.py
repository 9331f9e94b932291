"""`cotrunk serve` with its real worker: it survives the worker's death, and leaves no process behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from served import process, wait_until_ready


def children(number: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(number)], capture_output=True, text=True)
    return [int(each) for each in re.findall(r"\d+", found.stdout)]


def is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(number: int) -> None:
    until = time.monotonic() + 90
    while is_running(number):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_a_job_survives_the_worker_and_the_service_stops_in_order(tmp_path: Path) -> None:
    with process(tmp_path / "data") as (address, service):
        body = {"prompts": ["red apple, noto style", "green apple, noto style"], "steps": 20, "seed": 1}
        job = httpx2.post(f"{address}/v1/jobs", json=body).json()["id"]
        (worker,) = children(service.pid)
        time.sleep(0.5)
        os.kill(worker, signal.SIGKILL)
        assert httpx2.get(f"{address}/healthz").status_code == 200
        while httpx2.get(f"{address}/readyz").json()["worker_restarts"] < 1:
            time.sleep(0.05)
        assert wait_until_ready(address)["worker_restarts"] == 1
        httpx2.get(f"{address}/v1/jobs/{job}/events", timeout=120)
        assert httpx2.get(f"{address}/v1/jobs/{job}").json()["counts"]["done"] == 2
        (worker,) = children(service.pid)
        service.send_signal(signal.SIGTERM)
        assert service.wait(90) == 0
        assert not is_running(worker)


@pytest.mark.slow
def test_a_worker_whose_service_is_killed_ends(tmp_path: Path) -> None:
    with process(tmp_path / "data") as (_, service):
        (worker,) = children(service.pid)
        service.kill()
        service.wait()
        wait_until_gone(worker)


@pytest.mark.slow
def test_settings_that_the_worker_refuses_end_the_service(tmp_path: Path) -> None:
    options = ["--port", "0", "--data", str(tmp_path / "data"), "--scheduler", "nothing"]
    ended = subprocess.run([sys.executable, "-m", "cotrunk", "serve", *options], capture_output=True, text=True)
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "nothing" in last
