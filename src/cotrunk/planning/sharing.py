"""SAGE's sampling policy: from groups of similar prompts to a plan.

Zhao et al., "SAGE: Semantic-Aware Shared Sampling for Efficient Diffusion" (arXiv 2509.15865), section 2.2 and
Algorithm 1: a group starts from one noise, is denoised under the mean of its conditions up to the branch point,
then each prompt goes on alone. The two-level tree of the paper is `mode="flat"`; the paper says that the branch
point may depend on the similarity and leaves the rule open: `adaptive` and `tree` are ours.
"""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import asdict

import numpy as np

from ..checks import seeds_of
from ..errors import CotrunkError
from ..settings import Sharing
from .grouping import dendrogram, group_prompts, smallest_similarity
from .plan import Branch, Plan, flat_tree, leaf


def branch_point(sharing: Sharing, threshold: float, similarity: float, timesteps: int, order: int = 1) -> int:
    """The timestep up to which a (sub)group of this smallest pairwise similarity shares.

    With limit = share * timesteps and tightness = (similarity - threshold) / (1 - threshold), 0 to 1:
    flat: limit; adaptive: limit * (1 + tightness) / 2, from half the limit for a group at the threshold to all of it
    for equal prompts; tree: limit * tightness, so that the height allowed in the dendrogram shrinks linearly with
    the step (Decatur et al., arXiv 2508.21032, equation 7). Monotone in similarity, never past the limit, rounded
    down to whole steps of the solver (`order` evaluations each), between which a solver of second order holds half
    a step.
    """
    tightness = 1.0 if threshold >= 1 else min(1.0, max(0.0, (similarity - threshold) / (1 - threshold)))
    part = {"flat": 1.0, "adaptive": (1 + tightness) / 2, "tree": tightness}[sharing.mode]
    # the small addition: 0.29 * 100 is 28.999999999999996 in floating point
    return int(sharing.share * part * timesteps + 1e-9) // order * order


