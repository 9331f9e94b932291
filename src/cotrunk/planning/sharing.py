"""Make a plan from groups of similar prompts, by the sampling method of SAGE.

Zhao et al., "SAGE: Semantic-Aware Shared Sampling for Efficient Diffusion" (arXiv 2509.15865), section 2.2 and
Algorithm 1: a group starts from one noise, and is denoised with the mean of its conditions up to the branch point. Then
each prompt continues alone. `mode="flat"` is the two-level tree of the paper. The paper says that the branch point may
depend on the similarity, but does not say how: the modes `adaptive` and `tree` are cotrunk's own.
"""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ..checks import seeds_of
from ..errors import CotrunkError
from ..settings import Sharing
from .grouping import dendrogram, group_prompts, smallest_similarity
from .plan import Findings, Plan
from .tree import Branch, flat_tree, leaf


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt of a run, with the facts that planning needs.

    Attributes:
        text: the prompt, or a name for one that was given as embeddings.
        identity: equal for equal prompts: the text, or a digest of the embeddings.
        reads: the tokens that the model reads. Prompts with equal tokens never share, because their images differ only
            by noise. None to use the content.
        key: a digest of its other arguments (negative prompt, control image). Prompts with different keys never share.
        companion: prompts with different values cannot run in one call of the pipeline, so they never share.
    """

    text: str
    identity: str
    reads: Hashable = None
    key: str = ""
    companion: Hashable = None

    @property
    def content(self) -> str:
        """The text that, with the seed of the run, determines the seeds of its images."""
        return f"{self.key}\0{self.identity}"


@dataclass(frozen=True)
class Evaluations:
    """The number of steps and rows of one image on its own.

    Attributes:
        steps, timesteps, guidance_rows: as in `Plan`.
        order: evaluations per step (the scheduler's `order`).
    """

    steps: int
    timesteps: int
    guidance_rows: int = 2
    order: int = 1


def branch_point(sharing: Sharing, threshold: float, similarity: float, evaluations: Evaluations) -> int:
    """Return the timestep up to which a (sub)group of this smallest pairwise similarity shares.

    With limit = share * timesteps and tightness = (similarity - threshold) / (1 - threshold), 0 to 1:
    flat: limit; adaptive: limit * (1 + tightness) / 2, from half the limit for a group at the threshold to all of it
    for equal prompts; tree: limit * tightness, so that the height allowed in the dendrogram shrinks linearly with
    the step (Decatur et al., arXiv 2508.21032, equation 7). The result never decreases with the similarity and never
    exceeds the limit. It is rounded down to whole steps, because a second-order solver cannot branch between the two
    evaluations of a step.
    """
    tightness = 1.0 if threshold >= 1 else min(1.0, max(0.0, (similarity - threshold) / (1 - threshold)))
    part = {"flat": 1.0, "adaptive": (1 + tightness) / 2, "tree": tightness}[sharing.mode]
    # the small addition: 0.29 * 100 is 28.999999999999996 in floating point
    limit = int(sharing.share * part * evaluations.timesteps + 1e-9)
    return limit // evaluations.order * evaluations.order


def make_plan(
    items: Sequence[Item],
    vectors: np.ndarray,
    sharing: Sharing | None,
    threshold: float,
    evaluations: Evaluations,
    *,
    seed: int | Sequence[int] = 0,
    images_per_prompt: int = 1,
    from_embeddings: bool = False,
    findings: Findings = Findings(),  # noqa: B008 (frozen)
) -> Plan:
    """Group the prompts and lay out their trees.

    Args:
        items: n prompts.
        vectors: (n, d) unit vectors of the prompts; unused when `sharing` is None.
        sharing: with noise and trunk guidance as `trunk_choice` chose them. None for independent sampling.
        threshold: the smallest cosine of a pair in a group (`sharing.similarity`, resolved).
        evaluations: how one image is denoised on its own.
        seed: one seed for the run, or one per prompt. The seed of an image is derived from the seed of the run and the
            content of its prompt, not its position. A seed per prompt is used unchanged for its first image, and the
            seeds of its other images are derived from it. With common noise, a group has the seed of one member.
        from_embeddings, findings: as in `Plan`.
    """
    contents = [item.content for item in items]
    seeds = _image_seeds(contents, seeds_of(seed), images_per_prompt)
    if sharing is None or not items:
        groups = [[i] for i in range(len(items))]
    else:
        groups = _groups(items, vectors, sharing, threshold)
    trees = []
    for group in groups:
        shapes = _tree(group, vectors, sharing, threshold, evaluations)
        for copy in range(images_per_prompt):
            for shape in shapes:
                tree = _relabel(shape, images_per_prompt, copy)
                trees.append(tree)
                if sharing is not None and sharing.noise == "common":
                    # the noise of the first member in order of content
                    first = min(tree.images, key=lambda image: contents[image // images_per_prompt])
                    for image in tree.images:
                        seeds[image] = seeds[first]
    return Plan(
        prompts=tuple(item.text for item in items),
        seeds=tuple(seeds),
        trees=tuple(sorted(trees, key=lambda tree: tree.images)),
        steps=evaluations.steps,
        timesteps=evaluations.timesteps,
        guidance_rows=evaluations.guidance_rows,
        images_per_prompt=images_per_prompt,
        from_embeddings=from_embeddings,
        sharing=sharing,
        threshold=None if sharing is None else threshold,
        findings=findings,
    )


def why_nothing_shared(plan: Plan) -> str | None:
    """Return why a plan saves nothing, for reports; None if it saves rows."""
    if plan.cost.used < plan.cost.independent:
        return None
    if len(plan.prompts) == 1:
        return "one prompt has no other to share with"
    if plan.sharing is None or plan.sharing.share == 0:
        return "the share is 0"
    if plan.sharing.max_group == 1:
        return "groups of one prompt were asked for"
    order = max(1, round(plan.timesteps / plan.steps))  # evaluations per step
    if plan.sharing.share * plan.timesteps < order:
        return "the part to share is less than one step: raise the share or the number of steps"
    if plan.sharing.mode == "flat":
        return "no two different prompts are similar enough"
    return "no two different prompts are similar enough to share a whole step in this mode"


def how_shared(sharing: Sharing, *, is_guided: bool) -> str:
    """Return how trunks are sampled, as a sentence for reports.

    Args:
        sharing: of the plan.
        is_guided: whether guidance takes a row, so that trunks can be sampled with less of it.
    """
    noise = (
        "Every image keeps its own noise" if sharing.noise == "own" else "The images of a group start from one noise"
    )
    part = float(sharing.trunk_guidance)
    guidance = {0.0: "without guidance", 1.0: "with full guidance"}.get(part, f"with {part:.0%} of the guidance")
    return f"{noise}, and trunks are sampled {guidance}." if is_guided else f"{noise}."


def _groups(items: Sequence[Item], vectors: np.ndarray, sharing: Sharing, threshold: float) -> list[list[int]]:
    """Group the prompts in the order of their content, so that the result does not depend on the given order.

    (Otherwise the order could decide which of several prompts with equal tokens shares, and the tree of a group.)
    """
    ranks = [0] * len(items)
    for rank, i in enumerate(sorted(range(len(items)), key=lambda i: items[i].content)):
        ranks[i] = rank
    groups = group_prompts(
        vectors,
        threshold,
        upper=sharing.max_similarity,
        max_group=sharing.max_group,
        identities=[item.content if item.reads is None else item.reads for item in items],
        keys=[(item.key, item.companion) for item in items],
        ranks=ranks,
    )
    return [sorted(group, key=ranks.__getitem__) for group in groups]


def _image_seeds(contents: Sequence[str], seed: int | Sequence[int], images_per_prompt: int) -> list[int]:
    """Return one seed per image, derived from seed, content, earlier equal contents, and the image's number."""
    if not isinstance(seed, int) and len(seed) != len(contents):
        raise CotrunkError(f"{len(seed)} seeds for {len(contents)} prompts: give one seed, or one per prompt.")
    seen: dict[str, int] = {}
    seeds = []
    for i, content in enumerate(contents):
        occurrence = seen.get(content, 0)
        seen[content] = occurrence + 1
        for copy in range(images_per_prompt):
            if isinstance(seed, int):
                seeds.append(derived_seed(seed, content, occurrence, copy))
            else:
                seeds.append(seed[i] if copy == 0 else derived_seed(seed[i], copy))
    return seeds


def derived_seed(*parts: object) -> int:
    """Return a seed of 48 bits, which every JSON reader keeps exact."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def _tree(
    group: Sequence[int],
    vectors: np.ndarray,
    sharing: Sharing | None,
    threshold: float,
    evaluations: Evaluations,
) -> list[Branch]:
    """Return the trees of one group, over prompt indices. There are several if its trunk would have no steps."""
    timesteps = evaluations.timesteps
    if sharing is None or len(group) == 1:
        return [leaf(i, 0, timesteps) for i in group]
    own = vectors[list(group)]
    if sharing.mode == "tree":
        return _grow(group, dendrogram(own), sharing, threshold, evaluations)
    similarity = smallest_similarity(own)
    return flat_tree(group, branch_point(sharing, threshold, similarity, evaluations), timesteps, similarity)


def _grow(
    group: Sequence[int],
    merges: Sequence[tuple[int, int, float]],
    sharing: Sharing,
    threshold: float,
    evaluations: Evaluations,
) -> list[Branch]:
    """Return the trees of a dendrogram: each node lasts until its branch point, then splits into its two halves.

    A node that would end before its parent does is omitted, so a branch may split into more than two.
    """
    size, timesteps = len(group), evaluations.timesteps

    def split(nodes: list[int], start: int) -> list[Branch]:
        branches = []
        while nodes:
            node = nodes.pop()
            if node < size:
                branches.append(leaf(group[node], start, timesteps))
                continue
            a, b, similarity = merges[node - size]
            stop = branch_point(sharing, threshold, similarity, evaluations)
            if stop <= start:
                nodes += [a, b]
                continue
            children = tuple(sorted(split([a, b], stop), key=lambda branch: branch.images))
            images = tuple(sorted(i for child in children for i in child.images))
            branches.append(Branch(images, start, stop, similarity, children))
        return branches

    return split([size + len(merges) - 1], 0)


def _relabel(branch: Branch, images_per_prompt: int, copy: int) -> Branch:
    """Turn prompt indices into the indices of their `copy`-th images."""
    return Branch(
        tuple(i * images_per_prompt + copy for i in branch.images),
        branch.start,
        branch.stop,
        branch.similarity,
        tuple(_relabel(child, images_per_prompt, copy) for child in branch.children),
    )
