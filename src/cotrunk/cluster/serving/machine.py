"""Whether a machine can take part in the service: it finds the model, reaches the database, sees images and trunks."""

import platform
import secrets
from dataclasses import dataclass
from pathlib import Path

from ... import __version__
from ...errors import CotrunkError, first_line
from ...pipelines.source import Source
from ...service.api.server import check_data
from ...service.images import ImageFiles
from ...service.launch import WorkerSettings
from ...service.store import Store
from ...storage.urls import shown_place

NAME = f"img_{'0' * 24}.probe"  # no image has this id


@dataclass(frozen=True)
class Probe:
    """A file among the images, which every machine must see.

    Attributes:
        content: of the file.
        version: of cotrunk where it was written.
    """

    content: bytes
    version: str = __version__


def probe_in(settings: WorkerSettings) -> Probe:
    """Write a new probe among the images. It stays, because machines may join later.

    Raises:
        CotrunkError: they cannot be written.
    """
    probe = Probe(secrets.token_bytes(16))
    ImageFiles(settings.images).write(NAME, probe.content)
    return probe


def why_not(settings: WorkerSettings, probe: Probe) -> str | None:
    """Return why this machine cannot take part, as one sentence; None if it can."""
    here = platform.node()
    if probe.version != __version__:
        return f"The machine {here} has cotrunk {__version__} in place of {probe.version}: install the same version."
    try:
        Source(
            settings.model, **{name: settings.loading.get(name) for name in ("config", "revision", "variant")}
        ).find()
        check_data(Path(settings.data))
        Store(settings.database).close()
        if settings.trunk_folder is not None and settings.trunks != "off":
            from ...service.worker.cache import trunks_of  # torch, which a machine without shared trunks is spared

            trunks_of(settings).close()
        found = ImageFiles(settings.images).read(NAME)
    except CotrunkError as error:
        return f"The machine {here} cannot take part: {error}"
    except Exception as error:  # the packages of the file systems raise errors of their own
        return f"The machine {here} cannot take part: {type(error).__name__}: {first_line(error)}"
    if found != probe.content:
        return (
            f"The machine {here} does not see the images at {shown_place(settings.images)}: name a folder that all "
            "machines share, or a URL such as s3://BUCKET/images, with --images."
        )
    return None