def make_plan(
    prompts: Sequence[str],
    vectors: np.ndarray,
    sharing: Sharing | None,
    threshold: float,
    *,
    steps: int,
    timesteps: int | None = None,
    order: int = 1,
    guidance_rows: int = 2,
    seed: int | Sequence[int] = 0,
    images_per_prompt: int = 1,
    identities: Sequence[str] | None = None,
    conditions: Sequence[Hashable] | None = None,
    keys: Sequence[Hashable] | None = None,
    companions: Sequence[Hashable] | None = None,
) -> Plan:
    """Group the prompts and lay out their trees.

    Args:
        prompts: n prompts.
        vectors: (n, d) unit vectors of the prompts; unused when `sharing` is None.
        sharing: None for independent sampling.
        threshold: the smallest cosine of a pair in a group (`sharing.similarity`, resolved).
        steps, timesteps, order, guidance_rows: see `Plan`; `order` is the scheduler's.
        seed: one for the run, from which and from the prompt's content every image's seed is derived, never from
            its position; or one a prompt, used as it is (further images of that prompt derive theirs from it).
            A group starts from the noise of one member.
        identities: the prompts' content; default: their texts.
        conditions: what the model reads of each; duplicates, which never share, have equal ones. Default: identities.
        keys: prompts with different keys never share; part of their content.
        companions: prompts that differ here cannot run in one call of the pipeline, so they never share either.
    """
    timesteps = steps if timesteps is None else timesteps
    identities = list(prompts) if identities is None else identities
    keys = [""] * len(prompts) if keys is None else keys
    contents = [f"{key}\0{identity}" for key, identity in zip(keys, identities, strict=True)]
    companions = [None] * len(prompts) if companions is None else companions
    seeds = _image_seeds(contents, seeds_of(seed), images_per_prompt)
    if sharing is None or len(prompts) == 0:
        groups = [[i] for i in range(len(prompts))]
    else:
        conditions = contents if conditions is None else conditions
        # in order of content: which of the prompts that read alike shares, and the tree of a group, must not depend
        # on the order given
        order_of_content = sorted(range(len(prompts)), key=contents.__getitem__)
        groups = group_prompts(
            vectors[order_of_content],
            threshold,
            upper=sharing.max_similarity,
            max_group=sharing.max_group,
            identities=[conditions[i] for i in order_of_content],
            keys=[(keys[i], companions[i]) for i in order_of_content],
        )
        groups = [[order_of_content[i] for i in group] for group in groups]
    trees = []
    for group in groups:
        shapes = _tree(group, vectors, sharing, threshold, timesteps, order)
        for copy in range(images_per_prompt):
            for shape in shapes:
                tree = _relabel(shape, images_per_prompt, copy)
                # the noise of the first member in order of content
                first = min(tree.images, key=lambda image: contents[image // images_per_prompt])
                for image in tree.images:
                    seeds[image] = seeds[first]
                trees.append(tree)
    settings = {"mode": "independent"} if sharing is None else {**asdict(sharing), "similarity": threshold}
    return Plan(
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        trees=tuple(sorted(trees, key=lambda tree: tree.images)),
        steps=steps,
        timesteps=timesteps,
        guidance_rows=guidance_rows,
        images_per_prompt=images_per_prompt,
        settings=settings,
    )


def why_nothing_shared(plan: Plan) -> str | None:
    """Why a plan saves nothing, for whoever reads the report; None if it saves."""
    if plan.cost.used < plan.cost.independent:
        return None
    if len(plan.prompts) == 1:
        return "one prompt has none to share with"
    settings = plan.settings
    if not settings.get("share"):
        return "the share is 0"
    if settings.get("max_group") == 1:
        return "groups of one prompt were asked for"
    order = max(1, round(plan.timesteps / plan.steps))  # evaluations a step
    if settings["share"] * plan.timesteps < order:
        return "the part to share is less than one step: more of it, or more steps, would do"
    if settings.get("mode") == "flat":
        return "no two different prompts are similar enough"
    return "no two different prompts are similar enough to share a whole step in this mode"


def _image_seeds(contents: Sequence[str], seed: int | Sequence[int], images_per_prompt: int) -> list[int]:
    """One seed an image, from (seed, content, how often this content came before, which image of the prompt)."""
    if not isinstance(seed, int) and len(seed) != len(contents):
        raise CotrunkError(f"{len(seed)} seeds for {len(contents)} prompts: give one seed, or one per prompt.")
    seen: dict[str, int] = {}
    seeds = []
    for i, content in enumerate(contents):
        occurrence = seen.get(content, 0)
        seen[content] = occurrence + 1
        for copy in range(images_per_prompt):
            if isinstance(seed, int):
                seeds.append(_digest(seed, content, occurrence, copy))
            else:
                seeds.append(seed[i] if copy == 0 else _digest(seed[i], copy))
    return seeds


def _digest(*parts: object) -> int:
    """A seed of 48 bits: every JSON reader keeps it exact."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def _tree(
    group: Sequence[int],
    vectors: np.ndarray,
    sharing: Sharing | None,
    threshold: float,
    timesteps: int,
    order: int,
) -> list[Branch]:
    """The trees of one group, over prompt indices. More than one, where its trunk would have no length."""
    if sharing is None or len(group) == 1:
        return [leaf(i, 0, timesteps) for i in group]
    own = vectors[list(group)]
    if sharing.mode == "tree":
        return _grow(group, dendrogram(own), sharing, threshold, timesteps, order)
    similarity = smallest_similarity(own)
    return flat_tree(group, branch_point(sharing, threshold, similarity, timesteps, order), timesteps, similarity)


def _grow(
    group: Sequence[int],
    merges: Sequence[tuple[int, int, float]],
    sharing: Sharing,
    threshold: float,
    timesteps: int,
    order: int,
) -> list[Branch]:
    """Trees from a dendrogram: a node lasts until its branch point, then parts into its two halves. A node that
    would end no later than its parent is passed over, so that several may part at once."""
    size = len(group)

    def split(nodes: list[int], start: int) -> list[Branch]:
        branches = []
        while nodes:
            node = nodes.pop()
            if node < size:
                branches.append(leaf(group[node], start, timesteps))
                continue
            a, b, similarity = merges[node - size]
            stop = branch_point(sharing, threshold, similarity, timesteps, order)
            if stop <= start:
                nodes += [a, b]
                continue
            children = tuple(sorted(split([a, b], stop), key=lambda branch: branch.images))
            images = tuple(sorted(i for child in children for i in child.images))
            branches.append(Branch(images, start, stop, similarity, children))
        return branches

    return split([size + len(merges) - 1], 0)


def _relabel(branch: Branch, images_per_prompt: int, copy: int) -> Branch:
    """From prompt indices to the indices of their `copy`-th images."""
    return Branch(
        tuple(i * images_per_prompt + copy for i in branch.images),
        branch.start,
        branch.stop,
        branch.similarity,
        tuple(_relabel(child, images_per_prompt, copy) for child in branch.children),
    )
