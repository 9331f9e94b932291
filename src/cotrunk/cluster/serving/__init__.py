"""The service as an application of Ray Serve, for more images than one device can generate.

Needs the extras `serve` and `ray`.

Three deployments share the database of the service, which stays the only record of what was accepted and done:

- `ingress.py`: the API, as `cotrunk serve` runs it. It records requests, and answers them from the database.
- `dispatcher.py`: embeds waiting prompts on the CPU, finds the route of each image (`routes.py`), and hands the images
  of a route to one Painter. Ray's `ConsistentHashRouter` chooses which.
- `painter.py`: one replica per device. It runs the worker of the service in a process of its own.

`application.py` puts them together, and `launch.py` is `cotrunk serve --ray`. Only these two import Ray.
"""

from typing import TYPE_CHECKING

from .arguments import Arguments

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["Arguments", "app"]


def app(arguments: Arguments) -> "Application":
    """Return the application, for `serve run cotrunk.cluster.serving:app` and Serve's configuration files.

    Args:
        arguments: what is served, and how.

    Raises:
        CotrunkError: a value is wrong, or a package is missing.
    """
    from .application import application

    return application(arguments.serving(), arguments.scale())
