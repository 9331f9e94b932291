"""Takes batches from state to state (it validates files, and writes outputs), and removes what was kept long enough.

Each step is one transaction, and what is to be done is found in the database. So a batch goes on after a crash.
"""

import asyncio
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..retention import sweep
from ..store import Batch
from .batch_lines import WrongBatchError, outputs_of, requests_of
from .errors import described
from .state import Service, in_thread

SECONDS = 1.0  # between two looks
SWEEP_SECONDS, DAY = 3600.0, 86_400.0
log = logging.getLogger("cotrunk.service")


class Clerk:
    """Works on the batches of all owners.

    Args:
        service: the state of the process.
        keep_days: jobs, images and files are removed so many days after they have ended; 0 keeps them.
    """

    def __init__(self, service: Service, keep_days: float = 0) -> None:
        self._service, self._keep_days, self._swept = service, keep_days, -math.inf
        self._new = asyncio.Event()
        self._broken = set[str]()  # batches with an error that the log has

    def look(self) -> None:
        """Look at once: there is a new batch."""
        self._new.set()

    async def run(self) -> None:
        """Work until the task is cancelled. A database that does not answer is asked again."""
        while True:
            for what, act in (("batches", self._work), ("removal", self._sweep)):
                try:
                    await in_thread(act)
                except Exception as error:  # a database or a storage that does not answer is asked again
                    log.warning("%s: %s", what, described(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(SECONDS):  # `wait_for` of Python 3.11 may swallow a cancellation
                    await self._new.wait()
            self._new.clear()

    def _work(self) -> None:
        store = self._service.store
        store.expire_batches()
        for batch in store.validating_batches():
            with self._alone(batch):
                self._validate(batch)
        if store.feed(self._service.limits.queued_rows, self._service.owner_rows):
            self._service.link.send("work")
        for batch in store.finalizing_batches():
            with self._alone(batch):
                self._finish(batch)

    @contextmanager
    def _alone(self, batch: Batch) -> Iterator[None]:
        """Keep an error with one batch from holding up those of others. It is tried again at the next look."""
        try:
            yield
        except Exception as error:
            if batch.id not in self._broken:  # once: a look comes every second
                log.error("%s cannot go on: %s", batch.id, described(error))
            self._broken.add(batch.id)

    def _finish(self, batch: Batch) -> None:
        store = self._service.store
        job = None if batch.job is None else store.job(batch.owner, batch.job)
        if job is not None:
            store.finish_batch(batch.id, *outputs_of(job, store.images(batch.owner, job.id)))

    def _sweep(self) -> None:
        if time.monotonic() - self._swept < SWEEP_SECONDS:
            return
        self._swept = time.monotonic()
        self._service.files.remove_parts(time.time() - SWEEP_SECONDS)
        if self._keep_days > 0:
            sweep(self._service.store, self._service.files, time.time() - self._keep_days * DAY)

    def _validate(self, batch: Batch) -> None:
        """Start a batch, or refuse it."""
        service, store = self._service, self._service.store
        content = store.file_content(batch.owner, batch.input_file)  # may fail: then it is tried again
        try:
            if content is None:
                sentence = f"The file {batch.input_file} was deleted before the batch began."
                raise WrongBatchError([{"code": "file_deleted", "line": None, "message": sentence, "param": None}])
            images = requests_of(content, service.reader)
        except WrongBatchError as wrong:
            store.fail_batch(batch.id, wrong.problems)
            return
        except Exception as error:  # one batch must not hold up those of others
            log.error("%s cannot be validated: %s", batch.id, described(error))
            sentence = "The service failed to read this file; its log says why, under the id of the batch."
            store.fail_batch(batch.id, [{"code": "internal_error", "line": None, "message": sentence, "param": None}])
            return
        store.start_batch(batch.id, images, service.limits.queued_rows)
        if service.logs_prompts:
            log.info("%s of %s: %s", batch.id, batch.owner, [image.prompt for image in images])
