"""The three deployments as one application of Ray Serve."""

from dataclasses import replace

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from ...service.api.server import Serving
from ..scale import Scale
from .dispatcher import Dispatcher
from .ingress import Ingress
from .machine import probe_in
from .painter import Painter

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
MANY = (
    100_000  # calls at once: requests wait in the database, not in Ray, and a refused call would go to another replica
)
STOP_SECONDS = 60.0  # for the running call of a worker


def has_gpus(asked: Serving) -> bool:
    """Return whether the cluster has GPUs that the model may use."""
    return asked.worker.loading.get("device") != "cpu" and ray.cluster_resources().get("GPU", 0) > 0


def application(asked: Serving, scale: Scale) -> Application:
    """Return the application.

    Args:
        asked: what is served, and how.
        scale: how much of the cluster it takes.

    Raises:
        CotrunkError: the images cannot be written.
    """
    asked = replace(asked, worker=replace(asked.worker, is_routed=True))
    painters = serve.deployment(Painter).options(
        num_replicas=scale.replicas,
        ray_actor_options=scale.actor(has_gpus=has_gpus(asked)),
        max_ongoing_requests=MANY,
        graceful_shutdown_timeout_s=STOP_SECONDS,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
    )
    small = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": MANY}
    dispatcher = serve.deployment(Dispatcher).options(**small)
    ingress = serve.deployment(serve.ingress()(Ingress)).options(**small)
    probe = probe_in(asked.worker)
    return ingress.bind(asked, dispatcher.bind(asked.worker, painters.bind(asked.worker, probe)))
