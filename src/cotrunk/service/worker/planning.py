"""Who shares with whom: plans of the images of one bucket, group by group."""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...pipelines.arguments import needed_arguments
from ...pipelines.automatic import why_not_skipped
from ...planning.embedding import Encoder
from ...planning.plan import Plan
from ...planning.request import Request, encoder_of
from ...planning.sharing import Evaluations, branch_point
from ...planning.threshold import auto_threshold
from ...runs.part_run import arguments_of
from ...settings import Settings, Skipping
from ...trunks.computing import CacheUse
from ..launch import WorkerSettings
from ..store.records import ImageRequest
from .asked import call_of, is_alone, job_of, seed_of, settings_for
from .cache import cache_of
from .formed import Formed, Member, of_tree
from .memory import remembering
from .savings import Savings

PLANNED_AGAIN = 256  # a bucket of at most so many images is planned again when another one comes
MOST_PLANNED = 20_000  # images whose groups are remembered


class Planner:
    """Plans groups for one loaded pipeline, also while it runs.

    Attributes:
        settings: of the service, with values in place of "auto" for similarity and skipping.
        shares: whether images share at all.
        threshold: the smallest cosine of two images that share.
        cache: the trunk cache; None without one.

    Args:
        pipe: the pipeline.
        settings: of the service.
        launch: the model, and where trunks are kept.
        savings: what sharing has saved.
    """

    def __init__(self, pipe: Any, settings: Settings, launch: WorkerSettings, savings: Savings) -> None:
        # planning counts steps with a copy of the scheduler, which must not be the one of a running call
        self.pipe = copy.copy(pipe)
        vars(self.pipe)["scheduler"] = copy.deepcopy(pipe.scheduler)
        self.model, self.cache, self._savings = launch.model, None, savings
        skipping, sharing = settings.skipping, settings.sharing
        if skipping == "auto":
            skipping = Skipping() if why_not_skipped(pipe) is None else None
        self.shares = sharing is not None and sharing.max_group != 1 and sharing.share > 0
        self.threshold = 1.0
        self._planned: dict[str, Formed] = {}  # image -> the group that it was planned in
        self._encoder: Encoder | None = None
        if self.shares and sharing is not None:
            self._encoder = remembering(encoder_of(pipe, sharing.encoder))
            # measured once: the prompts that "auto" measures are the same each time
            self.threshold = (
                auto_threshold(self._encoder) if isinstance(sharing.similarity, str) else float(sharing.similarity)
            )
            sharing = replace(sharing, similarity=self.threshold)
            if launch.trunks != "off":
                self.cache = cache_of(launch, pipe, self.vectors)
        self.settings = replace(settings, sharing=sharing, skipping=skipping)

    def vectors(self, prompts: Sequence[str]) -> np.ndarray:
        """Return the unit vectors of prompts, (n, d). Each prompt is embedded once."""
        assert self._encoder is not None
        return self._encoder.encode(prompts)

    def request(self, requests: Sequence[ImageRequest], settings: Settings) -> Request:
        """Return the call of some images.

        Args:
            requests: the images, which may run in one call.
            settings: of the run.

        Raises:
            CotrunkError: the pipeline cannot generate such images.
        """
        job = job_of(requests, settings, self.model)
        arguments = needed_arguments(self.pipe) | arguments_of(job, job.prompts, self.pipe)
        if settings.steps is not None:
            arguments["num_inference_steps"] = settings.steps
        return Request(self.pipe, job.texts, arguments, encoder=self._encoder)

    def plan(self, requests: Sequence[ImageRequest], seeds: Sequence[int], owners: Sequence[str] = ()) -> Plan:
        """Return the plan of images that may run in one call, with one image per prompt.

        Args:
            requests: the images.
            seeds: of each image.
            owners: of each image; without them, the plan does not use the trunk cache.

        Raises:
            CotrunkError: the pipeline cannot generate such images.
        """
        settings = settings_for(requests[0], self.settings)
        request = self.request(requests, settings)
        if not self._pays(requests[0], settings):
            return request.plan(None, seed=seeds)
        plan = request.plan(settings.sharing, seed=seeds)
        if self.cache is None or not owners:
            return plan
        return self.cache.planned(request, settings, plan, owners, seeds)

    def _pays(self, request: ImageRequest, settings: Settings) -> bool:
        """Return whether sharing saves rows: without skipping always, with skipping as far as it is known."""
        return settings.skipping is None or self._savings.pays(call_of(request))

    def cache_use(self, members: Sequence[Member], settings: Settings, plan: Plan) -> CacheUse | None:
        """Return the trunk cache for a call; None without one.

        Args:
            members: the images of the call.
            settings: of the run.
            plan: of the call.
        """
        if self.cache is None:
            return None
        request = self.request([member.request for member in members], settings)
        return self.cache.use(request, settings, plan, [member.owner for member in members])

    def form(self, members: Sequence[Member]) -> list[Formed]:
        """Return the groups of the images of one bucket.

        They are those of the latest plan as long as no other image has come: its groups leave whole, which does not
        change the others. A large bucket keeps its plan, and new images are planned by themselves.

        Raises:
            CotrunkError: the pipeline cannot generate such images.
        """
        ids = {member.id for member in members}
        kept = {group.images: group for i in ids if (group := self._planned.get(i)) and ids.issuperset(group.images)}
        planned = {image for images in kept for image in images}
        new = [member for member in members if member.id not in planned]
        if new and len(members) <= PLANNED_AGAIN:
            kept, new = {}, list(members)
        groups = [*kept.values(), *(self._form(new) if new else [])]
        if len(self._planned) > MOST_PLANNED:
            self._planned.clear()
        self._planned.update((image, group) for group in groups for image in group.images)
        return groups

    def _form(self, members: Sequence[Member]) -> list[Formed]:
        requests = [member.request for member in members]
        seeds = [seed_of(member.request, member.id) for member in members]
        plan = self.plan(requests, seeds, [member.owner for member in members])
        settings, now = settings_for(requests[0], self.settings), time.time()
        return [
            Formed(tuple(members[image] for image in tree.images), of_tree(plan, tree), settings, now)
            for tree in plan.trees
        ]

    def single(self, member: Member) -> Formed:
        """Return an image as a group of its own.

        Raises:
            CotrunkError: the pipeline cannot generate such an image.
        """
        return self._form([member])[0]

    def saved_rows(self, request: ImageRequest) -> float:
        """Return the rows that a second, similar image would save.

        Raises:
            CotrunkError: the pipeline cannot generate such images.
        """
        if not self.shares or is_alone(request):
            return 0.0
        plan = self.plan([request], [0])
        sharing = plan.sharing
        if sharing is None:
            return 0.0
        evaluations = Evaluations(plan.steps, plan.timesteps, plan.guidance_rows)
        steps = branch_point(sharing, self.threshold, 1.0, evaluations)
        in_trunk = 1 if plan.trunk_guidance == 0 else plan.guidance_rows
        return float(steps * (2 * plan.guidance_rows - in_trunk))
