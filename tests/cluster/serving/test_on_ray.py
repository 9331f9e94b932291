"""The service on Ray on this machine: two replicas, of which one is killed."""

import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import served

from cotrunk.service.store import Store

STYLES = ("noto", "twemoji", "flat", "glossy")
PROMPTS = [f"{thing}, {style} style" for thing in ("red apple", "green pear", "tiger", "guitar") for style in STYLES]


def children(process: int) -> list[int]:
    """Return all processes that a process has started, and those that these have started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(entry.parent.name))
    found = [process]
    for each in found:
        found += parents.get(each, [])
    return found[1:]


def painters(process: int) -> list[int]:
    """Return the processes of the replicas that generate."""
    name = b"ray::ServeReplica:cotrunk:Painter"
    return [each for each in children(process) if Path(f"/proc/{each}/cmdline").read_bytes().startswith(name)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_every_image_is_done_once_although_a_replica_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    options = ("--ray", "local", "--replicas", 2, "--no-skip", "--trunks", "off", "--similarity", 0.6)
    with served.process(tmp_path, *options) as (address, process):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

        def ask(prompt: str) -> str:
            answer = client.images.generate(prompt=prompt, size="64x64", extra_body={"steps": 8, "wait_ms": 300})
            assert answer.data is not None
            return str(answer.data[0].id)  # type: ignore[attr-defined]

        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            asked = [pool.submit(ask, prompt) for prompt in PROMPTS]
            time.sleep(1)
            killed, _ = painters(process.pid)
            os.kill(killed, signal.SIGKILL)
            images = [each.result(timeout=120) for each in asked]
        assert len({*images}) == len(PROMPTS)
    store = Store(f"sqlite:///{tmp_path}/service.db")
    done = Counter(event.data["image"] for event in store.all_events(0) if event.kind == "done")
    assert done == Counter(images)
    rows = [store.image("local", image) for image in images]
    assert [row.state for row in rows if row is not None] == ["done"] * len(PROMPTS)
    assert store.queue().images == store.queue().running_images == 0
    groups = Counter(row.group for row in rows if row is not None)
    assert len(groups) < len(PROMPTS)  # similar prompts met
    assert {f"{image}.png" for image in images} <= {path.name for path in (tmp_path / "images").iterdir()}
    store.close()
    assert not [each for each in children(process.pid) if Path(f"/proc/{each}").exists()]
