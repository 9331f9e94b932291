"""Routes: similar prompts of one bucket have one, and Ray's router moves only the routes of a replica that is gone."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotrunk.cluster.serving import routes as module
from cotrunk.cluster.serving.routes import Routes, as_text, centroids_of, from_text, nearest
from cotrunk.service.store import ImageRequest, ImageRow

FIXED = ("north", "east", "up")
AXES = dict(zip(FIXED, np.eye(3, dtype=np.float32), strict=True))


def vector(prompt: str) -> np.ndarray:
    """Return the vector of a prompt: near an axis that its first word names, in a direction of its own."""
    own = np.random.default_rng(int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4])).normal(size=3)
    found = AXES[prompt.split()[0]] + 0.2 * own / np.linalg.norm(own)
    return (found / np.linalg.norm(found)).astype(np.float32)


def encode(prompts: list[str]) -> np.ndarray:
    return np.stack([AXES[prompt] if prompt in AXES else vector(prompt) for prompt in prompts])


def row(prompt: str, bucket: str = "b", group: str | None = None, number: int = 0) -> ImageRow:
    request = ImageRequest(prompt, group=group)
    name = f"img_{hashlib.sha256(f'{prompt} {number}'.encode()).hexdigest()[:24]}"
    return ImageRow(name, "job", number, "ann", bucket, request, "waiting", 0, 0.0, None, None, None)


class Settled:
    """What `Store.settled` does."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def __call__(self, name: str, value: str | None) -> str | None:
        if value is not None:
            self.values.setdefault(name, value)
        return self.values.get(name)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Settled:
    monkeypatch.setattr(module, "CELLS", 3)
    monkeypatch.setattr(module, "STAGES", (6, 12))
    return Settled()


@given(st.lists(st.tuples(st.sampled_from(FIXED), st.integers(0, 99), st.sampled_from("ab")), min_size=1, max_size=9))
def test_images_of_one_bucket_with_similar_prompts_have_one_route(asked: list[tuple[str, int, str]]) -> None:
    routes = Routes(encode, FIXED, Settled(), "x")
    found = routes.of([row(f"{kind} {number}", bucket) for kind, number, bucket in asked])
    names = [(kind, bucket) for kind, _, bucket in asked]
    assert len({*found}) == len({*names}) == len({*zip(found, names, strict=True)})
    again = [routes.of([row(f"{kind} {number}", bucket)])[0] for kind, number, bucket in asked]
    assert again == found  # however many of them wait at once


def test_images_that_share_with_none_are_spread(settled: Settled) -> None:
    rows = [row("north 1", group="alone", number=number) for number in range(3)]
    assert Routes(encode, FIXED, settled, "x").of(rows) == [each.id for each in rows]
    assert Routes(None, FIXED, settled, "x").of([row("north 1")]) == [row("north 1").id]
    mixed = Routes(encode, FIXED, settled, "x").of([row("north 1"), rows[0]])
    assert mixed == ["b-0", rows[0].id]


def test_centroids_are_learnt_once_and_kept(settled: Settled) -> None:
    routes = Routes(encode, ["north"], settled, "x")
    some = [row(f"{kind} {number}") for kind in FIXED for number in range(2)]
    assert {*routes.of(some[:5])} == {"b-0"}  # there is only one centroid yet
    assert settled.values == {}
    learnt = routes.of(some)
    assert len({*learnt}) == 3
    assert len(settled.values) == 1
    restarted = Routes(encode, ["north"], settled, "x")
    assert restarted.of(some) == learnt
    more = [row(f"{kind} {number}") for kind in FIXED for number in range(9)]
    restarted.of(more)
    assert len(settled.values) == 2
    assert Routes(encode, ["north"], settled, "x").of(more) == restarted.of(more)
    assert {*Routes(encode, ["north"], settled, "another encoder").of(some[:5])} == {"b-0"}


def test_two_dispatchers_use_the_centroids_that_came_first(settled: Settled) -> None:
    one, two = (Routes(encode, FIXED, settled, "x") for _ in range(2))
    one.of([row(f"{kind} {number}") for kind in FIXED for number in range(2)])
    two.of([row(f"{kind} {number}") for kind in FIXED for number in range(50, 52)])
    some = [row(f"{kind} 7") for kind in FIXED]
    assert one.of(some) == two.of(some)


def test_centroids_lie_in_the_clusters_whatever_their_order() -> None:
    vectors = np.stack([vector(f"{kind} {number}") for kind in FIXED for number in range(20)])
    found = centroids_of(vectors, 3)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    cells = nearest(vectors, found)
    assert [len({*cells[i : i + 20]}) for i in (0, 20, 40)] == [1, 1, 1]
    assert len({*cells}) == 3
    shuffled = np.random.default_rng(0).permutation(vectors)
    assert np.allclose(found, centroids_of(shuffled, 3), atol=1e-6)
    assert len(centroids_of(vectors[:2], 3)) == 2


def test_centroids_survive_as_text() -> None:
    found = encode(["north 1", "east 2"])
    assert np.abs(from_text(as_text(found)) - found).max() < 1e-3


@given(st.integers(2, 8), st.integers(0, 10_000))
def test_only_the_routes_of_a_replica_that_is_gone_move(count: int, seed: int) -> None:
    """This pins what the service relies on: Ray calls its router experimental."""
    pytest.importorskip("ray")
    from ray.serve._private.common import DeploymentID, ReplicaID
    from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

    def ring(replicas: list[ReplicaID]) -> ConsistentHashRouter:
        router = object.__new__(ConsistentHashRouter)
        router._num_virtual_nodes, router._num_fallback_replicas = 100, 2
        router._deployment_id = DeploymentID("Painter")
        router._rebuild_ring(frozenset(replicas))
        return router

    replicas = [ReplicaID(f"{seed}-{number}", DeploymentID("Painter")) for number in range(count)]
    before, after = ring(replicas), ring(replicas[1:])
    for cell in range(64):
        first = before._lookup_ranked_replicas(f"bucket-{cell}")[0]
        if first != replicas[0]:
            assert after._lookup_ranked_replicas(f"bucket-{cell}")[0] == first
